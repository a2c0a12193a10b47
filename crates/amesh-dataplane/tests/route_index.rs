//! The index of a virtual host's routes answers as a walk over the routes does.

mod common;

use amesh_dataplane::regex::RegexCache;
use amesh_dataplane::route::route as find;
use amesh_model::matcher::{
    compile_full, Fraction, HeaderMatch, HeaderMatcher, QueryMatch, QueryParameterMatcher, RuntimeFraction,
    StringMatcher, StringPattern, TlsContextMatch,
};
use amesh_model::route::{PathSpecifier, Route, RouteMatch};
use amesh_model::route_index::{RouteIndex, MIN_ROUTES};
use common::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::cell::RefCell;

/// The number of the route that takes each request, without an index and with one.
fn both(routes: Vec<Route>, requests: &[Request]) -> Vec<(Option<usize>, Option<usize>)> {
    thread_local!(static REGEXES: RefCell<RegexCache> = RefCell::default());
    let mut host = virtual_host("any", routes);
    host.index = None;
    let walked = rkyv::to_bytes::<rkyv::rancor::Error>(&host).unwrap();
    let index = RouteIndex::of_any(&host.routes);
    if !index.sets.is_empty() {
        // A worker keeps few sets: each table gets its turn.
        REGEXES.replace(RegexCache::new());
    }
    host.index = Some(Box::new(index));
    let indexed = rkyv::to_bytes::<rkyv::rancor::Error>(&host).unwrap();
    let answers = |bytes, regexes: &mut RegexCache| -> Vec<Option<usize>> {
        let host = rkyv::access::<amesh_model::route::ArchivedVirtualHost, rkyv::rancor::Error>(bytes).unwrap();
        requests.iter().map(|request| find(host, request, regexes).map(|(number, _)| number)).collect()
    };
    REGEXES.with_borrow_mut(|regexes| {
        let walked = answers(&walked, regexes);
        walked.into_iter().zip(answers(&indexed, regexes)).collect()
    })
}

/// The numbers of the routes that take the paths, by the index; the same as without it.
fn taken(routes: Vec<RouteMatch>, paths: &[&str]) -> Vec<Option<usize>> {
    let routes = routes.into_iter().map(|m| route("", m, to("c"))).collect();
    let requests: Vec<_> = paths.iter().map(|path| Request::get("h", path)).collect();
    let answers = both(routes, &requests).into_iter().zip(paths);
    answers.map(|((walked, indexed), path)| (assert_eq!(walked, indexed, "{path}"), indexed).1).collect()
}

fn safe_regex(pattern: &str) -> RouteMatch {
    matching(PathSpecifier::SafeRegex(regex(pattern)))
}

fn separated(text: &str) -> RouteMatch {
    matching(PathSpecifier::PathSeparatedPrefix(text.into()))
}

fn any_case(m: RouteMatch) -> RouteMatch {
    RouteMatch { case_sensitive: false, ..m }
}

#[test]
fn few_routes_have_no_index() {
    let routes = vec![route("", prefix("/"), to("c")); MIN_ROUTES];
    assert_eq!(RouteIndex::new(&routes[1..]), None);
    assert!(RouteIndex::new(&routes).is_some());
}

#[test]
fn the_first_route_that_matches_takes_it_whatever_its_kind() {
    let routes = || vec![safe_regex("/a/[0-9]+"), prefix("/a/1"), path("/a/2"), separated("/a"), prefix("/")];
    let paths = ["/a/1", "/a/2", "/a/1x", "/a/x", "/a", "/ab", "/a/", "x", ""];
    let wanted = [Some(0), Some(0), Some(1), Some(3), Some(3), Some(4), Some(3), None, None];
    assert_eq!(taken(routes(), &paths), wanted);
    let turned = routes().into_iter().rev().collect();
    assert_eq!(taken(turned, &paths)[..7], [Some(0); 7], "the catch-all is first now");
}

#[test]
fn a_longer_prefix_does_not_win_over_an_earlier_one() {
    let routes = vec![prefix("/a"), prefix("/a/b"), path("/a/b"), prefix("/a"), prefix("/c/d"), prefix("/c")];
    assert_eq!(taken(routes, &["/a/b", "/c/d", "/c"]), [Some(0), Some(4), Some(5)]);
}

#[test]
fn case_is_looked_at_by_those_that_want_it() {
    let routes = vec![path("/A"), any_case(path("/a")), any_case(separated("/b")), prefix("/B")];
    assert_eq!(taken(routes, &["/A", "/a", "/B/x", "/Bx", "/bx"]), [Some(0), Some(1), Some(2), Some(3), None]);
    // ASCII alone has cases.
    assert_eq!(taken(vec![any_case(path("/é"))], &["/é", "/É"]), [Some(0), None]);
}

#[test]
fn paths_are_taken_as_they_stand() {
    let routes = vec![path("/a%2Fb"), path("/a/b"), prefix("/é"), path("")];
    let paths = ["/a%2Fb", "/a%2fb", "/a/b?x=/a%2Fb", "/a/b#f", "/éa", "/\u{e8}", "?q"];
    assert_eq!(taken(routes, &paths), [Some(0), None, Some(1), Some(1), Some(2), None, Some(3)]);
}

#[test]
fn of_many_expressions_the_first_that_matches_takes_it() {
    let mut routes: Vec<_> = (0..200).map(|n| safe_regex(&format!("/api/v[0-9]+/item-{n}/.*"))).collect();
    routes.push(safe_regex("/api/v1/item-7/x|/other"));
    routes.push(safe_regex(".*7/y"));
    routes.insert(0, safe_regex(".*/item-[5-6]/first"));
    let paths =
        ["/api/v1/item-7/x", "/api/v22/item-199/", "/api/v1/item-5/first", "/other", "/z7/y", "/api/vx/item-1/"];
    assert_eq!(taken(routes, &paths), [Some(8), Some(200), Some(0), Some(201), Some(202), None]);
}

#[test]
fn of_expressions_that_no_text_tells_apart_the_first_that_matches_takes_it() {
    let lengths = |n: usize| safe_regex(&format!("/[a-z]{{{}}}/[0-9]{{{}}}", n / 10 + 1, n % 10 + 1));
    let mut routes: Vec<_> = (0..100).map(lengths).collect();
    routes.insert(40, safe_regex("/(?i)[a-c]+/[0-9]+"));
    routes.extend([lengths(7), safe_regex("/[^/]+/[^/]+"), prefix("/")]);
    let paths = ["/a/1", "/cc/12345678", "/zz/12345678", "/aaaaaaaaaa/1234567890", "/Z/z", "/zz/123456789012"];
    let wanted = [Some(0), Some(17), Some(17), Some(40), Some(102), Some(102)];
    assert_eq!(taken(routes.clone(), &paths), wanted);
    let host = RouteIndex::of_any(&routes.into_iter().map(|m| route("", m, to("c"))).collect::<Vec<_>>());
    assert_eq!(host.sets.iter().flat_map(|set| &set.members).count(), 102, "each once");
    assert_eq!(host.in_turn, 0);
}

#[test]
fn expressions_that_fit_in_no_set_are_tried_in_turn() {
    let mut routes: Vec<_> = (0..20).map(|n| safe_regex(&format!("/[a-z]{{{}}}", n + 1))).collect();
    routes.insert(3, safe_regex("/[a-z]{40000}"));
    assert_eq!(taken(routes.clone(), &["/abc", "/abcd", "/a", "/"]), [Some(2), Some(4), Some(0), None]);
    let index = RouteIndex::of_any(&routes.into_iter().map(|m| route("", m, to("c"))).collect::<Vec<_>>());
    assert_eq!(index.in_turn, 1);
}

#[test]
fn of_routes_of_one_path_the_first_whose_value_fits_takes_it() {
    let user = |n: usize| {
        let mut m = prefix("/");
        m.headers = vec![header("end-user", HeaderMatch::String(exact(&format!("user-{n}"))))];
        route("", m, to("c"))
    };
    let mut routes: Vec<Route> = (0..100).map(user).collect();
    let page = |n: usize| {
        let mut m = prefix("/");
        m.query_parameters =
            vec![QueryParameterMatcher { name: "page".into(), value: QueryMatch::String(exact(&n.to_string())) }];
        route("", m, to("c"))
    };
    routes.extend((0..100).map(page));
    let mut grpc = prefix("/");
    grpc.grpc = true;
    routes.insert(50, route("", grpc, to("c")));
    routes.push(route("", prefix("/"), to("c")));
    let request = || Request::get("h", "/x");
    let grpc = |r: Request| r.with("content-type", "application/grpc");
    let requests = [
        request().with("end-user", "user-99"),
        grpc(request().with("end-user", "user-99")),
        grpc(request().with("end-user", "user-9")),
        request().with("end-user", "user-70").with("end-user", "user-60"),
        request(),
        request().with("end-user", "user-100"),
        Request::get("h", "/x?a=b&page=7&page=8"),
        Request::get("h", "/x?page=100"),
    ];
    let answers = both(routes, &requests);
    assert_eq!(
        answers.iter().map(|(_, indexed)| indexed.unwrap()).collect::<Vec<_>>(),
        [100, 50, 9, 61, 201, 201, 108, 201]
    );
    assert!(answers.iter().all(|(walked, indexed)| walked == indexed), "{answers:?}");
}

/// Pieces of which paths, texts and expressions are made, so that they meet.
const PIECES: [&str; 14] = ["/", "/a", "/A", "/ab", "/b/", "a", "é", "É", "%2F", "%2f", "/item-1", "0/", "/v2", "."];

fn text(most: usize) -> impl Strategy<Value = String> {
    vec(proptest::sample::select(&PIECES[..]), 0..most).prop_map(|pieces| pieces.concat())
}

fn pattern() -> impl Strategy<Value = String> {
    let quoted = || text(4).prop_map(|text| text.replace('.', "\\."));
    let hole = proptest::sample::select(&[".*", "[0-9]*", "[a-z/]+", "(?:/a|/b)?", "(?i)", "é?", "|", "^", "[^/]"][..]);
    // A pattern is never empty.
    (quoted(), hole, quoted(), any::<bool>()).prop_map(|(a, hole, b, group)| {
        if group {
            format!("{a}({hole}{b})")
        } else {
            format!("{a}{hole}{b}")
        }
    })
}

/// Patterns that have nothing but a slash in common with every path.
fn crowded() -> impl Strategy<Value = String> {
    let part =
        || proptest::sample::select(&["[a-z]", "[a-c0-9]", "[^/]", ".", r"\w", "[é-ü]", r"(?:/[a-z0-9]|[ab]{2})"][..]);
    let times = || proptest::sample::select(&["", "*", "+", "?", "{2}", "{0,2}"][..]);
    let end = proptest::sample::select(&["", "$", "/?", r"\b", "(/.*)?"][..]);
    (part(), times(), part(), times(), end)
        .prop_map(|(a, n, b, m, end)| format!("/{a}{n}/?{b}{m}{end}"))
        .prop_filter("is refused", |pattern| compile_full(pattern).is_ok())
}

fn specifier() -> impl Strategy<Value = PathSpecifier> {
    prop_oneof![
        3 => text(4).prop_map(PathSpecifier::Prefix),
        1 => Just(PathSpecifier::Prefix("/".into())),
        3 => text(4).prop_map(PathSpecifier::Path),
        2 => text(4).prop_map(PathSpecifier::PathSeparatedPrefix),
        2 => pattern().prop_map(|pattern| PathSpecifier::SafeRegex(regex(&pattern))),
        1 => Just(PathSpecifier::Connect),
    ]
}

const NAMES: [&str; 5] = ["x-user", "accept", ":method", "host", ":path"];
const VALUES: [&str; 8] = ["", "a", "A", "b", "a,b", "b,a", "GET", "h"];

fn header_matcher() -> impl Strategy<Value = HeaderMatcher> {
    let value = (proptest::sample::select(&VALUES[..]), 0..5, any::<bool>()).prop_map(|(text, kind, ignore_case)| {
        let text = text.to_owned();
        let text = if ignore_case { text.to_ascii_lowercase() } else { text };
        let pattern = match kind {
            0 => return HeaderMatch::Present(ignore_case),
            1 => StringPattern::Contains(text),
            _ => StringPattern::Exact(text),
        };
        HeaderMatch::String(StringMatcher { pattern, ignore_case })
    });
    let odd = || proptest::bool::weighted(0.2);
    (proptest::sample::select(&NAMES[..]), value, odd(), odd()).prop_map(|(name, value, invert_match, missing)| {
        HeaderMatcher { name: name.into(), value, invert_match, treat_missing_header_as_empty: missing }
    })
}

/// Matchers that an index can look up, most of them, and such as look alike.
fn exact_header() -> impl Strategy<Value = HeaderMatcher> {
    let odd = || proptest::bool::weighted(0.1);
    let (name, value) = (proptest::sample::select(&NAMES[..2]), proptest::sample::select(&VALUES[..]));
    (name, string_matcher(value), odd(), odd()).prop_map(|(name, value, invert_match, missing)| HeaderMatcher {
        name: name.into(),
        value: HeaderMatch::String(value),
        invert_match,
        treat_missing_header_as_empty: missing,
    })
}

fn exact_query() -> impl Strategy<Value = QueryParameterMatcher> {
    let value = string_matcher(proptest::sample::select(&["1", "12", "2", "A", "a", ""][..]));
    (proptest::sample::select(&["q", "p"][..]), value)
        .prop_map(|(name, value)| QueryParameterMatcher { name: name.into(), value: QueryMatch::String(value) })
}

fn string_matcher(text: impl Strategy<Value = &'static str>) -> impl Strategy<Value = StringMatcher> {
    (text, proptest::bool::weighted(0.2), proptest::bool::weighted(0.2)).prop_map(|(text, ignore_case, prefix)| {
        let text = if ignore_case { text.to_ascii_lowercase() } else { text.to_owned() };
        let pattern = if prefix { StringPattern::Prefix(text) } else { StringPattern::Exact(text) };
        StringMatcher { pattern, ignore_case }
    })
}

fn query_matcher() -> impl Strategy<Value = QueryParameterMatcher> {
    let value = prop_oneof![any::<bool>().prop_map(QueryMatch::Present), Just(QueryMatch::String(exact("1")))];
    value.prop_map(|value| QueryParameterMatcher { name: "q".into(), value })
}

fn one_route() -> impl Strategy<Value = Route> {
    let half = Fraction { numerator: 50, denominator: 100 };
    let fraction = Just(RuntimeFraction { default: half, runtime_key: String::new() });
    let certificate = any::<bool>().prop_map(|b| TlsContextMatch { presented: Some(b), validated: None });
    let more = prop_oneof![
        3 => Just((Vec::new(), Vec::new(), false, None, None)),
        2 => (
            vec(header_matcher(), 0..3),
            vec(query_matcher(), 0..2),
            proptest::bool::weighted(0.1),
            proptest::option::weighted(0.1, fraction),
            proptest::option::weighted(0.2, certificate),
        ),
    ];
    (specifier(), any::<bool>(), more).prop_map(|(path, case_sensitive, more)| {
        let (headers, query_parameters, grpc, runtime_fraction, tls_context) = more;
        let lower = |text: String| if case_sensitive { text } else { text.to_ascii_lowercase() };
        let path = match path {
            PathSpecifier::Prefix(text) => PathSpecifier::Prefix(lower(text)),
            PathSpecifier::Path(text) => PathSpecifier::Path(lower(text)),
            PathSpecifier::PathSeparatedPrefix(text) => PathSpecifier::PathSeparatedPrefix(lower(text)),
            other @ (PathSpecifier::SafeRegex(_) | PathSpecifier::Connect) => other,
        };
        let wanted = RouteMatch {
            case_sensitive,
            headers,
            query_parameters,
            grpc,
            runtime_fraction,
            tls_context,
            ..matching(path)
        };
        route("", wanted, to("c"))
    })
}

fn request() -> impl Strategy<Value = Request> {
    let headers = vec((proptest::sample::select(&NAMES[..2]), proptest::sample::select(&VALUES[..])), 0..3);
    let query = proptest::sample::select(&["", "?", "?q", "?q=1", "?q=2&q=1", "?p=12&q=A", "?p=a"][..]);
    (text(6), query, headers, any::<bool>(), any::<bool>(), any::<u8>()).prop_map(
        |(path, query, headers, upper, grpc, random)| {
            let path = if upper { path.to_ascii_uppercase() } else { path };
            let mut request = Request::get("h", &format!("{path}{query}"));
            request.random = random.into();
            if random % 8 == 0 {
                request.method = "CONNECT".into();
            }
            request.headers = headers.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
            if grpc {
                request.with("content-type", "application/grpc")
            } else {
                request
            }
        },
    )
}

fn same(routes: Vec<Route>, requests: Vec<Request>) -> Result<(), TestCaseError> {
    for ((walked, indexed), request) in both(routes.clone(), &requests).into_iter().zip(&requests) {
        let first = walked.map(|number| &routes[number].matches);
        prop_assert_eq!(walked, indexed, "{:?}: {:?}", request, first);
    }
    Ok(())
}

proptest! {
    // 400 tables with 25 requests each.
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_index_answers_as_the_walk(routes in vec(one_route(), 0..60), requests in vec(request(), 25)) {
        same(routes, requests)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_index_answers_as_the_walk_where_paths_are_the_same_and_values_differ(
        values in vec((vec(exact_header(), 0..4), vec(exact_query(), 0..2)), 60..100),
        others in vec(one_route(), 0..4),
        requests in vec(request(), 10),
    ) {
        let with = |(headers, query_parameters)| RouteMatch { headers, query_parameters, ..prefix("/") };
        let mut routes: Vec<Route> = values.into_iter().map(|values| route("", with(values), to("c"))).collect();
        for (at, other) in others.into_iter().enumerate() {
            routes.insert(at * 7, other);
        }
        same(routes, requests)?;
    }
}

proptest! {
    // To compile a set takes its time without optimisation.
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn the_index_answers_as_the_walk_where_expressions_are_matched_together(
        crowd in vec(crowded(), 25..40),
        others in vec(one_route(), 0..10),
        requests in vec(request(), 5),
        paths in vec("/[abA]{0,3}(/[ab0é]{0,3})?", 15),
    ) {
        let mut routes: Vec<Route> =
            crowd.iter().map(|pattern| route("", safe_regex(pattern), to("c"))).collect();
        for (at, other) in others.into_iter().enumerate() {
            routes.insert(at * 3, other);
        }
        let near = paths.iter().map(|path| Request::get("h", path));
        same(routes, requests.into_iter().chain(near).collect())?;
    }
}
