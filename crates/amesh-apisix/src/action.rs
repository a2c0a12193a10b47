//! What a route does, as plugins and fields of a route.

use crate::filters;
use crate::headers::{self, plain, Message, Names};
use crate::look::{Facts, Look};
use crate::rewrite;
use crate::upstream::seconds;
use crate::usage::{HashOn, Usage};
use amesh_model::filter::{Fault, LocalRateLimit};
use amesh_model::hash_policy::{HashMethod, HashPolicy};
use amesh_model::header::{Format, HeaderEdits};
use amesh_model::retry::{retry_on, RetryPolicy};
use amesh_model::route::{
    BodyPart, ClusterSpecifier, DirectResponseAction, ForwardAction, HostRewrite, Route, RouteAction, WeightedCluster,
};
use serde_json::{json, Map, Value};
use std::sync::Arc;

/// Most upstreams of one rule of `traffic-split`.
const ARMS: usize = 20;
/// What a try may fail with for APISIX to make another: no connection, or a time-out.
const CONNECTION: u32 = retry_on::FIVE_XX
    | retry_on::GATEWAY_ERROR
    | retry_on::CONNECT_FAILURE
    | retry_on::REFUSED_STREAM
    | retry_on::RESET
    | retry_on::RESET_BEFORE_REQUEST;

/// What the connection manager of a route says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Manager {
    /// WebSockets are let through.
    pub websocket: bool,
    /// Time without a byte in ms; 0: none.
    pub idle_timeout: u64,
    /// Faults of routes that have none of their own.
    pub fault: Option<Fault>,
    /// There is a filter for [`amesh_model::filter::Cors`].
    pub cors: bool,
    /// There is a filter that limits requests: the limit of routes that have none of their own.
    pub rate_limit: Option<LocalRateLimit>,
    /// There is a filter that holds bodies: the longest, for routes that say nothing of their own; 0: not held.
    pub max_request_bytes: Option<u32>,
}

/// A route but for where it stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Target {
    /// Fields of the object: `plugins`, `upstream_id`, `timeout` …
    pub fields: Map<String, Value>,
    /// What is done in another way than was asked for, and how.
    pub notes: Vec<String>,
}

impl Target {
    /// It is answered with this status.
    pub fn answers(status: u16) -> Target {
        let mut target = Target::default();
        target.plugin("fault-injection", json!({"abort": {"http_status": status}}));
        target
    }

    /// It is answered with 503, since it cannot be said.
    pub fn refused(why: &str) -> Target {
        let mut target = Target::answers(503);
        target.notes.push(format!("{why}; answered with 503"));
        target
    }

    /// Adds a plugin.
    pub fn plugin(&mut self, name: &str, conf: Value) {
        let plugins = self.fields.entry("plugins").or_insert_with(|| json!({}));
        if let Value::Object(plugins) = plugins {
            plugins.insert(name.to_owned(), conf);
        }
    }
}

/// What a route does. An error is the reason why APISIX cannot.
pub(crate) fn target(
    route: &Route,
    levels: &[&HeaderEdits],
    manager: &Manager,
    look: &mut Look<'_>,
) -> Result<Target, String> {
    let mut target = Target::default();
    let cluster = match &route.action {
        RouteAction::Route(forward) => match &forward.cluster {
            ClusterSpecifier::Cluster(name) => Some(name.as_str()),
            _ => None,
        },
        _ => None,
    };
    let names = Names { route: &route.name, cluster };
    let request = headers::edits(levels, Message::Request, &names)?;
    if let Some(edits) = headers::edits(levels, Message::Response, &names)? {
        target.plugin("response-rewrite", json!({"headers": edits}));
    }
    if let Some(fault) = route.fault.as_deref().or(manager.fault.as_ref()) {
        if let Some(conf) = filters::fault(fault, cluster)? {
            target.plugin("fault-injection", conf);
        }
    }
    if let Some(filters_own) = &manager.rate_limit {
        let limit = route.rate_limit.as_deref().unwrap_or(filters_own);
        if limit.bucket.is_some() && limit.enabled.numerator > 0 {
            return Err("it has a local rate limit; APISIX has limit-count and limit-req instead".to_owned());
        }
    }
    if let Some(filters_own) = manager.max_request_bytes {
        match route.max_request_bytes.unwrap_or(filters_own) {
            0 => {}
            longest => target.plugin("client-control", json!({"max_body_size": longest})),
        }
    }
    if let Some(cors) = route.cors.as_deref().filter(|_| manager.cors) {
        if let Some(conf) = filters::cors(cors, &mut target.notes)? {
            target.plugin("cors", conf);
        }
    }
    match &route.action {
        RouteAction::Route(action) => forward(route, action, request, manager, look, &mut target)?,
        RouteAction::Redirect(redirect) => {
            target.plugin("redirect", rewrite::redirect(redirect, &route.matches)?);
        }
        RouteAction::DirectResponse(direct) => answer(abort(direct)?, &mut target)?,
        RouteAction::NonForwarding => answer(json!({"http_status": 503}), &mut target)?,
        RouteAction::Refuse(why) => return Err(why.clone()),
    }
    Ok(target)
}

fn answer(abort: Value, target: &mut Target) -> Result<(), String> {
    if target.fields.get("plugins").is_some_and(|plugins| plugins.get("fault-injection").is_some()) {
        return Err("it has faults beside an answer of its own".to_owned());
    }
    target.plugin("fault-injection", json!({"abort": abort}));
    Ok(())
}

fn abort(direct: &DirectResponseAction) -> Result<Value, String> {
    let not_text = || "its body is not UTF-8, and JSON cannot hold it".to_owned();
    let body = match &direct.body_format {
        None => String::from_utf8(direct.body.clone()).map_err(|_| not_text())?,
        Some(format) => {
            let mut text = String::new();
            for part in &format.parts {
                match part {
                    BodyPart::Text(parts) => {
                        for part in parts {
                            let Format::Text(part) = part else {
                                return Err("its body depends on the request".to_owned());
                            };
                            text.push_str(part);
                        }
                    }
                    BodyPart::Json(_) => return Err("its body depends on the request".to_owned()),
                }
            }
            text
        }
    };
    if direct.status < 200 {
        return Err(format!("{} is no status that fault-injection answers with", direct.status));
    }
    Ok(match body.as_str() {
        "" => json!({"http_status": direct.status}),
        body => json!({"http_status": direct.status, "body": plain(body)?}),
    })
}

fn forward(
    route: &Route,
    action: &ForwardAction,
    request: Option<Value>,
    manager: &Manager,
    look: &mut Look<'_>,
    target: &mut Target,
) -> Result<(), String> {
    let mut proxy = Map::new();
    rewrite::path(&action.path_rewrite, &route.matches, &mut proxy)?;
    match &action.host_rewrite {
        HostRewrite::None | HostRewrite::Auto => {}
        HostRewrite::Literal(host) => drop(proxy.insert("host".into(), json!(rewrite::host(host)?))),
        HostRewrite::Header(_) | HostRewrite::PathRegex { .. } | HostRewrite::Format(_) => {
            return Err("its new host depends on the request".to_owned())
        }
    }
    if !action.metadata_match.is_empty() {
        target.notes.push("the cluster has no subsets for its metadata_match; served by all endpoints".to_owned());
    }
    let connect_timeout = match &action.cluster {
        ClusterSpecifier::Cluster(name) => {
            let Some(facts) = look.cluster(name) else { return missing(name, action, target) };
            if let Some(why) = facts.unusable {
                return Err(format!("of the cluster \"{name}\": {why}"));
            }
            let usage = usage(action, &facts, &mut target.notes);
            target.fields.insert("upstream_id".into(), json!(*look.upstream(name, &usage)));
            facts.connect_timeout
        }
        ClusterSpecifier::ClusterHeader(_) => return Err("a header names its cluster".to_owned()),
        ClusterSpecifier::Weighted { random_header, .. } if !random_header.is_empty() => {
            return Err("a header chooses between its clusters".to_owned())
        }
        ClusterSpecifier::Weighted { clusters, .. } => weighted(clusters, action, look, target)?,
    };
    if let Some(edits) = request {
        proxy.insert("headers".into(), edits);
    }
    if !proxy.is_empty() {
        target.plugin("proxy-rewrite", Value::Object(proxy));
    }
    mirror(action, look, target);
    if action.internal_redirect.is_some() {
        target.notes.push("redirects of its endpoints go to the client".to_owned());
    }
    let idle = action.idle_timeout.unwrap_or(manager.idle_timeout);
    let limits = [action.timeout, action.retry.per_try_timeout, idle];
    if let Some(limit) = limits.into_iter().filter(|ms| *ms > 0).min() {
        let connect = if action.timeout > 0 { connect_timeout.min(action.timeout) } else { connect_timeout };
        let limit = seconds(limit);
        target.fields.insert("timeout".into(), json!({"connect": seconds(connect), "send": limit, "read": limit}));
    }
    if manager.websocket {
        target.fields.insert("enable_websocket".into(), json!(true));
    }
    Ok(())
}

/// The cluster does not exist: a status of the route's.
fn missing(name: &str, action: &ForwardAction, target: &mut Target) -> Result<(), String> {
    let status = action.cluster_not_found_response_code;
    target.notes.push(format!("the cluster \"{name}\" does not exist; answered with {status}"));
    answer(json!({"http_status": status}), target)
}

/// Several clusters, by weight. Gives the longest time to connect.
fn weighted(
    clusters: &[WeightedCluster],
    action: &ForwardAction,
    look: &mut Look<'_>,
    target: &mut Target,
) -> Result<u64, String> {
    let mut arms: Vec<(Arc<str>, u32)> = Vec::new();
    let mut connect_timeout = 1;
    for arm in clusters.iter().filter(|arm| arm.weight > 0) {
        if !arm.cluster_header.is_empty() {
            return Err("a header names one of its clusters".to_owned());
        }
        if !arm.headers.is_empty() || !arm.host_rewrite_literal.is_empty() {
            return Err(format!("the cluster \"{}\" edits headers for itself", arm.name));
        }
        let found = look.cluster(&arm.name);
        let why = match &found {
            None => Some("it does not exist".to_owned()),
            Some(facts) => facts.unusable.clone(),
        };
        let id = match (why, found) {
            (None, Some(facts)) => {
                connect_timeout = connect_timeout.max(facts.connect_timeout);
                let usage = usage(action, &facts, &mut target.notes);
                look.upstream(&arm.name, &usage)
            }
            (why, _) => {
                let why = why.unwrap_or_default();
                target.notes.push(format!("of the cluster \"{}\": {why}; its share is answered with 503", arm.name));
                look.nowhere()
            }
        };
        // traffic-split keeps one weight an upstream.
        match arms.iter_mut().find(|(there, _)| *there == id) {
            Some((_, weight)) => *weight = weight.saturating_add(arm.weight),
            None => arms.push((id, arm.weight)),
        }
    }
    match arms.as_slice() {
        [] => return Err("no cluster of it has a weight".to_owned()),
        [(only, _)] => drop(target.fields.insert("upstream_id".into(), json!(**only))),
        [(first, _), ..] if arms.len() <= ARMS => {
            target.fields.insert("upstream_id".into(), json!(**first));
            let arms: Vec<Value> =
                arms.iter().map(|(id, weight)| json!({"upstream_id": **id, "weight": weight})).collect();
            target.plugin("traffic-split", json!({"rules": [{"weighted_upstreams": arms}]}));
        }
        arms => return Err(format!("it has {} clusters, traffic-split takes {ARMS}", arms.len())),
    }
    Ok(connect_timeout)
}

/// How a route uses a cluster.
fn usage(action: &ForwardAction, facts: &Facts, notes: &mut Vec<String>) -> Usage {
    let retries = retries(&action.retry);
    Usage {
        retries,
        retry_timeout: if retries > 0 { action.timeout } else { 0 },
        hash: facts.hashes.as_ref().and_then(|own| {
            let policies = if own.is_empty() { &action.hash_policy } else { own };
            hash(policies, notes)
        }),
        auto_host: matches!(action.host_rewrite, HostRewrite::Auto),
    }
}

fn retries(policy: &RetryPolicy) -> u32 {
    match policy.retry_on & CONNECTION != 0 && policy.retriable_request_headers.is_empty() {
        true => policy.num_retries,
        false => 0,
    }
}

/// `hash_on` and `key`. What follows a terminal policy is not looked at: it counts only where that has found nothing.
fn hash(policies: &[HashPolicy], notes: &mut Vec<String>) -> Option<(HashOn, String)> {
    let end = policies.iter().position(|policy| policy.terminal).map_or(policies.len(), |at| at + 1);
    let word =
        |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    let mut found: Vec<(HashOn, String)> = Vec::new();
    for policy in policies.iter().take(end) {
        match &policy.method {
            HashMethod::Header { name, rewrite } if word(name) => {
                if rewrite.is_some() {
                    notes.push(format!("the header \"{name}\" is hashed as it is, without its regex_rewrite"));
                }
                found.push((HashOn::Header, name.clone()));
            }
            HashMethod::Cookie(cookie) if word(&cookie.name) => {
                if cookie.ttl.is_some() {
                    notes.push(format!("clients without the cookie \"{}\" are given none", cookie.name));
                }
                found.push((HashOn::Cookie, cookie.name.clone()));
            }
            HashMethod::SourceIp => found.push((HashOn::Vars, "remote_addr".to_owned())),
            HashMethod::QueryParameter(name) if word(name) => found.push((HashOn::Vars, format!("arg_{name}"))),
            other => notes.push(format!("{other:?} is not hashed")),
        }
    }
    match found.as_slice() {
        [] | [_] => found.pop(),
        several => {
            let variable = |(on, name): &(HashOn, String)| match on {
                HashOn::Header => format!("${{http_{}}}", name.replace('-', "_")),
                HashOn::Cookie => format!("${{cookie_{name}}}"),
                _ => format!("${{{name}}}"),
            };
            Some((HashOn::VarsCombinations, several.iter().map(variable).collect()))
        }
    }
}

/// A copy for another cluster. APISIX sends copies to one address.
fn mirror(action: &ForwardAction, look: &mut Look<'_>, target: &mut Target) {
    let mut note = |text: String| target.notes.push(text);
    let [mirror, others @ ..] = action.mirrors.as_slice() else { return };
    if !others.is_empty() {
        note(format!("copies are sent to the first cluster only, not to {} more", others.len()));
    }
    let ratio = mirror.runtime_fraction.map_or(1.0, |f| f64::from(f.numerator) / f64::from(f.denominator.max(1)));
    if ratio < 0.00001 {
        return;
    }
    let nodes = if mirror.cluster_header.is_empty() { look.nodes(&mirror.cluster) } else { Vec::new() };
    let Some(first) = nodes.first() else {
        note(format!("no copies are sent: \"{}\" has no endpoint", mirror.cluster));
        return;
    };
    if nodes.len() > 1 {
        note(format!("copies are sent to {first} only, of {} endpoints of \"{}\"", nodes.len(), mirror.cluster));
    }
    let mut conf = json!({"host": format!("http://{first}")});
    if ratio < 1.0 {
        conf["sample_ratio"] = json!(ratio);
    }
    target.plugin("proxy-mirror", conf);
}
