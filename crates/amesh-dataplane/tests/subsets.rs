//! Subsets with policies that do not hash. Which subset takes which request is tested with the translation, against
//! Envoy's own answers.

mod common;

use amesh_dataplane::lb::{pick, Cells, PickContext, RuntimeHealth};
use amesh_model::cluster::{Cluster, LbPolicy};
use amesh_model::endpoint::{Endpoint, EndpointSet, HealthStatus};
use amesh_model::subset::{Criterion, Fallback, LbValue, Selector, Subsets};
use common::balancing::{cluster, endpoint, locality, planned, random};
use common::stored;
use std::cell::Cell;
use std::collections::BTreeMap;

#[derive(Default)]
struct Counters(Cell<u32>, Vec<u32>);

impl Cells for Counters {
    fn cursor(&self, _: u32) -> u32 {
        self.0.replace(self.0.get().wrapping_add(1))
    }
    fn active(&self, _: u32) -> u32 {
        0
    }
    fn unhealthy(&self, _: u32) -> u32 {
        self.1.len() as u32
    }
    fn health(&self, cell: u32) -> RuntimeHealth {
        if self.1.contains(&cell) {
            RuntimeHealth::Unhealthy
        } else {
            RuntimeHealth::Healthy
        }
    }
}

fn subsets() -> Subsets {
    let selector = Selector {
        keys: vec!["v".to_owned()],
        single_host_per_subset: false,
        fallback: Fallback::NotDefined,
        fallback_keys: Vec::new(),
    };
    Subsets {
        fallback: Fallback::NoFallback,
        default_subset: Vec::new(),
        selectors: vec![selector],
        locality_weight_aware: false,
        scale_locality_weight: false,
        panic_mode_any: false,
        list_as_any: false,
        allow_redundant_keys: false,
    }
}

fn labelled(cell: u32, weight: u32, v: &str) -> Endpoint {
    let value = LbValue { whole: v.to_owned(), elements: None };
    Endpoint { lb_metadata: [("v".to_owned(), value)].into(), ..endpoint(cell, weight) }
}

/// Shares in per cent of those who take requests for a subset; nothing for nobody.
fn shares(cluster: &Cluster, set: &EndpointSet, ill: &[u32], v: &str) -> BTreeMap<u32, usize> {
    let (set, cluster) = (planned(cluster, set), stored(cluster));
    let criteria = stored(&vec![Criterion { key: "v".to_owned(), value: v.to_owned() }]);
    let (counters, mut random) = (Counters(Cell::default(), ill.to_vec()), random());
    let mut context = PickContext { metadata_match: criteria, ..PickContext::new(&mut random) };
    let mut out = BTreeMap::new();
    for _ in 0..12_000 {
        if let Ok(found) = pick(cluster, set, &counters, &mut context) {
            *out.entry(found.cell.to_native()).or_default() += 1;
        }
    }
    out.into_iter().map(|(cell, n): (u32, usize)| (cell, (n + 60) / 120)).collect()
}

fn assert_near(got: &BTreeMap<u32, usize>, want: &[(u32, usize)]) {
    assert_eq!(got.keys().copied().collect::<Vec<_>>(), want.iter().map(|w| w.0).collect::<Vec<_>>());
    assert!(want.iter().all(|(cell, n)| got[cell].abs_diff(*n) <= 2), "{got:?}, not {want:?}");
}

#[test]
fn within_a_subset_the_policy_holds() {
    let list = vec![labelled(0, 1, "1"), labelled(1, 3, "2"), labelled(2, 1, "2"), labelled(3, 9, "1"), endpoint(4, 1)];
    let set = EndpointSet { localities: vec![locality(0, 0, list)], ..EndpointSet::empty("c") };
    let with = |policy| Cluster { subsets: Some(subsets()), ..cluster(policy) };
    assert_eq!(shares(&with(LbPolicy::RoundRobin), &set, &[], "2"), [(1, 75), (2, 25)].into());
    assert_eq!(shares(&with(LbPolicy::RoundRobin), &set, &[], "1"), [(0, 10), (3, 90)].into());
    assert_near(&shares(&with(LbPolicy::Random), &set, &[], "2"), &[(1, 50), (2, 50)]);
    assert_eq!(shares(&with(LbPolicy::RoundRobin), &set, &[], "3"), [].into());
}

#[test]
fn a_subset_has_its_own_health_and_panic() {
    let sick = |cell| Endpoint { health: HealthStatus::Unhealthy, ..labelled(cell, 1, "s") };
    let mut list: Vec<Endpoint> = (0..10).map(|c| labelled(c, 1, "w")).collect();
    list.extend([sick(10), sick(11), labelled(12, 1, "s")]);
    let set = EndpointSet { localities: vec![locality(0, 0, list)], ..EndpointSet::empty("c") };
    let cluster = |threshold| Cluster {
        subsets: Some(subsets()),
        healthy_panic_threshold: threshold,
        ..cluster(LbPolicy::RoundRobin)
    };
    assert_eq!(shares(&cluster(50), &set, &[], "s"), [(10, 33), (11, 33), (12, 33)].into());
    assert_eq!(shares(&cluster(0), &set, &[], "s"), [(12, 100)].into());
    assert_eq!(shares(&cluster(0), &set, &[12], "s"), [].into(), "the others are not asked instead");
    let one_less = shares(&cluster(50), &set, &[3], "w");
    assert!(one_less.len() == 9 && one_less.values().all(|n| *n == 11), "{one_less:?}");
    let most = shares(&cluster(0), &set, &[0, 1, 2, 3, 4, 5], "w");
    assert_eq!(most, [(6, 25), (7, 25), (8, 25), (9, 25)].into());
}

#[test]
fn localities_share_within_a_subset_only_if_it_says_so() {
    let near = vec![labelled(0, 1, "1"), labelled(1, 1, "2"), labelled(2, 1, "2"), labelled(3, 1, "2")];
    let localities = vec![locality(0, 4, near), locality(0, 1, vec![labelled(4, 1, "1")])];
    let set = EndpointSet { localities, ..EndpointSet::empty("c") };
    let with = |locality_weight_aware, scale_locality_weight| {
        let subsets = Subsets { locality_weight_aware, scale_locality_weight, ..subsets() };
        Cluster { subsets: Some(subsets), locality_weighted: true, ..cluster(LbPolicy::RoundRobin) }
    };
    for ill in [vec![], vec![1, 2]] {
        assert_near(&shares(&with(false, false), &set, &ill, "1"), &[(0, 50), (4, 50)]);
        assert_near(&shares(&with(true, false), &set, &ill, "1"), &[(0, 80), (4, 20)]);
        // A quarter of the locality is in the subset.
        assert_near(&shares(&with(true, true), &set, &ill, "1"), &[(0, 50), (4, 50)]);
    }
}
