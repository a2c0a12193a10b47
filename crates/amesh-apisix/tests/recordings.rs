//! A real istiod's whole configuration, translated.

mod common;

use amesh_apisix::{Changes, Directory, Options, Translator};
use amesh_model::batch::{Batch, Value as Resource};
use amesh_xds::translate::{self, Notes, Source, TranslatedCluster};
use common::put;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use envoy_types::pb::google::protobuf::Any;
use prost::Message;
use std::collections::BTreeMap;
use std::path::PathBuf;

fn open<M: Message + Default>(any: &Any) -> M {
    M::decode(any.value.as_slice()).unwrap()
}

/// All resources of a recording, as one batch of the model.
fn batch(file: &str) -> Batch {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../t/istio/recordings").join(file);
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut rest = bytes.as_slice();
    let mut items = BTreeMap::new();
    let mut clusters: BTreeMap<String, TranslatedCluster> = BTreeMap::new();
    let mut assignments: BTreeMap<String, ClusterLoadAssignment> = BTreeMap::new();
    let notes = &mut Notes::new();
    while !rest.is_empty() {
        let response = DeltaDiscoveryResponse::decode_length_delimited(&mut rest).unwrap();
        for resource in response.resources {
            let any = resource.resource.unwrap();
            let key = (any.type_url.clone(), resource.name.clone());
            match any.type_url.as_str() {
                translate::LISTENER => {
                    let listener = translate::listener(&open(&any), notes).unwrap().listener;
                    items.insert(key, put(Resource::Listener(listener)));
                }
                translate::ROUTE_CONFIGURATION => {
                    let table = translate::route_table(&open(&any), notes).unwrap();
                    items.insert(key, put(Resource::RouteTable(table)));
                }
                translate::CLUSTER => {
                    clusters.insert(resource.name, translate::cluster(&open(&any), notes).unwrap());
                }
                translate::CLUSTER_LOAD_ASSIGNMENT => drop(assignments.insert(resource.name, open(&any))),
                _ => {}
            }
        }
    }
    let mut items: Vec<_> = items.into_values().collect();
    for (name, cluster) in &clusters {
        items.push(put(Resource::Cluster(cluster.cluster.clone())));
        if let Source::Eds { service, .. } = &cluster.source {
            let assignment = &assignments[service];
            let set = translate::endpoint_set(name, &cluster.sockets, assignment, notes).unwrap();
            items.push(put(Resource::EndpointSet(set)));
        }
    }
    Batch { put: items, remove: vec![] }
}

fn translated(file: &str, options: Options) -> (Translator, Changes) {
    let mut translator = Translator::new(options);
    let changes = translator.apply(&batch(file));
    (translator, changes)
}

fn count(translator: &Translator, directory: Directory) -> usize {
    translator.objects().filter(|object| object.key.directory == directory).count()
}

#[test]
fn every_object_of_every_recording_is_valid() {
    let everything = Options { inbound: true, stream_routes: true, ..Options::default() };
    for file in ["app-delta.pb", "app-vanilla-delta.pb", "locked-delta.pb", "router-delta.pb"] {
        for options in [Options::default(), everything.clone()] {
            let (translator, changes) = translated(file, options);
            translator.objects().for_each(common::schema::assert_valid);
            assert_eq!(translator.objects().count(), changes.put.len(), "{file}");
            assert!(count(&translator, Directory::Upstreams) > 5, "{file}");
            let (mut again, _) = (translator, ());
            assert!(again.apply(&batch(file)).is_empty(), "{file}: the same again changes nothing");
        }
    }
}

/// Refusals of a kind: those that begin so, with these words in the reason.
fn refused<'a>(changes: &'a Changes, what: &'a str, reason: &'a str) -> Vec<&'a str> {
    let found = changes.refused.iter().filter(|r| r.what.starts_with(what) && r.reason.contains(reason));
    found.map(|r| r.what.as_str()).collect()
}

#[test]
fn nothing_is_refused_but_what_is_expected() {
    let (translator, changes) = translated("app-delta.pb", Options::default());
    assert_eq!((count(&translator, Directory::Upstreams), count(&translator, Directory::Routes)), (50, 69));
    let expected = [
        ("route table", "ORIGINAL_DST", 9),
        ("route table", "given none", 3),
        ("route table", "whole number per cent", 2),
        ("route table", "copies are sent to the first", 2),
        ("route table", "edits headers for itself", 1),
        ("listener", "no stream routes", 7),
        ("listener \"virtualOutbound\"", "the mesh does not know", 1),
        ("cluster", "ORIGINAL_DST", 9),
        ("cluster", "transport socket", 8),
        ("cluster", "outliers stay in use", 6),
    ];
    for (what, reason, count) in expected {
        assert_eq!(refused(&changes, what, reason).len(), count, "{what}: {reason}: {:#?}", changes.refused);
    }
    let known: usize = expected.iter().map(|(_, _, count)| count).sum();
    assert_eq!(changes.refused.len(), known, "{:#?}", changes.refused);
    assert_eq!(translator.refusals().count(), known);
}

#[test]
fn what_cannot_be_said_is_answered_not_left_out() {
    let (translator, changes) = translated("app-delta.pb", Options::default());
    let routes: Vec<serde_json::Value> = translator.objects().map(common::json).collect();
    for refusal in
        changes.refused.iter().filter(|r| r.reason.ends_with("answered with 503") && r.what.starts_with("route"))
    {
        let says = |route: &&serde_json::Value| {
            let desc = route["desc"].as_str().unwrap_or_default();
            desc.starts_with(refusal.reason.chars().take(60).collect::<String>().as_str())
        };
        let route = routes.iter().find(says).unwrap_or_else(|| panic!("no route says {}", refusal.reason));
        assert_eq!(route["plugins"]["fault-injection"]["abort"]["http_status"], 503, "{route}");
    }
}
