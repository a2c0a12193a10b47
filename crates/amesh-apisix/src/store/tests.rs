use super::*;
use crate::etcd::proto::WatchCreateRequest;
use crate::etcd::{Step, Watch};
use crate::{Directory, Key};
use proptest::prelude::*;

fn key(directory: Directory, id: &str) -> Key {
    Key { directory, id: id.into() }
}

fn object(id: &str, json: &str) -> Object {
    Object { key: key(Directory::Routes, id), json: json.into() }
}

fn put(id: &str, json: &str) -> Changes {
    Changes { put: vec![object(id, json)], ..Changes::default() }
}

fn delete(id: &str) -> Changes {
    Changes { delete: vec![key(Directory::Routes, id)], ..Changes::default() }
}

fn all() -> KeyRange {
    KeyRange::new("/apisix/".into(), "/apisix0".into())
}

fn get(store: &Store, key: &str) -> Option<KeyValue> {
    store.range(&KeyRange::new(Bytes::copy_from_slice(key.as_bytes()), Bytes::new())).next().cloned()
}

fn store() -> Store {
    Store::new("/apisix", 999, Limits::default())
}

#[test]
fn the_seed_is_what_lua_can_hand_back() {
    // 14 digits is what its JSON library writes of a number.
    assert!(seed() > 10_000_000_000_000, "{}", seed());
    assert!(seed() < 100_000_000_000_000, "{}", seed());
}

#[test]
fn it_is_never_empty_and_markers_come_before_objects() {
    let mut store = store();
    store.apply(&put("-", "{}"));
    let keys: Vec<_> = store.range(&all()).map(|kv| String::from_utf8(kv.key.to_vec()).unwrap()).collect();
    assert_eq!(keys.len(), 14);
    let marker = keys.iter().position(|k| k == "/apisix/routes/").unwrap();
    assert_eq!(keys[marker + 1], "/apisix/routes/-");
    assert_eq!(get(&store, "/apisix/ssls/").unwrap().value, MARKER);
    store.replace(&[]);
    assert_eq!(store.range(&all()).count(), 13);
}

#[test]
fn a_batch_is_one_revision_and_what_is_as_it_was_is_none() {
    let mut store = store();
    let both = Changes { put: vec![object("a", "1"), object("b", "1")], ..Changes::default() };
    assert!(store.apply(&both));
    assert_eq!(store.revision(), 1001);
    assert!(!store.apply(&both));
    assert!(!store.apply(&delete("c")));
    assert_eq!(store.revision(), 1001);
    assert!(store.apply(&put("a", "2")));
    let a = get(&store, "/apisix/routes/a").unwrap();
    assert_eq!((a.create_revision, a.mod_revision, a.version), (1001, 1002, 2));
    store.apply(&delete("a"));
    assert_eq!(get(&store, "/apisix/routes/a"), None);
    store.apply(&put("a", "2"));
    let a = get(&store, "/apisix/routes/a").unwrap();
    assert_eq!((a.create_revision, a.mod_revision, a.version), (1004, 1004, 1));
}

#[test]
fn a_key_has_one_event_in_a_revision() {
    let mut store = store();
    store.apply(&Changes {
        put: vec![object("a", "1"), object("b", "1"), object("a", "2")],
        delete: vec![key(Directory::Routes, "b")],
        ..Changes::default()
    });
    let batch = store.batch_from(0).unwrap();
    let seen: Vec<_> = batch.events.iter().map(|e| (e.kind, e.kv.clone().unwrap().key)).collect();
    assert_eq!(seen, [(0, "/apisix/routes/a".into()), (1, "/apisix/routes/b".into())]);
    assert_eq!(get(&store, "/apisix/routes/a").unwrap().value, "2");
}

#[test]
fn replacing_deletes_what_is_not_there_and_tells_it() {
    let mut store = store();
    store.apply(&put("a", "1"));
    store.apply(&put("b", "1"));
    assert!(store.replace(&[object("b", "1"), object("c", "1")]));
    let keys: Vec<_> = store.range(&all()).filter(|kv| kv.value != MARKER).map(|kv| kv.key.clone()).collect();
    assert_eq!(keys, ["/apisix/routes/b", "/apisix/routes/c"]);
    let batch = store.batch_from(store.revision()).unwrap();
    assert_eq!(batch.events.len(), 2);
}

#[test]
fn ranges_are_bytes() {
    let mut store = store();
    store.apply(&put("a", "1"));
    let count = |key: &'static str, end: &'static str| store.range(&KeyRange::new(key.into(), end.into())).count();
    assert_eq!(count("/apisix", "/apisiy"), 14);
    assert_eq!(count("/apisix/routes", "/apisix/routet"), 2);
    assert_eq!(count("/apisix/routes/a", ""), 1);
    assert_eq!(count("/apisix/routes", ""), 0);
    assert_eq!(count("\0", "\0"), 14);
    assert_eq!(count("/apisix/upstreams/", "\0"), 1);
    assert_eq!(count("/b", "/a"), 0);
    assert_eq!(count("/b", "/b"), 0);
}

fn watch_from(store: &Store, start_revision: i64) -> Watch {
    let (key, range_end) = ("/apisix/".into(), "/apisix0".into());
    Watch::new(store, &WatchCreateRequest { key, range_end, start_revision, ..WatchCreateRequest::default() })
}

fn revision(step: &Step) -> Option<i64> {
    match step {
        Step::Whole(batch) => Some(batch.revision),
        Step::Part(revision, _) => Some(*revision),
        Step::Compacted(_) | Step::Wait => None,
    }
}

#[test]
fn a_watch_replays_each_revision_in_a_message_of_its_own() {
    let mut store = store();
    for id in ["a", "b", "c"] {
        store.apply(&put(id, "1"));
    }
    let mut watch = watch_from(&store, 1002);
    assert_eq!(revision(&watch.step(&store)), Some(1002));
    assert_eq!(revision(&watch.step(&store)), Some(1003));
    assert!(matches!(watch.step(&store), Step::Wait));
    let mut from_now = watch_from(&store, 0);
    assert!(matches!(from_now.step(&store), Step::Wait));
    store.apply(&delete("a"));
    assert_eq!(revision(&from_now.step(&store)), Some(1004));
}

#[test]
fn what_another_life_has_seen_is_compacted() {
    let mut store = store();
    store.apply(&put("a", "1"));
    store.forget();
    let now = store.revision();
    for start in [1, 999, 1001, now + 2, i64::MAX] {
        assert!(matches!(watch_from(&store, start).step(&store), Step::Compacted(c) if c == now), "{start}");
    }
    for start in [now, now + 1] {
        assert!(matches!(watch_from(&store, start).step(&store), Step::Wait), "{start}");
    }
}

#[test]
fn a_watch_that_is_too_slow_is_sent_to_read_anew() {
    let mut store = Store::new("/apisix", 999, Limits { batches: 3, bytes: 1 << 20 });
    let mut slow = watch_from(&store, 1001);
    for i in 0..5 {
        store.apply(&put("a", &i.to_string()));
    }
    assert!(matches!(slow.step(&store), Step::Compacted(1005)));
    assert_eq!(revision(&watch_from(&store, 1005).step(&store)), Some(1005));
    assert_eq!(revision(&watch_from(&store, 1003).step(&store)), Some(1003));
    // A batch that is larger than all that is kept is kept until the next one.
    let mut store = Store::new("/apisix", 999, Limits { batches: 3, bytes: 100 });
    let mut watch = watch_from(&store, 1001);
    store.apply(&put("a", &"x".repeat(1000)));
    assert_eq!(revision(&watch.step(&store)), Some(1001));
}

#[test]
fn another_prefix_is_another_store() {
    let mut store = store();
    store.apply(&put("a", "1"));
    let other = store.renamed("/other", 2000);
    assert_eq!(get(&other, "/other/routes/a").unwrap().value, "1");
    assert_eq!(other.range(&all()).count(), 0);
    assert!(matches!(watch_from(&other, 1002).step(&other), Step::Compacted(_)));
}

/// Somebody who follows the store as APISIX does.
struct Follower {
    held: BTreeMap<Bytes, KeyValue>,
    watch: Watch,
    last: i64,
}

impl Follower {
    fn read(store: &Store, start: i64) -> Follower {
        let held = store.range(&all()).map(|kv| (kv.key.clone(), kv.clone())).collect();
        Follower { held, watch: watch_from(store, start), last: 0 }
    }

    /// Takes one message; whether there was one.
    fn take(&mut self, store: &Store) -> bool {
        let step = self.watch.step(store);
        if let Some(revision) = revision(&step) {
            assert!(revision > self.last, "{revision} after {}", self.last);
            self.last = revision;
        }
        let events = match step {
            Step::Wait => return false,
            Step::Compacted(from) => {
                *self = Follower::read(store, from);
                return true;
            }
            Step::Whole(batch) => batch.events.clone(),
            Step::Part(_, events) => events,
        };
        assert!(!events.is_empty());
        for event in events {
            let kv = event.kv.unwrap();
            if event.kind == 1 {
                self.held.remove(&kv.key);
            } else {
                self.held.insert(kv.key.clone(), kv);
            }
        }
        true
    }
}

#[derive(Clone, Debug)]
enum Act {
    Write(Vec<(u8, u8)>, Vec<u8>),
    Replace(Vec<(u8, u8)>),
    Forget,
    /// A watcher that begins at the revision so far from the present, having read what there is.
    Begin(i64),
    /// A watcher reads this many messages.
    Take(usize, usize),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let puts = || prop::collection::vec((0..6u8, 0..4u8), 0..4);
    let act = prop_oneof![
        4 => (puts(), prop::collection::vec(0..6u8, 0..2)).prop_map(|(p, d)| Act::Write(p, d)),
        1 => puts().prop_map(Act::Replace),
        1 => Just(Act::Forget),
        2 => (-8..4i64).prop_map(Act::Begin),
        3 => (0..8usize, 0..4usize).prop_map(|(w, n)| Act::Take(w, n)),
    ];
    prop::collection::vec(act, 1..60)
}

proptest! {
    #[test]
    fn every_watcher_ends_with_what_there_is(acts in acts(), batches in 1..6usize) {
        let mut store = Store::new("/apisix", 999, Limits { batches, bytes: 1 << 20 });
        let mut followers: Vec<Follower> = Vec::new();
        let named = |(id, value): &(u8, u8)| object(&id.to_string(), &value.to_string());
        let mut revisions = BTreeSet::new();
        for act in acts {
            match act {
                Act::Write(put, delete) => {
                    let before = store.revision();
                    let put = put.iter().map(named).collect();
                    let delete = delete.iter().map(|id| key(Directory::Routes, &id.to_string())).collect();
                    let changed = store.apply(&Changes { put, delete, ..Changes::default() });
                    prop_assert_eq!(store.revision() - before, i64::from(changed));
                    prop_assert!(!changed || revisions.insert(store.revision()));
                }
                Act::Replace(put) => {
                    let put: Vec<_> = put.iter().map(named).collect();
                    if store.replace(&put) {
                        prop_assert!(revisions.insert(store.revision()));
                    }
                }
                Act::Forget => store.forget(),
                // As APISIX: what it holds may be older or newer than where it starts.
                Act::Begin(from) => followers.push(Follower::read(&store, store.revision() + from)),
                Act::Take(who, n) => {
                    let count = followers.len();
                    if let Some(f) = (count > 0).then(|| &mut followers[who % count.max(1)]) {
                        for _ in 0..n { f.take(&store); }
                    }
                }
            }
        }
        let now: BTreeMap<Bytes, KeyValue> = store.range(&all()).map(|kv| (kv.key.clone(), kv.clone())).collect();
        for follower in &mut followers {
            // It comes to an end: one message a revision, and once more after a fresh start.
            for _ in 0..200 {
                follower.take(&store);
            }
            prop_assert_eq!(&follower.held, &now);
        }
    }
}
