//! Good resources to change, and their translation.

// Each test takes what it needs.
#![allow(dead_code)]

use amesh_model::listener::Listener;
use amesh_model::route::RouteTable;
use amesh_xds::descriptor;
use amesh_xds::translate::{self, Invalid, Notes, TranslatedCluster};
use prost::Message;

pub const TABLE: &str = r#"{name: t, virtual_hosts: [
  {name: a, domains: ["a.example", "*.a.example"], routes: [
    {match: {prefix: /x, headers: [{name: H, string_match: {exact: v}}], query_parameters: [{name: q}]},
     route: {cluster: c}},
    {match: {path: /y}, redirect: {host_redirect: h}},
    {match: {safe_regex: {regex: "/z+"}}, direct_response: {status: 204}},
    {match: {prefix: /}, route: {weighted_clusters: {clusters: [{name: c, weight: 1}, {name: d, weight: 2}]}}}],
   response_headers_to_add: [{header: {key: X, value: "%PROTOCOL%"}}]},
  {name: b, domains: ["b.*"]}]}"#;

pub const LISTENER: &str = r#"{name: l, address: {socket_address: {address: 127.0.0.1, port_value: 80}}, filter_chains: [
  {filter_chain_match: {destination_port: 80, prefix_ranges: [{address_prefix: 10.1.2.3, prefix_len: 8}]}, filters: [
    {name: stats, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.grpc_stats.v3.FilterConfig}},
    {name: tcp, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy,
      stat_prefix: s, cluster: c}}]},
  {name: two, filter_chain_match: {server_names: [X.example]}, filters: [
    {name: http, typed_config: {
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
      stat_prefix: s, upgrade_configs: [{upgrade_type: websocket}],
      route_config: {name: r, virtual_hosts: [{name: v, domains: ["*"]}]}, http_filters: [
        {name: cors, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}},
        {name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]}]}"#;

pub const CLUSTER: &str = r#"{name: c, type: STATIC, load_assignment: {cluster_name: c, endpoints: [
  {lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 80}}}}]}]}}"#;

pub fn read<M: Message + Default>(url: &str, yaml: &str) -> M {
    let text = yaml.replacen('{', &format!("{{\"@type\": {url}, "), 1);
    let r = descriptor::from_yaml("test", &text).unwrap_or_else(|e| panic!("{e}\n{yaml}"));
    M::decode(r[0].any.value.as_slice()).unwrap()
}

pub fn with(base: &str, from: &str, to: &str) -> String {
    assert!(base.contains(from), "\"{from}\" is not in the base");
    base.replacen(from, to, 1)
}

pub fn table(yaml: &str, n: &mut Notes) -> Result<RouteTable, Invalid> {
    translate::route_table(&read(translate::ROUTE_CONFIGURATION, yaml), n)
}

pub fn listener(yaml: &str, n: &mut Notes) -> Result<Listener, Invalid> {
    translate::listener(&read(translate::LISTENER, yaml), n).map(|l| l.listener)
}

pub fn cluster(yaml: &str, n: &mut Notes) -> Result<TranslatedCluster, Invalid> {
    translate::cluster(&read(translate::CLUSTER, yaml), n)
}

/// Every case is one change of the base; it must be rejected at this field, with these words in the reason.
pub fn rejects<T>(
    base: &str,
    translate: impl Fn(&str, &mut Notes) -> Result<T, Invalid>,
    cases: &[(&str, &str, &str, &str)],
) {
    assert!(translate(base, &mut Notes::new()).is_ok(), "the base is good");
    for (from, to, field, reason) in cases {
        match translate(&with(base, from, to), &mut Notes::new()) {
            Ok(_) => panic!("accepted: {to}"),
            Err(e) => {
                assert!(e.field == *field && e.reason.contains(reason), "{to}\n  gave  {e}\n  not   {field}: {reason}")
            }
        }
    }
}
