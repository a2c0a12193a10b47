//! What workers and the thread tell each other of endpoints at run time: words in the cells of shared memory.
//!
//! The words of an endpoint hold its health, set by active checks (the thread) and by ejections (any worker, and the
//! thread), and what requests counted for outlier detection. The words of its cluster say how many endpoints are not
//! healthy, so that a pick learns with one load that all are. Those counts are raised before an endpoint's word changes
//! and lowered after, so they are never too low; what a worker that was killed in between left is put right by
//! [`ClusterVitals::recount`].

use crate::health::{ArchivedOutlierDetection, OutlierDetection};
use std::sync::atomic::{AtomicU32, Ordering};

/// Number of words.
pub const WORDS: usize = 14;
/// The words of a cell.
pub type Words = [AtomicU32; WORDS];

/// An active check found it unhealthy, or has not yet found anything of a new endpoint (`FAILED_ACTIVE_HC`).
pub const FAILED_ACTIVE_HC: u32 = 1;
/// An active check found it degraded (`DEGRADED_ACTIVE_HC`).
pub const DEGRADED_ACTIVE_HC: u32 = 2;
/// It is ejected (`FAILED_OUTLIER_CHECK`).
pub const FAILED_OUTLIER_CHECK: u32 = 4;
/// Active checks have found nothing yet (`PENDING_ACTIVE_HC`).
pub const PENDING_ACTIVE_HC: u32 = 8;
/// An active check has found something of it.
pub const CHECKED: u32 = 16;

/// The health of an endpoint at run time, beside what the control plane says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuntimeHealth {
    /// Nothing is wrong.
    #[default]
    Healthy,
    /// Taken where there are not enough healthy ones.
    Degraded,
    /// Taken in panic only.
    Unhealthy,
}

impl RuntimeHealth {
    /// The health that flags stand for.
    #[inline]
    pub fn of(flags: u32) -> RuntimeHealth {
        if flags & (FAILED_ACTIVE_HC | FAILED_OUTLIER_CHECK) != 0 {
            RuntimeHealth::Unhealthy
        } else if flags & DEGRADED_ACTIVE_HC != 0 {
            RuntimeHealth::Degraded
        } else {
            RuntimeHealth::Healthy
        }
    }
}

/// Requests of an interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// All.
    pub total: u32,
    /// Those that succeeded.
    pub success: u32,
}

/// Which failures are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Responses; where they are not split, everything.
    External,
    /// Failures of our side.
    Local,
}

/// Failures in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// 5xx.
    FiveXx = 5,
    /// 502, 503, 504.
    Gateway = 6,
    /// Of our side.
    Local = 7,
}

/// The words of an endpoint.
#[derive(Clone, Copy, Debug)]
pub struct EndpointVitals<'a>(pub &'a Words);

/// Words of an endpoint; those from 10 on are not used here.
mod at {
    pub(super) const VOLUME: [[usize; 2]; 2] = [[0, 1], [8, 9]];
    pub(super) const FLAGS: usize = 2;
    pub(super) const EJECTED_AT: usize = 3;
    pub(super) const EJECTIONS: usize = 4;
}

/// The words of a cluster.
#[derive(Clone, Copy, Debug)]
pub struct ClusterVitals<'a>(pub &'a Words);

/// Words of a cluster.
mod cluster {
    pub(super) const UNHEALTHY: usize = 2;
    pub(super) const EJECTED: usize = 3;
    pub(super) const MEMBERS: usize = 4;
}

fn unhealthy(flags: u32) -> bool {
    RuntimeHealth::of(flags) != RuntimeHealth::Healthy
}

fn ejected(flags: u32) -> bool {
    flags & FAILED_OUTLIER_CHECK != 0
}

impl<'a> EndpointVitals<'a> {
    /// The flags.
    #[inline]
    pub fn flags(self) -> u32 {
        self.0[at::FLAGS].load(Ordering::Acquire)
    }

    /// Its health.
    #[inline]
    pub fn health(self) -> RuntimeHealth {
        RuntimeHealth::of(self.flags())
    }

    /// Sets and clears flags, and keeps the cluster's counts right. Returns the flags before.
    pub fn change(self, cluster: ClusterVitals<'_>, set: u32, clear: u32) -> u32 {
        let word = &self.0[at::FLAGS];
        let mut now = word.load(Ordering::Acquire);
        loop {
            let next = (now & !clear) | set;
            if next == now {
                return now;
            }
            let counts = [(cluster::UNHEALTHY, unhealthy as fn(u32) -> bool), (cluster::EJECTED, ejected)];
            counts.iter().filter(|(_, is)| !is(now) && is(next)).for_each(|(count, _)| cluster.add(*count));
            match word.compare_exchange(now, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    counts.iter().filter(|(_, is)| is(now) && !is(next)).for_each(|(count, _)| cluster.sub(*count));
                    return now;
                }
                Err(seen) => {
                    counts.iter().filter(|(_, is)| !is(now) && is(next)).for_each(|(count, _)| cluster.sub(*count));
                    now = seen;
                }
            }
        }
    }

    /// Takes it out of use, unless too many are. `now` is [`crate::vitals`]' clock: ms, which wrap. Whether it did.
    pub fn eject(self, cluster: ClusterVitals<'_>, limits: &EjectionLimits, now: u32) -> bool {
        if ejected(self.flags()) || !cluster.reserve(limits) {
            return false;
        }
        // Before the flag: who sees the flag sees the time.
        self.0[at::EJECTED_AT].store(now, Ordering::Relaxed);
        let word = &self.0[at::FLAGS];
        let mut flags = word.load(Ordering::Acquire);
        loop {
            if ejected(flags) {
                cluster.sub(cluster::EJECTED);
                return false;
            }
            if !unhealthy(flags) {
                cluster.add(cluster::UNHEALTHY);
            }
            match word.compare_exchange(flags, flags | FAILED_OUTLIER_CHECK, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break,
                Err(seen) => {
                    if !unhealthy(flags) {
                        cluster.sub(cluster::UNHEALTHY);
                    }
                    flags = seen;
                }
            }
        }
        let times = &self.0[at::EJECTIONS];
        let so_far = times.load(Ordering::Relaxed);
        if u64::from(so_far) * limits.base < limits.max + limits.base {
            times.store(so_far.saturating_add(1), Ordering::Relaxed);
        }
        true
    }

    /// How long it is out by now, in ms; `None`: it is not.
    pub fn ejected_for(self, now: u32) -> Option<u32> {
        ejected(self.flags()).then(|| now.wrapping_sub(self.0[at::EJECTED_AT].load(Ordering::Relaxed)))
    }

    /// Times that it was ejected, less the intervals that it was well.
    pub fn ejections(self) -> u32 {
        self.0[at::EJECTIONS].load(Ordering::Relaxed)
    }

    /// An interval without an ejection.
    pub fn forgive(self) {
        let times = &self.0[at::EJECTIONS];
        let _ = times.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
    }

    /// Brings it back.
    pub fn uneject(self, cluster: ClusterVitals<'_>) {
        for run in [Run::FiveXx, Run::Gateway, Run::Local] {
            self.reset(run);
        }
        self.change(cluster, 0, FAILED_OUTLIER_CHECK);
    }

    /// One more failure in a row; how many now.
    #[inline]
    pub fn failed(self, run: Run) -> u32 {
        self.0[run as usize].fetch_add(1, Ordering::AcqRel).wrapping_add(1)
    }

    /// The row is over.
    #[inline]
    pub fn reset(self, run: Run) {
        let word = &self.0[run as usize];
        // Mostly it is 0, and the line stays shared.
        if word.load(Ordering::Relaxed) != 0 {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Counts a request of the interval.
    #[inline]
    pub fn count(self, origin: Origin, success: bool) {
        let [total, succeeded] = at::VOLUME[origin as usize];
        self.0[total].fetch_add(1, Ordering::Relaxed);
        if success {
            self.0[succeeded].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The requests of the interval that ends, and none of the next.
    pub fn take_volume(self, origin: Origin) -> Volume {
        let [total, succeeded] = at::VOLUME[origin as usize];
        // Successes first: one that comes in between is of the next interval, with its request.
        let success = self.0[succeeded].swap(0, Ordering::Relaxed);
        let total = self.0[total].swap(0, Ordering::Relaxed);
        Volume { total: total.max(success), success }
    }

    /// Takes over what another cell knows of the same endpoint.
    pub fn copy_from(self, other: EndpointVitals<'_>) {
        for (to, from) in self.0.iter().zip(other.0) {
            to.store(from.load(Ordering::Acquire), Ordering::Release);
        }
    }
}

impl ClusterVitals<'_> {
    fn add(self, count: usize) {
        self.0[count].fetch_add(1, Ordering::AcqRel);
    }

    fn sub(self, count: usize) {
        let _ = self.0[count].fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| Some(n.saturating_sub(1)));
    }

    /// Endpoints that are not healthy at run time. Never too low; 0: all are.
    #[inline]
    pub fn unhealthy(self) -> u32 {
        self.0[cluster::UNHEALTHY].load(Ordering::Acquire)
    }

    /// Endpoints that are ejected.
    pub fn ejected(self) -> u32 {
        self.0[cluster::EJECTED].load(Ordering::Acquire)
    }

    /// One more ejection, if the limits allow it.
    fn reserve(self, limits: &EjectionLimits) -> bool {
        let members = u64::from(self.0[cluster::MEMBERS].load(Ordering::Relaxed));
        let allowed = |n: u32| {
            (u64::from(n) + 1) * 100 <= u64::from(limits.max_percent.min(100)) * members
                || (limits.always_one && n == 0)
        };
        let more = |n: u32| allowed(n).then_some(n + 1);
        self.0[cluster::EJECTED].fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    /// Puts the counts right: these are all endpoints, each once. By the thread alone, after every change of them and
    /// now and then. A worker that changes an endpoint at the same time may leave a count one too low until the next.
    pub fn recount<'b>(self, endpoints: impl Iterator<Item = EndpointVitals<'b>>) {
        let (mut members, mut not_healthy, mut out) = (0, 0, 0);
        let before = (self.unhealthy(), self.ejected());
        for flags in endpoints.map(EndpointVitals::flags) {
            members += 1;
            not_healthy += u32::from(unhealthy(flags));
            out += u32::from(ejected(flags));
        }
        self.0[cluster::MEMBERS].store(members, Ordering::Relaxed);
        for (count, was, is) in [(cluster::UNHEALTHY, before.0, not_healthy), (cluster::EJECTED, before.1, out)] {
            // Changed meanwhile: the next time will do.
            let _ = self.0[count].compare_exchange(was, is, Ordering::AcqRel, Ordering::Acquire);
        }
    }
}

/// What bounds ejections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EjectionLimits {
    /// `max_ejection_percent`.
    pub max_percent: u32,
    /// `always_eject_one_host`.
    pub always_one: bool,
    /// `base_ejection_time`, ms.
    pub base: u64,
    /// `max_ejection_time`, ms.
    pub max: u64,
}

impl From<&OutlierDetection> for EjectionLimits {
    fn from(o: &OutlierDetection) -> EjectionLimits {
        EjectionLimits {
            max_percent: o.max_ejection_percent,
            always_one: o.always_eject_one_host,
            base: o.base_ejection_time,
            max: o.max_ejection_time,
        }
    }
}

impl From<&ArchivedOutlierDetection> for EjectionLimits {
    fn from(o: &ArchivedOutlierDetection) -> EjectionLimits {
        EjectionLimits {
            max_percent: o.max_ejection_percent.to_native(),
            always_one: o.always_eject_one_host,
            base: o.base_ejection_time.to_native(),
            max: o.max_ejection_time.to_native(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: EjectionLimits = EjectionLimits { max_percent: 50, always_one: false, base: 1000, max: 3000 };

    fn words(n: usize) -> Vec<Words> {
        (0..n).map(|_| Words::default()).collect()
    }

    fn recount(cluster: &Words, endpoints: &[Words]) {
        ClusterVitals(cluster).recount(endpoints.iter().map(EndpointVitals));
    }

    #[test]
    fn ejections_stop_at_the_share_and_grow_longer_up_to_the_limit() {
        let (cluster, endpoints) = (Words::default(), words(5));
        let all = ClusterVitals(&cluster);
        assert!(!EndpointVitals(&endpoints[0]).eject(all, &LIMITS, 0), "nobody knows yet how many there are");
        recount(&cluster, &endpoints);
        let out = |i: usize| EndpointVitals(&endpoints[i]).eject(all, &LIMITS, 7);
        assert_eq!([out(0), out(0), out(1), out(2)], [true, false, true, false]);
        assert_eq!((all.ejected(), all.unhealthy()), (2, 2));
        assert_eq!(EndpointVitals(&endpoints[0]).ejected_for(3u32.wrapping_sub(1)), Some(2u32.wrapping_sub(7)));
        let first = EndpointVitals(&endpoints[0]);
        for n in 1..8 {
            assert_eq!(first.ejections(), n.min(4), "as in Envoy, once more than the limit is worth");
            first.uneject(all);
            assert!(out(0));
        }
        first.uneject(all);
        first.forgive();
        assert_eq!((first.ejections(), all.ejected()), (3, 1));
        let one = EjectionLimits { max_percent: 0, always_one: true, ..LIMITS };
        EndpointVitals(&endpoints[1]).uneject(all);
        assert!(
            EndpointVitals(&endpoints[1]).eject(all, &one, 0) && !EndpointVitals(&endpoints[2]).eject(all, &one, 0)
        );
    }

    #[test]
    fn counts_are_right_under_changes_from_all_sides() {
        let (cluster, endpoints) = (Words::default(), words(8));
        recount(&cluster, &endpoints);
        std::thread::scope(|s| {
            for seed in 0..4u32 {
                let (cluster, endpoints) = (&cluster, &endpoints);
                s.spawn(move || {
                    let mut random = seed;
                    for _ in 0..20_000 {
                        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        let endpoint = EndpointVitals(&endpoints[(random >> 8) as usize % 8]);
                        let all = ClusterVitals(cluster);
                        match random >> 28 {
                            0..4 => {
                                endpoint.eject(all, &LIMITS, 0);
                            }
                            4..8 => endpoint.uneject(all),
                            8..12 => {
                                endpoint.change(all, FAILED_ACTIVE_HC, DEGRADED_ACTIVE_HC);
                            }
                            _ => {
                                endpoint.change(all, DEGRADED_ACTIVE_HC, FAILED_ACTIVE_HC);
                            }
                        }
                        assert!(all.ejected() <= 4);
                    }
                });
            }
        });
        let all = ClusterVitals(&cluster);
        let before = (all.unhealthy(), all.ejected());
        recount(&cluster, &endpoints);
        assert_eq!((all.unhealthy(), all.ejected()), before);
    }

    proptest! {
        #[test]
        fn a_recount_mends_anything(flags in proptest::collection::vec(0u32..32, 0..20), wrong in any::<[u32; 2]>()) {
            let (cluster, endpoints) = (Words::default(), words(flags.len()));
            for (w, f) in endpoints.iter().zip(&flags) {
                w[at::FLAGS].store(*f, Ordering::Relaxed);
            }
            cluster[cluster::UNHEALTHY].store(wrong[0], Ordering::Relaxed);
            cluster[cluster::EJECTED].store(wrong[1], Ordering::Relaxed);
            recount(&cluster, &endpoints);
            let unhealthy = flags.iter().filter(|f| RuntimeHealth::of(**f) != RuntimeHealth::Healthy).count();
            let out = flags.iter().filter(|f| **f & FAILED_OUTLIER_CHECK != 0).count();
            let all = ClusterVitals(&cluster);
            prop_assert_eq!((all.unhealthy() as usize, all.ejected() as usize), (unhealthy, out));
            for w in &endpoints {
                EndpointVitals(w).change(all, 0, u32::MAX);
            }
            prop_assert_eq!((all.unhealthy(), all.ejected()), (0, 0));
        }
    }
}
