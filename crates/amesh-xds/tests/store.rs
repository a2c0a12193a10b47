//! Stories of the store: what waits for what, what stays when something is rejected, and what an update costs.

mod common;

use amesh_model::Kind;
use amesh_xds::descriptor;
use amesh_xds::store::{Batch, Outcome, Store, Type, Value};
use amesh_xds::translate::{DnsFamily, DnsRefresh};
use envoy_types::pb::google::protobuf::Any;
use std::collections::BTreeMap;

/// A store, and what was published from it as a zone would have it.
#[derive(Default)]
struct Mesh {
    store: Store,
    zone: BTreeMap<(Kind, String), (String, Value)>,
    now: u64,
}

fn read(yaml: &str) -> (String, Any) {
    let r = descriptor::from_yaml("test", yaml).unwrap().remove(0);
    (r.name, r.any)
}

fn eds(name: &str) -> String {
    eds_of(name, "", 0)
}

fn eds_of(name: &str, service: &str, wait: u32) -> String {
    format!(
        r#"{{"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: "{name}", type: EDS, eds_cluster_config:
        {{service_name: "{service}", eds_config: {{ads: {{}}, initial_fetch_timeout: {wait}s}}}}}}"#
    )
}

fn cla(name: &str, ports: &[u16]) -> String {
    let one =
        |p: &u16| format!("{{endpoint: {{address: {{socket_address: {{address: 10.0.0.1, port_value: {p}}}}}}}}}");
    let list: Vec<_> = ports.iter().map(one).collect();
    format!(
        r#"{{"@type": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment, cluster_name: "{name}",
        endpoints: [{{lb_endpoints: [{}]}}]}}"#,
        list.join(", ")
    )
}

fn table(name: &str, cluster: &str) -> String {
    format!(
        r#"{{"@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration, name: "{name}", virtual_hosts:
        [{{name: v, domains: ["*"], routes: [{{match: {{prefix: /}}, route: {{cluster: "{cluster}"}}}}]}}]}}"#
    )
}

fn listener(name: &str, port: u16, tables: &[&str], wait: u32) -> String {
    let chain = |t: &&str| {
        format!(
            r#"{{filter_chain_match: {{server_names: ["{t}"]}}, filters: [{{name: hcm, typed_config: {{
            "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
            stat_prefix: s, rds: {{route_config_name: "{t}", config_source: {{ads: {{}}, initial_fetch_timeout: {wait}s}}}},
            http_filters: [{{name: router, typed_config: {{
            "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}]}}"#
        )
    };
    let chains: Vec<_> = tables.iter().map(chain).collect();
    format!(
        r#"{{"@type": type.googleapis.com/envoy.config.listener.v3.Listener, name: "{name}", bind_to_port: false,
        traffic_direction: OUTBOUND, address: {{socket_address: {{address: 0.0.0.0, port_value: {port}}}}},
        filter_chains: [{}]}}"#,
        chains.join(", ")
    )
}

impl Mesh {
    fn update(&mut self, version: &str, list: &[String]) -> Outcome {
        let mut out = Outcome::default();
        for yaml in list {
            let (name, any) = read(yaml);
            let url = any.type_url.clone();
            let one = self.store.update(&url, vec![(name, version.to_owned(), any)], Vec::new(), false, self.now);
            out.changed += one.changed;
            out.rejected.extend(one.rejected);
        }
        out
    }

    /// All of a type, as by state of the world.
    fn whole(&mut self, t: Type, version: &str, list: &[String]) -> Outcome {
        let one = |y: &String| {
            let (name, any) = read(y);
            (name, version.to_owned(), any)
        };
        self.store.update(t.url(), list.iter().map(one).collect(), Vec::new(), true, self.now)
    }

    fn gone(&mut self, t: Type, name: &str) -> Outcome {
        self.store.update(t.url(), Vec::new(), vec![name.to_owned()], false, self.now)
    }

    /// Takes the batch into the zone; comes back with what it did, in order: `+C name`, `-E name`.
    fn publish(&mut self) -> String {
        let Batch { put, remove } = self.store.take_batch().unwrap_or_default();
        let mut done = Vec::new();
        let letter = |k: Kind| match k {
            Kind::EndpointSet => "E",
            Kind::Cluster => "C",
            Kind::RouteTable => "R",
            Kind::Listener => "L",
            Kind::ListenerIndex => "I",
        };
        for i in put {
            assert_eq!(i.kind, i.value.kind());
            done.push(format!("+{} {}", letter(i.kind), i.name).trim_end().to_owned());
            self.zone.insert((i.kind, i.name), (i.version, i.value));
        }
        for (kind, name) in remove {
            done.push(format!("-{} {name}", letter(kind)));
            self.zone.remove(&(kind, name));
        }
        done.join(", ")
    }

    fn ports(&self, cluster: &str) -> Vec<String> {
        let Some((_, Value::EndpointSet(set))) = self.zone.get(&(Kind::EndpointSet, cluster.to_owned())) else {
            return vec!["no set".into()];
        };
        assert_eq!(set.cluster, cluster);
        let ports: Vec<_> = set.localities.iter().flat_map(|l| &l.endpoints).map(|e| e.address.to_string()).collect();
        // Who is not in the plan is never picked.
        assert_eq!(set.plan.view.pools.iter().map(|p| p.members.len()).sum::<usize>(), ports.len());
        ports
    }

    fn version(&self, kind: Kind, name: &str) -> &str {
        self.zone.get(&(kind, name.to_owned())).map_or("none", |(v, _)| v)
    }

    fn waiting(&self) -> Vec<(String, Vec<String>)> {
        self.store.status().waiting.into_iter().map(|w| (w.name, w.wants)).collect()
    }
}

#[test]
fn an_endpoint_that_stays_keeps_its_age() {
    let mut m = Mesh::default();
    let slow = eds("a")
        .replace("type: EDS", "type: EDS, round_robin_lb_config: {slow_start_config: {slow_start_window: 30s}}");
    let ages = |m: &Mesh| match m.zone.get(&(Kind::EndpointSet, "a".to_owned())) {
        Some((_, Value::EndpointSet(set))) => {
            assert_eq!(set.plan.newest, set.localities[0].endpoints.iter().map(|e| e.added).max().unwrap());
            set.localities[0].endpoints.iter().map(|e| e.added).collect::<Vec<_>>()
        }
        _ => Vec::new(),
    };
    let mut at = |now: u64, version: &str, yaml: &str| {
        m.now = now;
        assert_eq!(m.update(version, &[yaml.to_owned()]).rejected, []);
        m.publish();
        ages(&m)
    };
    assert!(at(1000, "1", &slow).is_empty());
    assert_eq!(at(2000, "2", &cla("a", &[80])), [2000]);
    assert_eq!(at(3000, "3", &cla("a", &[80, 81])), [2000, 3000]);
    let sick = cla("a", &[80, 81]).replacen("{endpoint:", "{health_status: UNHEALTHY, endpoint:", 1);
    assert_eq!(at(4000, "4", &sick), [0, 3000], "who falls ill begins anew");
    assert_eq!(at(5000, "5", &cla("a", &[80, 81])), [5000, 3000]);
    assert_eq!(at(6000, "6", &slow.replace("30s", "40s")), [5000, 3000]);
    let everything = m.store.everything(7000).unwrap();
    let set = everything.put.iter().find_map(|i| match &i.value {
        Value::EndpointSet(set) => Some(set),
        _ => None,
    });
    assert_eq!(set.unwrap().plan.newest, 5000, "a new zone knows it too");
}

#[test]
fn a_cluster_waits_for_its_endpoints_and_comes_after_them() {
    let mut m = Mesh::default();
    m.update("1", &[eds("a")]);
    assert_eq!(m.publish(), "");
    assert_eq!(m.waiting(), [("a".to_owned(), vec!["ClusterLoadAssignment \"a\"".to_owned()])]);
    assert_eq!(m.store.warm_deadline(), None, "0s: for ever");
    let change = m.store.take_names_change();
    assert_eq!(change.add.eds.into_iter().collect::<Vec<_>>(), ["a"]);

    m.update("2", &[cla("a", &[80])]);
    assert_eq!(m.publish(), "+E a, +C a");
    assert_eq!(m.ports("a"), ["10.0.0.1:80"]);
    m.update("3", &[cla("a", &[80, 81])]);
    assert_eq!(m.publish(), "+E a", "the cluster itself did not change");
    assert_eq!(m.version(Kind::EndpointSet, "a"), "3");
    m.update("4", &[cla("a", &[])]);
    assert_eq!(m.publish(), "+E a");
    assert!(m.ports("a").is_empty(), "no endpoints is an answer");
}

#[test]
fn an_assignment_without_its_cluster_waits() {
    let mut m = Mesh::default();
    m.update("1", &[cla("svc", &[80])]);
    assert_eq!(m.publish(), "");
    m.update("1", &[eds_of("a", "svc", 0), eds_of("b", "svc", 0)]);
    assert_eq!(m.publish(), "+E a, +E b, +C a, +C b", "two clusters have two sets of one service");
    m.update("2", &[cla("svc", &[81])]);
    assert_eq!(m.publish(), "+E a, +E b");
    m.gone(Type::Cluster, "a");
    assert_eq!(m.publish(), "-C a, -E a");
    assert_eq!(m.store.names_needed().eds.len(), 1, "b still wants it");
    m.gone(Type::Cluster, "b");
    assert_eq!(m.publish(), "-C b, -E b");
    assert_eq!(m.store.status().resources["ClusterLoadAssignment"].count, 0, "nothing refers to it any more");
}

#[test]
fn an_updated_cluster_keeps_its_former_version_until_it_is_warm() {
    let mut m = Mesh::default();
    m.update("1", &[eds_of("a", "old", 0), cla("old", &[80])]);
    m.publish();
    m.update("2", &[eds_of("a", "new", 0)]);
    assert_eq!(m.publish(), "");
    assert_eq!(m.version(Kind::Cluster, "a"), "1");
    m.update("3", &[cla("old", &[81])]);
    assert_eq!(m.publish(), "+E a", "what serves still follows its own service");
    assert_eq!(m.ports("a"), ["10.0.0.1:81"]);
    m.update("3", &[cla("new", &[90])]);
    assert_eq!(m.publish(), "+E a, +C a");
    assert_eq!((m.ports("a"), m.version(Kind::Cluster, "a")), (vec!["10.0.0.1:90".to_owned()], "2"));
    assert_eq!(m.store.names_needed().eds.into_iter().collect::<Vec<_>>(), ["new"]);
}

#[test]
fn a_new_zone_gets_what_serves_not_what_waits() {
    let mut m = Mesh::default();
    m.update("1", &[eds_of("a", "old", 0), cla("old", &[80]), listener("l", 80, &["r"], 0), table("r", "a")]);
    m.publish();
    m.update("2", &[eds_of("a", "new", 0), listener("l", 81, &["s"], 0), eds("b")]);
    assert_eq!(m.publish(), "");
    let all = m.store.everything(0).unwrap();
    let versions: Vec<_> = all.put.iter().map(|i| (i.kind, i.name.as_str(), i.version.as_str())).collect();
    assert_eq!(
        versions[..4],
        [
            (Kind::EndpointSet, "a", "1"),
            (Kind::Cluster, "a", "1"),
            (Kind::RouteTable, "r", "1"),
            (Kind::Listener, "l", "1"),
        ]
    );
    for i in all.put.iter().filter(|i| i.kind != Kind::ListenerIndex) {
        assert_eq!(m.zone[&(i.kind, i.name.clone())].1, i.value, "{} {:?}", i.name, i.kind);
    }
    assert_eq!((versions.len(), all.remove.len()), (5, 0));
}

#[test]
fn a_listener_waits_for_all_its_tables() {
    let mut m = Mesh::default();
    m.update("1", &[listener("l", 80, &["r1", "r2"], 0), table("r1", "a")]);
    assert_eq!(m.publish(), "+R r1");
    assert_eq!(m.waiting(), [("l".to_owned(), vec!["RouteConfiguration \"r2\"".to_owned()])]);
    m.update("1", &[table("r2", "a")]);
    assert_eq!(m.publish(), "+R r2, +L l, +I");
    let Value::ListenerIndex(index) = &m.zone[&(Kind::ListenerIndex, String::new())].1 else { panic!() };
    assert_eq!(index.by_address["0.0.0.0:80"], "l");

    m.update("2", &[listener("l", 81, &["r3"], 0)]);
    assert_eq!(m.publish(), "", "its tables are still in use");
    assert_eq!(m.store.names_needed().rds.len(), 3);
    m.update("2", &[table("r3", "a")]);
    assert_eq!(m.publish(), "+R r3, +L l, +I, -R r1, -R r2", "removals last");
    m.update("3", &[listener("l", 81, &["r3", "r4"], 0)]);
    m.gone(Type::Listener, "l");
    assert_eq!(m.publish(), "+I, -L l, -R r3");
    assert_eq!(m.store.status().resources["RouteConfiguration"].count, 0);
}

#[test]
fn tables_of_no_listener_wait_and_removals_in_use_are_left_alone() {
    let mut m = Mesh::default();
    m.update("1", &[table("r", "a")]);
    assert_eq!(m.publish(), "");
    m.update("1", &[listener("l", 80, &["r"], 0)]);
    assert_eq!(m.publish(), "+R r, +L l, +I");
    m.gone(Type::RouteConfiguration, "r");
    m.update("1", &[eds("a"), cla("a", &[80])]);
    m.publish();
    m.gone(Type::ClusterLoadAssignment, "a");
    assert_eq!(m.publish(), "");
    assert_eq!(m.ports("a"), ["10.0.0.1:80"]);
    m.whole(Type::RouteConfiguration, "2", &[]);
    assert_eq!(m.publish(), "", "what a response does not name is not gone");
}

#[test]
fn who_waits_too_long_is_published_as_it_is() {
    let mut m = Mesh { now: 1_000_000, ..Mesh::default() };
    m.update("1", &[eds_of("a", "", 15), listener("l", 80, &["r"], 5)]);
    assert_eq!(m.store.warm_deadline(), Some(1_005_000));
    m.store.expire(1_004_999);
    assert_eq!(m.publish(), "");
    m.store.expire(1_005_000);
    assert_eq!(m.publish(), "+L l, +I");
    assert_eq!(m.store.warm_deadline(), Some(1_015_000));
    m.store.expire(2_000_000);
    assert_eq!(m.publish(), "+E a, +C a");
    assert_eq!(m.store.warm_deadline(), None);
    m.update("2", &[cla("a", &[80]), table("r", "a")]);
    assert_eq!(m.publish(), "+E a, +R r", "what comes late is taken");
}

#[test]
fn a_bad_resource_keeps_its_last_good_and_the_others_of_its_response_apply() {
    let mut m = Mesh { now: 77, ..Mesh::default() };
    m.update("1", &[eds("a"), cla("a", &[80])]);
    m.publish();
    let bad = eds("a").replace("type: EDS", "type: EDS, connect_timeout: -1s");
    let out = m.whole(Type::Cluster, "2", &[bad.clone(), eds("b")]);
    assert_eq!(out.rejected.len(), 1);
    assert_eq!(out.rejected[0].to_string(), "a: connect_timeout: -1s 0ns is no duration from 0 up");
    m.update("2", &[cla("b", &[80])]);
    assert_eq!(m.publish(), "+E b, +C b");
    assert_eq!(m.version(Kind::Cluster, "a"), "1");
    let r = &m.store.status().rejected[0];
    assert_eq!((r.resource, r.name.as_str(), r.version.as_str(), r.at), ("Cluster", "a", "2", 77));
    assert_eq!(r.last_good.as_deref(), Some("1"));

    let again = m.whole(Type::Cluster, "3", &[bad, eds("b")]);
    assert_eq!(again.rejected.len(), 1, "the same again is rejected again");
    let mended = m.whole(Type::Cluster, "4", &[eds("a"), eds("b")]);
    assert_eq!((mended.rejected.len(), mended.changed), (0, 0));
    assert!(m.store.status().rejected.is_empty());
    assert_eq!(m.publish(), "");
}

#[test]
fn a_bad_assignment_keeps_the_endpoints() {
    let mut m = Mesh::default();
    m.update("1", &[eds("a"), cla("a", &[80])]);
    m.publish();
    let out = m.update("2", &[cla("a", &[80]).replace("10.0.0.1", "db.example")]);
    assert_eq!(out.rejected[0].field, "endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address");
    assert_eq!(m.publish(), "");
    assert_eq!(m.ports("a"), ["10.0.0.1:80"]);
}

#[test]
fn the_whole_world_says_what_is_gone() {
    let mut m = Mesh::default();
    m.whole(Type::Cluster, "1", &[eds("a"), eds("b")]);
    m.update("1", &[cla("a", &[1]), cla("b", &[2])]);
    m.publish();
    let out = m.whole(Type::Cluster, "2", &[eds("b")]);
    assert_eq!(out.changed, 1);
    assert_eq!(m.publish(), "-C a, -E a");
    m.whole(Type::Listener, "1", &[]);
    assert_eq!(m.publish(), "");
}

#[test]
fn names_that_do_not_fit_and_doubles_are_rejected() {
    let mut m = Mesh::default();
    let (_, any) = read(&eds("a"));
    let url = Type::Cluster.url();
    let out = m.store.update(url, vec![("b".into(), "1".into(), any.clone())], vec![], false, 0);
    assert_eq!(out.rejected[0].to_string(), "b: name: is \"a\", and the resource came as \"b\"");
    let out = m.store.update(url, vec![("a".into(), "1".into(), any.clone()); 2], vec![], false, 0);
    assert_eq!((out.changed, out.rejected.len()), (1, 1));
    let out = m.store.update(Type::Listener.url(), vec![("a".into(), "1".into(), any.clone())], vec![], false, 0);
    assert_eq!(out.rejected[0].field, "type_url");
    let out = m.store.update("type.googleapis.com/x.Y", vec![("a".into(), "1".into(), any)], vec![], false, 0);
    assert!(out.rejected[0].reason.contains("not a type that is known here"));
}

#[test]
fn names_by_dns_are_resolved_before_the_cluster_serves() {
    let cluster = r#"{"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: d, type: STRICT_DNS,
        dns_lookup_family: V4_ONLY, dns_refresh_rate: 7s, load_assignment: {cluster_name: d, endpoints: [{lb_endpoints: [
        {endpoint: {address: {socket_address: {address: one.example, port_value: 80}}}},
        {endpoint: {address: {socket_address: {address: 10.9.9.9, port_value: 81}}}},
        {endpoint: {address: {socket_address: {address: two.example, port_value: 82}}}}]}]}}"#;
    let mut m = Mesh::default();
    let before = m.store.dns_generation();
    m.update("1", &[cluster.to_owned()]);
    assert_ne!(m.store.dns_generation(), before);
    let names = m.store.dns_names();
    assert_eq!(
        names.iter().map(|n| (n.host.as_str(), n.refresh.rate)).collect::<Vec<_>>(),
        [("one.example", 7000), ("two.example", 7000)]
    );
    let v4 = DnsFamily::V4Only;
    m.store.dns_result("one.example", v4, Some(vec!["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()]), 1);
    assert_eq!(m.publish(), "");
    assert_eq!(m.waiting()[0].1, ["the addresses of \"two.example\""]);
    m.store.dns_result("two.example", v4, None, 1);
    assert_eq!(m.publish(), "+E d, +C d");
    assert_eq!(m.ports("d"), ["10.0.0.1:80", "10.0.0.2:80", "10.9.9.9:81"]);
    m.store.dns_result("two.example", v4, Some(vec!["10.0.0.3".parse().unwrap()]), 1);
    assert_eq!(m.publish(), "+E d");
    m.store.dns_result("two.example", v4, None, 1);
    assert_eq!(m.publish(), "", "what was known stays");
    m.store.dns_result("two.example", v4, Some(vec![]), 1);
    assert_eq!((m.publish(), m.ports("d").len()), ("+E d".into(), 3), "a name without addresses has no endpoints");
    m.gone(Type::Cluster, "d");
    assert_eq!(m.publish(), "-C d, -E d");
    assert!(m.store.dns_names().is_empty());
}

#[test]
fn a_logical_cluster_keeps_its_last_address() {
    let cluster = |name: &str, more: &str| {
        format!(
            r#"{{"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: {name}, type: LOGICAL_DNS, {more}
            dns_lookup_family: V4_ONLY, load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [
            {{endpoint: {{address: {{socket_address: {{address: one.example, port_value: 80}}}}}}}}]}}]}}}}"#
        )
    };
    let mut m = Mesh::default();
    let rates = "dns_jitter: 2s, dns_failure_refresh_rate: {base_interval: 3s}, respect_dns_ttl: true,";
    m.update("1", &[cluster("a", rates), cluster("b", "dns_refresh_rate: 7s, dns_jitter: 1s,")]);
    let names = m.store.dns_names();
    let failure = Some((3000, 30_000));
    let refresh = DnsRefresh { rate: 5000, respect_ttl: true, least: 0, jitter: 1000, failure };
    assert_eq!(names.iter().map(|n| n.refresh).collect::<Vec<_>>(), [refresh], "one name, what suits both");
    let v4 = DnsFamily::V4Only;
    m.store.dns_result("one.example", v4, Some(vec!["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()]), 1);
    m.publish();
    assert_eq!(m.ports("a"), ["10.0.0.1:80"]);
    m.store.dns_result("one.example", v4, Some(vec![]), 1);
    m.publish();
    assert_eq!(m.ports("a"), ["10.0.0.1:80"]);
}

#[test]
fn the_same_bytes_cost_nothing_but_carry_the_new_version() {
    let mut m = Mesh::default();
    m.update("1", &[eds("a"), cla("a", &[80])]);
    m.publish();
    assert_eq!(m.update("2", &[eds("a"), cla("a", &[80])]).changed, 0);
    assert_eq!(m.publish(), "");
    assert_eq!(m.store.versions(Type::Cluster)["a"], "2");
}

#[test]
fn a_snapshot_brings_everything_back_but_secrets() {
    let mut m = Mesh::default();
    let tls = listener("tls", 443, &["r"], 0).replace(
        "filters: [{name: hcm",
        r#"transport_socket: {name: tls, typed_config: {
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext,
        common_tls_context: {tls_certificates: [{private_key: {inline_string: TOP-SECRET}}]}}}, filters: [{name: hcm"#,
    );
    m.update("1", &[eds("a"), cla("a", &[80]), listener("l", 80, &["r"], 0), tls, table("r", "a")]);
    m.publish();
    let saved: Vec<_> = m.store.snapshot().collect();
    assert!(saved.iter().all(|s| !s.bytes.windows(10).any(|w| w == b"TOP-SECRET")));
    let versions: Vec<_> = saved.iter().map(|s| (s.name.as_str(), s.version.as_str())).collect();
    assert_eq!(versions, [("a", "1"), ("a", "1"), ("l", "1"), ("tls", ""), ("r", "1")]);

    let mut other = Mesh::default();
    assert!(other.store.restore(saved, 0).rejected.is_empty());
    other.publish();
    assert_eq!(other.zone.keys().collect::<Vec<_>>(), m.zone.keys().collect::<Vec<_>>());
    for (key, (_, value)) in &m.zone {
        assert_eq!(&other.zone[key].1, value, "{key:?}: a chain with TLS still refuses");
    }
}

/// What stands in a transport socket, but for its secrets, is on disk as it came, and no secret is anywhere in the file.
#[test]
fn a_snapshot_file_holds_all_of_a_transport_socket_but_its_secrets() {
    use envoy_types::pb::envoy::config::cluster::v3::Cluster;
    use prost::Message;
    const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
    let certificate = |key: &str, password: &str, token: &str| {
        format!(
            r#"{{certificate_chain: {{inline_string: PUBLIC-CERT}}, private_key: {{{key}}}, password: {{{password}}}}}],
            tls_certificate_sds_secret_configs: [{{name: default, sds_config: {{api_config_source: {{api_type: GRPC,
              grpc_services: [{{envoy_grpc: {{cluster_name: sds}}{token}}}]}}}}}}],
            validation_context: {{trusted_ca: {{inline_string: PUBLIC-CA}},
              match_typed_subject_alt_names: [{{san_type: URI, matcher: {{exact: "spiffe://td/a"}}}}]}}"#
        )
    };
    let cluster = |inner: &str| {
        format!(
            r#"{{"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: a, type: STATIC,
            load_assignment: {{cluster_name: a}}, transport_socket_matches: [{{name: tlsMode-istio,
              match: {{tlsMode: istio}}, transport_socket: {{name: tls, typed_config: {{"@type": {TLS}.UpstreamTlsContext,
              sni: a.example, common_tls_context: {{alpn_protocols: [istio], tls_certificates: [{inner}}}}}}}}}]}}"#
        )
    };
    let with = cluster(&certificate(
        "inline_string: SECRET-KEY",
        "inline_bytes: U0VDUkVUIQ==",
        ", initial_metadata: [{key: authorization, value: SECRET-TOKEN}]",
    ));
    let without = cluster(&certificate("inline_string: ''", "inline_bytes: ''", ""));
    let by_file = cluster(&certificate("filename: /etc/key.pem", "environment_variable: PASSWORD", ""));
    let tickets = listener("l", 443, &["r"], 0).replace(
        "filters: [{name: hcm",
        &format!(
            r#"transport_socket: {{name: tls, typed_config: {{"@type": {TLS}.DownstreamTlsContext,
            session_ticket_keys: {{keys: [{{inline_string: SECRET-TICKETS}}, {{filename: /etc/tickets}}]}}}}}},
            filters: [{{name: hcm"#
        ),
    );

    let dir = tempfile::tempdir().unwrap();
    let on_disk = |resources: &[String]| {
        let mut m = Mesh::default();
        assert!(m.update("1", resources).rejected.is_empty());
        let path = dir.path().join("last-good");
        amesh_xds::persist::write(&path, 1, m.store.snapshot()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        (amesh_xds::persist::read(&path, 1).unwrap().unwrap().resources, bytes)
    };
    let (saved, bytes) = on_disk(&[with, tickets, table("r", "a")]);
    assert!(!bytes.windows(6).any(|w| w == b"SECRET"), "{}", String::from_utf8_lossy(&bytes));
    for kept in ["PUBLIC-CERT", "PUBLIC-CA", "spiffe://td/a", "tlsMode", "istio", "a.example", "/etc/tickets"] {
        assert!(bytes.windows(kept.len()).any(|w| w == kept.as_bytes()), "{kept}");
    }
    let decoded = |bytes: &[u8]| Cluster::decode(bytes).unwrap();
    let expected = descriptor::from_yaml("", &without).unwrap().remove(0).any.value;
    assert_eq!(decoded(&saved[0].bytes), decoded(&expected));
    assert_eq!(saved[0].version, "", "it is not what the control plane sent");

    // Where no secret stands in it, it is on disk to the byte, and known to the control plane by its version.
    let (saved, _) = on_disk(std::slice::from_ref(&by_file));
    assert_eq!(saved[0].bytes, descriptor::from_yaml("", &by_file).unwrap().remove(0).any.value);
    assert_eq!(saved[0].version, "1");
}

#[test]
fn a_real_istiod_by_delta_and_by_state_of_the_world_makes_the_same_zone() {
    let mut zones = Vec::new();
    for (responses, whole) in [(common::delta("app-delta.pb"), false), (common::sotw("app-sotw.pb"), true)] {
        let mut m = Mesh::default();
        for r in responses {
            let Some(t) = Type::from_url(&r.type_url) else { continue };
            let whole = whole && matches!(t, Type::Cluster | Type::Listener);
            let out = m.store.update(&r.type_url, r.resources, r.removed, whole, 0);
            assert_eq!(out.rejected, []);
            m.publish();
        }
        for n in m.store.dns_names() {
            m.store.dns_result(&n.host, n.family, Some(vec!["192.0.2.1".parse().unwrap()]), 1);
        }
        m.publish();
        assert_eq!(m.waiting(), []);
        for s in m.store.snapshot() {
            let sent = Type::from_url(&s.type_url).map(|t| m.store.versions(t));
            assert_eq!(sent.unwrap()[&s.name], s.version, "{}: istiod sends secrets by SDS alone", s.name);
        }
        let status = m.store.status();
        assert_eq!(status.resources["Cluster"].count, 43);
        assert!(status.notes.iter().any(|n| n.field == "filters[]" && n.resources > 30));
        assert!(serde_json::to_string(&status).unwrap().contains("\"refused\""));
        let of = |k: Kind| m.zone.keys().filter(|(kind, _)| *kind == k).count();
        assert_eq!(
            (of(Kind::Cluster), of(Kind::Listener), of(Kind::RouteTable), of(Kind::ListenerIndex)),
            (43, 20, 11, 1)
        );
        let without_endpoints = m.store.versions(Type::Cluster).len() - of(Kind::EndpointSet);
        assert_eq!(without_endpoints, 9, "those of type ORIGINAL_DST");
        zones.push(m.zone.into_iter().map(|(key, (_, value))| (key, value)).collect::<Vec<_>>());
    }
    for (delta, sotw) in zones[0].iter().zip(&zones[1]) {
        // istiod itself lists headers and endpoints in another order each time.
        assert_eq!(delta.0, sotw.0);
        if delta.0 .0 == Kind::Cluster {
            assert_eq!(delta, sotw);
        }
    }
}
