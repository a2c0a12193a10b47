//! State-of-the-world xDS: `StreamAggregatedResources`.
//!
//! Every request of a type lists all the names that are wanted, an acknowledgement too: istiod takes an empty list for
//! "unsubscribe". A response of listeners or clusters is the whole world; one of route tables or endpoint sets holds
//! only what changed or was added to the names, and is merged.

use super::{error_detail, is_wildcard, of_type, short_name, wrong_type, Apply, Reaction, Rejected, Resource, TYPES};
use crate::translate;
use envoy_types::pb::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{DiscoveryRequest as Request, DiscoveryResponse as Response, Resource as Wrapper},
};
use envoy_types::pb::google::protobuf::Any;
use prost::Message;
use std::collections::{BTreeSet, HashMap, HashSet};

/// A resource may come in this envelope, which carries its name.
const WRAPPER: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";

#[derive(Debug, Default)]
struct State {
    /// A request of this type was sent on this stream.
    open: bool,
    names: BTreeSet<String>,
    /// Version of the last response that was accepted; outlives the stream.
    version: String,
    /// Nonce of the last response on this stream.
    nonce: String,
}

/// The client's side of state-of-the-world xDS.
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

    /// A request of a type with all that is known of it now.
    fn request(&mut self, type_url: &'static str) -> Request {
        let node = (!std::mem::replace(&mut self.node_sent, true)).then(|| self.node.clone());
        let state = self.states.entry(type_url).or_default();
        state.open = true;
        Request {
            version_info: state.version.clone(),
            node,
            resource_names: state.names.iter().cloned().collect(),
            type_url: type_url.to_owned(),
            response_nonce: state.nonce.clone(),
            ..Request::default()
        }
    }

    /// Brings the names of every type up to date; comes back with the types that the server must hear of.
    fn take_change(&mut self, apply: &mut dyn Apply) -> Vec<&'static str> {
        let mut change = apply.take_change();
        let mut due = Vec::new();
        for t in TYPES.into_iter().filter(|t| !is_wildcard(t)) {
            let state = self.states.entry(t).or_default();
            let (add, remove) = (of_type(&mut change.add, t), of_type(&mut change.remove, t));
            let mut changed = false;
            add.into_iter().for_each(|name| changed |= state.names.insert(name));
            remove.iter().for_each(|name| changed |= state.names.remove(name));
            // An empty first request would mean "everything"; an empty later one unsubscribes, and is meant so.
            if changed && (state.open || !state.names.is_empty()) {
                due.push(t);
            }
        }
        due
    }
}

/// What a response's `Any` holds, out of its envelope if it has one, and its name.
fn unwrap(body: Any) -> Result<(Option<String>, Option<Any>), String> {
    if body.type_url != WRAPPER {
        return Ok((translate::resource_name(&body), Some(body)));
    }
    let w = Wrapper::decode(body.value.as_slice()).map_err(|e| format!("cannot be decoded: {e}"))?;
    Ok((Some(w.name), w.resource))
}

impl super::Client for Client {
    type Request = Request;
    type Response = Response;

    fn on_connected(&mut self, apply: &mut dyn Apply) -> Vec<Request> {
        self.node_sent = false;
        // All names are said now; changes count from here.
        apply.take_change();
        let mut wanted = apply.wanted();
        let mut requests = Vec::new();
        for t in TYPES {
            let state = self.states.entry(t).or_default();
            (state.open, state.nonce, state.names) = (false, String::new(), of_type(&mut wanted, t));
            if is_wildcard(t) || !state.names.is_empty() {
                requests.push(self.request(t));
            }
        }
        requests
    }

    fn on_response(&mut self, response: Response, apply: &mut dyn Apply) -> Reaction<Request> {
        let known = TYPES.into_iter().find(|t| *t == response.type_url);
        let Some((type_url, state)) = known.and_then(|t| Some((t, self.states.get_mut(t).filter(|s| s.open)?))) else {
            let why = format!("a response of type \"{}\", which was never asked for", response.type_url);
            return Reaction::ignored(why);
        };
        state.nonce = response.nonce;
        let mut rejected: Vec<Rejected> = Vec::new();
        let mut added: Vec<Resource> = Vec::with_capacity(response.resources.len());
        let mut seen = HashSet::new();
        // What has no readable name may be any of those that are held: then nothing is taken for gone.
        let mut whole = is_wildcard(type_url);
        let total = response.resources.len();
        for (i, body) in response.resources.into_iter().enumerate() {
            let place = || format!("resource {} of {total}", i + 1);
            let is = body.type_url.clone();
            match unwrap(body) {
                Ok((Some(name), Some(body))) if body.type_url == type_url => {
                    if !is_wildcard(type_url) && !state.names.contains(&name) {
                        // Sent before the server saw that it is not wanted any more.
                        continue;
                    }
                    if seen.insert(name.clone()) {
                        added.push(Resource { name, version: response.version_info.clone(), body });
                    } else {
                        added.retain(|a| a.name != name);
                        whole = false;
                        let reason = format!("appears twice in one {} response", short_name(type_url));
                        rejected.push(Rejected { name, field: String::new(), reason });
                    }
                }
                Ok((name, Some(body))) if body.type_url != type_url => {
                    whole = false;
                    rejected.push(wrong_type(&name.unwrap_or_else(place), &body.type_url, type_url));
                }
                // An envelope without a body only prolongs a time to live.
                Ok((Some(_), None)) => whole = false,
                Ok(_) => {
                    whole = false;
                    let reason = format!("is no readable {}", is.rsplit('.').next().unwrap_or(&is));
                    rejected.push(Rejected { name: place(), field: String::new(), reason });
                }
                Err(reason) => {
                    whole = false;
                    rejected.push(Rejected { name: place(), field: String::new(), reason });
                }
            }
        }
        rejected.extend(apply.apply(type_url, added, Vec::new(), whole));
        if rejected.is_empty() {
            if let Some(state) = self.states.get_mut(type_url) {
                state.version = response.version_info;
            }
        }
        // The acknowledgement says the names as they are from now on.
        let due = self.take_change(apply);
        let mut answer = self.request(type_url);
        answer.error_detail = (!rejected.is_empty()).then(|| error_detail(&rejected));
        let mut requests = vec![answer];
        for t in due.into_iter().filter(|t| *t != type_url) {
            requests.push(self.request(t));
        }
        Reaction { requests, rejected, ignored: None }
    }

    fn on_names_changed(&mut self, apply: &mut dyn Apply) -> Vec<Request> {
        // Nothing goes out before the stream's first requests: they carry the node, and say all names.
        if !self.node_sent {
            return Vec::new();
        }
        self.take_change(apply).into_iter().map(|t| self.request(t)).collect()
    }
}
