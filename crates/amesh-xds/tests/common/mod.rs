//! The recordings of a real istiod: responses in order, each after a varint length.

// Each test takes what it needs.
#![allow(dead_code)]

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
use envoy_types::pb::google::protobuf::Any;
use prost::Message;
use std::path::PathBuf;

/// One resource of a response: its name, version and bytes.
pub type Resource = (String, String, Any);

/// One response.
pub struct Response {
    pub type_url: String,
    pub resources: Vec<Resource>,
    pub removed: Vec<String>,
}

fn messages<M: Message + Default>(file: &str) -> Vec<M> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../t/istio/recordings").join(file);
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut rest = bytes.as_slice();
    let mut out = Vec::new();
    while !rest.is_empty() {
        out.push(M::decode_length_delimited(&mut rest).unwrap());
    }
    out
}

/// The responses of a delta recording.
pub fn delta(file: &str) -> Vec<Response> {
    let one = |m: DeltaDiscoveryResponse| Response {
        type_url: m.type_url,
        resources: m.resources.into_iter().map(|r| (r.name, r.version, r.resource.unwrap())).collect(),
        removed: m.removed_resources,
    };
    messages(file).into_iter().map(one).collect()
}

/// The responses of a state-of-the-world recording.
pub fn sotw(file: &str) -> Vec<Response> {
    let one = |m: DiscoveryResponse| Response {
        resources: m
            .resources
            .into_iter()
            .map(|a| (amesh_xds::translate::resource_name(&a).unwrap_or_default(), m.version_info.clone(), a))
            .collect(),
        type_url: m.type_url,
        removed: Vec::new(),
    };
    messages(file).into_iter().map(one).collect()
}
