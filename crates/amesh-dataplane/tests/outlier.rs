//! What tries count for outlier detection.

mod common;

use amesh_dataplane::outlier::{record, Outcome, Rules};
use amesh_model::health::{Consecutive, FailurePercentage, OutlierDetection, SuccessRate};
use amesh_model::vitals::{ClusterVitals, EndpointVitals, Origin, RuntimeHealth, Volume, Words};
use common::stored;

const TIMEOUT: Outcome = Outcome::Timeout { connected: true };

fn config() -> OutlierDetection {
    let every = |threshold| Consecutive { threshold, enforcing: 100 };
    OutlierDetection {
        interval: 10_000,
        base_ejection_time: 30_000,
        max_ejection_time: 300_000,
        max_ejection_time_jitter: 0,
        max_ejection_percent: 50,
        always_eject_one_host: false,
        split_external_local_origin_errors: false,
        successful_active_health_check_uneject_host: true,
        consecutive_5xx: every(3),
        consecutive_gateway_failure: every(2),
        consecutive_local_origin_failure: every(2),
        success_rate: SuccessRate {
            minimum_hosts: 5,
            request_volume: 100,
            stdev_factor: 1900,
            enforcing: 100,
            enforcing_local_origin: 100,
        },
        failure_percentage: FailurePercentage {
            threshold: 85,
            minimum_hosts: 5,
            request_volume: 50,
            enforcing: 0,
            enforcing_local_origin: 0,
        },
    }
}

/// Two endpoints of a cluster; tries are of the first.
struct Bench {
    rules: Rules,
    cluster: Words,
    endpoints: [Words; 2],
    random: u64,
}

impl Bench {
    fn new(config: OutlierDetection) -> Bench {
        let bench = Bench {
            rules: stored(&config).into(),
            cluster: Words::default(),
            endpoints: Default::default(),
            random: 0,
        };
        ClusterVitals(&bench.cluster).recount(bench.endpoints.iter().map(EndpointVitals));
        bench
    }

    fn try_at(&self, endpoint: usize, outcome: Outcome) -> bool {
        let endpoint = EndpointVitals(&self.endpoints[endpoint]);
        record(&self.rules, endpoint, ClusterVitals(&self.cluster), outcome, 0, &mut || self.random)
    }

    /// Number of the try that ejected it.
    fn ejected_by(&self, outcomes: &[Outcome]) -> Option<usize> {
        outcomes.iter().position(|o| self.try_at(0, *o))
    }
}

fn status(n: u16) -> Outcome {
    Outcome::Status(n)
}

#[test]
fn failures_in_a_row_eject_and_a_success_ends_the_row() {
    let five = status(500);
    assert_eq!(Bench::new(config()).ejected_by(&[five, five, five]), Some(2));
    assert_eq!(Bench::new(config()).ejected_by(&[five, five, status(404), five, five, five]), Some(5));
    assert_eq!(Bench::new(config()).ejected_by(&[status(502), status(504)]), Some(1), "of the gateway");
    assert_eq!(Bench::new(config()).ejected_by(&[status(502), five, status(502)]), Some(2), "all are 5xx");
    assert_eq!(Bench::new(config()).ejected_by(&[Outcome::ConnectFailure, TIMEOUT]), Some(1), "as 503 and 504");
    assert_eq!(Bench::new(config()).ejected_by(&[five, five, Outcome::Unknown, five]), Some(3));
    let bench = Bench::new(config());
    assert!(bench.ejected_by(&[five, five, five]).is_some());
    assert_eq!(EndpointVitals(&bench.endpoints[0]).health(), RuntimeHealth::Unhealthy);
    assert!(![five; 6].into_iter().any(|o| bench.try_at(1, o)), "one of two is out already");
}

#[test]
fn what_is_not_enforced_is_only_counted_and_the_row_begins_anew() {
    let mut some = config();
    some.consecutive_5xx.enforcing = 40;
    let mut bench = Bench::new(some);
    bench.random = 40;
    assert_eq!(bench.ejected_by(&[status(500); 5]), None);
    bench.random = 39;
    assert_eq!(bench.ejected_by(&[status(500); 5]), Some(0), "the sixth in all");
}

#[test]
fn failures_of_our_side_are_split_off_where_the_cluster_says_so() {
    let split = || Bench::new(OutlierDetection { split_external_local_origin_errors: true, ..config() });
    assert_eq!(split().ejected_by(&[Outcome::ConnectFailure, Outcome::ConnectFailure]), Some(1));
    assert_eq!(split().ejected_by(&[Outcome::ConnectFailure, status(503), Outcome::ConnectFailure]), None);
    assert_eq!(split().ejected_by(&[TIMEOUT; 4]), None, "each had a connection, which ends the row");
    let bench = split();
    assert_eq!(bench.ejected_by(&[status(200), status(500), Outcome::ConnectFailure]), None);
    let first = EndpointVitals(&bench.endpoints[0]);
    assert_eq!(first.take_volume(Origin::External), Volume { total: 2, success: 1 });
    assert_eq!(first.take_volume(Origin::Local), Volume { total: 3, success: 2 });
    assert_eq!(first.take_volume(Origin::Local), Volume::default());
}
