//! Candidates where health at run time differs so much from what the control plane says that the plan does not hold.

use super::{Candidates, Cells, RuntimeHealth, Turns};
use amesh_model::cluster::ArchivedCluster;
use amesh_model::endpoint::{ArchivedEndpoint, ArchivedEndpointSet, ArchivedHealthStatus};
use amesh_model::plan::{
    effective_locality_weight, loads, scaled_locality_weight, ArchivedView, Census, Source, Wheel,
};

/// An endpoint as it is now.
struct Seen<'a> {
    endpoint: &'a ArchivedEndpoint,
    /// Index of its locality.
    locality: usize,
    priority: u32,
    /// Weight of its locality.
    weight: u32,
    health: RuntimeHealth,
}

impl Seen<'_> {
    fn is_in(&self, source: Source) -> bool {
        match source {
            Source::All => true,
            Source::Healthy => self.health == RuntimeHealth::Healthy,
            Source::Degraded => self.health == RuntimeHealth::Degraded,
        }
    }
}

fn count(source: Source, seen: &[Seen<'_>]) -> u64 {
    seen.iter().filter(|s| s.is_in(source)).count() as u64
}

/// The candidates of one pick: of the members of a view, by the worse of what the control plane and the cells say.
pub(super) fn candidates<'a>(
    cluster: &ArchivedCluster,
    set: &'a ArchivedEndpointSet,
    view: &ArchivedView,
    turns: &mut Turns<'_, impl Cells>,
    random: &mut dyn FnMut() -> u64,
) -> Option<Candidates<'a>> {
    let look = |number: u32| {
        let locality = set.plan.places.get(number as usize)?.locality.to_native() as usize;
        let place = set.localities.get(locality)?;
        let endpoint = set.endpoint(number)?;
        let configured = match endpoint.health {
            ArchivedHealthStatus::Healthy => RuntimeHealth::Healthy,
            ArchivedHealthStatus::Degraded => RuntimeHealth::Degraded,
            ArchivedHealthStatus::Unhealthy => RuntimeHealth::Unhealthy,
        };
        let health = configured.max(turns.cells.health(endpoint.cell.to_native()));
        let (priority, weight) = (place.priority.to_native(), place.weight.to_native());
        Some(Seen { endpoint, locality, priority, weight, health })
    };
    let seen: Vec<Seen<'a>> = view.members.iter().filter_map(|n| look(n.to_native())).collect();
    let priorities: Vec<&[Seen<'a>]> = seen.chunk_by(|a, b| a.priority == b.priority).collect();
    let census = |group: &&[Seen<'_>]| Census {
        healthy: count(Source::Healthy, group),
        degraded: count(Source::Degraded, group),
        all: group.len() as u64,
    };
    let censuses: Vec<Census> = priorities.iter().map(census).collect();
    let factor = set.overprovisioning_factor.to_native();
    let place = random() % 100;
    let mut end = 0;
    let load = loads(&censuses, factor, cluster.healthy_panic_threshold).into_iter().find(|load| {
        end += load.percent;
        place < end
    })?;
    if load.source == Source::All && cluster.fail_traffic_on_panic && !cluster.lb_policy.hashes() {
        return None;
    }
    let mut group = *priorities.get(load.group)?;
    let mut several = false;
    let subsets = cluster.subsets.as_ref();
    let weighs = cluster.locality_weighted && subsets.is_none_or(|s| s.locality_weight_aware);
    let scale = subsets.is_some_and(|s| s.scale_locality_weight);
    if weighs && load.source != Source::All {
        let localities: Vec<&[Seen<'a>]> = group.chunk_by(|a, b| a.locality == b.locality).collect();
        let weight = |l: &&[Seen<'_>]| {
            let all = l.first().and_then(|s| set.localities.get(s.locality)).map_or(0, |l| l.endpoints.len());
            let weight = match l.first().map_or(0, |s| s.weight) {
                weight if scale => scaled_locality_weight(weight, l.len() as u64, all as u64),
                weight => weight,
            };
            effective_locality_weight(weight, count(load.source, l), l.len() as u64, factor)
        };
        let wheel = Wheel::new(localities.iter().map(weight));
        if wheel.units > 0 {
            several = wheel.units > 1;
            let turn = if several { wheel.turn(turns.locality()) } else { 0 };
            group = localities.get(wheel.at(turn))?;
        }
    }
    let endpoints: Vec<&ArchivedEndpoint> = group.iter().filter(|s| s.is_in(load.source)).map(|s| s.endpoint).collect();
    let wheel = Wheel::new(endpoints.iter().map(|e| u64::from(e.weight.to_native().max(1))));
    Some(Candidates::Walked { endpoints, wheel, several })
}
