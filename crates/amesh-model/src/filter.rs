//! HTTP filters that the data plane carries out itself, and what routes say to them.

use crate::bucket::TokenBucket;
use crate::header::HeaderEdits;
use crate::matcher::{Fraction, HeaderMatcher, StringMatcher};
use rkyv::{Archive, Deserialize, Serialize};

/// A filter of a connection manager; they run in the order of its list.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum HttpFilter {
    /// `extensions.filters.http.fault.v3.HTTPFault`, for routes that say nothing of their own.
    Fault(Fault),
    /// `extensions.filters.http.cors.v3.Cors`: answers for routes that have a [`Cors`].
    Cors,
    /// `extensions.filters.http.local_ratelimit.v3.LocalRateLimit`, for routes that say nothing of their own.
    LocalRateLimit(LocalRateLimit),
    /// `extensions.filters.http.buffer.v3.Buffer`: longest body in bytes (0: not held), for routes that say nothing of
    /// their own.
    Buffer(u32),
}

/// A limit on how many requests this node lets through (`extensions.filters.http.local_ratelimit.v3.LocalRateLimit`).
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct LocalRateLimit {
    /// Each request takes a token; `None`: there is no limit.
    pub bucket: Option<TokenBucket>,
    /// The bucket is not shared, each connection has one (`local_rate_limit_per_downstream_connection`).
    pub per_connection: bool,
    /// Of how many requests (`filter_enabled`).
    pub enabled: Fraction,
    /// Of how many of those a request without a token is answered, not only marked (`filter_enforced`).
    pub enforced: Fraction,
    /// The answer; 429 by default.
    pub status: u16,
    /// The status of gRPC is RESOURCE_EXHAUSTED (`rate_limited_as_resource_exhausted`).
    pub resource_exhausted: bool,
    /// Edits of requests that go on without a token, and of the answer.
    pub headers: HeaderEdits,
    /// An answer of 429 says when there is a token again (`enable_retry_after_header`).
    pub retry_after: bool,
    /// Responses tell how full the bucket is (`enable_x_ratelimit_headers`).
    pub tell: bool,
}

/// Fault injection (`extensions.filters.http.fault.v3.HTTPFault`).
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Fault {
    /// The request waits.
    pub delay: Option<FaultDelay>,
    /// The request is answered with an error.
    pub abort: Option<FaultAbort>,
    /// Only requests to this cluster; empty: all.
    pub upstream_cluster: String,
    /// All must hold.
    pub headers: Vec<HeaderMatcher>,
    /// Only requests with one of these in `x-envoy-downstream-service-node`; empty: all.
    pub downstream_nodes: Vec<String>,
}

/// `extensions.filters.common.fault.v3.FaultDelay`.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct FaultDelay {
    /// How long, in ms; `None`: as `x-envoy-fault-delay-request` says.
    pub fixed: Option<u64>,
    /// Of how many requests.
    pub percentage: Fraction,
}

/// `extensions.filters.http.fault.v3.FaultAbort`.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct FaultAbort {
    /// With what.
    pub error: FaultError,
    /// Of how many requests.
    pub percentage: Fraction,
    /// The body.
    pub body: String,
}

/// `FaultAbort.error_type`.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum FaultError {
    /// A status of HTTP.
    Http(u16),
    /// A status of gRPC.
    Grpc(u32),
    /// As `x-envoy-fault-abort-request` or `x-envoy-fault-abort-grpc-request` says.
    Header,
}

/// What is said to scripts of other origins (`extensions.filters.http.cors.v3.CorsPolicy`). A route's is joined with
/// those of its virtual host and table, field by field.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Cors {
    /// Of how many requests (`filter_enabled`).
    pub enabled: Fraction,
    /// Origins that are answered; one that matches `*` takes every origin.
    pub allow_origin: Vec<StringMatcher>,
    /// `access-control-allow-methods`.
    pub allow_methods: String,
    /// `access-control-allow-headers`.
    pub allow_headers: String,
    /// `access-control-expose-headers`.
    pub expose_headers: String,
    /// `access-control-max-age`.
    pub max_age: String,
    /// `access-control-allow-credentials`.
    pub allow_credentials: bool,
    /// `access-control-allow-private-network`.
    pub allow_private_network: bool,
    /// A preflight request of another origin goes on to the endpoint; else it is answered with 200 and nothing.
    pub forward_not_matching_preflights: bool,
}
