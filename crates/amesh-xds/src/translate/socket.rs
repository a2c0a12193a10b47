//! Transport sockets: TLS is not spoken yet, so what asks for it is refused.

use super::value::type_name;
use envoy_types::pb::envoy::config::cluster::v3 as cluster;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::google::protobuf::{Struct, Value};
use std::collections::HashMap;

const RAW_BUFFER: &str = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
/// Where the metadata of an endpoint say which transport socket it wants.
pub(super) const MATCH_METADATA: &str = "envoy.transport_socket_match";

/// Why what uses this socket must be refused; `None`: it is plain TCP.
pub(super) fn refusal(socket: &core::TransportSocket) -> Option<String> {
    let kind = match &socket.config_type {
        Some(core::transport_socket::ConfigType::TypedConfig(any)) => type_name(any),
        None if matches!(socket.name.as_str(), "envoy.transport_sockets.raw_buffer" | "raw_buffer") => return None,
        None => String::from("no configuration"),
    };
    (kind != RAW_BUFFER).then(|| format!("transport socket \"{}\" ({kind}) is not supported yet", socket.name))
}

/// The transport sockets of a cluster, as far as it matters: which endpoints must not be spoken to.
#[derive(Clone, Debug, Default)]
pub struct Sockets {
    matches: Vec<(HashMap<String, Value>, Option<String>)>,
    default: Option<String>,
}

impl Sockets {
    pub(super) fn new(matches: &[cluster::cluster::TransportSocketMatch], default: Option<String>) -> Sockets {
        let one = |m: &cluster::cluster::TransportSocketMatch| {
            let labels = m.r#match.as_ref().map(|s| s.fields.clone()).unwrap_or_default();
            let refuse = m.transport_socket.as_ref().and_then(refusal);
            (labels, refuse.map(|r| format!("transport_socket_matches \"{}\": {r}", m.name)))
        };
        Sockets { matches: matches.iter().map(one).collect(), default }
    }

    /// Why an endpoint with these metadata must not be spoken to. What the endpoint says goes before what its
    /// locality says; the first match of the list is taken, without one the cluster's own socket.
    pub fn refusal(&self, endpoint: Option<&Struct>, locality: Option<&Struct>) -> Option<&str> {
        let find = |metadata: Option<&Struct>| {
            self.matches.iter().find(|(labels, _)| {
                labels.iter().all(|(k, v)| metadata.and_then(|m| m.fields.get(k)).is_some_and(|have| have == v))
            })
        };
        let found = find(endpoint).or_else(|| locality.and_then(|l| find(Some(l))));
        match found {
            Some((_, refuse)) => refuse.as_deref(),
            None => self.default.as_deref(),
        }
    }
}

/// The labels of an endpoint or locality that pick its transport socket.
pub(super) fn labels(metadata: &Option<core::Metadata>) -> Option<&Struct> {
    metadata.as_ref().and_then(|m| m.filter_metadata.get(MATCH_METADATA))
}
