//! From what the configuration says to what the engine and the zone want.

use crate::conf::Settings;
use crate::zone;
use amesh_shm::Options;
use amesh_xds::engine::{Config, Protocol, Server, Source, Target, Tls};
use amesh_xds::node::{self, NodeConfig, Overrides};
use std::path::{Path, PathBuf};

/// Where Istio's injection puts the root certificate of the control plane, and the token that it wants.
const ISTIO_ROOT: &str = "/var/run/secrets/istio/root-cert.pem";
/// See [`ISTIO_ROOT`].
const ISTIO_TOKEN: &str = "/var/run/secrets/tokens/istio-token";
/// istiod's port with TLS.
const ISTIOD_TLS_PORT: u16 = 15012;

/// How a zone is laid out: as its size says.
pub fn zone_options() -> Options {
    Options::default()
}

/// What the engine is to do.
///
/// # Errors
/// What makes no sense, with the way out.
pub fn engine_config(s: &Settings) -> Result<Config, String> {
    if let [server] = s.servers.as_slice() {
        if let Some(path) = server.strip_prefix("file:") {
            let sources = vec![Source::File(path.into())];
            return Ok(Config { sources, layout: zone::layout_hash(), mark: s.mark, ..Config::default() });
        }
    }
    let roots = s.ssl_trusted_certificate.clone().or_else(|| there(ISTIO_ROOT));
    let mut sources = Vec::with_capacity(s.servers.len());
    for server in &s.servers {
        let target: Target = server.parse().map_err(|e: amesh_xds::transport::TargetError| e.to_string())?;
        let tls = match (&target, s.ssl) {
            (Target::Unix(_), None) => false,
            (Target::Host { port, .. }, None) => *port == ISTIOD_TLS_PORT || s.ssl_trusted_certificate.is_some(),
            (_, Some(on)) => on,
        };
        let tls = match (tls, &roots) {
            (false, _) => None,
            (true, None) => {
                return Err(format!(
                    "server \"{server}\" speaks TLS and there is no root certificate: set \"ssl_trusted_certificate\", \
                     or \"ssl off\" for plaintext"
                ))
            }
            (true, Some(roots)) => Some(Tls {
                roots: roots.clone(),
                server_name: s.ssl_name.clone(),
                client: s.ssl_certificate.clone().zip(s.ssl_certificate_key.clone()),
            }),
        };
        sources.push(Source::Grpc(Server { target, tls }));
    }
    Ok(Config {
        sources,
        protocol: if s.sotw { Protocol::Sotw } else { Protocol::Delta },
        node: node(s)?,
        token_file: s.token.clone().or_else(|| there(ISTIO_TOKEN)),
        snapshot: s.snapshot.clone(),
        layout: zone::layout_hash(),
        mark: s.mark,
    })
}

fn node(s: &Settings) -> Result<NodeConfig, String> {
    node::from_environment(&Overrides {
        id: s.node.clone(),
        cluster: s.node_cluster.clone(),
        locality: s.node_locality.clone(),
        metadata: s.node_metadata.clone(),
    })
    .map_err(|e| e.to_string())
}

fn there(path: &str) -> Option<PathBuf> {
    Path::new(path).exists().then(|| path.into())
}
