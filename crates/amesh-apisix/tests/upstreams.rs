//! Clusters and endpoints as upstreams.

mod common;

use amesh_apisix::{Options, Translator};
use amesh_model::Kind;
use common::{batch, cluster, endpoints, json, put};

#[test]
fn a_change_of_one_endpoint_rewrites_one_object() {
    let mut t = Translator::new(Options::default());
    let first = t.apply(&batch([
        put(cluster("a")),
        put(cluster("b")),
        put(endpoints("a", &["10.0.0.1:80"])),
        put(endpoints("b", &["10.0.0.2:80"])),
    ]));
    assert_eq!((first.put.len(), first.delete.len(), first.refused.len()), (2, 0, 0));
    let second = t.apply(&batch([put(endpoints("a", &["10.0.0.1:80", "10.0.0.3:8080"]))]));
    assert_eq!((second.put.len(), second.delete.len()), (1, 0));
    let upstream = json(&second.put[0]);
    assert_eq!(upstream["name"], "a");
    assert_eq!(upstream["id"], *second.put[0].key.id);
    assert_eq!(upstream["nodes"][1]["host"], "10.0.0.3");
    assert_eq!(upstream["nodes"][1]["port"], 8080);
}

#[test]
fn an_unchanged_resource_changes_nothing() {
    let mut t = Translator::new(Options::default());
    let all = batch([put(cluster("a")), put(endpoints("a", &["10.0.0.1:80"]))]);
    assert!(!t.apply(&all).is_empty());
    assert!(t.apply(&all).is_empty());
}

#[test]
fn what_is_removed_is_deleted() {
    let mut t = Translator::new(Options::default());
    t.apply(&batch([put(cluster("a")), put(cluster("b"))]));
    let mut gone = batch([]);
    gone.remove = vec![(Kind::EndpointSet, "a".into()), (Kind::Cluster, "a".into()), (Kind::Cluster, "never".into())];
    let changes = t.apply(&gone);
    assert_eq!((changes.put.len(), changes.delete.len()), (0, 1));
    assert_eq!(t.objects().map(|o| json(o)["name"].clone()).collect::<Vec<_>>(), ["b"]);
}
