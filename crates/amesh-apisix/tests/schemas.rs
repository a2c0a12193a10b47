//! The checker refuses what APISIX refuses: the other tests lean on it.

mod common;

use amesh_apisix::Directory;
use common::schema::valid;
use serde_json::{json, Value};

fn upstream(edit: impl FnOnce(&mut Value)) -> Result<(), String> {
    let mut json = json!({
        "id": "u", "type": "roundrobin", "nodes": [{"host": "10.0.0.1", "port": 80, "weight": 1, "priority": -1}],
        "timeout": {"connect": 0.25, "send": 5, "read": 5}, "retries": 2, "retry_timeout": 3, "scheme": "http",
    });
    edit(&mut json);
    valid(Directory::Upstreams, "u", &json)
}

fn route(edit: impl FnOnce(&mut Value)) -> Result<(), String> {
    let mut json = json!({
        "id": "r", "hosts": ["web", "*.wild.example"], "uris": ["/api", "/api/*"], "priority": 10,
        "vars": [["http_x_v", "==", "2"], ["connection_original_dst", "==", "10.96.0.5:9080"]], "upstream_id": "u",
        "plugins": {"fault-injection": {"abort": {"http_status": 404}}},
    });
    edit(&mut json);
    valid(Directory::Routes, "r", &json)
}

#[test]
fn good_objects_pass() {
    assert_eq!(upstream(|_| ()), Ok(()));
    assert_eq!(route(|_| ()), Ok(()));
}

#[test]
fn every_violation_is_found() {
    type Edit = fn(&mut Value);
    let upstreams: [(&str, Edit); 9] = [
        ("an id of a number", |j| j["id"] = json!(1)),
        ("an id that is not the key's", |j| j["id"] = json!("v")),
        ("a time-out of nothing", |j| j["timeout"]["connect"] = json!(0)),
        ("a time-out that lacks a part", |j| drop(j["timeout"].as_object_mut().unwrap().remove("send"))),
        ("a type that APISIX does not know", |j| j["type"] = json!("random")),
        ("a weight below nothing", |j| j["nodes"][0]["weight"] = json!(-1)),
        ("no nodes", |j| drop(j.as_object_mut().unwrap().remove("nodes"))),
        ("passive checks alone", |j| j["checks"] = json!({"passive": {"type": "http"}})),
        ("an unknown field", |j| j["lb"] = json!("x")),
    ];
    for (what, edit) in upstreams {
        assert!(upstream(edit).is_err(), "{what}");
    }
    let routes: [(&str, Edit); 11] = [
        ("uri beside uris", |j| j["uri"] = json!("/")),
        ("no path", |j| drop(j.as_object_mut().unwrap().remove("uris"))),
        ("a path twice", |j| j["uris"] = json!(["/a", "/a"])),
        ("a host with a slash", |j| j["hosts"] = json!(["a/b"])),
        ("no hosts", |j| j["hosts"] = json!([])),
        ("a share of a half per cent", |j| j["plugins"]["fault-injection"]["abort"]["percentage"] = json!(33.3)),
        ("an unknown plugin", |j| j["plugins"]["x"] = json!({})),
        ("OR of one", |j| j["vars"] = json!([["OR", ["a", "==", "b"]]])),
        ("an unknown operator", |j| j["vars"] = json!([["a", "=~", "b"]])),
        ("a broken expression", |j| j["vars"] = json!([["a", "~~", "("]])),
        ("credentials for all origins", |j| {
            j["plugins"]["cors"] = json!({"allow_origins": "*", "allow_credential": true});
        }),
    ];
    for (what, edit) in routes {
        assert!(route(edit).is_err(), "{what}");
    }
}
