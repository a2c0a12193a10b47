//! A cluster and its endpoints as `/upstreams`.

use crate::checks;
use crate::id;
use crate::object::Refusal;
use crate::usage::Usage;
use amesh_model::address::{Address, Ip};
use amesh_model::cluster::{Cluster, Discovery, LbPolicy, UpstreamProtocol};
use amesh_model::endpoint::{Endpoint, EndpointSet, HealthStatus};
use serde_json::{json, Map, Value};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

/// What stands for "no time-out" (APISIX demands one above 0), in seconds.
pub(crate) const FOR_EVER: u64 = 86_400;

/// Envoy's idle time of connections to endpoints, in ms: what APISIX's own pool has is left alone.
const DEFAULT_IDLE: u64 = 3_600_000;

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
    if cluster.proxy_protocol.is_some() {
        return Some("its endpoints are told by the PROXY protocol who the client is".to_owned());
    }
    cluster.subsets.as_ref().map(|_| "it has subsets by metadata".to_owned())
}

/// An upstream without endpoints, without its `id`.
pub(crate) fn nowhere() -> Map<String, Value> {
    let mut out = Map::new();
    out.insert("name".into(), json!("nowhere"));
    out.insert("desc".into(), json!("the share of clusters that do not exist or cannot be used: answered with 503"));
    out.insert("type".into(), json!("roundrobin"));
    out.insert("nodes".into(), json!([]));
    out
}

/// The upstream of a cluster that is used in this way, without its `id`.
pub(crate) fn upstream(
    cluster: &Cluster,
    endpoints: Option<&EndpointSet>,
    usage: &Usage,
    refusals: &mut Vec<Refusal>,
) -> Map<String, Value> {
    let what = format!("cluster \"{}\"", cluster.name);
    let mut refuse = |what: String, reason: String| refusals.push(Refusal { what, reason });
    let mut out = Map::new();
    out.extend(id::name(&cluster.name).map(|name| ("name".to_owned(), json!(name))));
    let mut nodes = Vec::new();
    match unusable(cluster) {
        Some(why) => {
            out.insert("desc".into(), json!(id::desc(&format!("{}: refused: {why}", cluster.name))));
            refuse(what.clone(), format!("{why}; answered with 503"));
        }
        None => {
            out.insert("desc".into(), json!(id::desc(&cluster.name)));
            for member in endpoints.map(|set| members(cluster, set)).unwrap_or_default() {
                match address(member.endpoint) {
                    Ok((host, port)) => nodes.push(json!({
                        "host": host, "port": port, "weight": member.weight, "priority": -i64::from(member.priority),
                    })),
                    Err(why) => refuse(
                        format!("{what}, endpoint {}", member.endpoint.address),
                        format!("{why}; nothing is sent there"),
                    ),
                }
            }
            let host = if usage.auto_host { one_hostname(endpoints) } else { Ok(None) };
            match host {
                Ok(None) => drop(out.insert("pass_host".into(), json!("pass"))),
                Ok(Some(host)) => {
                    out.insert("pass_host".into(), json!("rewrite"));
                    out.insert("upstream_host".into(), json!(host));
                }
                Err(why) => {
                    nodes.clear();
                    refuse(what.clone(), format!("{why}; answered with 503"));
                }
            }
        }
    }
    if let Some(checks) = checks::checks(cluster, |reason| refuse(what.clone(), reason)) {
        out.insert("checks".into(), checks);
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
    if cluster.idle_timeout != DEFAULT_IDLE || cluster.max_requests_per_connection > 0 {
        let idle = if cluster.idle_timeout == 0 { json!(FOR_EVER) } else { seconds(cluster.idle_timeout) };
        let mut pool = json!({"size": 320, "idle_timeout": idle});
        if cluster.max_requests_per_connection > 0 {
            pool["requests"] = json!(cluster.max_requests_per_connection);
        }
        out.insert("keepalive_pool".into(), pool);
    }
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

/// An endpoint that takes requests.
struct Member<'a> {
    endpoint: &'a Endpoint,
    weight: u64,
    priority: u32,
}

/// Addresses of the endpoints that take requests.
pub(crate) fn addresses(cluster: &Cluster, set: &EndpointSet) -> Vec<String> {
    let members = members(cluster, set).into_iter();
    members.filter_map(|member| address(member.endpoint).ok()).map(|(host, port)| format!("{host}:{port}")).collect()
}

/// The endpoints that take requests as long as nothing fails, with their weights.
fn members<'a>(cluster: &Cluster, set: &'a EndpointSet) -> Vec<Member<'a>> {
    let priorities: BTreeSet<u32> = set.localities.iter().map(|locality| locality.priority).collect();
    let health: Vec<(u32, Health)> = priorities.into_iter().map(|p| (p, Health::of(set, p))).collect();
    let total: u64 = health.iter().map(|(_, h)| h.availability(set.overprovisioning_factor)).sum();
    let mut out = Vec::new();
    for (priority, health) in health {
        let panics = total < 100 && !cluster.fail_traffic_on_panic && health.panics(cluster.healthy_panic_threshold);
        let takes = |endpoint: &&Endpoint| match endpoint.health {
            HealthStatus::Healthy => true,
            HealthStatus::Degraded => panics || health.healthy == 0,
            HealthStatus::Unhealthy => panics,
        };
        for locality in set.localities.iter().filter(|locality| locality.priority == priority) {
            let here: Vec<&Endpoint> = locality.endpoints.iter().filter(takes).collect();
            let sum: u64 = here.iter().map(|endpoint| u64::from(endpoint.weight)).sum();
            for endpoint in here {
                let own = u64::from(endpoint.weight);
                let weight = match cluster.locality_weighted {
                    // Shares of places are told by the weights of their endpoints.
                    true => (u64::from(locality.weight) * own * 10_000).div_ceil(sum.max(1)),
                    false => own,
                };
                if weight > 0 {
                    out.push(Member { endpoint, weight, priority });
                }
            }
        }
    }
    let divisor = out.iter().fold(0, |divisor, member| gcd(divisor, member.weight));
    if cluster.locality_weighted && divisor > 1 {
        out.iter_mut().for_each(|member| member.weight /= divisor);
    }
    out
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 {
        a
    } else {
        gcd(b, a % b)
    }
}

/// How many endpoints of a priority are how healthy.
#[derive(Default)]
struct Health {
    healthy: u64,
    degraded: u64,
    all: u64,
}

impl Health {
    fn of(set: &EndpointSet, priority: u32) -> Health {
        let mut out = Health::default();
        for endpoint in set.localities.iter().filter(|l| l.priority == priority).flat_map(|l| &l.endpoints) {
            out.all += 1;
            match endpoint.health {
                HealthStatus::Healthy => out.healthy += 1,
                HealthStatus::Degraded => out.degraded += 1,
                HealthStatus::Unhealthy => {}
            }
        }
        out
    }

    /// Per cent of its load that it can take.
    fn availability(&self, overprovisioning_factor: u32) -> u64 {
        (u64::from(overprovisioning_factor) * (self.healthy + self.degraded) / self.all.max(1)).min(100)
    }

    /// Fewer are healthy than the cluster wants: health is not looked at.
    fn panics(&self, threshold: u8) -> bool {
        (self.healthy + self.degraded) * 100 < u64::from(threshold) * self.all
    }
}

/// The host name that all endpoints have; `None`: they have none.
fn one_hostname(endpoints: Option<&EndpointSet>) -> Result<Option<&str>, String> {
    let all = endpoints.into_iter().flat_map(|set| &set.localities).flat_map(|locality| &locality.endpoints);
    let names: BTreeSet<&str> = all.map(|endpoint| endpoint.hostname.as_str()).collect();
    match names.len() {
        0 => Ok(None),
        1 => Ok(names.first().copied().filter(|name| !name.is_empty())),
        _ => Err("its endpoints have several host names, and the host is to be rewritten to that of each".to_owned()),
    }
}

/// Host and port of an endpoint.
fn address(endpoint: &Endpoint) -> Result<(String, u16), String> {
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
