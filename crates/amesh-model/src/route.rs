//! Route tables (`config.route.v3`).

use crate::filter::{Cors, Fault, LocalRateLimit};
use crate::hash_policy::HashPolicy;
use crate::header::{Format, HeaderEdits};
use crate::internal_redirect::InternalRedirectPolicy;
use crate::matcher::{
    CookieMatcher, Fraction, HeaderMatcher, QueryParameterMatcher, Regex, RuntimeFraction, TlsContextMatch,
};
use crate::metadata::{FilterStateMatcher, MetadataMatcher};
use crate::retry::RetryPolicy;
use crate::route_index::RouteIndex;
use crate::subset::Criterion;
use rkyv::{Archive, Deserialize, Serialize};
use std::collections::HashMap;

/// A route table (`config.route.v3.RouteConfiguration`).
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct RouteTable {
    /// Its name.
    pub name: String,
    /// Virtual hosts; the indexes of [`Domains`] count here.
    pub virtual_hosts: Vec<VirtualHost>,
    /// Which virtual host takes which host.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub domains: Domains,
    /// A port in the host is not looked at (`ignore_port_in_host_matching`).
    pub ignore_port_in_host_matching: bool,
    /// Header edits of the whole table.
    pub headers: HeaderEdits,
    /// `most_specific_header_mutations_wins`.
    pub most_specific_header_mutations_wins: bool,
    /// The header whose value finds the virtual host in place of the host (lower case); empty: none.
    pub vhost_header: String,
    /// Headers that requests from outside do not bring along (`internal_only_headers`), lower case.
    pub internal_only_headers: Vec<String>,
}

/// Domains of a route table, all lower case. Exact first, then the longest suffix, the longest prefix, then `*`.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Domains {
    /// `www.example.com` → virtual host.
    pub exact: HashMap<String, u32>,
    /// `*.example.com` under `.example.com` → virtual host.
    pub suffix: HashMap<String, u32>,
    /// Lengths of the keys of `suffix`, longest first, each once.
    pub suffix_lengths: Vec<u32>,
    /// `www.*` under `www.` → virtual host.
    pub prefix: HashMap<String, u32>,
    /// Lengths of the keys of `prefix`, longest first, each once.
    pub prefix_lengths: Vec<u32>,
    /// `*`.
    pub any: Option<u32>,
}

/// A virtual host (`config.route.v3.VirtualHost`).
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct VirtualHost {
    /// Its name.
    pub name: String,
    /// First match wins.
    pub routes: Vec<Route>,
    /// Which of `routes` can take a request; none where they are few.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub index: Option<Box<RouteIndex>>,
    /// What follows a `;` in a segment of the path is not looked at (`ignore_path_parameters_in_path_matching` of the
    /// table).
    pub ignore_path_parameters: bool,
    /// Plaintext requests are redirected to `https` (`require_tls`).
    pub require_tls: RequireTls,
    /// `x-envoy-attempt-count` goes upstream.
    pub include_request_attempt_count: bool,
    /// `x-envoy-attempt-count` comes back.
    pub include_attempt_count_in_response: bool,
    /// `x-envoy-is-timeout-retry` goes upstream with retries.
    pub include_is_timeout_retry_header: bool,
    /// Header edits of this host.
    pub headers: HeaderEdits,
    /// Names for groups of requests; the first that matches counts.
    pub virtual_clusters: Vec<VirtualCluster>,
    /// Each request of this host is refused with 500, for this reason.
    pub refuse: Option<String>,
}

/// A name for a group of requests (`config.route.v3.VirtualCluster`).
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct VirtualCluster {
    /// The name.
    pub name: String,
    /// All must hold.
    pub headers: Vec<HeaderMatcher>,
}

/// `VirtualHost.TlsRequirementType`.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum RequireTls {
    /// `NONE`.
    #[default]
    None,
    /// `EXTERNAL_ONLY`.
    ExternalOnly,
    /// `ALL`.
    All,
}

/// A route (`config.route.v3.Route`). Its identity is (table, virtual host, index): names repeat.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Route {
    /// Its name; may be empty.
    pub name: String,
    /// Which requests it takes.
    pub matches: RouteMatch,
    /// What it does with them.
    pub action: RouteAction,
    /// Header edits of this route.
    pub headers: HeaderEdits,
    /// Faults of this route instead of those of the filter.
    pub fault: Option<Box<Fault>>,
    /// What scripts of other origins may do.
    pub cors: Option<Box<Cors>>,
    /// The rate limit of this route instead of that of the filter.
    pub rate_limit: Option<Box<LocalRateLimit>>,
    /// Longest body in bytes instead of what the buffer filter says; 0: it is not held.
    pub max_request_bytes: Option<u32>,
}

/// What a route matches (`config.route.v3.RouteMatch`): all parts must hold.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct RouteMatch {
    /// The path without query and fragment.
    pub path: PathSpecifier,
    /// `case_sensitive`; if false the text of `path` is lower case already. Has no meaning for a regex.
    pub case_sensitive: bool,
    /// All must hold.
    pub headers: Vec<HeaderMatcher>,
    /// All must hold.
    pub query_parameters: Vec<QueryParameterMatcher>,
    /// Only gRPC requests (`content-type: application/grpc…`).
    pub grpc: bool,
    /// Only a share of requests.
    pub runtime_fraction: Option<RuntimeFraction>,
    /// All must hold.
    pub cookies: Vec<CookieMatcher>,
    /// The client's certificate.
    pub tls_context: Option<TlsContextMatch>,
    /// All must hold.
    pub dynamic_metadata: Vec<MetadataMatcher>,
    /// All must hold.
    pub filter_state: Vec<FilterStateMatcher>,
}

/// `RouteMatch.path_specifier`.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum PathSpecifier {
    /// Begins so.
    Prefix(String),
    /// Equal.
    Path(String),
    /// The whole path matches.
    SafeRegex(Regex),
    /// Equal, or begins so and `/` follows.
    PathSeparatedPrefix(String),
    /// Any, of a CONNECT request (`connect_matcher`).
    Connect,
}

/// `Route.action`.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum RouteAction {
    /// Forward.
    Route(Box<ForwardAction>),
    /// Redirect.
    Redirect(Box<RedirectAction>),
    /// Answer without upstream.
    DirectResponse(DirectResponseAction),
    /// Not for forwarding requests (`non_forwarding_action`): answered as Envoy does, 503 for want of a cluster.
    NonForwarding,
    /// 500, for this reason: what is not supported here would weaken security if it were left out.
    Refuse(String),
}

/// `config.route.v3.RouteAction`.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ForwardAction {
    /// Where to.
    pub cluster: ClusterSpecifier,
    /// Status when the cluster does not exist; 503 by default, 404 or 500.
    pub cluster_not_found_response_code: u16,
    /// What happens to the path.
    pub path_rewrite: PathRewrite,
    /// What happens to the host.
    pub host_rewrite: HostRewrite,
    /// The old host is appended to `x-forwarded-host` when it is rewritten.
    pub append_x_forwarded_host: bool,
    /// Time for the whole response in ms, all tries and pauses within it; 0: none. Envoy's default is 15 s.
    pub timeout: u64,
    /// Which subset of a cluster with subsets.
    pub metadata_match: Vec<Criterion>,
    /// What is hashed of a request, for clusters that pick by hash.
    pub hash_policy: Vec<HashPolicy>,
    /// Time without a byte in either direction in ms; `None`: as the connection manager says; 0: none.
    pub idle_timeout: Option<u64>,
    /// How long a stream may last.
    pub max_stream_duration: MaxStreamDuration,
    /// The older form: calls of gRPC take as long as their `grpc-timeout` says instead of `timeout`, and this at most, in
    /// ms; 0: as long as they say.
    pub max_grpc_timeout: Option<u64>,
    /// Taken off that `grpc-timeout`, in ms.
    pub grpc_timeout_offset: u64,
    /// The cluster's limits for high priority count.
    pub high_priority: bool,
    /// Tries after the first. Without a policy of its own the route has its virtual host's.
    pub retry: RetryPolicy,
    /// Redirects of the endpoint that are followed here; `None`: they go to the client.
    pub internal_redirect: Option<Box<InternalRedirectPolicy>>,
    /// Copies. Without any of its own the route has its virtual host's, or its table's.
    pub mirrors: Vec<MirrorPolicy>,
}

/// How long a stream may last (`RouteAction.MaxStreamDuration`); all in ms.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct MaxStreamDuration {
    /// In any case; `None`: as the connection manager says; 0: no limit.
    pub max_stream_duration: Option<u64>,
    /// Requests with a `grpc-timeout` last as long as that says, and this at most; 0: as long as they say.
    pub grpc_timeout_header_max: Option<u64>,
    /// Taken off a `grpc-timeout`.
    pub grpc_timeout_header_offset: u64,
}

/// A copy of requests for another cluster (`RouteAction.RequestMirrorPolicy`).
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct MirrorPolicy {
    /// The cluster; empty when `cluster_header` names it.
    pub cluster: String,
    /// A header with the cluster's name (lower case); empty: none.
    pub cluster_header: String,
    /// Of how many requests; `None`: all.
    pub runtime_fraction: Option<Fraction>,
    /// The copy's host is the request's, not that with `-shadow` at its end.
    pub disable_shadow_host_suffix_append: bool,
    /// The copy's host; empty: as above.
    pub host_rewrite_literal: String,
}

/// `RouteAction.cluster_specifier`.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum ClusterSpecifier {
    /// One cluster.
    Cluster(String),
    /// The value of a header (lower case name); absent: cluster not found.
    ClusterHeader(String),
    /// One of several, by weight.
    Weighted {
        /// The arms.
        clusters: Vec<WeightedCluster>,
        /// Sum of their weights, above 0.
        total_weight: u32,
        /// A header with the number that chooses between them, in place of a random one (lower case); empty: none.
        random_header: String,
    },
}

/// `WeightedCluster.ClusterWeight`.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct WeightedCluster {
    /// The cluster; empty when `cluster_header` names it.
    pub name: String,
    /// A header with the cluster's name (lower case); empty: none.
    pub cluster_header: String,
    /// Its share.
    pub weight: u32,
    /// Header edits of this arm.
    pub headers: HeaderEdits,
    /// Which subset of a cluster with subsets: the route's, and over it this arm's own.
    pub metadata_match: Vec<Criterion>,
    /// New host for this arm where the route has no rewrite of its own; empty: none.
    pub host_rewrite_literal: String,
}

/// What happens to the path of a forwarded or redirected request.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum PathRewrite {
    /// Nothing.
    #[default]
    None,
    /// The matched prefix, or path, or (for a regex route) whole path, is replaced.
    Prefix(String),
    /// Every match of the pattern in the path without query is replaced; `\1` … are groups.
    Regex {
        /// The pattern.
        pattern: Regex,
        /// RE2's substitution.
        substitution: String,
    },
    /// The whole path is replaced (`path_redirect`).
    Full(String),
    /// The whole path is replaced by what this comes out as (`path_rewrite`); empty: nothing is changed.
    Format(Vec<Format>),
}

/// What happens to the host of a forwarded request.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum HostRewrite {
    /// Nothing.
    #[default]
    None,
    /// `host_rewrite_literal`.
    Literal(String),
    /// `auto_host_rewrite`: the endpoint's host name, for clusters by DNS.
    Auto,
    /// `host_rewrite_header`: the value of this header (lower case name), if it is there.
    Header(String),
    /// `host_rewrite_path_regex`: the path without query, rewritten.
    PathRegex {
        /// The pattern.
        pattern: Regex,
        /// RE2's substitution.
        substitution: String,
    },
    /// `host_rewrite`: what this comes out as, `-` for each command that is empty.
    Format(Vec<Format>),
}

/// `config.route.v3.RedirectAction`.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct RedirectAction {
    /// `https` instead of what was asked (`https_redirect`).
    pub https_redirect: bool,
    /// Another scheme; empty: as asked.
    pub scheme: String,
    /// Another host; empty: as asked.
    pub host: String,
    /// Another port; 0: as asked.
    pub port: u16,
    /// What happens to the path; `Full` may carry its own query.
    pub path: PathRewrite,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// The query is left out.
    pub strip_query: bool,
}

/// `config.route.v3.DirectResponseAction`.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct DirectResponseAction {
    /// The status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
    /// A body that is made for each request, in place of `body`.
    pub body_format: Option<BodyFormat>,
}

/// A body with substitution commands (`config.core.v3.SubstitutionFormatString`).
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct BodyFormat {
    /// Its parts.
    pub parts: Vec<BodyPart>,
    /// Empty values are left out; else `-` (in JSON: `null`, where they stand alone) takes their place.
    pub omit_empty_values: bool,
    /// `content-type`.
    pub content_type: String,
}

/// A part of a body.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum BodyPart {
    /// As it stands.
    Text(Vec<Format>),
    /// As a JSON value: a string, but for a command alone a number or `null`.
    Json(Vec<Format>),
}
