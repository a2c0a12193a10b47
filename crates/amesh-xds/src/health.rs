//! The health of endpoints at run time: active checks, run once for all workers, and what outlier detection decides at
//! its intervals. Who eject endpoints for failures in a row are the workers.
//!
//! What is found stands in words of shared memory ([`amesh_model::vitals`]), which survive updates of their cluster and
//! the end of this thread. [`Health`] follows what is published and decides; [`Schedule`] does the checks and lives only
//! while the thread runs.
//!
//! Envoy does not use a new cluster before its endpoints were checked once. Here it is used at once, and each endpoint
//! counts as healthy until its first result; one that comes to a cluster later waits for its first result, as in Envoy.

mod machine;
mod outlier;
mod probe;
mod schedule;

#[cfg(test)]
mod tests;

use crate::engine::{Level, Log};
use crate::store::{Batch, Value};
use amesh_model::address::Address;
use amesh_model::cluster::Cluster;
use amesh_model::endpoint::{Endpoint, EndpointSet};
use amesh_model::health::{HealthCheck, OutlierDetection};
use amesh_model::proxy_protocol::ProxyProtocol;
use amesh_model::vitals::{
    ClusterVitals, EndpointVitals, CHECKED, DEGRADED_ACTIVE_HC, FAILED_ACTIVE_HC, FAILED_OUTLIER_CHECK,
    PENDING_ACTIVE_HC,
};
use amesh_model::Kind;
pub use machine::Checked;
use machine::{Streak, Transition};
use probe::Probe;
use schedule::Change;
pub(crate) use schedule::Schedule;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The run-time words of a zone. What is not published there has none.
pub trait Vitals {
    /// Whether there is a place for them at all. Without one nothing is checked: nobody would learn of it.
    fn are_kept(&self) -> bool {
        true
    }

    /// Those of a cluster.
    fn cluster(&self, _cluster: &str) -> Option<ClusterVitals<'_>> {
        None
    }

    /// Those of an endpoint.
    fn endpoint(&self, _cluster: &str, _endpoint: &Address) -> Option<EndpointVitals<'_>> {
        None
    }

    /// Whether the cluster ever had a request.
    fn had_traffic(&self, _cluster: &str) -> bool {
        false
    }

    /// The clock of ejections, which workers read too: monotonic, ms, wrapping.
    fn clock(&self) -> u32 {
        0
    }
}

/// An endpoint of a cluster.
struct Member {
    endpoint: Endpoint,
    /// Its check, where it is checked.
    id: Option<u64>,
    streak: Streak,
    /// Drawn anew while it is well, added to the time that it is ejected.
    jitter: u32,
    /// Flags that were told of.
    told: u32,
}

/// A cluster that is looked after.
struct Watched {
    check: Option<Arc<HealthCheck>>,
    outlier: Option<Box<OutlierDetection>>,
    bind: Vec<IpAddr>,
    proxy_protocol: Option<Box<ProxyProtocol>>,
    members: Vec<Member>,
    /// End of the interval of outlier detection.
    due: Option<Instant>,
    /// Endpoints came once: those that come now wait for their first result.
    filled: bool,
}

/// See [the module](self).
#[derive(Default)]
pub(crate) struct Health {
    clusters: HashMap<String, Watched>,
    /// Cluster of each check.
    checks: HashMap<u64, String>,
    next_id: u64,
    changes: Vec<Change>,
    mark: Option<u32>,
}

impl Health {
    /// The mark of the sockets of checks from now on.
    pub(crate) fn set_mark(&mut self, mark: Option<u32>) {
        if self.mark != mark {
            self.mark = mark;
            self.restart_all();
        }
    }

    /// What is to be checked has changed thus.
    pub(crate) fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Has everything checked anew: nothing is under way.
    pub(crate) fn restart_all(&mut self) {
        self.changes.clear();
        let ids = std::mem::take(&mut self.checks);
        self.changes.extend(ids.into_keys().map(Change::Stop));
        let names: Vec<String> = self.clusters.keys().cloned().collect();
        for name in names {
            self.start_checks(&name, true);
        }
    }

    /// Takes over what was published.
    pub(crate) fn follow(&mut self, batch: &Batch, zones: &[&dyn Vitals]) {
        if !zones.iter().any(|zone| zone.are_kept()) {
            return;
        }
        for (kind, name) in &batch.remove {
            if *kind == Kind::Cluster {
                self.forget(name);
            }
        }
        let mut touched = HashSet::new();
        // A batch has endpoints before their cluster.
        for item in &batch.put {
            if let Value::Cluster(cluster) = &item.value {
                self.put_cluster(cluster, zones);
                touched.insert(item.name.as_str());
            }
        }
        for item in &batch.put {
            if let Value::EndpointSet(set) = &item.value {
                self.put_endpoints(set, zones);
                touched.insert(item.name.as_str());
            }
        }
        for name in touched {
            self.start_checks(name, false);
            self.recount(name, zones);
        }
    }

    /// A zone is filled: what is known of endpoints elsewhere is known there too.
    pub(crate) fn carry_over(&self, from: &dyn Vitals, to: &dyn Vitals) {
        for (name, watched) in &self.clusters {
            for member in &watched.members {
                let address = &member.endpoint.address;
                if let (Some(from), Some(to)) = (from.endpoint(name, address), to.endpoint(name, address)) {
                    to.copy_from(from);
                }
            }
            self.recount(name, &[to]);
        }
    }

    fn forget(&mut self, name: &str) {
        if let Some(watched) = self.clusters.remove(name) {
            for id in watched.members.iter().filter_map(|m| m.id) {
                self.checks.remove(&id);
                self.changes.push(Change::Stop(id));
            }
        }
    }

    fn put_cluster(&mut self, cluster: &Cluster, zones: &[&dyn Vitals]) {
        let name = &cluster.name;
        let (check, outlier) = (cluster.health_check.as_deref(), cluster.outlier_detection.clone());
        // What nobody looks at any more is as if it never was.
        let mut gone = 0;
        if check.is_none() {
            gone |= FAILED_ACTIVE_HC | DEGRADED_ACTIVE_HC | PENDING_ACTIVE_HC | CHECKED;
        }
        if outlier.is_none() {
            gone |= FAILED_OUTLIER_CHECK;
        }
        if let Some(watched) = self.clusters.get(name) {
            for member in &watched.members {
                change(zones, name, &member.endpoint.address, 0, gone);
            }
        }
        if check.is_none() && outlier.is_none() {
            return self.forget(name);
        }
        let check = check.map(|c| Arc::new(c.clone()));
        let bind: Vec<IpAddr> = cluster.bind.iter().map(|ip| IpAddr::from(*ip)).collect();
        let watched = self.clusters.entry(name.clone()).or_insert_with(|| Watched {
            check: None,
            outlier: None,
            bind: Vec::new(),
            proxy_protocol: None,
            members: Vec::new(),
            due: None,
            filled: false,
        });
        if watched.check != check || watched.bind != bind || watched.proxy_protocol != cluster.proxy_protocol {
            (watched.check, watched.bind) = (check, bind);
            watched.proxy_protocol.clone_from(&cluster.proxy_protocol);
            for id in watched.members.iter_mut().filter_map(|m| m.id.take()) {
                self.checks.remove(&id);
                self.changes.push(Change::Stop(id));
            }
        }
        if watched.outlier != outlier {
            watched.due = outlier.as_ref().map(|o| Instant::now() + Duration::from_millis(o.interval));
            watched.outlier = outlier;
        }
    }

    fn put_endpoints(&mut self, set: &EndpointSet, zones: &[&dyn Vitals]) {
        let Some(watched) = self.clusters.get_mut(&set.cluster) else { return };
        let mut before: HashMap<String, Member> =
            watched.members.drain(..).map(|m| (m.endpoint.address.to_string(), m)).collect();
        let mut seen = HashSet::new();
        for endpoint in set.localities.iter().flat_map(|l| &l.endpoints) {
            let address = endpoint.address.to_string();
            // One address has one cell, however often it is named.
            if !seen.insert(address.clone()) {
                continue;
            }
            let known = before.remove(&address);
            let is_new = known.is_none();
            let mut member = known.unwrap_or_else(|| Member {
                endpoint: endpoint.clone(),
                id: None,
                streak: Streak::default(),
                jitter: 0,
                told: 0,
            });
            let same =
                member.endpoint.health_check == endpoint.health_check && member.endpoint.refuse == endpoint.refuse;
            if !same {
                if let Some(id) = member.id.take() {
                    self.checks.remove(&id);
                    self.changes.push(Change::Stop(id));
                }
            }
            member.endpoint = endpoint.clone();
            if is_new && watched.filled && watched.check.is_some() && is_checked(endpoint) {
                for zone in zones {
                    if let (Some(c), Some(e)) =
                        (zone.cluster(&set.cluster), zone.endpoint(&set.cluster, &endpoint.address))
                    {
                        if e.flags() & CHECKED == 0 {
                            e.change(c, FAILED_ACTIVE_HC | PENDING_ACTIVE_HC, 0);
                        }
                    }
                }
                member.told = FAILED_ACTIVE_HC;
            }
            watched.members.push(member);
        }
        watched.filled |= !watched.members.is_empty();
        for (_, gone) in before {
            // Should it come back, it comes as a new one.
            change(zones, &set.cluster, &gone.endpoint.address, 0, u32::MAX);
            if let Some(id) = gone.id {
                self.checks.remove(&id);
                self.changes.push(Change::Stop(id));
            }
        }
    }

    /// Starts the checks of a cluster that do not run, or all.
    fn start_checks(&mut self, name: &str, all: bool) {
        let Some(watched) = self.clusters.get_mut(name) else { return };
        let Some(check) = &watched.check else { return };
        for member in &mut watched.members {
            if !is_checked(&member.endpoint) || member.id.is_some() && !all {
                continue;
            }
            let id = self.next_id;
            self.next_id += 1;
            member.id = Some(id);
            self.checks.insert(id, name.to_owned());
            let first = match check.initial_jitter {
                0 => 0,
                jitter => fastrand::u64(..jitter),
            };
            let probe = Probe {
                check: check.clone(),
                address: place(&member.endpoint, check),
                hostname: member.endpoint.health_check.as_ref().map(|c| c.hostname.clone()).unwrap_or_default(),
                cluster: name.to_owned(),
                bind: watched.bind.clone(),
                mark: self.mark,
                proxy_protocol: watched.proxy_protocol.clone(),
            };
            self.changes.push(Change::Start(id, probe, Duration::from_millis(first)));
        }
    }

    fn recount(&self, name: &str, zones: &[&dyn Vitals]) {
        let Some(watched) = self.clusters.get(name) else { return };
        for zone in zones {
            if let Some(cluster) = zone.cluster(name) {
                cluster.recount(watched.members.iter().filter_map(|m| zone.endpoint(name, &m.endpoint.address)));
            }
        }
    }

    /// Takes the result of a check in; when it is checked next. The last zone is the one that new workers read.
    pub(crate) fn on_result(
        &mut self,
        id: u64,
        result: &Checked,
        zones: &[&dyn Vitals],
        log: &dyn Log,
    ) -> Option<Duration> {
        let name = self.checks.get(&id)?;
        let watched = self.clusters.get_mut(name)?;
        let check = watched.check.clone()?;
        let count = watched.members.len();
        let member = watched.members.iter_mut().find(|m| m.id == Some(id))?;
        let address = &member.endpoint.address;
        let newest = zones.last()?;
        let flags = newest.endpoint(name, address).map_or(0, EndpointVitals::flags);
        let step = member.streak.step(flags, &check, result);
        change(zones, name, address, step.set, step.clear);
        let well = (flags & !step.clear | step.set) & FAILED_ACTIVE_HC == 0;
        let uneject = watched.outlier.as_ref().is_some_and(|o| o.successful_active_health_check_uneject_host);
        if uneject && well && matches!(result, Checked::Success { .. }) {
            for zone in zones {
                if let (Some(c), Some(e)) = (zone.cluster(name), zone.endpoint(name, address)) {
                    if e.flags() & FAILED_OUTLIER_CHECK != 0 {
                        e.uneject(c);
                    }
                }
            }
        }
        let unhealthy = newest.cluster(name).map_or(0, ClusterVitals::unhealthy);
        let tell = |level, text: &str| {
            log.log(level, &format!("cluster {name}: {address} {text} ({unhealthy} of {count} not healthy)"));
        };
        match result {
            Checked::Failure { why, .. } if step.transition == Transition::Changed || flags & CHECKED == 0 => {
                tell(Level::Warn, &format!("failed its health check: {why}"));
            }
            Checked::Failure { why, .. } if check.always_log_failures => {
                tell(Level::Warn, &format!("failed a health check: {why}"));
            }
            Checked::Success { degraded: true } if step.transition == Transition::Changed => {
                tell(Level::Notice, "passed its health check, degraded");
            }
            Checked::Success { .. } if step.transition == Transition::Changed => {
                tell(Level::Notice, "passed its health check");
            }
            Checked::Success { .. } if check.always_log_success => tell(Level::Info, "passed a health check"),
            Checked::Success { .. } | Checked::Failure { .. } => {}
        }
        let traffic = newest.had_traffic(name);
        Some(Duration::from_millis(step.interval(&check, traffic, &mut || fastrand::u64(..))))
    }

    /// When the next interval of outlier detection ends.
    pub(crate) fn next_interval(&self) -> Option<Instant> {
        self.clusters.values().filter_map(|w| w.due).min()
    }

    /// Ends the intervals that are over.
    pub(crate) fn intervals(&mut self, zones: &[&dyn Vitals]) {
        let now = Instant::now();
        for (name, watched) in &mut self.clusters {
            let Some(outlier) = &watched.outlier else { continue };
            if watched.due.is_none_or(|due| due > now) {
                continue;
            }
            watched.due = Some(now + Duration::from_millis(outlier.interval));
            for zone in zones {
                let Some(cluster) = zone.cluster(name) else { continue };
                let one = |m: &Member| {
                    Some(outlier::Member { vitals: zone.endpoint(name, &m.endpoint.address)?, jitter: m.jitter })
                };
                let members: Vec<_> = watched.members.iter().filter_map(one).collect();
                outlier::interval(outlier, cluster, &members, zone.clock(), &mut || fastrand::u64(..));
            }
        }
    }

    /// About once a second: counts are put right, and ejections told of.
    pub(crate) fn tick(&mut self, zones: &[&dyn Vitals], log: &dyn Log) {
        let Some(newest) = zones.last() else { return };
        for (name, watched) in &mut self.clusters {
            let count = watched.members.len();
            let jitter = watched.outlier.as_ref().map_or(0, |o| o.max_ejection_time_jitter);
            let ejected = newest.cluster(name).map_or(0, ClusterVitals::ejected);
            for member in &mut watched.members {
                let address = &member.endpoint.address;
                let flags = newest.endpoint(name, address).map_or(0, EndpointVitals::flags);
                let (is, was) = (flags & FAILED_OUTLIER_CHECK, member.told & FAILED_OUTLIER_CHECK);
                if is != was {
                    let what = if is != 0 { "is ejected" } else { "is back" };
                    log.log(Level::Warn, &format!("cluster {name}: {address} {what} ({ejected} of {count} ejected)"));
                }
                if is == 0 {
                    member.jitter = fastrand::u64(..=jitter).try_into().unwrap_or(u32::MAX);
                }
                member.told = flags;
            }
        }
        let names: Vec<&String> = self.clusters.keys().collect();
        for name in names {
            self.recount(name, zones);
        }
    }
}

/// What must not be spoken to is not checked either.
fn is_checked(endpoint: &Endpoint) -> bool {
    endpoint.refuse.is_none() && !endpoint.health_check.as_ref().is_some_and(|c| c.disabled)
}

/// Where an endpoint is checked.
fn place(endpoint: &Endpoint, check: &HealthCheck) -> Address {
    let config = endpoint.health_check.as_deref();
    let address = config.and_then(|c| c.address.as_ref()).unwrap_or(&endpoint.address);
    match address {
        Address::Socket { ip, port } => {
            let own = config.map_or(0, |c| c.port);
            let port = [own, check.alt_port, *port].into_iter().find(|p| *p != 0).unwrap_or(0);
            Address::Socket { ip: *ip, port }
        }
        Address::Pipe(path) => Address::Pipe(path.clone()),
    }
}

fn change(zones: &[&dyn Vitals], cluster: &str, endpoint: &Address, set: u32, clear: u32) {
    for zone in zones {
        if let (Some(c), Some(e)) = (zone.cluster(cluster), zone.endpoint(cluster, endpoint)) {
            e.change(c, set, clear);
        }
    }
}

/// An error with what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        text.push_str(&format!(": {e}"));
        source = e.source();
    }
    text
}
