//! Making of plans.

use super::hashing::{self, Weighted};
use super::{
    effective_locality_weight, loads, scaled_locality_weight, Census, Load, Place, Plan, Pool, Share, Source,
    SubsetPlan, Table, View, Wheel,
};
use crate::cluster::{Cluster, LbPolicy};
use crate::endpoint::{Endpoint, EndpointSet, HealthStatus, Locality};
use crate::subset::Subsets;
use std::collections::{BTreeMap, BTreeSet};

/// Makes the plan of a cluster's endpoints. Localities must stand in the order of their priorities.
pub fn build(set: &mut EndpointSet, cluster: &Cluster) {
    let places: Vec<Place> = (0..)
        .zip(&set.localities)
        .flat_map(|(locality, l)| (0..).zip(&l.endpoints).map(move |(endpoint, _)| Place { locality, endpoint }))
        .collect();
    let members = (0..places.len() as u32).collect();
    let builder = Builder { set, cluster, places: &places };
    let view = builder.view(members);
    let subsets = cluster.subsets.as_ref().map(|s| Box::new(builder.subsets(s)));
    let newest = set.localities.iter().flat_map(|l| &l.endpoints).map(|e| e.added).max().unwrap_or(0);
    set.plan = Plan { places, view, subsets, newest };
}

struct Builder<'a> {
    set: &'a EndpointSet,
    cluster: &'a Cluster,
    places: &'a [Place],
}

/// The members of one locality of one priority.
struct Group<'a> {
    /// Weight of the locality.
    weight: u32,
    members: &'a [u32],
}

impl Builder<'_> {
    fn endpoint(&self, number: u32) -> Option<&Endpoint> {
        let place = self.places.get(number as usize)?;
        self.set.localities.get(place.locality as usize)?.endpoints.get(place.endpoint as usize)
    }

    fn locality(&self, number: u32) -> u32 {
        self.places.get(number as usize).map_or(0, |p| p.locality)
    }

    fn place(&self, number: u32) -> Option<&Locality> {
        self.set.localities.get(self.locality(number) as usize)
    }

    fn priority(&self, number: u32) -> u32 {
        self.place(number).map_or(0, |l| l.priority)
    }

    fn takes(&self, source: Source, number: u32) -> bool {
        let health = self.endpoint(number).map_or(HealthStatus::Unhealthy, |e| e.health);
        match source {
            Source::All => true,
            Source::Healthy => health == HealthStatus::Healthy,
            Source::Degraded => health == HealthStatus::Degraded,
        }
    }

    fn count(&self, source: Source, members: &[u32]) -> u64 {
        members.iter().filter(|n| self.takes(source, **n)).count() as u64
    }

    /// Whether localities have weights.
    fn weighs(&self) -> bool {
        self.cluster.locality_weighted && self.cluster.subsets.as_ref().is_none_or(|s| s.locality_weight_aware)
    }

    fn subsets(&self, config: &Subsets) -> SubsetPlan {
        let mut found: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        let mut single = BTreeSet::new();
        let mut default = Vec::new();
        for (number, endpoint) in (0..self.places.len() as u32).filter_map(|n| Some((n, self.endpoint(n)?))) {
            if config.is_default(&endpoint.lb_metadata) {
                default.push(number);
            }
            for selector in &config.selectors {
                for id in selector.subsets_of(&endpoint.lb_metadata, config.list_as_any) {
                    let members = found.entry(id).or_default();
                    if selector.single_host_per_subset {
                        single.insert(id);
                    }
                    let full = single.contains(&id) && !members.is_empty();
                    // It may be there by another selector of the same keys.
                    if !full && members.last() != Some(&number) {
                        members.push(number);
                    }
                }
            }
        }
        let (ids, views) = found.into_iter().map(|(id, members)| (id, self.view(members))).unzip();
        SubsetPlan { ids, views, default: self.view(default) }
    }

    fn view(&self, members: Vec<u32>) -> View {
        let factor = self.set.overprovisioning_factor;
        let priorities: Vec<&[u32]> = members.chunk_by(|a, b| self.priority(*a) == self.priority(*b)).collect();
        let census = |members: &&[u32]| Census {
            healthy: self.count(Source::Healthy, members),
            degraded: self.count(Source::Degraded, members),
            all: members.len() as u64,
        };
        let censuses: Vec<Census> = priorities.iter().map(census).collect();
        let loads = loads(&censuses, factor, self.cluster.healthy_panic_threshold);
        let mut view = View::default();
        let mut tables = BTreeMap::new();
        let mut end = 0;
        for load in &loads {
            let Some(group) = priorities.get(load.group) else { continue };
            let nobody = load.source == Source::All && self.cluster.fail_traffic_on_panic;
            let group = if nobody && !self.cluster.lb_policy.hashes() { &[][..] } else { group };
            end += load.percent as u32;
            let (pool, localities) = match self.cluster.lb_policy.hashes() {
                false => (view.pools.len() as u32, self.pools(group, load.source, &mut view.pools)),
                // One table a priority: there is none for degraded endpoints.
                true => {
                    let at = *tables.entry(load.group).or_insert_with(|| {
                        view.pools.push(self.hashed(group, load.source == Source::All));
                        view.pools.len() as u32 - 1
                    });
                    (at, Wheel::new([1]))
                }
            };
            view.shares.push(Share { end, pool, localities });
        }
        view.spare = self.spare(&loads, &priorities);
        view.members = members;
        view
    }

    /// Adds the pools of one share, and says how they share.
    fn pools(&self, members: &[u32], source: Source, out: &mut Vec<Pool>) -> Wheel {
        let groups = self.localities(members);
        if self.weighs() && source != Source::All && groups.len() > 1 {
            let factor = self.set.overprovisioning_factor;
            let weight = |g: &Group<'_>| {
                effective_locality_weight(g.weight, self.count(source, g.members), g.members.len() as u64, factor)
            };
            let weighted: Vec<(&Group<'_>, u64)> = groups.iter().map(|g| (g, weight(g))).filter(|g| g.1 > 0).collect();
            if !weighted.is_empty() {
                out.extend(weighted.iter().map(|(g, _)| self.pool(g.members, source)));
                return Wheel::new(weighted.iter().map(|g| g.1));
            }
        }
        out.push(self.pool(members, source));
        Wheel::new([1])
    }

    fn localities<'m>(&self, members: &'m [u32]) -> Vec<Group<'m>> {
        let scale = self.cluster.subsets.as_ref().is_some_and(|s| s.scale_locality_weight);
        let weight = |m: &[u32]| match m.first().and_then(|n| self.place(*n)) {
            None => 0,
            Some(l) if scale => scaled_locality_weight(l.weight, m.len() as u64, l.endpoints.len() as u64),
            Some(l) => l.weight,
        };
        let same = members.chunk_by(|a, b| self.locality(*a) == self.locality(*b));
        same.map(|members| Group { weight: weight(members), members }).collect()
    }

    fn pool(&self, members: &[u32], source: Source) -> Pool {
        let members: Vec<u32> = members.iter().copied().filter(|n| self.takes(source, *n)).collect();
        let weight = |n: &u32| self.endpoint(*n).map_or(1, |e| u64::from(e.weight.max(1)));
        Pool { wheel: Wheel::new(members.iter().map(weight)), members, table: Table::None, parts: Vec::new() }
    }

    /// The endpoints of one priority with their table: the healthy ones, or all in panic. Localities that are weighed
    /// are in the order of their names, as in Envoy.
    fn hashed(&self, members: &[u32], panic: bool) -> Pool {
        let source = if panic { Source::All } else { Source::Healthy };
        let mut weighted = Vec::new();
        if self.weighs() {
            let name = |l: Option<&Locality>| l.map(|l| (l.region.clone(), l.zone.clone(), l.sub_zone.clone()));
            let mut groups = self.localities(members);
            groups.sort_by_key(|g| name(g.members.first().and_then(|n| self.place(*n))));
            let sum: u64 = groups.iter().map(|g| u64::from(g.weight)).sum();
            for group in groups.iter().filter(|g| g.weight > 0) {
                self.normalize(group.members, source, f64::from(group.weight) / sum as f64, &mut weighted);
            }
        } else {
            self.normalize(members, source, 1.0, &mut weighted);
        }
        let table = match self.cluster.lb_policy {
            LbPolicy::RingHash { minimum_ring_size, maximum_ring_size, function } => {
                hashing::ring(&weighted, minimum_ring_size, maximum_ring_size, function)
            }
            LbPolicy::Maglev { table_size } => hashing::maglev(&weighted, table_size),
            _ => Table::None,
        };
        let bounded = self.cluster.hashing.balance_factor > 0;
        Pool {
            members: weighted.iter().map(|w| w.number).collect(),
            wheel: Wheel::default(),
            table,
            parts: weighted.iter().map(|w| w.part).filter(|_| bounded).collect(),
        }
    }

    /// Adds those endpoints with their parts of `whole` (`normalizeHostWeights`).
    fn normalize(&self, members: &[u32], source: Source, whole: f64, out: &mut Vec<Weighted>) {
        let hosts =
            || members.iter().filter(|n| self.takes(source, **n)).filter_map(|n| Some((*n, self.endpoint(*n)?)));
        let sum: u64 = hosts().map(|(_, e)| u64::from(e.weight.max(1))).sum();
        out.extend(hosts().map(|(number, e)| {
            let key = match (e.hash_key.as_str(), self.cluster.hashing.use_hostname_for_hashing) {
                ("", true) => e.hostname.clone(),
                ("", false) => e.address.to_string(),
                (key, _) => key.to_owned(),
            };
            Weighted { number, key, part: f64::from(e.weight.max(1)) * whole / sum as f64 }
        }));
    }

    /// See [`View::spare`].
    fn spare(&self, loads: &[Load], priorities: &[&[u32]]) -> u32 {
        let [Load { group, source: Source::Healthy, .. }] = loads else { return 0 };
        let Some(members) = priorities.get(*group) else { return 0 };
        let factor = u64::from(self.set.overprovisioning_factor).max(1);
        // As long as so many are healthy, they are available in full.
        let spare = |members: &[u32]| {
            let needed = (members.len() as u64 * 100).div_ceil(factor).max(1);
            self.count(Source::Healthy, members).saturating_sub(needed)
        };
        let spare = match self.weighs() {
            false => spare(members),
            true => {
                self.localities(members).iter().filter(|g| g.weight > 0).map(|g| spare(g.members)).min().unwrap_or(0)
            }
        };
        u32::try_from(spare).unwrap_or(u32::MAX)
    }
}
