//! Random updates against a plain map: what is in the zone, what is refused, and where every byte is.

mod common;

use amesh_shm::{Batch, Error, Options, Pin};
use common::Memory;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::HashMap;

/// kind, key → version, payload, cells (key and index).
type Model = HashMap<(u8, Vec<u8>), (u64, Vec<u8>, Vec<(u8, u32)>)>;

/// A pin, and what it found: address and bytes.
type Pinned<'a> = (Pin<'a>, Vec<(usize, Vec<u8>)>);

#[derive(Debug, Clone)]
enum Change {
    Put { key: u8, fill: u8, len: usize, cells: Vec<u8> },
    Remove { key: u8 },
}

#[derive(Debug, Clone)]
enum Step {
    Commit(Vec<Change>),
    /// The writer starts again.
    Attach,
    Pin(usize),
    Unpin(usize),
}

fn change() -> impl Strategy<Value = Change> {
    // Few contents, so that some change nothing.
    let put = (any::<u8>(), 0..3u8, prop_oneof![4 => 0..200usize, 1 => 200..9000usize], vec(0..12u8, 0..3));
    prop_oneof![
        3 => put.prop_map(|(key, fill, len, cells)| Change::Put { key: key % 40, fill, len, cells }),
        1 => any::<u8>().prop_map(|key| Change::Remove { key: key % 40 }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => vec(change(), 0..12).prop_map(Step::Commit),
        1 => Just(Step::Attach),
        1 => (0..2usize).prop_map(Step::Pin),
        2 => (0..2usize).prop_map(Step::Unpin),
    ]
}

/// Two kinds, and keys of several lengths.
fn name(key: u8) -> (u8, Vec<u8>) {
    (key % 2, vec![key; usize::from(key % 7)].into_iter().chain(key.to_string().into_bytes()).collect())
}

fn padded(len: usize) -> usize {
    len.div_ceil(16) * 16
}

/// Bytes of a block.
fn block((_, key): &(u8, Vec<u8>), (_, payload, cells): &(u64, Vec<u8>, Vec<(u8, u32)>)) -> usize {
    padded((48 + payload.len() + key.len()).next_multiple_of(4) + 4 * cells.len())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_zone_is_what_a_map_would_be(steps in vec(step(), 1..60)) {
        let options = Options { max_workers: 2, ledger_entries: 4, max_cells: 12, max_slots: 30 };
        let memory = Memory::new(40 << 10, options);
        let mut writer = memory.writer();
        let mut model = Model::new();
        let mut version = 0;
        let mut rejected = 0;
        let mut cells: HashMap<u8, u32> = HashMap::new();
        let workers = [memory.worker(), memory.worker()];
        let reader = &workers[0];
        let mut pins: [Option<Pinned>; 2] = [None, None];

        for step in steps {
            match step {
                Step::Attach => {
                    let zone = writer.stats().version;
                    writer = memory.writer();
                    prop_assert!(writer.stats().version > zone);
                }
                Step::Pin(worker) => {
                    let pin = workers[worker].pin();
                    let found = (0..2).flat_map(|kind| pin.iter(kind))
                        .map(|(_, slot)| (slot.bytes.as_ptr() as usize, slot.bytes.to_vec())).collect();
                    pins[worker] = Some((pin, found));
                }
                Step::Unpin(worker) => {
                    pins[worker] = None;
                    writer.reclaim();
                }
                Step::Commit(changes) => {
                    version += 1;
                    let before = writer.stats();
                    let mut batch = Batch::new();
                    let mut last: HashMap<u8, (usize, Change)> = HashMap::new();
                    for (place, change) in changes.into_iter().enumerate() {
                        match &change {
                            Change::Put { key, fill, len, cells: named } => {
                                let (kind, key) = name(*key);
                                let mut indices = Vec::new();
                                for cell in named {
                                    let index = writer.cell(&[*cell]).unwrap();
                                    indices.push(index);
                                    cells.insert(*cell, index);
                                }
                                batch.put_with_cells(kind, &key, version, &vec![*fill; *len], &indices);
                            }
                            Change::Remove { key } => {
                                let (kind, key) = name(*key);
                                batch.remove(kind, &key);
                            }
                        }
                        let (Change::Put { key, .. } | Change::Remove { key }) = change;
                        last.insert(key, (place, change));
                    }
                    // The last word on a key counts; equal bytes keep their version.
                    let mut expected = model.clone();
                    let (mut written, mut unchanged, mut removed, mut new, mut bytes) = (0, 0, 0, 0, 0);
                    for (key, (_, change)) in last {
                        let name = name(key);
                        match change {
                            Change::Put { fill, len, cells: named, .. } => {
                                let indices = named.iter().map(|cell| (*cell, cells[cell])).collect();
                                let slot = (version, vec![fill; len], indices);
                                match model.get(&name) {
                                    Some(old) if old.1 == slot.1 && old.2 == slot.2 => unchanged += 1,
                                    old => {
                                        new += usize::from(old.is_none());
                                        written += 1;
                                        bytes += block(&name, &slot);
                                        expected.insert(name, slot);
                                    }
                                }
                            }
                            Change::Remove { .. } => removed += usize::from(expected.remove(&name).is_some()),
                        }
                    }
                    let held = pins.iter().any(|p| p.is_some());
                    match writer.commit(&batch) {
                        Ok(done) => {
                            prop_assert_eq!(done.unchanged, unchanged);
                            prop_assert_eq!((done.written, done.removed, done.bytes), (written, removed, bytes));
                            let more = u64::from(written + removed > 0);
                            prop_assert_eq!(done.version, before.version + more);
                            model = expected;
                        }
                        Err(Error::Full { needed, available, largest, .. }) => {
                            rejected += 1;
                            prop_assert_eq!(needed, bytes);
                            prop_assert!(needed > available || largest < needed);
                            prop_assert!(!held || available as u64 >= before.free);
                        }
                        Err(Error::SlotsFull { needed, available }) => {
                            rejected += 1;
                            prop_assert_eq!((needed, available), (new, 30 - model.len()));
                            prop_assert!(needed > available);
                        }
                        Err(e) => prop_assert!(false, "{}", e),
                    }
                }
            }

            let stats = writer.stats();
            let used: usize = model.iter().map(|(name, slot)| block(name, slot)).sum();
            prop_assert_eq!((stats.used, stats.slots), (used as u64, model.len() as u64));
            prop_assert_eq!(stats.used + stats.free + stats.retired, stats.capacity);
            if pins.iter().all(|p| p.is_none()) {
                prop_assert_eq!(stats.retired, 0);
            }
            prop_assert_eq!(stats.full_rejections, rejected);
            for (_, found) in pins.iter().flatten() {
                for (at, bytes) in found {
                    // SAFETY: found under a pin that still lives.
                    let now = unsafe { std::slice::from_raw_parts(*at as *const u8, bytes.len()) };
                    prop_assert_eq!(now, &bytes[..]);
                }
            }
            if pins[0].is_none() {
                let pin = reader.pin();
                for key in 0..40 {
                    let (kind, key) = name(key);
                    let slot = pin.get(kind, &key).map(|slot| (slot.version, slot.bytes));
                    let expected = model.get(&(kind, key)).map(|(version, bytes, _)| (*version, &bytes[..]));
                    prop_assert_eq!(slot, expected);
                }
                let all: usize = (0..2).map(|kind| pin.iter(kind).count()).sum();
                prop_assert_eq!(all, model.len());
            }
            // A cell that a slot names is still that of its key.
            for (_, _, named) in model.values() {
                for (key, index) in named {
                    prop_assert_eq!(writer.cell(&[*key]).unwrap(), *index);
                }
            }
        }
    }
}
