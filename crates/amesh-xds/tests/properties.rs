//! Whatever comes, nothing panics; and the store does at its cost what a full scan would do.

mod common;

use amesh_model::Kind;
use amesh_xds::store::{Batch, Store, Type, Value};
use amesh_xds::translate::{self, Notes, Sockets};
use envoy_types::pb::envoy::config::{cluster::v3 as cds, core::v3 as core, endpoint::v3 as eds};
use envoy_types::pb::envoy::config::{listener::v3 as lds, route::v3 as rds};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::google::protobuf::{Any, Duration, UInt32Value};
use proptest::prelude::*;
use prost::{Message, Name};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

/// Everything that can be done with bytes that claim to be a resource.
fn digest(bytes: &[u8]) -> usize {
    let mut read = 0;
    let mut notes = Notes::new();
    if let Ok(m) = lds::Listener::decode(bytes) {
        read += usize::from(translate::listener(&m, &mut notes).is_ok());
    }
    if let Ok(m) = rds::RouteConfiguration::decode(bytes) {
        read += usize::from(translate::route_table(&m, &mut Notes::new()).is_ok());
    }
    if let Ok(m) = cds::Cluster::decode(bytes) {
        read += usize::from(translate::cluster(&m, &mut Notes::new()).is_ok());
    }
    if let Ok(m) = eds::ClusterLoadAssignment::decode(bytes) {
        read += usize::from(translate::endpoint_set("c", &Sockets::default(), &m, &mut Notes::new()).is_ok());
    }
    for t in Type::ALL {
        translate::without_secrets(t.url(), bytes);
        translate::resource_name(&Any { type_url: t.url().into(), value: bytes.to_vec() });
    }
    read
}

static RECORDED: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let all = common::delta("app-delta.pb").into_iter().flat_map(|r| r.resources);
    all.map(|(_, _, any)| any.value).filter(|v| v.len() < 20_000).collect()
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        digest(&bytes);
    }

    #[test]
    fn damaged_resources_never_panic(
        which in any::<prop::sample::Index>(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        whole in any::<bool>(),
    ) {
        let mut bytes = which.get(&RECORDED).clone();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if !whole {
            bytes.truncate(cut.index(bytes.len()));
        }
        digest(&bytes);
    }
}

#[test]
fn undamaged_resources_are_read() {
    assert!(RECORDED.iter().filter(|r| digest(r) > 0).count() > 100);
}

#[derive(Clone, Debug)]
enum Op {
    Cluster(u8, u8),
    NoCluster(u8),
    OnlyClusters(BTreeSet<u8>),
    Assignment(u8, u8),
    NoAssignment(u8),
    Listener(u8, BTreeSet<u8>),
    NoListener(u8),
    Table(u8, u8),
    NoTable(u8),
    Publish,
}

fn op() -> impl Strategy<Value = Op> {
    let n = || 0u8..3;
    let some = || proptest::collection::btree_set(n(), 0..3);
    prop_oneof![
        4 => (n(), n()).prop_map(|(a, b)| Op::Cluster(a, b)),
        1 => n().prop_map(Op::NoCluster),
        1 => some().prop_map(Op::OnlyClusters),
        4 => (n(), 1u8..4).prop_map(|(a, b)| Op::Assignment(a, b)),
        1 => n().prop_map(Op::NoAssignment),
        4 => (n(), some()).prop_map(|(a, b)| Op::Listener(a, b)),
        1 => n().prop_map(Op::NoListener),
        4 => (n(), 1u8..4).prop_map(|(a, b)| Op::Table(a, b)),
        1 => n().prop_map(Op::NoTable),
        3 => Just(Op::Publish),
    ]
}

/// The same by full scans.
#[derive(Default)]
struct Naive {
    /// Cluster → the service that it asks for, and the one that it serves.
    clusters: BTreeMap<u8, (u8, Option<u8>)>,
    assignments: BTreeMap<u8, u8>,
    listeners: BTreeMap<u8, (BTreeSet<u8>, Option<BTreeSet<u8>>)>,
    tables: BTreeMap<u8, u8>,
}

impl Naive {
    fn services(&self) -> BTreeSet<u8> {
        self.clusters.values().flat_map(|(next, live)| [Some(*next), *live]).flatten().collect()
    }

    fn used_tables(&self) -> BTreeSet<u8> {
        self.listeners.values().flat_map(|(next, live)| next.iter().chain(live.iter().flatten())).copied().collect()
    }

    fn apply(&mut self, op: &Op) {
        let (services, tables) = (self.services(), self.used_tables());
        match op {
            Op::Cluster(c, s) => {
                let live = self.clusters.get(c).and_then(|r| r.1);
                self.clusters.insert(*c, (*s, live));
            }
            Op::NoCluster(c) => drop(self.clusters.remove(c)),
            Op::OnlyClusters(all) => {
                self.clusters.retain(|c, _| all.contains(c));
                for c in all {
                    let live = self.clusters.get(c).and_then(|r| r.1);
                    self.clusters.insert(*c, (0, live));
                }
            }
            Op::Assignment(s, port) => drop(self.assignments.insert(*s, *port)),
            Op::NoAssignment(s) if !services.contains(s) => drop(self.assignments.remove(s)),
            Op::Listener(l, t) => {
                let live = self.listeners.get(l).and_then(|r| r.1.clone());
                self.listeners.insert(*l, (t.clone(), live));
            }
            Op::NoListener(l) => drop(self.listeners.remove(l)),
            Op::Table(t, n) => drop(self.tables.insert(*t, *n)),
            Op::NoTable(t) if !tables.contains(t) => drop(self.tables.remove(t)),
            Op::NoAssignment(_) | Op::NoTable(_) | Op::Publish => {}
        }
        for (next, live) in self.clusters.values_mut() {
            if self.assignments.contains_key(next) {
                *live = Some(*next);
            }
        }
        for (next, live) in self.listeners.values_mut() {
            if next.iter().all(|t| self.tables.contains_key(t)) {
                *live = Some(next.clone());
            }
        }
        let (still, used) = (self.services(), self.used_tables());
        self.assignments.retain(|s, _| !services.contains(s) || still.contains(s));
        self.tables.retain(|t, _| !tables.contains(t) || used.contains(t));
    }

    /// What the zone has: kind, name, and what tells its content.
    fn zone(&self) -> BTreeMap<(Kind, String), String> {
        let mut out = BTreeMap::new();
        for (c, (_, live)) in &self.clusters {
            let Some(s) = live else { continue };
            out.insert((Kind::Cluster, format!("c{c}")), String::new());
            out.insert((Kind::EndpointSet, format!("c{c}")), self.assignments[s].to_string());
        }
        for (l, (_, live)) in &self.listeners {
            let Some(tables) = live else { continue };
            out.insert((Kind::Listener, format!("l{l}")), format!("{tables:?}"));
        }
        for t in self.used_tables() {
            if let Some(n) = self.tables.get(&t) {
                out.insert((Kind::RouteTable, format!("t{t}")), format!("n{n}"));
            }
        }
        out
    }
}

fn packed<M: Message + Name>(m: &M) -> Any {
    Any { type_url: format!("type.googleapis.com/{}", M::full_name()), value: m.encode_to_vec() }
}

fn ads() -> Option<core::ConfigSource> {
    Some(core::ConfigSource { initial_fetch_timeout: Some(Duration::default()), ..Default::default() })
}

fn cluster(c: u8, service: u8) -> Any {
    let config = cds::cluster::EdsClusterConfig { eds_config: ads(), service_name: format!("s{service}") };
    packed(&cds::Cluster {
        name: format!("c{c}"),
        eds_cluster_config: Some(config),
        cluster_discovery_type: Some(cds::cluster::ClusterDiscoveryType::Type(cds::cluster::DiscoveryType::Eds as i32)),
        ..Default::default()
    })
}

fn socket(port: u32) -> Option<core::Address> {
    let socket = core::SocketAddress {
        address: "127.0.0.1".into(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port)),
        ..Default::default()
    };
    Some(core::Address { address: Some(core::address::Address::SocketAddress(socket)) })
}

fn assignment(service: u8, port: u8) -> Any {
    let endpoint = eds::Endpoint { address: socket(port.into()), ..Default::default() };
    let one = eds::LbEndpoint {
        host_identifier: Some(eds::lb_endpoint::HostIdentifier::Endpoint(endpoint)),
        ..Default::default()
    };
    let place = eds::LocalityLbEndpoints { lb_endpoints: vec![one], ..Default::default() };
    packed(&eds::ClusterLoadAssignment {
        cluster_name: format!("s{service}"),
        endpoints: vec![place],
        ..Default::default()
    })
}

fn listener(l: u8, tables: &BTreeSet<u8>) -> Any {
    let chain = |(i, t): (usize, &u8)| {
        let rds = hcm::Rds { config_source: ads(), route_config_name: format!("t{t}") };
        let manager = hcm::HttpConnectionManager {
            stat_prefix: "s".into(),
            route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::Rds(rds)),
            ..Default::default()
        };
        let port = UInt32Value { value: i as u32 + 1 };
        lds::FilterChain {
            filter_chain_match: Some(lds::FilterChainMatch { destination_port: Some(port), ..Default::default() }),
            filters: vec![lds::Filter {
                name: "h".into(),
                config_type: Some(lds::filter::ConfigType::TypedConfig(packed(&manager))),
            }],
            ..Default::default()
        }
    };
    packed(&lds::Listener {
        name: format!("l{l}"),
        address: socket(80),
        filter_chains: tables.iter().enumerate().map(chain).collect(),
        default_filter_chain: Some(lds::FilterChain::default()),
        ..Default::default()
    })
}

fn table(t: u8, n: u8) -> Any {
    let host = rds::VirtualHost { name: format!("n{n}"), domains: vec!["*".into()], ..Default::default() };
    packed(&rds::RouteConfiguration { name: format!("t{t}"), virtual_hosts: vec![host], ..Default::default() })
}

fn apply(store: &mut Store, op: &Op) {
    let mut send = |t: Type, added: Vec<(String, Any)>, removed: Vec<String>, whole: bool| {
        let added = added.into_iter().map(|(n, a)| (n, "1".to_owned(), a)).collect();
        let out = store.update(t.url(), added, removed, whole, 0);
        assert_eq!(out.rejected, []);
    };
    match op {
        Op::Cluster(c, s) => send(Type::Cluster, vec![(format!("c{c}"), cluster(*c, *s))], vec![], false),
        Op::NoCluster(c) => send(Type::Cluster, vec![], vec![format!("c{c}")], false),
        Op::OnlyClusters(all) => {
            send(Type::Cluster, all.iter().map(|c| (format!("c{c}"), cluster(*c, 0))).collect(), vec![], true);
        }
        Op::Assignment(s, p) => {
            send(Type::ClusterLoadAssignment, vec![(format!("s{s}"), assignment(*s, *p))], vec![], false);
        }
        Op::NoAssignment(s) => send(Type::ClusterLoadAssignment, vec![], vec![format!("s{s}")], false),
        Op::Listener(l, t) => send(Type::Listener, vec![(format!("l{l}"), listener(*l, t))], vec![], false),
        Op::NoListener(l) => send(Type::Listener, vec![], vec![format!("l{l}")], false),
        Op::Table(t, n) => send(Type::RouteConfiguration, vec![(format!("t{t}"), table(*t, *n))], vec![], false),
        Op::NoTable(t) => send(Type::RouteConfiguration, vec![], vec![format!("t{t}")], false),
        Op::Publish => {}
    }
}

fn content(value: &Value) -> String {
    match value {
        Value::EndpointSet(s) => match &s.localities[0].endpoints[0].address {
            amesh_model::address::Address::Socket { port, .. } => port.to_string(),
            other => panic!("{other}"),
        },
        Value::RouteTable(t) => t.virtual_hosts[0].name.clone(),
        Value::Listener(l) => {
            let named = l.filter_chains.iter().map(|c| match &c.action {
                amesh_model::listener::ChainAction::Http(h) => match &h.routes {
                    amesh_model::listener::RouteSpecifier::Rds(name) => name[1..].parse::<u8>().unwrap(),
                    other => panic!("{other:?}"),
                },
                other => panic!("{other:?}"),
            });
            format!("{:?}", named.collect::<BTreeSet<_>>())
        }
        Value::Cluster(_) | Value::ListenerIndex(_) => String::new(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_store_is_a_full_scan_at_less_cost(ops in proptest::collection::vec(op(), 1..60)) {
        let (mut store, mut naive, mut zone) = (Store::new(), Naive::default(), BTreeMap::new());
        let mut names = amesh_xds::store::Names::default();
        for op in ops.into_iter().chain([Op::Publish]) {
            apply(&mut store, &op);
            naive.apply(&op);
            let change = store.take_names_change();
            names.eds.retain(|n| !change.remove.eds.contains(n));
            names.rds.retain(|n| !change.remove.rds.contains(n));
            names.eds.extend(change.add.eds);
            names.rds.extend(change.add.rds);
            prop_assert_eq!(&names, &store.names_needed());
            prop_assert_eq!(names.eds.len(), naive.services().len());
            prop_assert_eq!(names.rds.len(), naive.used_tables().len());
            if !matches!(op, Op::Publish) {
                continue;
            }
            let Batch { put, remove } = store.take_batch().unwrap_or_default();
            let kinds: Vec<_> = put.iter().map(|i| Kind::ALL.iter().position(|k| *k == i.kind)).collect();
            prop_assert!(kinds.is_sorted(), "make before break: {:?}", kinds);
            for i in put.into_iter().filter(|i| i.kind != Kind::ListenerIndex) {
                zone.insert((i.kind, i.name), content(&i.value));
            }
            for key in remove {
                zone.remove(&key);
            }
            prop_assert_eq!(&zone, &naive.zone());
            let everything = store.everything(0).unwrap_or_default().put.into_iter();
            let again: BTreeMap<_, _> = everything.map(|i| ((i.kind, i.name), content(&i.value))).collect();
            let again: BTreeMap<_, _> = again.into_iter().filter(|((k, _), _)| *k != Kind::ListenerIndex).collect();
            prop_assert_eq!(&again, &zone, "a new zone gets the same");
            let status = store.status();
            prop_assert_eq!(status.resources["RouteConfiguration"].count, naive.tables.len());
            prop_assert_eq!(status.resources["ClusterLoadAssignment"].count, naive.assignments.len());
        }
    }
}
