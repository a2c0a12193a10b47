//! The routes made here, as APISIX matches them, give the answers of our own matcher: Envoy's.

mod common;
#[path = "../../amesh-dataplane/tests/common/mod.rs"]
mod model;

use amesh_apisix::{Options, Translator};
use amesh_dataplane::regex::RegexCache;
use amesh_dataplane::route::{decide, Decision};
use amesh_model::address::Address;
use amesh_model::batch::{Batch, Value as Resource};
use amesh_model::listener::{ChainAction, FilterChain, FilterChainMatch, Listener, RouteSpecifier};
use amesh_model::matcher::{
    CookieMatcher, HeaderMatch, HeaderMatcher, QueryMatch, QueryParameterMatcher, Regex, StringMatcher, StringPattern,
};
use amesh_model::route::{
    ArchivedClusterSpecifier, ArchivedRouteTable, ClusterSpecifier, DirectResponseAction, PathSpecifier, RouteAction,
    RouteMatch, RouteTable,
};
use common::apisix::{Request, Router};
use common::put;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestError, TestRunner};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;

/// Requests of one mesh.
const REQUESTS: usize = 1000;
/// Meshes. `AMESH_APISIX_MESHES` asks for another number.
const MESHES: u32 = 100;

/// The answer to a request, as both sides can say it.
#[derive(Debug, PartialEq)]
enum Answer {
    Clusters(Vec<(String, u64)>),
    Status(u64),
    Redirect(u64),
}

/// A regular expression. Each is checked once: unoptimised, that is slow.
fn regex(pattern: &str) -> Regex {
    thread_local! {
        static CHECKED: RefCell<HashMap<String, Regex>> = RefCell::default();
    }
    CHECKED.with_borrow_mut(|all| all.entry(pattern.to_owned()).or_insert_with(|| model::regex(pattern)).clone())
}

fn text(case: bool) -> impl Strategy<Value = StringMatcher> {
    let words = select(vec!["", "v", "vw", "w", "V", "5", "v.w", "a=b"]);
    let regexes = select(vec!["v+", "v.*", "", ".*w", "[0-9]+", "v|vw", "(?i)V", "^v$", ".*"]);
    let pattern = prop_oneof![
        words.clone().prop_map(|w| StringPattern::Exact(w.into())),
        words.clone().prop_map(|w| StringPattern::Prefix(w.into())),
        words.clone().prop_map(|w| StringPattern::Suffix(w.into())),
        words.prop_map(|w| StringPattern::Contains(w.into())),
        regexes.prop_map(|r| StringPattern::SafeRegex(regex(r))),
    ];
    (pattern, any::<bool>()).prop_map(move |(pattern, ignore_case)| {
        let ignore_case = ignore_case && case && !matches!(pattern, StringPattern::SafeRegex(_));
        let lower = |text: String| if ignore_case { text.to_lowercase() } else { text };
        let pattern = match pattern {
            StringPattern::Exact(t) => StringPattern::Exact(lower(t)),
            StringPattern::Prefix(t) => StringPattern::Prefix(lower(t)),
            StringPattern::Suffix(t) => StringPattern::Suffix(lower(t)),
            StringPattern::Contains(t) => StringPattern::Contains(lower(t)),
            regex => regex,
        };
        StringMatcher { pattern, ignore_case }
    })
}

fn header() -> impl Strategy<Value = HeaderMatcher> {
    let value = prop_oneof![
        1 => any::<bool>().prop_map(HeaderMatch::Present),
        4 => text(true).prop_map(HeaderMatch::String),
        1 => (-3i64..8, 0i64..20).prop_map(|(start, end)| HeaderMatch::Range { start, end }),
    ];
    let name = select(vec!["x-a", "x-b", "x-a", ":method", ":authority", ":path", "content-type"]);
    (name, value, any::<bool>(), any::<bool>()).prop_map(|(name, value, invert_match, empty)| HeaderMatcher {
        name: name.into(),
        value,
        invert_match,
        treat_missing_header_as_empty: empty,
    })
}

fn query() -> impl Strategy<Value = QueryParameterMatcher> {
    let value =
        prop_oneof![1 => any::<bool>().prop_map(QueryMatch::Present), 3 => text(true).prop_map(QueryMatch::String)];
    (select(vec!["q", "r", "q.x"]), value).prop_map(|(name, value)| QueryParameterMatcher { name: name.into(), value })
}

fn cookie() -> impl Strategy<Value = CookieMatcher> {
    (select(vec!["s", "t"]), text(true), any::<bool>()).prop_map(|(name, value, invert_match)| CookieMatcher {
        name: name.into(),
        value,
        invert_match,
    })
}

const PATHS: [&str; 14] =
    ["/", "", "/a", "/a/", "/a/b", "/a/b/", "/ab", "/a/b/c", "/a+b/", "/a*", "/:a/", "/a%20b", "/A", "/a%2Fb"];

fn path() -> impl Strategy<Value = (PathSpecifier, bool)> {
    let text = select(PATHS.to_vec());
    let regexes = ["/a.*", "/[ab]+", "/", ".*", "/a/b(/.*)?", "/a\\+b/.*", "/a%2F.", "(?i)/A", "/a++"];
    let path = prop_oneof![
        2 => Just(PathSpecifier::Prefix("/".into())),
        3 => text.clone().prop_map(|t| PathSpecifier::Prefix(t.into())),
        2 => text.clone().prop_map(|t| PathSpecifier::Path(t.into())),
        1 => text.prop_map(|t| PathSpecifier::PathSeparatedPrefix(t.trim_end_matches('/').into())),
        1 => select(regexes.to_vec()).prop_map(|r| PathSpecifier::SafeRegex(regex(r))),
    ];
    (path, prop::bool::weighted(0.85)).prop_map(|(path, case_sensitive)| {
        let lower = |text: String| if case_sensitive { text } else { text.to_lowercase() };
        let path = match path {
            PathSpecifier::Prefix(t) => PathSpecifier::Prefix(lower(t)),
            PathSpecifier::Path(t) => PathSpecifier::Path(lower(t)),
            PathSpecifier::PathSeparatedPrefix(t) => PathSpecifier::PathSeparatedPrefix(lower(t)),
            regex => regex,
        };
        (path, case_sensitive)
    })
}

fn matches() -> impl Strategy<Value = RouteMatch> {
    let some = |size: f64| prop::bool::weighted(size);
    (path(), (some(0.4), header(), header(), some(0.1)), (some(0.15), query()), (some(0.1), cookie()), some(0.05))
        .prop_map(|((path, case_sensitive), (one, a, b, two), (queries, q), (cookies, c), grpc)| RouteMatch {
            case_sensitive,
            headers: [(one, a), (two, b)].into_iter().filter(|(is, _)| *is).map(|(_, header)| header).collect(),
            query_parameters: Some(q).filter(|_| queries).into_iter().collect(),
            cookies: Some(c).filter(|_| cookies).into_iter().collect(),
            grpc,
            ..model::matching(path)
        })
}

/// What a route does; routes are told apart by their clusters and statuses.
fn action(kind: u32, mark: usize) -> RouteAction {
    let cluster = format!("c{}", mark % 40);
    let mut forward = model::forward(&cluster);
    match kind {
        0 => RouteAction::DirectResponse(DirectResponseAction {
            status: 410 + (mark % 40) as u16,
            body: vec![],
            body_format: None,
        }),
        1 => {
            let clusters = vec![model::arm(&cluster, 3), model::arm("c0", 1), model::arm("c1", 2)];
            forward.cluster = ClusterSpecifier::Weighted { clusters, total_weight: 6, random_header: String::new() };
            RouteAction::Route(Box::new(forward))
        }
        2 => RouteAction::Refuse("a filter".into()),
        _ => RouteAction::Route(Box::new(forward)),
    }
}

const DOMAINS: [&str; 14] = [
    "a.x", "b.x", "c.a.x", "*.x", "*.a.x", "*x", "a.*", "b.x:80", "a.x:8080", "*.a.x:80", "*", "c.*", "d/e.x",
    "*.d/e.x",
];

fn table(name: &'static str) -> impl Strategy<Value = RouteTable> {
    let route = (matches(), 0u32..14);
    let host = (prop::collection::vec(route, 0..8), prop::collection::vec(0..DOMAINS.len(), 2..6), 0u32..40);
    let hosts = prop::collection::vec(host, 2..6);
    (hosts, any::<bool>(), 0usize..1000).prop_map(move |(hosts, ignore_port, mut mark)| {
        let mut free: Vec<Option<&str>> = DOMAINS.iter().copied().map(Some).collect();
        let mut made = Vec::new();
        for (index, (routes, domains, kind)) in hosts.into_iter().enumerate() {
            let domains: Vec<&'static str> = domains.into_iter().filter_map(|at| free[at].take()).collect();
            let routes = routes.into_iter().map(|(matches, kind)| {
                mark += 1;
                model::route("", matches, action(kind, mark))
            });
            let mut host = model::virtual_host(&format!("h{index}"), routes.collect());
            if kind == 0 {
                host.refuse = Some("a filter".into());
            }
            made.push((domains, host));
        }
        let mut table = model::table(made.iter().map(|(d, h)| (d.as_slice(), h.clone())).collect());
        table.name = name.into();
        table.ignore_port_in_host_matching = ignore_port;
        table
    })
}

/// Numbers of no pattern (xorshift): requests are many, and strategies are slow.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n
    }

    fn of<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.below(words.len())]
    }
}

const REQUEST_PATHS: [&str; 20] = [
    "/", "/a", "/a/", "/a/b", "/a/b/", "/a/b/c", "/ab", "/abc", "/a+b/", "/a+b/x", "/a*", "/a*x", "/:a/", "/:a/x",
    "/a%20b", "/A", "/A/b", "/zz", "/aaaa", "/xa/",
];
const REQUEST_HOSTS: [&str; 13] =
    ["a.x", "b.x", "c.a.x", "A.X", "z.x", "z.a.x", "a.y", "c.y", "none", "b.x:80", "a.x:8080", "z.a.x:80", "a.x:9"];
const VALUES: [&str; 11] = ["", "v", "vw", "w", "V", "5", "12", "-2", "v.w", "0x5", "xx"];

fn request(dice: &mut Dice) -> Request {
    let mut query = String::new();
    if dice.below(3) == 0 {
        let all: Vec<String> = (0..dice.below(4))
            .map(|_| match (dice.of(&["q", "r", "qq", "q.x"]), dice.below(4)) {
                (name, 0) => name.to_owned(),
                (name, _) => format!("{name}={}", dice.of(&VALUES)),
            })
            .collect();
        query = format!("?{}", all.join("&"));
    }
    let mut headers: Vec<(String, String)> = Vec::new();
    for name in ["x-a", "x-b"] {
        if dice.below(5) < 3 {
            headers.push((name.into(), dice.of(&VALUES).into()));
        }
    }
    if dice.below(5) == 0 {
        headers.push((
            "content-type".into(),
            dice.of(&["application/grpc", "application/grpc+x", "application/grpcx", "v"]).into(),
        ));
    }
    let cookies: Vec<String> = (0..dice.below(3))
        .map(|_| match (dice.of(&["s", "t", "ss"]), dice.of(&VALUES), dice.below(2)) {
            (name, value, 0) => format!("{name}=\"{value}\""),
            (name, value, _) => format!("{name}={value}"),
        })
        .collect();
    if !cookies.is_empty() {
        headers.push(("cookie".into(), cookies.join("; ")));
    }
    Request {
        method: dice.of(&["GET", "POST", "v"]).into(),
        uri: format!("{}{query}", dice.of(&REQUEST_PATHS)),
        host: dice.of(&REQUEST_HOSTS).into(),
        scheme: "http".into(),
        headers,
        destination: dice
            .of(&["10.0.0.1:80", "10.0.0.1:80", "10.0.0.2:80", "10.0.0.2:80", "10.0.0.1:8080", "10.0.0.9:9080", ""])
            .into(),
    }
}

fn listener(name: &str, address: &str, table: &str) -> Listener {
    let mut manager = model::hcm();
    manager.routes = RouteSpecifier::Rds(table.into());
    let action = ChainAction::Http(Box::new(manager));
    let chain = FilterChain { name: String::new(), filter_chain_match: FilterChainMatch::default(), action };
    Listener {
        name: name.into(),
        addresses: vec![Address::from(address.parse::<SocketAddr>().unwrap())],
        ..model::listener(vec![chain])
    }
}

/// Which table a request reaches: the exact address before that for any.
fn table_of(destination: &str) -> Option<usize> {
    match destination {
        "10.0.0.1:80" => Some(1),
        "10.0.0.2:80" => Some(0),
        "10.0.0.1:8080" => Some(2),
        _ => None,
    }
}

fn mesh(tables: &[RouteTable]) -> Batch {
    let mut items: Vec<_> = (0..40).map(|n| put(common::cluster(&format!("c{n}")))).collect();
    items.extend(tables.iter().map(|table| put(Resource::RouteTable(table.clone()))));
    let listeners =
        [("0.0.0.0_80", "0.0.0.0:80", "t0"), ("vip", "10.0.0.1:80", "t1"), ("0.0.0.0_8080", "0.0.0.0:8080", "t2")];
    items.extend(listeners.map(|(name, address, table)| put(Resource::Listener(listener(name, address, table)))));
    Batch { put: items, remove: vec![] }
}

fn wanted(table: &ArchivedRouteTable, request: &Request, regexes: &mut RegexCache) -> Answer {
    let head = model::Request {
        method: request.method.clone(),
        path: request.uri.clone(),
        host: request.host.clone(),
        scheme: request.scheme.clone(),
        headers: request.headers.clone(),
        random: 0,
    };
    match decide(table, &head, regexes) {
        Decision::Forward(forward) => Answer::Clusters(match &forward.action.cluster {
            ArchivedClusterSpecifier::Weighted { clusters, .. } => {
                let mut arms: Vec<(String, u64)> = Vec::new();
                for arm in clusters.iter() {
                    let (name, weight) = (arm.name.to_string(), u64::from(arm.weight.to_native()));
                    match arms.iter_mut().find(|(there, _)| *there == name) {
                        Some((_, sum)) => *sum += weight,
                        None => arms.push((name, weight)),
                    }
                }
                arms.sort();
                arms
            }
            _ => vec![(forward.cluster.to_string(), 1)],
        }),
        Decision::Direct { status, .. } => Answer::Status(status.into()),
        Decision::Redirect { status, .. } => Answer::Redirect(status.into()),
        Decision::ClusterNotFound { code, .. } => Answer::Status(code.into()),
        Decision::NotFound => Answer::Status(404),
        Decision::Refuse { .. } => Answer::Status(503),
    }
}

fn given(router: &Router, request: &Request) -> Answer {
    let Some(route) = router.route(request) else { return Answer::Status(404) };
    let plugins = &route["plugins"];
    if let Some(status) = plugins["fault-injection"]["abort"]["http_status"].as_u64() {
        return Answer::Status(status);
    }
    if let Some(status) = plugins["redirect"]["ret_code"].as_u64() {
        return Answer::Redirect(status);
    }
    let arms = match plugins["traffic-split"]["rules"][0]["weighted_upstreams"].as_array() {
        Some(arms) => {
            let arm = |arm: &serde_json::Value| {
                (router.upstream(&arm["upstream_id"]).0.to_owned(), arm["weight"].as_u64().unwrap())
            };
            arms.iter().map(arm).collect()
        }
        None => vec![(router.upstream(&route["upstream_id"]).0.to_owned(), 1)],
    };
    let mut arms: Vec<(String, u64)> = arms;
    arms.sort();
    Answer::Clusters(arms)
}

#[test]
fn every_request_is_answered_as_by_envoy() {
    let meshes = std::env::var("AMESH_APISIX_MESHES").ok().and_then(|n| n.parse().ok()).unwrap_or(MESHES);
    let mut runner = TestRunner::new(Config {
        cases: meshes,
        failure_persistence: None,
        max_shrink_iters: 400,
        ..Config::default()
    });
    let mut regexes = RegexCache::new();
    let regexes = RefCell::new(&mut regexes);
    let kinds = Cell::new([0usize; 4]);
    let result = runner.run(&((table("t0"), table("t1"), table("t2")), 1u64..u64::MAX), |((a, b, c), seed)| {
        let tables = [a, b, c];
        let mut translator = Translator::new(Options::default());
        translator.apply(&mesh(&tables));
        translator.objects().for_each(common::schema::assert_valid);
        let router = Router::new(translator.objects());
        let stored: Vec<_> = tables.iter().map(model::stored).collect();
        let mut dice = Dice(seed);
        for _ in 0..REQUESTS {
            let request = request(&mut dice);
            let wanted = match table_of(&request.destination) {
                Some(table) => wanted(stored[table], &request, &mut regexes.borrow_mut()),
                None => Answer::Status(404),
            };
            let mut counts = kinds.get();
            counts[match &wanted {
                Answer::Clusters(_) => 0,
                Answer::Status(404) => 1,
                Answer::Status(_) => 2,
                Answer::Redirect(_) => 3,
            }] += 1;
            kinds.set(counts);
            prop_assert_eq!(given(&router, &request), wanted, "{:?} by {:#?}", request, router.route(&request));
        }
        Ok(())
    });
    if let Err(TestError::Fail(why, ((a, b, c), _))) = result {
        panic!("{why}\n{a:#?}\n{b:#?}\n{c:#?}");
    }
    let [forwarded, not_found, answered, _] = kinds.get();
    let all = meshes as usize * REQUESTS;
    assert!(forwarded > all / 5 && answered > all / 25 && not_found > all / 8, "{forwarded} {not_found} {answered}");
}
