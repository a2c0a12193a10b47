//! Listeners and filter chains (`config.listener.v3`).

use crate::address::{Address, CidrRange};
use crate::filter::HttpFilter;
use crate::route::RouteTable;
use crate::subset::Criterion;
use rkyv::{Archive, Deserialize, Serialize};
use std::collections::HashMap;

/// Before the address of a listener of UDP in a [`ListenerIndex`].
pub const UDP_KEY: &str = "udp/";

/// A listener (`config.listener.v3.Listener`).
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Listener {
    /// Its name.
    pub name: String,
    /// `address` and `additional_addresses`.
    pub addresses: Vec<Address>,
    /// Which side of the sidecar it is on.
    pub traffic_direction: TrafficDirection,
    /// Whether Envoy would open the socket itself. Without it only connections that were captured reach it.
    pub bind_to_port: bool,
    /// Hand over to the listener of the original destination (`virtualOutbound`).
    pub use_original_dst: bool,
    /// Ports on which the TLS inspector looks; `None`: there is no such filter.
    pub tls_inspector: Option<PortPredicate>,
    /// Ports on which the HTTP inspector looks; `None`: there is no such filter.
    pub http_inspector: Option<PortPredicate>,
    /// How long sniffing may take, in ms; 0: for ever (`listener_filters_timeout`).
    pub listener_filters_timeout: u64,
    /// What happens then: go on without (true) or close.
    pub continue_on_listener_filters_timeout: bool,
    /// Candidates; the most specific match wins, not the order.
    pub filter_chains: Vec<FilterChain>,
    /// Taken when none matches.
    pub default_filter_chain: Option<FilterChain>,
    /// It is one of UDP, without filter chains: where its datagrams go.
    pub udp: Option<Box<UdpProxy>>,
    /// Every connection is refused, for this reason (an unknown listener filter …).
    pub refuse: Option<String>,
}

/// Which side of the sidecar (`core.v3.TrafficDirection`).
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum TrafficDirection {
    /// Not said.
    Unspecified,
    /// From outside to the workload.
    Inbound,
    /// From the workload to outside.
    Outbound,
}

/// The destination ports on which a listener filter is switched off (`ListenerFilter.filter_disabled`).
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct PortPredicate {
    /// `[start, end)` ranges of ports where the filter does not run.
    pub disabled: Vec<(u16, u16)>,
}

/// A filter chain (`config.listener.v3.FilterChain`).
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct FilterChain {
    /// Its name; not unique, may be empty.
    pub name: String,
    /// Which connections it takes.
    pub filter_chain_match: FilterChainMatch,
    /// What it does with them.
    pub action: ChainAction,
}

/// What a filter chain matches (`config.listener.v3.FilterChainMatch`). Empty lists match everything.
/// Criteria are narrowed in Envoy's order: destination port, destination address, server name, transport protocol,
/// application protocols, directly connected source address, source type, source address, source port.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct FilterChainMatch {
    /// Original destination port.
    pub destination_port: Option<u16>,
    /// Original destination address; the longest prefix wins.
    pub prefix_ranges: Vec<CidrRange>,
    /// SNI: exact, or `*.suffix` (longest wins); lower case.
    pub server_names: Vec<String>,
    /// `tls` or `raw_buffer`; empty: any.
    pub transport_protocol: String,
    /// ALPN of a TLS client, or what the HTTP inspector found (`http/1.0`, `http/1.1`, `h2c`).
    pub application_protocols: Vec<String>,
    /// Address of the peer of the socket.
    pub direct_source_prefix_ranges: Vec<CidrRange>,
    /// From this host or from another.
    pub source_type: SourceType,
    /// Address of the client.
    pub source_prefix_ranges: Vec<CidrRange>,
    /// Port of the client.
    pub source_ports: Vec<u16>,
}

/// `FilterChainMatch.ConnectionSourceType`.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum SourceType {
    /// Any.
    #[default]
    Any,
    /// Loopback, or the address the connection came to.
    SameIpOrLoopback,
    /// Any other.
    External,
}

/// What is done with a connection.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum ChainAction {
    /// HTTP.
    Http(Box<HttpConnectionManager>),
    /// Bytes to a cluster.
    Tcp(TcpProxy),
    /// Closed at once: leaving out what is not supported here would weaken security. The reason is for the log and the status.
    Refuse(String),
}

/// A TCP proxy (`extensions.filters.network.tcp_proxy.v3.TcpProxy`).
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct TcpProxy {
    /// Name for statistics.
    pub stat_prefix: String,
    /// One cluster, or several with weights, picked once a connection.
    pub clusters: Vec<TcpCluster>,
    /// Idle time-out in ms; 0: none. Envoy's default is an hour.
    pub idle_timeout: u64,
    /// A connection is closed after this long, in ms; 0: never.
    pub max_downstream_connection_duration: u64,
    /// Up to this share of that is added, at random, in per cent.
    pub max_downstream_connection_duration_jitter: f64,
    /// Endpoints tried, at least 1.
    pub max_connect_attempts: u32,
    /// The address of the client is hashed (`hash_policy.source_ip`), for clusters that pick by hash.
    pub hash_source_ip: bool,
}

/// Where a TCP proxy may send a connection.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct TcpCluster {
    /// The cluster.
    pub name: String,
    /// Its weight, above 0.
    pub weight: u32,
    /// Which subset of a cluster with subsets.
    pub metadata_match: Vec<Criterion>,
}

/// Where datagrams go (`extensions.filters.udp.udp_proxy.v3.UdpProxyConfig`). Those of one client to one address are a
/// session, and go to one endpoint.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct UdpProxy {
    /// The cluster.
    pub cluster: String,
    /// A session ends when nothing came for so long, in ms, above 0; a minute by default.
    pub idle_timeout: u64,
    /// What is hashed, for clusters that pick by hash.
    pub hash: UdpHash,
}

/// `UdpProxyConfig.HashPolicy`.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum UdpHash {
    /// Nothing.
    None,
    /// The address of the client.
    SourceIp,
    /// This text.
    Key(String),
}

/// An HTTP connection manager (`extensions.filters.network.http_connection_manager.v3`).
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct HttpConnectionManager {
    /// Name for statistics.
    pub stat_prefix: String,
    /// Where the routes are.
    pub routes: RouteSpecifier,
    /// Value of the `server` header; `envoy` by default.
    pub server_name: String,
    /// When that value is put there.
    pub server_header_transformation: ServerHeader,
    /// The client's address comes from the socket and is appended to `x-forwarded-for`.
    pub use_remote_address: bool,
    /// Addresses that make a request internal (`internal_address_config`); none by default.
    pub internal_addresses: Vec<CidrRange>,
    /// Hops in front that are trusted.
    pub xff_num_trusted_hops: u32,
    /// `x-forwarded-for` is left alone.
    pub skip_xff_append: bool,
    /// Text of `via`; empty: none.
    pub via: String,
    /// A missing `x-request-id` is made.
    pub generate_request_id: bool,
    /// One that came from outside is kept.
    pub preserve_external_request_id: bool,
    /// It is put on the response too.
    pub always_set_request_id_in_response: bool,
    /// `/a/../b` is `/b` before routing (RFC 3986).
    pub normalize_path: bool,
    /// `//` is `/` before routing.
    pub merge_slashes: bool,
    /// What is done with `%2F` and `%5C`.
    pub path_with_escaped_slashes_action: EscapedSlashes,
    /// `Host: a:80` on port 80 is `a`.
    pub strip_matching_host_port: bool,
    /// `Host: a:81` is `a`.
    pub strip_any_host_port: bool,
    /// `Host: a.` is `a`.
    pub strip_trailing_host_dot: bool,
    /// Underscores in header names.
    pub headers_with_underscores_action: Underscores,
    /// `websocket` is in `upgrade_configs` and enabled.
    pub websocket: bool,
    /// Time without a byte of a stream in either direction, in ms; 0: none. Envoy's default is five minutes.
    pub stream_idle_timeout: u64,
    /// How long a stream may last, in ms; 0: for ever (`common_http_protocol_options.max_stream_duration`).
    pub max_stream_duration: u64,
    /// How long the whole of a request may take to come, in ms; 0: for ever.
    pub request_timeout: u64,
    /// Filters, in their order.
    pub filters: Vec<HttpFilter>,
    /// `x-envoy-expected-rq-timeout-ms` of a request counts like `x-envoy-upstream-rq-timeout-ms`
    /// (`Router.respect_expected_rq_timeout`).
    pub respect_expected_rq_timeout: bool,
    /// Each request is refused with 500, for this reason: an HTTP filter that is not supported and cannot be left out.
    pub refuse: Option<String>,
    /// The router filter does not add `x-envoy-*` headers (`Router.suppress_envoy_headers`).
    pub suppress_envoy_headers: bool,
}

/// Where an [`HttpConnectionManager`] has its routes.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum RouteSpecifier {
    /// `rds`: the name of a route table.
    Rds(String),
    /// `route_config`: inline.
    Inline(Box<RouteTable>),
    /// `scoped_routes`: one of several tables, by headers of the request.
    Scoped(Box<ScopedRoutes>),
}

/// Route tables by scope (`ScopedRoutes`). A request that is in no scope has no route.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ScopedRoutes {
    /// What the parts of a request's key are; each must be there.
    pub scope_key_builder: Vec<HeaderValueExtractor>,
    /// The scopes; no two have the same key.
    pub scopes: Vec<Scope>,
}

/// Where a part of a key is (`ScopeKeyBuilder.FragmentBuilder.HeaderValueExtractor`).
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct HeaderValueExtractor {
    /// The header (lower case); its first line counts.
    pub name: String,
    /// Between its elements; empty: it is one element.
    pub element_separator: String,
    /// Which element.
    pub element: ScopeElement,
}

/// An element of a header's value.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum ScopeElement {
    /// The one of this number, from 0.
    Index(u32),
    /// What follows the separator in the first that begins with the key and it.
    Pair {
        /// The key.
        key: String,
        /// The separator.
        separator: String,
    },
}

/// A scope (`config.route.v3.ScopedRouteConfiguration`).
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Scope {
    /// Its name.
    pub name: String,
    /// What the parts of a request's key must be.
    pub key: Vec<String>,
    /// Its routes.
    pub routes: ScopeRoutes,
}

/// Where a [`Scope`] has its routes.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum ScopeRoutes {
    /// `route_configuration_name`: the name of a route table.
    Rds(String),
    /// `route_configuration`: inline.
    Inline(Box<RouteTable>),
}

/// `HttpConnectionManager.ServerHeaderTransformation`.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum ServerHeader {
    /// `OVERWRITE`.
    Overwrite,
    /// `APPEND_IF_ABSENT`.
    AppendIfAbsent,
    /// `PASS_THROUGH`.
    PassThrough,
}

/// `HttpConnectionManager.PathWithEscapedSlashesAction`.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum EscapedSlashes {
    /// `KEEP_UNCHANGED`, also the default.
    KeepUnchanged,
    /// `REJECT_REQUEST`: 400.
    RejectRequest,
    /// `UNESCAPE_AND_REDIRECT`: 307.
    UnescapeAndRedirect,
    /// `UNESCAPE_AND_FORWARD`.
    UnescapeAndForward,
}

/// `HttpProtocolOptions.HeadersWithUnderscoresAction`.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Underscores {
    /// `ALLOW`.
    Allow,
    /// `REJECT_REQUEST`: 400.
    RejectRequest,
    /// `DROP_HEADER`.
    DropHeader,
}

/// Which listener takes a captured connection, by its original destination. Derived from all listeners.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ListenerIndex {
    /// Listeners that take outbound connections by their destination, `ip:port` or `[ip]:port` → name.
    /// `0.0.0.0:80` and `[::]:80` are asked after the exact address.
    pub by_address: HashMap<String, String>,
    /// The same of the inbound direction.
    pub inbound_by_address: HashMap<String, String>,
    /// The listener with `use_original_dst` of the outbound direction, empty: none.
    pub virtual_outbound: String,
    /// The listener of the inbound direction that takes what is captured on no address above, empty: none.
    pub virtual_inbound: String,
}
