//! Which endpoint takes a request.

mod common;

use amesh_dataplane::lb::{pick, weighted_pick, Cells, NoEndpoint, PickContext, RuntimeHealth};
use amesh_model::cluster::{Cluster, LbPolicy, SlowStart};
use amesh_model::endpoint::{ArchivedEndpoint, Endpoint, EndpointSet, HealthStatus, Locality};
use common::balancing::{cluster, endpoint, locality, planned, random};
use common::stored;
use proptest::prelude::*;
use std::cell::Cell;
use std::collections::BTreeMap;

#[derive(Default)]
struct Counters {
    cursor: Cell<u32>,
    active: BTreeMap<u32, u32>,
    health: BTreeMap<u32, RuntimeHealth>,
}

impl Cells for Counters {
    fn cursor(&self, _: u32) -> u32 {
        self.cursor.replace(self.cursor.get().wrapping_add(1))
    }
    fn active(&self, cell: u32) -> u32 {
        self.active.get(&cell).copied().unwrap_or(0)
    }
    fn unhealthy(&self, _: u32) -> u32 {
        self.health.values().filter(|h| **h != RuntimeHealth::Healthy).count() as u32
    }
    fn health(&self, cell: u32) -> RuntimeHealth {
        self.health.get(&cell).copied().unwrap_or_default()
    }
}

fn sick(cell: u32) -> Endpoint {
    Endpoint { health: HealthStatus::Unhealthy, ..endpoint(cell, 1) }
}

fn weak(cell: u32) -> Endpoint {
    Endpoint { health: HealthStatus::Degraded, ..endpoint(cell, 1) }
}

fn set(localities: Vec<Locality>) -> EndpointSet {
    EndpointSet { localities, ..EndpointSet::empty("c") }
}

fn one(endpoints: Vec<Endpoint>) -> EndpointSet {
    set(vec![locality(0, 0, endpoints)])
}

/// The cells of `n` picks, in their order.
fn picks(cluster: &Cluster, set: &EndpointSet, counters: &Counters, n: usize) -> Vec<u32> {
    let (cluster, set) = (stored(cluster), planned(cluster, set));
    let mut random = random();
    let mut context = PickContext::new(&mut random);
    (0..n).map(|_| pick(cluster, set, counters, &mut context).unwrap().cell.to_native()).collect()
}

/// How often each cell was picked.
fn shares(cluster: &Cluster, set: &EndpointSet, n: usize) -> BTreeMap<u32, usize> {
    shares_at(cluster, set, &Counters::default(), n)
}

fn shares_at(cluster: &Cluster, set: &EndpointSet, counters: &Counters, n: usize) -> BTreeMap<u32, usize> {
    let mut shares = BTreeMap::new();
    picks(cluster, set, counters, n).into_iter().for_each(|cell| *shares.entry(cell).or_default() += 1);
    shares
}

/// Asserts shares in per cent, give or take two.
fn assert_shares(cluster: &Cluster, set: &EndpointSet, want: &[(u32, usize)]) {
    assert_shares_at(cluster, set, &Counters::default(), want);
}

fn assert_shares_at(cluster: &Cluster, set: &EndpointSet, counters: &Counters, want: &[(u32, usize)]) {
    let got = shares_at(cluster, set, counters, 20_000);
    assert_eq!(got.keys().copied().collect::<Vec<_>>(), want.iter().map(|(c, _)| *c).collect::<Vec<_>>());
    for (cell, share) in want {
        assert!((got[cell] / 200).abs_diff(*share) <= 2, "cell {cell}: {} of 20000, not {share} %", got[cell]);
    }
}

fn refused(cluster: &Cluster, set: &EndpointSet) -> bool {
    let mut random = random();
    let got = pick(stored(cluster), planned(cluster, set), &Counters::default(), &mut PickContext::new(&mut random));
    got.map(|e| e.cell.to_native()) == Err(NoEndpoint)
}

#[test]
fn round_robin_meets_every_endpoint_once_in_a_cycle() {
    for n in [1u32, 2, 3, 4, 5, 7, 10, 12, 100, 1000] {
        let set = one((0..n).map(|c| endpoint(c, 3)).collect());
        let mut got = picks(&cluster(LbPolicy::RoundRobin), &set, &Counters::default(), n as usize);
        got.sort_unstable();
        assert_eq!(got, (0..n).collect::<Vec<_>>());
    }
}

#[test]
fn round_robin_keeps_to_the_weights_without_runs() {
    let set = one(vec![endpoint(0, 80), endpoint(1, 20)]);
    let got = picks(&cluster(LbPolicy::RoundRobin), &set, &Counters::default(), 100);
    assert_eq!(got.iter().filter(|c| **c == 1).count(), 20);
    let longest = got.split(|c| *c == 1).map(<[u32]>::len).max().unwrap();
    assert!(longest <= 5, "{longest} in a row");
    let set = one(vec![endpoint(0, 50), endpoint(1, 30), endpoint(2, 20)]);
    let got = picks(&cluster(LbPolicy::RoundRobin), &set, &Counters::default(), 10);
    assert_eq!([0, 1, 2].map(|cell| got.iter().filter(|c| **c == cell).count()), [5, 3, 2]);
}

#[test]
fn round_robin_goes_on_where_another_worker_left_off() {
    let set = one((0..10).map(|c| endpoint(c, 1)).collect());
    let counters = Counters::default();
    let mut got = picks(&cluster(LbPolicy::RoundRobin), &set, &counters, 6);
    got.extend(picks(&cluster(LbPolicy::RoundRobin), &set, &counters, 4));
    got.sort_unstable();
    assert_eq!(got, (0..10).collect::<Vec<_>>());
}

#[test]
fn the_cursor_may_wrap() {
    let counters = Counters::default();
    counters.cursor.set(u32::MAX - 5);
    let set = one(vec![endpoint(0, 1), endpoint(1, 2)]);
    assert_eq!(picks(&cluster(LbPolicy::RoundRobin), &set, &counters, 20).len(), 20);
}

#[test]
fn random_does_not_look_at_weights() {
    let set = one(vec![endpoint(0, 90), endpoint(1, 10)]);
    assert_shares(&cluster(LbPolicy::Random), &set, &[(0, 50), (1, 50)]);
}

#[test]
fn least_request_follows_the_weights_when_idle() {
    let policy = cluster(LbPolicy::LEAST_REQUEST);
    assert_shares(&policy, &one((0..4).map(|c| endpoint(c, 1)).collect()), &[(0, 25), (1, 25), (2, 25), (3, 25)]);
    assert_shares(&policy, &one(vec![endpoint(0, 80), endpoint(1, 20)]), &[(0, 80), (1, 20)]);
}

#[test]
fn least_request_avoids_the_busy() {
    let policy = cluster(LbPolicy::LEAST_REQUEST);
    let share = |set: EndpointSet, active: &[(u32, u32)]| {
        let counters = Counters { active: active.iter().copied().collect(), ..Counters::default() };
        let got = picks(&policy, &set, &counters, 10_000);
        got.iter().filter(|c| **c == 0).count() / 100
    };
    let even = || one(vec![endpoint(0, 1), endpoint(1, 1)]);
    assert!((23..=27).contains(&share(even(), &[(0, 5)])), "picked only when both choices are it");
    assert!((73..=77).contains(&share(even(), &[(0, 5), (1, 6)])));
    // By weight over active requests and one: 3/3 to 1/2, and 3/5 to 1/2.
    let heavy = || one(vec![endpoint(0, 3), endpoint(1, 1)]);
    assert!((64..=71).contains(&share(heavy(), &[(0, 2), (1, 1)])));
    assert!((52..=58).contains(&share(heavy(), &[(0, 4), (1, 1)])));
}

#[test]
fn least_request_counts_active_requests_as_the_bias_says() {
    let policy = |active_request_bias| {
        cluster(LbPolicy::LeastRequest { choice_count: 2, full_scan: false, active_request_bias })
    };
    let set = one(vec![endpoint(0, 3), endpoint(1, 1)]);
    let counters = Counters { active: [(0, 3)].into(), ..Counters::default() };
    // 3/1 to 1, 3/4 to 1 and 3/16 to 1.
    for (bias, want) in [(0.0, 75), (1.0, 43), (2.0, 16)] {
        let got = shares_at(&policy(bias), &set, &counters, 20_000)[&0] / 200;
        assert!(got.abs_diff(want) <= 4, "bias {bias}: {got} %");
    }
    let even = one(vec![endpoint(0, 1), endpoint(1, 1)]);
    assert_shares_at(
        &policy(0.0),
        &even,
        &Counters { active: [(0, 3)].into(), ..Counters::default() },
        &[(0, 25), (1, 75)],
    );
}

#[test]
fn a_full_scan_finds_the_least_of_all() {
    let policy = LbPolicy::LeastRequest { choice_count: 2, full_scan: true, active_request_bias: 1.0 };
    let set = one((0..50).map(|c| endpoint(c, 1)).collect());
    let active = (0..50).map(|c| (c, if c % 25 == 7 { 1 } else { 2 })).collect();
    let counters = Counters { active, ..Counters::default() };
    assert_shares_at(&cluster(policy), &set, &counters, &[(7, 50), (32, 50)]);
}

#[test]
fn new_endpoints_get_their_share_little_by_little() {
    let slow = |aggression, least| Some(SlowStart { window: 10_000, aggression, least });
    let new = |cell, added| Endpoint { added, ..endpoint(cell, 1) };
    let share = |policy, slow_start, now: u64| {
        let cluster = Cluster { slow_start, ..cluster(policy) };
        let set = one(vec![new(0, 100_000), new(1, 150_000)]);
        let (set, cluster) = (planned(&cluster, &set), stored(&cluster));
        let (counters, mut random) = (Counters::default(), random());
        let mut context = PickContext { now, ..PickContext::new(&mut random) };
        let mut one = || pick(cluster, set, &counters, &mut context).unwrap().cell.to_native();
        (0..20_000).filter(|_| one() == 1).count() as f64 / 20_000.0
    };
    let round_robin = LbPolicy::RoundRobin;
    // The part p of a new one among one other is p / (1 + p).
    for (policy, slow_start, now, part) in [
        (round_robin, slow(1.0, 0.1), 152_500, 0.25),
        (round_robin, slow(1.0, 0.1), 150_000, 0.1),
        (round_robin, slow(1.0, 0.0), 150_100, 0.01),
        (round_robin, slow(2.0, 0.1), 152_500, 0.5),
        (round_robin, slow(1.0, 0.1), 160_000, 1.0),
        (round_robin, slow(1.0, 0.1), 0, 1.0),
        (round_robin, None, 152_500, 1.0),
        (LbPolicy::LEAST_REQUEST, slow(1.0, 0.1), 152_500, 0.25),
        (LbPolicy::Random, slow(1.0, 0.1), 152_500, 1.0),
    ] {
        let got = share(policy, slow_start, now);
        let want = part / (1.0 + part);
        assert!((got - want).abs() < 0.015, "{policy:?} {slow_start:?} at {now}: {got}, not {want}");
    }
}

#[test]
fn the_sick_are_left_out_until_there_are_too_many() {
    let policy = cluster(LbPolicy::RoundRobin);
    let some = one(vec![endpoint(0, 1), endpoint(1, 1), sick(2), endpoint(3, 1)]);
    assert_shares(&policy, &some, &[(0, 33), (1, 33), (3, 33)]);
    let panic = one(vec![endpoint(0, 1), sick(1), sick(2)]);
    assert_shares(&policy, &panic, &[(0, 33), (1, 33), (2, 33)]);
    let never = Cluster { healthy_panic_threshold: 0, ..policy.clone() };
    assert_shares(&never, &panic, &[(0, 100)]);
    assert_shares(&policy, &one(vec![sick(0), sick(1)]), &[(0, 50), (1, 50)]);
    assert!(refused(&never, &one(vec![sick(0), sick(1)])));
}

#[test]
fn panic_may_fail_requests_instead() {
    let fails = Cluster { fail_traffic_on_panic: true, ..cluster(LbPolicy::RoundRobin) };
    assert!(refused(&fails, &one(vec![endpoint(0, 1), sick(1), sick(2)])));
    assert_shares(&fails, &one(vec![endpoint(0, 1), endpoint(1, 1), sick(2)]), &[(0, 50), (1, 50)]);
    // The same at run time.
    let set = one(vec![endpoint(0, 1), endpoint(1, 1), endpoint(2, 1)]);
    let set = planned(&fails, &set);
    for (ill, picked) in [(vec![0], true), (vec![0, 1], false)] {
        let mut random = random();
        let found = pick(stored(&fails), set, &ejected(&ill), &mut PickContext::new(&mut random));
        assert_eq!(found.is_ok(), picked);
    }
}

#[test]
fn what_is_found_at_run_time_counts_as_what_the_control_plane_says() {
    let policy = cluster(LbPolicy::RoundRobin);
    let four = || one((0..4).map(|cell| endpoint(cell, 1)).collect());
    let seen = |set: &EndpointSet, health: &[(u32, RuntimeHealth)]| {
        let counters = Counters { health: health.iter().copied().collect(), ..Counters::default() };
        let mut got = picks(&policy, set, &counters, 400);
        got.sort_unstable();
        got.dedup();
        got
    };
    use RuntimeHealth::{Degraded, Healthy, Unhealthy};
    assert_eq!(seen(&four(), &[(1, Healthy)]), [0, 1, 2, 3]);
    assert_eq!(seen(&four(), &[(1, Unhealthy)]), [0, 2, 3]);
    assert_eq!(seen(&four(), &[(1, Degraded)]), [0, 2, 3], "the others can take it all");
    assert_eq!(seen(&four(), &[(0, Unhealthy), (1, Unhealthy), (2, Degraded)]), [2, 3]);
    assert_eq!(seen(&four(), &[(0, Unhealthy), (1, Unhealthy), (2, Unhealthy)]), [0, 1, 2, 3], "panic");
    let said = one(vec![sick(0), endpoint(1, 1), endpoint(2, 1), endpoint(3, 1)]);
    assert_eq!(seen(&said, &[(0, Healthy), (1, Unhealthy)]), [2, 3], "the worse of both");
}

#[test]
fn without_endpoints_there_is_no_answer() {
    for policy in [LbPolicy::RoundRobin, LbPolicy::Random, LbPolicy::LEAST_REQUEST] {
        for threshold in [0, 50, 100] {
            let cluster = Cluster { healthy_panic_threshold: threshold, ..cluster(policy) };
            assert!(refused(&cluster, &set(vec![])));
            assert!(refused(&cluster, &one(vec![])));
            assert!(refused(&cluster, &set(vec![locality(0, 1, vec![]), locality(1, 1, vec![])])));
        }
    }
}

#[test]
fn the_next_priority_takes_what_the_first_cannot() {
    let policy = cluster(LbPolicy::RoundRobin);
    let two = |first: Vec<Endpoint>| set(vec![locality(0, 0, first), locality(1, 0, vec![endpoint(9, 1)])]);
    assert_shares(&policy, &two(vec![endpoint(0, 1), endpoint(1, 1)]), &[(0, 50), (1, 50)]);
    // 3 of 4 healthy times 1.4: no less than all.
    assert_shares(
        &policy,
        &two(vec![endpoint(0, 3), sick(1), endpoint(2, 3), endpoint(3, 3)]),
        &[(0, 33), (2, 33), (3, 33)],
    );
    // 1 of 2 times 1.4 is 70 %.
    assert_shares(&policy, &two(vec![endpoint(0, 1), sick(1)]), &[(0, 70), (9, 30)]);
    assert_shares(&policy, &two(vec![sick(0), sick(1)]), &[(9, 100)]);
    // 1 of 3 times 1.4 is 46 %; there is no panic while the priorities together can take everything.
    assert_shares(&policy, &two(vec![endpoint(0, 1), sick(1), sick(2)]), &[(0, 46), (9, 54)]);
    let all_sick = set(vec![locality(0, 0, vec![sick(0), sick(1), sick(2)]), locality(1, 0, vec![sick(9)])]);
    assert_shares(&policy, &all_sick, &[(0, 25), (1, 25), (2, 25), (9, 25)]);
}

#[test]
fn the_degraded_take_what_the_healthy_cannot() {
    let policy = Cluster { healthy_panic_threshold: 0, ..cluster(LbPolicy::RoundRobin) };
    assert_shares(&policy, &one(vec![endpoint(0, 1), weak(1)]), &[(0, 70), (1, 30)]);
    assert_shares(&policy, &one(vec![weak(1), sick(2)]), &[(1, 100)]);
}

#[test]
fn localities_share_by_weight_and_health() {
    let policy = Cluster { locality_weighted: true, ..cluster(LbPolicy::RoundRobin) };
    let near = || vec![endpoint(0, 1), endpoint(1, 1)];
    let far = || vec![endpoint(2, 1)];
    assert_shares(&policy, &set(vec![locality(0, 3, near()), locality(0, 1, far())]), &[(0, 37), (1, 37), (2, 25)]);
    assert_shares(&policy, &set(vec![locality(0, 1, near()), locality(0, 0, far())]), &[(0, 50), (1, 50)]);
    assert_shares(&policy, &set(vec![locality(0, 0, near()), locality(0, 0, far())]), &[(0, 33), (1, 33), (2, 33)]);
    let half = vec![endpoint(0, 1), sick(1)];
    assert_shares(&policy, &set(vec![locality(0, 1, half), locality(0, 1, far())]), &[(0, 41), (2, 58)]);
    let plain = cluster(LbPolicy::RoundRobin);
    assert_shares(&plain, &set(vec![locality(0, 9, near()), locality(0, 1, far())]), &[(0, 33), (1, 33), (2, 33)]);
}

#[test]
fn a_retry_goes_elsewhere_while_there_is_an_elsewhere() {
    for policy in [LbPolicy::RoundRobin, LbPolicy::Random, LbPolicy::LEAST_REQUEST] {
        let cluster = cluster(policy);
        let set = planned(&cluster, &one((0..3).map(|c| endpoint(c, 1 + c * 50)).collect()));
        let cluster = stored(&cluster);
        let counters = Counters::default();
        let mut random = random();
        for _ in 0..200 {
            let mut tried = Vec::new();
            for _ in 0..3 {
                let mut context = PickContext { exclude: &tried, ..PickContext::new(&mut random) };
                let found = pick(cluster, set, &counters, &mut context).unwrap().cell.to_native();
                assert!(!tried.contains(&found), "{policy:?}: {found} again after {tried:?}");
                tried.push(found);
            }
            let mut context = PickContext { exclude: &tried, ..PickContext::new(&mut random) };
            assert!(pick(cluster, set, &counters, &mut context).is_ok(), "all were tried: one is tried again");
        }
    }
}

fn ejected(cells: &[u32]) -> Counters {
    Counters { health: cells.iter().map(|c| (*c, RuntimeHealth::Unhealthy)).collect(), ..Counters::default() }
}

#[test]
fn who_falls_ill_is_passed_over_and_the_others_keep_their_shares() {
    let set = || one(vec![endpoint(0, 1), endpoint(1, 2), endpoint(2, 3), endpoint(3, 4), endpoint(4, 5)]);
    for policy in [LbPolicy::RoundRobin, LbPolicy::LEAST_REQUEST] {
        assert_shares_at(&cluster(policy), &set(), &ejected(&[4]), &[(0, 10), (1, 20), (2, 30), (3, 40)]);
        assert_shares_at(&cluster(policy), &set(), &ejected(&[3, 4]), &[(0, 16), (1, 33), (2, 50)]);
    }
    assert_shares_at(&cluster(LbPolicy::Random), &set(), &ejected(&[0]), &[(1, 25), (2, 25), (3, 25), (4, 25)]);
    // 2 of 5 healthy is below the panic threshold.
    let all = [(0, 20), (1, 20), (2, 20), (3, 20), (4, 20)];
    assert_shares_at(&cluster(LbPolicy::Random), &set(), &ejected(&[0, 1, 2]), &all);
    let never = Cluster { healthy_panic_threshold: 0, ..cluster(LbPolicy::Random) };
    assert_shares_at(&never, &set(), &ejected(&[0, 1, 2]), &[(3, 50), (4, 50)]);
}

#[test]
fn illness_at_run_time_moves_priorities_and_localities() {
    let policy = cluster(LbPolicy::RoundRobin);
    let first = vec![endpoint(0, 1), endpoint(1, 1)];
    let two = set(vec![locality(0, 0, first), locality(1, 0, vec![endpoint(9, 1)])]);
    assert_shares_at(&policy, &two, &ejected(&[1]), &[(0, 70), (9, 30)]);
    assert_shares_at(&policy, &two, &ejected(&[0, 1]), &[(9, 100)]);
    // An endpoint of a priority that gets nothing changes nothing.
    assert_shares_at(&policy, &two, &ejected(&[9]), &[(0, 50), (1, 50)]);
    let degraded = Counters { health: [(1, RuntimeHealth::Degraded)].into(), ..Counters::default() };
    assert_shares_at(&policy, &one(vec![endpoint(0, 1), endpoint(1, 1)]), &degraded, &[(0, 70), (1, 30)]);
    let weighted = Cluster { locality_weighted: true, ..policy };
    let near = vec![endpoint(0, 1), endpoint(1, 1)];
    let places = set(vec![locality(0, 1, near), locality(0, 1, vec![endpoint(2, 1)])]);
    assert_shares_at(&weighted, &places, &ejected(&[1]), &[(0, 41), (2, 58)]);
}

#[test]
fn a_large_cluster_spares_some_without_a_walk() {
    // 1,000 endpoints of one weight and 200 ill: 0.8 * 1.4 is above 1.
    let set = one((0..1000).map(|c| endpoint(c, 1)).collect());
    let counters = ejected(&(0..200).collect::<Vec<_>>());
    for policy in [LbPolicy::RoundRobin, LbPolicy::Random, LbPolicy::LEAST_REQUEST] {
        let got = shares_at(&cluster(policy), &set, &counters, 80_000);
        assert_eq!((got.len(), *got.keys().next().unwrap()), (800, 200), "{policy:?}");
        // 100 each, and ten of them are five standard deviations.
        assert!(got.values().all(|n| (50..=150).contains(n)), "{policy:?}: {got:?}");
    }
}

#[test]
fn one_of_several_is_drawn_by_weight() {
    let count = |weights: [u32; 3]| {
        let mut shares = [0; 3];
        (0..100).for_each(|r| shares[weighted_pick(weights.into_iter(), r).unwrap()] += 1);
        shares
    };
    assert_eq!(count([50, 30, 20]), [50, 30, 20]);
    assert_eq!(count([0, 1, 0]), [0, 100, 0]);
    assert_eq!(weighted_pick([0, 0].into_iter(), 7), None);
    assert_eq!(weighted_pick([u32::MAX, u32::MAX].into_iter(), u64::from(u32::MAX)), Some(1));
}

/// Says that more endpoints are ill than any cluster can spare, and of each that it is well.
struct Doubtful(Counters);

impl Cells for Doubtful {
    fn cursor(&self, cell: u32) -> u32 {
        self.0.cursor(cell)
    }
    fn active(&self, cell: u32) -> u32 {
        self.0.active(cell)
    }
    fn unhealthy(&self, _: u32) -> u32 {
        u32::MAX
    }
}

proptest! {
    #[test]
    fn looking_at_each_endpoint_finds_what_the_plan_says(
        localities in proptest::collection::vec((0u32..3, 0u32..4, proptest::collection::vec((0u32..3, 1u32..4), 0..5)), 1..5),
        threshold in 0u8..=100,
        weighted in any::<bool>(),
        fail_traffic_on_panic in any::<bool>(),
        policy in proptest::sample::select(vec![LbPolicy::RoundRobin, LbPolicy::Random, LbPolicy::LEAST_REQUEST]),
        factor in 80u32..300,
    ) {
        let mut cells = 0u32..;
        let make = |(health, weight): (u32, u32), cell| {
            let health = [HealthStatus::Healthy, HealthStatus::Degraded, HealthStatus::Unhealthy][health as usize];
            Endpoint { health, ..endpoint(cell, weight) }
        };
        let mut localities: Vec<Locality> = localities
            .into_iter()
            .map(|(priority, weight, list)| {
                locality(priority, weight, list.into_iter().map(|e| make(e, cells.next().unwrap())).collect())
            })
            .collect();
        localities.sort_by_key(|l| l.priority);
        let set = EndpointSet { overprovisioning_factor: factor, ..set(localities) };
        let cluster = Cluster {
            healthy_panic_threshold: threshold,
            locality_weighted: weighted,
            fail_traffic_on_panic,
            ..cluster(policy)
        };
        let (set, cluster) = (planned(&cluster, &set), stored(&cluster));
        let active: BTreeMap<u32, u32> = (0..20).map(|c| (c, c * 7 % 3)).collect();
        let counters = || Counters { active: active.clone(), ..Counters::default() };
        let (plan, walk) = (counters(), Doubtful(counters()));
        for n in 0..100 {
            // The same chance in both, however often it is asked for.
            let number = n * 0x9e37_79b9 + n;
            let one = |found: Result<&ArchivedEndpoint, NoEndpoint>| found.map(|e| e.cell.to_native());
            let by_plan = one(pick(cluster, set, &plan, &mut PickContext::new(&mut || number)));
            let by_walk = one(pick(cluster, set, &walk, &mut PickContext::new(&mut || number)));
            prop_assert_eq!(by_plan, by_walk, "the {}th", n);
        }
    }

    #[test]
    fn a_cycle_of_round_robin_has_exactly_the_weights(weights in proptest::collection::vec(1u32..20, 1..12)) {
        let set = one((0u32..).zip(&weights).map(|(c, w)| endpoint(c, *w)).collect());
        let total: u32 = weights.iter().sum();
        let got = shares(&cluster(LbPolicy::RoundRobin), &set, total as usize);
        let want = (0u32..).zip(weights.iter().map(|w| *w as usize)).collect();
        prop_assert_eq!(got, want);
    }

    #[test]
    fn any_set_gives_an_endpoint_that_may_be_used(
        localities in proptest::collection::vec((0u32..3, 0u32..4, proptest::collection::vec((0u32..3, 0u32..4), 0..4)), 0..5),
        threshold in 0u8..=100,
        weighted in any::<bool>(),
        policy in proptest::sample::select(vec![LbPolicy::RoundRobin, LbPolicy::Random, LbPolicy::LEAST_REQUEST]),
        factor in 0u32..300,
        exclude in proptest::collection::vec(0u32..12, 0..4),
        ill in proptest::collection::btree_set(0u32..12, 0..6),
    ) {
        let mut cells = 0u32..;
        let mut localities: Vec<Locality> = localities
            .into_iter()
            .map(|(priority, weight, endpoints)| {
                let make = |(health, weight): (u32, u32)| {
                    let health = [HealthStatus::Healthy, HealthStatus::Degraded, HealthStatus::Unhealthy][health as usize];
                    Endpoint { health, ..endpoint(cells.next().unwrap(), weight) }
                };
                locality(priority, weight, endpoints.into_iter().map(make).collect())
            })
            .collect();
        localities.sort_by_key(|l| l.priority);
        let healths: BTreeMap<_, _> =
            localities.iter().flat_map(|l| l.endpoints.iter().map(|e| (e.cell, e.health))).collect();
        let set = EndpointSet { overprovisioning_factor: factor, ..set(localities) };
        let cluster = Cluster { healthy_panic_threshold: threshold, locality_weighted: weighted, ..cluster(policy) };
        let ill = ill.into_iter().filter(|cell| healths.contains_key(cell));
        let counters = Counters { health: ill.map(|c| (c, RuntimeHealth::Unhealthy)).collect(), ..Counters::default() };
        let mut random = random();
        for _ in 0..20 {
            let mut context = PickContext { exclude: &exclude, ..PickContext::new(&mut random) };
            match pick(stored(&cluster), planned(&cluster, &set), &counters, &mut context) {
                Ok(found) if threshold == 0 => {
                    let cell = found.cell.to_native();
                    prop_assert_ne!(healths[&cell], HealthStatus::Unhealthy);
                    prop_assert!(!counters.health.contains_key(&cell));
                }
                Ok(_) => {}
                Err(NoEndpoint) => prop_assert!(threshold == 0 || healths.is_empty() || factor < 100),
            }
        }
    }
}
