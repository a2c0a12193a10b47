//! A cluster and its endpoints as `/upstreams`.

use crate::id;
use crate::object::Refusal;
use crate::usage::Usage;
use amesh_model::address::{Address, Ip};
use amesh_model::cluster::{Cluster, Discovery, LbPolicy, UpstreamProtocol};
use amesh_model::endpoint::{Endpoint, EndpointSet, HealthStatus, Locality};
use serde_json::{json, Map, Value};
use std::net::{Ipv4Addr, Ipv6Addr};

/// What stands for "no time-out" (APISIX demands one above 0), in seconds.
pub(crate) const FOR_EVER: u64 = 86_400;

/// Time in ms as seconds, at least 1 ms.
pub(crate) fn seconds(ms: u64) -> Value {
    match ms.max(1) {
        ms if ms % 1000 == 0 => json!(ms / 1000),
        ms => json!(ms as f64 / 1000.0),
    }
}

/// Why no request can be sent to a cluster by APISIX, whatever its endpoints are.
pub(crate) fn unusable(cluster: &Cluster) -> Option<String> {
    if let Some(why) = &cluster.refuse {
        return Some(why.clone());
    }
    if cluster.discovery == Discovery::OriginalDst {
        return Some("it goes to where the connection was going (ORIGINAL_DST)".to_owned());
    }
    cluster.subsets.as_ref().map(|_| "it has subsets by metadata".to_owned())
}

/// The upstream of a cluster that is used in this way, without its `id`.
pub(crate) fn upstream(
    cluster: &Cluster,
    endpoints: Option<&EndpointSet>,
    usage: &Usage,
    refusals: &mut Vec<Refusal>,
) -> Map<String, Value> {
    let mut refuse = |place: &str, reason: String| {
        refusals.push(Refusal { what: format!("cluster \"{}\"{place}", cluster.name), reason });
    };
    let mut out = Map::new();
    out.extend(id::name(&cluster.name).map(|name| ("name".to_owned(), json!(name))));
    let mut nodes = Vec::new();
    match unusable(cluster) {
        Some(why) => {
            out.insert("desc".into(), json!(id::desc(&format!("{}: refused: {why}", cluster.name))));
            refuse("", format!("{why}; APISIX answers 503"));
        }
        None => {
            out.insert("desc".into(), json!(id::desc(&cluster.name)));
            for locality in endpoints.iter().flat_map(|set| usable(cluster, set)) {
                let scale = Scale::of(cluster, locality);
                for endpoint in serving(cluster, locality) {
                    match node(endpoint, usage.auto_host) {
                        Ok((host, port)) => nodes.push(json!({
                            "host": host, "port": port, "weight": scale.weight(endpoint.weight),
                            "priority": -i64::from(locality.priority),
                        })),
                        Err(why) => refuse(
                            &format!(", endpoint {}", endpoint.address),
                            format!("{why}; APISIX sends nothing there"),
                        ),
                    }
                }
            }
        }
    }
    out.insert("nodes".into(), Value::Array(nodes));
    policy(cluster, usage, &mut out);
    out.insert("retries".into(), json!(usage.retries));
    if usage.retry_timeout > 0 {
        out.insert("retry_timeout".into(), seconds(usage.retry_timeout));
    }
    let connect = seconds(cluster.connect_timeout);
    out.insert("timeout".into(), json!({"connect": connect, "send": FOR_EVER, "read": FOR_EVER}));
    out.insert("scheme".into(), json!(if cluster.protocol == UpstreamProtocol::Http2 { "grpc" } else { "http" }));
    out.insert("pass_host".into(), json!("pass"));
    out
}

fn policy(cluster: &Cluster, usage: &Usage, out: &mut Map<String, Value>) {
    let kind = match (cluster.lb_policy, &usage.hash) {
        (LbPolicy::LeastRequest { .. }, _) => "least_conn",
        (LbPolicy::RingHash { .. } | LbPolicy::Maglev { .. }, Some((on, key))) => {
            out.insert("hash_on".into(), json!(on.name()));
            out.insert("key".into(), json!(key));
            "chash"
        }
        // Without a hash any endpoint is as good as another.
        _ => "roundrobin",
    };
    out.insert("type".into(), json!(kind));
}

/// Localities with the endpoints that APISIX may speak to.
fn usable<'a>(_cluster: &'a Cluster, set: &'a EndpointSet) -> impl Iterator<Item = &'a Locality> {
    set.localities.iter()
}

fn serving<'a>(_cluster: &'a Cluster, locality: &'a Locality) -> impl Iterator<Item = &'a Endpoint> {
    locality.endpoints.iter().filter(|e| e.health != HealthStatus::Unhealthy)
}

/// Weights of localities, told by the weights of their endpoints.
struct Scale;

impl Scale {
    fn of(_cluster: &Cluster, _locality: &Locality) -> Scale {
        Scale
    }

    fn weight(&self, of_endpoint: u32) -> u64 {
        u64::from(of_endpoint)
    }
}

/// Host and port of an endpoint.
fn node(endpoint: &Endpoint, _by_name: bool) -> Result<(String, u16), String> {
    if let Some(why) = &endpoint.refuse {
        return Err(why.clone());
    }
    match &endpoint.address {
        Address::Pipe(_) => Err("it is a unix socket".to_owned()),
        Address::Socket { port: 0, .. } => Err("it has no port".to_owned()),
        Address::Socket { ip: Ip::V4(octets), port } => Ok((Ipv4Addr::from(*octets).to_string(), *port)),
        Address::Socket { ip: Ip::V6(octets), port } => Ok((format!("[{}]", Ipv6Addr::from(*octets)), *port)),
    }
}
