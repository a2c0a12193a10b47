//! Incremental xDS: `DeltaAggregatedResources`.
//!
//! An acknowledgement carries no change of subscription, and a change of subscription carries no nonce: istiod honours
//! both in one message, other control planes do not. Subscribing to a name that is subscribed gets no answer from
//! istiod, so only differences are ever sent.

use super::{error_detail, is_wildcard, of_type, short_name, wrong_type, Apply, Reaction, Rejected, Resource, TYPES};
use envoy_types::pb::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{DeltaDiscoveryRequest as Request, DeltaDiscoveryResponse as Response},
};
use std::collections::{BTreeSet, HashMap, HashSet};

#[derive(Debug, Default)]
struct State {
    /// A request of this type was sent on this stream.
    open: bool,
    subscribed: BTreeSet<String>,
}

/// The client's side of incremental xDS.
#[derive(Debug)]
pub struct Client {
    node: Node,
    node_sent: bool,
    states: HashMap<&'static str, State>,
}

impl Client {
    /// A client that has said nothing yet.
    pub fn new(node: Node) -> Client {
        Client { node, node_sent: false, states: HashMap::new() }
    }

    /// The node goes with the first message of a stream only.
    fn node(&mut self) -> Option<Node> {
        (!std::mem::replace(&mut self.node_sent, true)).then(|| self.node.clone())
    }

    /// A request with the names of a type that are wanted now and were not, and the other way round.
    fn subscribe(
        &mut self,
        type_url: &'static str,
        mut add: BTreeSet<String>,
        remove: BTreeSet<String>,
        apply: &dyn Apply,
    ) -> Option<Request> {
        let state = self.states.entry(type_url).or_default();
        let first = !state.open;
        add.retain(|name| state.subscribed.insert(name.clone()));
        let unsubscribe: Vec<String> = remove.into_iter().filter(|name| state.subscribed.remove(name)).collect();
        // A first request without names means "everything", which is right for wildcards only.
        let needed = if is_wildcard(type_url) { first } else { !add.is_empty() || !unsubscribe.is_empty() };
        if !needed {
            return None;
        }
        state.open = true;
        let mut initial_resource_versions = HashMap::new();
        if first {
            let held = apply.held(type_url).into_iter();
            initial_resource_versions.extend(held.filter(|(name, _)| is_wildcard(type_url) || add.contains(name)));
        }
        Some(Request {
            node: self.node(),
            type_url: type_url.to_owned(),
            resource_names_subscribe: add.into_iter().collect(),
            resource_names_unsubscribe: unsubscribe,
            initial_resource_versions,
            ..Request::default()
        })
    }
}

impl super::Client for Client {
    type Request = Request;
    type Response = Response;

    fn on_connected(&mut self, apply: &mut dyn Apply) -> Vec<Request> {
        self.node_sent = false;
        self.states.clear();
        // All names are said now; changes count from here.
        apply.take_change();
        let mut wanted = apply.wanted();
        TYPES.into_iter().filter_map(|t| self.subscribe(t, of_type(&mut wanted, t), BTreeSet::new(), apply)).collect()
    }

    fn on_response(&mut self, response: Response, apply: &mut dyn Apply) -> Reaction<Request> {
        let type_url = response.type_url;
        let Some(state) = TYPES.iter().find(|t| **t == type_url).and_then(|t| self.states.get(t).filter(|s| s.open))
        else {
            return Reaction::ignored(format!("a response of type \"{type_url}\", which was never asked for"));
        };
        let mut rejected: Vec<Rejected> = Vec::new();
        let mut added: Vec<Resource> = Vec::with_capacity(response.resources.len());
        let mut seen = HashSet::new();
        for r in response.resources {
            if !is_wildcard(&type_url) && !state.subscribed.contains(&r.name) {
                // Sent before the server saw that it is not wanted any more.
                continue;
            }
            // Without a body it only prolongs a time to live; there is nothing to take over.
            let Some(body) = r.resource else { continue };
            if !seen.insert(r.name.clone()) {
                added.retain(|a| a.name != r.name);
                let reason = format!("appears twice in one {} response", short_name(&type_url));
                rejected.push(Rejected { name: r.name, field: String::new(), reason });
            } else if body.type_url != type_url {
                rejected.push(wrong_type(&r.name, &body.type_url, &type_url));
            } else {
                added.push(Resource { name: r.name, version: r.version, body });
            }
        }
        let removed = response.removed_resources.into_iter().filter(|name| !seen.contains(name)).collect();
        rejected.extend(apply.apply(&type_url, added, removed, false));

        let mut requests = vec![Request {
            node: self.node(),
            type_url,
            response_nonce: response.nonce,
            error_detail: (!rejected.is_empty()).then(|| error_detail(&rejected)),
            ..Request::default()
        }];
        requests.extend(self.on_names_changed(apply));
        Reaction { requests, rejected, ignored: None }
    }

    fn on_names_changed(&mut self, apply: &mut dyn Apply) -> Vec<Request> {
        // Nothing goes out before the stream's first requests: they carry the node, and say all names.
        if !self.node_sent {
            return Vec::new();
        }
        let mut change = apply.take_change();
        let mut requests = Vec::new();
        for t in TYPES.into_iter().filter(|t| !is_wildcard(t)) {
            let (add, remove) = (of_type(&mut change.add, t), of_type(&mut change.remove, t));
            requests.extend(self.subscribe(t, add, remove, apply));
        }
        requests
    }
}
