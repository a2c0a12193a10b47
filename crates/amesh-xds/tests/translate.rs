//! What is rejected, and by which field; what fails closed; Envoy's defaults.

use amesh_model::cluster::{Discovery, LbPolicy, UpstreamProtocol};
use amesh_model::listener::{ChainAction, Listener};
use amesh_model::route::{RouteAction, RouteTable};
use amesh_xds::descriptor;
use amesh_xds::translate::{self, Invalid, NoteKind, Notes, TranslatedCluster};
use prost::Message;

const TABLE: &str = r#"{name: t, virtual_hosts: [
  {name: a, domains: ["a.example", "*.a.example"], routes: [
    {match: {prefix: /x, headers: [{name: H, string_match: {exact: v}}], query_parameters: [{name: q}]},
     route: {cluster: c}},
    {match: {path: /y}, redirect: {host_redirect: h}},
    {match: {safe_regex: {regex: "/z+"}}, direct_response: {status: 204}},
    {match: {prefix: /}, route: {weighted_clusters: {clusters: [{name: c, weight: 1}, {name: d, weight: 2}]}}}],
   response_headers_to_add: [{header: {key: X, value: "%PROTOCOL%"}}]},
  {name: b, domains: ["b.*"]}]}"#;

const LISTENER: &str = r#"{name: l, address: {socket_address: {address: 127.0.0.1, port_value: 80}}, filter_chains: [
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

const CLUSTER: &str = r#"{name: c, type: STATIC, load_assignment: {cluster_name: c, endpoints: [
  {lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 80}}}}]}]}}"#;

fn read<M: Message + Default>(url: &str, yaml: &str) -> M {
    let text = yaml.replacen('{', &format!("{{\"@type\": {url}, "), 1);
    let r = descriptor::from_yaml("test", &text).unwrap_or_else(|e| panic!("{e}\n{yaml}"));
    M::decode(r[0].any.value.as_slice()).unwrap()
}

fn with(base: &str, from: &str, to: &str) -> String {
    assert!(base.contains(from), "\"{from}\" is not in the base");
    base.replacen(from, to, 1)
}

fn table(yaml: &str, n: &mut Notes) -> Result<RouteTable, Invalid> {
    translate::route_table(&read(translate::ROUTE_CONFIGURATION, yaml), n)
}

fn listener(yaml: &str, n: &mut Notes) -> Result<Listener, Invalid> {
    translate::listener(&read(translate::LISTENER, yaml), n).map(|l| l.listener)
}

fn cluster(yaml: &str, n: &mut Notes) -> Result<TranslatedCluster, Invalid> {
    translate::cluster(&read(translate::CLUSTER, yaml), n)
}

/// Every case is one change of the base; it must be rejected at this field, with these words in the reason.
fn rejects<T>(
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

#[test]
fn hash_policies_that_make_no_sense() {
    let policy = |p: &str| format!("route: {{hash_policy: [{p}], cluster: c}}");
    let at = |f: &str| format!("virtual_hosts[0].routes[0].route.hash_policy[0].{f}");
    for (p, field, reason) in [
        ("{terminal: true}", "policy_specifier", "is not set"),
        ("{header: {header_name: \"\"}}", "header.header_name", ""),
        ("{cookie: {name: \"\"}}", "cookie.name", "is empty"),
        ("{cookie: {name: a, path: \"/\\r\"}}", "cookie", "control character"),
        ("{query_parameter: {name: \"\"}}", "query_parameter.name", "is empty"),
        (
            "{header: {header_name: a, regex_rewrite: {pattern: {regex: \"(\"}}}}",
            "header.regex_rewrite.pattern.regex",
            "",
        ),
    ] {
        rejects(TABLE, table, &[("route: {cluster: c}", &policy(p), &at(field), reason)]);
    }
    let mut notes = Notes::new();
    let ignored = with(TABLE, "route: {cluster: c}", &policy("{filter_state: {key: k}}, {connection_properties: {}}"));
    let table = table(&ignored, &mut notes).unwrap();
    let RouteAction::Route(route) = &table.virtual_hosts[0].routes[0].action else { panic!() };
    assert!(route.hash_policy.is_empty());
    let (note, _) = notes.iter().next().unwrap();
    assert_eq!(note.field, "virtual_hosts[].routes[].route.hash_policy[].filter_state");
}

#[test]
fn route_tables_that_make_no_sense() {
    let r0 = "virtual_hosts[0].routes[0]";
    let at = |f: &str| format!("{r0}.{f}");
    rejects(
        TABLE,
        table,
        &[
            ("\"*.a.example\"", "\"A.example\"", "virtual_hosts[0].domains[1]", "there twice"),
            ("\"b.*\"", "\"a.EXAMPLE\"", "virtual_hosts[1].domains[0]", "there twice"),
            ("\"b.*\"", "\"*\", \"*\"", "virtual_hosts[1].domains[1]", "there twice"),
            ("\"b.*\"", "\"b.*.c\"", "virtual_hosts[1].domains[0]", "`*` may stand"),
            ("\"b.*\"", "\"\"", "virtual_hosts[1].domains[0]", "is empty"),
            ("[\"b.*\"]", "[]", "virtual_hosts[1].domains", "is empty"),
            ("name: b,", "name: a,", "virtual_hosts[1].name", "two virtual hosts"),
            ("name: b,", "", "virtual_hosts[1].name", "is empty"),
            ("{name: t,", "{name: t, vhds: {},", "vhds", "not supported"),
            (
                "{name: t,",
                "{name: t, cluster_specifier_plugins: [{extension: {name: p}}],",
                "cluster_specifier_plugins[0]",
                "\"p\"",
            ),
            ("regex: \"/z+\"", "regex: \"/z(\"", "virtual_hosts[0].routes[2].match.safe_regex.regex", "regex \"/z(\""),
            ("regex: \"/z+\"", "regex: \"\"", "virtual_hosts[0].routes[2].match.safe_regex.regex", "is empty"),
            ("prefix: /x,", "", &at("match.path_specifier"), "is not set"),
            ("prefix: /x,", "path_match_policy: {name: own},", &at("match.path_match_policy"), "\"own\" is no matcher"),
            ("prefix: /x,", "path_separated_prefix: /x/,", &at("match.path_separated_prefix"), "slash"),
            ("prefix: /x,", "prefix: /x, dynamic_metadata: [{}],", &at("match.dynamic_metadata[0].filter"), "empty"),
            ("prefix: /x,", "prefix: /x, cookies: [{name: c}],", &at("match.cookies[0].string_match"), "not set"),
            ("prefix: /x,", "prefix: /x, filter_state: [{key: k}],", &at("match.filter_state[0].matcher"), "not set"),
            (
                "prefix: /x,",
                "prefix: /x, runtime_fraction: {},",
                &at("match.runtime_fraction.default_value"),
                "is not set",
            ),
            ("{name: H, ", "{name: \"a b\", ", &at("match.headers[0].name"), "no name of a header"),
            ("{exact: v}", "{}", &at("match.headers[0].string_match"), "has no pattern"),
            ("{exact: v}", "{prefix: \"\"}", &at("match.headers[0].string_match.prefix"), "is empty"),
            (
                "{exact: v}",
                "{safe_regex: {regex: \"[\"}}",
                &at("match.headers[0].string_match.safe_regex.regex"),
                "regex",
            ),
            ("{name: q}", "{name: \"\"}", &at("match.query_parameters[0].name"), "is empty"),
            ("route: {cluster: c}", "route: {cluster: \"\"}", &at("route.cluster"), "is empty"),
            ("route: {cluster: c}", "route: {}", &at("route.cluster_specifier"), "is not set"),
            (
                "route: {cluster: c}",
                "route: {cluster_specifier_plugin: p}",
                &at("route.cluster_specifier_plugin"),
                "plugins",
            ),
            ("route: {cluster: c}", "name: n", &at("action"), "is not set"),
            ("route: {cluster: c}", "filter_action: {}", &at("filter_action"), "not supported"),
            ("{cluster: c}", "{cluster: c, timeout: -1s}", &at("route.timeout"), "no duration"),
            (
                "{cluster: c}",
                "{cluster: c, prefix_rewrite: /, regex_rewrite: {pattern: {regex: a}}}",
                &at("route"),
                "more than one",
            ),
            (
                "{cluster: c}",
                "{cluster: c, regex_rewrite: {pattern: {regex: a}, substitution: '\\1'}}",
                &at("route.regex_rewrite.substitution"),
                "0 groups",
            ),
            (
                "{cluster: c}",
                "{cluster: c, path_rewrite_policy: {}}",
                &at("route.path_rewrite_policy"),
                "is no rewrite of paths",
            ),
            ("{cluster: c}", "{cluster: c, host_rewrite_header: \"\"}", &at("route.host_rewrite_header"), "no name"),
            ("{cluster: c}", "{cluster: c, path_rewrite: '%DURATION%'}", &at("route.path_rewrite"), "not expanded here"),
            ("{cluster: c}", "{cluster: c, host_rewrite: '%NONE%'}", &at("route.host_rewrite"), "no command"),
            (
                "{cluster: c}",
                concat!(
                    "{cluster: c, path_rewrite_policy: {name: r, typed_config: {'@type': type.googleapis.com/",
                    "envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig, path_template_rewrite: /x}}}"
                ),
                &at("route.path_rewrite_policy.typed_config.path_template_rewrite"),
                "needs a path_match_policy",
            ),
            (
                "{cluster: c}",
                "{cluster: c, cluster_not_found_response_code: 7}",
                &at("route.cluster_not_found_response_code"),
                "no value",
            ),
        ],
    );
    rejects(
        TABLE,
        table,
        &[
            (
                "host_redirect: h",
                "port_redirect: 65536",
                "virtual_hosts[0].routes[1].redirect.port_redirect",
                "no port",
            ),
            ("host_redirect: h", "response_code: 9", "virtual_hosts[0].routes[1].redirect.response_code", "no value"),
            ("status: 204", "status: 100", "virtual_hosts[0].routes[2].direct_response.status", "200 to 599"),
            (
                "status: 204",
                "status: 200, body: {filename: /etc/passwd}",
                "virtual_hosts[0].routes[2].direct_response.body.filename",
                "inline_string",
            ),
            (
                "weight: 1}, {name: d, weight: 2}",
                "weight: 0}",
                "virtual_hosts[0].routes[3].route.weighted_clusters.clusters",
                "sum of the weights is 0",
            ),
            (
                "weight: 1}",
                "weight: 4294967295}",
                "virtual_hosts[0].routes[3].route.weighted_clusters.clusters",
                "the limit is",
            ),
            (
                "{name: d, weight: 2}",
                "{weight: 2}",
                "virtual_hosts[0].routes[3].route.weighted_clusters.clusters[1].name",
                "exactly one",
            ),
            (
                "key: X,",
                "key: \":path\",",
                "virtual_hosts[0].response_headers_to_add[0].header.key",
                "may not be modified",
            ),
            (
                "%PROTOCOL%",
                "%NO_SUCH%",
                "virtual_hosts[0].response_headers_to_add[0].header.value",
                "no command that Envoy knows",
            ),
            (
                "{name: b,",
                "{name: b, request_headers_to_remove: [Host],",
                "virtual_hosts[1].request_headers_to_remove[0]",
                "may not be modified",
            ),
            (
                "{name: b,",
                "{name: b, retry_policy: {per_try_timeout: -1s},",
                "virtual_hosts[1].retry_policy.per_try_timeout",
                "no duration",
            ),
        ],
    );
}

#[test]
fn listeners_that_make_no_sense() {
    let http = "filter_chains[1].filters[0].typed_config";
    let at = |f: &str| format!("{http}.{f}");
    rejects(
        LISTENER,
        listener,
        &[
            ("{name: l,", "{", "name", "is empty"),
            ("127.0.0.1", "localhost", "address.socket_address.address", "malformed IP"),
            ("port_value: 80}", "port_value: 65536}", "address.socket_address.port_value", "no port"),
            ("port_value: 80}", "named_port: http}", "address.socket_address.named_port", "port_value"),
            (
                "address: {socket_address: {address: 127.0.0.1, port_value: 80}}",
                "traffic_direction: INBOUND",
                "address",
                "is not set",
            ),
        ],
    );
    rejects(
        LISTENER,
        listener,
        &[
            (
                "destination_port: 80",
                "destination_port: 0",
                "filter_chains[0].filter_chain_match.destination_port",
                "no port",
            ),
            ("10.1.2.3", "ten", "filter_chains[0].filter_chain_match.prefix_ranges[0].address_prefix", "malformed IP"),
            (
                "prefix_len: 8",
                "prefix_len: 129",
                "filter_chains[0].filter_chain_match.prefix_ranges[0].prefix_len",
                "128",
            ),
            ("X.example", "\"a.*\"", "filter_chains[1].filter_chain_match.server_names[0]", "partial wildcards"),
            ("cluster: c", "cluster: \"\"", "filter_chains[0].filters[1].typed_config.cluster", "is empty"),
            (", cluster: c", "", "filter_chains[0].filters[1].typed_config.cluster_specifier", "is not set"),
            (
                "cluster: c",
                "weighted_clusters: {clusters: [{name: c}]}",
                "filter_chains[0].filters[1].typed_config.weighted_clusters.clusters[0].weight",
                "is 0",
            ),
            (
                "cluster: c",
                "cluster: c, max_connect_attempts: 0",
                "filter_chains[0].filters[1].typed_config.max_connect_attempts",
                "1 or more",
            ),
            ("{name: l,", "{name: l, listener_filters_timeout: -1s,", "listener_filters_timeout", "no duration"),
            ("{name: l,", "{name: l, traffic_direction: 9,", "traffic_direction", "no value"),
            ("domains: [\"*\"]", "domains: []", &at("route_config.virtual_hosts[0].domains"), "is empty"),
            (
                "route_config: {name: r, virtual_hosts: [{name: v, domains: [\"*\"]}]}",
                "rds: {config_source: {ads: {}}}",
                &at("rds.route_config_name"),
                "is empty",
            ),
            (
                "upgrade_type: websocket}",
                "upgrade_type: websocket}, {upgrade_type: WebSocket}",
                &at("upgrade_configs[1].upgrade_type"),
                "there twice",
            ),
            ("{name: cors, typed", "{name: \"\", typed", &at("http_filters[0].name"), "is empty"),
            ("stat_prefix: s, upgrade", "upgrade", &at("stat_prefix"), "is empty"),
        ],
    );
    let two = with(
        LISTENER,
        "{destination_port: 80, prefix_ranges: [{address_prefix: 10.1.2.3, prefix_len: 8}]}",
        "{server_names: [x.example, y.example]}",
    );
    let e = listener(&two, &mut Notes::new()).unwrap_err();
    assert_eq!(e.field, "filter_chains[1].filter_chain_match");
    assert!(e.reason.contains("same matching rules as filter_chains[0]"), "{e}");
    let apart = with(&two, "[x.example, y.example]", "[x.example], source_ports: [1]");
    assert!(listener(&apart, &mut Notes::new()).is_ok());
}

#[test]
fn clusters_that_make_no_sense() {
    rejects(
        CLUSTER,
        cluster,
        &[
            ("{name: c,", "{", "name", "is empty"),
            ("type: STATIC,", "type: STATIC, connect_timeout: 0s,", "connect_timeout", "above 0"),
            ("type: STATIC,", "type: 99,", "type", "no value"),
            (
                "type: STATIC,",
                "lb_policy: RING_HASH, ring_hash_lb_config: {minimum_ring_size: 9, maximum_ring_size: 8},",
                "ring_hash_lb_config.minimum_ring_size",
                "above maximum_ring_size, 8",
            ),
            (
                "type: STATIC,",
                "lb_policy: RING_HASH, ring_hash_lb_config: {maximum_ring_size: 8388609},",
                "ring_hash_lb_config.maximum_ring_size",
                "above 8388608",
            ),
            (
                "type: STATIC,",
                "lb_policy: MAGLEV, maglev_lb_config: {table_size: 65536},",
                "maglev_lb_config.table_size",
                "not a prime",
            ),
            (
                "type: STATIC,",
                "common_lb_config: {consistent_hashing_lb_config: {hash_balance_factor: 99}},",
                "common_lb_config.consistent_hashing_lb_config.hash_balance_factor",
                "below 100",
            ),
            (
                "type: STATIC,",
                "common_lb_config: {consistent_hashing_lb_config: {use_hostname_for_hashing: true}},",
                "common_lb_config.consistent_hashing_lb_config.use_hostname_for_hashing",
                "STRICT_DNS",
            ),
            ("type: STATIC,", "type: EDS,", "eds_cluster_config.eds_config", "is not set"),
            ("type: STATIC,", "type: ORIGINAL_DST,", "lb_policy", "CLUSTER_PROVIDED"),
            (
                "type: STATIC,",
                "type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED,",
                "load_assignment",
                "no endpoints of its own",
            ),
            ("type: STATIC,", "type: STATIC, lb_policy: CLUSTER_PROVIDED,", "lb_policy", "ORIGINAL_DST"),
            ("type: STATIC,", "lb_policy: LOAD_BALANCING_POLICY_CONFIG,", "load_balancing_policy", "is not set"),
            (
                "type: STATIC,",
                "load_balancing_policy: {policies: [{typed_extension_config: {name: odd}}]},",
                "load_balancing_policy.policies",
                "odd",
            ),
            (
                "type: STATIC,",
                "common_lb_config: {healthy_panic_threshold: {value: 101}},",
                "common_lb_config.healthy_panic_threshold",
                "0 to 100",
            ),
            (
                "type: STATIC,",
                "lb_policy: LEAST_REQUEST, least_request_lb_config: {choice_count: 1},",
                "least_request_lb_config.choice_count",
                "2 or more",
            ),
            (
                "127.0.0.1",
                "db.example",
                "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address",
                "STRICT_DNS",
            ),
            ("cluster_name: c,", "", "load_assignment.cluster_name", "is empty"),
            ("{lb_endpoints:", "{priority: 129, lb_endpoints:", "load_assignment.endpoints[0].priority", "above 128"),
            (
                "{lb_endpoints:",
                "{load_balancing_weight: 0, lb_endpoints:",
                "load_assignment.endpoints[0].load_balancing_weight",
                "1 or more",
            ),
            (
                "{endpoint:",
                "{health_status: 17, endpoint:",
                "load_assignment.endpoints[0].lb_endpoints[0].health_status",
                "no value",
            ),
            (
                "{endpoint:",
                "{load_balancing_weight: 0, endpoint:",
                "load_assignment.endpoints[0].lb_endpoints[0].load_balancing_weight",
                "1 or more",
            ),
            (
                "[{endpoint:",
                "[{endpoint_name: e}, {endpoint:",
                "load_assignment.endpoints[0].lb_endpoints[0].endpoint_name",
                "not supported",
            ),
        ],
    );
    let two = with(
        CLUSTER,
        "[{endpoint:",
        "[{endpoint: {address: {socket_address: {address: b, port_value: 1}}}}, {endpoint:",
    );
    let e = cluster(&with(&two, "STATIC", "LOGICAL_DNS"), &mut Notes::new()).unwrap_err();
    assert_eq!(e.field, "load_assignment");
}

#[test]
fn envoys_defaults() {
    let c = cluster("{name: c}", &mut Notes::new()).unwrap().cluster;
    assert_eq!(
        (c.discovery, c.lb_policy, c.protocol),
        (Discovery::Static, LbPolicy::RoundRobin, UpstreamProtocol::Http1)
    );
    assert_eq!((c.connect_timeout, c.healthy_panic_threshold, c.idle_timeout), (5000, 50, 3_600_000));
    let l = listener(LISTENER, &mut Notes::new()).unwrap();
    assert!(l.bind_to_port && !l.use_original_dst && !l.continue_on_listener_filters_timeout);
    assert_eq!(l.listener_filters_timeout, 15_000);
    let ChainAction::Tcp(t) = &l.filter_chains[0].action else { panic!() };
    assert_eq!((t.idle_timeout, t.max_connect_attempts, t.max_downstream_connection_duration), (3_600_000, 1, 0));
    assert_eq!(l.filter_chains[0].filter_chain_match.prefix_ranges[0].ip, amesh_model::address::Ip::V4([10, 0, 0, 0]));
    let ChainAction::Http(h) = &l.filter_chains[1].action else { panic!() };
    assert_eq!((h.server_name.as_str(), h.stream_idle_timeout), ("envoy", 300_000));
    assert!(h.generate_request_id && h.websocket && !h.normalize_path && !h.use_remote_address && h.refuse.is_none());
    let t = table(TABLE, &mut Notes::new()).unwrap();
    let RouteAction::Route(r) = &t.virtual_hosts[0].routes[0].action else { panic!() };
    assert_eq!((r.timeout, r.cluster_not_found_response_code, r.retry.num_retries), (15_000, 503, 0));
    assert_eq!((t.domains.exact["a.example"], t.domains.suffix[".a.example"], t.domains.prefix["b."]), (0, 0, 1));
    assert_eq!((t.domains.suffix_lengths, t.domains.prefix_lengths), (vec![10], vec![2]));
    let p =
        table(&with(TABLE, "{cluster: c}", "{cluster: c, retry_policy: {retry_on: 5xx}}"), &mut Notes::new()).unwrap();
    let RouteAction::Route(r) = &p.virtual_hosts[0].routes[0].action else { panic!() };
    assert!(r.retry.retry_on == amesh_model::retry::retry_on::FIVE_XX && r.retry.num_retries == 1);
}

fn refused(n: &Notes) -> Vec<String> {
    n.iter().filter(|(n, _)| n.kind == NoteKind::Refused).map(|(n, _)| n.field.clone()).collect()
}

#[test]
fn what_would_weaken_security_fails_closed_where_it_stands() {
    const RBAC: &str = r#"{name: rbac, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC,
        rules: {action: ALLOW}}}, {name: router"#;
    let mut n = Notes::new();
    let l = listener(&with(LISTENER, "{name: router", RBAC), &mut n).unwrap();
    let ChainAction::Http(h) = &l.filter_chains[1].action else { panic!() };
    assert!(h.refuse.as_ref().unwrap().contains("http_filters[1]: \"rbac\""), "{:?}", h.refuse);
    assert!(matches!(l.filter_chains[0].action, ChainAction::Tcp(_)), "the other chain serves");
    assert_eq!(refused(&n), ["filter_chains[].filters[].typed_config.http_filters[]"]);

    for harmless in ["rules: {action: LOG}", "shadow_rules: {action: DENY, policies: {p: {}}}", "rules: {action: DENY}"]
    {
        let l = listener(
            &with(LISTENER, "{name: router", &with(RBAC, "rules: {action: ALLOW}", harmless)),
            &mut Notes::new(),
        );
        let ChainAction::Http(h) = &l.unwrap().filter_chains[1].action else { panic!() };
        assert_eq!(h.refuse, None, "{harmless}: rules that only watch");
    }
    let unknown = r#"{name: odd, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua}}, {name: router"#;
    for (filter, refuses) in [
        (unknown.to_owned(), true),
        (with(unknown, "{name: odd,", "{name: odd, is_optional: true,"), false),
        (with(unknown, "{name: odd,", "{name: odd, disabled: true,"), false),
        ("{name: ecds, config_discovery: {config_source: {ads: {}}}}, {name: router".to_owned(), true),
    ] {
        let l = listener(&with(LISTENER, "{name: router", &filter), &mut Notes::new()).unwrap();
        let ChainAction::Http(h) = &l.filter_chains[1].action else { panic!() };
        assert_eq!(h.refuse.is_some(), refuses, "{filter}");
    }

    let tls = r#"{transport_socket: {name: tls, typed_config: {
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext}}, name: two"#;
    let l = listener(&with(LISTENER, "{name: two", tls), &mut Notes::new()).unwrap();
    assert!(matches!(&l.filter_chains[1].action, ChainAction::Refuse(why) if why.contains("DownstreamTlsContext")));

    let l = listener(&with(LISTENER, "{name: l,", "{name: l, listener_filters: [{name: pp, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol}}],"), &mut Notes::new()).unwrap();
    assert!(l.refuse.unwrap().contains("ProxyProtocol"));

    let per_route = |any: &str| {
        with(TABLE, "{match: {path: /y}", &format!("{{typed_per_filter_config: {{f: {any}}}, match: {{path: /y}}"))
    };
    let jwt = r#"{"@type": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig}"#;
    let t = table(&per_route(jwt), &mut Notes::new()).unwrap();
    assert!(matches!(&t.virtual_hosts[0].routes[1].action, RouteAction::Refuse(why) if why.contains("jwt_authn")));
    assert!(matches!(t.virtual_hosts[0].routes[0].action, RouteAction::Route(_)));
    let mut n = Notes::new();
    let fault = r#"{"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault}"#;
    let t = table(&per_route(fault), &mut n).unwrap();
    assert!(matches!(t.virtual_hosts[0].routes[1].action, RouteAction::Redirect(_)) && refused(&n).is_empty());
    let t = table(
        &with(TABLE, "{name: b,", &format!("{{name: b, typed_per_filter_config: {{f: {jwt}}},")),
        &mut Notes::new(),
    )
    .unwrap();
    assert!(t.virtual_hosts[1].refuse.is_some() && t.virtual_hosts[0].refuse.is_none());

    for (what, field) in [
        ("cluster_type: {name: envoy.clusters.aggregate},", "cluster_type"),
        ("upstream_config: {},", "upstream_config"),
    ] {
        let mut n = Notes::new();
        let c = cluster(&with(CLUSTER, "type: STATIC,", what), &mut n).unwrap();
        assert!(c.cluster.refuse.is_some_and(|r| r.contains(field)), "{what}");
        assert_eq!(refused(&n), [field]);
    }
}

#[test]
fn the_first_transport_socket_that_matches_decides() {
    const TLS: &str = r#"{name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext}}"#;
    let ends = |matches: &str, endpoint: &str| {
        let yaml = with(CLUSTER, "type: STATIC,", &format!("type: STATIC, {matches}"));
        let yaml = with(&yaml, "{endpoint:", &format!("{{{endpoint} endpoint:"));
        let c = cluster(&yaml, &mut Notes::new()).unwrap();
        let translate::Source::Inline(set) = c.source else { panic!() };
        set.localities[0].endpoints[0].refuse.clone()
    };
    let istio = format!(
        "transport_socket_matches: [{{name: t, match: {{tlsMode: istio}}, transport_socket: {TLS}}},
         {{name: r, match: {{}}, transport_socket: {{name: envoy.transport_sockets.raw_buffer}}}}],"
    );
    let mode = |m: &str| format!("metadata: {{filter_metadata: {{envoy.transport_socket_match: {{tlsMode: {m}}}}}}},");
    assert!(ends(&istio, &mode("istio")).unwrap().contains("transport_socket_matches \"t\""));
    assert_eq!(ends(&istio, &mode("disabled")), None);
    assert_eq!(ends(&istio, ""), None);
    assert!(ends(&format!("transport_socket: {TLS},"), "").is_some(), "the cluster's own socket");
    assert!(ends(&format!("transport_socket: {TLS}, {}", with(&istio, "match: {}", "match: {a: b}")), "").is_some());
}

#[test]
fn expressions_that_cannot_be_matched_together_are_noted() {
    let routes = |patterns: &[String]| {
        let route =
            |p: &String| format!(r#"{{match: {{safe_regex: {{regex: "{p}"}}}}, direct_response: {{status: 204}}}}"#);
        let routes = patterns.iter().map(route).collect::<Vec<_>>().join(", ");
        format!(r#"{{name: t, virtual_hosts: [{{name: v, domains: ["*"], routes: [{routes}]}}]}}"#)
    };
    let noted = |patterns: &[String]| {
        let mut n = Notes::new();
        let table = table(&routes(patterns), &mut n).unwrap();
        assert!(table.virtual_hosts[0].index.as_ref().is_some_and(|index| !index.sets.is_empty()));
        let notes: Vec<_> = n.iter().map(|(note, _)| note.field.clone()).collect();
        notes
    };
    let mut patterns: Vec<String> = (1..=20).map(|n| format!("/[a-z]{{{n}}}")).collect();
    assert!(noted(&patterns).is_empty());
    patterns.push("/[a-z]{40000}".into());
    assert_eq!(noted(&patterns), ["virtual_hosts[].routes[].match.safe_regex"]);
}

fn balancing(yaml: &str) -> (amesh_model::cluster::Cluster, Vec<String>) {
    let mut notes = Notes::new();
    let cluster = cluster(&with(CLUSTER, "type: STATIC,", &format!("type: STATIC, {yaml},")), &mut notes);
    (cluster.unwrap_or_else(|e| panic!("{e}: {yaml}")).cluster, notes.iter().map(|(n, _)| n.field.clone()).collect())
}

/// A list of balancing policies in the newer form.
fn policies(list: &[&str]) -> String {
    let url = "type.googleapis.com/envoy.extensions.load_balancing_policies";
    let one = |p: &&str| format!("{{typed_extension_config: {{name: p, typed_config: {{\"@type\": {url}.{p}}}}}}}");
    format!("load_balancing_policy: {{policies: [{}]}}", list.iter().map(one).collect::<Vec<_>>().join(", "))
}

#[test]
fn both_forms_of_a_balancing_policy_say_the_same() {
    let slow = "slow_start_config: {slow_start_window: 2s, aggression: {default_value: 2, runtime_key: a}, min_weight_percent: {value: 5}}";
    let least = "choice_count: 3, active_request_bias: {default_value: 0.5, runtime_key: b}";
    for (old, new) in [
        ("lb_policy: ROUND_ROBIN".to_owned(), "round_robin.v3.RoundRobin".to_owned()),
        ("lb_policy: RANDOM".to_owned(), "random.v3.Random".to_owned()),
        (
            format!("lb_policy: ROUND_ROBIN, round_robin_lb_config: {{{slow}}}"),
            format!("round_robin.v3.RoundRobin, {slow}"),
        ),
        (
            format!("lb_policy: LEAST_REQUEST, least_request_lb_config: {{{slow}, {least}}}"),
            format!("least_request.v3.LeastRequest, {slow}, {least}"),
        ),
        (
            "lb_policy: RING_HASH, ring_hash_lb_config: {minimum_ring_size: 7, hash_function: MURMUR_HASH_2}"
                .to_owned(),
            "ring_hash.v3.RingHash, minimum_ring_size: 7, hash_function: MURMUR_HASH_2".to_owned(),
        ),
        (
            "lb_policy: MAGLEV, maglev_lb_config: {table_size: 11},
             common_lb_config: {consistent_hashing_lb_config: {hash_balance_factor: 120}}"
                .to_owned(),
            "maglev.v3.Maglev, table_size: 11, consistent_hashing_lb_config: {hash_balance_factor: 120}".to_owned(),
        ),
        (
            "lb_policy: ROUND_ROBIN, common_lb_config: {locality_weighted_lb_config: {}}".to_owned(),
            "round_robin.v3.RoundRobin, locality_lb_config: {locality_weighted_lb_config: {}}".to_owned(),
        ),
        (
            "lb_policy: ROUND_ROBIN, common_lb_config: {zone_aware_lb_config: {fail_traffic_on_panic: true}}"
                .to_owned(),
            "round_robin.v3.RoundRobin, locality_lb_config: {zone_aware_lb_config: {fail_traffic_on_panic: true}}"
                .to_owned(),
        ),
    ] {
        let zones = new.contains("zone_aware");
        let (old, new) = (balancing(&old), balancing(&policies(&[&new])));
        assert_eq!((old.1.len(), new.1.len()), (usize::from(zones), usize::from(zones)));
        assert_eq!(old.0.fail_traffic_on_panic, zones);
        assert_eq!(old.0, new.0);
    }
    let (cluster, _) = balancing(&format!("lb_policy: LEAST_REQUEST, least_request_lb_config: {{{slow}, {least}}}"));
    let want = LbPolicy::LeastRequest { choice_count: 3, full_scan: false, active_request_bias: 0.5 };
    assert_eq!(cluster.lb_policy, want);
    let slow = cluster.slow_start.unwrap();
    assert_eq!((slow.window, slow.aggression, slow.least), (2000, 2.0, 0.05));
}

#[test]
fn the_first_balancing_policy_that_is_known_is_taken() {
    let unknown = "pick_first.v3.PickFirst";
    let reports = "client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin";
    let of = |list: &[&str]| balancing(&policies(list));
    assert_eq!(of(&[unknown, "random.v3.Random", "round_robin.v3.RoundRobin"]).0.lb_policy, LbPolicy::Random);
    assert_eq!(of(&[reports, "random.v3.Random"]).0.lb_policy, LbPolicy::Random);
    let (alone, notes) = of(&[unknown, reports]);
    assert_eq!((alone.lb_policy, notes), (LbPolicy::RoundRobin, vec!["load_balancing_policy.policies".to_owned()]));
    let scan = of(&["least_request.v3.LeastRequest, selection_method: FULL_SCAN"]).0;
    assert!(matches!(scan.lb_policy, LbPolicy::LeastRequest { full_scan: true, .. }));
    let inner = policies(&["random.v3.Random"]).replace("load_balancing_policy", "endpoint_picking_policy");
    let (locality, _) = of(&[&format!("wrr_locality.v3.WrrLocality, {inner}")]);
    assert_eq!((locality.lb_policy, locality.locality_weighted), (LbPolicy::Random, true));
    // What the older form says beside it does not count.
    let both = format!("common_lb_config: {{locality_weighted_lb_config: {{}}}}, {}", policies(&["random.v3.Random"]));
    assert!(!balancing(&both).0.locality_weighted);
    rejects(
        CLUSTER,
        cluster,
        &[("type: STATIC,", &format!("{},", policies(&[unknown])), "load_balancing_policy.policies", "none of")],
    );
}

#[test]
fn subsets_that_make_no_sense() {
    let of = |s: &str| format!("type: STATIC, lb_subset_config: {{subset_selectors: [{s}]}},");
    for (selector, field, reason) in [
        ("{}", "keys", "is empty"),
        ("{keys: [a], fallback_policy: 9}", "fallback_policy", "no value"),
        ("{keys: [a, b], fallback_policy: KEYS_SUBSET}", "fallback_keys_subset", "some of keys"),
        ("{keys: [a], fallback_policy: KEYS_SUBSET, fallback_keys_subset: [a]}", "fallback_keys_subset", "fewer"),
        ("{keys: [a, b], fallback_policy: KEYS_SUBSET, fallback_keys_subset: [c]}", "fallback_keys_subset", "some of"),
    ] {
        let field = format!("lb_subset_config.subset_selectors[0].{field}");
        rejects(CLUSTER, cluster, &[("type: STATIC,", &of(selector), &field, reason)]);
    }
    let list = "lb_subset_config: {subset_selectors: [{keys: [a]}], metadata_fallback_policy: FALLBACK_LIST}";
    let field = "lb_subset_config.metadata_fallback_policy";
    rejects(CLUSTER, cluster, &[("type: STATIC,", &format!("type: STATIC, {list},"), field, "not supported")]);
    assert_eq!(
        balancing("lb_subset_config: {fallback_policy: ANY_ENDPOINT}").0.subsets,
        None,
        "no selector, no subsets"
    );
}

#[test]
fn an_arm_asks_for_what_its_route_asks_for_and_more() {
    let lb = |s: &str| format!("metadata_match: {{filter_metadata: {{envoy.lb: {{{s}}}}}}}");
    let from = "route: {weighted_clusters: {clusters: [{name: c, weight: 1}";
    let (route, arm) = (lb("b: x, a: true"), lb("b: [y, 1], c: {k: null}"));
    let to = format!("route: {{{route}, weighted_clusters: {{clusters: [{{name: c, weight: 1, {arm}}}");
    let table = table(&with(TABLE, from, &to), &mut Notes::new()).unwrap();
    let RouteAction::Route(route) = &table.virtual_hosts[0].routes[3].action else { panic!() };
    let text = |list: &[amesh_model::subset::Criterion]| {
        list.iter().map(|c| format!("{}={}", c.key, c.value)).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(text(&route.metadata_match), "a=true b=\"x\"");
    let amesh_model::route::ClusterSpecifier::Weighted { clusters, .. } = &route.cluster else { panic!() };
    assert_eq!(text(&clusters[0].metadata_match), "a=true b=[\"y\",1.0] c={\"k\":null}");
    assert_eq!(text(&clusters[1].metadata_match), "a=true b=\"x\"");
}
