//! What stands after any row of batches is what one batch with the same contents makes.

mod common;
#[path = "../../amesh-dataplane/tests/common/mod.rs"]
mod model;

use amesh_apisix::plugins::{parse, PluginSet};
use amesh_apisix::{Changes, Destination, Key, Object, Options, Translator};
use amesh_model::address::Address;
use amesh_model::batch::{Batch, Item, Value as Resource};
use amesh_model::cluster::{Discovery, LbPolicy};
use amesh_model::listener::{ChainAction, FilterChain, FilterChainMatch, RouteSpecifier};
use amesh_model::retry::retry_on;
use amesh_model::route::{ClusterSpecifier, MirrorPolicy, RouteAction, RouteTable};
use amesh_model::Kind;
use common::put;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::net::SocketAddr;

const CLUSTERS: [&str; 4] = ["a", "b", "c", "d"];

fn cluster() -> impl Strategy<Value = Resource> {
    (0..CLUSTERS.len(), 0u8..4).prop_map(|(name, kind)| {
        let mut cluster = common::plain_cluster(CLUSTERS[name]);
        match kind {
            0 => cluster.discovery = Discovery::OriginalDst,
            1 => cluster.lb_policy = LbPolicy::Maglev { table_size: 65537 },
            2 => cluster.connect_timeout = 250,
            _ => {}
        }
        Resource::Cluster(cluster)
    })
}

fn endpoints() -> impl Strategy<Value = Resource> {
    (0..CLUSTERS.len(), prop::collection::btree_set(1u8..5, 0..3)).prop_map(|(name, hosts)| {
        let addresses: Vec<String> = hosts.iter().map(|n| format!("10.0.0.{n}:80")).collect();
        common::endpoints(CLUSTERS[name], &addresses.iter().map(String::as_str).collect::<Vec<_>>())
    })
}

fn table() -> impl Strategy<Value = Resource> {
    let route = (prop::sample::select(vec!["/", "/a", "/a/b"]), 0..CLUSTERS.len(), 0u8..6);
    let host = prop::collection::vec(route, 0..4);
    (0u8..2, prop::collection::vec(host, 1..3)).prop_map(|(name, hosts)| {
        let mut hosts: Vec<_> = hosts
            .into_iter()
            .map(|routes| {
                let route = |(path, cluster, kind): (&str, usize, u8)| {
                    let mut forward = model::forward(CLUSTERS[cluster]);
                    match kind {
                        0 => (forward.retry.num_retries, forward.retry.retry_on) = (2, retry_on::CONNECT_FAILURE),
                        1 => forward.timeout = 1500,
                        2 => {
                            let clusters =
                                vec![model::arm(CLUSTERS[cluster], 1), model::arm("d", 2), model::arm("e", 1)];
                            let random_header = String::new();
                            forward.cluster = ClusterSpecifier::Weighted { clusters, total_weight: 4, random_header };
                        }
                        3 => forward.mirrors.push(MirrorPolicy {
                            cluster: "a".into(),
                            cluster_header: String::new(),
                            runtime_fraction: None,
                            disable_shadow_host_suffix_append: false,
                            host_rewrite_literal: String::new(),
                        }),
                        _ => {}
                    }
                    model::route("", model::prefix(path), RouteAction::Route(Box::new(forward)))
                };
                model::virtual_host("h", routes.into_iter().map(route).collect())
            })
            .collect();
        let second = hosts.pop().filter(|_| hosts.len() == 1);
        let mut all = vec![(&["x.y", "*.y"][..], hosts.pop().unwrap_or_else(|| model::virtual_host("h", vec![])))];
        all.extend(second.map(|host| (&["*"][..], host)));
        let mut table: RouteTable = model::table(all);
        table.name = format!("t{name}");
        Resource::RouteTable(table)
    })
}

fn listener() -> impl Strategy<Value = Resource> {
    let addresses = vec!["0.0.0.0:80", "10.0.0.1:80", "0.0.0.0:81"];
    (0u8..4, prop::sample::select(addresses), 0u8..4).prop_map(|(name, address, table)| {
        let action = match table {
            2 => ChainAction::Refuse("a filter".into()),
            3 => model::chain("a", FilterChainMatch::default()).action,
            table => {
                let mut manager = model::hcm();
                manager.routes = RouteSpecifier::Rds(format!("t{table}"));
                ChainAction::Http(Box::new(manager))
            }
        };
        let chain = FilterChain { name: "f".into(), filter_chain_match: FilterChainMatch::default(), action };
        let mut listener = model::listener(vec![chain]);
        listener.name = format!("l{name}");
        listener.use_original_dst = name == 3;
        listener.addresses = vec![Address::from(address.parse::<SocketAddr>().unwrap())];
        Resource::Listener(listener)
    })
}

#[derive(Clone, Debug)]
enum Step {
    Batch(Vec<Resource>, Vec<(Kind, String)>),
    Plugins(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let resource = prop_oneof![cluster(), endpoints(), table(), listener()];
    let kind = prop::sample::select(vec![Kind::Cluster, Kind::EndpointSet, Kind::RouteTable, Kind::Listener]);
    let name = prop::sample::select(vec!["a", "b", "c", "d", "t0", "t1", "l0", "l1", "l3"]);
    let gone = (kind, name).prop_map(|(kind, name)| (kind, name.to_owned()));
    let batch = (prop::collection::vec(resource, 0..5), prop::collection::vec(gone, 0..3));
    prop_oneof![9 => batch.prop_map(|(put, remove)| Step::Batch(put, remove)), 1 => any::<bool>().prop_map(Step::Plugins)]
}

/// A store of what the changes say.
#[derive(Default)]
struct Store(BTreeMap<Key, Object>);

impl Store {
    fn apply(&mut self, changes: &Changes) -> Result<(), TestCaseError> {
        for object in &changes.put {
            let old = self.0.insert(object.key.clone(), object.clone());
            prop_assert_ne!(old.as_ref(), Some(object), "nothing is written that is there already");
            self.all_names_exist()?;
        }
        for key in &changes.delete {
            prop_assert!(self.0.remove(key).is_some(), "{} is not there", key);
            self.all_names_exist()?;
        }
        Ok(())
    }

    /// At no time does an object name one that is not there.
    fn all_names_exist(&self) -> Result<(), TestCaseError> {
        let ids: Vec<&str> = self.0.keys().map(|key| &*key.id).collect();
        for object in self.0.values() {
            let json = common::json(object);
            let arms = json["plugins"]["traffic-split"]["rules"][0]["weighted_upstreams"].as_array();
            let arms = arms.into_iter().flatten().map(|arm| &arm["upstream_id"]);
            for named in [&json["upstream_id"], &json["plugin_config_id"]].into_iter().chain(arms) {
                let there = named.as_str().is_none_or(|id| ids.contains(&id));
                prop_assert!(there, "{} names {}, which is not there", object.key, named);
            }
        }
        Ok(())
    }
}

fn options() -> impl Strategy<Value = Options> {
    let destination = prop::sample::select(vec![Destination::Original, Destination::Server, Destination::Ignored]);
    (destination, any::<bool>()).prop_map(|(destination, stream_routes)| Options {
        destination,
        stream_routes,
        ..Options::default()
    })
}

const PLUGINS: &str = "{apiVersion: apisix.apache.org/v1alpha1, kind: AmeshPluginConfig,
  spec: {plugins: [{name: limit-count, config: {count: 1}}]}}";

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_row_of_batches_is_as_one(options in options(), steps in prop::collection::vec(step(), 1..8)) {
        let mut translator = Translator::new(options.clone());
        let mut store = Store::default();
        let mut world: BTreeMap<(u8, String), Item> = BTreeMap::new();
        let mut plugins = PluginSet::default();
        for step in steps {
            let changes = match step {
                Step::Batch(resources, remove) => {
                    let batch = Batch { put: resources.into_iter().map(put).collect(), remove };
                    for item in &batch.put {
                        world.insert((item.kind as u8, item.name.clone()), item.clone());
                    }
                    for (kind, name) in &batch.remove {
                        world.remove(&(*kind as u8, name.clone()));
                    }
                    translator.apply(&batch)
                }
                Step::Plugins(on) => {
                    plugins = match on {
                        true => PluginSet::select(&parse("p", PLUGINS).unwrap(), &BTreeMap::new()),
                        false => PluginSet::default(),
                    };
                    translator.set_plugins(plugins.clone())
                }
            };
            store.apply(&changes)?;
        }
        let mut scratch = Translator::new(options);
        scratch.set_plugins(plugins);
        scratch.apply(&Batch { put: world.into_values().collect(), remove: vec![] });
        prop_assert_eq!(store.0.values().collect::<Vec<_>>(), scratch.objects().collect::<Vec<_>>());
        prop_assert_eq!(translator.objects().collect::<Vec<_>>(), scratch.objects().collect::<Vec<_>>());
        prop_assert_eq!(translator.refusals().collect::<Vec<_>>(), scratch.refusals().collect::<Vec<_>>());
        scratch.objects().for_each(common::schema::assert_valid);
    }
}
