//! What making routes looks up of clusters. It is noted, so that routes are made anew when it changes, and only then.

use crate::upstream;
use crate::usage::Usage;
use amesh_model::cluster::Cluster;
use amesh_model::endpoint::EndpointSet;
use amesh_model::hash_policy::HashPolicy;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// All clusters, by name.
pub(crate) type Clusters = BTreeMap<String, Arc<Cluster>>;
/// All endpoints, by cluster.
pub(crate) type Endpoints = BTreeMap<String, Arc<EndpointSet>>;

/// What routes depend on of a cluster.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Facts {
    /// Why no request can be sent there.
    pub unusable: Option<String>,
    /// It picks by hash; and the policy that goes before the route's.
    pub hashes: Option<Vec<HashPolicy>>,
    /// Time to connect in ms.
    pub connect_timeout: u64,
}

impl Facts {
    fn of(cluster: &Cluster) -> Facts {
        Facts {
            unusable: upstream::unusable(cluster),
            hashes: cluster.lb_policy.hashes().then(|| cluster.hashing.policy.clone()),
            connect_timeout: cluster.connect_timeout,
        }
    }
}

/// What was looked up, and how clusters are used.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Seen {
    facts: BTreeMap<String, Option<Facts>>,
    nodes: BTreeMap<String, Vec<String>>,
    /// Each cluster with a way in which it is used.
    pub uses: BTreeSet<(String, Usage)>,
}

impl Seen {
    /// Whether any of it is not as it was.
    pub fn is_stale(&self, names: &BTreeSet<String>, clusters: &Clusters, endpoints: &Endpoints) -> bool {
        names.iter().any(|name| {
            self.facts.get(name).is_some_and(|seen| *seen != facts(name, clusters))
                || self.nodes.get(name).is_some_and(|seen| *seen != nodes(name, clusters, endpoints))
        })
    }
}

/// Looks clusters up.
pub(crate) struct Look<'a> {
    clusters: &'a Clusters,
    endpoints: &'a Endpoints,
    /// What was looked up.
    pub seen: Seen,
}

impl<'a> Look<'a> {
    /// Nothing was looked up yet.
    pub fn new(clusters: &'a Clusters, endpoints: &'a Endpoints) -> Look<'a> {
        Look { clusters, endpoints, seen: Seen::default() }
    }

    /// A cluster, if there is one of this name.
    pub fn cluster(&mut self, name: &str) -> Option<Facts> {
        let facts = facts(name, self.clusters);
        self.seen.facts.insert(name.to_owned(), facts.clone());
        facts
    }

    /// Addresses of the endpoints of a cluster that take requests.
    pub fn nodes(&mut self, name: &str) -> Vec<String> {
        let nodes = nodes(name, self.clusters, self.endpoints);
        self.seen.nodes.insert(name.to_owned(), nodes.clone());
        nodes
    }

    /// The id of the upstream of a cluster that is used so.
    pub fn upstream(&mut self, cluster: &str, usage: &Usage) -> Arc<str> {
        self.seen.uses.insert((cluster.to_owned(), usage.clone()));
        usage.upstream_id(cluster)
    }

    /// The id of an upstream without endpoints: APISIX answers 503.
    pub fn nowhere(&mut self) -> Arc<str> {
        self.upstream(NOWHERE, &Usage::default())
    }
}

/// The name of no cluster, and of an upstream without endpoints.
pub(crate) const NOWHERE: &str = "";

fn facts(name: &str, clusters: &Clusters) -> Option<Facts> {
    clusters.get(name).map(|cluster| Facts::of(cluster))
}

fn nodes(name: &str, clusters: &Clusters, endpoints: &Endpoints) -> Vec<String> {
    match (clusters.get(name), endpoints.get(name)) {
        (Some(cluster), Some(set)) => upstream::addresses(cluster, set),
        _ => Vec::new(),
    }
}
