//! What the engine is told to do, as plain data.

use crate::node::NodeConfig;
use crate::transport::{Protocol, Settings};
use std::path::PathBuf;
use std::time::Duration;

pub use crate::transport::{Server, Tls};

/// How long a control plane may be silent at first.
const PATIENCE: Duration = Duration::from_secs(15);

/// Where resources come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A control plane.
    Grpc(Server),
    /// A directory or a file of resources.
    File(PathBuf),
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// Control planes, tried in turn, or one file source.
    pub sources: Vec<Source>,
    /// Which protocol control planes are spoken to in.
    pub protocol: Protocol,
    /// Who we are to them. Its metadata field `CLUSTER_ID` is sent as the header `clusterid` too.
    pub node: NodeConfig,
    /// File with a bearer token for them, read for every stream. Not sent over plaintext TCP.
    pub token_file: Option<PathBuf>,
    /// Where the last good state is kept. Not used with a file source, which is there at start anyway.
    pub snapshot: Option<PathBuf>,
    /// Says which snapshots can be used: those that were written with the same value.
    pub layout: u64,
    /// `SO_MARK` of the thread's sockets.
    pub mark: Option<u32>,
}

/// A configuration that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Nothing to read from.
    #[error("there is no source: name a server or a file")]
    NoSource,
    /// A file source is the whole world, and so is a control plane.
    #[error("a file source stands alone: remove the other sources")]
    Mixed,
}

impl Config {
    /// Whether it makes sense.
    ///
    /// # Errors
    /// What does not.
    pub fn validate(&self) -> Result<(), ConfigError> {
        match self.sources.as_slice() {
            [] => Err(ConfigError::NoSource),
            [_] => Ok(()),
            more if more.iter().any(|s| matches!(s, Source::File(_))) => Err(ConfigError::Mixed),
            _ => Ok(()),
        }
    }

    /// The file source, where that is what it is.
    pub(super) fn file(&self) -> Option<&PathBuf> {
        self.sources.iter().find_map(|s| match s {
            Source::File(path) => Some(path),
            Source::Grpc(_) => None,
        })
    }

    /// The snapshot, where it is used.
    pub(super) fn snapshot(&self) -> Option<&PathBuf> {
        self.snapshot.as_ref().filter(|_| self.file().is_none())
    }

    /// What a link needs to know.
    pub(super) fn link(&self) -> Settings {
        let servers = self.sources.iter().filter_map(|s| match s {
            Source::Grpc(server) => Some(server.clone()),
            Source::File(_) => None,
        });
        Settings {
            servers: servers.collect(),
            protocol: self.protocol,
            token_file: self.token_file.clone(),
            cluster_id: self.node.text("CLUSTER_ID").map(str::to_owned),
            mark: self.mark,
            patience: PATIENCE,
        }
    }
}
