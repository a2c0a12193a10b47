//! The state of a translation, and what a batch changes of it.

use crate::id;
use crate::listeners::{self, Listeners, Served, Serving};
use crate::look::{Clusters, Endpoints, Look, Seen, NOWHERE};
use crate::object::{Changes, Directory, Key, Object, Refusal};
use crate::options::{Destination, Options};
use crate::plugins::PluginSet;
use crate::stream;
use crate::table::{Maker, Tables};
use crate::upstream;
use crate::usage::Usage;
use amesh_model::batch::{Batch, Value as Resource};
use amesh_model::Kind;
use serde_json::{json, Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The id of the plugins from the mesh, in `/plugin_configs`.
const PLUGINS: &str = "amesh-plugins";
/// The unit of all route tables, where they are not told apart.
const EVERYWHERE: &str = "";

/// Translates batches of the mesh model into changes of APISIX's objects.
///
/// It keeps what the batches have said, and the objects made of it. What stands after any row of batches is what a new
/// translator makes of one batch with the same contents.
pub struct Translator {
    options: Options,
    clusters: Clusters,
    endpoints: Endpoints,
    tables: Tables,
    listeners: Listeners,
    plugins: PluginSet,
    serving: Serving,
    /// How clusters are used, each way with how many units use it so.
    uses: BTreeMap<String, BTreeMap<Usage, usize>>,
    units: BTreeMap<UnitKey, Unit>,
    objects: BTreeMap<Key, Object>,
}

/// What is made anew as a whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum UnitKey {
    /// The upstreams of a cluster.
    Cluster(String),
    /// The routes of what is served under this name.
    Routes(String),
    /// The stream routes of a listener.
    Stream(String),
    /// The route of requests that no listener but the last one takes.
    Elsewhere,
    /// The plugins from the mesh.
    Plugins,
}

/// What was made of it.
#[derive(Default)]
struct Unit {
    objects: BTreeMap<Key, Arc<str>>,
    refusals: Vec<Refusal>,
    seen: Seen,
}

impl Unit {
    fn put(&mut self, directory: Directory, id: Arc<str>, mut json: Map<String, Value>) {
        json.insert("id".into(), Value::from(&*id));
        self.objects.insert(Key { directory, id }, Value::Object(json).to_string().into());
    }

    fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.refusals.is_empty() && self.seen == Seen::default()
    }
}

impl Translator {
    /// A translator that knows of nothing yet.
    pub fn new(options: Options) -> Translator {
        Translator {
            options,
            clusters: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            tables: BTreeMap::new(),
            listeners: BTreeMap::new(),
            plugins: PluginSet::default(),
            serving: Serving::default(),
            uses: BTreeMap::new(),
            units: BTreeMap::new(),
            objects: BTreeMap::new(),
        }
    }

    /// What a batch changes.
    pub fn apply(&mut self, batch: &Batch) -> Changes {
        let mut clusters = BTreeSet::new();
        let mut tables = BTreeSet::new();
        let mut listeners = BTreeSet::new();
        for item in &batch.put {
            let name = item.name.clone();
            match &item.value {
                Resource::Cluster(cluster) => {
                    self.clusters.insert(name.clone(), Arc::new(cluster.clone()));
                    clusters.insert(name);
                }
                Resource::EndpointSet(set) => {
                    self.endpoints.insert(name.clone(), Arc::new(set.clone()));
                    clusters.insert(name);
                }
                Resource::RouteTable(table) => {
                    self.tables.insert(name.clone(), Arc::new(table.clone()));
                    tables.insert(name);
                }
                Resource::Listener(listener) => {
                    self.listeners.insert(name.clone(), Arc::new(listener.clone()));
                    listeners.insert(name);
                }
                // It follows from the listeners.
                Resource::ListenerIndex(_) => {}
            }
        }
        for (kind, name) in &batch.remove {
            let (gone, changed) = match kind {
                Kind::Cluster => (self.clusters.remove(name).is_some(), &mut clusters),
                Kind::EndpointSet => (self.endpoints.remove(name).is_some(), &mut clusters),
                Kind::RouteTable => (self.tables.remove(name).is_some(), &mut tables),
                Kind::Listener => (self.listeners.remove(name).is_some(), &mut listeners),
                Kind::ListenerIndex => continue,
            };
            if gone {
                changed.insert(name.clone());
            }
        }
        let mut dirty = BTreeSet::new();
        let mut refused = Vec::new();
        if !listeners.is_empty() {
            self.serve(&mut dirty, &mut refused);
        }
        dirty.extend(listeners.into_iter().map(UnitKey::Stream));
        if !tables.is_empty() {
            dirty.extend(self.units_of(&tables));
        }
        if !clusters.is_empty() {
            let stale =
                self.units.iter().filter(|(_, unit)| unit.seen.is_stale(&clusters, &self.clusters, &self.endpoints));
            dirty.extend(stale.map(|(key, _)| key.clone()));
        }
        dirty.extend(clusters.into_iter().map(UnitKey::Cluster));
        self.remake(dirty, refused)
    }

    /// Puts these plugins on the routes of this workload, in the place of those that were there.
    pub fn set_plugins(&mut self, plugins: PluginSet) -> Changes {
        if self.plugins == plugins {
            return Changes::default();
        }
        self.plugins = plugins;
        // Routes are looked at anew for what they say of plugins; most stay as they are.
        let routes = self.units.keys().filter(|key| matches!(key, UnitKey::Routes(_)));
        let dirty = routes.cloned().chain([UnitKey::Plugins]).collect();
        self.remake(dirty, Vec::new())
    }

    /// The options of this translation.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// All objects that stand, in the order of their keys.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.objects.values()
    }

    /// All that cannot be said, as it stands now.
    pub fn refusals(&self) -> impl Iterator<Item = &Refusal> {
        self.serving.refusals.iter().chain(self.units.values().flat_map(|unit| &unit.refusals))
    }

    /// Looks at what the listeners serve now.
    fn serve(&mut self, dirty: &mut BTreeSet<UnitKey>, refused: &mut Vec<Refusal>) {
        let new = listeners::serving(&self.listeners, &self.options);
        let old = std::mem::replace(&mut self.serving, new);
        let new = &self.serving;
        refused.extend(new.refusals.iter().filter(|refusal| !old.refusals.contains(refusal)).cloned());
        let closed = old.elsewhere.is_some() != new.elsewhere.is_some();
        if old.elsewhere != new.elsewhere {
            dirty.insert(UnitKey::Elsewhere);
        }
        let names = old.units.keys().chain(new.units.keys());
        let changed: Vec<&String> =
            names.filter(|name| closed || old.units.get(*name) != new.units.get(*name)).collect();
        match self.options.destination {
            Destination::Ignored if changed.is_empty() => {}
            Destination::Ignored => drop(dirty.insert(UnitKey::Routes(EVERYWHERE.to_owned()))),
            _ => dirty.extend(changed.into_iter().map(|name| UnitKey::Routes(name.clone()))),
        }
    }

    /// The units that are made of these route tables.
    fn units_of<'a>(&'a self, tables: &'a BTreeSet<String>) -> impl Iterator<Item = UnitKey> + 'a {
        let of = |served: &Served| matches!(&served.source, listeners::Source::Table(name) if tables.contains(name));
        let units = self.serving.units.iter().filter(move |(_, served)| of(served));
        units.map(|(name, _)| match self.options.destination {
            Destination::Ignored => UnitKey::Routes(EVERYWHERE.to_owned()),
            _ => UnitKey::Routes(name.clone()),
        })
    }

    /// Makes units anew, and with them the upstreams that are now used in another way.
    fn remake(&mut self, dirty: BTreeSet<UnitKey>, refused: Vec<Refusal>) -> Changes {
        let mut out = Difference { refused, ..Difference::default() };
        let (clusters, others): (Vec<UnitKey>, Vec<UnitKey>) =
            dirty.into_iter().partition(|key| matches!(key, UnitKey::Cluster(_)));
        let mut clusters: BTreeSet<UnitKey> = clusters.into_iter().collect();
        for key in others {
            let unit = self.make(&key);
            let before: BTreeSet<_> = self.units.get(&key).map(|unit| unit.seen.uses.clone()).unwrap_or_default();
            for (cluster, usage) in unit.seen.uses.difference(&before) {
                let count = self.uses.entry(cluster.clone()).or_default().entry(usage.clone()).or_default();
                *count += 1;
                if *count == 1 {
                    clusters.insert(UnitKey::Cluster(cluster.clone()));
                }
            }
            for (cluster, usage) in before.difference(&unit.seen.uses) {
                let Some(usages) = self.uses.get_mut(cluster) else { continue };
                let Some(count) = usages.get_mut(usage) else { continue };
                *count -= 1;
                if *count == 0 {
                    usages.remove(usage);
                    clusters.insert(UnitKey::Cluster(cluster.clone()));
                }
            }
            self.replace(key, unit, &mut out);
        }
        for key in clusters {
            let unit = self.make(&key);
            self.replace(key, unit, &mut out);
        }
        for key in &out.delete {
            self.objects.remove(key);
        }
        self.objects.extend(out.put.iter().map(|(key, object)| (key.clone(), object.clone())));
        Changes {
            put: out.put.into_values().collect(),
            delete: out.delete.into_iter().rev().collect(),
            refused: out.refused,
        }
    }

    fn make(&self, key: &UnitKey) -> Unit {
        let mut unit = Unit::default();
        match key {
            UnitKey::Cluster(name) => self.make_cluster(name, &mut unit),
            UnitKey::Routes(name) => self.make_routes(name, &mut unit),
            UnitKey::Stream(name) => {
                let mut look = Look::new(&self.clusters, &self.endpoints);
                let made = stream::routes(name, &self.listeners, &self.options, &mut look, &mut unit.refusals);
                unit.seen = look.seen;
                made.into_iter().for_each(|(id, json)| unit.put(Directory::StreamRoutes, id, json));
            }
            UnitKey::Elsewhere => self.make_elsewhere(&mut unit),
            UnitKey::Plugins => {
                unit.refusals.extend(self.plugins.refusals().cloned());
                if !self.plugins.is_empty() {
                    unit.put(Directory::PluginConfigs, PLUGINS.into(), self.plugins.config());
                }
            }
        }
        unit
    }

    /// The upstreams of a cluster: one for each way in which it is used, or one if nothing uses it.
    fn make_cluster(&self, name: &str, unit: &mut Unit) {
        let usages = self.uses.get(name);
        if name == NOWHERE {
            for usage in usages.into_iter().flat_map(BTreeMap::keys) {
                unit.put(Directory::Upstreams, usage.upstream_id(name), upstream::nowhere());
            }
            return;
        }
        let Some(cluster) = self.clusters.get(name) else { return };
        let unused = Usage::default();
        let mut usages: Vec<&Usage> = usages.into_iter().flat_map(BTreeMap::keys).collect();
        if usages.is_empty() {
            usages.push(&unused);
        }
        let endpoints = self.endpoints.get(name).map(|set| &**set);
        for usage in usages {
            let mut refusals = Vec::new();
            let json = upstream::upstream(cluster, endpoints, usage, &mut refusals);
            refusals.retain(|refusal| !unit.refusals.contains(refusal));
            unit.refusals.extend(refusals);
            unit.put(Directory::Upstreams, usage.upstream_id(name), json);
        }
    }

    fn make_routes(&self, name: &str, unit: &mut Unit) {
        let served: Vec<&Served> = match self.options.destination {
            Destination::Ignored => self.serving.units.values().collect(),
            _ => self.serving.units.get(name).into_iter().collect(),
        };
        let mut look = Look::new(&self.clusters, &self.endpoints);
        let mut maker = Maker {
            unit: name,
            tables: &self.tables,
            look: &mut look,
            refusals: &mut unit.refusals,
            plugins: (!self.plugins.is_empty()).then_some((PLUGINS, &self.plugins)),
            close: self.serving.elsewhere.is_some(),
        };
        let made = maker.routes(&served);
        unit.seen = look.seen;
        made.into_iter().for_each(|(id, json)| unit.put(Directory::Routes, id, json));
    }

    /// What was going to somewhere that no listener knows.
    fn make_elsewhere(&self, unit: &mut Unit) {
        let Some(listener) = &self.serving.elsewhere else { return };
        let what = format!("listener \"{listener}\"");
        let reason = "requests to places that the mesh does not know go on to there; answered with 503".to_owned();
        let json = json!({
            "desc": id::desc(&format!("{reason}: {what}")),
            "uri": "/*",
            "priority": 0,
            "plugins": {"fault-injection": {"abort": {"http_status": 503}}},
        });
        if let Value::Object(json) = json {
            unit.put(Directory::Routes, id::id("r", &[listener, "elsewhere"]), json);
        }
        unit.refusals.push(Refusal { what, reason });
    }

    /// Puts a unit in the place of what it was, and notes what that changes.
    fn replace(&mut self, key: UnitKey, unit: Unit, out: &mut Difference) {
        let old = self.units.remove(&key).unwrap_or_default();
        out.delete.extend(old.objects.keys().filter(|key| !unit.objects.contains_key(key)).cloned());
        for (key, json) in &unit.objects {
            if old.objects.get(key) != Some(json) {
                out.put.insert(key.clone(), Object { key: key.clone(), json: json.clone() });
            }
        }
        out.refused.extend(unit.refusals.iter().filter(|r| !old.refusals.contains(r)).cloned());
        if !unit.is_empty() {
            self.units.insert(key, unit);
        }
    }
}

/// What changes, in order.
#[derive(Default)]
struct Difference {
    put: BTreeMap<Key, Object>,
    delete: BTreeSet<Key>,
    refused: Vec<Refusal>,
}
