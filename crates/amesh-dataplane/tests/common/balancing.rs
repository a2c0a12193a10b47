//! Builders of clusters and their endpoints.

use super::stored;
use amesh_model::address::{Address, Ip};
use amesh_model::cluster::{Cluster, Discovery, Hashing, LbPolicy, UpstreamProtocol};
use amesh_model::endpoint::{ArchivedEndpointSet, Endpoint, EndpointSet, HealthStatus, Locality};
use amesh_model::plan;

/// A random number that repeats from test to test (xorshift).
pub fn random() -> impl FnMut() -> u64 {
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.wrapping_mul(0x2545_f491_4f6c_dd1d).rotate_right(16)
    }
}

pub fn cluster(lb_policy: LbPolicy) -> Cluster {
    Cluster {
        name: "c".into(),
        alt_stat_name: String::new(),
        discovery: Discovery::Eds,
        lb_policy,
        connect_timeout: 5000,
        protocol: UpstreamProtocol::Http1,
        healthy_panic_threshold: 50,
        fail_traffic_on_panic: false,
        locality_weighted: false,
        subsets: None,
        slow_start: None,
        hashing: Hashing::default(),
        idle_timeout: 0,
        max_requests_per_connection: 0,
        max_connection_duration: 0,
        max_connection_duration_jitter: 0.0,
        tcp_keepalive: None,
        bind: Vec::new(),
        proxy_protocol: None,
        health_check: None,
        outlier_detection: None,
        circuit_breakers: amesh_model::health::CircuitBreakers::default(),
        high_priority: None,
        refuse: None,
        cell: 0,
    }
}

pub fn locality(priority: u32, weight: u32, endpoints: Vec<Endpoint>) -> Locality {
    Locality { region: String::new(), zone: String::new(), sub_zone: String::new(), priority, weight, endpoints }
}

pub fn endpoint(cell: u32, weight: u32) -> Endpoint {
    let address = Address::Socket { ip: Ip::V4([10, 0, (cell >> 8) as u8, cell as u8]), port: 80 };
    Endpoint {
        address,
        hostname: String::new(),
        hash_key: String::new(),
        lb_metadata: Default::default(),
        weight,
        health: HealthStatus::Healthy,
        health_check: None,
        refuse: None,
        added: 0,
        cell,
    }
}

/// The endpoints as the thread publishes them.
pub fn planned(cluster: &Cluster, set: &EndpointSet) -> &'static ArchivedEndpointSet {
    let mut set = set.clone();
    plan::build(&mut set, cluster);
    stored(&set)
}
