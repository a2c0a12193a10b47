//! What is rejected, and by which field.

#[path = "common/resources.rs"]
mod resources;

use amesh_model::listener::ChainAction;
use amesh_model::route::RouteAction;
use amesh_xds::translate::Notes;
use resources::*;

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
}

/// What docs/unsupported.md lists.
#[test]
fn what_nginx_cannot_do_is_refused_by_name() {
    use amesh_xds::translate::NoteKind;
    let refused = |n: &Notes| -> Vec<String> {
        n.iter().filter(|(n, _)| n.kind == NoteKind::Refused).map(|(n, _)| format!("{}: {}", n.field, n.why)).collect()
    };
    let at = |field: &str| format!("virtual_hosts[0].{field}");
    rejects(
        TABLE,
        table,
        &[
            (
                "route: {cluster: c}",
                "route: {cluster: c, hedge_policy: {hedge_on_per_try_timeout: true}}",
                &at("routes[0].route.hedge_policy.hedge_on_per_try_timeout"),
                "before the next one begins",
            ),
            (
                "{name: a,",
                "{name: a, hedge_policy: {hedge_on_per_try_timeout: true},",
                &at("hedge_policy.hedge_on_per_try_timeout"),
                "before the next one begins",
            ),
        ],
    );
    for (from, to, field, why) in [
        (
            "match: {prefix: /x,",
            "match: {connect_matcher: {},",
            "virtual_hosts[].routes[].match.connect_matcher",
            "CONNECT",
        ),
        (
            "route: {cluster: c}",
            "route: {cluster: c, upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]}",
            "virtual_hosts[].routes[].route.upgrade_configs[].connect_config",
            "CONNECT",
        ),
    ] {
        let mut notes = Notes::new();
        table(&with(TABLE, from, to), &mut notes).unwrap();
        let listed = refused(&notes);
        assert!(matches!(&listed[..], [one] if one.starts_with(field) && one.contains(why)), "{listed:?}");
    }
    let manager = "filter_chains[].filters[].typed_config";
    for (kind, why) in [("CONNECT", "by 405"), ("connect-udp", "by 405"), ("spdy/3.1", "\"spdy/3.1\" is not supported")]
    {
        let mut notes = Notes::new();
        let to = format!("upgrade_type: websocket}}, {{upgrade_type: {kind}}}");
        listener(&with(LISTENER, "upgrade_type: websocket}", &to), &mut notes).unwrap();
        let listed = refused(&notes);
        let field = format!("{manager}.upgrade_configs[].upgrade_type: ");
        assert!(matches!(&listed[..], [one] if one.starts_with(&field) && one.contains(why)), "{listed:?}");
    }
    for bridge in [
        "grpc_web.v3.GrpcWeb",
        "grpc_http1_bridge.v3.Config",
        "grpc_http1_reverse_bridge.v3.FilterConfig",
        "connect_grpc_bridge.v3.FilterConfig",
        "grpc_json_transcoder.v3.GrpcJsonTranscoder",
        "grpc_json_reverse_transcoder.v3.GrpcJsonReverseTranscoder",
    ] {
        let mut notes = Notes::new();
        let filter = format!(
            "{{name: own, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.{bridge}}}}}, {{name: router"
        );
        let l = listener(&with(LISTENER, "{name: router", &filter), &mut notes).unwrap();
        let ChainAction::Http(manager) = &l.filter_chains[1].action else { panic!() };
        let why = manager.refuse.as_ref().unwrap();
        assert!(why.contains(bridge) && why.contains("is not supported: "), "{why}");
    }
    let mut notes = Notes::new();
    let trailers = "stat_prefix: s, http_protocol_options: {enable_trailers: true}, upgrade";
    listener(&with(LISTENER, "stat_prefix: s, upgrade", trailers), &mut notes).unwrap();
    let named = notes.iter().any(|(n, _)| n.field == format!("{manager}.http_protocol_options.enable_trailers"));
    assert!(named, "trailers of requests");
}
