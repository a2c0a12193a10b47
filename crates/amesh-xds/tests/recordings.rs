//! A real istiod's whole configuration is accepted, and says what it must.

mod common;

use amesh_model::address::{Address, Ip};
use amesh_model::cluster::{Discovery, LbPolicy, UpstreamProtocol};
use amesh_model::listener::{ChainAction, Listener, RouteSpecifier};
use amesh_model::matcher::{HeaderMatch, StringPattern};
use amesh_model::retry::retry_on;
use amesh_model::route::{ClusterSpecifier, PathRewrite, PathSpecifier, RouteAction, RouteTable};
use amesh_xds::translate::{self, Notes, Source, TranslatedCluster};
use common::{delta, sotw, Response};
use envoy_types::pb::envoy::config as pb;
use envoy_types::pb::google::protobuf::Any;
use prost::Message;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

#[derive(Default)]
struct World {
    listeners: BTreeMap<String, Listener>,
    tables: BTreeMap<String, RouteTable>,
    clusters: BTreeMap<String, TranslatedCluster>,
    assignments: BTreeMap<String, pb::endpoint::v3::ClusterLoadAssignment>,
    notes: BTreeMap<(String, String), Vec<String>>,
}

fn open<M: Message + Default>(any: &Any) -> M {
    M::decode(any.value.as_slice()).unwrap()
}

/// Translates everything; the first resource that is rejected fails the test by name.
fn world(file: &str, responses: Vec<Response>) -> World {
    let mut w = World::default();
    for (name, _, any) in responses.into_iter().flat_map(|r| r.resources) {
        let mut notes = Notes::new();
        let n = &mut notes;
        let fail = |e: translate::Invalid| -> ! { panic!("{file}: {} {name}: {e}", any.type_url) };
        match any.type_url.as_str() {
            translate::LISTENER => {
                let l = translate::listener(&open(&any), n).unwrap_or_else(|e| fail(e));
                w.listeners.insert(name.clone(), l.listener);
            }
            translate::ROUTE_CONFIGURATION => {
                w.tables.insert(name.clone(), translate::route_table(&open(&any), n).unwrap_or_else(|e| fail(e)));
            }
            translate::CLUSTER => {
                w.clusters.insert(name.clone(), translate::cluster(&open(&any), n).unwrap_or_else(|e| fail(e)));
            }
            translate::CLUSTER_LOAD_ASSIGNMENT => {
                w.assignments.insert(name.clone(), open(&any));
            }
            _ => continue,
        }
        let all = notes.iter().map(|(n, c)| format!("{:?} {} x{c}: {}", n.kind, n.field, n.why)).collect();
        w.notes.insert((any.type_url.rsplit('.').next().unwrap().to_owned(), name), all);
    }
    w
}

fn app() -> World {
    world("app-delta.pb", delta("app-delta.pb"))
}

fn counts(w: &World) -> (usize, usize, usize, usize) {
    (w.listeners.len(), w.tables.len(), w.clusters.len(), w.assignments.len())
}

#[test]
fn every_resource_of_every_recording_is_accepted() {
    assert_eq!(counts(&app()), (20, 11, 43, 31));
    assert_eq!(counts(&world("app-sotw.pb", sotw("app-sotw.pb"))), (20, 11, 43, 31));
    for file in ["app-vanilla-delta.pb", "locked-delta.pb", "router-delta.pb"] {
        let w = world(file, delta(file));
        assert!(w.listeners.len() > 2 && w.clusters.len() > 5, "{file}: {:?}", counts(&w));
    }
}

#[test]
fn every_cluster_finds_its_endpoints() {
    let w = app();
    let mut endpoints = 0;
    for (name, c) in &w.clusters {
        let Source::Eds { service, wait } = &c.source else { continue };
        assert_eq!(*wait, 0, "istiod says: wait for ever");
        let set = translate::endpoint_set(name, &c.sockets, &w.assignments[service], &mut Notes::new()).unwrap();
        assert_eq!(set.cluster, *name);
        endpoints += set.localities.iter().map(|l| l.endpoints.len()).sum::<usize>();
    }
    assert!(endpoints > 30, "{endpoints}");
}

#[test]
fn endpoints_that_want_tls_are_not_spoken_to() {
    let w = app();
    let (mut plain, mut refused) = (0, 0);
    for (name, c) in w.clusters.iter().filter(|(_, c)| c.cluster.discovery == Discovery::Eds) {
        let cla = &w.assignments[name];
        let set = translate::endpoint_set(name, &c.sockets, cla, &mut Notes::new()).unwrap();
        let raw = cla.endpoints.iter().flat_map(|l| &l.lb_endpoints);
        for (e, raw) in set.localities.iter().flat_map(|l| &l.endpoints).zip(raw) {
            let labels = raw.metadata.as_ref().and_then(|m| m.filter_metadata.get("envoy.transport_socket_match"));
            if labels.is_some_and(|l| l.fields.contains_key("tlsMode")) {
                assert!(e.refuse.as_deref().is_some_and(|r| r.contains("tls")), "{name}: {:?}", e.refuse);
                refused += 1;
            } else if e.refuse.is_none() {
                plain += 1;
            }
        }
    }
    assert!(plain > 10 && refused > 0, "{plain} plain, {refused} refused");
}

#[test]
fn the_routes_of_web_come_in_order() {
    let w = app();
    let t = &w.tables["80"];
    let host = &t.virtual_hosts[t.domains.exact["web.default.svc"] as usize];
    assert_eq!(host.name, "web.default.svc.cluster.local:80");
    assert!(t.ignore_port_in_host_matching && host.include_request_attempt_count);
    let names: Vec<_> = host.routes.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(
        names.join(" "),
        "by-user.user by-user.cookie exact rewrite-prefix rewrite-prefix rewrite-regex query query moved to-https canned \
         slow broken some-broken mirrored cors headers retried no-retry from-labels canary"
    );
    assert!(host.index.as_ref().is_some_and(|index| !index.paths.nodes.is_empty()));
    assert!(t.virtual_hosts.iter().all(|h| h.index.is_some() == (h.routes.len() > 15)), "few routes are walked");
    let m = &host.routes[0].matches.headers[0];
    let HeaderMatch::String(s) = &m.value else { panic!("{m:?}") };
    assert_eq!((m.name.as_str(), &s.pattern), ("end-user", &StringPattern::Exact("jason".into())));

    let RouteAction::Route(prefix) = &host.routes[4].action else { panic!() };
    assert_eq!(host.routes[4].matches.path, PathSpecifier::Prefix("/api/".into()), "case is not looked at");
    assert!(matches!(prefix.path_rewrite, PathRewrite::Prefix(_)));
    let RouteAction::Route(regex) = &host.routes[5].action else { panic!() };
    assert!(matches!(regex.path_rewrite, PathRewrite::Regex { .. }));
    assert!(matches!(&host.routes[7].matches.headers[..], [a, b]
        if a.invert_match && a.treat_missing_header_as_empty && b.value == HeaderMatch::Present(true)));
    let RouteAction::Redirect(moved) = &host.routes[8].action else { panic!() };
    assert_eq!((moved.status, moved.host.as_str()), (302, "www.example.com"));
    assert_eq!(moved.path, PathRewrite::Full("/new".into()));
    let RouteAction::Redirect(secure) = &host.routes[9].action else { panic!() };
    assert_eq!((secure.status, secure.scheme.as_str(), secure.port), (301, "https", 8443));
    assert_eq!(secure.path, PathRewrite::None, "an empty path_redirect says nothing");
    let RouteAction::DirectResponse(teapot) = &host.routes[10].action else { panic!() };
    assert_eq!(teapot.status, 418);
    let RouteAction::Route(canary) = &host.routes[20].action else { panic!() };
    let ClusterSpecifier::Weighted { clusters, total_weight, .. } = &canary.cluster else { panic!() };
    assert_eq!((clusters.len(), *total_weight), (2, 100));
    assert_eq!(canary.retry.num_retries, 2);
    assert!(canary.retry.retry_on & retry_on::CONNECT_FAILURE != 0 && canary.retry.previous_hosts);
    assert_eq!(host.routes[11].fault.as_ref().and_then(|f| f.delay.as_ref()).and_then(|d| d.fixed), Some(300));
    assert!(host.routes[12].fault.as_ref().is_some_and(|f| f.abort.is_some()));
    assert!(host.routes[15].cors.as_ref().is_some_and(|c| c.allow_credentials));
    let RouteAction::Route(mirrored) = &host.routes[14].action else { panic!() };
    assert_eq!(mirrored.mirrors.len(), 2);
}

#[test]
fn inbound_fails_closed_and_outbound_is_open() {
    let w = app();
    let inbound = &w.listeners["virtualInbound"];
    let mut open = Vec::new();
    for c in &inbound.filter_chains {
        match &c.action {
            ChainAction::Refuse(why) => assert!(why.contains("tls") || why.contains("rbac"), "{}: {why}", c.name),
            ChainAction::Http(h) => {
                let why = h.refuse.as_deref().expect("every inbound HCM has filters that must not be left out");
                assert!(why.contains("rbac") || why.contains("jwt") || why.contains("mark"), "{why}");
                assert!(matches!(h.routes, RouteSpecifier::Inline(_)));
            }
            ChainAction::Tcp(t) => open.push((c.name.as_str(), t.clusters[0].name.as_str())),
        }
    }
    assert_eq!(open, [("virtualInbound-blackhole", "BlackHoleCluster")]);
    assert_eq!(inbound.listener_filters_timeout, 0);
    assert_eq!(inbound.tls_inspector.as_ref().unwrap().disabled, [(9001, 9002), (15006, 15007)]);

    let mut http = 0;
    for (name, l) in w.listeners.iter().filter(|(n, _)| *n != "virtualInbound") {
        assert_eq!(l.refuse, None, "{name}");
        for c in l.filter_chains.iter().chain(&l.default_filter_chain) {
            match &c.action {
                ChainAction::Http(h) => {
                    http += 1;
                    assert_eq!(h.refuse, None, "{name}");
                    assert!(h.normalize_path && h.websocket && h.stream_idle_timeout == 0);
                }
                ChainAction::Tcp(_) => {}
                ChainAction::Refuse(why) => panic!("{name}: {why}"),
            }
        }
    }
    assert!(http >= 10, "{http}");
}

#[test]
fn the_index_sends_captured_connections_where_envoy_does() {
    let w = app();
    let facts: Vec<translate::ListenerAddresses> = w.listeners.values().map(Into::into).collect();
    let (index, bound) = translate::listener_index(&facts);
    assert_eq!(
        (index.virtual_outbound.as_str(), index.virtual_inbound.as_str()),
        ("virtualOutbound", "virtualInbound")
    );
    assert_eq!(index.by_address["0.0.0.0:80"], "0.0.0.0_80");
    assert_eq!(index.by_address["198.18.96.6:7000"], "198.18.96.6_7000");
    assert_eq!(index.by_address.len(), 18);
    let bound: Vec<_> = bound.iter().map(|b| (b.name.as_str(), b.addresses[0].to_string(), b.inbound)).collect();
    assert_eq!(
        bound,
        [("virtualInbound", "0.0.0.0:15006".to_owned(), true), ("virtualOutbound", "0.0.0.0:15001".to_owned(), false)]
    );
}

#[test]
fn clusters_say_how_they_are_reached() {
    let w = app();
    let c = |n: &str| &w.clusters[n].cluster;
    let web = c("outbound|80||web.default.svc.cluster.local");
    assert_eq!((web.discovery, web.connect_timeout), (Discovery::Eds, 250));
    assert_eq!(web.lb_policy, LbPolicy::LEAST_REQUEST);
    let pass = c("PassthroughCluster");
    assert_eq!((pass.discovery, pass.lb_policy), (Discovery::OriginalDst, LbPolicy::ClusterProvided));
    assert_eq!(pass.refuse, None);
    assert_eq!(c("BlackHoleCluster").discovery, Discovery::Static);
    let inbound = c("inbound|8080||");
    assert_eq!(inbound.bind, [Ip::V4([127, 0, 0, 6])]);
    assert!(w.clusters.values().any(|c| c.cluster.protocol == UpstreamProtocol::Http2));
    assert!(w.clusters.values().any(|c| c.cluster.protocol == UpstreamProtocol::UseDownstream));
    let dns = w.clusters.values().find(|c| c.cluster.discovery == Discovery::StrictDns).unwrap();
    let Source::Dns(d) = &dns.source else { panic!() };
    assert!(d.hosts().count() > 0);
    let found = [IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))];
    let set = translate::dns_assignment("x", d, |_| &found);
    let first = &set.localities[0].endpoints[0];
    assert!(matches!(first.address, Address::Socket { ip: Ip::V4([10, 0, 0, 1]), .. }) && !first.hostname.is_empty());
}

#[test]
fn what_is_left_out_is_listed() {
    let w = app();
    let notes = |kind: &str, name: &str| w.notes[&(kind.to_owned(), name.to_owned())].join("\n");
    let table = notes("RouteConfiguration", "80");
    assert!(table.contains("Ignored virtual_hosts[].routes[].decorator x"), "{table}");
    let cluster = notes("Cluster", "outbound|80||web.default.svc.cluster.local");
    assert!(cluster.contains("Ignored filters[] x1"), "{cluster}");
    assert!(cluster.contains("Refused transport_socket_matches[].transport_socket x1"), "{cluster}");
    assert!(notes("Listener", "virtualInbound").contains("Refused filter_chains[].transport_socket x"));
    assert!(!notes("Listener", "0.0.0.0_80").contains("Refused"));
}
