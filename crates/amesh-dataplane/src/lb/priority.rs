//! The priority that takes a request (`LoadBalancerBase::recalculatePerPriorityState`, `choosePriority`).

use super::{weight, Tally};
use amesh_model::endpoint::{ArchivedEndpoint, ArchivedHealthStatus, ArchivedLocality};

/// The localities of one priority.
#[derive(Clone, Copy)]
pub(super) struct Group<'a> {
    pub(super) localities: &'a [ArchivedLocality],
    healthy: Tally,
    degraded: Tally,
    unhealthy: Tally,
}

/// Which endpoints of a priority are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// All, in panic: so few are healthy that health is no longer believed.
    All,
    /// The healthy ones.
    Healthy,
    /// The degraded ones.
    Degraded,
}

impl Source {
    pub(super) fn takes(self, endpoint: &ArchivedEndpoint) -> bool {
        match self {
            Source::All => true,
            Source::Healthy => matches!(endpoint.health, ArchivedHealthStatus::Healthy),
            Source::Degraded => matches!(endpoint.health, ArchivedHealthStatus::Degraded),
        }
    }
}

impl<'a> Group<'a> {
    pub(super) fn new(localities: &'a [ArchivedLocality]) -> Self {
        let [mut healthy, mut degraded, mut unhealthy] = [Tally::default(); 3];
        for endpoint in localities.iter().flat_map(|l| l.endpoints.as_slice()) {
            let weight = weight(endpoint);
            // Three variables, not a reference to one of them: the sums stay in registers.
            match endpoint.health {
                ArchivedHealthStatus::Healthy => healthy.add(weight),
                ArchivedHealthStatus::Degraded => degraded.add(weight),
                ArchivedHealthStatus::Unhealthy => unhealthy.add(weight),
            }
        }
        Group { localities, healthy, degraded, unhealthy }
    }

    pub(super) fn tally(&self, source: Source) -> Tally {
        match source {
            Source::All => self.healthy.plus(self.degraded).plus(self.unhealthy),
            Source::Healthy => self.healthy,
            Source::Degraded => self.degraded,
        }
    }

    fn count(&self) -> u64 {
        self.healthy.count + self.degraded.count + self.unhealthy.count
    }

    /// Per cent of `part` among all endpoints times the overprovisioning factor, 100 at most.
    fn availability(&self, part: Tally, factor: u32) -> u64 {
        (part.count * u64::from(factor)).checked_div(self.count()).unwrap_or(0).min(100)
    }

    fn is_in_panic(&self, threshold: u8) -> bool {
        (self.healthy.count + self.degraded.count) * 100 < u64::from(threshold) * self.count()
            || self.count() == 0 && threshold > 0
    }
}

/// Draws a priority. `factor` is the overprovisioning factor, `threshold` the panic threshold, both in per cent.
///
/// Priorities share the load by the availability of their healthy endpoints, in order, until it is used up; what is
/// left goes to degraded ones. With every priority in panic the load goes by the number of endpoints.
pub(super) fn choose_priority<'a>(
    groups: &[Group<'a>],
    factor: u32,
    threshold: u8,
    random: u64,
) -> (Group<'a>, Source) {
    let healthy = |g: &Group<'_>| g.availability(g.healthy, factor);
    let degraded = |g: &Group<'_>| g.availability(g.degraded, factor);
    let available = groups.iter().map(|g| healthy(g) + degraded(g)).sum::<u64>().min(100);
    let panics = |g: &Group<'_>| available < 100 && g.is_in_panic(threshold);
    let place = random % 100;
    if groups.iter().all(panics) {
        let total: u64 = groups.iter().map(Group::count).sum();
        let mut end = 0;
        let chosen = groups.iter().find(|g| {
            end += (g.count() * 100).checked_div(total).unwrap_or(0);
            place < end
        });
        // What rounding left over is for the first one that has endpoints.
        let chosen = chosen.or_else(|| groups.iter().find(|g| g.count() > 0)).unwrap_or(&groups[0]);
        return (*chosen, Source::All);
    }
    let mut end = 0;
    let parts = groups.iter().map(|g| (g, healthy(g), Source::Healthy));
    let parts = parts.chain(groups.iter().map(|g| (g, degraded(g), Source::Degraded)));
    let chosen = parts.clone().find(|(_, part, _)| {
        end += (part * 100).checked_div(available).unwrap_or(0).min(100 - end);
        place < end
    });
    let chosen = chosen.or_else(|| parts.clone().find(|(_, part, _)| *part > 0));
    let (group, _, source) = chosen.unwrap_or((&groups[0], 0, Source::Healthy));
    (*group, if panics(group) { Source::All } else { source })
}
