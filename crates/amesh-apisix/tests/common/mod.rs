//! Builders of small meshes.
#![allow(dead_code)] // Each suite uses its part.

pub mod apisix;
pub mod schema;

use amesh_apisix::Object;
use amesh_model::address::Address;
use amesh_model::batch::{Batch, Item, Value};
use amesh_model::cluster::{Cluster, Discovery, Hashing, LbPolicy, UpstreamProtocol};
use amesh_model::endpoint::{Endpoint, EndpointSet, HealthStatus, Locality};
use std::net::SocketAddr;

/// An object's JSON.
pub fn json(object: &Object) -> serde_json::Value {
    serde_json::from_str(&object.json).unwrap()
}

/// A batch of these items.
pub fn batch<const N: usize>(put: [Item; N]) -> Batch {
    Batch { put: put.into(), remove: vec![] }
}

/// One thing to publish, under its own name.
pub fn put(value: Value) -> Item {
    let name = match &value {
        Value::Cluster(v) => v.name.clone(),
        Value::EndpointSet(v) => v.cluster.clone(),
        Value::RouteTable(v) => v.name.clone(),
        Value::Listener(v) => v.name.clone(),
        Value::ListenerIndex(_) => String::new(),
    };
    Item { kind: value.kind(), name, version: "1".into(), value }
}

/// A cluster as Envoy's defaults have it.
pub fn plain_cluster(name: &str) -> Cluster {
    Cluster {
        name: name.into(),
        alt_stat_name: String::new(),
        discovery: Discovery::Eds,
        lb_policy: LbPolicy::RoundRobin,
        subsets: None,
        slow_start: None,
        hashing: Hashing::default(),
        connect_timeout: 5000,
        protocol: UpstreamProtocol::Http1,
        healthy_panic_threshold: 50,
        fail_traffic_on_panic: false,
        locality_weighted: false,
        idle_timeout: 3_600_000,
        max_requests_per_connection: 0,
        tcp_keepalive: None,
        bind: vec![],
        health_check: None,
        outlier_detection: None,
        circuit_breakers: Default::default(),
        max_connection_duration: 0,
        max_connection_duration_jitter: 0.0,
        proxy_protocol: None,
        high_priority: None,
        refuse: None,
        cell: 0,
    }
}

pub fn cluster(name: &str) -> Value {
    Value::Cluster(plain_cluster(name))
}

pub fn endpoint(address: &str) -> Endpoint {
    Endpoint {
        address: Address::from(address.parse::<SocketAddr>().unwrap()),
        hostname: String::new(),
        hash_key: String::new(),
        lb_metadata: Default::default(),
        weight: 1,
        health: HealthStatus::Healthy,
        health_check: None,
        refuse: None,
        added: 0,
        cell: 0,
    }
}

pub fn locality(priority: u32, endpoints: Vec<Endpoint>) -> Locality {
    Locality { region: String::new(), zone: String::new(), sub_zone: String::new(), priority, weight: 0, endpoints }
}

/// Healthy endpoints of one place.
pub fn endpoints(cluster: &str, addresses: &[&str]) -> Value {
    let localities = vec![locality(0, addresses.iter().map(|a| endpoint(a)).collect())];
    Value::EndpointSet(EndpointSet { localities, ..EndpointSet::empty(cluster) })
}
