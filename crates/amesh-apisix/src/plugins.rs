//! Plugins from the mesh: documents that say which plugins of APISIX are put on the routes of which workloads
//! (`AmeshPluginConfig` of `apisix.apache.org/v1alpha1`, the API of amesh-controller).
//!
//! They are one object of `/plugin_configs`, which the routes that forward name: a change of a plugin rewrites that object
//! alone. APISIX lets a plugin that a route has of its own go before the one of the same name from there, so what the mesh
//! says of a request is never replaced.

mod directory;
mod document;

pub use directory::{Found, PluginDirectory};
pub use document::{parse, Document, DocumentError};

use crate::id;
use crate::object::Refusal;
use serde_json::{json, Map, Value};
use std::collections::BTreeMap;

/// The plugins that are meant for one workload.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PluginSet {
    plugins: Map<String, Value>,
    refusals: Vec<Refusal>,
    /// The documents that they come from.
    names: Vec<String>,
}

impl PluginSet {
    /// The plugins of those documents whose selector takes a workload with these labels. Of two plugins of one name that of
    /// the later document stands.
    pub fn select<'a>(
        documents: impl IntoIterator<Item = &'a Document>,
        labels: &BTreeMap<String, String>,
    ) -> PluginSet {
        let mut out = PluginSet::default();
        let mut from: BTreeMap<&str, &str> = BTreeMap::new();
        for document in documents.into_iter().filter(|document| document.selects(labels)) {
            out.names.push(document.name.clone());
            for (plugin, conf) in &document.plugins {
                if let Some(before) = from.insert(plugin, &document.name) {
                    out.refusals.push(Refusal {
                        what: format!("plugin \"{plugin}\" of {before}"),
                        reason: format!("{} has it, too; that one stands", document.name),
                    });
                }
                out.plugins.insert(plugin.clone(), conf.clone());
            }
        }
        out
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.plugins.is_empty()
    }

    /// Whether there is one of this name.
    pub(crate) fn has(&self, plugin: &str) -> bool {
        self.plugins.contains_key(plugin)
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

/// The documents of a directory, each file with its last good contents.
#[derive(Clone, Debug, Default)]
pub struct PluginFiles {
    files: BTreeMap<String, Vec<Document>>,
}

impl PluginFiles {
    /// Takes the directory as it is now: the name of each file with its text. A file that is gone takes its documents with
    /// it; one that makes no sense keeps what it said before. Gives the errors, in the order of the names.
    pub fn update<'a>(&mut self, files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<DocumentError> {
        let mut before = std::mem::take(&mut self.files);
        let mut errors = BTreeMap::new();
        for (name, text) in files {
            match parse(name, text) {
                Ok(documents) => drop(self.files.insert(name.to_owned(), documents)),
                Err(error) => {
                    errors.insert(name.to_owned(), error);
                    if let Some(last_good) = before.remove(name) {
                        self.files.insert(name.to_owned(), last_good);
                    }
                }
            }
        }
        errors.into_values().collect()
    }

    /// All documents, in the order of the names of their files.
    pub fn documents(&self) -> impl Iterator<Item = &Document> {
        self.files.values().flatten()
    }

    /// The plugins that are meant for a workload with these labels.
    pub fn select(&self, labels: &BTreeMap<String, String>) -> PluginSet {
        PluginSet::select(self.documents(), labels)
    }
}
