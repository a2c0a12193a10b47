//! Clusters, their endpoints, and names to resolve.

use super::{decode, move_user, same_name, Arrival, Good, Serving, Store, Type, Value};
use crate::translate::{self, DnsCluster, DnsFamily, DnsRefresh, Invalid, Notes, Sockets, Source};
use amesh_model::endpoint::{EndpointSet, HealthStatus};
use amesh_model::{cluster::Cluster, plan, Kind};
use envoy_types::pb::envoy::config::{cluster::v3 as cds, endpoint::v3 as eds};
use prost::Message;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

pub(super) type HostKey = (String, DnsFamily);

/// A cluster.
pub(super) struct ClusterRecord {
    pub(super) good: Good,
    /// Accepted, not yet warm.
    pub(super) next: Option<Next>,
    /// What is published, as far as its endpoints depend on it.
    live: Option<Facts>,
    /// Where that is not the last good.
    serving: Option<Serving>,
}

pub(super) struct Next {
    facts: Facts,
    inline: Option<EndpointSet>,
    deadline: Option<u64>,
}

#[derive(Clone)]
struct Facts {
    feed: Feed,
    sockets: Arc<Sockets>,
    cluster: Arc<Cluster>,
}

#[derive(Clone)]
enum Feed {
    None,
    Inline,
    Eds(String),
    Dns(Arc<DnsCluster>),
}

/// A cluster load assignment.
pub(super) struct AssignmentRecord {
    pub(super) good: Good,
}

/// A name that clusters want resolved.
#[derive(Default)]
pub(super) struct HostRecord {
    users: BTreeSet<String>,
    /// `None`: not resolved yet.
    answer: Option<Vec<IpAddr>>,
    /// The last answer that had an address.
    last: Vec<IpAddr>,
}

/// A name to resolve.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DnsName {
    /// The name.
    pub host: String,
    /// Which of its addresses are wanted.
    pub family: DnsFamily,
    /// When it is resolved again: what suits all clusters that want it.
    pub refresh: DnsRefresh,
}

impl ClusterRecord {
    /// Version and bytes of what is published.
    pub(super) fn published(&self) -> Option<(&str, &[u8])> {
        let former = self.serving.as_ref().map(|s| (s.version.as_str(), s.bytes.as_slice()));
        self.live.as_ref().map(|_| former.unwrap_or((&self.good.version, &self.good.bytes)))
    }

    fn facts(&self) -> impl Iterator<Item = &Facts> {
        self.live.iter().chain(self.next.iter().map(|n| &n.facts))
    }

    fn services(&self) -> BTreeSet<String> {
        let service = |f: &Facts| match &f.feed {
            Feed::Eds(s) => Some(s.clone()),
            _ => None,
        };
        self.facts().filter_map(service).collect()
    }

    fn hosts(&self) -> BTreeSet<HostKey> {
        let dns = |f: &'_ Facts| match &f.feed {
            Feed::Dns(d) => Some(d.clone()),
            _ => None,
        };
        self.facts().filter_map(dns).flat_map(|d| hosts(&d).collect::<Vec<_>>()).collect()
    }
}

fn hosts(d: &DnsCluster) -> impl Iterator<Item = HostKey> + '_ {
    d.hosts().map(|h| (h.to_owned(), d.family))
}

impl Store {
    pub(super) fn put_cluster(&mut self, a: Arrival<'_>) -> Result<(), Invalid> {
        let message: cds::Cluster = decode(&a)?;
        same_name(&message.name, &a, "name")?;
        let mut notes = Notes::new();
        let t = translate::cluster(&message, &mut notes)?;
        let (feed, inline, wait) = match t.source {
            Source::None => (Feed::None, None, 0),
            Source::Inline(set) => (Feed::Inline, Some(set), 0),
            Source::Eds { service, wait } => (Feed::Eds(service), None, wait),
            Source::Dns(d) => (Feed::Dns(d), None, 0),
        };
        let (name, deadline) = (a.name.to_owned(), (wait > 0).then_some(a.now.saturating_add(wait)));
        let facts = Facts { feed, sockets: t.sockets, cluster: Arc::new(t.cluster) };
        let next = Next { facts, inline, deadline };
        let former = self.clusters.remove(&name);
        let (services, hosts) = former.as_ref().map(|f| (f.services(), f.hosts())).unwrap_or_default();
        let (mut good, live, waited, serving) = match former {
            None => (None, None, None, None),
            Some(f) => (Some(f.good), f.live, f.next, f.serving),
        };
        let serving = live.as_ref().and(serving.or_else(|| good.as_mut().map(Serving::from)));
        if let Some(at) = waited.and_then(|n| n.deadline) {
            self.deadlines.remove(&(at, Type::Cluster, name.clone()));
        }
        if let Some(at) = deadline {
            self.deadlines.insert((at, Type::Cluster, name.clone()));
        }
        let good = self.keep(Type::Cluster, a, notes, good);
        self.clusters.insert(name.clone(), ClusterRecord { good, next: Some(next), live, serving });
        self.refer(&name, &services, &hosts);
        self.promote_cluster(&name, false);
        Ok(())
    }

    pub(super) fn remove_cluster(&mut self, name: &str) -> bool {
        let Some(record) = self.clusters.remove(name) else { return false };
        self.ledger.remove(&record.good.notes);
        self.added.remove(name);
        if let Some(at) = record.next.as_ref().and_then(|n| n.deadline) {
            self.deadlines.remove(&(at, Type::Cluster, name.to_owned()));
        }
        if let Some(live) = &record.live {
            self.unpublish(Kind::Cluster, name);
            if !matches!(live.feed, Feed::None) {
                self.unpublish(Kind::EndpointSet, name);
            }
        }
        self.refer(name, &record.services(), &record.hosts());
        true
    }

    /// Brings the indexes of what clusters refer to up to date.
    fn refer(&mut self, name: &str, services: &BTreeSet<String>, hosts: &BTreeSet<HostKey>) {
        let record = self.clusters.get(name);
        let (services_now, hosts_now) = record.map(|r| (r.services(), r.hosts())).unwrap_or_default();
        let (first, last) = move_user(&mut self.service_users, name, services, &services_now);
        for service in first {
            self.need(Type::ClusterLoadAssignment, &service, true);
        }
        for service in last {
            self.need(Type::ClusterLoadAssignment, &service, false);
            self.drop_assignment(&service);
            self.rejections.remove(&(Type::ClusterLoadAssignment, service));
        }
        for host in hosts_now.difference(hosts) {
            self.hosts.entry(host.clone()).or_default().users.insert(name.to_owned());
        }
        for host in hosts.difference(&hosts_now) {
            if let Some(record) = self.hosts.get_mut(host) {
                record.users.remove(name);
                if record.users.is_empty() {
                    self.hosts.remove(host);
                }
            }
        }
        if !hosts.is_empty() || !hosts_now.is_empty() {
            self.dns_generation += 1;
        }
    }

    /// Publishes a cluster that waits, if it is warm, or at any rate when `force` says so.
    pub(super) fn promote_cluster(&mut self, name: &str, force: bool) {
        self.promote_with(name, None, force);
    }

    /// The same with endpoints, and their version, that just came.
    fn promote_with(&mut self, name: &str, came: Option<(EndpointSet, String)>, force: bool) {
        let Some(record) = self.clusters.get_mut(name) else { return };
        let Some(next) = record.next.as_mut() else { return };
        let inline = next.inline.take();
        let (facts, version) = (next.facts.clone(), record.good.version.clone());
        let set = match &facts.feed {
            Feed::None => None,
            Feed::Inline => inline.map(|s| (s, version.clone())),
            Feed::Eds(_) | Feed::Dns(_) => match (came.or_else(|| self.endpoints(name, &facts, &version)), force) {
                (Some(set), _) => Some(set),
                (None, false) => return,
                (None, true) => Some((EndpointSet::empty(name), version.clone())),
            },
        };
        let Some(record) = self.clusters.get_mut(name) else { return };
        let (services, hosts) = (record.services(), record.hosts());
        let Some(next) = record.next.take() else { return };
        let had_endpoints = record.live.as_ref().is_some_and(|l| !matches!(l.feed, Feed::None));
        record.live = Some(next.facts);
        record.serving = None;
        if let Some(at) = next.deadline {
            self.deadlines.remove(&(at, Type::Cluster, name.to_owned()));
        }
        match set {
            Some((set, version)) => self.publish_endpoints(&facts, &version, set),
            None if had_endpoints => self.unpublish(Kind::EndpointSet, name),
            None => {}
        }
        self.publish(name, &version, Value::Cluster(Cluster::clone(&facts.cluster)));
        self.refer(name, &services, &hosts);
    }

    /// Publishes the endpoints of a cluster, with the plan of how they are picked.
    fn publish_endpoints(&mut self, facts: &Facts, version: &str, mut set: EndpointSet) {
        if facts.cluster.slow_start.is_some() {
            self.stamp(&mut set);
        }
        plan::build(&mut set, &facts.cluster);
        self.publish(&facts.cluster.name, version, Value::EndpointSet(set));
    }

    /// Writes down since when each endpoint is there and healthy.
    fn stamp(&mut self, set: &mut EndpointSet) {
        let known = self.added.remove(&set.cluster).unwrap_or_default();
        let endpoints = set.localities.iter_mut().flat_map(|l| &mut l.endpoints);
        let healthy = endpoints.filter(|e| e.health == HealthStatus::Healthy);
        let stamped = healthy.map(|e| {
            e.added = known.get(&e.address).copied().unwrap_or(self.now);
            (e.address.clone(), e.added)
        });
        let stamped = stamped.collect();
        self.added.insert(set.cluster.clone(), stamped);
    }

    /// The endpoints of a cluster and their version; `None` when they did not come yet.
    fn endpoints(&self, name: &str, facts: &Facts, version: &str) -> Option<(EndpointSet, String)> {
        match &facts.feed {
            Feed::None | Feed::Inline => None,
            Feed::Eds(service) => {
                let good = &self.assignments.get(service)?.good;
                // Both held when the assignment was accepted.
                let message = eds::ClusterLoadAssignment::decode(good.bytes.as_slice()).ok()?;
                let set = translate::endpoint_set(name, &facts.sockets, &message, &mut Notes::new()).ok()?;
                Some((set, good.version.clone()))
            }
            Feed::Dns(d) => {
                let answer = |host: &str| self.hosts.get(&(host.to_owned(), d.family))?.answer.as_deref();
                if d.hosts().any(|h| answer(h).is_none()) {
                    return None;
                }
                // Of a logical cluster the last address stays.
                let last = |host: &str| Some(self.hosts.get(&(host.to_owned(), d.family))?.last.as_slice());
                let found = |host: &str| match answer(host) {
                    Some([]) | None if d.first_only => last(host).unwrap_or_default(),
                    answer => answer.unwrap_or_default(),
                };
                let set = translate::dns_assignment(name, d, found);
                Some((set, version.to_owned()))
            }
        }
    }

    pub(super) fn put_assignment(&mut self, a: Arrival<'_>) -> Result<(), Invalid> {
        let message: eds::ClusterLoadAssignment = decode(&a)?;
        same_name(&message.cluster_name, &a, "cluster_name")?;
        let uses = |f: &Facts| matches!(&f.feed, Feed::Eds(s) if s == a.name);
        let mut notes = Notes::new();
        let mut sets = Vec::new();
        for name in self.service_users.get(a.name).into_iter().flatten() {
            let Some(record) = self.clusters.get(name) else { continue };
            let next = record.next.as_ref().map(|n| &n.facts).filter(|f| uses(f));
            let Some(facts) = next.or(record.live.as_ref().filter(|f| uses(f))) else { continue };
            // What is wrong with it, and what is to be said of it, does not depend on the cluster.
            notes = Notes::new();
            let set = translate::endpoint_set(name, &facts.sockets, &message, &mut notes)?;
            sets.push((facts.clone(), next.is_some(), set));
        }
        if sets.is_empty() {
            translate::endpoint_set(a.name, &Sockets::default(), &message, &mut notes)?;
        }
        let (service, version) = (a.name.to_owned(), a.version.clone());
        let former = self.assignments.remove(&service).map(|r| r.good);
        let good = self.keep(Type::ClusterLoadAssignment, a, notes, former);
        self.assignments.insert(service, AssignmentRecord { good });
        for (facts, waits, set) in sets {
            match waits {
                true => self.promote_with(&facts.cluster.name, Some((set, version.clone())), false),
                false => self.publish_endpoints(&facts, &version, set),
            }
        }
        Ok(())
    }

    /// A removal while a cluster has its endpoints from it is left alone, as in Envoy.
    pub(super) fn remove_assignment(&mut self, name: &str) -> bool {
        !self.service_users.contains_key(name) && self.drop_assignment(name)
    }

    fn drop_assignment(&mut self, name: &str) -> bool {
        let record = self.assignments.remove(name);
        if let Some(r) = &record {
            self.ledger.remove(&r.good.notes);
        }
        record.is_some()
    }

    /// The names to resolve.
    pub fn dns_names(&self) -> Vec<DnsName> {
        let one = |((host, family), record): (&HostKey, &HostRecord)| -> Option<DnsName> {
            let clusters = record.users.iter().filter_map(|n| self.clusters.get(n));
            let wanted = clusters.flat_map(ClusterRecord::facts).filter_map(|f| match &f.feed {
                Feed::Dns(d) if hosts(d).any(|key| key == (host.clone(), *family)) => Some(d.refresh),
                _ => None,
            });
            Some(DnsName { host: host.clone(), family: *family, refresh: wanted.reduce(DnsRefresh::and)? })
        };
        self.hosts.iter().filter_map(one).collect()
    }

    /// The names that were resolved.
    pub(super) fn dns_answers(&self) -> impl Iterator<Item = (&str, DnsFamily, &[IpAddr])> {
        self.hosts.iter().filter_map(|(k, r)| Some((k.0.as_str(), k.1, r.answer.as_deref()?)))
    }

    /// A number that changes when [`Store::dns_names`] may have.
    pub fn dns_generation(&self) -> u64 {
        self.dns_generation
    }

    /// Takes in the addresses of a name, in the order in which they came, at a Unix time in ms. `None`: it could not be resolved; what was
    /// known stays, and at first there is nothing. No addresses: it has none any more, as in Envoy.
    pub fn dns_result(&mut self, host: &str, family: DnsFamily, addresses: Option<Vec<IpAddr>>, now: u64) {
        self.now = now;
        let Some(record) = self.hosts.get_mut(&(host.to_owned(), family)) else { return };
        let answer = match (addresses, &record.answer) {
            (None, Some(_)) => return,
            (None, None) => Vec::new(),
            (Some(a), Some(known)) if a == *known => return,
            (Some(a), _) => a,
        };
        if !answer.is_empty() {
            record.last.clone_from(&answer);
        }
        record.answer = Some(answer);
        for name in record.users.clone() {
            let Some(record) = self.clusters.get(&name) else { continue };
            let uses =
                |f: &Facts| matches!(&f.feed, Feed::Dns(d) if d.family == family && d.hosts().any(|h| h == host));
            if record.next.as_ref().is_some_and(|n| uses(&n.facts)) {
                self.promote_cluster(&name, false);
            } else if let Some(live) = record.live.as_ref().filter(|l| uses(l)) {
                let facts = live.clone();
                if let Some((set, version)) = self.endpoints(&name, &facts, &record.good.version) {
                    self.publish_endpoints(&facts, &version, set);
                }
            }
        }
    }

    /// What a cluster that is not warm waits for.
    pub(super) fn cluster_waits_for(&self, record: &ClusterRecord) -> Vec<String> {
        match record.next.as_ref().map(|n| &n.facts.feed) {
            Some(Feed::Eds(service)) => vec![format!("ClusterLoadAssignment \"{service}\"")],
            Some(Feed::Dns(d)) => {
                let open = hosts(d).filter(|h| self.hosts.get(h).is_none_or(|r| r.answer.is_none()));
                open.map(|(host, _)| format!("the addresses of \"{host}\"")).collect()
            }
            _ => Vec::new(),
        }
    }
}
