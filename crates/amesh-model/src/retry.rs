//! Retries (`config.route.v3.RetryPolicy`).

use crate::matcher::HeaderMatcher;
use rkyv::{Archive, Deserialize, Serialize};

/// When a try that failed is made again, and how often.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct RetryPolicy {
    /// Bits of [`retry_on`]; 0: never, unless the request's own headers ask for it.
    pub retry_on: u32,
    /// Tries after the first.
    pub num_retries: u32,
    /// Time for one try in ms; 0: the route's.
    pub per_try_timeout: u64,
    /// Time without a byte from the endpoint in one try, in ms; 0: none.
    pub per_try_idle_timeout: u64,
    /// The pause before a retry is drawn below this times 2 to the power of the retries so far, in ms; 25 by default.
    pub base_interval: u64,
    /// The pause is drawn below this at most, in ms; ten times `base_interval` by default.
    pub max_interval: u64,
    /// Statuses for [`retry_on::RETRIABLE_STATUS_CODES`].
    pub retriable_status_codes: Vec<u16>,
    /// Response headers for [`retry_on::RETRIABLE_HEADERS`]: one that matches is enough.
    pub retriable_headers: Vec<HeaderMatcher>,
    /// Only requests of which one header matches are retried; empty: all.
    pub retriable_request_headers: Vec<HeaderMatcher>,
    /// An endpoint that was tried is not asked again while there are others
    /// (`envoy.retry_host_predicates.previous_hosts`).
    pub previous_hosts: bool,
    /// How often another endpoint is looked for, where the policy of the cluster is a hash; 1 by default.
    pub host_selection_retry_max_attempts: u32,
    /// The response may say how long the pause is.
    pub rate_limited: Option<RateLimitedBackOff>,
}

/// A pause that the response asks for (`RetryPolicy.RateLimitedRetryBackOff`).
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct RateLimitedBackOff {
    /// The first that says something is taken; never empty.
    pub reset_headers: Vec<ResetHeader>,
    /// Longer pauses are not believed, in ms; Envoy's default is five minutes.
    pub max_interval: u64,
}

/// `RetryPolicy.ResetHeader`.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ResetHeader {
    /// The header (lower case).
    pub name: String,
    /// It holds the second of the Unix epoch at which the limit ends (`UNIX_TIMESTAMP`), not the seconds until then.
    pub unix_timestamp: bool,
}

/// The conditions of `RetryPolicy.retry_on`.
pub mod retry_on {
    /// `5xx`
    pub const FIVE_XX: u32 = 1;
    /// `gateway-error`
    pub const GATEWAY_ERROR: u32 = 1 << 1;
    /// `connect-failure`
    pub const CONNECT_FAILURE: u32 = 1 << 2;
    /// `retriable-4xx`
    pub const RETRIABLE_4XX: u32 = 1 << 3;
    /// `refused-stream`
    pub const REFUSED_STREAM: u32 = 1 << 4;
    /// `retriable-status-codes`
    pub const RETRIABLE_STATUS_CODES: u32 = 1 << 5;
    /// `reset`
    pub const RESET: u32 = 1 << 6;
    /// `retriable-headers`
    pub const RETRIABLE_HEADERS: u32 = 1 << 7;
    /// `envoy-ratelimited`
    pub const ENVOY_RATE_LIMITED: u32 = 1 << 8;
    /// `reset-before-request`
    pub const RESET_BEFORE_REQUEST: u32 = 1 << 9;
    /// `cancelled`
    pub const GRPC_CANCELLED: u32 = 1 << 10;
    /// `deadline-exceeded`
    pub const GRPC_DEADLINE_EXCEEDED: u32 = 1 << 11;
    /// `resource-exhausted`
    pub const GRPC_RESOURCE_EXHAUSTED: u32 = 1 << 12;
    /// `unavailable`
    pub const GRPC_UNAVAILABLE: u32 = 1 << 13;
    /// `internal`
    pub const GRPC_INTERNAL: u32 = 1 << 14;

    /// All of gRPC.
    pub const GRPC: u32 =
        GRPC_CANCELLED | GRPC_DEADLINE_EXCEEDED | GRPC_RESOURCE_EXHAUSTED | GRPC_UNAVAILABLE | GRPC_INTERNAL;
    /// All that depends on a response rather than on its absence.
    pub const RESPONSE: u32 = FIVE_XX
        | GATEWAY_ERROR
        | RETRIABLE_4XX
        | RETRIABLE_STATUS_CODES
        | RETRIABLE_HEADERS
        | ENVOY_RATE_LIMITED
        | GRPC;

    const WORDS: [(&str, u32); 10] = [
        ("5xx", FIVE_XX),
        ("gateway-error", GATEWAY_ERROR),
        ("connect-failure", CONNECT_FAILURE),
        ("retriable-4xx", RETRIABLE_4XX),
        ("refused-stream", REFUSED_STREAM),
        ("retriable-status-codes", RETRIABLE_STATUS_CODES),
        ("reset", RESET),
        ("retriable-headers", RETRIABLE_HEADERS),
        ("envoy-ratelimited", ENVOY_RATE_LIMITED),
        ("reset-before-request", RESET_BEFORE_REQUEST),
    ];
    const GRPC_WORDS: [(&str, u32); 5] = [
        ("cancelled", GRPC_CANCELLED),
        ("deadline-exceeded", GRPC_DEADLINE_EXCEEDED),
        ("resource-exhausted", GRPC_RESOURCE_EXHAUSTED),
        ("unavailable", GRPC_UNAVAILABLE),
        ("internal", GRPC_INTERNAL),
    ];

    /// The bit of a word of `x-envoy-retry-on`.
    pub fn http(word: &str) -> Option<u32> {
        WORDS.iter().find(|(name, _)| *name == word).map(|(_, bit)| *bit)
    }

    /// The words of these bits.
    pub fn words(bits: u32) -> impl Iterator<Item = &'static str> {
        WORDS.into_iter().chain(GRPC_WORDS).filter(move |(_, bit)| bits & bit != 0).map(|(word, _)| word)
    }

    /// The bit of a word of `x-envoy-retry-grpc-on`.
    pub fn grpc(word: &str) -> Option<u32> {
        GRPC_WORDS.iter().find(|(name, _)| *name == word).map(|(_, bit)| *bit)
    }
}
