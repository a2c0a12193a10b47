//! What is written into the two dictionaries, in which order, and what happens when it does not fit.
//!
//! A batch is written as a whole, or what stood there before is put back; then the version is raised, once. Upstreams are
//! written before the routes that name them, and what is gone is deleted last, routes first: a worker may read while a batch
//! is under way.
//!
//! Dictionaries survive a reload, and their keys cannot be listed from here. So the keys are kept in the dictionary, too
//! ([`Index`]): the next process takes over what stands there, serves it until it knows better, and deletes what nobody
//! wants any more.

use crate::dictionary::Dictionary;
use crate::index::Index;
use crate::version::{refused, StoreError, Version};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Stands in the dictionary of objects always: APISIX keeps its old routes when it finds no key at all.
const PLACEHOLDER: &str = "/_amesh";
/// Directories of APISIX in the order in which objects are written: what is named comes before what names it.
const DIRECTORIES: [&str; 6] = ["ssls", "upstreams", "plugin_configs", "services", "routes", "stream_routes"];

/// What was written for a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Objects written.
    pub put: usize,
    /// Objects deleted.
    pub deleted: usize,
}

/// Where a key stands in the order of writing.
type Place = (usize, Arc<str>);

fn place(key: Arc<str>) -> Place {
    let directory = key.trim_start_matches('/').split('/').next().unwrap_or_default();
    (DIRECTORIES.iter().position(|d| *d == directory).unwrap_or(DIRECTORIES.len()), key)
}

/// One step of a batch: a key, and its value or that it goes.
type Step = (Arc<str>, Option<Arc<str>>);

/// The one writer of both dictionaries.
pub struct Store<D> {
    config: D,
    version: Arc<Version<D>>,
    /// What stands in the dictionary.
    written: HashMap<Arc<str>, Arc<str>>,
    /// What is to stand there, of what does not yet.
    pending: BTreeMap<Place, Option<Arc<str>>>,
    /// Of another process, and nobody has asked for it yet.
    inherited: BTreeSet<Place>,
    index: Index,
}

impl<D: Dictionary> Store<D> {
    /// A writer of nothing yet.
    ///
    /// # Errors
    /// The dictionary of objects refuses.
    pub fn open(config: D, version: Arc<Version<D>>) -> Result<Store<D>, StoreError> {
        let store = Store {
            config,
            version,
            written: HashMap::new(),
            pending: BTreeMap::new(),
            inherited: BTreeSet::new(),
            index: Index::default(),
        };
        store.hold_place()?;
        Ok(store)
    }

    /// Whether this process is still the one that writes.
    ///
    /// # Errors
    /// [`StoreError::Lost`], and what the dictionary says.
    pub fn check_owner(&self) -> Result<(), StoreError> {
        self.version.check_owner()
    }

    /// Sees to it that the dictionary is not empty.
    fn hold_place(&self) -> Result<(), StoreError> {
        let refused = |e| refused("xds-config", PLACEHOLDER, e);
        if self.config.get(PLACEHOLDER).map_err(refused)?.is_none() {
            self.config.store(PLACEHOLDER, "{}").map_err(refused)?;
        }
        Ok(())
    }

    /// Takes over what a former process has left; how many objects that are.
    ///
    /// # Errors
    /// The dictionary refuses.
    pub fn inherit(&mut self) -> Result<usize, StoreError> {
        for bucket in Index::buckets() {
            let Some(keys) = self.config.get(&bucket).map_err(|e| refused("xds-config", &bucket, e))? else { continue };
            for key in Index::keys(&keys) {
                // An index is written before the objects of a batch: not all of them need to be there.
                if let Some(json) = self.config.get(&key).map_err(|e| refused("xds-config", &key, e))? {
                    self.index.add(&key);
                    self.written.insert(key.clone(), json.into());
                    self.inherited.insert(place(key));
                }
            }
            self.written.insert(bucket, keys.into());
        }
        Ok(self.inherited.len())
    }

    /// Says that these objects are wanted, and those not any more.
    pub fn change(
        &mut self,
        put: impl IntoIterator<Item = (Arc<str>, Arc<str>)>,
        delete: impl IntoIterator<Item = Arc<str>>,
    ) {
        for (key, json) in put {
            let place = place(key);
            self.inherited.remove(&place);
            self.pending.insert(place, Some(json));
        }
        for key in delete {
            let place = place(key);
            self.inherited.remove(&place);
            self.pending.insert(place, None);
        }
    }

    /// Gives up what was inherited and never asked for; how many objects that are.
    pub fn disown(&mut self) -> usize {
        let gone = std::mem::take(&mut self.inherited);
        let count = gone.len();
        self.pending.extend(gone.into_iter().map(|place| (place, None)));
        count
    }

    /// Looks whether all that was written stands there still, and has what does not written again; how many objects that are.
    ///
    /// # Errors
    /// The dictionary refuses.
    pub fn audit(&mut self) -> Result<usize, StoreError> {
        let mut lost = Vec::new();
        for (key, json) in &self.written {
            let there = self.config.get(key).map_err(|e| refused("xds-config", key, e))?;
            if there.as_deref() != Some(&**json) {
                lost.push((key.clone(), json.clone()));
            }
        }
        let count = lost.len();
        for (key, json) in lost {
            self.written.remove(&key);
            if !Index::is_bucket(&key) {
                self.pending.entry(place(key)).or_insert(Some(json));
            }
        }
        self.hold_place()?;
        Ok(count)
    }

    /// Writes all that is to be changed, and raises the version if anything did.
    ///
    /// # Errors
    /// Nothing is changed, and all of it is tried again with the next batch.
    pub fn settle(&mut self) -> Result<Written, StoreError> {
        self.version.check_owner()?;
        self.pending.retain(|(_, key), json| self.written.get(key) != json.as_ref());
        if self.pending.is_empty() {
            self.version.settle()?;
            return Ok(Written::default());
        }
        let (steps, index, count) = self.steps();
        self.write(&steps)?;
        for (key, json) in steps {
            match json {
                Some(json) => self.written.insert(key, json),
                None => self.written.remove(&key),
            };
        }
        self.pending.clear();
        self.index = index;
        self.version.raise()?;
        Ok(count)
    }

    /// The steps of a batch, and the index after it. New keys are in the index before they are in the dictionary, old ones
    /// after that: whenever this process dies, the next one finds all of them.
    fn steps(&self) -> (Vec<Step>, Index, Written) {
        let put = || self.pending.iter().filter_map(|((_, key), json)| Some((key, json.as_ref()?)));
        let gone = || self.pending.iter().rev().filter(|(_, json)| json.is_none()).map(|((_, key), _)| key);
        let mut index = self.index.clone();
        let grown = index.add_all(put().map(|(key, _)| key).filter(|key| !self.written.contains_key(*key)));
        let mut steps: Vec<Step> = grown.into_iter().map(|bucket| (bucket.clone(), index.text(&bucket))).collect();
        steps.extend(put().map(|(key, json)| (key.clone(), Some(json.clone()))));
        let count = Written { put: put().count(), deleted: gone().count() };
        steps.extend(gone().map(|key| (key.clone(), None)));
        let shrunk = index.remove_all(gone());
        steps.extend(shrunk.into_iter().map(|bucket| (bucket.clone(), index.text(&bucket))));
        (steps, index, count)
    }

    /// Carries out the steps, or puts back what was there.
    fn write(&mut self, steps: &[Step]) -> Result<(), StoreError> {
        for (done, (key, json)) in steps.iter().enumerate() {
            let result = self.version.check_owner().and_then(|()| {
                let result = match json {
                    Some(json) => self.config.store(key, json),
                    None => self.config.delete(key),
                };
                result.map_err(|e| refused("xds-config", key, e))
            });
            if let Err(e) = result {
                if e != StoreError::Lost {
                    // The step that failed may have taken the former value away.
                    self.put_back(&steps[..=done]);
                }
                return Err(e);
            }
        }
        Ok(())
    }

    /// What is new goes first: that makes the room that the former values need.
    fn put_back(&mut self, steps: &[Step]) {
        for (key, _) in steps.iter().rev().filter(|(key, _)| !self.written.contains_key(key)) {
            // Nothing reads it before the version is raised, and the next batch comes across it again.
            let _ = self.config.delete(key);
        }
        for (key, _) in steps.iter().rev() {
            let back = self.written.get(key).map(|former| self.config.store(key, former));
            if matches!(back, Some(Err(_))) {
                // What is not known to be there is written again with the next batch.
                self.written.remove(key);
            }
        }
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
