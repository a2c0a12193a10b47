//! Which endpoint of a cluster takes a request.
//!
//! First the priority is drawn, by health ([`priority`]), then, where the cluster weighs them, the locality, then the
//! endpoint by the cluster's policy.
//!
//! * Round robin is a walk through all units of weight with a stride prime to their number, near its golden section:
//!   over a full cycle every endpoint is met exactly as often as its weight says, and its turns are spread evenly
//!   instead of coming in runs. The place in the walk is one cursor that all workers share.
//! * Least request draws `choice_count` endpoints and takes the one with the fewest active requests. Where weights
//!   differ Envoy keeps a schedule by weight over active requests; here candidates are drawn by weight and the fewest
//!   active requests for their weight win, which gives the same shares when idle and evens out the same quantity.
//! * Random does not look at weights, as in Envoy.
//!
//! A pick looks at each endpoint once to count the healthy ones, whatever their weights; the rest is arithmetic.

mod priority;

use amesh_model::cluster::{ArchivedCluster, ArchivedLbPolicy};
use amesh_model::endpoint::{ArchivedEndpoint, ArchivedEndpointSet, ArchivedLocality};
use priority::{choose_priority, Group, Source};

/// The counters in shared memory. Cells are those of [`ArchivedCluster`] and [`ArchivedEndpoint`].
pub trait Cells {
    /// The value of a cluster's cursor, which moves on by one.
    fn cursor(&self, cell: u32) -> u32;
    /// Active requests of an endpoint.
    fn active(&self, cell: u32) -> u32;
}

/// No endpoint may be used: 503, flag `UH`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no healthy upstream")]
pub struct NoEndpoint;

/// Picks an endpoint. `exclude` holds the cells of endpoints that were tried already; they are taken again only where
/// there is no other.
///
/// # Errors
/// [`NoEndpoint`] when there is none, or none is healthy and the cluster never panics.
pub fn pick<'a>(
    cluster: &ArchivedCluster,
    set: &'a ArchivedEndpointSet,
    cells: &impl Cells,
    random: &mut impl FnMut() -> u64,
    exclude: &[u32],
) -> Result<&'a ArchivedEndpoint, NoEndpoint> {
    let factor = set.overprovisioning_factor.to_native();
    let mut groups = set.localities.chunk_by(|a, b| a.priority == b.priority).map(Group::new);
    let first = groups.next().ok_or(NoEndpoint)?;
    let threshold = cluster.healthy_panic_threshold;
    let (group, source) = match groups.next() {
        None => choose_priority(&[first], factor, threshold, random()),
        Some(second) => {
            let all: Vec<_> = [first, second].into_iter().chain(groups).collect();
            choose_priority(&all, factor, threshold, random())
        }
    };
    let mut pool = Pool::new(group, source);
    let mut cursor = None;
    let mut weighed = false;
    if cluster.locality_weighted && source != Source::All && pool.localities.len() > 1 {
        let at = *cursor.insert(cells.cursor(cluster.cell.to_native()));
        if let Some(locality) = choose_locality(&pool, factor, at) {
            pool = Pool::new(Group::new(locality), source);
            weighed = true;
        }
    }
    if pool.tally.count == 0 {
        return Err(NoEndpoint);
    }
    let mut draw = |again: u64, random: &mut dyn FnMut() -> u64| match cluster.lb_policy {
        ArchivedLbPolicy::Random | ArchivedLbPolicy::ClusterProvided => pool.nth(random() % pool.tally.count),
        ArchivedLbPolicy::LeastRequest { choice_count } => {
            least_request(&pool, cells, random, choice_count.to_native())
        }
        // The cursor walks through the localities already: within one of them its steps would be uneven.
        ArchivedLbPolicy::RoundRobin if weighed => pool.at(random() % pool.units()),
        ArchivedLbPolicy::RoundRobin => {
            let at = *cursor.get_or_insert_with(|| cells.cursor(cluster.cell.to_native()));
            pool.at(stride(u64::from(at) + again, pool.units()))
        }
    };
    let found = draw(0, random).ok_or(NoEndpoint)?;
    let tried = |endpoint: &ArchivedEndpoint| exclude.contains(&endpoint.cell.to_native());
    if !tried(found) {
        return Ok(found);
    }
    for again in 1..=exclude.len() as u64 {
        match draw(again, random) {
            Some(other) if !tried(other) => return Ok(other),
            _ => {}
        }
    }
    let fresh = || pool.endpoints().filter(|e| !tried(e));
    Ok(match fresh().count() as u64 {
        0 => found,
        n => fresh().nth((random() % n) as usize).unwrap_or(found),
    })
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

/// How many endpoints there are, and how their weights are.
#[derive(Clone, Copy, Default)]
struct Tally {
    count: u64,
    weight: u64,
    /// Greatest common divisor of the weights: a unit of weight.
    unit: u64,
}

impl Tally {
    #[inline]
    fn add(&mut self, weight: u64) {
        self.count += 1;
        self.weight += weight;
        // Cheap where all weights are equal, and once the unit is 1.
        if self.unit != weight && self.unit != 1 {
            self.unit = gcd(self.unit, weight);
        }
    }

    fn plus(self, other: Tally) -> Tally {
        Tally { count: self.count + other.count, weight: self.weight + other.weight, unit: gcd(self.unit, other.unit) }
    }
}

/// The endpoints that may be picked.
struct Pool<'a> {
    localities: &'a [ArchivedLocality],
    source: Source,
    tally: Tally,
    /// Every endpoint of the localities may be picked.
    whole: bool,
}

impl<'a> Pool<'a> {
    fn new(group: Group<'a>, source: Source) -> Self {
        let tally = group.tally(source);
        let whole = tally.count == group.tally(Source::All).count;
        Pool { localities: group.localities, source, tally, whole }
    }

    fn endpoints(&self) -> impl Iterator<Item = &'a ArchivedEndpoint> + '_ {
        self.localities.iter().flat_map(|l| l.endpoints.iter()).filter(|e| self.source.takes(e))
    }

    /// Units of weight in all.
    fn units(&self) -> u64 {
        self.tally.weight / self.tally.unit.max(1)
    }

    fn is_uniform(&self) -> bool {
        self.units() == self.tally.count
    }

    /// The `n`th endpoint.
    fn nth(&self, n: u64) -> Option<&'a ArchivedEndpoint> {
        let mut n = n as usize;
        if !self.whole {
            return self.endpoints().nth(n);
        }
        for locality in self.localities {
            match locality.endpoints.get(n) {
                Some(endpoint) => return Some(endpoint),
                None => n -= locality.endpoints.len(),
            }
        }
        None
    }

    /// The endpoint that holds the `n`th unit of weight.
    fn at(&self, n: u64) -> Option<&'a ArchivedEndpoint> {
        if self.is_uniform() {
            return self.nth(n);
        }
        let mut left = n * self.tally.unit;
        self.endpoints().find(|e| match left.checked_sub(weight(e)) {
            Some(rest) => {
                left = rest;
                false
            }
            None => true,
        })
    }
}

/// An endpoint's weight; Envoy allows no 0.
fn weight(endpoint: &ArchivedEndpoint) -> u64 {
    endpoint.weight.to_native().max(1).into()
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// The place of step `n` in a walk through `0..units` that meets each place once in `units` steps.
fn stride(n: u64, units: u64) -> u64 {
    if units < 2 {
        return 0;
    }
    // 2^32 divided by the golden ratio.
    let mut step = ((u128::from(units) * 2_654_435_769) >> 32) as u64;
    step = step.max(1);
    while gcd(units, step) != 1 {
        step += 1;
    }
    match (n % units).checked_mul(step) {
        Some(place) => place % units,
        None => (u128::from(n % units) * u128::from(step) % u128::from(units)) as u64,
    }
}

fn least_request<'a>(
    pool: &Pool<'a>,
    cells: &impl Cells,
    random: &mut dyn FnMut() -> u64,
    choices: u32,
) -> Option<&'a ArchivedEndpoint> {
    let mut best: Option<(&ArchivedEndpoint, u64)> = None;
    for _ in 0..choices.max(1) {
        let candidate = pool.at(random() % pool.units())?;
        let active = u64::from(cells.active(candidate.cell.to_native()));
        let better = best.is_none_or(|(best, least)| active * weight(best) < least * weight(candidate));
        if better {
            best = Some((candidate, active));
        }
    }
    best.map(|(endpoint, _)| endpoint)
}

/// The locality whose turn it is, by weight and by the share of its endpoints that are usable; `None` where no locality
/// has a weight.
fn choose_locality<'a>(pool: &Pool<'a>, factor: u32, cursor: u32) -> Option<&'a [ArchivedLocality]> {
    let share = |locality: &ArchivedLocality| {
        let all = locality.endpoints.len() as u64;
        let usable = locality.endpoints.iter().filter(|e| pool.source.takes(e)).count() as u64;
        let available = (usable * u64::from(factor)).checked_div(all).unwrap_or(0).min(100);
        u64::from(locality.weight.to_native()) * available
    };
    let (total, unit) = pool.localities.iter().map(share).fold((0, 0), |(sum, unit), s| (sum + s, gcd(unit, s)));
    let mut left = stride(cursor.into(), total.checked_div(unit)?) * unit;
    let at = pool.localities.iter().map(share).position(|s| match left.checked_sub(s) {
        Some(rest) => {
            left = rest;
            false
        }
        None => true,
    })?;
    pool.localities.get(at..=at)
}
