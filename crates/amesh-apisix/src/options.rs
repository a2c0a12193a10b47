//! What a translation depends on besides the mesh.

use std::collections::BTreeMap;

/// What a translation depends on besides the mesh. The default is a sidecar's outbound side in APISIX's own runtime, read
/// from etcd or from shared dictionaries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// How APISIX tells where a request was going.
    pub destination: Destination,
    /// Listeners of the inbound direction are translated too.
    pub inbound: bool,
    /// TCP listeners become `/stream_routes`. Only for a data source that APISIX's stream subsystem reads: etcd.
    pub stream_routes: bool,
    /// Labels of this workload: which documents of plugins are meant for it.
    pub labels: BTreeMap<String, String>,
}

/// How APISIX tells where a request was going, which decides between the route tables of several listeners.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Destination {
    /// By the variable `connection_original_dst` of APISIX's runtime: connections are redirected by iptables.
    #[default]
    Original,
    /// By the address and port that the connection came to (`server_addr`, `server_port`): APISIX listens on the ports of
    /// the mesh, or connections come by TPROXY.
    Server,
    /// Not at all: every route table is served everywhere. Where two have a domain in common, the first has it.
    Ignored,
}
