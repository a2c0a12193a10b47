//! What routes do, as plugins and upstreams.

mod common;
#[path = "../../amesh-dataplane/tests/common/mod.rs"]
mod model;

use amesh_apisix::{Changes, Directory, Options, Translator};
use amesh_model::batch::{Batch, Value as Resource};
use amesh_model::cluster::{Cluster, LbPolicy};
use amesh_model::endpoint::{EndpointSet, HealthStatus};
use amesh_model::filter::{Cors, Fault, FaultAbort, FaultDelay, FaultError, HttpFilter, LocalRateLimit};
use amesh_model::hash_policy::{HashMethod, HashPolicy};
use amesh_model::header::{AppendAction, Format, HeaderEdits, HeaderValueOption};
use amesh_model::health::{HealthCheck, HealthCheckKind, OutlierDetection};
use amesh_model::listener::{ChainAction, FilterChain, FilterChainMatch, RouteSpecifier};
use amesh_model::matcher::Fraction;
use amesh_model::retry::retry_on;
use amesh_model::route::{
    ClusterSpecifier, DirectResponseAction, ForwardAction, HostRewrite, MirrorPolicy, PathRewrite, RedirectAction,
    Route, RouteAction,
};
use common::{plain_cluster, put};
use serde_json::{json, Value};

/// The objects of a mesh with one route, at `/p`, and these clusters; with what is refused.
fn made(route: Route, clusters: Vec<Cluster>) -> (Vec<Value>, Vec<Value>, Changes) {
    made_with(vec![HttpFilter::Fault(Fault::default()), HttpFilter::Cors], route, clusters)
}

/// The same with these filters.
fn made_with(filters: Vec<HttpFilter>, route: Route, clusters: Vec<Cluster>) -> (Vec<Value>, Vec<Value>, Changes) {
    let mut table = model::table(vec![(&["web"], model::virtual_host("web", vec![route]))]);
    table.name = "t".into();
    let mut manager = model::hcm();
    manager.routes = RouteSpecifier::Rds("t".into());
    manager.filters = filters;
    let action = ChainAction::Http(Box::new(manager));
    let mut listener = model::listener(vec![FilterChain {
        name: String::new(),
        filter_chain_match: FilterChainMatch::default(),
        action,
    }]);
    listener.addresses = vec!["10.0.0.1:80".parse::<std::net::SocketAddr>().unwrap().into()];
    let mut items = vec![put(Resource::RouteTable(table)), put(Resource::Listener(listener))];
    for cluster in clusters {
        items.push(put(common::endpoints(&cluster.name, &["10.0.0.7:8080"])));
        items.push(put(Resource::Cluster(cluster)));
    }
    let mut translator = Translator::new(Options::default());
    let changes = translator.apply(&Batch { put: items, remove: vec![] });
    translator.objects().for_each(common::schema::assert_valid);
    let of = |directory| {
        let all = changes.put.iter().filter(move |object| object.key.directory == directory);
        all.map(common::json).filter(|json| json["desc"].as_str().is_none_or(|d| !d.starts_with("not found"))).collect()
    };
    (of(Directory::Routes), of(Directory::Upstreams), changes)
}

/// The one route and the one upstream of a route that forwards.
fn forwarded(edit: impl FnOnce(&mut ForwardAction), cluster: Cluster) -> (Value, Value) {
    let mut forward = model::forward("c");
    edit(&mut forward);
    let route = model::route("r", model::prefix("/p"), RouteAction::Route(Box::new(forward)));
    let (mut routes, mut upstreams, _) = made(route, vec![cluster]);
    assert_eq!((routes.len(), upstreams.len()), (1, 1));
    (routes.remove(0), upstreams.remove(0))
}

fn plugins(action: RouteAction) -> Value {
    let (routes, _, changes) = made(model::route("r", model::prefix("/p"), action), vec![plain_cluster("c")]);
    assert_eq!(changes.refused, []);
    routes[0]["plugins"].clone()
}

/// It is answered by 503, for a reason with these words.
fn refuses(route: Route, words: &str) {
    let (routes, _, changes) = made(route, vec![plain_cluster("c")]);
    assert_eq!(routes[0]["plugins"], json!({"fault-injection": {"abort": {"http_status": 503}}}));
    assert!(routes[0]["desc"].as_str().unwrap().contains(words), "{}", routes[0]["desc"]);
    assert!(changes.refused[0].reason.contains(words), "{:?}", changes.refused);
}

fn at_p(action: RouteAction) -> Route {
    model::route("r", model::prefix("/p"), action)
}

#[test]
fn times_are_seconds_above_nothing() {
    let mut cluster = plain_cluster("c");
    cluster.connect_timeout = 0;
    let (route, upstream) = forwarded(|_| (), cluster.clone());
    assert_eq!(route.get("timeout"), None, "without one it is the upstream's");
    assert_eq!(upstream["timeout"], json!({"connect": 0.001, "send": 86400, "read": 86400}));
    cluster.connect_timeout = 5000;
    let (route, upstream) = forwarded(|f| f.timeout = 1500, cluster);
    assert_eq!(route["timeout"], json!({"connect": 1.5, "send": 1.5, "read": 1.5}));
    assert_eq!((&upstream["retries"], upstream.get("retry_timeout")), (&json!(0), None));
}

#[test]
fn tries_are_said_by_the_upstream() {
    let retry = |on, times| {
        forwarded(
            |f| {
                (f.retry.retry_on, f.retry.num_retries) = (on, times);
                (f.timeout, f.retry.per_try_timeout) = (4000, 500);
            },
            plain_cluster("c"),
        )
    };
    let (route, upstream) = retry(retry_on::CONNECT_FAILURE | retry_on::GRPC_UNAVAILABLE, 3);
    assert_eq!((&upstream["retries"], &upstream["retry_timeout"]), (&json!(3), &json!(4)));
    assert_eq!(route["timeout"], json!({"connect": 4, "send": 0.5, "read": 0.5}));
    assert_eq!(retry(retry_on::RETRIABLE_4XX, 3).1["retries"], 0, "APISIX does not look at statuses");
}

#[test]
fn paths_and_hosts_are_rewritten() {
    let (route, _) = forwarded(
        |f| {
            f.path_rewrite = PathRewrite::Prefix("/new".into());
            f.host_rewrite = HostRewrite::Literal("h.example:80".into());
        },
        plain_cluster("c"),
    );
    assert_eq!(route["plugins"]["proxy-rewrite"], json!({"regex_uri": ["\\A/p", "/new"], "host": "h.example:80"}));
    let regex = |pattern: &str, substitution: &str| {
        let pattern = model::regex(pattern);
        forwarded(
            |f| f.path_rewrite = PathRewrite::Regex { pattern, substitution: substitution.into() },
            plain_cluster("c"),
        )
        .0
    };
    let route = regex("^/p/(a+)$", "/x\\1/\\0\\\\");
    assert_eq!(route["plugins"]["proxy-rewrite"]["regex_uri"], json!(["\\A/p/((?:a)+)\\z", "/x${1}/${0}\\"]));
    let mut forward = model::forward("c");
    forward.path_rewrite = PathRewrite::Regex { pattern: model::regex("a"), substitution: "b".into() };
    refuses(at_p(RouteAction::Route(Box::new(forward.clone()))), "may match several times");
    forward.path_rewrite = PathRewrite::Prefix("/$host".into());
    refuses(at_p(RouteAction::Route(Box::new(forward))), "for a variable");
}

#[test]
fn headers_are_edited() {
    let set = |key: &str, append_action| HeaderValueOption {
        key: key.into(),
        value: vec![Format::Text("v".into())],
        append_action,
        keep_empty_value: false,
    };
    let mut route = at_p(model::to("c"));
    route.headers = HeaderEdits {
        request_add: vec![set("x-q", AppendAction::AppendIfExistsOrAdd)],
        request_remove: vec!["user-agent".into()],
        response_add: vec![
            set("x-r", AppendAction::OverwriteIfExistsOrAdd),
            set("x-s", AppendAction::AppendIfExistsOrAdd),
        ],
        response_remove: vec![],
    };
    let (routes, _, _) = made(route.clone(), vec![plain_cluster("c")]);
    let wanted = json!({
        "proxy-rewrite": {"headers": {"add": {"x-q": "v"}, "remove": ["user-agent"]}},
        "response-rewrite": {"headers": {"set": {"x-r": "v"}, "add": ["x-s: v"]}},
    });
    assert_eq!(routes[0]["plugins"], wanted);
    route.headers.request_add[0].append_action = AppendAction::AddIfAbsent;
    refuses(route, "depends on whether it is there");
}

#[test]
fn answers_and_redirects() {
    let direct = |status, body: &str| {
        RouteAction::DirectResponse(DirectResponseAction { status, body: body.into(), body_format: None })
    };
    assert_eq!(plugins(direct(418, "tea")), json!({"fault-injection": {"abort": {"http_status": 418, "body": "tea"}}}));
    assert_eq!(plugins(direct(204, "")), json!({"fault-injection": {"abort": {"http_status": 204}}}));
    refuses(at_p(direct(200, "$host")), "for a variable");
    let to = |host: &str, https_redirect, path| {
        RouteAction::Redirect(Box::new(RedirectAction {
            https_redirect,
            scheme: String::new(),
            host: host.into(),
            port: 0,
            path,
            status: 302,
            strip_query: false,
        }))
    };
    let redirect = |action| plugins(action)["redirect"].clone();
    let wanted = json!({"uri": "https://$http_host$real_request_uri", "ret_code": 302});
    assert_eq!(redirect(to("", true, PathRewrite::None)), wanted);
    let wanted = json!({"uri": "$scheme://h/new$is_args$args", "ret_code": 302});
    assert_eq!(redirect(to("h", false, PathRewrite::Full("/new".into()))), wanted);
    let wanted =
        json!({"regex_uri": ["\\A/p(?s)(.*)", "https://h/n${1}"], "append_query_string": true, "ret_code": 302});
    assert_eq!(redirect(to("h", true, PathRewrite::Prefix("/n".into()))), wanted);
    refuses(at_p(to("h", false, PathRewrite::Prefix("/n".into()))), "keeps a part of the host");
}

#[test]
fn faults_are_whole_per_cents() {
    let fault = |numerator, denominator| Fault {
        delay: Some(FaultDelay { fixed: Some(300), percentage: Fraction { numerator: 100, denominator: 100 } }),
        abort: Some(FaultAbort {
            error: FaultError::Http(418),
            percentage: Fraction { numerator, denominator },
            body: "no".into(),
        }),
        headers: vec![model::header("x-a", amesh_model::matcher::HeaderMatch::Present(true))],
        ..Fault::default()
    };
    let with = |fault| {
        let mut route = at_p(model::to("c"));
        route.fault = Some(Box::new(fault));
        route
    };
    let (routes, _, _) = made(with(fault(500_000, 1_000_000)), vec![plain_cluster("c")]);
    let vars = json!([[["http_x_a", "~~", "^"]]]);
    let wanted = json!({
        "delay": {"duration": 0.3, "percentage": 100, "vars": vars},
        "abort": {"http_status": 418, "percentage": 50, "body": "no", "vars": vars},
    });
    assert_eq!(routes[0]["plugins"]["fault-injection"], wanted);
    refuses(with(fault(333, 1000)), "no whole number per cent");
}

#[test]
fn limits_of_requests() {
    let filters = vec![
        HttpFilter::LocalRateLimit(LocalRateLimit {
            bucket: Some(amesh_model::bucket::TokenBucket::default()),
            enabled: Fraction { numerator: 100, denominator: 100 },
            enforced: Fraction { numerator: 100, denominator: 100 },
            ..LocalRateLimit::default()
        }),
        HttpFilter::Buffer(4096),
    ];
    let mut route = at_p(model::to("c"));
    let (routes, _, changes) = made_with(filters.clone(), route.clone(), vec![plain_cluster("c")]);
    assert!(changes.refused[0].reason.contains("local rate limit"), "{:?}", changes.refused);
    assert_eq!(routes[0]["plugins"]["fault-injection"]["abort"]["http_status"], 503);
    route.rate_limit = Some(Box::default());
    let (routes, _, changes) = made_with(filters, route, vec![plain_cluster("c")]);
    assert_eq!(changes.refused, []);
    assert_eq!(routes[0]["plugins"], json!({"client-control": {"max_body_size": 4096}}));
}

#[test]
fn cors_passes_the_schema_with_credentials() {
    let mut route = at_p(model::to("c"));
    let regex = amesh_model::matcher::StringPattern::SafeRegex(model::regex("https://.*\\.example"));
    let by_regex = amesh_model::matcher::StringMatcher { pattern: regex, ignore_case: false };
    let mut cors = Cors {
        enabled: Fraction { numerator: 100, denominator: 100 },
        allow_origin: vec![model::exact("https://a.example"), by_regex],
        allow_methods: "GET,POST".into(),
        allow_headers: "*".into(),
        expose_headers: String::new(),
        max_age: "600".into(),
        allow_credentials: true,
        allow_private_network: false,
        forward_not_matching_preflights: true,
    };
    let mut conf = |cors: &Cors| {
        route.cors = Some(Box::new(cors.clone()));
        made(route.clone(), vec![plain_cluster("c")]).0[0]["plugins"]["cors"].clone()
    };
    let wanted = json!({
        "allow_origins": "https://a.example",
        "allow_origins_by_regex": ["\\A(?:https://(?:[\\x00-\\x09\\x0b-\\xff])*\\.example)\\z"],
        "allow_methods": "GET,POST", "allow_headers": "**", "expose_headers": "", "allow_credential": true, "max_age": 600,
    });
    assert_eq!(conf(&cors), wanted);
    cors.allow_origin.remove(0);
    assert_eq!(conf(&cors)["allow_origins"], "https://origin.invalid", "not every origin, which is APISIX's default");
    cors.allow_origin = vec![model::exact("*")];
    assert_eq!(conf(&cors)["allow_origins"], "**");
    cors.enabled.numerator = 0;
    assert_eq!(conf(&cors), Value::Null);
}

#[test]
fn shares_of_clusters() {
    let weighted = |arms: &[(&str, u32)]| {
        let mut forward = model::forward("c");
        let clusters = arms.iter().map(|(name, weight)| model::arm(name, *weight)).collect();
        let total_weight = arms.iter().map(|(_, weight)| weight).sum();
        forward.cluster = ClusterSpecifier::Weighted { clusters, total_weight, random_header: String::new() };
        made(at_p(RouteAction::Route(Box::new(forward))), vec![plain_cluster("c"), plain_cluster("d")])
    };
    let (routes, upstreams, changes) = weighted(&[("c", 90), ("d", 10), ("none", 5), ("gone", 5), ("c", 1)]);
    assert_eq!(upstreams.len(), 3, "what does not exist is one upstream without nodes");
    assert_eq!(changes.refused.len(), 2);
    let id = |name: &str| upstreams.iter().find(|u| u["name"] == name).unwrap()["id"].clone();
    let arms = json!([
        {"upstream_id": id("c"), "weight": 91}, {"upstream_id": id("d"), "weight": 10}, {"upstream_id": id("nowhere"), "weight": 10}
    ]);
    assert_eq!(routes[0]["plugins"]["traffic-split"]["rules"], json!([{"weighted_upstreams": arms}]));
    assert_eq!(upstreams.iter().find(|u| u["name"] == "nowhere").unwrap()["nodes"], json!([]));
    let (routes, _, _) = weighted(&[("c", 100), ("d", 0)]);
    assert_eq!(routes[0].get("plugins"), None, "one arm is no split");
}

#[test]
fn what_does_not_exist_is_answered_as_the_route_says() {
    let mut forward = model::forward("none");
    forward.cluster_not_found_response_code = 404;
    let (routes, _, changes) = made(at_p(RouteAction::Route(Box::new(forward))), vec![]);
    assert_eq!(routes[0]["plugins"]["fault-injection"]["abort"]["http_status"], 404);
    assert!(changes.refused[0].reason.contains("\"none\" does not exist"));
}

#[test]
fn copies_go_to_an_address() {
    let mirror = MirrorPolicy {
        cluster: "c".into(),
        cluster_header: String::new(),
        runtime_fraction: Some(Fraction { numerator: 25, denominator: 100 }),
        disable_shadow_host_suffix_append: false,
        host_rewrite_literal: String::new(),
    };
    let (route, _) = forwarded(|f| f.mirrors.push(mirror), plain_cluster("c"));
    assert_eq!(route["plugins"]["proxy-mirror"], json!({"host": "http://10.0.0.7:8080", "sample_ratio": 0.25}));
}

#[test]
fn what_is_hashed_is_said_by_the_upstream() {
    let hash = |policies: Vec<(HashMethod, bool)>| {
        let mut cluster = plain_cluster("c");
        cluster.lb_policy = LbPolicy::Maglev { table_size: 65537 };
        let policies = policies.into_iter().map(|(method, terminal)| HashPolicy { method, terminal }).collect();
        let (_, upstream) = forwarded(|f| f.hash_policy = policies, cluster);
        (upstream["type"].clone(), upstream["hash_on"].clone(), upstream["key"].clone())
    };
    let header = |name: &str| HashMethod::Header { name: name.into(), rewrite: None };
    assert_eq!(hash(vec![(header("x-user"), false)]), (json!("chash"), json!("header"), json!("x-user")));
    assert_eq!(hash(vec![(HashMethod::SourceIp, false)]), (json!("chash"), json!("vars"), json!("remote_addr")));
    let both = vec![(header("x-user"), false), (HashMethod::QueryParameter("q".into()), false)];
    assert_eq!(hash(both), (json!("chash"), json!("vars_combinations"), json!("${http_x_user}${arg_q}")));
    let first = vec![(header("x-user"), true), (HashMethod::SourceIp, false)];
    assert_eq!(hash(first).2, "x-user", "APISIX itself falls back to the client's address");
    assert_eq!(hash(vec![]).0, "roundrobin");
}

#[test]
fn endpoints_that_are_ill_have_no_node() {
    let mut translator = Translator::new(Options::default());
    let nodes = |translator: &mut Translator, set: EndpointSet, cluster: Cluster| {
        let items = vec![put(Resource::Cluster(cluster)), put(Resource::EndpointSet(set))];
        translator.apply(&Batch { put: items, remove: vec![] });
        let upstream = common::json(translator.objects().next().unwrap());
        let node =
            |n: &Value| (n["host"].as_str().unwrap()[7..].to_owned(), n["weight"].clone(), n["priority"].clone());
        upstream["nodes"].as_array().unwrap().iter().map(node).collect::<Vec<_>>()
    };
    let endpoint = |n: u8, weight, health| {
        let mut endpoint = common::endpoint(&format!("10.0.0.{n}:80"));
        (endpoint.weight, endpoint.health) = (weight, health);
        endpoint
    };
    use HealthStatus::{Healthy, Unhealthy};
    let mut first =
        common::locality(0, vec![endpoint(1, 2, Healthy), endpoint(2, 3, Unhealthy), endpoint(3, 4, Healthy)]);
    let second = common::locality(1, vec![endpoint(4, 1, Healthy)]);
    let set = |all: &[&amesh_model::endpoint::Locality]| EndpointSet {
        localities: all.iter().map(|l| (*l).clone()).collect(),
        ..EndpointSet::empty("c")
    };
    let found = nodes(&mut translator, set(&[&first, &second]), plain_cluster("c"));
    let node = |n: &str, weight: u64, priority: i64| (n.to_owned(), json!(weight), json!(priority));
    assert_eq!(found, [node("1", 2, 0), node("3", 4, 0), node("4", 1, -1)]);
    first.endpoints[0].health = Unhealthy;
    let found = nodes(&mut translator, set(&[&first]), plain_cluster("c"));
    assert_eq!(found.len(), 3, "in panic health is not looked at");
    let mut weighs = plain_cluster("c");
    weighs.locality_weighted = true;
    let mut here = common::locality(0, vec![endpoint(1, 1, Healthy), endpoint(2, 1, Healthy)]);
    let mut there = common::locality(0, vec![endpoint(3, 5, Healthy)]);
    (here.weight, there.weight) = (1, 3);
    let found = nodes(&mut translator, set(&[&here, &there]), weighs);
    assert_eq!(found, [node("1", 1, 0), node("2", 1, 0), node("3", 6, 0)]);
}

#[test]
fn health_checks_are_active_before_they_are_passive() {
    let check = HealthCheck {
        timeout: 500,
        interval: 1500,
        initial_jitter: 0,
        interval_jitter: 0,
        interval_jitter_percent: 0,
        unhealthy_threshold: 2,
        healthy_threshold: 1,
        no_traffic_interval: 60_000,
        no_traffic_healthy_interval: 60_000,
        unhealthy_interval: 0,
        unhealthy_edge_interval: 0,
        healthy_edge_interval: 0,
        reuse_connection: true,
        alt_port: 0,
        always_log_failures: false,
        always_log_success: false,
        kind: HealthCheckKind::Tcp { send: vec![], receive: vec![] },
    };
    let outlier = OutlierDetection {
        interval: 10_000,
        base_ejection_time: 30_000,
        max_ejection_time: 300_000,
        max_ejection_time_jitter: 0,
        max_ejection_percent: 10,
        always_eject_one_host: false,
        split_external_local_origin_errors: false,
        successful_active_health_check_uneject_host: true,
        consecutive_5xx: amesh_model::health::Consecutive { threshold: 5, enforcing: 100 },
        consecutive_gateway_failure: amesh_model::health::Consecutive { threshold: 5, enforcing: 0 },
        consecutive_local_origin_failure: amesh_model::health::Consecutive { threshold: 5, enforcing: 100 },
        success_rate: amesh_model::health::SuccessRate {
            minimum_hosts: 5,
            request_volume: 100,
            stdev_factor: 1900,
            enforcing: 100,
            enforcing_local_origin: 100,
        },
        failure_percentage: amesh_model::health::FailurePercentage {
            threshold: 85,
            minimum_hosts: 5,
            request_volume: 50,
            enforcing: 0,
            enforcing_local_origin: 0,
        },
    };
    let mut cluster = plain_cluster("c");
    cluster.outlier_detection = Some(Box::new(outlier));
    let (_, upstream) = forwarded(|_| (), cluster.clone());
    assert_eq!(upstream.get("checks"), None, "the schema refuses passive checks alone");
    cluster.health_check = Some(Box::new(check));
    let (_, upstream) = forwarded(|_| (), cluster);
    let active = json!({
        "type": "tcp", "timeout": 0.5,
        "healthy": {"interval": 2, "successes": 1}, "unhealthy": {"interval": 2, "timeouts": 2, "tcp_failures": 2},
    });
    assert_eq!(upstream["checks"]["active"], active);
    assert_eq!(upstream["checks"]["passive"]["unhealthy"]["http_failures"], 5);
}
