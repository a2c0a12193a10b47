//! Endpoints by the hash of a request (`ThreadAwareLoadBalancerBase::LoadBalancerImpl::chooseHost`).

use super::{any, walk, Candidates, Cells, NoEndpoint, PickContext, RuntimeHealth, Turns};
use amesh_model::cluster::ArchivedCluster;
use amesh_model::endpoint::{ArchivedEndpoint, ArchivedEndpointSet};
use amesh_model::plan::{ArchivedPool, ArchivedView};

/// Places of a table that are looked at for an endpoint that is well.
const PLACES: u32 = 32;

/// Picks by the hash; without one Envoy draws one.
pub(super) fn pick<'a>(
    cluster: &ArchivedCluster,
    set: &'a ArchivedEndpointSet,
    view: &'a ArchivedView,
    cells: &impl Cells,
    context: &mut PickContext<'_>,
) -> Result<&'a ArchivedEndpoint, NoEndpoint> {
    let hash = match context.hash {
        Some(hash) => hash,
        None => (context.random)(),
    };
    let ill = cells.unhealthy(cluster.cell.to_native());
    let place = (hash % 100) as u32;
    let share = view.shares.iter().find(|share| place < share.end.to_native());
    let pool = share.and_then(|share| view.pools.get(share.pool.to_native() as usize));
    let tried = |e: &ArchivedEndpoint| context.exclude.contains(&e.cell.to_native());
    let table = Table { cluster, set, pool, cells };
    if ill > view.spare.to_native() {
        let mut turns = Turns { cells, cluster: cluster.cell.to_native(), drawn: None };
        let walked = walk::candidates(cluster, set, view, &mut turns, &mut || hash).ok_or(NoEndpoint)?;
        let in_table = (0..PLACES).filter_map(|n| table.find(hash, n)).find(|e| walked.has(e) && !tried(e));
        return in_table
            .or_else(|| highest(&walked, hash, |e| !tried(e)))
            .or_else(|| highest(&walked, hash, |_| true))
            .ok_or(NoEndpoint);
    }
    let well = |e: &ArchivedEndpoint| ill == 0 || cells.health(e.cell.to_native()) == RuntimeHealth::Healthy;
    let mut left = context.host_selection_attempts.max(1);
    let mut last = None;
    for n in 0..left.max(PLACES) {
        let found = table.find(hash, n).ok_or(NoEndpoint)?;
        if !well(found) {
            continue;
        }
        if !tried(found) {
            return Ok(found);
        }
        last = Some(found);
        left -= 1;
        if left == 0 {
            break;
        }
    }
    let pool = pool.ok_or(NoEndpoint)?;
    let all = Candidates::Planned { set, pool, several: false };
    last.or_else(|| any(&all, well, &mut || hash)).ok_or(NoEndpoint)
}

struct Table<'a, 'c, C> {
    cluster: &'c ArchivedCluster,
    set: &'a ArchivedEndpointSet,
    pool: Option<&'a ArchivedPool>,
    cells: &'c C,
}

impl<'a, C: Cells> Table<'a, '_, C> {
    /// The endpoint of a hash, at the `attempt`th choice.
    fn find(&self, hash: u64, attempt: u32) -> Option<&'a ArchivedEndpoint> {
        let pool = self.pool?;
        let member = pool.table.find(hash, attempt)?;
        let member = if pool.parts.is_empty() { member } else { self.bounded(pool, member, hash) };
        self.member(pool, member)
    }

    fn member(&self, pool: &ArchivedPool, member: usize) -> Option<&'a ArchivedEndpoint> {
        self.set.endpoint(pool.members.get(member)?.to_native())
    }

    /// Another member where this one has more than its part of all active requests: in an order that the hash decides,
    /// the first that has not, else the one that has least too much (`BoundedLoadHashingLoadBalancer`).
    fn bounded(&self, pool: &ArchivedPool, member: usize, hash: u64) -> usize {
        let factor = u64::from(self.cluster.hashing.balance_factor.to_native());
        let of = |member: usize| self.member(pool, member).map_or(0, |e| self.cells.active(e.cell.to_native()));
        let active = match self.cells.active(self.cluster.cell.to_native()) {
            // Nobody counts for the whole cluster, or there is nothing to count.
            0 => (0..pool.members.len()).map(|member| u64::from(of(member))).sum(),
            active => u64::from(active),
        };
        let slots = ((active + 1) * factor).div_ceil(100) as f64;
        let overload = |member: usize| -> f64 {
            let part = pool.parts.get(member).map_or(0.0, |p| p.to_native());
            f64::from(of(member)) / (slots * part).ceil().max(1.0)
        };
        let mut least = (overload(member), member);
        if least.0 <= 1.0 {
            return member;
        }
        let mut order: Vec<usize> = (0..pool.members.len()).collect();
        let mut random = MersenneTwister::new(hash as u32);
        for i in 0..order.len() {
            let j = i + random.below((order.len() - i) as u32) as usize;
            order.swap(i, j);
            let Some(other) = order.get(i).copied().filter(|o| *o != member) else { continue };
            let load = overload(other);
            if load <= 1.0 {
                return other;
            }
            if load < least.0 {
                least = (load, other);
            }
        }
        least.1
    }
}

/// The one of the candidates that the hash likes most: who is not among them changes nothing for the others.
fn highest<'a>(
    candidates: &Candidates<'a>,
    hash: u64,
    passes: impl Fn(&ArchivedEndpoint) -> bool,
) -> Option<&'a ArchivedEndpoint> {
    // The cell is the endpoint's own in all versions of the set.
    let rank = |e: &&ArchivedEndpoint| xxhash_rust::xxh64::xxh64(&e.cell.to_native().to_le_bytes(), hash);
    (0..candidates.len()).filter_map(|n| candidates.nth(n)).filter(|e| passes(e)).max_by_key(rank)
}

/// `std::mt19937`: the order in which Envoy looks for another endpoint.
struct MersenneTwister {
    state: Vec<u32>,
    at: usize,
}

impl MersenneTwister {
    const N: usize = 624;
    const M: usize = 397;

    fn new(seed: u32) -> MersenneTwister {
        let mut state = Vec::with_capacity(Self::N);
        let mut x = seed;
        for i in 1..=Self::N as u32 {
            state.push(x);
            x = 1_812_433_253u32.wrapping_mul(x ^ (x >> 30)).wrapping_add(i);
        }
        MersenneTwister { state, at: Self::N }
    }

    fn next(&mut self) -> u32 {
        if self.at >= Self::N {
            self.at = 0;
            for i in 0..Self::N {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % Self::N] & 0x7fff_ffff);
                let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + Self::M) % Self::N] ^ (y >> 1) ^ odd;
            }
        }
        let mut y = self.state[self.at];
        self.at += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// A number below `n`, all alike; `n` is above 0.
    fn below(&mut self, n: u32) -> u32 {
        let bucket = ((1u64 << 32) / u64::from(n.max(1))).max(1);
        loop {
            let x = (u64::from(self.next()) / bucket) as u32;
            if x < n.max(1) {
                return x;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_twister_is_that_of_the_standard() {
        // C++ says that the 10,000th of the default seed is this.
        let mut random = MersenneTwister::new(5489);
        assert_eq!((0..10_000).map(|_| random.next()).last(), Some(4_123_659_995));
    }
}
