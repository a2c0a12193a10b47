//! Cookies for stickiness, and what happens to a hash when its endpoint cannot be used. That hashes and tables are Envoy's
//! is tested with the translation, against Envoy's own answers.

mod common;

use amesh_dataplane::hash::{request_hash, source_hash, Ends};
use amesh_dataplane::lb::{pick, Cells, NoEndpoint, PickContext, RuntimeHealth};
use amesh_dataplane::regex::RegexCache;
use amesh_model::cluster::{Cluster, HashFunction, Hashing, LbPolicy};
use amesh_model::endpoint::EndpointSet;
use amesh_model::hash_policy::{HashCookie, HashMethod, HashPolicy};
use common::balancing::{cluster, endpoint, locality, planned};
use common::{stored, Request};
use std::collections::{BTreeMap, BTreeSet};

const RING: LbPolicy =
    LbPolicy::RingHash { minimum_ring_size: 1024, maximum_ring_size: 8 << 20, function: HashFunction::XxHash };
const MAGLEV: LbPolicy = LbPolicy::Maglev { table_size: 65_537 };

#[derive(Default)]
struct Counters {
    active: BTreeMap<u32, u32>,
    ill: BTreeSet<u32>,
}

impl Cells for Counters {
    fn cursor(&self, _: u32) -> u32 {
        0
    }
    fn active(&self, cell: u32) -> u32 {
        self.active.get(&cell).copied().unwrap_or(0)
    }
    fn unhealthy(&self, _: u32) -> u32 {
        self.ill.len() as u32
    }
    fn health(&self, cell: u32) -> RuntimeHealth {
        if self.ill.contains(&cell) {
            RuntimeHealth::Unhealthy
        } else {
            RuntimeHealth::Healthy
        }
    }
}

fn set(n: u32) -> EndpointSet {
    EndpointSet {
        localities: vec![locality(0, 0, (1..=n).map(|c| endpoint(c, 1)).collect())],
        ..EndpointSet::empty("c")
    }
}

/// Who takes each of 2,000 hashes.
fn takers(cluster: &Cluster, set: &EndpointSet, counters: &Counters, exclude: &[u32], attempts: u32) -> Vec<u32> {
    let (set, cluster) = (planned(cluster, set), stored(cluster));
    let mut random = || unreachable!("there is a hash");
    let mut context = PickContext { exclude, host_selection_attempts: attempts, ..PickContext::new(&mut random) };
    let mut hash = 1u64;
    let mut one = |_| {
        hash = hash.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        context.hash = Some(hash);
        pick(cluster, set, counters, &mut context).unwrap().cell.to_native()
    };
    (0..2000).map(&mut one).collect()
}

#[test]
fn who_falls_ill_loses_its_keys_and_the_others_keep_theirs() {
    // Of ten the cluster can spare two; of three none.
    for (n, ill) in [(10, vec![3]), (10, vec![3, 7]), (3, vec![2]), (10, vec![1, 2, 3, 4])] {
        for policy in [RING, MAGLEV] {
            let cluster = cluster(policy);
            let before = takers(&cluster, &set(n), &Counters::default(), &[], 1);
            let counters = Counters { ill: ill.iter().copied().collect(), ..Counters::default() };
            let after = takers(&cluster, &set(n), &counters, &[], 1);
            for (before, after) in before.iter().zip(&after) {
                assert!(!ill.contains(after));
                assert!(before == after || ill.contains(before), "{policy:?} {n} {ill:?}: {before} -> {after}");
            }
            let heirs: BTreeSet<_> =
                after.iter().zip(&before).filter(|(_, b)| ill.contains(b)).map(|(a, _)| a).collect();
            assert!(heirs.len() > 1, "{policy:?}: not one endpoint takes all of it");
        }
    }
}

#[test]
fn a_retry_goes_on_along_the_table_as_often_as_it_may() {
    for policy in [RING, MAGLEV] {
        let cluster = cluster(policy);
        let set = set(5);
        let first = takers(&cluster, &set, &Counters::default(), &[], 1);
        // Without a retry host predicate a retry meets the same endpoint.
        assert_eq!(takers(&cluster, &set, &Counters::default(), &[1], 1), first);
        let second = takers(&cluster, &set, &Counters::default(), &[1], 20);
        assert!(!second.contains(&1));
        assert!(first.iter().zip(&second).all(|(f, s)| f == s || *f == 1));
        assert_eq!(takers(&cluster, &set, &Counters::default(), &[1, 2, 3, 4, 5], 20).len(), 2000);
    }
}

#[test]
fn without_a_hash_any_endpoint_is_as_good() {
    for policy in [RING, MAGLEV] {
        let (set, cluster) = (planned(&cluster(policy), &set(4)), stored(&cluster(policy)));
        let mut random = common::balancing::random();
        let mut context = PickContext::new(&mut random);
        let mut met = [0; 5];
        for _ in 0..4000 {
            met[pick(cluster, set, &Counters::default(), &mut context).unwrap().cell.to_native() as usize] += 1;
        }
        assert!(met[1..].iter().all(|n| (800..1200).contains(n)), "{policy:?}: {met:?}");
    }
}

#[test]
fn nobody_takes_a_hash_where_nobody_is() {
    let empty = EndpointSet::empty("c");
    for policy in [RING, MAGLEV] {
        let (set, cluster) = (planned(&cluster(policy), &empty), stored(&cluster(policy)));
        let mut random = || 7;
        let mut context = PickContext { hash: Some(1), ..PickContext::new(&mut random) };
        let found = pick(cluster, set, &Counters::default(), &mut context).map(|e| e.cell.to_native());
        assert_eq!(found, Err(NoEndpoint));
    }
}

#[test]
fn a_bounded_load_spills_over() {
    let bounded =
        |policy| Cluster { hashing: Hashing { balance_factor: 150, ..Hashing::default() }, ..cluster(policy) };
    for policy in [RING, MAGLEV] {
        let idle = takers(&bounded(policy), &set(4), &Counters::default(), &[], 1);
        assert_eq!(idle, takers(&cluster(policy), &set(4), &Counters::default(), &[], 1));
        // 39 active and one more, times 1.5, over 4: 15 each. Cell 0 is the cluster's.
        let at = |n| Counters { active: [(0, 39), (1, n)].into(), ..Counters::default() };
        assert_eq!(takers(&bounded(policy), &set(4), &at(15), &[], 1), idle);
        let busy = takers(&bounded(policy), &set(4), &at(16), &[], 1);
        assert!(!busy.contains(&1));
        assert!(idle.iter().zip(&busy).all(|(i, b)| i == b || *i == 1), "the others keep their keys");
        let heirs: BTreeSet<_> = idle.iter().zip(&busy).filter(|(i, _)| **i == 1).map(|(_, b)| *b).collect();
        assert_eq!(heirs, [2, 3, 4].into());
        // Without a count for the cluster its endpoints are counted.
        let summed = Counters { active: [(1, 16), (2, 8), (3, 8), (4, 7)].into(), ..Counters::default() };
        assert_eq!(takers(&bounded(policy), &set(4), &summed, &[], 1), busy);
        // All have too much: the one with least too much takes it.
        let full = Counters { active: [(0, 39), (1, 18), (2, 17), (3, 16), (4, 19)].into(), ..Counters::default() };
        assert!(takers(&bounded(policy), &set(4), &full, &[], 1).iter().all(|c| *c == 3));
    }
}

fn cookie(name: &str, ttl: Option<u64>) -> HashPolicy {
    let attributes = vec![("SameSite".to_owned(), "Strict".to_owned()), ("Secure".to_owned(), String::new())];
    let plain = HashCookie { name: name.to_owned(), ttl, path: String::new(), attributes: Vec::new() };
    let cookie = if name == "s" { HashCookie { path: "/p".to_owned(), attributes, ..plain } } else { plain };
    HashPolicy { method: HashMethod::Cookie(cookie), terminal: false }
}

#[test]
fn who_comes_without_a_cookie_is_given_one() {
    let policy = stored(&vec![cookie("s", Some(30)), cookie("t", Some(0)), cookie("n", None)]);
    let ends =
        |remote: &str| Ends { remote: Some(remote.parse().unwrap()), local: Some("127.0.0.1:19403".parse().unwrap()) };
    let mut regexes = RegexCache::new();
    let request = Request::get("x", "/");
    let first = request_hash(policy, &request, ends("127.0.0.1:45678"), &mut regexes);
    // As Envoy 1.40 set them on that connection.
    assert_eq!(
        first.cookies.iter().map(|c| c.set_cookie()).collect::<Vec<_>>(),
        [
            "s=\"6f119324ac3fd39e\"; Max-Age=30; Path=/p; SameSite=Strict; Secure; HttpOnly",
            "t=\"6f119324ac3fd39e\"; HttpOnly"
        ]
    );
    // The next request brings them, from another port, and has the same hash.
    let request = request.with("cookie", "s=\"6f119324ac3fd39e\"; t=6f119324ac3fd39e");
    let next = request_hash(policy, &request, ends("127.0.0.1:1"), &mut regexes);
    assert_eq!((next.hash, next.cookies.len()), (first.hash, 0));
    let other = request_hash(policy, &Request::get("x", "/"), ends("127.0.0.1:1"), &mut regexes);
    assert_ne!(other.hash, first.hash);
    let none =
        request_hash(stored(&vec![cookie("n", None)]), &Request::get("x", "/"), ends("127.0.0.1:1"), &mut regexes);
    assert_eq!((none.hash, none.cookies.len()), (None, 0));
}

#[test]
fn a_connection_is_hashed_by_its_source() {
    let policy = stored(&vec![HashPolicy { method: HashMethod::SourceIp, terminal: false }]);
    for (address, ip) in [("10.0.0.1:5", "10.0.0.1"), ("[2001:db8::1]:5", "2001:db8::1")] {
        let ends = Ends { remote: Some(address.parse().unwrap()), local: None };
        let hash = request_hash(policy, &Request::get("x", "/"), ends, &mut RegexCache::new()).hash;
        assert_eq!(hash, Some(source_hash(ip.parse().unwrap())));
    }
    let unix = request_hash(policy, &Request::get("x", "/"), Ends::default(), &mut RegexCache::new());
    assert_eq!(unix.hash, None);
}
