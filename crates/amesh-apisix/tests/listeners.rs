//! Which requests reach which route table, and TCP listeners.

mod common;
#[path = "../../amesh-dataplane/tests/common/mod.rs"]
mod model;

use amesh_apisix::{Destination, Directory, Options, Translator};
use amesh_model::batch::{Batch, Value as Resource};
use amesh_model::listener::{
    ChainAction, FilterChain, FilterChainMatch, Listener, RouteSpecifier, ScopedRoutes, TrafficDirection,
};
use common::put;
use serde_json::{json, Value};

fn http(name: &str, address: &str, table: &str) -> Listener {
    let mut manager = model::hcm();
    manager.routes = RouteSpecifier::Rds(table.into());
    let action = ChainAction::Http(Box::new(manager));
    listener(
        name,
        address,
        FilterChain { name: String::new(), filter_chain_match: FilterChainMatch::default(), action },
    )
}

fn listener(name: &str, address: &str, chain: FilterChain) -> Listener {
    let addresses = vec![address.parse::<std::net::SocketAddr>().unwrap().into()];
    Listener { name: name.into(), addresses, ..model::listener(vec![chain]) }
}

fn tcp(cluster: &str, server_names: &[&str]) -> FilterChain {
    let server_names = server_names.iter().map(|name| name.to_string()).collect();
    model::chain(cluster, FilterChainMatch { server_names, ..FilterChainMatch::default() })
}

/// Objects of a directory, of a mesh with the tables `a` and `b`, each of which takes all hosts.
fn made(options: Options, listeners: Vec<Listener>, directory: Directory) -> Vec<Value> {
    let table = |name: &str| {
        let route = model::route(name, model::prefix("/"), model::to("c"));
        let mut table = model::table(vec![(&["*"], model::virtual_host("any", vec![route]))]);
        table.name = name.into();
        put(Resource::RouteTable(table))
    };
    let mut items = vec![put(common::cluster("c")), table("a"), table("b")];
    items.extend(listeners.into_iter().map(|listener| put(Resource::Listener(listener))));
    let mut translator = Translator::new(options);
    translator.apply(&Batch { put: items, remove: vec![] });
    translator.objects().for_each(common::schema::assert_valid);
    let of = translator.objects().filter(|object| object.key.directory == directory);
    of.map(common::json).collect()
}

/// `vars` of the route of a table.
fn vars(options: Options, listeners: Vec<Listener>, table: &str) -> Option<Value> {
    let routes = made(options, listeners, Directory::Routes);
    let found = routes.iter().find(|route| route["name"] == table)?;
    Some(found["vars"].clone())
}

fn by(destination: Destination) -> Options {
    Options { destination, ..Options::default() }
}

const ANY: &str = r"\A[^:]+:80\z|\A\[[^\]]+\]:80\z";

#[test]
fn the_original_destination_is_exact() {
    let both =
        || vec![http("vip", "10.96.0.5:80", "a"), http("any", "0.0.0.0:80", "b"), http("x", "10.96.0.6:81", "a")];
    let exact = json!([["connection_original_dst", "==", "10.96.0.5:80"]]);
    assert_eq!(vars(Options::default(), both()[..1].to_vec(), "a"), Some(exact));
    let any = json!([["connection_original_dst", "~~", ANY], ["connection_original_dst", "!", "==", "10.96.0.5:80"]]);
    assert_eq!(vars(Options::default(), both(), "b"), Some(any), "another listener has that address");
    let either = json!([[
        "OR",
        ["connection_original_dst", "==", "10.96.0.5:80"],
        ["connection_original_dst", "==", "10.96.0.6:81"]
    ]]);
    assert_eq!(vars(Options::default(), both(), "a"), Some(either), "two listeners serve one table");
    assert!(!common::apisix::finds(ANY, "10.0.0.1:8080") && common::apisix::finds(ANY, "10.0.0.1:80"));
}

#[test]
fn other_ways_to_tell_destinations() {
    let both = || vec![http("vip", "10.96.0.5:80", "a"), http("any", "0.0.0.0:80", "b")];
    let address = json!([["server_addr", "==", "10.96.0.5"], ["server_port", "==", "80"]]);
    assert_eq!(vars(by(Destination::Server), both(), "a"), Some(address));
    assert_eq!(vars(by(Destination::Ignored), both(), "a"), Some(Value::Null), "the first by name has the domain");
    assert_eq!(vars(by(Destination::Ignored), both(), "b"), None);
}

#[test]
fn a_direction_that_is_not_wanted_is_left_out() {
    let mut inbound = http("in", "10.0.0.1:80", "a");
    inbound.traffic_direction = TrafficDirection::Inbound;
    assert_eq!(vars(Options::default(), vec![inbound.clone()], "a"), None);
    assert!(vars(Options { inbound: true, ..Options::default() }, vec![inbound], "a").is_some());
}

#[test]
fn what_goes_elsewhere_is_answered() {
    let mut last = listener("virtualOutbound", "0.0.0.0:15001", tcp("PassthroughCluster", &[]));
    last.use_original_dst = true;
    let routes = made(Options::default(), vec![http("l", "10.0.0.1:80", "a"), last], Directory::Routes);
    let elsewhere = routes.iter().find(|route| route["priority"] == 0).unwrap();
    assert_eq!((&elsewhere["uri"], elsewhere.get("vars"), elsewhere.get("hosts")), (&json!("/*"), None, None));
    assert_eq!(elsewhere["plugins"]["fault-injection"]["abort"]["http_status"], 503);
}

#[test]
fn a_listener_or_chain_that_must_not_be_served_answers_503() {
    let mut refused = http("l", "10.0.0.1:80", "a");
    refused.refuse = Some("an unknown filter".into());
    let mut late = http("m", "10.0.0.1:81", "none");
    late.name = "m".into();
    let mut scoped = http("s", "10.0.0.1:82", "a");
    if let ChainAction::Http(manager) = &mut scoped.filter_chains[0].action {
        manager.routes = RouteSpecifier::Scoped(Box::new(ScopedRoutes { scope_key_builder: vec![], scopes: vec![] }));
    }
    for (listener, says) in
        [(refused, "an unknown filter"), (late, "it has not come yet"), (scoped, "its route table depends on a header")]
    {
        let routes = made(Options::default(), vec![listener], Directory::Routes);
        assert_eq!(routes.len(), 1);
        assert!(routes[0]["desc"].as_str().unwrap().starts_with(says), "{}", routes[0]);
        assert_eq!(routes[0]["plugins"]["fault-injection"]["abort"]["http_status"], 503);
        assert!(routes[0]["vars"].to_string().contains("10.0.0.1:8"));
    }
}

#[test]
fn tcp_listeners_are_stream_routes_where_they_are_wanted() {
    let tls = listener("tls", "10.0.0.1:443", tcp("c", &["db.example", "*.db.example"]));
    let plain = listener("plain", "0.0.0.0:5432", tcp("c", &[]));
    let nowhere = listener("gone", "0.0.0.0:5433", tcp("none", &[]));
    let all = vec![tls, plain, nowhere];
    assert_eq!(made(Options::default(), all.clone(), Directory::StreamRoutes), Vec::<Value>::new());
    let options = Options { stream_routes: true, ..Options::default() };
    let routes = made(options.clone(), all.clone(), Directory::StreamRoutes);
    let upstreams = made(options, all, Directory::Upstreams);
    let mut found: Vec<Value> = routes
        .iter()
        .map(|route| {
            let upstream = upstreams.iter().find(|upstream| upstream["id"] == route["upstream_id"]).unwrap();
            json!([route["server_addr"], route["server_port"], route["sni"], upstream["name"]])
        })
        .collect();
    found.sort_by_key(Value::to_string);
    let wanted = [
        json!(["10.0.0.1", 443, "*.db.example", "c"]),
        json!(["10.0.0.1", 443, "db.example", "c"]),
        json!([null, 5432, null, "c"]),
        json!([null, 5433, null, "nowhere"]),
    ];
    assert_eq!(found, wanted);
}
