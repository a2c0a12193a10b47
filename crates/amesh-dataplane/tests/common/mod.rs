//! Builders of small models, and their archived form.
#![allow(dead_code)] // Each suite uses its part.

pub mod balancing;

use amesh_dataplane::route::RequestHead;
use amesh_model::header::HeaderEdits;
use amesh_model::listener::{
    ChainAction, EscapedSlashes, FilterChain, FilterChainMatch, HttpConnectionManager, Listener, RouteSpecifier,
    ServerHeader, TcpCluster, TcpProxy, TrafficDirection, Underscores,
};
use amesh_model::matcher::{HeaderMatch, HeaderMatcher, Regex, StringMatcher, StringPattern};
use amesh_model::route::{
    ClusterSpecifier, Domains, ForwardAction, HostRewrite, PathRewrite, PathSpecifier, RequireTls, Route, RouteAction,
    RouteMatch, RouteTable, VirtualHost, WeightedCluster,
};
use amesh_model::route_index::RouteIndex;
use rkyv::api::high::{HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor::Error;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Portable, Serialize};

/// The archived form of a value; it lives as long as the test.
pub fn stored<T>(value: &T) -> &'static T::Archived
where
    T: Archive + for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, Error>>,
    T::Archived: Portable + for<'a> CheckBytes<HighValidator<'a, Error>>,
{
    let bytes: &'static AlignedVec = Box::leak(Box::new(rkyv::to_bytes::<Error>(value).unwrap()));
    rkyv::access::<T::Archived, Error>(bytes).unwrap()
}

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub host: String,
    pub scheme: String,
    pub headers: Vec<(String, String)>,
    pub random: u64,
}

impl Request {
    pub fn get(host: &str, path: &str) -> Self {
        Request {
            method: "GET".into(),
            path: path.into(),
            host: host.into(),
            scheme: "http".into(),
            headers: Vec::new(),
            random: 0,
        }
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

impl RequestHead for Request {
    fn method(&self) -> &str {
        &self.method
    }
    fn path(&self) -> &str {
        &self.path
    }
    fn host(&self) -> &str {
        &self.host
    }
    fn scheme(&self) -> &str {
        &self.scheme
    }
    fn header_values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.headers.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_bytes())
    }
    fn random(&self) -> u64 {
        self.random
    }
    fn is_internal(&self) -> bool {
        self.first_value("x-envoy-internal") == Some(b"true")
    }
}

pub fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).unwrap()
}

pub fn exact(text: &str) -> StringMatcher {
    StringMatcher { pattern: StringPattern::Exact(text.into()), ignore_case: false }
}

pub fn header(name: &str, value: HeaderMatch) -> HeaderMatcher {
    HeaderMatcher { name: name.into(), value, invert_match: false, treat_missing_header_as_empty: false }
}

pub fn matching(path: PathSpecifier) -> RouteMatch {
    RouteMatch {
        path,
        case_sensitive: true,
        headers: Vec::new(),
        query_parameters: Vec::new(),
        grpc: false,
        runtime_fraction: None,
        cookies: Vec::new(),
        tls_context: None,
        dynamic_metadata: Vec::new(),
        filter_state: Vec::new(),
    }
}

pub fn prefix(text: &str) -> RouteMatch {
    matching(PathSpecifier::Prefix(text.into()))
}

pub fn path(text: &str) -> RouteMatch {
    matching(PathSpecifier::Path(text.into()))
}

pub fn forward(cluster: &str) -> ForwardAction {
    ForwardAction {
        cluster: ClusterSpecifier::Cluster(cluster.into()),
        cluster_not_found_response_code: 503,
        path_rewrite: PathRewrite::None,
        host_rewrite: HostRewrite::None,
        append_x_forwarded_host: false,
        timeout: 0,
        hash_policy: Vec::new(),
        metadata_match: Vec::new(),
        idle_timeout: None,
        max_stream_duration: Default::default(),
        max_grpc_timeout: None,
        grpc_timeout_offset: 0,
        high_priority: false,
        retry: Default::default(),
        internal_redirect: None,
        mirrors: vec![],
    }
}

pub fn to(cluster: &str) -> RouteAction {
    RouteAction::Route(Box::new(forward(cluster)))
}

pub fn arm(name: &str, weight: u32) -> WeightedCluster {
    WeightedCluster {
        metadata_match: Vec::new(),
        name: name.into(),
        cluster_header: String::new(),
        weight,
        headers: HeaderEdits::default(),
        host_rewrite_literal: String::new(),
    }
}

pub fn route(name: &str, matches: RouteMatch, action: RouteAction) -> Route {
    Route {
        name: name.into(),
        matches,
        action,
        headers: HeaderEdits::default(),
        fault: None,
        cors: None,
        rate_limit: None,
        max_request_bytes: None,
    }
}

pub fn virtual_host(name: &str, routes: Vec<Route>) -> VirtualHost {
    VirtualHost {
        name: name.into(),
        index: RouteIndex::new(&routes).map(Box::new),
        routes,
        ignore_path_parameters: false,
        require_tls: RequireTls::None,
        include_request_attempt_count: false,
        include_attempt_count_in_response: false,
        include_is_timeout_retry_header: false,
        headers: HeaderEdits::default(),
        virtual_clusters: Vec::new(),
        refuse: None,
    }
}

/// A table of virtual hosts with their domains.
pub fn table(hosts: Vec<(&[&str], VirtualHost)>) -> RouteTable {
    let mut table = RouteTable::default();
    let mut domains = Domains::default();
    for (index, (names, host)) in (0u32..).zip(hosts) {
        for name in names {
            let name = name.to_lowercase();
            match (name.strip_prefix('*'), name.strip_suffix('*')) {
                (Some(""), _) => domains.any = Some(index),
                (Some(suffix), _) => drop(domains.suffix.insert(suffix.into(), index)),
                (_, Some(prefix)) => drop(domains.prefix.insert(prefix.into(), index)),
                _ => drop(domains.exact.insert(name, index)),
            }
        }
        table.virtual_hosts.push(host);
    }
    let lengths = |keys: Vec<&String>| {
        let mut lengths: Vec<u32> = keys.iter().map(|k| k.len() as u32).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.dedup();
        lengths
    };
    domains.suffix_lengths = lengths(domains.suffix.keys().collect());
    domains.prefix_lengths = lengths(domains.prefix.keys().collect());
    table.domains = domains;
    table
}

pub fn hcm() -> HttpConnectionManager {
    HttpConnectionManager {
        stat_prefix: String::new(),
        routes: RouteSpecifier::Rds(String::new()),
        server_name: "envoy".into(),
        server_header_transformation: ServerHeader::Overwrite,
        use_remote_address: false,
        internal_addresses: vec![],
        xff_num_trusted_hops: 0,
        skip_xff_append: false,
        via: String::new(),
        generate_request_id: true,
        preserve_external_request_id: false,
        always_set_request_id_in_response: false,
        normalize_path: true,
        merge_slashes: false,
        path_with_escaped_slashes_action: EscapedSlashes::KeepUnchanged,
        strip_matching_host_port: false,
        strip_any_host_port: false,
        strip_trailing_host_dot: false,
        headers_with_underscores_action: Underscores::Allow,
        websocket: false,
        stream_idle_timeout: 0,
        refuse: None,
        suppress_envoy_headers: false,
        max_stream_duration: 0,
        request_timeout: 0,
        filters: vec![],
        respect_expected_rq_timeout: false,
    }
}

pub fn chain(name: &str, filter_chain_match: FilterChainMatch) -> FilterChain {
    let action = ChainAction::Tcp(TcpProxy {
        stat_prefix: name.into(),
        clusters: vec![TcpCluster { name: name.into(), weight: 1, metadata_match: Vec::new() }],
        idle_timeout: 0,
        max_downstream_connection_duration: 0,
        max_downstream_connection_duration_jitter: 0.0,
        max_connect_attempts: 1,
        hash_source_ip: false,
    });
    FilterChain { name: name.into(), filter_chain_match, action }
}

pub fn listener(filter_chains: Vec<FilterChain>) -> Listener {
    Listener {
        name: "test".into(),
        addresses: Vec::new(),
        traffic_direction: TrafficDirection::Outbound,
        bind_to_port: false,
        use_original_dst: false,
        tls_inspector: None,
        http_inspector: None,
        listener_filters_timeout: 0,
        continue_on_listener_filters_timeout: true,
        filter_chains,
        default_filter_chain: None,
        udp: None,
        refuse: None,
    }
}
