//! Plugins from the mesh: documents that say which plugins of APISIX are put on the routes of which workloads.

use crate::id;
use crate::object::Refusal;
use serde_json::{json, Map, Value};

/// The plugins that are meant for one workload.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PluginSet {
    plugins: Map<String, Value>,
    refusals: Vec<Refusal>,
    /// The documents that they come from.
    names: Vec<String>,
}

impl PluginSet {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.plugins.is_empty()
    }

    /// What stands in another way than was asked for.
    pub fn refusals(&self) -> impl Iterator<Item = &Refusal> {
        self.refusals.iter()
    }

    /// The object of `/plugin_configs`, without its `id`.
    pub(crate) fn config(&self) -> Map<String, Value> {
        let mut out = Map::new();
        out.insert("desc".into(), json!(id::desc(&self.names.join(", "))));
        out.insert("plugins".into(), Value::Object(self.plugins.clone()));
        out
    }
}
