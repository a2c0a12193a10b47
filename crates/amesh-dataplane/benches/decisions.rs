//! Nanoseconds for a route decision and for picking an endpoint. `cargo bench -p amesh-dataplane`.

#[path = "../tests/common/mod.rs"]
mod common;

use amesh_dataplane::lb::{pick, Cells, PickContext, RuntimeHealth};
use amesh_dataplane::path::normalize;
use amesh_dataplane::regex::RegexCache;
use amesh_dataplane::route::{decide, route as find, Decision};
use amesh_model::cluster::{HashFunction, LbPolicy};
use amesh_model::endpoint::EndpointSet;
use amesh_model::matcher::{HeaderMatch, QueryMatch, QueryParameterMatcher};
use amesh_model::plan;
use amesh_model::route::{PathSpecifier, Route, RouteMatch};
use amesh_model::route_index::RouteIndex;
use common::balancing::{cluster, endpoint, locality, planned};
use common::*;
use std::cell::Cell;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// The cursor, and how many endpoints are ejected: the first ones.
struct Counters(Cell<u32>, u32);

impl Cells for Counters {
    fn cursor(&self, _: u32) -> u32 {
        self.0.replace(self.0.get().wrapping_add(1))
    }
    fn active(&self, cell: u32) -> u32 {
        cell % 3
    }
    fn unhealthy(&self, _: u32) -> u32 {
        self.1
    }
    fn health(&self, cell: u32) -> RuntimeHealth {
        if cell < self.1 {
            RuntimeHealth::Unhealthy
        } else {
            RuntimeHealth::Healthy
        }
    }
}

/// Prints the time of one call: the best of ten rounds of 20 ms.
fn time(name: &str, mut call: impl FnMut()) {
    let best = (0..10).map(|_| {
        let start = Instant::now();
        let mut calls = 0u32;
        while start.elapsed() < Duration::from_millis(20) {
            (0..100).for_each(|_| call());
            calls += 100;
        }
        start.elapsed().as_nanos() / u128::from(calls)
    });
    println!("{name:<48} {:>7} ns", best.min().unwrap_or_default());
}

fn routes(hosts: usize) {
    let names: Vec<String> = (0..hosts).map(|n| format!("service-{n}.default.svc.cluster.local")).collect();
    let names: Vec<[&str; 1]> = names.iter().map(|n| [n.as_str()]).collect();
    let host =
        |n: &[&str; 1]| virtual_host(n[0], vec![route("default", prefix("/"), to(&format!("outbound|80||{}", n[0])))]);
    let model = stored(&table(names.iter().map(|n| (&n[..], host(n))).collect()));
    let requests: Vec<Request> = names.iter().map(|n| Request::get(n[0], "/reviews/7?full=1")).collect();
    let mut regexes = RegexCache::new();
    let mut at = 0;
    time(&format!("route decision, {hosts} virtual hosts"), || {
        at = (at + 7) % requests.len();
        let decision = decide(model, &requests[at], &mut regexes);
        assert!(matches!(black_box(decision), Decision::Forward(_)));
    });
}

/// The route of a path among those of one virtual host. Beside it what the index costs: once an update the thread that
/// builds it, once the worker that is asked first (expressions are compiled at their first use), and in the zone.
fn found(name: &str, matches: Vec<RouteMatch>, requests: &[(&str, Request)]) {
    let routes: Vec<Route> = matches.into_iter().map(|m| route("", m, to("c"))).collect();
    let start = Instant::now();
    let index = RouteIndex::new(&routes);
    let built = start.elapsed();
    let size = rkyv::to_bytes::<rkyv::rancor::Error>(&index).map_or(0, |bytes| bytes.len());
    let model = stored(&virtual_host("v", routes));
    let mut regexes = RegexCache::new();
    let start = Instant::now();
    if let Some((_, request)) = requests.first() {
        black_box(find(model, request, &mut regexes));
    }
    let first = start.elapsed();
    println!("{name}: index {} kB in {} us, first request {} us", size / 1000, built.as_micros(), first.as_micros());
    for (which, request) in requests {
        time(&format!("  {which}"), || {
            let route = black_box(find(black_box(model), request, &mut regexes));
            assert_eq!(route.is_none(), *which == "none");
        });
    }
}

fn many_routes() {
    let request = |path: &str| Request::get("v", path);
    let ends = |last: &str| [("the last", request(last)), ("none", request("/none/of/these"))];
    found("1 prefix", vec![prefix("/")], &[("", request("/r9999/"))]);
    let slash = |n: usize| format!("/r{n}/");
    let prefixes = (0..10_000).map(|n| prefix(&slash(n))).collect();
    found(
        "10,000 prefixes",
        prefixes,
        &[("the first", request("/r0/")), ("the last", request("/r9999/")), ("none", request("/none/of/these"))],
    );
    found("10,000 paths", (0..10_000).map(|n| path(&slash(n))).collect(), &ends("/r9999/"));
    for few in [2, 4, 6, 8, 12, 16] {
        let mut prefixes: Vec<RouteMatch> = (1..few).map(|n| prefix(&slash(n))).collect();
        prefixes.push(prefix("/"));
        found(&format!("{few} prefixes"), prefixes, &[("the first", request("/r1/")), ("the last", request("/x"))]);
    }
    let regexes = |count: usize, pattern: &dyn Fn(usize) -> String| -> Vec<RouteMatch> {
        (0..count).map(|n| matching(PathSpecifier::SafeRegex(regex(&pattern(n))))).collect()
    };
    let item = |n: usize| format!("/api/v[0-9]+/item-{n}/.*");
    found("1 regex", regexes(1, &item), &[("", request("/api/v2/item-0/some/more"))]);
    found("1,000 regexes", regexes(1000, &item), &ends("/api/v2/item-999/some/more"));
    let long = |of: &str| request(&["/api/v2/item-999/", &of.repeat(8000 / of.len())].concat());
    let long = [("8 kB", long("some/more/")), ("8 kB of what is looked for", long("item-5/item-6/"))];
    found("1,000 regexes, a long path", regexes(1000, &item), &long);
    let end = |n: usize| format!("/shop/[a-z]+/{n}");
    found("1,000 regexes that differ at the end", regexes(1000, &end), &ends("/shop/shoes/999"));
    let length = |n: usize| format!("/[a-z]{{{}}}/[0-9]{{{}}}/[a-f]{{{}}}", n / 100 + 1, n / 10 % 10 + 1, n % 10 + 1);
    let last = "/abcdefghij/0123456789/abcdefabcd";
    for count in [16, 100, 1000] {
        let last = if count == 1000 { last } else { "/a/1/a" };
        found(&format!("{count} regexes without a text of their own"), regexes(count, &length), &ends(last));
    }
    let user = |n: usize| RouteMatch {
        headers: vec![header("end-user", HeaderMatch::String(exact(&format!("user-{n}"))))],
        ..prefix("/")
    };
    let by_user = (0..10_000).map(user).collect();
    found(
        "10,000 headers of one prefix",
        by_user,
        &[("the last", request("/").with("end-user", "user-9999")), ("none", request("/"))],
    );
    let page =
        |n: usize| QueryParameterMatcher { name: "page".into(), value: QueryMatch::String(exact(&n.to_string())) };
    let by_page = (0..10_000).map(|n| RouteMatch { query_parameters: vec![page(n)], ..prefix("/") }).collect();
    let last = ("the last", request("/?page=9999"));
    found("10,000 query parameters of one prefix", by_page, &[last, ("none", request("/"))]);
}

fn picks(name: &str, endpoints: u32, ejected: u32, lb_policy: LbPolicy, weight: impl Fn(u32) -> u32) {
    let endpoint = |cell: u32| endpoint(cell, weight(cell));
    let localities = vec![locality(0, 0, (0..endpoints).map(endpoint).collect())];
    let cluster = cluster(lb_policy);
    let set = planned(&cluster, &EndpointSet { localities, ..EndpointSet::empty("c") });
    let cluster = stored(&cluster);
    let counters = Counters(Cell::new(0), ejected);
    let hashes = lb_policy.hashes();
    let mut x = 1u64;
    let mut random = move || {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        x.rotate_left(32)
    };
    time(&format!("{name}, {endpoints} endpoints"), || {
        let hash = hashes.then(&mut random);
        let mut context = PickContext { hash, ..PickContext::new(&mut random) };
        black_box(pick(cluster, set, &counters, &mut context)).ok();
    });
}

/// Prints how long the plan of 1,000 endpoints takes, which the thread makes once an update.
fn built(name: &str, lb_policy: LbPolicy) {
    let localities = vec![locality(0, 0, (0..1000).map(|cell| endpoint(cell, 1)).collect())];
    let cluster = cluster(lb_policy);
    let mut set = EndpointSet { localities, ..EndpointSet::empty("c") };
    let start = Instant::now();
    (0..10).for_each(|_| plan::build(&mut set, &cluster));
    println!("{:<48} {:>7} us", format!("{name}, plan of 1000 endpoints"), start.elapsed().as_micros() / 10);
}

fn main() {
    routes(1);
    routes(10_000);
    many_routes();
    let model = stored(&hcm());
    time("normal path", || drop(black_box(normalize(black_box("/reviews/7?full=1"), model))));
    time("path with dot segments", || drop(black_box(normalize(black_box("/a/../reviews/%37?full=1"), model))));
    for endpoints in [10, 1000] {
        picks("round robin", endpoints, 0, LbPolicy::RoundRobin, |_| 1);
        picks("round robin by weight", endpoints, 0, LbPolicy::RoundRobin, |cell| 1 + cell % 7);
        picks("least request", endpoints, 0, LbPolicy::LEAST_REQUEST, |_| 1);
        picks("least request by weight", endpoints, 0, LbPolicy::LEAST_REQUEST, |cell| 1 + cell % 7);
        picks("random", endpoints, 0, LbPolicy::Random, |_| 1);
    }
    let function = HashFunction::XxHash;
    let ring = LbPolicy::RingHash { minimum_ring_size: 1024, maximum_ring_size: 8 << 20, function };
    picks("ring hash", 1000, 0, ring, |_| 1);
    let ring = LbPolicy::RingHash { minimum_ring_size: 100_000, maximum_ring_size: 8 << 20, function };
    picks("ring hash, ring of 100,000", 1000, 0, ring, |_| 1);
    picks("Maglev", 1000, 0, LbPolicy::Maglev { table_size: 65_537 }, |_| 1);
    picks("Maglev, 5 ejected", 1000, 5, LbPolicy::Maglev { table_size: 65_537 }, |_| 1);
    built("ring hash", ring);
    built("Maglev", LbPolicy::Maglev { table_size: 65_537 });
    picks("round robin, 5 ejected", 1000, 5, LbPolicy::RoundRobin, |_| 1);
    picks("round robin, 500 ejected", 1000, 500, LbPolicy::RoundRobin, |_| 1);
}
