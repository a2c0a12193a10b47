//! What a user says of where the mesh comes from, in the words of docs/directives.md, and what the engine makes of it.

use crate::engine::{Config, Protocol, Server, Source, Target, Tls};
use crate::node::{self, NodeConfig, NodeError, Overrides};
use crate::transport::TargetError;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where Istio's injection puts the root certificate of the control plane, and the token that it wants.
const ISTIO_ROOT: &str = "/var/run/secrets/istio/root-cert.pem";
/// See [`ISTIO_ROOT`].
const ISTIO_TOKEN: &str = "/var/run/secrets/tokens/istio-token";
/// istiod's port with TLS.
const ISTIOD_TLS_PORT: u16 = 15012;

/// What was said. Empty and `None` mean: not set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// Where resources come from, asked in this order: `host:port`, `unix:path` or `file:path`.
    pub servers: Vec<String>,
    /// `delta` (false) or `sotw` (true).
    pub sotw: bool,
    /// TLS to the control plane; `None`: what the port says (15012 speaks TLS).
    pub ssl: Option<bool>,
    /// Root certificates of the control plane, PEM.
    pub ssl_trusted_certificate: Option<PathBuf>,
    /// Client certificate, PEM.
    pub ssl_certificate: Option<PathBuf>,
    /// Its key, PEM.
    pub ssl_certificate_key: Option<PathBuf>,
    /// Name that the control plane's certificate must have.
    pub ssl_name: Option<String>,
    /// File with a bearer token.
    pub token: Option<PathBuf>,
    /// Node id.
    pub node: Option<String>,
    /// Node cluster.
    pub node_cluster: Option<String>,
    /// Node locality: region, zone, sub-zone.
    pub node_locality: Option<(String, String, String)>,
    /// Node metadata, names and values.
    pub node_metadata: Vec<(String, String)>,
    /// Where last good is kept.
    pub snapshot: Option<PathBuf>,
    /// `SO_MARK` of connections.
    pub mark: Option<u32>,
}

/// Settings that make no sense, with the way out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// A server's address.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// TLS without roots to hold a certificate against.
    #[error(
        "server \"{0}\" speaks TLS and there is no root certificate: set \"ssl_trusted_certificate\", or \"ssl off\" for \
         plaintext"
    )]
    NoRoots(String),
    /// A certificate without its key, or the other way round.
    #[error("\"ssl_certificate\" and \"ssl_certificate_key\" go together")]
    HalfCertificate,
    /// A file is the whole world.
    #[error("\"server file:\" stands alone: remove the other \"server\" lines")]
    Mixed,
    /// The node.
    #[error(transparent)]
    Node(#[from] NodeError),
}

impl Settings {
    /// What the engine is to do. `layout` is that of [`Config::layout`].
    ///
    /// # Errors
    /// What makes no sense.
    pub fn config(&self, layout: u64) -> Result<Config, SettingsError> {
        if self.ssl_certificate.is_some() != self.ssl_certificate_key.is_some() {
            return Err(SettingsError::HalfCertificate);
        }
        if let Some(path) = self.servers.iter().find_map(|s| s.strip_prefix("file:")) {
            if self.servers.len() > 1 {
                return Err(SettingsError::Mixed);
            }
            return Ok(Config {
                sources: vec![Source::File(path.into())],
                layout,
                mark: self.mark,
                ..Config::default()
            });
        }
        let roots = self.ssl_trusted_certificate.clone().or_else(|| there(ISTIO_ROOT));
        let sources = self.servers.iter().map(|server| self.server(server, roots.as_ref()).map(Source::Grpc));
        Ok(Config {
            sources: sources.collect::<Result<_, _>>()?,
            protocol: if self.sotw { Protocol::Sotw } else { Protocol::Delta },
            node: self.node()?,
            token_file: self.token.clone().or_else(|| there(ISTIO_TOKEN)),
            snapshot: self.snapshot.clone(),
            layout,
            mark: self.mark,
        })
    }

    /// The labels of this workload, as a control plane is told them.
    ///
    /// # Errors
    /// A variable or file that makes no sense.
    pub fn labels(&self) -> Result<BTreeMap<String, String>, NodeError> {
        let node = self.node()?;
        let labels = node.metadata.get("LABELS").and_then(Json::as_object).into_iter().flatten();
        Ok(labels.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect())
    }

    fn server(&self, server: &str, roots: Option<&PathBuf>) -> Result<Server, SettingsError> {
        let target: Target = server.parse()?;
        let tls = match (&target, self.ssl) {
            (Target::Unix(_), None) => false,
            (Target::Host { port, .. }, None) => *port == ISTIOD_TLS_PORT || self.ssl_trusted_certificate.is_some(),
            (_, Some(on)) => on,
        };
        let tls = match (tls, roots) {
            (false, _) => None,
            (true, None) => return Err(SettingsError::NoRoots(server.to_owned())),
            (true, Some(roots)) => Some(Tls {
                roots: roots.clone(),
                server_name: self.ssl_name.clone(),
                client: self.ssl_certificate.clone().zip(self.ssl_certificate_key.clone()),
            }),
        };
        Ok(Server { target, tls })
    }

    fn node(&self) -> Result<NodeConfig, NodeError> {
        node::from_environment(&Overrides {
            id: self.node.clone(),
            cluster: self.node_cluster.clone(),
            locality: self.node_locality.clone(),
            metadata: self.node_metadata.clone(),
        })
    }
}

fn there(path: &str) -> Option<PathBuf> {
    Path::new(path).exists().then(|| path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(servers: &[&str]) -> Settings {
        Settings { servers: servers.iter().map(|s| (*s).to_owned()).collect(), ..Settings::default() }
    }

    #[test]
    fn labels_are_those_of_the_node() {
        let metadata = vec![("LABELS".to_owned(), r#"{"app":"reviews","n":1}"#.to_owned())];
        let labels = Settings { node_metadata: metadata, ..of(&[]) }.labels().unwrap();
        assert_eq!(labels.get("app").map(String::as_str), Some("reviews"));
        assert_eq!(labels.get("n"), None);
    }

    #[test]
    fn tls_is_what_the_port_says_unless_it_is_said() {
        let plain = |s: &Settings| match s.config(0).map(|c| c.sources) {
            Ok(sources) => matches!(sources.as_slice(), [Source::Grpc(Server { tls: None, .. })]),
            Err(e) => panic!("{e}"),
        };
        assert!(plain(&of(&["istiod:15010"])));
        assert!(plain(&of(&["unix:/run/xds"])));
        assert!(plain(&Settings { ssl: Some(false), ..of(&["istiod:15012"]) }));
        let roots = Some("/roots.pem".into());
        assert!(!plain(&Settings { ssl_trusted_certificate: roots, ..of(&["istiod:15012"]) }));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        assert_eq!(of(&["file:/a", "b:1"]).config(0), Err(SettingsError::Mixed));
        let half = Settings { ssl_certificate: Some("/c.pem".into()), ..of(&["a:1"]) };
        assert_eq!(half.config(0), Err(SettingsError::HalfCertificate));
        assert!(matches!(of(&["nonsense"]).config(0), Err(SettingsError::Target(_))));
    }
}
