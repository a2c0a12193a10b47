//! What takes endpoints out of use, and what limits a cluster (`core.v3.HealthCheck`, `cluster.v3.OutlierDetection`,
//! `cluster.v3.CircuitBreakers`). What is known of an endpoint at run time is in [`crate::vitals`].

use crate::matcher::StringMatcher;
use rkyv::{Archive, Deserialize, Serialize};

/// An active health check. All times are in ms.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct HealthCheck {
    /// How long one may take.
    pub timeout: u64,
    /// Between two of them.
    pub interval: u64,
    /// Before the first one a random time up to this passes; 0: none.
    pub initial_jitter: u64,
    /// Up to this is added to each interval.
    pub interval_jitter: u64,
    /// Up to this share of an interval is added to it, in per cent.
    pub interval_jitter_percent: u32,
    /// Failures in a row that make an endpoint unhealthy.
    pub unhealthy_threshold: u32,
    /// Successes in a row that make it healthy again.
    pub healthy_threshold: u32,
    /// Interval while the cluster has had no traffic.
    pub no_traffic_interval: u64,
    /// The same for an endpoint that is healthy.
    pub no_traffic_healthy_interval: u64,
    /// Interval of an unhealthy endpoint.
    pub unhealthy_interval: u64,
    /// Interval after a first failure, until the endpoint is unhealthy.
    pub unhealthy_edge_interval: u64,
    /// Interval after a first success, until the endpoint is healthy.
    pub healthy_edge_interval: u64,
    /// A connection serves more than one check.
    pub reuse_connection: bool,
    /// Another port than the endpoint's; 0: its own.
    pub alt_port: u16,
    /// Each failure is logged, not only the change.
    pub always_log_failures: bool,
    /// Each success is logged.
    pub always_log_success: bool,
    /// What is done.
    pub kind: HealthCheckKind,
}

/// What an active health check does.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum HealthCheckKind {
    /// A request.
    Http(HttpHealthCheck),
    /// A connection, and maybe bytes.
    Tcp {
        /// Sent first; empty: nothing.
        send: Vec<u8>,
        /// Must come, in this order, with anything in between. Empty: the connection is enough.
        receive: Vec<Vec<u8>>,
    },
    /// `grpc.health.v1.Health/Check`.
    Grpc {
        /// `service`; may be empty.
        service_name: String,
        /// `:authority`; empty: the endpoint's name, or the cluster's.
        authority: String,
        /// Metadata.
        metadata: Vec<(String, String)>,
    },
}

/// `HealthCheck.HttpHealthCheck`.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct HttpHealthCheck {
    /// `Host`; empty: the endpoint's name, or the cluster's.
    pub host: String,
    /// Path and query.
    pub path: String,
    /// `GET` by default.
    pub method: String,
    /// HTTP/2 with prior knowledge, not HTTP/1.1.
    pub http2: bool,
    /// Body of the request; may be empty.
    pub send: Vec<u8>,
    /// Must be in the body of the response, in this order.
    pub receive: Vec<Vec<u8>>,
    /// Bytes of the body that are looked at.
    pub response_buffer_size: u64,
    /// Headers, added or set.
    pub request_headers_to_add: Vec<(String, String)>,
    /// Names of headers that are left out.
    pub request_headers_to_remove: Vec<String>,
    /// `[start, end)` ranges of statuses that are a success; 200 by default.
    pub expected_statuses: Vec<(u16, u16)>,
    /// The same of those that count as a failure; all others make an endpoint unhealthy at once.
    pub retriable_statuses: Vec<(u16, u16)>,
    /// Must match `x-envoy-upstream-healthchecked-cluster`.
    pub service_name_matcher: Option<StringMatcher>,
}

/// `Endpoint.HealthCheckConfig`: where an endpoint is checked.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct EndpointHealthCheck {
    /// Another address than the endpoint's.
    pub address: Option<crate::address::Address>,
    /// Another port; 0: that of the check or of the endpoint.
    pub port: u16,
    /// Its name; empty: the endpoint's.
    pub hostname: String,
    /// It is not checked.
    pub disabled: bool,
}

/// Which failures of requests take an endpoint out (`cluster.v3.OutlierDetection`). All times are in ms, all shares in
/// per cent.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct OutlierDetection {
    /// Between two looks at rates and at endpoints that may come back.
    pub interval: u64,
    /// How long an endpoint is out the first time; each further time in a row adds as much.
    pub base_ejection_time: u64,
    /// Longest such time.
    pub max_ejection_time: u64,
    /// A random time up to this is added.
    pub max_ejection_time_jitter: u64,
    /// No more endpoints are out at a time.
    pub max_ejection_percent: u32,
    /// One may be out even then.
    pub always_eject_one_host: bool,
    /// What happens on our side (no connection, time-out) is counted by itself, not as 503 and 504.
    pub split_external_local_origin_errors: bool,
    /// A successful active health check ends an ejection.
    pub successful_active_health_check_uneject_host: bool,
    /// 5xx in a row.
    pub consecutive_5xx: Consecutive,
    /// 502, 503 and 504 in a row.
    pub consecutive_gateway_failure: Consecutive,
    /// Failures of our side in a row, where they are counted by themselves.
    pub consecutive_local_origin_failure: Consecutive,
    /// Endpoints whose success rate is far below the others'.
    pub success_rate: SuccessRate,
    /// Endpoints whose failures pass a share.
    pub failure_percentage: FailurePercentage,
}

/// So many failures in a row eject an endpoint.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Consecutive {
    /// So many.
    pub threshold: u32,
    /// How often that is acted on.
    pub enforcing: u32,
}

/// `success_rate_*`.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct SuccessRate {
    /// Endpoints with enough requests that there must be.
    pub minimum_hosts: u32,
    /// Requests of an interval that are enough.
    pub request_volume: u32,
    /// Standard deviations below the mean, in thousandths.
    pub stdev_factor: u32,
    /// How often it is acted on.
    pub enforcing: u32,
    /// The same for failures of our side.
    pub enforcing_local_origin: u32,
}

/// `failure_percentage_*`.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct FailurePercentage {
    /// The share of failures.
    pub threshold: u32,
    /// Endpoints with enough requests that there must be.
    pub minimum_hosts: u32,
    /// Requests of an interval that are enough.
    pub request_volume: u32,
    /// How often it is acted on.
    pub enforcing: u32,
    /// The same for failures of our side.
    pub enforcing_local_origin: u32,
}

/// Limits for requests of routes with `priority: HIGH` (`CircuitBreakers.Thresholds`), which are counted by themselves.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct HighPriority {
    /// The limits.
    pub circuit_breakers: CircuitBreakers,
    /// Index of the cell that counts them in the zone. Set by the writer when it publishes.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub cell: u32,
}

/// Limits of a cluster (`CircuitBreakers.Thresholds` of the default priority).
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct CircuitBreakers {
    /// Connections.
    pub max_connections: u32,
    /// Requests that wait for one.
    pub max_pending_requests: u32,
    /// Requests.
    pub max_requests: u32,
    /// Retries under way, where there is no budget.
    pub max_retries: u32,
    /// Retries under way as a share of the active requests.
    pub retry_budget: Option<RetryBudget>,
}

/// `Thresholds.RetryBudget`.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct RetryBudget {
    /// Share of the active requests, in per cent.
    pub percent: f64,
    /// So many are always allowed.
    pub min_retry_concurrency: u32,
}

impl Default for CircuitBreakers {
    /// Envoy's own.
    fn default() -> CircuitBreakers {
        CircuitBreakers {
            max_connections: 1024,
            max_pending_requests: 1024,
            max_requests: 1024,
            max_retries: 3,
            retry_budget: None,
        }
    }
}

impl ArchivedCircuitBreakers {
    /// Whether one more request may be active beside `active` ones. A request of HTTP/1.1 has a connection of its own,
    /// or waits for one; where none may wait, no connection is ever made. Each endpoint may have one connection.
    pub fn allows_request(&self, active: u32) -> bool {
        let pending = self.max_pending_requests.to_native();
        let places = self.max_connections.to_native().max(1).saturating_add(pending);
        pending > 0 && active < self.max_requests.to_native().min(places)
    }

    /// Whether one more connection may be open beside `active` ones.
    pub fn allows_connection(&self, active: u32) -> bool {
        active < self.max_connections.to_native()
    }

    /// Whether one more retry may be under way beside `retries`, with `active` requests.
    pub fn allows_retry(&self, retries: u32, active: u32) -> bool {
        let most = match self.retry_budget.as_ref() {
            None => self.max_retries.to_native(),
            Some(budget) => {
                // A share of 100 at most of a count: it fits.
                let share = (budget.percent.to_native() * f64::from(active) / 100.0) as u32;
                share.max(budget.min_retry_concurrency.to_native())
            }
        };
        retries < most
    }
}
