//! From the module's slots to batches: what has changed since the last look.

use amesh_model::batch::{Batch, Item, Value};
use amesh_model::Kind;
use rkyv::rancor::Error as ArchiveError;
use rkyv::util::AlignedVec;
use std::collections::HashMap;

/// Why slots could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotsError {
    /// This process reads no zone, or not yet.
    #[error("ngx_amesh_module is loaded and has no zone: add an \"amesh\" block, or set AMESH_XDS_ADDRESS")]
    NoZone,
    /// The module's own defect.
    #[error("ngx_amesh_module cannot read its zone: code {0}")]
    Failed(i32),
    /// What was read makes no sense.
    #[error("{0}: {1}")]
    Archive(String, String),
}

/// A slot in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// The zone's version when it was written.
    pub version: u64,
}

/// Where slots are read.
pub trait Slots {
    /// The zone's version.
    ///
    /// # Errors
    /// [`SlotsError`].
    fn version(&self) -> Result<u64, SlotsError>;

    /// Whether any source has said anything.
    fn is_ready(&self) -> bool;

    /// All slots of a kind.
    ///
    /// # Errors
    /// [`SlotsError`].
    fn list(&self, kind: Kind) -> Result<Vec<Listed>, SlotsError>;

    /// A slot's bytes; `false` if it is gone.
    ///
    /// # Errors
    /// [`SlotsError`].
    fn copy(&self, kind: Kind, name: &str, into: &mut AlignedVec) -> Result<bool, SlotsError>;
}

/// What was read so far.
pub struct Bridge<S> {
    slots: S,
    /// The zone's version at the last look.
    version: u64,
    seen: HashMap<(Kind, String), u64>,
}

impl<S: Slots> Bridge<S> {
    /// Nothing is read yet.
    pub fn new(slots: S) -> Bridge<S> {
        Bridge { slots, version: 0, seen: HashMap::new() }
    }

    /// What has changed; `None` if nothing has, or nothing is there yet.
    ///
    /// # Errors
    /// [`SlotsError`]; the next look finds the same changes.
    pub fn look(&mut self) -> Result<Option<Batch>, SlotsError> {
        // Asked first: what is written from here on has a larger one, and the next look comes across it.
        let version = self.slots.version()?;
        if version == self.version || !self.slots.is_ready() {
            return Ok(None);
        }
        let mut batch = Batch::default();
        let mut now = HashMap::new();
        let mut bytes = AlignedVec::new();
        for kind in Kind::ALL {
            for Listed { name, version } in self.slots.list(kind)? {
                let key = (kind, name);
                if self.seen.get(&key) != Some(&version) {
                    if !self.slots.copy(kind, &key.1, &mut bytes)? {
                        continue;
                    }
                    let value = value(kind, &bytes)
                        .map_err(|e| SlotsError::Archive(format!("{kind:?} {}", key.1), e.to_string()))?;
                    batch.put.push(Item { kind, name: key.1.clone(), version: version.to_string(), value });
                }
                now.insert(key, version);
            }
        }
        let gone = |kind: Kind| {
            let mut names: Vec<_> =
                self.seen.keys().filter(|key| key.0 == kind && !now.contains_key(*key)).cloned().collect();
            names.sort();
            names
        };
        batch.remove = Kind::ALL.into_iter().rev().flat_map(gone).collect();
        self.seen = now;
        self.version = version;
        Ok((!batch.put.is_empty() || !batch.remove.is_empty()).then_some(batch))
    }
}

/// A slot as the model has it.
fn value(kind: Kind, bytes: &AlignedVec) -> Result<Value, ArchiveError> {
    Ok(match kind {
        Kind::Listener => Value::Listener(rkyv::from_bytes::<_, ArchiveError>(bytes)?),
        Kind::RouteTable => Value::RouteTable(rkyv::from_bytes::<_, ArchiveError>(bytes)?),
        Kind::Cluster => Value::Cluster(rkyv::from_bytes::<_, ArchiveError>(bytes)?),
        Kind::EndpointSet => Value::EndpointSet(rkyv::from_bytes::<_, ArchiveError>(bytes)?),
        Kind::ListenerIndex => Value::ListenerIndex(rkyv::from_bytes::<_, ArchiveError>(bytes)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use amesh_model::endpoint::EndpointSet;
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    /// A zone of endpoint sets; each has as its name what it is of.
    #[derive(Default)]
    struct Fake {
        version: u64,
        slots: BTreeMap<(Kind, String), (u64, AlignedVec)>,
        copied: RefCell<Vec<String>>,
    }

    impl Fake {
        fn put(&mut self, name: &str) {
            self.version += 1;
            let set = EndpointSet { cluster: name.to_owned(), ..EndpointSet::default() };
            let bytes = rkyv::to_bytes::<ArchiveError>(&set).unwrap();
            self.slots.insert((Kind::EndpointSet, name.to_owned()), (self.version, bytes));
        }

        fn remove(&mut self, name: &str) {
            self.version += 1;
            self.slots.remove(&(Kind::EndpointSet, name.to_owned()));
        }
    }

    impl Slots for Fake {
        fn version(&self) -> Result<u64, SlotsError> {
            Ok(self.version)
        }
        fn is_ready(&self) -> bool {
            !self.slots.is_empty()
        }
        fn list(&self, kind: Kind) -> Result<Vec<Listed>, SlotsError> {
            let of = self.slots.iter().filter(|((k, _), _)| *k == kind);
            Ok(of.map(|((_, name), (version, _))| Listed { name: name.clone(), version: *version }).collect())
        }
        fn copy(&self, kind: Kind, name: &str, into: &mut AlignedVec) -> Result<bool, SlotsError> {
            self.copied.borrow_mut().push(name.to_owned());
            let Some((_, bytes)) = self.slots.get(&(kind, name.to_owned())) else { return Ok(false) };
            into.clear();
            into.extend_from_slice(bytes);
            Ok(true)
        }
    }

    fn names(batch: &Batch) -> (Vec<&str>, Vec<&str>) {
        (batch.put.iter().map(|i| i.name.as_str()).collect(), batch.remove.iter().map(|r| r.1.as_str()).collect())
    }

    #[test]
    fn only_what_has_changed_is_copied() {
        let mut bridge = Bridge::new(Fake::default());
        bridge.slots.version = 1;
        assert_eq!(bridge.look(), Ok(None), "nothing is there yet");
        bridge.slots.put("a");
        bridge.slots.put("b");
        let batch = bridge.look().unwrap().unwrap();
        assert_eq!(names(&batch), (vec!["a", "b"], vec![]));
        assert!(matches!(&batch.put[0].value, Value::EndpointSet(set) if set.cluster == "a"));
        assert_eq!(bridge.look(), Ok(None));
        bridge.slots.copied.borrow_mut().clear();
        bridge.slots.put("b");
        bridge.slots.remove("a");
        assert_eq!(names(&bridge.look().unwrap().unwrap()), (vec!["b"], vec!["a"]));
        assert_eq!(*bridge.slots.copied.borrow(), ["b"]);
        bridge.slots.version += 1;
        assert_eq!(bridge.look(), Ok(None), "nothing of the mesh has changed");
    }

    #[test]
    fn bytes_that_make_no_sense_are_an_error_and_not_read_past() {
        let mut bridge = Bridge::new(Fake::default());
        bridge.slots.put("a");
        let (_, bytes) = bridge.slots.slots.values_mut().next().unwrap();
        bytes.iter_mut().for_each(|b| *b = 0xff);
        assert!(matches!(bridge.look(), Err(SlotsError::Archive(name, _)) if name.ends_with(" a")));
    }
}
