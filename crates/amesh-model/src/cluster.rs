//! Clusters (`config.cluster.v3`).

use crate::address::Ip;
use crate::hash_policy::HashPolicy;
use crate::health::{CircuitBreakers, HealthCheck, HighPriority, OutlierDetection};
use crate::proxy_protocol::ProxyProtocol;
use crate::subset::Subsets;
use rkyv::{Archive, Deserialize, Serialize};

/// A cluster (`config.cluster.v3.Cluster`). Its endpoints are an [`crate::endpoint::EndpointSet`] of the same name.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Cluster {
    /// Its name.
    pub name: String,
    /// Name for statistics and access logs; empty: `name`.
    pub alt_stat_name: String,
    /// Where endpoints come from.
    pub discovery: Discovery,
    /// Which endpoint is picked.
    pub lb_policy: LbPolicy,
    /// Requests go to subsets of the endpoints, by metadata.
    pub subsets: Option<Subsets>,
    /// New endpoints get their share little by little, where the policy is round robin or least request.
    pub slow_start: Option<SlowStart>,
    /// How endpoints are hashed, where the policy does.
    pub hashing: Hashing,
    /// Time to connect in ms; 5 s by default.
    pub connect_timeout: u64,
    /// Protocol to the endpoints.
    pub protocol: UpstreamProtocol,
    /// Share of healthy endpoints, in per cent, below which health is not looked at; 50 by default, 0: never.
    pub healthy_panic_threshold: u8,
    /// No request is sent in panic (`zone_aware_lb_config.fail_traffic_on_panic`), where the policy does not hash.
    pub fail_traffic_on_panic: bool,
    /// Localities have weights (`locality_weighted_lb_config`).
    pub locality_weighted: bool,
    /// An idle connection is closed after this long, in ms; 0: never. Envoy's default is an hour.
    pub idle_timeout: u64,
    /// A connection is closed after this many requests; 0: never.
    pub max_requests_per_connection: u32,
    /// A connection is closed after so long in ms, as soon as no request is on it; 0: never.
    pub max_connection_duration: u64,
    /// Up to this share of that is added, at random for each connection, in per cent.
    pub max_connection_duration_jitter: f64,
    /// TCP keepalive: idle time, interval (s) and probes; 0: the system's.
    pub tcp_keepalive: Option<(u32, u32, u32)>,
    /// Source address of connections (`upstream_bind_config`), one a family.
    pub bind: Vec<Ip>,
    /// Endpoints are told who the client is, before anything else; `None`: they are not.
    pub proxy_protocol: Option<Box<ProxyProtocol>>,
    /// Active health checks; `None`: none.
    pub health_check: Option<Box<HealthCheck>>,
    /// Which failures of requests take endpoints out; `None`: none.
    pub outlier_detection: Option<Box<OutlierDetection>>,
    /// Its limits.
    pub circuit_breakers: CircuitBreakers,
    /// Limits of their own for requests of high priority; `None`: they are counted as all others.
    pub high_priority: Option<Box<HighPriority>>,
    /// Every request is refused with 503, for this reason.
    pub refuse: Option<String>,
    /// Index of the cluster's cell of counters in the zone. Set by the writer when it publishes.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub cell: u32,
}

/// `Cluster.DiscoveryType`.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Discovery {
    /// `STATIC`.
    Static,
    /// `EDS`.
    Eds,
    /// `STRICT_DNS`: every address of every name is an endpoint.
    StrictDns,
    /// `LOGICAL_DNS`: the first address.
    LogicalDns,
    /// `ORIGINAL_DST`: where the connection was going.
    OriginalDst,
}

/// `Cluster.LbPolicy`.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum LbPolicy {
    /// Weighted round robin.
    RoundRobin,
    /// The endpoint with the fewest active requests. Where weights differ, or an endpoint is in slow start, by weight over
    /// active requests.
    LeastRequest {
        /// Of so many random endpoints; 2 by default.
        choice_count: u32,
        /// Of all endpoints.
        full_scan: bool,
        /// The power of the active requests that a weight is divided by (`active_request_bias`); 1 by default, 0: weights
        /// alone count.
        active_request_bias: f64,
    },
    /// Random; weights are not looked at.
    Random,
    /// The endpoint on a ring of hashes that follows the hash of the request.
    RingHash {
        /// `minimum_ring_size`; 1024 by default.
        minimum_ring_size: u64,
        /// `maximum_ring_size`; 8 Mi by default.
        maximum_ring_size: u64,
        /// What hashes the keys of endpoints.
        function: HashFunction,
    },
    /// The endpoint in a Maglev table at the hash of the request.
    Maglev {
        /// `table_size`, a prime; 65537 by default.
        table_size: u64,
    },
    /// Goes with [`Discovery::OriginalDst`].
    ClusterProvided,
}

impl LbPolicy {
    /// `LEAST_REQUEST` as it is by default.
    pub const LEAST_REQUEST: LbPolicy =
        LbPolicy::LeastRequest { choice_count: 2, full_scan: false, active_request_bias: 1.0 };

    /// Whether the hash of the request decides.
    pub fn hashes(self) -> bool {
        matches!(self, LbPolicy::RingHash { .. } | LbPolicy::Maglev { .. })
    }
}

impl ArchivedLbPolicy {
    /// As [`LbPolicy::hashes`].
    pub fn hashes(&self) -> bool {
        matches!(self, ArchivedLbPolicy::RingHash { .. } | ArchivedLbPolicy::Maglev { .. })
    }
}

/// `SlowStartConfig`.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct SlowStart {
    /// How long it takes, in ms, above 0.
    pub window: u64,
    /// The share grows with this root of the time; 1 by default: evenly.
    pub aggression: f64,
    /// The share to begin with, as a part of 1; 0.1 by default.
    pub least: f64,
}

/// `RingHashLbConfig.HashFunction`.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum HashFunction {
    /// `XX_HASH`.
    XxHash,
    /// `MURMUR_HASH_2`.
    MurmurHash2,
}

/// `ConsistentHashingLbConfig`.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Hashing {
    /// The host name of an endpoint is hashed, not its address.
    pub use_hostname_for_hashing: bool,
    /// `hash_balance_factor`: an endpoint takes no more requests than so many per cent of its part of all active ones;
    /// 0: any number.
    pub balance_factor: u32,
    /// Goes before the hash policy of the route; empty: the route's.
    pub policy: Vec<HashPolicy>,
}

/// Protocol to the endpoints (`extensions.upstreams.http.v3.HttpProtocolOptions`).
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// As the client speaks.
    UseDownstream,
}
