//! What the owner of the store holds in hand.

use super::access::{Access, Credentials};
use super::hub::Hub;
use super::listener::{listen, Policy};
use super::Log;
use crate::store::{seed, Limits, Store};
use crate::{Changes, Directory, Object};
use rustls::ServerConfig;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// A mesh that has no route so long after something of it came is taken for one without routes.
const GRACE: Duration = Duration::from_secs(5);

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// A socket in the file system; it gets the mode 0666 there.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// One address, and who may read there.
#[derive(Clone, Debug)]
pub struct Listen {
    /// Where.
    pub address: Address,
    /// `None`: everybody may.
    pub credentials: Option<Credentials>,
    /// `None`: plaintext. See [`acceptor`](super::acceptor).
    pub tls: Option<Arc<ServerConfig>>,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// What all keys begin with: `/apisix`.
    pub prefix: String,
    /// Each address once.
    pub listen: Vec<Listen>,
}

struct Running {
    policy: watch::Sender<Arc<Policy>>,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// See [the module](super). Dropping it closes everything.
pub struct Face {
    hub: Arc<Hub>,
    listeners: BTreeMap<Address, Running>,
    /// Opens the hub when there is nothing more to wait for.
    grace: Option<AbortHandle>,
    log: Log,
}

impl Face {
    /// A face that listens nowhere, over a store that begins now.
    pub fn new(prefix: &str, log: Log) -> Face {
        let hub = Arc::new(Hub::new(Store::new(prefix, seed(), Limits::default())));
        Face { hub, listeners: BTreeMap::new(), grace: None, log }
    }

    /// From now on it listens there. Where it does already nothing ends: neither connections nor watches; who may read,
    /// and the certificate, count from the next request and the next connection on. What another prefix makes of the
    /// objects is another store. To be called in a runtime.
    pub fn configure(&mut self, config: Config) {
        self.set_prefix(&config.prefix);
        self.listeners.retain(|address, _| config.listen.iter().any(|l| l.address == *address));
        for Listen { address, credentials, tls } in config.listen {
            if let Some(running) = self.listeners.get(&address) {
                running.policy.send_modify(|policy| {
                    // Tokens that were given hold on.
                    let access = if policy.access.credentials == credentials {
                        policy.access.clone()
                    } else {
                        Arc::new(Access::new(credentials))
                    };
                    *policy = Arc::new(Policy { access, tls });
                });
                continue;
            }
            let access = Arc::new(Access::new(credentials));
            let (policy, receiver) = watch::channel(Arc::new(Policy { access, tls }));
            let task = tokio::spawn(listen(self.hub.clone(), address.clone(), receiver, self.log.clone()));
            self.listeners.insert(address, Running { policy, task: task.abort_handle() });
        }
    }

    fn set_prefix(&mut self, prefix: &str) {
        let mut store = self.hub.store();
        if store.prefix() == prefix {
            return;
        }
        let begin = seed().max(store.revision() + 1);
        *store = store.renamed(prefix, begin);
        drop(store);
        self.hub.tell();
    }

    /// The runtime that it ran in is gone, with everything that it had open. What it knows stays.
    pub fn forget_runtime(&mut self) {
        self.listeners.clear();
        self.grace = None;
    }

    /// These are all objects. `complete`: nothing more is waited for. To be called in a runtime.
    pub fn replace(&mut self, objects: &[Object], complete: bool) {
        let changed = self.hub.store().replace(objects);
        self.after(changed, objects, complete);
    }

    /// These have changed. To be called in a runtime.
    pub fn apply(&mut self, changes: &Changes) {
        let changed = self.hub.store().apply(changes);
        self.after(changed, &changes.put, false);
    }

    /// Until the mesh is known nobody is answered: a client that knows it from before keeps what it knows.
    fn after(&mut self, changed: bool, put: &[Object], complete: bool) {
        let route = |o: &Object| matches!(o.key.directory, Directory::Routes | Directory::StreamRoutes);
        if self.hub.is_open() {
            if changed {
                self.hub.tell();
            }
        } else if complete || put.iter().any(route) {
            self.hub.open();
        } else if changed && self.grace.is_none() {
            let hub = self.hub.clone();
            let wait = async move {
                tokio::time::sleep(GRACE).await;
                hub.open();
            };
            self.grace = Some(tokio::spawn(wait).abort_handle());
        }
    }
}

impl Drop for Face {
    fn drop(&mut self) {
        if let Some(grace) = &self.grace {
            grace.abort();
        }
    }
}
