//! The resources of the world by type and name: last good, what depends on what, and warming.
//!
//! The store does no input and output and has no clock: it is told what came and what time it is (Unix time in ms),
//! and says what to publish, what to subscribe to and what to resolve.
//!
//! * A resource that is rejected keeps its last good.
//! * A cluster is warm when its endpoints came (an empty assignment counts, and so does a name that has no address),
//!   a listener when all its route tables came. Until then a new one is not published and an updated one keeps its
//!   former version. Who waits longer than its `initial_fetch_timeout` is published as it is.
//! * A batch makes before it breaks: endpoints, clusters, route tables, listeners, the index of listeners; removals
//!   last.
//! * Endpoints and route tables are never taken away because a response did not name them, and not by a removal while
//!   something refers to them, as in Envoy. When nothing refers to them any more they are dropped: who wants them
//!   again must send them again.
//!
//! What an update costs depends on what changed and on what refers to it, never on the size of the mesh.

mod clusters;
mod everything;
mod ledger;
mod listeners;
mod status;

use crate::translate::{self, BoundListener, Invalid, Note, Notes};
use amesh_model::address::Address;
use amesh_model::listener::ListenerIndex;
use amesh_model::Kind;
use clusters::{AssignmentRecord, ClusterRecord, HostRecord};
use envoy_types::pb::google::protobuf::Any;
use ledger::{Ledger, NoteCounts};
use listeners::{ListenerRecord, TableRecord};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

pub use amesh_model::batch::{Batch, Item, Value};
pub use clusters::DnsName;
pub use status::{NoteStatus, RejectedStatus, Status, TypeStatus, WaitingStatus};

/// A kind of resource, in the order in which a snapshot is restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Type {
    /// `CDS`.
    Cluster,
    /// `EDS`.
    ClusterLoadAssignment,
    /// `LDS`.
    Listener,
    /// `RDS`.
    RouteConfiguration,
}

impl Type {
    /// Every type.
    pub const ALL: [Type; 4] = [Type::Cluster, Type::ClusterLoadAssignment, Type::Listener, Type::RouteConfiguration];

    /// Its `type_url`.
    pub fn url(self) -> &'static str {
        match self {
            Type::Cluster => translate::CLUSTER,
            Type::ClusterLoadAssignment => translate::CLUSTER_LOAD_ASSIGNMENT,
            Type::Listener => translate::LISTENER,
            Type::RouteConfiguration => translate::ROUTE_CONFIGURATION,
        }
    }

    /// The type of a `type_url`.
    pub fn from_url(url: &str) -> Option<Type> {
        Self::ALL.into_iter().find(|t| t.url() == url)
    }

    /// Its name as people say it.
    pub fn name(self) -> &'static str {
        self.url().rsplit('.').next().unwrap_or_default()
    }
}

/// A resource that was rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Its name.
    pub name: String,
    /// The field.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

impl std::fmt::Display for Rejected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.field.as_str() {
            "" => write!(f, "{}: {}", self.name, self.reason),
            field => write!(f, "{}: {field}: {}", self.name, self.reason),
        }
    }
}

/// What became of an update.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What is to be NACKed; everything else was accepted.
    pub rejected: Vec<Rejected>,
    /// Resources that are new, different or gone.
    pub changed: usize,
}

/// Names to subscribe to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// `ClusterLoadAssignment`s.
    pub eds: BTreeSet<String>,
    /// `RouteConfiguration`s.
    pub rds: BTreeSet<String>,
}

/// How the names to subscribe to changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamesChange {
    /// To subscribe to.
    pub add: Names,
    /// To unsubscribe from.
    pub remove: Names,
}

/// A resource of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Its type.
    pub type_url: String,
    /// Its name.
    pub name: String,
    /// Its version; empty when something was taken out of it.
    pub version: String,
    /// The bytes of its message, without secrets.
    pub bytes: Vec<u8>,
}

/// The last good of a resource.
#[derive(Debug)]
struct Good {
    version: String,
    hash: u128,
    bytes: Vec<u8>,
    notes: NoteCounts,
}

struct Rejection {
    version: String,
    hash: u128,
    field: String,
    reason: String,
    at: u64,
}

/// The version that serves while the next one waits.
#[derive(Debug)]
struct Serving {
    version: String,
    bytes: Vec<u8>,
}

impl From<&mut Good> for Serving {
    /// Takes the bytes: another last good follows.
    fn from(good: &mut Good) -> Serving {
        Serving { version: good.version.clone(), bytes: std::mem::take(&mut good.bytes) }
    }
}

/// A resource that was translated, before it is kept.
struct Arrival<'a> {
    name: &'a str,
    version: String,
    hash: u128,
    bytes: Vec<u8>,
    now: u64,
}

/// See the module.
#[derive(Default)]
pub struct Store {
    clusters: HashMap<String, ClusterRecord>,
    assignments: HashMap<String, AssignmentRecord>,
    listeners: HashMap<String, ListenerRecord>,
    tables: HashMap<String, TableRecord>,
    hosts: BTreeMap<clusters::HostKey, HostRecord>,
    /// Service → clusters that have their endpoints from it, or will.
    service_users: HashMap<String, BTreeSet<String>>,
    /// Table → listeners that refer to it, or will.
    table_users: HashMap<String, BTreeSet<String>>,
    rejections: BTreeMap<(Type, String), Rejection>,
    deadlines: BTreeSet<(u64, Type, String)>,
    names: NamesChange,
    dns_generation: u64,
    ledger: Ledger,
    /// By the place of their kind in [`Kind::ALL`], then by name.
    ready: BTreeMap<(usize, String), Item>,
    /// The same, last kinds first.
    removed: BTreeSet<(std::cmp::Reverse<usize>, String)>,
    index_is_stale: bool,
    index: ListenerIndex,
    index_version: u64,
    bound: Vec<BoundListener>,
    /// Unix time in ms, as it was told last.
    now: u64,
    /// Since when the endpoints of clusters that start slowly are there.
    added: HashMap<String, HashMap<Address, u64>>,
}

impl Store {
    /// An empty world.
    pub fn new() -> Store {
        Store::default()
    }

    /// Takes in a response: resources with their names and versions, and names that are gone. With `whole` what is not
    /// there is gone too (`CDS` and `LDS` by state of the world; other types do not know it).
    pub fn update(
        &mut self,
        type_url: &str,
        added: Vec<(String, String, Any)>,
        removed: Vec<String>,
        whole: bool,
        now: u64,
    ) -> Outcome {
        self.now = now;
        let mut out = Outcome::default();
        let kind = Type::from_url(type_url);
        let mut seen = HashSet::new();
        for name in &removed {
            out.changed += usize::from(kind.is_some_and(|t| self.remove(t, name)));
        }
        for (name, version, any) in added {
            let name = if name.is_empty() { translate::resource_name(&any).unwrap_or_default() } else { name };
            let invalid = |field: &str, reason: String| Err(Invalid { field: field.to_owned(), reason });
            let put = match kind {
                None => invalid("type_url", format!("\"{type_url}\" is not a type that is known here")),
                Some(_) if any.type_url != type_url => {
                    invalid("type_url", format!("is \"{}\" in a response of \"{type_url}\"", any.type_url))
                }
                Some(_) if seen.contains(&name) => invalid("name", "is there twice in one response".to_owned()),
                Some(t) => self.put(t, &name, version, any, now),
            };
            match put {
                Ok(changed) => out.changed += usize::from(changed),
                Err(Invalid { field, reason }) => out.rejected.push(Rejected { name: name.clone(), field, reason }),
            }
            seen.insert(name);
        }
        if whole {
            let have: Vec<&String> = match kind {
                Some(Type::Cluster) => self.clusters.keys().collect(),
                Some(Type::Listener) => self.listeners.keys().collect(),
                _ => Vec::new(),
            };
            let gone: Vec<String> = have.into_iter().filter(|n| !seen.contains(*n)).cloned().collect();
            if let Some(t) = kind {
                self.rejections.retain(|(k, n), _| *k != t || seen.contains(n));
                out.changed += gone.iter().filter(|n| self.remove(t, n)).count();
            }
        }
        out
    }

    /// Whether the resource changed.
    fn put(&mut self, t: Type, name: &str, version: String, any: Any, now: u64) -> Result<bool, Invalid> {
        let hash = xxhash_rust::xxh3::xxh3_128(&any.value);
        if let Some(good) = self.good_mut(t, name).filter(|g| g.hash == hash) {
            good.version = version;
            self.rejections.remove(&(t, name.to_owned()));
            return Ok(false);
        }
        if let Some(r) = self.rejections.get_mut(&(t, name.to_owned())).filter(|r| r.hash == hash) {
            r.version = version;
            return Err(Invalid { field: r.field.clone(), reason: r.reason.clone() });
        }
        let arrival = Arrival { name, version: version.clone(), hash, bytes: any.value, now };
        let result = match t {
            Type::Cluster => self.put_cluster(arrival),
            Type::ClusterLoadAssignment => self.put_assignment(arrival),
            Type::Listener => self.put_listener(arrival),
            Type::RouteConfiguration => self.put_table(arrival),
        };
        let key = (t, name.to_owned());
        match result {
            Ok(()) => {
                self.rejections.remove(&key);
                Ok(true)
            }
            Err(Invalid { field, reason }) => {
                let rejection = Rejection { version, hash, field: field.clone(), reason: reason.clone(), at: now };
                self.rejections.insert(key, rejection);
                Err(Invalid { field, reason })
            }
        }
    }

    /// Whether something is gone.
    fn remove(&mut self, t: Type, name: &str) -> bool {
        self.rejections.remove(&(t, name.to_owned()));
        match t {
            Type::Cluster => self.remove_cluster(name),
            Type::ClusterLoadAssignment => self.remove_assignment(name),
            Type::Listener => self.remove_listener(name),
            Type::RouteConfiguration => self.remove_table(name),
        }
    }

    fn good(&self, t: Type, name: &str) -> Option<&Good> {
        match t {
            Type::Cluster => self.clusters.get(name).map(|r| &r.good),
            Type::ClusterLoadAssignment => self.assignments.get(name).map(|r| &r.good),
            Type::Listener => self.listeners.get(name).map(|r| &r.good),
            Type::RouteConfiguration => self.tables.get(name).map(|r| &r.good),
        }
    }

    fn good_mut(&mut self, t: Type, name: &str) -> Option<&mut Good> {
        match t {
            Type::Cluster => self.clusters.get_mut(name).map(|r| &mut r.good),
            Type::ClusterLoadAssignment => self.assignments.get_mut(name).map(|r| &mut r.good),
            Type::Listener => self.listeners.get_mut(name).map(|r| &mut r.good),
            Type::RouteConfiguration => self.tables.get_mut(name).map(|r| &mut r.good),
        }
    }

    /// Every last good of a type, by name.
    fn goods(&self, t: Type) -> BTreeMap<&str, &Good> {
        match t {
            Type::Cluster => self.clusters.iter().map(|(n, r)| (n.as_str(), &r.good)).collect(),
            Type::ClusterLoadAssignment => self.assignments.iter().map(|(n, r)| (n.as_str(), &r.good)).collect(),
            Type::Listener => self.listeners.iter().map(|(n, r)| (n.as_str(), &r.good)).collect(),
            Type::RouteConfiguration => self.tables.iter().map(|(n, r)| (n.as_str(), &r.good)).collect(),
        }
    }

    /// Keeps what came as the last good; `former` is the one that it follows.
    fn keep(&mut self, t: Type, a: Arrival<'_>, notes: Notes, former: Option<Good>) -> Good {
        if let Some(f) = former {
            self.ledger.remove(&f.notes);
        }
        let notes = self.ledger.add(t, a.name, notes);
        Good { version: a.version, hash: a.hash, bytes: a.bytes, notes }
    }

    fn publish(&mut self, name: &str, version: &str, value: Value) {
        let kind = value.kind();
        let place = place(kind);
        self.removed.remove(&(std::cmp::Reverse(place), name.to_owned()));
        let item = Item { kind, name: name.to_owned(), version: version.to_owned(), value };
        self.ready.insert((place, name.to_owned()), item);
    }

    fn unpublish(&mut self, kind: Kind, name: &str) {
        self.ready.remove(&(place(kind), name.to_owned()));
        self.removed.insert((std::cmp::Reverse(place(kind)), name.to_owned()));
    }

    /// What to publish now, if anything.
    pub fn take_batch(&mut self) -> Option<Batch> {
        if std::mem::take(&mut self.index_is_stale) {
            let (index, bound) = translate::listener_index(self.live_listeners());
            self.bound = bound;
            if index != self.index || self.index_version == 0 {
                self.index_version += 1;
                self.index = index.clone();
                self.publish("", &self.index_version.to_string(), Value::ListenerIndex(index));
            }
        }
        let batch = Batch {
            put: std::mem::take(&mut self.ready).into_values().collect(),
            remove: std::mem::take(&mut self.removed).into_iter().map(|(p, n)| (Kind::ALL[p.0], n)).collect(),
        };
        (!batch.put.is_empty() || !batch.remove.is_empty()).then_some(batch)
    }

    /// All names to subscribe to.
    pub fn names_needed(&self) -> Names {
        Names { eds: self.service_users.keys().cloned().collect(), rds: self.table_users.keys().cloned().collect() }
    }

    /// How [`Store::names_needed`] changed since this was asked last.
    pub fn take_names_change(&mut self) -> NamesChange {
        std::mem::take(&mut self.names)
    }

    /// Notes that a name is needed now, or is not any more. Who came and went in between was never there.
    fn need(&mut self, t: Type, name: &str, needed: bool) {
        let (to, from) = match needed {
            true => (&mut self.names.add, &mut self.names.remove),
            false => (&mut self.names.remove, &mut self.names.add),
        };
        let (to, from) = match t {
            Type::RouteConfiguration => (&mut to.rds, &mut from.rds),
            _ => (&mut to.eds, &mut from.eds),
        };
        if !from.remove(name) {
            to.insert(name.to_owned());
        }
    }

    /// When [`Store::expire`] is to be called, in Unix time in ms.
    pub fn warm_deadline(&self) -> Option<u64> {
        self.deadlines.first().map(|(at, _, _)| *at)
    }

    /// Publishes what waited long enough.
    pub fn expire(&mut self, now: u64) {
        self.now = now;
        while let Some((at, t, name)) = self.deadlines.first().cloned() {
            if at > now {
                return;
            }
            self.deadlines.pop_first();
            match t {
                Type::Cluster => self.promote_cluster(&name, true),
                _ => self.promote_listener(&name, true),
            }
        }
    }

    /// Name and version of every last good of a type (`initial_resource_versions`).
    pub fn versions(&self, t: Type) -> BTreeMap<String, String> {
        self.goods(t).into_iter().map(|(n, g)| (n.to_owned(), g.version.clone())).collect()
    }

    /// The listeners that want sockets of their own, as of the last batch.
    pub fn bound_listeners(&self) -> &[BoundListener] {
        &self.bound
    }

    /// The notes of one resource.
    pub fn notes(&self, t: Type, name: &str) -> Vec<(Note, u32)> {
        self.good(t, name).map(|g| self.ledger.notes(&g.notes)).unwrap_or_default()
    }

    /// Every last good, without secrets, in the order in which [`Store::restore`] wants them.
    pub fn snapshot(&self) -> impl Iterator<Item = Saved> + '_ {
        Type::ALL.into_iter().flat_map(|t| {
            self.goods(t).into_iter().filter_map(move |(name, good)| {
                let bytes = translate::without_secrets(t.url(), &good.bytes)?;
                // Who resumes with the version of something else would never get the whole again.
                let version = if bytes == good.bytes { good.version.clone() } else { String::new() };
                Some(Saved { type_url: t.url().to_owned(), name: name.to_owned(), version, bytes })
            })
        })
    }

    /// Takes in a snapshot. What is rejected (it was good for another version of this program) is left out.
    pub fn restore(&mut self, saved: impl IntoIterator<Item = Saved>, now: u64) -> Outcome {
        let mut out = Outcome::default();
        for s in saved {
            let any = Any { type_url: s.type_url.clone(), value: s.bytes };
            let one = self.update(&s.type_url, vec![(s.name, s.version, any)], Vec::new(), false, now);
            out.changed += one.changed;
            out.rejected.extend(one.rejected);
        }
        out
    }
}

/// The place of a kind in the order of a batch.
fn place(kind: Kind) -> usize {
    Kind::ALL.iter().position(|k| *k == kind).unwrap_or_default()
}

/// Adds `user` to, and takes it from, the users of names; comes back with names that nobody used and nobody uses now.
fn move_user(
    users: &mut HashMap<String, BTreeSet<String>>,
    user: &str,
    before: &BTreeSet<String>,
    after: &BTreeSet<String>,
) -> (Vec<String>, Vec<String>) {
    let (mut first, mut last) = (Vec::new(), Vec::new());
    for name in after.difference(before) {
        let set = users.entry(name.clone()).or_default();
        if set.is_empty() {
            first.push(name.clone());
        }
        set.insert(user.to_owned());
    }
    for name in before.difference(after) {
        let Some(set) = users.get_mut(name) else { continue };
        set.remove(user);
        if set.is_empty() {
            users.remove(name);
            last.push(name.clone());
        }
    }
    (first, last)
}

/// The message of an arrival.
fn decode<M: prost::Message + Default>(a: &Arrival<'_>) -> Result<M, Invalid> {
    M::decode(a.bytes.as_slice())
        .map_err(|e| Invalid { field: String::new(), reason: format!("the bytes are no such message: {e}") })
}

/// A resource must have the name under which it came: references go by one, slots by the other.
fn same_name(own: &str, a: &Arrival<'_>, field: &str) -> Result<(), Invalid> {
    match own == a.name {
        true => Ok(()),
        false => {
            let reason = format!("is \"{own}\", and the resource came as \"{}\"", a.name);
            Err(Invalid { field: field.to_owned(), reason })
        }
    }
}
