//! Which keys there are, kept as objects of the dictionary themselves: in buckets, so that a new key rewrites a small one.

use std::collections::BTreeSet;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// Buckets; processes of any build agree on it.
const BUCKETS: usize = 64;
/// Begins the key of a bucket; no directory of APISIX begins so.
const PREFIX: &str = "/_amesh/";

/// The keys of all objects.
#[derive(Clone, Default)]
pub struct Index {
    /// A copy of the index is cheap: a bucket is copied when it changes.
    buckets: Vec<Arc<BTreeSet<Arc<str>>>>,
}

impl Index {
    /// The keys of all buckets that there may be.
    pub fn buckets() -> impl Iterator<Item = Arc<str>> {
        (0..BUCKETS).map(name)
    }

    /// Whether a key is that of a bucket.
    pub fn is_bucket(key: &str) -> bool {
        key.starts_with(PREFIX)
    }

    /// The keys in the text of a bucket.
    pub fn keys(text: &str) -> impl Iterator<Item = Arc<str>> + '_ {
        text.split('\n').filter(|key| !key.is_empty()).map(Arc::from)
    }

    /// Adds a key.
    pub fn add(&mut self, key: &Arc<str>) {
        self.buckets.resize_with(BUCKETS, Arc::default);
        if let Some(bucket) = self.buckets.get_mut(number(key)) {
            Arc::make_mut(bucket).insert(key.clone());
        }
    }

    /// Adds keys; the buckets that they are in.
    pub fn add_all<'a>(&mut self, keys: impl Iterator<Item = &'a Arc<str>>) -> BTreeSet<Arc<str>> {
        keys.map(|key| {
            self.add(key);
            name(number(key))
        })
        .collect()
    }

    /// Removes keys; the buckets that they were in.
    pub fn remove_all<'a>(&mut self, keys: impl Iterator<Item = &'a Arc<str>>) -> BTreeSet<Arc<str>> {
        keys.filter_map(|key| {
            let bucket = number(key);
            Arc::make_mut(self.buckets.get_mut(bucket)?).remove(key).then(|| name(bucket))
        })
        .collect()
    }

    /// What is to be written for a bucket; `None` if it is empty.
    pub fn text(&self, bucket: &str) -> Option<Arc<str>> {
        let number: usize = bucket.strip_prefix(PREFIX)?.parse().ok()?;
        let keys: Vec<&str> = self.buckets.get(number)?.iter().map(|key| &**key).collect();
        (!keys.is_empty()).then(|| keys.join("\n").into())
    }
}

fn name(bucket: usize) -> Arc<str> {
    format!("{PREFIX}{bucket}").into()
}

fn number(key: &str) -> usize {
    // Below BUCKETS.
    (xxh3_64(key.as_bytes()) % BUCKETS as u64) as usize
}
