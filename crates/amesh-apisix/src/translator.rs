//! The state of a translation, and what a batch changes of it.

use crate::object::{Changes, Directory, Key, Object, Refusal};
use crate::options::Options;
use crate::upstream;
use crate::usage::Usage;
use amesh_model::batch::{Batch, Value as Resource};
use amesh_model::cluster::Cluster;
use amesh_model::endpoint::EndpointSet;
use amesh_model::Kind;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Translates batches of the mesh model into changes of APISIX's objects.
///
/// It keeps what the batches have said, and the objects made of it. What it says after any row of batches is what a new
/// translator says after one batch with the same contents.
pub struct Translator {
    #[allow(dead_code)]
    options: Options,
    clusters: BTreeMap<String, Arc<Cluster>>,
    endpoints: BTreeMap<String, Arc<EndpointSet>>,
    units: BTreeMap<UnitKey, Unit>,
    objects: BTreeMap<Key, Object>,
}

/// What is made anew as a whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum UnitKey {
    /// The upstreams of a cluster.
    Cluster(String),
}

/// What was made of it.
#[derive(Default)]
struct Unit {
    objects: BTreeMap<Key, Arc<str>>,
    refusals: Vec<Refusal>,
}

impl Unit {
    fn put(&mut self, directory: Directory, id: Arc<str>, mut json: Map<String, Value>) {
        json.insert("id".into(), Value::from(&*id));
        self.objects.insert(Key { directory, id }, Value::Object(json).to_string().into());
    }
}

impl Translator {
    /// A translator that knows of nothing yet.
    pub fn new(options: Options) -> Translator {
        Translator {
            options,
            clusters: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            units: BTreeMap::new(),
            objects: BTreeMap::new(),
        }
    }

    /// What a batch changes.
    pub fn apply(&mut self, batch: &Batch) -> Changes {
        let mut dirty = BTreeSet::new();
        for item in &batch.put {
            let name = item.name.clone();
            match &item.value {
                Resource::Cluster(cluster) => {
                    self.clusters.insert(name.clone(), Arc::new(cluster.clone()));
                    dirty.insert(UnitKey::Cluster(name));
                }
                Resource::EndpointSet(set) => {
                    self.endpoints.insert(name.clone(), Arc::new(set.clone()));
                    dirty.insert(UnitKey::Cluster(name));
                }
                _ => {}
            }
        }
        for (kind, name) in &batch.remove {
            match kind {
                Kind::Cluster => drop(self.clusters.remove(name)),
                Kind::EndpointSet => drop(self.endpoints.remove(name)),
                _ => continue,
            }
            dirty.insert(UnitKey::Cluster(name.clone()));
        }
        let made: Vec<(UnitKey, Unit)> = dirty.into_iter().map(|key| (key.clone(), self.make(&key))).collect();
        self.replace(made)
    }

    /// All objects that stand, in the order of their keys.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.objects.values()
    }

    fn make(&self, key: &UnitKey) -> Unit {
        let UnitKey::Cluster(name) = key;
        let mut unit = Unit::default();
        if let Some(cluster) = self.clusters.get(name) {
            let usage = Usage::default();
            let endpoints = self.endpoints.get(name).map(|set| &**set);
            let json = upstream::upstream(cluster, endpoints, &usage, &mut unit.refusals);
            unit.put(Directory::Upstreams, usage.upstream_id(name), json);
        }
        unit
    }

    /// Puts units in the place of those that were, and says what that changes.
    fn replace(&mut self, made: Vec<(UnitKey, Unit)>) -> Changes {
        let mut put = BTreeMap::new();
        let mut delete = BTreeSet::new();
        let mut refused = Vec::new();
        for (key, unit) in made {
            let old = self.units.remove(&key).unwrap_or_default();
            delete.extend(old.objects.keys().filter(|key| !unit.objects.contains_key(key)).cloned());
            for (key, json) in &unit.objects {
                if old.objects.get(key) != Some(json) {
                    put.insert(key.clone(), Object { key: key.clone(), json: json.clone() });
                }
            }
            refused.extend(unit.refusals.iter().filter(|r| !old.refusals.contains(r)).cloned());
            if !unit.objects.is_empty() || !unit.refusals.is_empty() {
                self.units.insert(key, unit);
            }
        }
        for key in &delete {
            self.objects.remove(key);
        }
        self.objects.extend(put.iter().map(|(key, object)| (key.clone(), object.clone())));
        Changes { put: put.into_values().collect(), delete: delete.into_iter().rev().collect(), refused }
    }
}
