//! Routing as a user sees it, mostly from the answers of Envoy 1.40 to the same requests.

mod common;

use amesh_dataplane::regex::RegexCache;
use amesh_dataplane::route::{decide, Decision, RequestHead};
use amesh_model::header::{AppendAction, Format, HeaderEdits, HeaderValueOption};
use amesh_model::matcher::{
    Fraction, HeaderMatch, HeaderMatcher, QueryMatch, QueryParameterMatcher, RuntimeFraction, StringMatcher,
    StringPattern,
};
use amesh_model::route::{
    ClusterSpecifier, DirectResponseAction, HostRewrite, PathRewrite, PathSpecifier, RedirectAction, RequireTls, Route,
    RouteAction, RouteMatch, RouteTable, WeightedCluster,
};
use common::*;

/// The decision in one line.
fn answer(table: &RouteTable, request: &Request) -> String {
    answer_of(stored(table), request)
}

fn answer_of(table: &amesh_model::route::ArchivedRouteTable, request: &Request) -> String {
    match decide(table, request, &mut RegexCache::new()) {
        Decision::Forward(f) => {
            let header =
                |name: &str| request.first_value(name).map(|value| String::from_utf8_lossy(value).into_owned());
            let host = f.new_host(request.host(), header).map(|new| format!(" host {}", new.host)).unwrap_or_default();
            let path = f.path.map(|p| format!(" path {p}")).unwrap_or_default();
            format!("{}{path}{host}", f.cluster)
        }
        Decision::Redirect { status, location, .. } => format!("{status} {location}"),
        Decision::Direct { status, body, .. } => format!("{status} {}", String::from_utf8_lossy(&body)),
        Decision::NotFound => "404".into(),
        Decision::Refuse { reason } => format!("500 {reason}"),
        Decision::ClusterNotFound { code, .. } => format!("no cluster {code}"),
    }
}

/// A table with one virtual host for every name.
fn any(routes: Vec<Route>) -> RouteTable {
    table(vec![(&["*"], common::virtual_host("any", routes))])
}

fn redirect() -> RedirectAction {
    RedirectAction {
        https_redirect: false,
        scheme: String::new(),
        host: String::new(),
        port: 0,
        path: PathRewrite::None,
        status: 301,
        strip_query: false,
    }
}

/// The table of the service `web` of the mesh that the recordings were made in.
fn web() -> RouteTable {
    let with = |mut m: RouteMatch, headers: Vec<HeaderMatcher>| {
        m.headers = headers;
        m
    };
    let canary = r"^(.*;\s*)?canary=1(;.*)?$";
    let jason = vec![header("end-user", HeaderMatch::String(exact("jason")))];
    let cookie = StringMatcher { pattern: StringPattern::SafeRegex(regex(canary)), ignore_case: false };
    let cookie = vec![header("cookie", HeaderMatch::String(cookie))];
    let get = vec![header(":method", HeaderMatch::String(exact("GET")))];
    let mut api = forward("v1");
    api.path_rewrite = PathRewrite::Prefix("/v1/".into());
    api.host_rewrite = HostRewrite::Literal("inner.example.com".into());
    let api = RouteAction::Route(Box::new(api));
    let mut api_any_case = prefix("/api/");
    api_any_case.case_sensitive = false;
    let mut item = forward("v1");
    item.path_rewrite = PathRewrite::Regex { pattern: regex("/item/([0-9]+)/(.*)"), substitution: r"/\2?id=\1".into() };
    let mut query = prefix("/q");
    let digits = StringMatcher { pattern: StringPattern::SafeRegex(regex("^[0-9]+$")), ignore_case: false };
    query.query_parameters = vec![
        QueryParameterMatcher { name: "debug".into(), value: QueryMatch::String(exact("true")) },
        QueryParameterMatcher { name: "id".into(), value: QueryMatch::String(digits) },
    ];
    let mut no_skip = header("x-skip", HeaderMatch::Present(true));
    no_skip.invert_match = true;
    let off = StringMatcher { pattern: StringPattern::Prefix("off".into()), ignore_case: false };
    let mut no_mode = header("x-mode", HeaderMatch::String(off));
    no_mode.invert_match = true;
    no_mode.treat_missing_header_as_empty = true;
    let old = RedirectAction {
        host: "www.example.com".into(),
        path: PathRewrite::Full("/new".into()),
        status: 302,
        ..redirect()
    };
    let secure = RedirectAction { scheme: "https".into(), port: 8443, ..redirect() };
    let teapot = DirectResponseAction { status: 418, body: b"short and stout\n".to_vec(), body_format: None };
    let mut canary = forward("");
    let v2 = WeightedCluster { host_rewrite_literal: "v2.example.com".into(), ..arm("v2", 20) };
    canary.cluster = ClusterSpecifier::Weighted {
        clusters: vec![arm("v1", 80), v2],
        total_weight: 100,
        random_header: String::new(),
    };
    let routes = vec![
        route("by-user", with(prefix("/"), jason), to("v2")),
        route("by-user", with(prefix("/"), cookie), to("v2")),
        route("exact", with(path("/exact"), get), to("v3")),
        route("rewrite-prefix", prefix("/api/"), api.clone()),
        route("rewrite-prefix", api_any_case, api),
        route(
            "rewrite-regex",
            matching(PathSpecifier::SafeRegex(regex("/item/[0-9]+/.*"))),
            RouteAction::Route(Box::new(item)),
        ),
        route("query", query, to("v2")),
        route("query", with(prefix("/w"), vec![no_skip, no_mode]), to("v2")),
        route("moved", path("/old"), RouteAction::Redirect(Box::new(old))),
        route("to-https", prefix("/secure"), RouteAction::Redirect(Box::new(secure))),
        route("canned", path("/teapot"), RouteAction::DirectResponse(teapot)),
        route("canary", prefix("/"), RouteAction::Route(Box::new(canary))),
    ];
    let names: &[&str] = &["web.default.svc.cluster.local", "web", "web.default.svc", "web.default", "198.18.96.10"];
    let passthrough =
        common::virtual_host("allow_any", vec![route("allow_any", prefix("/"), to("PassthroughCluster"))]);
    let mut table = table(vec![(names, common::virtual_host("web", routes)), (&["*"], passthrough)]);
    table.ignore_port_in_host_matching = true;
    table
}

#[test]
fn the_answers_are_those_that_envoy_gave_in_the_mesh() {
    let web = stored(&web());
    let host = "web.default.svc.cluster.local";
    let get = |path: &str| Request::get(host, path);
    let mut post = get("/exact").with("end-user", "jason");
    post.method = "POST".into();
    let mut canary = get("/");
    canary.random = 80;
    let cases = [
        ("host short name", Request::get("web", "/exact"), "v3"),
        ("host with port", Request::get("web.default:80", "/exact"), "v3"),
        ("host in capitals", Request::get("WEB.default.svc.cluster.local", "/exact"), "v3"),
        ("host is the VIP", Request::get("198.18.96.10", "/exact"), "v3"),
        ("host unknown: passthrough", Request::get("nobody.example.com", "/x"), "PassthroughCluster"),
        ("header exact", get("/").with("end-user", "jason"), "v2"),
        ("header regex", get("/").with("cookie", "a=b; canary=1"), "v2"),
        ("path exact", get("/exact"), "v3"),
        ("path exact, query kept", get("/exact?a=1"), "v3"),
        ("path exact, other method", post, "v2"),
        ("prefix rewrite and authority", get("/api/x?y=1"), "v1 path /v1/x?y=1 host inner.example.com"),
        ("prefix ignore case", get("/API/x"), "v1 path /v1/x host inner.example.com"),
        ("regex rewrite", get("/item/42/foo/bar"), "v1 path /foo/bar?id=42"),
        ("regex rewrite with query", get("/item/42/foo?z=1"), "v1 path /foo?id=42?z=1"),
        ("query match", get("/q?id=5&debug=true"), "v2"),
        ("query no match", get("/q?id=x&debug=true"), "v1"),
        ("without header", get("/w"), "v2"),
        ("without header: present", get("/w").with("x-skip", ""), "v1"),
        ("redirect", get("/old?a=b"), "302 http://www.example.com/new?a=b"),
        ("redirect scheme and port", get("/secure/x"), "301 https://web.default.svc.cluster.local:8443/secure/x"),
        ("direct response", get("/teapot"), "418 short and stout\n"),
        ("weights: first arm", get("/"), "v1"),
        ("weights: host of the second arm", canary, "v2 host v2.example.com"),
        ("escaped slash kept", get("/api/a%2fb"), "v1 path /v1/a%2fb host inner.example.com"),
    ];
    for (name, request, want) in cases {
        assert_eq!(answer_of(web, &request), want, "{name}");
    }
}

#[test]
fn weights_are_met_over_all_random_numbers() {
    let web = stored(&web());
    let to_v2 = (0..1000).filter(|n| {
        let mut request = Request::get("web", "/");
        request.random = *n;
        answer_of(web, &request).starts_with("v2")
    });
    assert_eq!(to_v2.count(), 200);
}

#[test]
fn plaintext_is_redirected_where_tls_is_required() {
    let host = |tls| {
        let mut vh = common::virtual_host("tls", vec![route("r", prefix("/"), to("c"))]);
        vh.require_tls = tls;
        table(vec![(&["*"], vh)])
    };
    let request = Request::get("a.org:80", "/p?q");
    let mut https = request.clone();
    https.scheme = "https".into();
    let internal = request.clone().with("x-envoy-internal", "true");
    assert_eq!(answer(&host(RequireTls::All), &request), "301 https://a.org:80/p?q");
    assert_eq!(answer(&host(RequireTls::All), &internal), "301 https://a.org:80/p?q");
    assert_eq!(answer(&host(RequireTls::All), &https), "c");
    assert_eq!(answer(&host(RequireTls::ExternalOnly), &request), "301 https://a.org:80/p?q");
    assert_eq!(answer(&host(RequireTls::ExternalOnly), &internal), "c");
}

#[test]
fn a_path_matches_as_its_kind_says() {
    let no_case = |mut m: RouteMatch| {
        m.case_sensitive = false;
        m
    };
    let separated = |text: &str| matching(PathSpecifier::PathSeparatedPrefix(text.into()));
    let safe_regex = |text: &str| matching(PathSpecifier::SafeRegex(regex(text)));
    for (m, yes, no) in [
        (prefix("/psp"), &["/psp", "/pspx", "/psp?x"][..], &["/ps", "/PSP", "/?/psp"][..]),
        (no_case(prefix("/ci")), &["/CI/x", "/ci"], &["/c"]),
        (path("/exact"), &["/exact", "/exact?a"], &["/exact/", "/Exact", "/exac"]),
        (no_case(path("/exact")), &["/EXACT"], &["/exac"]),
        (separated("/psp"), &["/psp", "/psp/", "/psp/x", "/psp?x"], &["/pspx", "/PSP", "/ps"]),
        (no_case(separated("/psci")), &["/psci", "/PSCI/x"], &["/psciX"]),
        (safe_regex("/rx/[^/]"), &["/rx/a", "/rx/a?b"], &["/rx/ab", "/RX/a", "/x/rx/a"]),
        (safe_regex("/ro|/root"), &["/ro", "/root"], &["/rooty"]),
    ] {
        let table = any(vec![route("r", m.clone(), to("c"))]);
        yes.iter().for_each(|p| assert_eq!(answer(&table, &Request::get("h", p)), "c", "{m:?} {p}"));
        no.iter().for_each(|p| assert_eq!(answer(&table, &Request::get("h", p)), "404", "{m:?} {p}"));
    }
}

/// Whether a route with this one header matcher takes the request.
fn takes(matcher: &HeaderMatcher, request: &Request) -> bool {
    let mut m = prefix("/");
    m.headers = vec![matcher.clone()];
    answer(&any(vec![route("r", m, to("c"))]), request) == "c"
}

#[test]
fn a_header_that_is_absent_matches_only_where_that_is_said() {
    let string = || HeaderMatch::String(exact("a"));
    let range = || HeaderMatch::Range { start: 0, end: 5 };
    let make = |value, invert_match, treat_missing_header_as_empty| HeaderMatcher {
        name: "x".into(),
        value,
        invert_match,
        treat_missing_header_as_empty,
    };
    // The answers: absent, empty, `a`, `3`.
    for (matcher, want) in [
        (make(HeaderMatch::Present(true), false, false), [false, true, true, true]),
        (make(HeaderMatch::Present(true), true, false), [true, false, false, false]),
        (make(HeaderMatch::Present(true), true, true), [false; 4]),
        (make(HeaderMatch::Present(true), false, true), [true; 4]),
        (make(HeaderMatch::Present(false), false, true), [false; 4]),
        (make(HeaderMatch::Present(false), true, false), [false, true, true, true]),
        (make(HeaderMatch::Present(false), false, false), [true, false, false, false]),
        (make(string(), false, false), [false, false, true, false]),
        (make(string(), true, false), [false, true, false, true]),
        (make(string(), true, true), [true, true, false, true]),
        (make(range(), true, true), [true, true, true, false]),
    ] {
        let request = Request::get("h", "/");
        let got = [
            takes(&matcher, &request),
            takes(&matcher, &request.clone().with("x", "")),
            takes(&matcher, &request.clone().with("x", "a")),
            takes(&matcher, &request.clone().with("x", "3")),
        ];
        assert_eq!(got, want, "{matcher:?}");
    }
}

#[test]
fn each_line_of_a_header_is_matched_alone_unless_envoy_joins_them() {
    let twice = |name: &str, a: &str, b: &str| Request::get("h", "/").with(name, a).with(name, b);
    let not =
        |name: &str, text: &str| HeaderMatcher { invert_match: true, ..header(name, HeaderMatch::String(exact(text))) };
    let is = |name: &str, text: &str| header(name, HeaderMatch::String(exact(text)));
    let x = twice("x", "a", "b");
    assert!(takes(&is("x", "a"), &x) && takes(&is("x", "b"), &x));
    assert!(!takes(&is("x", "a,b"), &x));
    assert!(!takes(&not("x", "a"), &x) && !takes(&not("x", "b"), &x) && takes(&not("x", "a,b"), &x));
    assert!(takes(&is("cookie", "b=2"), &twice("cookie", "a=1", "b=2")));
    assert!(!takes(&is("cookie", "a=1; b=2"), &twice("cookie", "a=1", "b=2")));
    for name in ["accept", "user-agent", "x-forwarded-for", "x-request-id"] {
        assert!(takes(&is(name, "a,b"), &twice(name, "a", "b")), "{name}");
        assert!(!takes(&is(name, "a"), &twice(name, "a", "b")), "{name}");
    }
    let not_small = HeaderMatcher { invert_match: true, ..header("x", HeaderMatch::Range { start: 1, end: 3 }) };
    assert!(!takes(&not_small, &twice("x", "9", "1")));
    assert!(takes(&not_small, &twice("x", "9", "8")));
}

#[test]
fn header_values_match_as_their_matcher_says() {
    let string = |pattern, ignore_case| header("x", HeaderMatch::String(StringMatcher { pattern, ignore_case }));
    let range = || header("x", HeaderMatch::Range { start: -5, end: 10 });
    for (matcher, yes, no) in [
        (range(), &["5", "-5", "+3", " 3 ", "007"][..], &["10", "abc", "3.0", "", "99999999999999999999"][..]),
        (string(StringPattern::Exact("abc".into()), true), &["aBc"], &["ab", "abcd"]),
        (string(StringPattern::Prefix("ab".into()), false), &["ab", "abc"], &["a", "Ab"]),
        (string(StringPattern::Suffix("bc".into()), true), &["bc", "aBC"], &["c", "bcd"]),
        (string(StringPattern::Contains("bc".into()), true), &["aBCd"], &["ab", ""]),
        (string(StringPattern::Contains(String::new()), false), &["", "a"], &[]),
        (string(StringPattern::SafeRegex(regex("a.c")), false), &["abc"], &["xabc", "abcx"]),
    ] {
        yes.iter().for_each(|v| assert!(takes(&matcher, &Request::get("h", "/").with("x", v)), "{matcher:?} {v:?}"));
        no.iter().for_each(|v| assert!(!takes(&matcher, &Request::get("h", "/").with("x", v)), "{matcher:?} {v:?}"));
    }
}

#[test]
fn the_request_line_goes_by_the_names_of_headers() {
    let request = Request::get("h", "/p?x=1");
    for (name, value) in
        [(":path", "/p?x=1"), (":method", "GET"), (":authority", "h"), ("host", "h"), (":scheme", "http")]
    {
        assert!(takes(&header(name, HeaderMatch::String(exact(value))), &request), "{name}");
        assert!(!takes(&header(name, HeaderMatch::String(exact("x"))), &request), "{name}");
    }
}

#[test]
fn query_parameters_are_matched_as_they_are_written_and_the_first_counts() {
    let parameter = |name: &str, value| QueryParameterMatcher { name: name.into(), value };
    let text = |text: &str| QueryMatch::String(exact(text));
    for (matcher, yes, no) in [
        (parameter("a", text("b c")), &[][..], &["?a=b%20c", "?a=b+c"][..]),
        (parameter("a", text("b%20c")), &["?a=b%20c", "?z&a=b%20c"], &["?a=b+c"]),
        (
            parameter("p", QueryMatch::Present(true)),
            &["?p", "?p=", "?p=1&p=2", "?&&p", "?=1&p"],
            &["", "?", "?%70=1", "?f=1;p"],
        ),
        (parameter("n", QueryMatch::Present(false)), &["?need=1", ""], &["?need&n"]),
        (parameter("e", text("")), &["?e", "?e="], &["?e=x", ""]),
        (parameter("f", text("1")), &["?f=1&f=2"], &["?f=2&f=1"]),
        (parameter("x y", QueryMatch::Present(true)), &[], &["?x%20y=1", "?x+y"]),
    ] {
        let mut m = path("/q");
        m.query_parameters = vec![matcher.clone()];
        let table = any(vec![route("r", m, to("c"))]);
        let ask = |query: &&str| answer(&table, &Request::get("h", &format!("/q{query}")));
        yes.iter().for_each(|q| assert_eq!(ask(q), "c", "{matcher:?} {q}"));
        no.iter().for_each(|q| assert_eq!(ask(q), "404", "{matcher:?} {q}"));
    }
}

#[test]
fn grpc_is_told_by_its_content_type() {
    let mut m = prefix("/");
    m.grpc = true;
    let table = any(vec![route("r", m, to("c"))]);
    for (kind, want) in [
        ("application/grpc", "c"),
        ("application/grpc+proto", "c"),
        ("application/grpc-web", "404"),
        ("application/grpcx", "404"),
        ("APPLICATION/grpc", "404"),
        ("application/grpc;x", "404"),
    ] {
        assert_eq!(answer(&table, &Request::get("h", "/").with("content-type", kind)), want, "{kind}");
    }
}

#[test]
fn a_fraction_of_requests_is_taken() {
    let mut m = prefix("/");
    let default = Fraction { numerator: 25, denominator: 100 };
    m.runtime_fraction = Some(RuntimeFraction { default, runtime_key: String::new() });
    let table = any(vec![route("some", m, to("some")), route("rest", prefix("/"), to("rest"))]);
    let table = stored(&table);
    let some = (0..1000).filter(|n| {
        let mut request = Request::get("h", "/");
        request.random = *n;
        answer_of(table, &request) == "some"
    });
    assert_eq!(some.count(), 250);
}

#[test]
fn locations_are_built_as_envoy_builds_them() {
    let https = || RedirectAction { https_redirect: true, ..redirect() };
    let port = || RedirectAction { port: 8443, ..redirect() };
    let full = |text: &str| RedirectAction { path: PathRewrite::Full(text.into()), ..redirect() };
    let start = |text: &str| RedirectAction { path: PathRewrite::Prefix(text.into()), ..redirect() };
    let host = || RedirectAction { host: "n".into(), ..redirect() };
    let swap = || PathRewrite::Regex { pattern: regex("/([a-z]+)/([a-z]+)"), substitution: r"/\2/\1".into() };
    let cases = [
        (https(), "/s/x?y", "a", "https://a/s/x?y"),
        (https(), "/s/x", "a:80", "https://a/s/x"),
        (https(), "/s/x", "a:8080", "https://a:8080/s/x"),
        (https(), "/s/x", "a:443", "https://a:443/s/x"),
        (https(), "/s/x", "A:80", "https://A/s/x"),
        (https(), "/s/x", "a:x", "https://a:x/s/x"),
        (port(), "/s/x", "a", "http://a:8443/s/x"),
        (port(), "/s/x", "[::1]:80", "http://[::1]:8443/s/x"),
        (port(), "/s/x", "[::1]", "http://[::1]:8443/s/x"),
        (host(), "/s/x?q", "a:80", "http://n/s/x?q"),
        (
            RedirectAction { port: 8080, ..RedirectAction { host: "n".into(), ..https() } },
            "/s/",
            "a:80",
            "https://n:8080/s/",
        ),
        (RedirectAction { scheme: "https".into(), port: 443, ..redirect() }, "/s/x", "a:80", "https://a:443/s/x"),
        (full("/new"), "/s/x?a=b", "a", "http://a/new?a=b"),
        (full("/new"), "/s/x", "a", "http://a/new"),
        (full("/new?z=1"), "/s/x?a=b", "a", "http://a/new?z=1"),
        (RedirectAction { strip_query: true, ..full("/new?z=1") }, "/s/x?a=b", "a", "http://a/new?z=1"),
        (full("no-slash"), "/s/x?a", "a", "http://a/no-slash?a"),
        (start("/p2/"), "/s/x?a", "a", "http://a/p2/x?a"),
        (start("p2/"), "/s/x", "a", "http://a/p2/x"),
        (start(""), "/s/x", "a", "http://a/s/x"),
        (RedirectAction { path: swap(), ..redirect() }, "/s/abc?e", "a", "http://a/abc/s?e"),
        (RedirectAction { path: swap(), ..redirect() }, "/s/9", "a", "http://a/s/9"),
        (RedirectAction { strip_query: true, ..host() }, "/s/x?y=1", "a", "http://n/s/x"),
        (redirect(), "/s/x", "a:80", "http://a:80/s/x"),
    ];
    for (action, path, host, want) in cases {
        let table = any(vec![route("r", prefix("/s/"), RouteAction::Redirect(Box::new(action.clone())))]);
        let got = answer(&table, &Request::get(host, path));
        assert_eq!(got, format!("301 {want}"), "{action:?} {host}{path}");
    }
    let whole = RouteAction::Redirect(Box::new(start("/whole")));
    let table = any(vec![route("r", matching(PathSpecifier::SafeRegex(regex("/rx/.*"))), whole)]);
    assert_eq!(answer(&table, &Request::get("a", "/rx/y?z")), "301 http://a/whole?z");
    let mut secure = Request::get("a:443", "/s/x");
    secure.scheme = "https".into();
    let table = any(vec![route("r", prefix("/"), RouteAction::Redirect(Box::new(https())))]);
    assert_eq!(answer(&table, &secure), "301 https://a:443/s/x");
}

#[test]
fn paths_are_rewritten_as_envoy_does() {
    let start = |text: &str| PathRewrite::Prefix(text.into());
    let re = |pattern: &str, substitution: &str| PathRewrite::Regex {
        pattern: regex(pattern),
        substitution: substitution.into(),
    };
    let no_case = || {
        let mut m = prefix("/ci/");
        m.case_sensitive = false;
        m
    };
    for (m, rewrite, path, want) in [
        (prefix("/pre/"), start("/x/"), "/pre/a?b", "/x/a?b"),
        (no_case(), start("/x/"), "/cI/a?b", "/x/a?b"),
        (path("/exact"), start("/other"), "/exact?q", "/other?q"),
        (matching(PathSpecifier::SafeRegex(regex("/rp/.*"))), start("/whole"), "/rp/a/b?c", "/whole?c"),
        (matching(PathSpecifier::PathSeparatedPrefix("/psp".into())), start("/z"), "/psp/x?y", "/z/x?y"),
        (prefix("/g/"), re("a(b?)", r"[\1\\\0]"), "/g/aabxa?aa", r"/g/[\a][b\ab]x[\a]?aa"),
        (prefix("/"), re("x*", "/"), "/exxy?xx", "///e/y/?xx"),
    ] {
        let mut action = forward("c");
        action.path_rewrite = rewrite.clone();
        let table = any(vec![route("r", m.clone(), RouteAction::Route(Box::new(action)))]);
        assert_eq!(answer(&table, &Request::get("h", path)), format!("c path {want}"), "{m:?} {rewrite:?}");
    }
    let mut action = forward("c");
    action.path_rewrite = re("^/$|/k", "");
    let table = any(vec![route("r", prefix("/"), RouteAction::Route(Box::new(action)))]);
    assert_eq!(answer(&table, &Request::get("h", "/k?x")), "c", "a path never becomes empty");
}

#[test]
fn hosts_are_rewritten_by_the_route_before_the_arm() {
    let ask = |rewrite: HostRewrite, arm_host: &str, request: Request| {
        let mut action = forward("");
        action.host_rewrite = rewrite;
        let arm = WeightedCluster { host_rewrite_literal: arm_host.into(), ..arm("c", 1) };
        action.cluster =
            ClusterSpecifier::Weighted { clusters: vec![arm], total_weight: 1, random_header: String::new() };
        answer(&any(vec![route("r", prefix("/"), RouteAction::Route(Box::new(action)))]), &request)
    };
    let get = |path: &str| Request::get("h", path);
    let by_path = || HostRewrite::PathRegex { pattern: regex("/hr/(.*)"), substitution: r"\1.example.com".into() };
    let by_header = || HostRewrite::Header("x-new".into());
    assert_eq!(ask(HostRewrite::None, "", get("/")), "c");
    assert_eq!(ask(HostRewrite::None, "arm", get("/")), "c host arm");
    assert_eq!(ask(HostRewrite::Literal("route".into()), "arm", get("/")), "c host route");
    assert_eq!(ask(by_path(), "", get("/hr/foo?x")), "c host foo.example.com");
    assert_eq!(ask(by_header(), "", get("/").with("x-new", "n").with("x-new", "m")), "c host n");
    assert_eq!(ask(by_header(), "arm", get("/").with("x-new", "")), "c host arm");
    assert_eq!(ask(by_header(), "", get("/")), "c");
}

#[test]
fn the_cluster_may_come_from_a_header() {
    let mut action = forward("");
    action.cluster = ClusterSpecifier::ClusterHeader("x-c".into());
    action.cluster_not_found_response_code = 404;
    let mut weighted = forward("");
    let arm = WeightedCluster { cluster_header: "x-c".into(), ..arm("", 1) };
    weighted.cluster =
        ClusterSpecifier::Weighted { clusters: vec![arm], total_weight: 1, random_header: String::new() };
    let table = any(vec![
        route("w", prefix("/w"), RouteAction::Route(Box::new(weighted))),
        route("n", prefix("/nf"), RouteAction::NonForwarding),
        route("r", prefix("/r"), RouteAction::Refuse("mTLS is required".into())),
        route("h", prefix("/"), RouteAction::Route(Box::new(action))),
    ]);
    assert_eq!(answer(&table, &Request::get("h", "/").with("x-c", "up")), "up");
    assert_eq!(answer(&table, &Request::get("h", "/")), "no cluster 404");
    assert_eq!(answer(&table, &Request::get("h", "/w").with("x-c", "up")), "up");
    assert_eq!(answer(&table, &Request::get("h", "/w")), "no cluster 503");
    assert_eq!(answer(&table, &Request::get("h", "/nf")), "no cluster 503");
    assert_eq!(answer(&table, &Request::get("h", "/r")), "500 mTLS is required");
}

#[test]
fn a_virtual_host_that_is_refused_answers_nothing_else() {
    let mut vh = common::virtual_host("v", vec![route("r", prefix("/"), to("c"))]);
    vh.refuse = Some("JWT is required".into());
    assert_eq!(answer(&table(vec![(&["*"], vh)]), &Request::get("h", "/")), "500 JWT is required");
}

#[test]
fn compiled_patterns_are_bounded_and_never_mixed_up() {
    let mut cache = RegexCache::with_capacity(4);
    for n in 0..100 {
        let pattern = stored(&regex(&format!("a{n}")));
        assert!(cache.is_match(pattern, format!("a{n}").as_bytes()));
        assert!(cache.len() <= 4);
    }
    assert!(cache.len() > 2, "what was used last is kept");
    let mut twin = regex("other");
    twin.id = regex("a99").id;
    assert!(cache.is_match(stored(&twin), b"other"), "an id that two patterns share");
    assert!(cache.is_match(stored(&regex("a99")), b"a99"));
    let mut broken = regex("a");
    broken.pattern = "(".into();
    assert!(!cache.is_match(stored(&broken), b"("), "what does not compile matches nothing");
}

#[test]
fn edits_of_the_arm_are_carried() {
    let mut action = forward("");
    let edits = HeaderEdits {
        response_add: vec![HeaderValueOption {
            key: "x-arm".into(),
            value: vec![Format::Text("stable".into())],
            append_action: AppendAction::AppendIfExistsOrAdd,
            keep_empty_value: false,
        }],
        ..HeaderEdits::default()
    };
    let arm = WeightedCluster { headers: edits, ..arm("c", 1) };
    action.cluster = ClusterSpecifier::Weighted { clusters: vec![arm], total_weight: 1, random_header: String::new() };
    let table = any(vec![route("r", prefix("/"), RouteAction::Route(Box::new(action)))]);
    match decide(stored(&table), &Request::get("h", "/"), &mut RegexCache::new()) {
        Decision::Forward(f) => assert_eq!(f.arm.unwrap().headers.response_add[0].key.as_str(), "x-arm"),
        _ => panic!("not forwarded"),
    };
}

proptest::proptest! {
    #[test]
    fn any_request_is_decided(path in "/[a-z/?&=%]{0,20}", host in ".{0,10}", random in 0..u64::MAX, cookie in ".{0,20}") {
        let mut request = Request::get(&host, &path).with("cookie", &cookie).with("end-user", &host);
        request.random = random;
        proptest::prop_assert_ne!(answer(&web(), &request), "404", "the last virtual host and each last route take everything");
    }
}
