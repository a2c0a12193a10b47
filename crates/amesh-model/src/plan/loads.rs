//! How requests are shared out over priorities (`LoadBalancerBase::recalculatePerPriorityState`,
//! `recalculatePerPriorityPanic`).

/// How many endpoints of a priority are how well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Healthy ones.
    pub healthy: u64,
    /// Degraded ones.
    pub degraded: u64,
    /// All.
    pub all: u64,
}

/// Which endpoints of a priority are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// All, in panic: so few are healthy that health is no longer believed.
    All,
    /// The healthy ones.
    Healthy,
    /// The degraded ones.
    Degraded,
}

/// What a priority gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Which of the priorities.
    pub group: usize,
    /// Which of its endpoints.
    pub source: Source,
    /// Its share in per cent, above 0.
    pub percent: u64,
}

impl Census {
    /// Per cent of `part` among all endpoints times the overprovisioning factor, 100 at most.
    fn availability(&self, part: u64, factor: u32) -> u64 {
        (part * u64::from(factor)).checked_div(self.all).unwrap_or(0).min(100)
    }

    fn is_in_panic(&self, threshold: u8) -> bool {
        (self.healthy + self.degraded) * 100 < u64::from(threshold) * self.all || self.all == 0 && threshold > 0
    }
}

/// The loads of priorities, in the order in which Envoy draws: what is healthy first, then what is degraded. Together
/// they are 100 per cent; nothing for no priorities. `factor` is the overprovisioning factor, `threshold` the panic
/// threshold, both in per cent.
///
/// Priorities share the load by the availability of their healthy endpoints, in order, until it is used up; what is
/// left goes to degraded ones. With every priority in panic the load goes by the number of endpoints.
pub fn loads(groups: &[Census], factor: u32, threshold: u8) -> Vec<Load> {
    let healthy = |g: &Census| g.availability(g.healthy, factor);
    let degraded = |g: &Census| g.availability(g.degraded, factor);
    let available = groups.iter().map(|g| healthy(g) + degraded(g)).sum::<u64>().min(100);
    let panics = |g: &Census| available < 100 && g.is_in_panic(threshold);
    let mut out: Vec<(Load, bool)> = Vec::new();
    let mut left = 100;
    if groups.iter().all(panics) {
        let total: u64 = groups.iter().map(|g| g.all).sum();
        for (group, g) in groups.iter().enumerate() {
            let percent = (g.all * 100).checked_div(total).unwrap_or(0);
            left -= percent;
            out.push((Load { group, source: Source::All, percent }, g.all > 0));
        }
    } else {
        let parts = |source| groups.iter().enumerate().map(move |(group, g)| (group, g, source));
        for (group, g, source) in parts(Source::Healthy).chain(parts(Source::Degraded)) {
            let part = if source == Source::Healthy { healthy(g) } else { degraded(g) };
            let percent = (part * 100).checked_div(available).unwrap_or(0).min(left);
            left -= percent;
            let source = if panics(g) { Source::All } else { source };
            out.push((Load { group, source, percent }, part > 0));
        }
    }
    // What rounding left over is for the first that has anybody, and for the first of all if nobody has.
    let first = out.iter().position(|(_, usable)| *usable).unwrap_or(0);
    if let Some((load, _)) = out.get_mut(first) {
        load.percent += left;
    }
    out.into_iter().map(|(load, _)| load).filter(|load| load.percent > 0).collect()
}

/// The weight of a locality of which a subset has `part` of `all` endpoints (`scale_locality_weight`); it may be 0.
pub fn scaled_locality_weight(weight: u32, part: u64, all: u64) -> u32 {
    let scaled = (u64::from(weight) * part + all / 2).checked_div(all).unwrap_or(0);
    u32::try_from(scaled).unwrap_or(weight)
}

/// The weight of a locality of which `usable` of `all` endpoints may be picked, in ten thousandths
/// (`effectiveLocalityWeight`).
pub fn effective_locality_weight(weight: u32, usable: u64, all: u64, factor: u32) -> u64 {
    let available = (usable * u64::from(factor) * 100).checked_div(all).unwrap_or(0).min(10_000);
    u64::from(weight) * available
}
