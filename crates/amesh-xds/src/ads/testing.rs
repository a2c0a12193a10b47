//! A stand-in for the store: remembers what was applied, rejects what it is told to.

use super::{Apply, Rejected, Resource};
use crate::store::{Names, NamesChange};
use crate::translate;
use envoy_types::pb::envoy::config::{
    cluster::v3::Cluster, core::v3::Node, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener,
    route::v3::RouteConfiguration,
};
use envoy_types::pb::google::protobuf::Any;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};

pub const CDS: &str = translate::CLUSTER;
pub const EDS: &str = translate::CLUSTER_LOAD_ASSIGNMENT;
pub const LDS: &str = translate::LISTENER;
pub const RDS: &str = translate::ROUTE_CONFIGURATION;

#[derive(Default)]
pub struct Fake {
    pub held: BTreeMap<(String, String), String>,
    pub wanted: Names,
    pub bad: BTreeSet<String>,
    told: Names,
}

impl Fake {
    pub fn want(&mut self, type_url: &'static str, names: &[&str]) {
        let names = names.iter().map(|n| n.to_string()).collect();
        *(if type_url == EDS { &mut self.wanted.eds } else { &mut self.wanted.rds }) = names;
    }

    pub fn hold(&mut self, type_url: &str, name: &str, version: &str) {
        self.held.insert((type_url.to_owned(), name.to_owned()), version.to_owned());
    }

    /// `name@version` of all that is held of a type.
    pub fn holds(&self, type_url: &str) -> String {
        let of_type = self.held.iter().filter(|((t, _), _)| t == type_url);
        of_type.map(|((_, n), v)| format!("{n}@{v}")).collect::<Vec<_>>().join(" ")
    }
}

impl Apply for Fake {
    fn apply(&mut self, type_url: &str, added: Vec<Resource>, removed: Vec<String>, whole: bool) -> Vec<Rejected> {
        if whole {
            let there: BTreeSet<&str> = added.iter().map(|r| r.name.as_str()).collect();
            self.held.retain(|(t, n), _| t != type_url || there.contains(n.as_str()));
        }
        for name in removed {
            self.held.remove(&(type_url.to_owned(), name));
        }
        let (bad, good): (Vec<_>, Vec<_>) = added.into_iter().partition(|r| self.bad.contains(&r.name));
        for r in good {
            self.hold(type_url, &r.name, &r.version);
        }
        bad.into_iter()
            .map(|r| Rejected { name: r.name, field: "lb_policy".into(), reason: "is not supported".into() })
            .collect()
    }

    fn wanted(&self) -> Names {
        self.wanted.clone()
    }

    fn take_change(&mut self) -> NamesChange {
        let now = self.wanted.clone();
        let before = std::mem::replace(&mut self.told, now.clone());
        let minus = |a: &BTreeSet<String>, b: &BTreeSet<String>| a.difference(b).cloned().collect();
        NamesChange {
            add: Names { eds: minus(&now.eds, &before.eds), rds: minus(&now.rds, &before.rds) },
            remove: Names { eds: minus(&before.eds, &now.eds), rds: minus(&before.rds, &now.rds) },
        }
    }

    fn held(&self, type_url: &str) -> Vec<(String, String)> {
        self.held.iter().filter(|((t, _), _)| t == type_url).map(|((_, n), v)| (n.clone(), v.clone())).collect()
    }
}

pub fn node() -> Node {
    Node { id: "sidecar~10.0.0.1~app.default~default.svc.cluster.local".into(), ..Node::default() }
}

pub fn any(type_url: &str, name: &str) -> Any {
    let name = name.to_owned();
    let value = match type_url {
        CDS => Cluster { name, ..Default::default() }.encode_to_vec(),
        EDS => ClusterLoadAssignment { cluster_name: name, ..Default::default() }.encode_to_vec(),
        LDS => Listener { name, ..Default::default() }.encode_to_vec(),
        _ => RouteConfiguration { name, ..Default::default() }.encode_to_vec(),
    };
    Any { type_url: type_url.to_owned(), value }
}
