//! Which endpoint of a cluster takes a request.
//!
//! First the priority is drawn, by health, then, where the cluster weighs them, the locality, then the endpoint by the
//! cluster's policy.
//!
//! * Round robin takes the turns of [`amesh_model::plan::Wheel`]. The place in the round is one cursor that all workers
//!   share.
//! * Least request draws `choice_count` endpoints and takes the one with the fewest active requests. Where weights
//!   differ Envoy keeps a schedule by weight over active requests; here one is drawn by that, which gives the same shares
//!   without a schedule that workers would have to lock.
//! * An endpoint in slow start is passed over as often as its share is not full.
//! * Random does not look at weights, as in Envoy.
//! * Ring hash and Maglev look the hash of the request ([`crate::hash`]) up in a table.
//!
//! The thread has worked out who may be picked ([`amesh_model::plan`]), so that a pick does not look at every endpoint.
//! Where endpoints fell ill at run time they are drawn and passed over while that changes nothing else; where it does,
//! the pick looks at each endpoint once (`walk`).

mod candidates;
mod hashed;
mod least_request;
mod slow_start;
mod subset;
mod walk;

use amesh_model::cluster::{ArchivedCluster, ArchivedLbPolicy};
use amesh_model::endpoint::{ArchivedEndpoint, ArchivedEndpointSet};
use amesh_model::plan::ArchivedView;
use amesh_model::subset::ArchivedCriterion;
use candidates::Candidates;
use slow_start::SlowStart;

pub use amesh_model::vitals::RuntimeHealth;

/// Draws that pass over an ill or tried endpoint before the rest are looked at one by one.
const DRAWS: usize = 8;

/// The counters in shared memory. Cells are those of [`ArchivedCluster`] and [`ArchivedEndpoint`].
pub trait Cells {
    /// The value of a cluster's cursor, which moves on by one.
    fn cursor(&self, cell: u32) -> u32;
    /// Active requests of an endpoint.
    fn active(&self, cell: u32) -> u32;
    /// How many endpoints of a cluster are not [`RuntimeHealth::Healthy`].
    fn unhealthy(&self, _cluster: u32) -> u32 {
        0
    }
    /// How an endpoint is. Asked only where [`Cells::unhealthy`] is above 0.
    fn health(&self, _endpoint: u32) -> RuntimeHealth {
        RuntimeHealth::Healthy
    }
}

/// What a pick depends on, apart from the cluster and its endpoints.
pub struct PickContext<'a> {
    /// Random numbers.
    pub random: &'a mut dyn FnMut() -> u64,
    /// Cells of endpoints that were tried already; they are taken again only where there is no other.
    pub exclude: &'a [u32],
    /// The hash of the request, where the cluster's policy wants one; `None`: a random one.
    pub hash: Option<u64>,
    /// Policies by hash look at so many places for an endpoint that was not tried (`host_selection_retry_max_attempts`
    /// and one; Envoy's is 1 for first tries and where no retry host predicate asks for more).
    pub host_selection_attempts: u32,
    /// What the route asks of the metadata of endpoints, for clusters with subsets
    /// ([`crate::route::Forward::metadata_match`]).
    pub metadata_match: &'a [ArchivedCriterion],
    /// Unix time in ms, for clusters that start slowly; 0: nobody does.
    pub now: u64,
}

impl<'a> PickContext<'a> {
    /// Of a first try.
    pub fn new(random: &'a mut dyn FnMut() -> u64) -> PickContext<'a> {
        PickContext { random, exclude: &[], hash: None, host_selection_attempts: 1, metadata_match: &[], now: 0 }
    }
}

/// No endpoint may be used: 503, flag `UH`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no healthy upstream")]
pub struct NoEndpoint;

/// Picks an endpoint.
///
/// # Errors
/// [`NoEndpoint`] when there is none, or none is healthy and the cluster never panics.
pub fn pick<'a>(
    cluster: &ArchivedCluster,
    set: &'a ArchivedEndpointSet,
    cells: &impl Cells,
    context: &mut PickContext<'_>,
) -> Result<&'a ArchivedEndpoint, NoEndpoint> {
    match cluster.subsets.as_ref() {
        None => pick_from(&set.plan.view, cluster, set, cells, context),
        Some(subsets) => {
            let views = subset::views(subsets, &set.plan, context.metadata_match);
            let mut found = views.into_iter().flatten().map(|view| pick_from(view, cluster, set, cells, context));
            found.find(Result::is_ok).unwrap_or(Err(NoEndpoint))
        }
    }
}

fn pick_from<'a>(
    view: &'a ArchivedView,
    cluster: &ArchivedCluster,
    set: &'a ArchivedEndpointSet,
    cells: &impl Cells,
    context: &mut PickContext<'_>,
) -> Result<&'a ArchivedEndpoint, NoEndpoint> {
    if cluster.lb_policy.hashes() {
        return hashed::pick(cluster, set, view, cells, context);
    }
    let ill = cells.unhealthy(cluster.cell.to_native());
    let mut turns = Turns { cells, cluster: cluster.cell.to_native(), drawn: None };
    let candidates = match ill > view.spare.to_native() {
        false => planned(set, view, &mut turns, context.random),
        true => walk::candidates(cluster, set, view, &mut turns, context.random),
    };
    let candidates = candidates.filter(|c| c.len() > 0).ok_or(NoEndpoint)?;
    let well = |e: &ArchivedEndpoint| {
        ill == 0 || !candidates.is_planned() || cells.health(e.cell.to_native()) == RuntimeHealth::Healthy
    };
    let passes = |e: &ArchivedEndpoint| well(e) && !context.exclude.contains(&e.cell.to_native());
    let slow = SlowStart::of(cluster, set, context.now);
    let mut draws = if ill == 0 && context.exclude.is_empty() { 1 } else { DRAWS };
    let mut waits = slow.as_ref().map_or(0, SlowStart::draws);
    while draws > 0 {
        let found = draw(cluster, &candidates, &mut turns, slow.as_ref(), context.random).ok_or(NoEndpoint)?;
        if !passes(found) {
            draws -= 1;
        } else if waits > 0 && slow.as_ref().is_some_and(|s| s.passes_over(found, context.random)) {
            waits -= 1;
        } else {
            return Ok(found);
        }
    }
    // Those that pass one by one; tried ones where there is no other.
    any(&candidates, passes, context.random).or_else(|| any(&candidates, well, context.random)).ok_or(NoEndpoint)
}

/// The cursor of a cluster. A locality and its endpoint are drawn with one turn.
struct Turns<'c, C> {
    cells: &'c C,
    cluster: u32,
    drawn: Option<u64>,
}

impl<C: Cells> Turns<'_, C> {
    /// The turn of the locality.
    fn locality(&mut self) -> u64 {
        *self.drawn.insert(u64::from(self.cells.cursor(self.cluster)))
    }

    /// The turn of the endpoint.
    fn endpoint(&mut self) -> u64 {
        self.drawn.take().unwrap_or_else(|| u64::from(self.cells.cursor(self.cluster)))
    }
}

/// The candidates that the plan says.
fn planned<'a>(
    set: &'a ArchivedEndpointSet,
    view: &'a ArchivedView,
    turns: &mut Turns<'_, impl Cells>,
    random: &mut dyn FnMut() -> u64,
) -> Option<Candidates<'a>> {
    let share = match view.shares.as_slice() {
        [share] => share,
        shares => {
            let place = (random() % 100) as u32;
            shares.iter().find(|share| place < share.end.to_native())?
        }
    };
    let several = share.localities.units.to_native() > 1;
    let locality = if several { share.localities.at(share.localities.turn(turns.locality())) } else { 0 };
    let pool = view.pools.get(share.pool.to_native() as usize + locality)?;
    Some(Candidates::Planned { set, pool, several })
}

fn draw<'a>(
    cluster: &ArchivedCluster,
    candidates: &Candidates<'a>,
    turns: &mut Turns<'_, impl Cells>,
    slow: Option<&SlowStart>,
    random: &mut dyn FnMut() -> u64,
) -> Option<&'a ArchivedEndpoint> {
    match cluster.lb_policy {
        ArchivedLbPolicy::Random
        | ArchivedLbPolicy::ClusterProvided
        | ArchivedLbPolicy::RingHash { .. }
        | ArchivedLbPolicy::Maglev { .. } => candidates.nth((random() % candidates.len() as u64) as usize),
        ArchivedLbPolicy::LeastRequest { active_request_bias, .. }
            if active_request_bias.to_native() != 0.0 && (slow.is_some() || !candidates.are_alike()) =>
        {
            least_request::by_weight(candidates, turns.cells, active_request_bias.to_native(), random)
        }
        ArchivedLbPolicy::LeastRequest { full_scan: true, .. } if slow.is_none() && candidates.are_alike() => {
            least_request::of_all(candidates, turns.cells, random)
        }
        ArchivedLbPolicy::LeastRequest { choice_count, .. } if slow.is_none() && candidates.are_alike() => {
            least_request::of_some(candidates, turns.cells, choice_count.to_native(), random)
        }
        // The cursor walks through the localities already: within one of them its steps would be uneven.
        _ if candidates.are_of_a_locality() => candidates.by_weight(random() % candidates.units()),
        _ => candidates.by_weight(candidates.turn(turns.endpoint())),
    }
}

/// One of those that pass, all alike.
fn any<'a>(
    candidates: &Candidates<'a>,
    passes: impl Fn(&ArchivedEndpoint) -> bool,
    random: &mut dyn FnMut() -> u64,
) -> Option<&'a ArchivedEndpoint> {
    let all = || (0..candidates.len()).filter_map(|n| candidates.nth(n)).filter(|e| passes(e));
    let n = random().checked_rem(all().count() as u64)?;
    all().nth(n as usize)
}

/// Draws one of several by weight: its index, `None` when all weights are 0.
pub fn weighted_pick(weights: impl Iterator<Item = u32> + Clone, random: u64) -> Option<usize> {
    let total: u64 = weights.clone().map(u64::from).sum();
    let mut left = random.checked_rem(total)?;
    weights.map(u64::from).enumerate().find_map(|(at, weight)| match left < weight {
        true => Some(at),
        false => {
            left -= weight;
            None
        }
    })
}
