//! Stories of incremental xDS: what the server says, what the client answers.

use super::testing::*;
use super::{delta, Client as _};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest as Request, DeltaDiscoveryResponse as Response, Resource,
};

fn response(type_url: &str, nonce: &str, names: &[(&str, &str)], removed: &[&str]) -> Response {
    let resources = names.iter().map(|(name, version)| Resource {
        name: name.to_string(),
        version: version.to_string(),
        resource: Some(any(type_url, name)),
        ..Default::default()
    });
    Response {
        type_url: type_url.into(),
        nonce: nonce.into(),
        resources: resources.collect(),
        removed_resources: removed.iter().map(|n| n.to_string()).collect(),
        ..Default::default()
    }
}

/// `type nonce +subscribed -unsubscribed` and what else the request says.
fn show(r: &Request) -> String {
    let mut out = super::short_name(&r.type_url).to_owned();
    if !r.response_nonce.is_empty() {
        out.push_str(&format!(" ack {}", r.response_nonce));
    }
    r.resource_names_subscribe.iter().for_each(|n| out.push_str(&format!(" +{n}")));
    r.resource_names_unsubscribe.iter().for_each(|n| out.push_str(&format!(" -{n}")));
    let mut initial: Vec<_> = r.initial_resource_versions.iter().collect();
    initial.sort();
    initial.iter().for_each(|(n, v)| out.push_str(&format!(" {n}@{v}")));
    if r.node.is_some() {
        out.push_str(" node");
    }
    if let Some(e) = &r.error_detail {
        out.push_str(&format!(" NACK {}", e.message));
    }
    out
}

fn shown(requests: &[Request]) -> Vec<String> {
    requests.iter().map(show).collect()
}

fn connected(fake: &mut Fake) -> delta::Client {
    let mut client = delta::Client::new(node());
    client.on_connected(fake);
    client
}

#[test]
fn a_first_stream_asks_for_the_wildcards_and_says_who_it_is_once() {
    let mut client = delta::Client::new(node());
    assert_eq!(shown(&client.on_connected(&mut Fake::default())), ["cds node", "lds"]);
}

#[test]
fn endpoint_sets_and_route_tables_are_asked_for_once_they_are_referred_to() {
    let mut fake = Fake::default();
    let mut client = connected(&mut fake);
    fake.want(EDS, &["a", "b"]);
    let r = client.on_response(response(CDS, "1", &[("a", "v1"), ("b", "v1")], &[]), &mut fake);
    // The acknowledgement carries no subscription, the subscription no nonce.
    assert_eq!(shown(&r.requests), ["cds ack 1", "eds +a +b"]);
    let r = client.on_response(response(EDS, "2", &[("a", "v1"), ("b", "v1")], &[]), &mut fake);
    assert_eq!(shown(&r.requests), ["eds ack 2"]);
    fake.want(RDS, &["80"]);
    let r = client.on_response(response(LDS, "3", &[("0.0.0.0_80", "v1")], &[]), &mut fake);
    assert_eq!(shown(&r.requests), ["lds ack 3", "rds +80"]);
    assert_eq!(fake.holds(EDS), "a@v1 b@v1");
}

#[test]
fn only_differences_are_subscribed_because_istiod_does_not_answer_a_second_time() {
    let mut fake = Fake::default();
    let mut client = connected(&mut fake);
    fake.want(EDS, &["a", "b"]);
    client.on_response(response(CDS, "1", &[("a", "v1"), ("b", "v1")], &[]), &mut fake);
    assert!(client.on_names_changed(&mut fake).is_empty());
    fake.want(EDS, &["b", "c"]);
    let r = client.on_response(response(CDS, "2", &[("c", "v1")], &["a"]), &mut fake);
    assert_eq!(shown(&r.requests), ["cds ack 2", "eds +c -a"]);
    assert_eq!(fake.holds(CDS), "b@v1 c@v1");
    // Wanted again: it was unsubscribed in between, so it is answered.
    fake.want(EDS, &["a", "b", "c"]);
    assert_eq!(shown(&client.on_names_changed(&mut fake)), ["eds +a"]);
}

#[test]
fn the_last_name_is_unsubscribed_and_an_unopened_type_is_never_asked_for_everything() {
    let mut fake = Fake::default();
    let mut client = connected(&mut fake);
    assert!(client.on_names_changed(&mut fake).is_empty());
    fake.want(RDS, &["80"]);
    assert_eq!(shown(&client.on_names_changed(&mut fake)), ["rds +80"]);
    fake.want(RDS, &[]);
    assert_eq!(shown(&client.on_names_changed(&mut fake)), ["rds -80"]);
    assert!(client.on_names_changed(&mut fake).is_empty());
}

#[test]
fn bad_resources_are_named_in_the_nack_and_good_ones_apply() {
    let mut fake = Fake::default();
    let mut client = connected(&mut fake);
    client.on_response(response(CDS, "1", &[("bad", "v1")], &[]), &mut fake);
    fake.bad.insert("bad".into());
    let r = client.on_response(response(CDS, "2", &[("bad", "v2"), ("good", "v2")], &[]), &mut fake);
    assert_eq!(shown(&r.requests), ["cds ack 2 NACK bad: lb_policy: is not supported"]);
    assert_eq!(r.requests[0].error_detail.as_ref().unwrap().code, 3);
    assert_eq!(fake.holds(CDS), "bad@v1 good@v2");
    // istiod sends nothing again until something changes; then it is healed.
    fake.bad.clear();
    let r = client.on_response(response(CDS, "3", &[("bad", "v3")], &[]), &mut fake);
    assert_eq!(shown(&r.requests), ["cds ack 3"]);
    assert_eq!(fake.holds(CDS), "bad@v3 good@v2");
}

#[test]
fn a_new_stream_says_what_is_held_of_what_is_wanted() {
    let mut fake = Fake::default();
    let mut client = connected(&mut fake);
    fake.want(EDS, &["a"]);
    fake.bad.insert("b".into());
    client.on_response(response(CDS, "1", &[("a", "v1"), ("b", "v1")], &[]), &mut fake);
    client.on_response(response(EDS, "2", &[("a", "v7")], &[]), &mut fake);
    fake.hold(EDS, "left-over", "v1");
    let requests = client.on_connected(&mut fake);
    // A rejected resource is not held, so it is not among the versions.
    assert_eq!(shown(&requests), ["cds a@v1 node", "eds +a a@v7", "lds"]);
    // What went away meanwhile comes as removed.
    fake.want(EDS, &[]);
    let r = client.on_response(response(CDS, "1", &[], &["a"]), &mut fake);
    assert_eq!(shown(&r.requests), ["cds ack 1", "eds -a"]);
    assert_eq!(fake.holds(CDS), "");
}

#[test]
fn what_was_unsubscribed_or_never_asked_for_is_left_aside() {
    let mut fake = Fake::default();
    let mut client = connected(&mut fake);
    fake.want(EDS, &["a"]);
    client.on_names_changed(&mut fake);
    let r = client.on_response(response(EDS, "1", &[("a", "v1"), ("stranger", "v1")], &[]), &mut fake);
    assert_eq!(shown(&r.requests), ["eds ack 1"]);
    assert_eq!(fake.holds(EDS), "a@v1");
    let r = client.on_response(response(RDS, "2", &[("80", "v1")], &[]), &mut fake);
    assert!(r.requests.is_empty());
    assert!(r.ignored.unwrap().contains("RouteConfiguration"));
    let r = client.on_response(response("type.googleapis.com/nonsense", "3", &[], &[]), &mut fake);
    assert!(r.requests.is_empty() && r.ignored.is_some());
}

#[test]
fn nonsense_in_a_response_is_rejected_by_name() {
    let mut fake = Fake::default();
    let mut client = connected(&mut fake);
    let mut nonsense = response(CDS, "1", &[("a", "v1"), ("twice", "v1"), ("twice", "v2"), ("lds", "v1")], &["a"]);
    nonsense.resources[3].resource.as_mut().unwrap().type_url = LDS.into();
    let r = client.on_response(nonsense, &mut fake);
    let nack = show(&r.requests[0]);
    assert!(nack.contains("twice: appears twice in one cds response"), "{nack}");
    assert!(nack.contains("lds: is a type.googleapis.com/envoy.config.listener.v3.Listener, not a"), "{nack}");
    // Both added and removed: it is there.
    assert_eq!(fake.holds(CDS), "a@v1");
    // Without a body it prolongs a time to live.
    let mut heartbeat = response(CDS, "2", &[("a", "v1")], &[]);
    heartbeat.resources[0].resource = None;
    assert_eq!(shown(&client.on_response(heartbeat, &mut fake).requests), ["cds ack 2"]);
    assert_eq!(fake.holds(CDS), "a@v1");
}

#[test]
fn a_long_nack_is_cut_and_says_so() {
    let mut fake = Fake::default();
    let mut client = connected(&mut fake);
    let names: Vec<String> = (0..60).map(|i| format!("c{i}")).collect();
    fake.bad.extend(names.iter().cloned());
    let named: Vec<(&str, &str)> = names.iter().map(|n| (n.as_str(), "v1")).collect();
    let r = client.on_response(response(CDS, "1", &named, &[]), &mut fake);
    assert_eq!(r.rejected.len(), 60);
    assert!(show(&r.requests[0]).ends_with("and 10 more"));
}

#[test]
fn nothing_is_said_before_a_stream_is_open() {
    let mut fake = Fake::default();
    fake.want(EDS, &["a"]);
    assert!(delta::Client::new(node()).on_names_changed(&mut fake).is_empty());
}
