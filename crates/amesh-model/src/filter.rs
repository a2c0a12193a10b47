//! HTTP filters that the data plane carries out itself, and what routes say to them.

use crate::matcher::{Fraction, HeaderMatcher, StringMatcher};
use rkyv::{Archive, Deserialize, Serialize};

/// A filter of a connection manager; they run in the order of its list.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub enum HttpFilter {
    /// `extensions.filters.http.fault.v3.HTTPFault`, for routes that say nothing of their own.
    Fault(Fault),
    /// `extensions.filters.http.cors.v3.Cors`: answers for routes that have a [`Cors`].
    Cors,
}

/// Fault injection (`extensions.filters.http.fault.v3.HTTPFault`).
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
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
pub struct FaultDelay {
    /// How long, in ms; `None`: as `x-envoy-fault-delay-request` says.
    pub fixed: Option<u64>,
    /// Of how many requests.
    pub percentage: Fraction,
}

/// `extensions.filters.http.fault.v3.FaultAbort`.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
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
