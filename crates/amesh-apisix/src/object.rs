//! Objects of APISIX, and what changes of them.

use std::fmt;
use std::sync::Arc;

/// A directory of objects, as in APISIX's `conf.resources`. The order is the one in which they are written: an object stands
/// after those that it may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Directory {
    /// `/ssls`
    Ssls,
    /// `/upstreams`
    Upstreams,
    /// `/plugin_configs`
    PluginConfigs,
    /// `/services`
    Services,
    /// `/routes`
    Routes,
    /// `/stream_routes`
    StreamRoutes,
}

impl Directory {
    /// Its name in keys, without slashes.
    pub fn name(self) -> &'static str {
        match self {
            Directory::Ssls => "ssls",
            Directory::Upstreams => "upstreams",
            Directory::PluginConfigs => "plugin_configs",
            Directory::Services => "services",
            Directory::Routes => "routes",
            Directory::StreamRoutes => "stream_routes",
        }
    }
}

/// Where an object stands: `/<directory>/<id>`, without the prefix that etcd's keys have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its directory.
    pub directory: Directory,
    /// Its id: 1 to 64 characters of `[A-Za-z0-9_.-]`, the `id` within the object too.
    pub id: Arc<str>,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/{}", self.directory.name(), self.id)
    }
}

/// An object that APISIX's schema accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Where it stands.
    pub key: Key,
    /// One JSON object.
    pub json: Arc<str>,
}

/// What APISIX cannot say, and what stands in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The resource of the mesh: its kind and name, and the place in it.
    pub what: String,
    /// Why, and what answers instead.
    pub reason: String,
}

/// What a batch of the model changes. Nothing in it is as it was before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// To write, in this order: what is named comes before what names it.
    pub put: Vec<Object>,
    /// To delete after that, in this order: what names comes before what is named.
    pub delete: Vec<Key>,
    /// What cannot be said, new with this batch.
    pub refused: Vec<Refusal>,
}

impl Changes {
    /// Whether there is nothing to write or delete.
    pub fn is_empty(&self) -> bool {
        self.put.is_empty() && self.delete.is_empty()
    }
}
