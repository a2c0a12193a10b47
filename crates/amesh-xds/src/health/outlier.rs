//! What an interval of outlier detection decides (`DetectorImpl::onIntervalTimer`): who may come back, and whose rate of
//! success is out of line.

use amesh_model::health::OutlierDetection;
use amesh_model::vitals::{ClusterVitals, EjectionLimits, EndpointVitals, Origin, Volume};

/// An endpoint, and what is added to the time that it is out, in ms.
pub(super) struct Member<'a> {
    pub(super) vitals: EndpointVitals<'a>,
    pub(super) jitter: u32,
}

/// Ends an interval. `now` is the clock of ejections.
pub(super) fn interval(
    o: &OutlierDetection,
    cluster: ClusterVitals<'_>,
    members: &[Member<'_>],
    now: u32,
    random: &mut dyn FnMut() -> u64,
) {
    for m in members {
        let Some(out) = m.vitals.ejected_for(now) else { continue };
        let time = (o.base_ejection_time * u64::from(m.vitals.ejections())).min(o.max_ejection_time);
        if u64::from(out) >= time + u64::from(m.jitter) {
            m.vitals.uneject(cluster);
        }
    }
    let limits = EjectionLimits::from(o);
    let (rate, share) = (o.success_rate, o.failure_percentage);
    for origin in [Origin::External, Origin::Local] {
        let (enforce_rate, enforce_share) = match origin {
            Origin::External => (rate.enforcing, share.enforcing),
            Origin::Local => (rate.enforcing_local_origin, share.enforcing_local_origin),
        };
        let volumes: Vec<Volume> = members.iter().map(|m| m.vitals.take_volume(origin)).collect();
        let enough = |least: u32| {
            let seen = members
                .iter()
                .zip(&volumes)
                .filter(move |(m, v)| v.total > 0 && v.total >= least && m.vitals.ejected_for(now).is_none());
            seen.map(|(m, v)| (m, success_rate(*v))).collect::<Vec<_>>()
        };
        let mut eject = |m: &Member<'_>, enforcing: u32| {
            if random() % 100 < u64::from(enforcing) {
                m.vitals.eject(cluster, &limits, now);
            }
        };
        // Both lists before any ejection.
        let (by_rate, by_share) = (enough(rate.request_volume), enough(share.request_volume));
        if !by_rate.is_empty() && by_rate.len() >= rate.minimum_hosts as usize {
            let least = threshold(by_rate.iter().map(|r| r.1), rate.stdev_factor);
            by_rate.iter().filter(|(_, r)| *r < least).for_each(|(m, _)| eject(m, enforce_rate));
        }
        if !by_share.is_empty() && by_share.len() >= share.minimum_hosts as usize {
            let most = f64::from(share.threshold);
            by_share.iter().filter(|(_, r)| 100.0 - r >= most).for_each(|(m, _)| eject(m, enforce_share));
        }
    }
    members.iter().filter(|m| m.vitals.ejected_for(now).is_none()).for_each(|m| m.vitals.forgive());
}

/// In per cent.
fn success_rate(v: Volume) -> f64 {
    f64::from(v.success) * 100.0 / f64::from(v.total.max(1))
}

/// Mean less so many thousandths of the standard deviation.
fn threshold(rates: impl ExactSizeIterator<Item = f64> + Clone, factor: u32) -> f64 {
    let n = rates.len().max(1) as f64;
    let mean = rates.clone().sum::<f64>() / n;
    let variance = rates.map(|r| (r - mean).powi(2)).sum::<f64>() / n;
    mean - variance.sqrt() * f64::from(factor) / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use amesh_model::health::{Consecutive, FailurePercentage, SuccessRate};
    use amesh_model::vitals::Words;

    fn config() -> OutlierDetection {
        let never = Consecutive { threshold: 5, enforcing: 0 };
        OutlierDetection {
            interval: 1000,
            base_ejection_time: 1000,
            max_ejection_time: 2500,
            max_ejection_time_jitter: 0,
            max_ejection_percent: 100,
            always_eject_one_host: false,
            split_external_local_origin_errors: false,
            successful_active_health_check_uneject_host: true,
            consecutive_5xx: never,
            consecutive_gateway_failure: never,
            consecutive_local_origin_failure: never,
            success_rate: SuccessRate {
                minimum_hosts: 3,
                request_volume: 10,
                stdev_factor: 1000,
                enforcing: 100,
                enforcing_local_origin: 0,
            },
            failure_percentage: FailurePercentage {
                threshold: 50,
                minimum_hosts: 2,
                request_volume: 10,
                enforcing: 0,
                enforcing_local_origin: 100,
            },
        }
    }

    struct Bench {
        config: OutlierDetection,
        cluster: Words,
        endpoints: Vec<Words>,
        jitter: u32,
    }

    impl Bench {
        fn new(n: usize) -> Bench {
            let endpoints: Vec<Words> = (0..n).map(|_| Words::default()).collect();
            let bench = Bench { config: config(), cluster: Words::default(), endpoints, jitter: 0 };
            ClusterVitals(&bench.cluster).recount(bench.endpoints.iter().map(EndpointVitals));
            bench
        }

        fn count(&self, at: usize, origin: Origin, total: u32, success: u32) {
            (0..total).for_each(|n| EndpointVitals(&self.endpoints[at]).count(origin, n < success));
        }

        /// Who is out after an interval.
        fn interval(&self, now: u32) -> Vec<usize> {
            let one = |words| Member { vitals: EndpointVitals(words), jitter: self.jitter };
            let members: Vec<_> = self.endpoints.iter().map(one).collect();
            interval(&self.config, ClusterVitals(&self.cluster), &members, now, &mut || 0);
            (0..members.len()).filter(|i| members[*i].vitals.ejected_for(now).is_some()).collect()
        }
    }

    #[test]
    fn who_is_far_below_the_others_is_out_for_its_time_which_grows() {
        let bench = Bench::new(4);
        let round = |now| {
            [100, 100, 99, 50].iter().enumerate().for_each(|(i, s)| bench.count(i, Origin::External, 100, *s));
            bench.interval(now)
        };
        assert_eq!(round(0), [3]);
        assert_eq!(bench.interval(999), [3], "not before its time");
        assert_eq!(bench.interval(1000), [0; 0]);
        assert_eq!(round(1001), [3], "forgiven once, ejected again");
        assert_eq!(bench.interval(2001), [0; 0]);
        // Twice without an interval in between in which it is well.
        let (cluster, last) = (ClusterVitals(&bench.cluster), EndpointVitals(&bench.endpoints[3]));
        let limits = EjectionLimits::from(&bench.config);
        for (n, time) in [1000, 2000, 2500, 2500].into_iter().enumerate() {
            assert!(last.eject(cluster, &limits, 10_000 * n as u32));
            assert_eq!(bench.interval(10_000 * n as u32 + time - 1), [3], "{n}");
            last.uneject(cluster);
        }
    }

    #[test]
    fn jitter_is_added_and_the_clock_may_wrap() {
        let mut bench = Bench::new(3);
        bench.jitter = 200;
        let limits = EjectionLimits::from(&bench.config);
        EndpointVitals(&bench.endpoints[0]).eject(ClusterVitals(&bench.cluster), &limits, u32::MAX - 99);
        assert_eq!(bench.interval(1099), [0]);
        assert_eq!(bench.interval(1100), [0; 0]);
    }

    #[test]
    fn too_few_endpoints_or_requests_say_nothing() {
        let bench = Bench::new(3);
        for (i, total) in [100, 100, 9].into_iter().enumerate() {
            bench.count(i, Origin::External, total, if i == 0 { 0 } else { total });
        }
        assert_eq!(bench.interval(0), [0; 0], "two of the three that there must be");
    }

    #[test]
    fn a_share_of_failures_is_judged_by_origin() {
        let bench = Bench::new(2);
        bench.count(0, Origin::External, 10, 0);
        bench.count(1, Origin::External, 10, 10);
        assert_eq!(bench.interval(0), [0; 0], "not enforced");
        bench.count(0, Origin::Local, 10, 5);
        bench.count(1, Origin::Local, 10, 6);
        assert_eq!(bench.interval(0), [0]);
    }
}
