//! What the result of an active health check makes of an endpoint (`HealthCheckerImplBase::ActiveHealthCheckSession`).

use amesh_model::health::HealthCheck;
use amesh_model::vitals::{CHECKED, DEGRADED_ACTIVE_HC, FAILED_ACTIVE_HC, PENDING_ACTIVE_HC};

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checked {
    /// As it should be.
    Success {
        /// The endpoint says that it is degraded.
        degraded: bool,
    },
    /// Not so.
    Failure {
        /// The endpoint itself said so: one is enough. Otherwise the network may be to blame, and thresholds count.
        at_once: bool,
        /// What happened.
        why: String,
    },
}

/// Whether a result changed anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// No.
    Unchanged,
    /// More of the same will.
    Pending,
    /// Yes.
    Changed,
}

/// What a result makes of an endpoint's flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Flags to set.
    pub set: u32,
    /// Flags to clear.
    pub clear: u32,
    /// Whether that is a change.
    pub transition: Transition,
    success: bool,
}

/// Results in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streak {
    successes: u32,
    failures: u32,
}

impl Streak {
    /// Takes a result in. `flags` are those of the endpoint now. The first result decides by itself.
    pub fn step(&mut self, flags: u32, check: &HealthCheck, result: &Checked) -> Step {
        let first = flags & CHECKED == 0;
        let failed = flags & FAILED_ACTIVE_HC != 0;
        let mut step =
            Step { set: CHECKED, clear: PENDING_ACTIVE_HC, transition: Transition::Unchanged, success: false };
        match result {
            Checked::Success { degraded } => {
                step.success = true;
                self.failures = 0;
                if failed {
                    self.successes += 1;
                    if first || self.successes >= check.healthy_threshold {
                        step.clear |= FAILED_ACTIVE_HC;
                        step.transition = Transition::Changed;
                    } else {
                        step.transition = Transition::Pending;
                    }
                }
                let was = flags & DEGRADED_ACTIVE_HC != 0;
                *if *degraded { &mut step.set } else { &mut step.clear } |= DEGRADED_ACTIVE_HC;
                if was != *degraded && step.transition == Transition::Unchanged {
                    step.transition = Transition::Changed;
                }
            }
            Checked::Failure { at_once, .. } => {
                self.successes = 0;
                if !failed {
                    self.failures += 1;
                    if first || *at_once || self.failures >= check.unhealthy_threshold {
                        step.set |= FAILED_ACTIVE_HC;
                        step.transition = Transition::Changed;
                    } else {
                        step.transition = Transition::Pending;
                    }
                }
            }
        }
        if step.transition == Transition::Changed {
            *self = Streak::default();
        }
        step
    }
}

impl Step {
    /// Time to the next check in ms. `traffic`: the cluster has had any.
    pub fn interval(&self, check: &HealthCheck, traffic: bool, random: &mut dyn FnMut() -> u64) -> u64 {
        let pending = self.transition == Transition::Pending;
        let base = match (traffic, self.success, pending) {
            (true, true, false) => check.interval,
            (true, true, true) => check.healthy_edge_interval,
            (true, false, false) => check.unhealthy_interval,
            (true, false, true) => check.unhealthy_edge_interval,
            (false, true, false) => check.no_traffic_healthy_interval,
            (false, _, _) => check.no_traffic_interval,
        };
        let mut up_to = |limit: u64| if limit == 0 { 0 } else { random() % limit };
        let share = base.saturating_mul(check.interval_jitter_percent.into()) / 100;
        base.saturating_add(up_to(share)).saturating_add(up_to(check.interval_jitter))
    }
}

#[cfg(test)]
pub(super) use tests::check as check_for_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use amesh_model::health::HealthCheckKind;
    use proptest::prelude::*;

    pub(crate) fn check() -> HealthCheck {
        HealthCheck {
            timeout: 100,
            interval: 1000,
            initial_jitter: 0,
            interval_jitter: 0,
            interval_jitter_percent: 0,
            unhealthy_threshold: 3,
            healthy_threshold: 2,
            no_traffic_interval: 60_000,
            no_traffic_healthy_interval: 70_000,
            unhealthy_interval: 2000,
            unhealthy_edge_interval: 300,
            healthy_edge_interval: 400,
            reuse_connection: true,
            alt_port: 0,
            always_log_failures: false,
            always_log_success: false,
            kind: HealthCheckKind::Tcp { send: Vec::new(), receive: Vec::new() },
        }
    }

    const GOOD: Checked = Checked::Success { degraded: false };
    const POOR: Checked = Checked::Success { degraded: true };

    fn bad(at_once: bool) -> Checked {
        Checked::Failure { at_once, why: String::new() }
    }

    /// Health and time to the next check after each result.
    fn run(mut flags: u32, results: &[Checked]) -> Vec<(char, u64)> {
        let mut streak = Streak::default();
        let one = |result: &Checked| {
            let step = streak.step(flags, &check(), result);
            flags = (flags & !step.clear) | step.set;
            let health = match flags {
                f if f & FAILED_ACTIVE_HC != 0 => 'u',
                f if f & DEGRADED_ACTIVE_HC != 0 => 'd',
                _ => 'h',
            };
            (health, step.interval(&check(), true, &mut || 0))
        };
        results.iter().map(one).collect()
    }

    #[test]
    fn thresholds_count_failures_and_successes_in_a_row_but_the_first_result_decides() {
        let n = || bad(false);
        assert_eq!(
            run(0, &[GOOD, n(), n(), GOOD, n(), n(), n()]),
            [('h', 1000), ('h', 300), ('h', 300), ('h', 1000), ('h', 300), ('h', 300), ('u', 2000),]
        );
        assert_eq!(
            run(0, &[n(), n(), GOOD, n(), GOOD, GOOD]),
            [('u', 2000), ('u', 2000), ('u', 400), ('u', 2000), ('u', 400), ('h', 1000),]
        );
        let new = FAILED_ACTIVE_HC | PENDING_ACTIVE_HC;
        assert_eq!(run(new, &[GOOD]), [('h', 1000)]);
        assert_eq!(run(new, &[n(), GOOD]), [('u', 2000), ('u', 400)]);
    }

    #[test]
    fn what_the_endpoint_says_itself_counts_at_once() {
        assert_eq!(run(0, &[GOOD, bad(true)]), [('h', 1000), ('u', 2000)]);
        assert_eq!(run(0, &[GOOD, POOR, GOOD]), [('h', 1000), ('d', 1000), ('h', 1000)]);
    }

    #[test]
    fn without_traffic_checks_are_rare() {
        let interval = |result: Checked, flags| {
            Streak::default().step(flags, &check(), &result).interval(&check(), false, &mut || 0)
        };
        assert_eq!(interval(GOOD, CHECKED), 70_000);
        assert_eq!(interval(GOOD, CHECKED | FAILED_ACTIVE_HC), 60_000);
        assert_eq!(interval(bad(false), CHECKED), 60_000);
    }

    proptest! {
        #[test]
        fn jitter_is_added_within_its_bounds(jitter in 0u64..500, percent in 0u32..200, random in any::<u64>()) {
            let check = HealthCheck { interval_jitter: jitter, interval_jitter_percent: percent, ..check() };
            let step = Streak::default().step(CHECKED, &check, &GOOD);
            let interval = step.interval(&check, true, &mut || random);
            prop_assert!((1000..=1000 + jitter + u64::from(percent) * 10).contains(&interval));
        }

        /// Whatever comes: healthy after so many successes in a row, unhealthy after so many failures.
        #[test]
        fn rows_always_tell(results in proptest::collection::vec(any::<bool>(), 3..40)) {
            let all: Vec<Checked> = results.iter().map(|good| if *good { GOOD } else { bad(false) }).collect();
            let health = run(0, &all);
            for (at, window) in results.windows(3).enumerate() {
                if window == [false; 3] {
                    prop_assert_eq!(health[at + 2].0, 'u');
                }
                if window[1..] == [true; 2] {
                    prop_assert_eq!(health[at + 2].0, 'h');
                }
            }
        }
    }
}
