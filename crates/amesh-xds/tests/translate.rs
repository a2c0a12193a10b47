//! What fails closed; Envoy's defaults; both forms of a balancing policy.

#[path = "common/resources.rs"]
mod resources;

use amesh_model::cluster::{Discovery, LbPolicy, UpstreamProtocol};
use amesh_model::listener::{ChainAction, UdpHash, UdpProxy};
use amesh_model::proxy_protocol::ProxyProtocolVersion;
use amesh_model::route::RouteAction;
use amesh_xds::translate::{self, NoteKind, Notes};

use resources::*;

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
fn a_listener_of_udp_has_a_proxy_and_nothing_else() {
    const UDP: &str = "type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3";
    let translated = |filters: &str, more: &str| {
        let yaml = format!(
            "{{name: dns, address: {{socket_address: {{protocol: UDP, address: 10.0.0.1, port_value: 53}}}},
              udp_listener_config: {{}}, listener_filters: [{filters}] {more}}}"
        );
        listener(&yaml, &mut Notes::new())
    };
    let filter = |fields: &str| {
        format!("{{name: udp, typed_config: {{\"@type\": {UDP}.UdpProxyConfig, stat_prefix: u, {fields}}}}}")
    };
    let action = format!("{{name: r, typed_config: {{\"@type\": {UDP}.Route, cluster: c}}}}");
    let l = translated(&filter(&format!("matcher: {{on_no_match: {{action: {action}}}}}")), "").unwrap();
    let wanted = UdpProxy { cluster: "c".into(), idle_timeout: 60_000, hash: UdpHash::None };
    assert_eq!((l.udp.as_deref(), l.refuse), (Some(&wanted), None));
    assert_eq!(l.addresses[0].to_string(), "10.0.0.1:53");
    let l = translated(&filter("cluster: d, idle_timeout: 2s, hash_policies: [{source_ip: true}]"), "").unwrap();
    assert_eq!(*l.udp.unwrap(), UdpProxy { cluster: "d".into(), idle_timeout: 2000, hash: UdpHash::SourceIp });

    let refused = |l: amesh_model::listener::Listener| l.refuse.expect("it is refused");
    let plain = filter("cluster: c");
    assert!(refused(translated("", "").unwrap()).contains("needs one filter"));
    assert!(refused(translated(&plain, ", filter_chains: [{}]").unwrap()).contains("filter_chains"));
    assert!(refused(translated(&plain.replace("cluster: c", "cluster: c, session_filters: [{name: f}]"), "").unwrap())
        .contains("session_filters"));
    for (fields, field) in [
        ("cluster: \"\"", "cluster"),
        ("idle_timeout: 1s", "route_specifier"),
        ("cluster: c, hash_policies: [{}]", "hash_policies[0]"),
        ("matcher: {}", "matcher.on_no_match.action"),
    ] {
        let e = translated(&filter(fields), "").unwrap_err();
        assert_eq!(e.field, format!("listener_filters[0].typed_config.{field}"), "{fields}");
    }
}

#[test]
fn a_cluster_may_speak_the_proxy_protocol() {
    const KIND: &str =
        "type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport";
    let speaks = |config: &str, inner: &str| {
        let socket =
            format!("{{name: p, typed_config: {{\"@type\": {KIND}, config: {config}, transport_socket: {inner}}}}}");
        cluster(
            &with(CLUSTER, "type: STATIC,", &format!("type: STATIC, transport_socket: {socket},")),
            &mut Notes::new(),
        )
    };
    let raw = "{name: envoy.transport_sockets.raw_buffer}";
    let proxied = |config: &str| speaks(config, raw).unwrap().cluster.proxy_protocol.map(|p| (p.version, p.tlvs));
    assert_eq!(proxied("{}"), Some((ProxyProtocolVersion::V1, vec![])));
    let added = "{version: V2, added_tlvs: [{type: 234, value: aGk=}]}";
    assert_eq!(proxied(added), Some((ProxyProtocolVersion::V2, vec![234, 0, 2, b'h', b'i'])));
    let translate::Source::Inline(set) = speaks("{}", raw).unwrap().source else { panic!() };
    assert_eq!(set.localities[0].endpoints[0].refuse, None);

    let too_much = speaks("{version: V2, added_tlvs: [{type: 256}]}", raw).unwrap_err();
    assert_eq!(too_much.field, "transport_socket.typed_config.config.added_tlvs[0]");
    let translate::Source::Inline(set) = speaks("{}", "{name: tls}").unwrap().source else { panic!() };
    assert!(
        set.localities[0].endpoints[0].refuse.as_ref().unwrap().contains("\"tls\""),
        "what is within it is plain TCP"
    );
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
fn without_a_selector_there_are_no_subsets() {
    assert_eq!(balancing("lb_subset_config: {fallback_policy: ANY_ENDPOINT}").0.subsets, None);
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
