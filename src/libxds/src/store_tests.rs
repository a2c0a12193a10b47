use super::*;
use crate::dictionary::DictionaryError;
use proptest::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;

/// A dictionary of so many bytes, that refuses as nginx's does: what a key held is gone when its new value does not fit.
#[derive(Clone, Default)]
struct Fake(Arc<FakeState>);

struct FakeState {
    entries: Mutex<BTreeMap<String, String>>,
    room: AtomicUsize,
    log: Mutex<Vec<String>>,
}

impl Default for FakeState {
    fn default() -> Self {
        FakeState { entries: Mutex::default(), room: AtomicUsize::new(usize::MAX), log: Mutex::default() }
    }
}

impl Fake {
    fn room(bytes: usize) -> Fake {
        let fake = Fake::default();
        fake.0.room.store(bytes, Ordering::Relaxed);
        fake
    }

    fn used(&self) -> usize {
        self.0.entries.lock().unwrap().iter().map(|(k, v)| k.len() + v.len()).sum()
    }

    /// What was written since the last time.
    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.0.log.lock().unwrap())
    }

    fn objects(&self) -> BTreeMap<String, String> {
        let mut all = self.0.entries.lock().unwrap().clone();
        all.retain(|key, _| !key.starts_with("/_amesh"));
        all
    }

    fn value(&self, key: &str) -> Option<String> {
        self.0.entries.lock().unwrap().get(key).cloned()
    }
}

impl Dictionary for Fake {
    fn get(&self, key: &str) -> Result<Option<String>, DictionaryError> {
        Ok(self.value(key))
    }

    fn store(&self, key: &str, value: &str) -> Result<(), DictionaryError> {
        self.0.entries.lock().unwrap().remove(key);
        if self.used() + key.len() + value.len() > self.0.room.load(Ordering::Relaxed) {
            return Err(DictionaryError::Full);
        }
        self.0.log.lock().unwrap().push(format!("+{key}"));
        self.0.entries.lock().unwrap().insert(key.to_owned(), value.to_owned());
        Ok(())
    }

    fn delete(&self, key: &str) -> Result<(), DictionaryError> {
        if self.0.entries.lock().unwrap().remove(key).is_some() {
            self.0.log.lock().unwrap().push(format!("-{key}"));
        }
        Ok(())
    }
}

fn open(config: &Fake, version: &Fake, owner: &str) -> Store<Fake> {
    Store::open(config.clone(), Arc::new(Version::take(version.clone(), owner.to_owned(), false).unwrap())).unwrap()
}

fn put(pairs: &[(&str, &str)]) -> Vec<(Arc<str>, Arc<str>)> {
    pairs.iter().map(|(k, v)| (Arc::from(*k), Arc::from(*v))).collect()
}

fn keys(keys: &[&str]) -> Vec<Arc<str>> {
    keys.iter().map(|k| Arc::from(*k)).collect()
}

#[test]
fn upstreams_are_written_before_routes_and_deleted_after_them_and_the_version_last() {
    let (config, version) = (Fake::default(), Fake::default());
    let mut store = open(&config, &version, "one");
    store.change(put(&[("/routes/r", "1"), ("/upstreams/u", "1"), ("/ssls/s", "1")]), keys(&[]));
    assert_eq!(store.settle(), Ok(Written { put: 3, deleted: 0 }));
    let objects = |log: Vec<String>| -> Vec<String> { log.into_iter().filter(|l| !l.contains("_amesh")).collect() };
    assert_eq!(objects(config.log()), ["+/ssls/s", "+/upstreams/u", "+/routes/r"]);
    assert_eq!(version.log(), ["+owner", "+version"]);

    store.change(put(&[("/routes/new", "1")]), keys(&["/upstreams/u", "/routes/r"]));
    assert_eq!(store.settle(), Ok(Written { put: 1, deleted: 2 }));
    assert_eq!(objects(config.log()), ["+/routes/new", "-/routes/r", "-/upstreams/u"]);
    assert_eq!(version.log(), ["+version"]);
}

#[test]
fn a_changed_object_is_one_write_and_one_version_and_none_without_a_change() {
    let (config, version) = (Fake::default(), Fake::default());
    let mut store = open(&config, &version, "one");
    let many: Vec<_> = (0..500).map(|i| (Arc::from(format!("/upstreams/u{i}")), Arc::from("1"))).collect();
    store.change(many, keys(&[]));
    store.settle().unwrap();
    config.log();
    version.log();
    store.change(put(&[("/upstreams/u7", "2")]), keys(&[]));
    store.settle().unwrap();
    assert_eq!(config.log(), ["+/upstreams/u7"]);
    assert_eq!(version.log(), ["+version"]);

    store.change(put(&[("/upstreams/u7", "2")]), keys(&["/routes/never"]));
    assert_eq!(store.settle(), Ok(Written::default()));
    assert_eq!((config.log(), version.log()), (vec![], vec![]));
}

#[test]
fn the_version_never_repeats_and_grows_over_one_from_the_future() {
    let (config, version) = (Fake::default(), Fake::default());
    let mut store = open(&config, &version, "one");
    let mut last = 0;
    for i in 0..100 {
        store.change(put(&[("/routes/r", &i.to_string())]), keys(&[]));
        store.settle().unwrap();
        let now: u64 = version.value("version").unwrap().parse().unwrap();
        assert!(now > last);
        last = now;
    }
    version.store("version", "9007199254740000").unwrap();
    store.version.raise().unwrap();
    assert_eq!(version.value("version").unwrap(), "9007199254740001");
}

#[test]
fn a_full_dictionary_keeps_what_stood_there_and_takes_the_batch_when_there_is_room() {
    let (config, version) = (Fake::room(400), Fake::default());
    let mut store = open(&config, &version, "one");
    store.change(put(&[("/upstreams/u", "before"), ("/routes/r", "before")]), keys(&[]));
    store.settle().unwrap();
    let (before, seen) = (config.objects(), version.value("version"));
    let large = "x".repeat(300);
    store.change(put(&[("/ssls/new", "1"), ("/upstreams/u", "after"), ("/routes/r", &large)]), keys(&[]));
    assert_eq!(store.settle(), Err(StoreError::Full("xds-config")));
    assert_eq!(config.objects(), before);
    assert_eq!(version.value("version"), seen);
    // It is no less full when it is tried again.
    assert_eq!(store.settle(), Err(StoreError::Full("xds-config")));
    assert_eq!(config.objects(), before);

    config.0.room.store(10_000, Ordering::Relaxed);
    assert_eq!(store.settle(), Ok(Written { put: 3, deleted: 0 }));
    assert_eq!(config.value("/routes/r"), Some(large));
    assert_eq!(config.value("/upstreams/u").as_deref(), Some("after"));
    assert_ne!(version.value("version"), seen);
}

#[test]
fn a_version_that_is_held_is_raised_once_when_it_is_released() {
    let (config, version) = (Fake::default(), Fake::default());
    let held = Arc::new(Version::take(version.clone(), "one".to_owned(), true).unwrap());
    let mut store = Store::open(config.clone(), held.clone()).unwrap();
    for key in ["/upstreams/u", "/routes/r"] {
        store.change(put(&[(key, "1")]), keys(&[]));
        store.settle().unwrap();
    }
    assert_eq!(held.is_awaited(), Ok(true));
    assert_eq!(version.log(), ["+owner"]);
    held.release().unwrap();
    assert_eq!(version.log(), ["+version"]);
    store.settle().unwrap();
    assert_eq!(version.log(), Vec::<String>::new());
    // Nothing to load, and APISIX waits all the same.
    let empty = Fake::default();
    Version::take(empty.clone(), "two".to_owned(), true).unwrap().release().unwrap();
    assert!(empty.value("version").is_some());
}

#[test]
fn the_dictionary_is_never_empty() {
    let (config, version) = (Fake::default(), Fake::default());
    let mut store = open(&config, &version, "one");
    assert!(config.value("/_amesh").is_some());
    store.change(put(&[("/routes/r", "1")]), keys(&[]));
    store.settle().unwrap();
    store.change(put(&[]), keys(&["/routes/r"]));
    store.settle().unwrap();
    let left = config.0.entries.lock().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(left, ["/_amesh"]);
}

#[test]
fn the_next_process_takes_over_without_a_write_and_drops_what_nobody_wants() {
    let (config, version) = (Fake::default(), Fake::default());
    let mut old = open(&config, &version, "old");
    let many: Vec<_> = (0..200).map(|i| (Arc::from(format!("/upstreams/u{i}")), Arc::from("1"))).collect();
    old.change(many.clone(), keys(&[]));
    old.change(put(&[("/routes/gone", "1")]), keys(&[]));
    old.settle().unwrap();
    let seen = version.value("version");
    config.log();

    let mut new = open(&config, &version, "new");
    assert_eq!(new.version.is_awaited(), Ok(false));
    assert_eq!(new.inherit(), Ok(201));
    new.change(many, keys(&[]));
    assert_eq!(new.settle(), Ok(Written::default()));
    assert_eq!(config.log(), Vec::<String>::new());
    assert_eq!(version.value("version"), seen);

    assert_eq!(new.disown(), 1);
    assert_eq!(new.settle(), Ok(Written { put: 0, deleted: 1 }));
    assert_eq!(config.value("/routes/gone"), None);
    assert_ne!(version.value("version"), seen);
}

#[test]
fn the_old_process_stops_writing_even_within_a_batch() {
    let (config, version) = (Fake::default(), Fake::default());
    let mut old = open(&config, &version, "old");
    old.change(put(&[("/routes/r", "old")]), keys(&[]));
    old.settle().unwrap();
    let _new = open(&config, &version, "new");
    config.log();
    old.change(put(&[("/routes/r", "older")]), keys(&[]));
    assert_eq!(old.settle(), Err(StoreError::Lost));
    assert_eq!(old.version.check_owner(), Err(StoreError::Lost));
    assert_eq!(config.log(), Vec::<String>::new());
    assert_eq!(config.value("/routes/r").as_deref(), Some("old"));
}

#[test]
fn what_somebody_else_threw_away_is_written_again() {
    let (config, version) = (Fake::default(), Fake::default());
    let mut store = open(&config, &version, "one");
    store.change(put(&[("/routes/r", "1"), ("/upstreams/u", "1")]), keys(&[]));
    store.settle().unwrap();
    assert_eq!(store.audit(), Ok(0));
    let before = config.0.entries.lock().unwrap().clone();
    config.0.entries.lock().unwrap().clear();
    assert!(store.audit().unwrap() >= 2);
    store.settle().unwrap();
    assert_eq!(config.objects().len(), 2);
    assert!(config.value("/_amesh").is_some());
    // The index, too: the next process finds them.
    assert_eq!(open(&config, &version, "two").inherit(), Ok(2));
    assert_eq!(before.len(), config.0.entries.lock().unwrap().len());
}

proptest! {
    /// Whatever comes, and wherever room runs out: the dictionary holds what the last batch that was accepted says, whole,
    /// and the next process knows all of it.
    #[test]
    fn the_dictionary_holds_a_whole_batch(
        batches in prop::collection::vec(
            (prop::collection::vec((0..6usize, 0..8u8, 0..60usize), 1..6), 40..600usize), 1..20)
    ) {
        let (config, version) = (Fake::default(), Fake::default());
        let mut store = open(&config, &version, "one");
        let mut wanted: BTreeMap<String, String> = BTreeMap::new();
        let mut accepted = BTreeMap::new();
        for (n, (changes, room)) in batches.iter().enumerate() {
            for (directory, id, size) in changes {
                let key = format!("/{}/{id}", DIRECTORIES[*directory]);
                if *size == 0 {
                    wanted.remove(&key);
                    store.change(put(&[]), keys(&[&key]));
                } else {
                    let json = format!("{n}{}", "x".repeat(*size));
                    wanted.insert(key.clone(), json.clone());
                    store.change(put(&[(&key, &json)]), keys(&[]));
                }
            }
            // Room for what stands there at least: nginx's does not shrink.
            config.0.room.store((*room).max(config.used()), Ordering::Relaxed);
            let before = version.value("version");
            let result = store.settle();
            if result.is_ok() {
                accepted.clone_from(&wanted);
            }
            prop_assert_eq!(config.objects(), accepted.clone());
            if result != Ok(Written::default()) && result.is_ok() {
                prop_assert_ne!(version.value("version"), before);
            } else {
                prop_assert_eq!(version.value("version"), before);
            }
        }
        let mut next = open(&config, &version, "two");
        prop_assert_eq!(next.inherit(), Ok(accepted.len()));
    }
}
