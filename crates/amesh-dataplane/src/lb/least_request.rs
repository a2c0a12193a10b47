//! The endpoint with the fewest active requests (`LeastRequestLoadBalancer`).

use super::{Candidates, Cells};
use amesh_model::endpoint::ArchivedEndpoint;

/// Of more endpoints than this not all are looked at.
const ALL: usize = 16;
/// Instead so many are drawn by weight, for one of them to be drawn by its active requests.
const SAMPLE: usize = 5;

/// Of so many random ones, whose weights are equal.
pub(super) fn of_some<'a>(
    candidates: &Candidates<'a>,
    cells: &impl Cells,
    choices: u32,
    random: &mut dyn FnMut() -> u64,
) -> Option<&'a ArchivedEndpoint> {
    let mut best: Option<(&ArchivedEndpoint, u32)> = None;
    for _ in 0..choices.max(1) {
        let candidate = candidates.nth((random() % candidates.len().max(1) as u64) as usize)?;
        let active = cells.active(candidate.cell.to_native());
        if best.is_none_or(|(_, least)| active < least) {
            best = Some((candidate, active));
        }
    }
    best.map(|(endpoint, _)| endpoint)
}

/// Of all, whose weights are equal; of several with the same number any.
pub(super) fn of_all<'a>(
    candidates: &Candidates<'a>,
    cells: &impl Cells,
    random: &mut dyn FnMut() -> u64,
) -> Option<&'a ArchivedEndpoint> {
    let mut best: Option<(&ArchivedEndpoint, u32)> = None;
    let mut ties = 0;
    for candidate in (0..candidates.len()).filter_map(|n| candidates.nth(n)) {
        let active = cells.active(candidate.cell.to_native());
        match best {
            Some((_, least)) if active > least => continue,
            Some((_, least)) if active == least => ties += 1,
            _ => ties = 1,
        }
        if random().is_multiple_of(ties) {
            best = Some((candidate, active));
        }
    }
    best.map(|(endpoint, _)| endpoint)
}

/// A number below `n`, without the division that a remainder is.
fn below(n: u64, random: &mut dyn FnMut() -> u64) -> u64 {
    ((u128::from(random()) * u128::from(n)) >> 64) as u64
}

/// By weight over the power `bias` of the active requests and one: the shares that Envoy's schedule comes to. Of many
/// endpoints as far as a sample is a likeness of all: who has far fewer active requests than most comes a little short.
pub(super) fn by_weight<'a>(
    candidates: &Candidates<'a>,
    cells: &impl Cells,
    bias: f64,
    random: &mut dyn FnMut() -> u64,
) -> Option<&'a ArchivedEndpoint> {
    let looked_at = if candidates.len() <= ALL { candidates.len() } else { SAMPLE };
    let mut ends: [(Option<&ArchivedEndpoint>, f64); ALL] = [(None, 0.0); ALL];
    let mut total = 0.0;
    for (n, place) in ends.iter_mut().enumerate().take(looked_at) {
        let (candidate, weight) = match candidates.len() <= ALL {
            true => candidates.nth(n).map(|e| (e, f64::from(e.weight.to_native().max(1))))?,
            // Drawn by its weight already.
            false => (candidates.by_weight(below(candidates.units(), random))?, 1.0),
        };
        let active = f64::from(cells.active(candidate.cell.to_native())) + 1.0;
        total += weight / if bias == 1.0 { active } else { active.powf(bias) };
        *place = (Some(candidate), total);
    }
    // 53 bits are what a float of 64 holds.
    let point = (random() >> 11) as f64 / (1u64 << 53) as f64 * total;
    let ends = ends.get(..looked_at)?;
    ends.iter().find(|(_, end)| point < *end).or(ends.last()).and_then(|(endpoint, _)| *endpoint)
}
