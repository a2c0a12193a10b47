//! `config.endpoint.v3.ClusterLoadAssignment` → [`EndpointSet`].

use super::cluster::DnsCluster;
use super::notes::ignored;
use super::socket::labels;
use super::value::{address, at_least, enumeration, Place};
use super::{health, subset, Invalid, Notes, Sockets};
use amesh_model::address::{Address, Ip};
use amesh_model::endpoint::{Endpoint, EndpointSet, HealthStatus, Locality};
use amesh_model::health::EndpointHealthCheck;
use envoy_types::pb::envoy::config::{core::v3 as core, endpoint::v3 as pb};
use envoy_types::pb::google::protobuf::{value::Kind, Struct};
use std::net::{IpAddr, SocketAddr};

/// The endpoints of `cluster`, joined with its transport sockets.
///
/// # Errors
/// [`Invalid`] names the field that makes no sense.
pub fn endpoint_set(
    cluster: &str,
    sockets: &Sockets,
    assignment: &pb::ClusterLoadAssignment,
    notes: &mut Notes,
) -> Result<EndpointSet, Invalid> {
    let (localities, overprovisioning_factor) = localities(sockets, assignment, notes)?;
    let localities = localities.into_iter().map(|l| {
        let mut locality = l.locality;
        locality.endpoints = l.targets.into_iter().map(|t| t.endpoint).collect();
        match l.named {
            None => Ok(locality),
            Some((field, name)) => Err(Invalid {
                field,
                reason: format!("malformed IP address: \"{name}\"; names need a cluster of type STRICT_DNS"),
            }),
        }
    });
    let localities = localities.collect::<Result<_, _>>()?;
    Ok(EndpointSet { localities, overprovisioning_factor, ..EndpointSet::empty(cluster) })
}

/// The places of a cluster by DNS, and its overprovisioning factor.
pub(super) fn dns_target_localities(
    sockets: &Sockets,
    assignment: &pb::ClusterLoadAssignment,
    notes: &mut Notes,
) -> Result<(Vec<DnsLocality>, u32), Invalid> {
    localities(sockets, assignment, notes)
}

/// A place whose endpoints may be names.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct DnsLocality {
    /// The place, without endpoints.
    locality: Locality,
    targets: Vec<DnsTarget>,
    /// The first target that is a name: its field and the name.
    named: Option<(String, String)>,
}

impl DnsLocality {
    pub(super) fn len(&self) -> usize {
        self.targets.len()
    }
}

/// An endpoint that may be a name.
#[derive(Clone, Debug, PartialEq)]
pub struct DnsTarget {
    /// The name to resolve; `None`: the endpoint's address stands.
    pub host: Option<String>,
    /// The port.
    pub port: u16,
    /// The endpoint; each address of the name is one like it.
    pub endpoint: Endpoint,
}

impl DnsCluster {
    /// What must be resolved.
    pub fn targets(&self) -> impl Iterator<Item = &DnsTarget> {
        self.localities.iter().flat_map(|l| &l.targets)
    }

    /// The names, which may repeat.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.targets().filter_map(|t| t.host.as_deref())
    }
}

/// The endpoints of a cluster by DNS, when every name has the addresses that `resolved` says.
pub fn dns_assignment<'a>(cluster: &str, dns: &DnsCluster, resolved: impl Fn(&str) -> &'a [IpAddr]) -> EndpointSet {
    let expand = |t: &DnsTarget| -> Vec<Endpoint> {
        let Some(host) = &t.host else { return vec![t.endpoint.clone()] };
        let all = resolved(host);
        let taken = if dns.first_only { &all[..all.len().min(1)] } else { all };
        let one = |ip: &IpAddr| Endpoint { address: SocketAddr::new(*ip, t.port).into(), ..t.endpoint.clone() };
        taken.iter().map(one).collect()
    };
    let localities = dns
        .localities
        .iter()
        .map(|l| Locality { endpoints: l.targets.iter().flat_map(expand).collect(), ..l.locality.clone() });
    EndpointSet {
        localities: localities.collect(),
        overprovisioning_factor: dns.overprovisioning_factor,
        ..EndpointSet::empty(cluster)
    }
}

fn localities(
    sockets: &Sockets,
    assignment: &pb::ClusterLoadAssignment,
    notes: &mut Notes,
) -> Result<(Vec<DnsLocality>, u32), Invalid> {
    let pb::ClusterLoadAssignment { cluster_name, endpoints, named_endpoints: _, policy } = assignment;
    if cluster_name.is_empty() {
        return Err(notes.invalid("cluster_name", "is empty"));
    }
    let overprovisioning_factor = match policy {
        None => 140,
        Some(p) => notes.within("policy", |notes| {
            let pb::cluster_load_assignment::Policy {
                drop_overloads,
                overprovisioning_factor,
                endpoint_stale_after,
                weighted_priority_health,
            } = p;
            ignored!(notes, "no share of requests is dropped"; drop_overloads);
            ignored!(notes, "endpoints stay until others come"; endpoint_stale_after);
            ignored!(notes, "healthy endpoints are counted"; weighted_priority_health);
            at_least(overprovisioning_factor, 1, 140, "overprovisioning_factor", notes)
        })?,
    };
    let mut out = notes.list("endpoints", endpoints, |l, n| locality(l, sockets, n))?;
    out.sort_by_key(|l| l.locality.priority);
    for group in out.chunk_by(|a, b| a.locality.priority == b.locality.priority) {
        let sum: u64 = group.iter().map(|l| u64::from(l.locality.weight)).sum();
        if sum > u64::from(u32::MAX) {
            let reason =
                format!("the weights of the localities of one priority sum to {sum}, the limit is {}", u32::MAX);
            return Err(notes.invalid("endpoints", reason));
        }
    }
    Ok((out, overprovisioning_factor))
}

fn locality(l: &pb::LocalityLbEndpoints, sockets: &Sockets, notes: &mut Notes) -> Result<DnsLocality, Invalid> {
    use pb::locality_lb_endpoints::LbConfig;
    let pb::LocalityLbEndpoints {
        locality,
        metadata,
        lb_endpoints,
        load_balancing_weight,
        priority,
        proximity: _,
        lb_config,
    } = l;
    if *priority > 128 {
        return Err(notes.invalid("priority", format!("{priority} is above 128")));
    }
    let list = match lb_config {
        None => lb_endpoints,
        Some(LbConfig::LoadBalancerEndpoints(l)) => &l.lb_endpoints,
        Some(LbConfig::LedsClusterLocalityConfig(_)) => {
            return Err(notes.invalid("leds_cluster_locality_config", "LEDS is not supported"));
        }
    };
    let core::Locality { region, zone, sub_zone } = locality.clone().unwrap_or_default();
    let place = labels(metadata);
    let mut named = None;
    let targets = notes.list("lb_endpoints", list, |e, n| {
        let t = lb_endpoint(e, place, sockets, n)?;
        if let (Some(host), None) = (&t.host, &named) {
            named = Some((n.here("endpoint.address.socket_address.address"), host.clone()));
        }
        Ok(t)
    })?;
    let sum: u64 = targets.iter().map(|t| u64::from(t.endpoint.weight)).sum();
    if sum > u64::from(u32::MAX) {
        return Err(notes.invalid("lb_endpoints", format!("the weights sum to {sum}, the limit is {}", u32::MAX)));
    }
    let weight = match load_balancing_weight {
        None => 0,
        w => at_least(w, 1, 1, "load_balancing_weight", notes)?,
    };
    let locality = Locality { region, zone, sub_zone, priority: *priority, weight, endpoints: Vec::new() };
    Ok(DnsLocality { locality, targets, named })
}

fn lb_endpoint(
    e: &pb::LbEndpoint,
    place: Option<&Struct>,
    sockets: &Sockets,
    notes: &mut Notes,
) -> Result<DnsTarget, Invalid> {
    use core::HealthStatus as H;
    use pb::lb_endpoint::HostIdentifier;
    let pb::LbEndpoint { health_status, metadata, load_balancing_weight, host_identifier } = e;
    let endpoint = match host_identifier {
        None => return Err(notes.invalid("endpoint", "is not set")),
        Some(HostIdentifier::EndpointName(_)) => return Err(notes.invalid("endpoint_name", "is not supported")),
        Some(HostIdentifier::Endpoint(e)) => e,
    };
    let pb::Endpoint { address: place_of, health_check_config, hostname, additional_addresses, observability_name: _ } =
        endpoint;
    let mut refuse = sockets.refusal(labels(metadata), place).map(str::to_owned);
    let (host, address, port) = notes.within("endpoint", |notes| {
        ignored!(notes, "the first address is taken"; additional_addresses);
        Ok(match address(place_of, notes)? {
            Place::Known(a @ Address::Socket { port, .. }) => (None, a, port),
            Place::Known(a) => (None, a, 0),
            Place::Name(name, port) => (Some(name), Address::Socket { ip: Ip::V4([0; 4]), port }, port),
            Place::Other(what, why) => {
                refuse = Some(notes.refused("address", why));
                (None, Address::Pipe(what), 0)
            }
        })
    })?;
    if port == 0 && matches!(address, Address::Socket { .. }) {
        refuse =
            Some(notes.refused("endpoint.address.socket_address.port_value", "is 0, which cannot be connected to"));
    }
    let check = health_check_config.as_ref();
    let check = check.map(|c| notes.within("health_check_config", |n| health::endpoint(c, n))).transpose()?;
    let endpoint = Endpoint {
        address,
        hash_key: hash_key(metadata),
        lb_metadata: subset::lb_metadata(metadata),
        hostname: if hostname.is_empty() { host.clone().unwrap_or_default() } else { hostname.clone() },
        weight: at_least(load_balancing_weight, 1, 1, "load_balancing_weight", notes)?,
        health: match enumeration::<H>(*health_status, "health_status", notes)? {
            H::Unknown | H::Healthy => HealthStatus::Healthy,
            H::Degraded => HealthStatus::Degraded,
            H::Unhealthy | H::Draining | H::Timeout => HealthStatus::Unhealthy,
        },
        health_check: check.filter(|c| *c != EndpointHealthCheck::default()).map(Box::new),
        refuse,
        added: 0,
        cell: 0,
    };
    Ok(DnsTarget { host, port, endpoint })
}

/// What is hashed for an endpoint instead of its address (`hash_key`); empty: nothing.
fn hash_key(metadata: &Option<core::Metadata>) -> String {
    let value = metadata.as_ref().and_then(|m| m.filter_metadata.get("envoy.lb")?.fields.get("hash_key"));
    match value.and_then(|v| v.kind.as_ref()) {
        Some(Kind::StringValue(key)) => key.clone(),
        _ => String::new(),
    }
}
