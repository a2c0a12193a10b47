//! Envoy's protobufs → the mesh model, one file a kind of resource.
//!
//! Every message is taken apart field by field, without `..`: a field that a newer Envoy adds does not compile until
//! somebody has decided what it means here. What can happen to a field:
//!
//! * it is acted on: it is in the model;
//! * it makes no sense, or it needs something that changes where requests go and is not there: [`Invalid`], the
//!   resource is NACKed and its last good stays;
//! * leaving it out would weaken security: the place fails closed (`refuse` in the model) and [`Notes`] says so;
//! * leaving it out changes comfort only (retries, statistics, tracing …): [`Notes`] lists it as ignored;
//! * it says nothing to a data plane by itself (`metadata`, names for statistics): it is left out without a word.
//!
//! Defaults are those of Envoy's API (the comments of its `.proto` files).

// Envoy's deprecated fields still come from control planes.
#![allow(deprecated)]

use envoy_types::pb::envoy::config::{
    cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener, route::v3::RouteConfiguration,
};
use envoy_types::pb::google::protobuf::Any;
use prost::Message;

mod action;
mod body;
mod chain;
mod cluster;
mod connection;
mod cors;
mod endpoint;
mod fault;
mod filter;
mod format;
mod hash_policy;
mod hcm;
mod health;
mod internal_redirect;
mod lb;
mod listener;
mod matcher;
mod metadata;
mod notes;
mod rate_limit;
mod retry;
mod route;
mod scope;
mod secrets;
mod socket;
mod subset;
mod udp;
mod uri_template;
mod value;

pub use cluster::{cluster, DnsCluster, DnsFamily, DnsRefresh, Source, TranslatedCluster};
pub use endpoint::{dns_assignment, endpoint_set, DnsTarget};
pub use listener::{listener, listener_index, BoundListener, ListenerAddresses, TranslatedListener};
pub use matcher::header as header_matcher;
pub use notes::{Note, NoteKind, Notes};
pub use route::route_table;
pub use secrets::without_secrets;
pub use socket::Sockets;

/// `type_url` of [`Listener`].
pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// `type_url` of [`RouteConfiguration`].
pub const ROUTE_CONFIGURATION: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
/// `type_url` of [`Cluster`].
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// `type_url` of [`ClusterLoadAssignment`].
pub const CLUSTER_LOAD_ASSIGNMENT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

/// Why a resource is rejected: it makes no sense, or it uses what is refused by name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Invalid {
    /// Path of the field, `virtual_hosts[2].routes[0].match.safe_regex`; empty: the whole resource.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

/// The name that a resource carries itself; `None` when its type is not translated or its bytes are no message.
/// State-of-the-world responses name their resources in no other way.
pub fn resource_name(resource: &Any) -> Option<String> {
    let bytes = resource.value.as_slice();
    match resource.type_url.as_str() {
        LISTENER => Listener::decode(bytes).ok().map(|r| r.name),
        ROUTE_CONFIGURATION => RouteConfiguration::decode(bytes).ok().map(|r| r.name),
        CLUSTER => Cluster::decode(bytes).ok().map(|r| r.name),
        CLUSTER_LOAD_ASSIGNMENT => ClusterLoadAssignment::decode(bytes).ok().map(|r| r.cluster_name),
        _ => None,
    }
}
