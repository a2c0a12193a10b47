//! Stories of state-of-the-world xDS: what the server says, what the client answers.

use super::testing::*;
use super::{sotw, Client as _};
use envoy_types::pb::envoy::service::discovery::v3::{
    DiscoveryRequest as Request, DiscoveryResponse as Response, Resource,
};
use envoy_types::pb::google::protobuf::Any;
use prost::Message;

fn response(type_url: &str, version: &str, nonce: &str, names: &[&str]) -> Response {
    Response {
        type_url: type_url.into(),
        version_info: version.into(),
        nonce: nonce.into(),
        resources: names.iter().map(|n| any(type_url, n)).collect(),
        ..Default::default()
    }
}

/// `type version/nonce [names]` and what else the request says.
fn show(r: &Request) -> String {
    let kind = super::short_name(&r.type_url);
    let mut out = format!("{kind} {}/{} [{}]", r.version_info, r.response_nonce, r.resource_names.join(" "));
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

fn connected(fake: &mut Fake) -> sotw::Client {
    let mut client = sotw::Client::new(node());
    client.on_connected(fake);
    client
}

#[test]
fn a_first_stream_asks_for_the_wildcards_and_says_who_it_is_once() {
    let mut client = sotw::Client::new(node());
    assert_eq!(shown(&client.on_connected(&mut Fake::default())), ["cds / [] node", "lds / []"]);
}

#[test]
fn every_request_and_every_ack_lists_all_names() {
    let mut fake = Fake::default();
    let mut client = connected(&mut fake);
    fake.want(EDS, &["a", "b"]);
    let r = client.on_response(response(CDS, "v1", "n1", &["a", "b"]), &mut fake);
    assert_eq!(shown(&r.requests), ["cds v1/n1 []", "eds / [a b]"]);
    let r = client.on_response(response(EDS, "v1", "n2", &["a", "b"]), &mut fake);
    assert_eq!(shown(&r.requests), ["eds v1/n2 [a b]"]);
    // A name is added: all of them, with the nonce of the last response.
    fake.want(EDS, &["a", "b", "c"]);
    let r = client.on_response(response(CDS, "v2", "n3", &["a", "b", "c"]), &mut fake);
    assert_eq!(shown(&r.requests), ["cds v2/n3 []", "eds v1/n2 [a b c]"]);
    // istiod answers with the added one only: merged, nothing is inferred from absence.
    let r = client.on_response(response(EDS, "v2", "n4", &["c"]), &mut fake);
    assert_eq!(shown(&r.requests), ["eds v2/n4 [a b c]"]);
    assert_eq!(fake.holds(EDS), "a@v1 b@v1 c@v2");
}

#[test]
fn an_ack_that_crosses_a_change_of_names_says_the_new_names() {
    let mut fake = Fake::default();
    let mut client = connected(&mut fake);
    fake.want(RDS, &["80"]);
    client.on_names_changed(&mut fake);
    fake.want(RDS, &["80", "90"]);
    let r = client.on_response(response(RDS, "v1", "n1", &["80"]), &mut fake);
    assert_eq!(shown(&r.requests), ["rds v1/n1 [80 90]"]);
    assert!(client.on_names_changed(&mut fake).is_empty());
}

#[test]
fn an_empty_list_is_sent_only_to_unsubscribe_from_everything() {
    let mut fake = Fake::default();
    let mut client = connected(&mut fake);
    assert!(client.on_names_changed(&mut fake).is_empty());
    fake.want(RDS, &["80"]);
    client.on_names_changed(&mut fake);
    fake.want(RDS, &[]);
    let r = client.on_response(response(LDS, "v1", "n1", &[]), &mut fake);
    assert_eq!(shown(&r.requests), ["lds v1/n1 []", "rds / []"]);
}

#[test]
fn listeners_and_clusters_are_the_whole_world() {
    let mut fake = Fake::default();
    let mut client = connected(&mut fake);
    client.on_response(response(CDS, "v1", "n1", &["a", "b"]), &mut fake);
    client.on_response(response(CDS, "v2", "n2", &["b"]), &mut fake);
    assert_eq!(fake.holds(CDS), "b@v2");
}

#[test]
fn a_nack_keeps_the_last_accepted_version_and_the_good_resources_apply() {
    let mut fake = Fake::default();
    let mut client = connected(&mut fake);
    client.on_response(response(LDS, "v1", "n1", &["bad", "l"]), &mut fake);
    fake.bad.insert("bad".into());
    let r = client.on_response(response(LDS, "v2", "n2", &["bad", "l"]), &mut fake);
    assert_eq!(shown(&r.requests), ["lds v1/n2 [] NACK bad: lb_policy: is not supported"]);
    assert_eq!(fake.holds(LDS), "bad@v1 l@v2");
    fake.bad.clear();
    let r = client.on_response(response(LDS, "v3", "n3", &["bad", "l"]), &mut fake);
    assert_eq!(shown(&r.requests), ["lds v3/n3 []"]);
    assert_eq!(fake.holds(LDS), "bad@v3 l@v3");
}

#[test]
fn what_cannot_be_read_deletes_nothing() {
    let mut fake = Fake::default();
    let mut client = connected(&mut fake);
    client.on_response(response(CDS, "v1", "n1", &["a", "b"]), &mut fake);
    let mut nonsense = response(CDS, "v2", "n2", &["a"]);
    nonsense.resources.push(Any { type_url: CDS.into(), value: vec![0xff; 9] });
    let r = client.on_response(nonsense, &mut fake);
    assert_eq!(shown(&r.requests), ["cds v1/n2 [] NACK resource 2 of 2: is no readable Cluster"]);
    assert_eq!(fake.holds(CDS), "a@v2 b@v1");
    let mut other = response(CDS, "v3", "n3", &[]);
    other.resources.push(any(LDS, "l"));
    let r = client.on_response(other, &mut fake);
    assert!(show(&r.requests[0]).contains("NACK l: is a type.googleapis.com/envoy.config.listener.v3.Listener"));
    assert_eq!(fake.holds(CDS), "a@v2 b@v1");
    let r = client.on_response(response(CDS, "v4", "n4", &["b", "b"]), &mut fake);
    assert!(show(&r.requests[0]).contains("NACK b: appears twice"));
    assert_eq!(fake.holds(CDS), "a@v2 b@v1");
}

#[test]
fn an_envelope_names_what_is_in_it() {
    let mut fake = Fake::default();
    let mut client = connected(&mut fake);
    let wrapped = Resource { name: "a".into(), resource: Some(any(CDS, "a")), ..Default::default() };
    let mut wrap = response(CDS, "v1", "n1", &[]);
    wrap.resources.push(Any {
        type_url: "type.googleapis.com/envoy.service.discovery.v3.Resource".into(),
        value: wrapped.encode_to_vec(),
    });
    assert_eq!(shown(&client.on_response(wrap, &mut fake).requests), ["cds v1/n1 []"]);
    assert_eq!(fake.holds(CDS), "a@v1");
}

#[test]
fn a_new_stream_keeps_the_versions_and_forgets_the_nonces() {
    let mut fake = Fake::default();
    let mut client = connected(&mut fake);
    fake.want(EDS, &["a"]);
    client.on_response(response(CDS, "v1", "n1", &["a"]), &mut fake);
    client.on_response(response(EDS, "v5", "n2", &["a"]), &mut fake);
    assert_eq!(shown(&client.on_connected(&mut fake)), ["cds v1/ [] node", "eds v5/ [a]", "lds / []"]);
}

#[test]
fn a_type_that_was_never_asked_for_is_left_aside() {
    let mut fake = Fake::default();
    let mut client = connected(&mut fake);
    let r = client.on_response(response(RDS, "v1", "n1", &["80"]), &mut fake);
    assert!(r.requests.is_empty() && r.ignored.is_some());
    // Unknown route tables and clusters come empty; names that are not wanted are dropped.
    fake.want(RDS, &["80"]);
    client.on_names_changed(&mut fake);
    client.on_response(response(RDS, "v1", "n1", &["80", "stranger"]), &mut fake);
    assert_eq!(fake.holds(RDS), "80@v1");
}
