//! The objects as etcd keeps them: ordered keys with revisions, and a history that watches are answered from.
//!
//! Revisions begin at the wall clock, in units of 100 microseconds since 1970, and grow by one with every batch: whoever
//! starts again, after a crash too, begins above all that was before. They stay below 10^14 until the year 2286, because
//! that is what APISIX can hand back: its JSON library writes numbers with 14 digits.

use crate::etcd::proto::{Event, EventType, KeyValue};
use crate::{Changes, Object};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

/// Directories that APISIX 3.18 reads. It takes one from its first range over everything only where a marker stands before
/// the objects: `<prefix>/<directory>/` with this [value](MARKER).
pub const DIRECTORIES: [&str; 13] = [
    "consumer_groups",
    "consumers",
    "global_rules",
    "plugin_configs",
    "plugin_metadata",
    "plugins",
    "protos",
    "routes",
    "secrets",
    "services",
    "ssls",
    "stream_routes",
    "upstreams",
];

/// What APISIX itself writes as the value of a directory's marker.
pub const MARKER: &str = "init_dir";

/// What an event takes beside its bytes, roughly.
const EVENT_OVERHEAD: usize = 256;

/// The first revision of a store that is made now.
pub fn seed() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| (d.as_micros() / 100) as i64)
}

/// How much history is kept. The last batch always is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Batches.
    pub batches: usize,
    /// Bytes of their events, with what they take when they are written as JSON.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { batches: 4096, bytes: 16 << 20 }
    }
}

/// Which keys: one, or those from one on up to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    first: Bytes,
    end: End,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Single,
    Never,
    Before(Bytes),
}

impl KeyRange {
    /// By the fields `key` and `range_end` of etcd's requests.
    pub fn new(key: Bytes, range_end: Bytes) -> KeyRange {
        let end = match range_end.as_ref() {
            [] => End::Single,
            [0] => End::Never,
            _ => End::Before(range_end),
        };
        KeyRange { first: key, end }
    }

    /// Whether a key is one of them.
    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            End::Single => key == self.first,
            End::Never => key >= self.first.as_ref(),
            End::Before(end) => key >= self.first.as_ref() && key < end.as_ref(),
        }
    }
}

/// What happened at one revision.
#[derive(Debug)]
pub struct Batch {
    /// When.
    pub revision: i64,
    /// In the order in which it was written.
    pub events: Vec<Event>,
    bytes: usize,
    rendered: OnceLock<Bytes>,
}

impl Batch {
    fn new(revision: i64, events: Vec<Event>) -> Batch {
        let size = |e: &Event| e.kv.as_ref().map_or(0, |kv| kv.key.len() + kv.value.len());
        // Once as it is, and once in base64.
        let bytes = events.iter().map(|e| size(e) * 5 / 2 + EVENT_OVERHEAD).sum();
        Batch { revision, events, bytes, rendered: OnceLock::new() }
    }

    /// All of it as it is sent to a watcher, made by `render` once for all of them.
    pub fn rendered(&self, render: impl FnOnce() -> Bytes) -> Bytes {
        self.rendered.get_or_init(render).clone()
    }
}

/// Text that is shared with who made the object.
struct Shared(Arc<str>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// See [the module](self).
#[derive(Debug)]
pub struct Store {
    prefix: String,
    keys: BTreeMap<Bytes, KeyValue>,
    bytes: usize,
    revision: i64,
    /// What happened up to here is forgotten.
    floor: i64,
    history: VecDeque<Arc<Batch>>,
    history_bytes: usize,
    limits: Limits,
}

impl Store {
    /// A store that holds markers only. `prefix` begins every key: `/apisix`. Its first revision is `seed`.
    pub fn new(prefix: &str, seed: i64, limits: Limits) -> Store {
        let mut store = Store {
            prefix: prefix.to_owned(),
            keys: BTreeMap::new(),
            bytes: 0,
            // As after [`Store::forget`]: a watch may always start at the newest revision.
            revision: seed + 1,
            floor: seed,
            history: VecDeque::new(),
            history_bytes: 0,
            limits,
        };
        for directory in DIRECTORIES {
            let key = Bytes::from(format!("{prefix}/{directory}/"));
            store.bytes += key.len() + MARKER.len();
            let (value, create_revision) = (Bytes::from_static(MARKER.as_bytes()), seed);
            let kv = KeyValue { key: key.clone(), create_revision, mod_revision: seed, version: 1, value };
            store.keys.insert(key, kv);
        }
        store
    }

    /// The same objects under another prefix, as a store that begins at `seed`.
    pub fn renamed(&self, prefix: &str, seed: i64) -> Store {
        let mut store = Store::new(prefix, seed, self.limits);
        let tail = |kv: &KeyValue| {
            format!("{prefix}{}", String::from_utf8_lossy(kv.key.get(self.prefix.len()..).unwrap_or_default()))
        };
        let objects = self.keys.values().filter(|kv| !kv.key.ends_with(b"/"));
        store.write(objects.map(|kv| (Bytes::from(tail(kv)), kv.value.clone())).collect(), Vec::new());
        store.forget();
        store
    }

    /// What all keys begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The newest revision.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The oldest revision that a watch may start at.
    pub fn oldest(&self) -> i64 {
        self.floor + 1
    }

    /// Bytes of keys and values.
    pub fn size(&self) -> usize {
        self.bytes
    }

    fn key(&self, key: &crate::Key) -> Bytes {
        Bytes::from(format!("{}{key}", self.prefix))
    }

    /// Takes in what changed, as one revision. Whether anything did.
    pub fn apply(&mut self, changes: &Changes) -> bool {
        let put = changes.put.iter().map(|o| (self.key(&o.key), Bytes::from_owner(Shared(o.json.clone())))).collect();
        let delete = changes.delete.iter().map(|k| self.key(k)).collect();
        self.write(put, delete)
    }

    /// These are all objects: others are deleted. As one revision; whether anything changed.
    pub fn replace(&mut self, objects: &[Object]) -> bool {
        let put: Vec<_> =
            objects.iter().map(|o| (self.key(&o.key), Bytes::from_owner(Shared(o.json.clone())))).collect();
        let stay: BTreeSet<&Bytes> = put.iter().map(|(key, _)| key).collect();
        let gone = |kv: &&KeyValue| !kv.key.ends_with(b"/") && !stay.contains(&kv.key);
        let delete = self.keys.values().filter(gone).map(|kv| kv.key.clone()).collect();
        self.write(put, delete)
    }

    fn write(&mut self, put: Vec<(Bytes, Bytes)>, delete: Vec<Bytes>) -> bool {
        let revision = self.revision + 1;
        let mut events: Vec<Event> = Vec::with_capacity(put.len() + delete.len());
        // A key has one event in a revision: what came last.
        let supersede = |events: &mut Vec<Event>, before: &Option<KeyValue>| {
            if let Some(before) = before.as_ref().filter(|b| b.mod_revision == revision) {
                events.retain(|e| e.kv.as_ref().is_none_or(|kv| kv.key != before.key));
            }
        };
        for (key, value) in put {
            let prev_kv = self.keys.get(&key).cloned();
            if prev_kv.as_ref().is_some_and(|kv| kv.value == value) {
                continue;
            }
            supersede(&mut events, &prev_kv);
            let (create_revision, version) =
                prev_kv.as_ref().map_or((revision, 0), |kv| (kv.create_revision, kv.version));
            let kv =
                KeyValue { key: key.clone(), create_revision, mod_revision: revision, version: version + 1, value };
            self.bytes += kv.key.len() + kv.value.len();
            self.bytes -= prev_kv.as_ref().map_or(0, |kv| kv.key.len() + kv.value.len());
            self.keys.insert(key, kv.clone());
            events.push(Event { kind: EventType::Put as i32, kv: Some(kv), prev_kv });
        }
        for key in delete {
            let Some(before) = self.keys.remove(&key) else { continue };
            self.bytes -= before.key.len() + before.value.len();
            let kv = KeyValue { key, mod_revision: revision, ..KeyValue::default() };
            let prev_kv = Some(before);
            supersede(&mut events, &prev_kv);
            events.push(Event { kind: EventType::Delete as i32, kv: Some(kv), prev_kv });
        }
        if events.is_empty() {
            return false;
        }
        self.revision = revision;
        let batch = Batch::new(revision, events);
        self.history_bytes += batch.bytes;
        self.history.push_back(Arc::new(batch));
        while self.history.len() > 1
            && (self.history.len() > self.limits.batches || self.history_bytes > self.limits.bytes)
        {
            let Some(oldest) = self.history.pop_front() else { break };
            self.history_bytes -= oldest.bytes;
            self.floor = oldest.revision;
        }
        true
    }

    /// Forgets what happened, not what is: whoever watches from the past has to read anew.
    pub fn forget(&mut self) {
        self.history.clear();
        self.history_bytes = 0;
        self.floor = self.revision;
        // One on, so that the revision itself is one that a watch may start at.
        self.revision += 1;
    }

    /// What stands in a range now, in the order of keys.
    pub fn range<'a>(&'a self, range: &'a KeyRange) -> impl Iterator<Item = &'a KeyValue> {
        let end = match &range.end {
            // A map does not take a range that ends before it begins.
            End::Before(end) if *end <= range.first => Bound::Included(range.first.as_ref()),
            End::Before(end) => Bound::Excluded(end.as_ref()),
            End::Single => Bound::Included(range.first.as_ref()),
            End::Never => Bound::Unbounded,
        };
        let found = self.keys.range::<[u8], _>((Bound::Included(range.first.as_ref()), end));
        found.map(|(_, kv)| kv).filter(|kv| range.contains(&kv.key))
    }

    /// The first batch of this revision or a later one.
    pub fn batch_from(&self, revision: i64) -> Option<&Arc<Batch>> {
        self.history.get(self.history.partition_point(|b| b.revision < revision))
    }
}

#[cfg(test)]
mod tests;
