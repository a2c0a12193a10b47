//! Models of the protocol: loom runs every order of steps that the memory model allows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p amesh-shm --test loom --release`
#![cfg(loom)]

use amesh_shm::protocol::crash::killed_after;
use amesh_shm::protocol::directory::{self, Table};
use amesh_shm::protocol::gauge::{count, Books, Gauges};
use amesh_shm::protocol::{epoch, place};
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use loom::sync::Arc;
use loom::thread;

/// A zone of four entries and three blocks. A block holds key and value; loom fails a model in which one process writes
/// a block while another may read it.
struct Zone {
    version: AtomicU64,
    moves: AtomicU64,
    entries: [AtomicU64; 4],
    blocks: [UnsafeCell<(u64, u64)>; 4],
    pins: [AtomicU64; 2],
    owner: AtomicU64,
}

// SAFETY: loom looks after the cells.
unsafe impl Sync for Zone {}
// SAFETY: as above.
unsafe impl Send for Zone {}

impl Table for Zone {
    fn mask(&self) -> usize {
        3
    }
    fn entry(&self, index: usize) -> &AtomicU64 {
        &self.entries[index]
    }
    fn moves(&self) -> &AtomicU64 {
        &self.moves
    }
}

/// All keys have their home at entry 0.
fn hash(key: u64) -> u64 {
    key << 32
}

impl Zone {
    fn new() -> Arc<Zone> {
        Arc::new(Zone {
            version: AtomicU64::new(1),
            moves: AtomicU64::new(0),
            entries: std::array::from_fn(|_| AtomicU64::new(0)),
            blocks: std::array::from_fn(|_| UnsafeCell::new((0, 0))),
            pins: std::array::from_fn(|_| AtomicU64::new(0)),
            owner: AtomicU64::new(0),
        })
    }

    fn read(&self, block: u32) -> (u64, u64) {
        // SAFETY: loom looks after it.
        self.blocks[block as usize].with(|p| unsafe { *p })
    }

    fn write(&self, block: u32, key: u64, value: u64) {
        // SAFETY: loom looks after it.
        self.blocks[block as usize].with_mut(|p| unsafe { *p = (key, value) });
    }

    fn find(&self, key: u64) -> Option<(usize, u64)> {
        let (index, block) = directory::find(self, hash(key), |block| self.read(block).0 == key)?;
        let (found, value) = self.read(block);
        assert_eq!(found, key);
        Some((index, value))
    }

    /// What a worker does for a request.
    fn look_up(&self, worker: usize, key: u64) -> Option<u64> {
        epoch::pin(&self.version, &self.pins[worker]);
        let value = self.find(key).map(|(_, value)| value);
        epoch::unpin(&self.pins[worker]);
        value
    }

    fn publish(&self, key: u64, value: u64, block: u32) {
        self.write(block, key, value);
        match directory::find(self, hash(key), |block| self.read(block).0 == key) {
            Some((index, _)) => directory::swing(self, index, hash(key), block),
            None => assert!(directory::insert(self, hash(key), block)),
        }
    }

    fn remove(&self, key: u64) {
        let (index, _) = self.find(key).unwrap();
        directory::remove(self, index, |block| hash(self.read(block).0));
    }

    fn is_free(&self, retired_at: u64) -> bool {
        retired_at < epoch::oldest(self.pins.iter())
    }
}

#[test]
fn a_reader_sees_one_block_whole_and_never_one_that_is_written_again() {
    loom::model(|| {
        let zone = Zone::new();
        zone.publish(7, 1, 1);
        let reader = {
            let zone = zone.clone();
            thread::spawn(move || {
                let first = zone.look_up(0, 7).unwrap();
                let second = zone.look_up(0, 7).unwrap();
                assert!((1..=3).contains(&first) && first <= second && second <= 3);
            })
        };
        zone.publish(7, 2, 2);
        let retired_at = epoch::advance(&zone.version);
        if zone.is_free(retired_at) {
            zone.publish(7, 3, 1);
            epoch::advance(&zone.version);
        }
        reader.join().unwrap();
        assert!(zone.is_free(retired_at), "all have moved on");
    });
}

#[test]
fn two_readers_hold_back_what_either_reads() {
    loom::model(|| {
        let zone = Zone::new();
        zone.publish(7, 1, 1);
        let readers = [0, 1].map(|worker| {
            let zone = zone.clone();
            thread::spawn(move || assert!((1..=2).contains(&zone.look_up(worker, 7).unwrap())))
        });
        zone.publish(7, 2, 2);
        let retired_at = epoch::advance(&zone.version);
        if zone.is_free(retired_at) {
            zone.write(1, 0, 0);
        }
        for reader in readers {
            reader.join().unwrap();
        }
    });
}

#[test]
fn an_entry_that_moves_is_found_all_the_time() {
    loom::model(|| {
        let zone = Zone::new();
        zone.publish(7, 1, 1);
        zone.publish(8, 1, 2);
        let reader = {
            let zone = zone.clone();
            thread::spawn(move || {
                assert_eq!(zone.look_up(0, 8), Some(1));
                assert!(matches!(zone.look_up(0, 7), None | Some(1)));
            })
        };
        zone.remove(7);
        let retired_at = epoch::advance(&zone.version);
        // Another key takes the place that 8 left.
        zone.publish(9, 1, 3);
        if zone.is_free(retired_at) {
            zone.write(1, 0, 0);
        }
        reader.join().unwrap();
        assert_eq!((zone.find(7), zone.find(8).is_some(), zone.find(9).is_some()), (None, true, true));
    });
}

#[test]
fn a_dead_workers_pin_is_cleared_and_its_place_taken_again() {
    loom::model(|| {
        let zone = Zone::new();
        zone.publish(7, 1, 1);
        assert!(place::take(&zone.owner, 1));
        let dead = {
            let zone = zone.clone();
            // Killed right after it has pinned.
            thread::spawn(move || assert!(!killed_after(0, || assert_eq!(zone.look_up(0, 7), None))))
        };
        let next = {
            let zone = zone.clone();
            thread::spawn(move || {
                if place::take(&zone.owner, 2) {
                    assert!((2..=3).contains(&zone.look_up(0, 7).unwrap()), "the place is free after the first update");
                }
            })
        };
        zone.publish(7, 2, 2);
        let retired_at = epoch::advance(&zone.version);
        dead.join().unwrap();
        assert!(!place::reap(&zone.owner, 3), "not this one's place");
        assert!(place::reap(&zone.owner, 1));
        place::leave(&zone.owner, &zone.pins[0]);
        assert!(zone.is_free(retired_at), "who took the place since pins a newer version");
        zone.publish(7, 3, 1);
        // Clearing the dead worker's pin must not clear that of the next one.
        let retired_at = epoch::advance(&zone.version);
        if zone.is_free(retired_at) {
            zone.write(2, 0, 0);
        }
        next.join().unwrap();
    });
}

/// One gauge, two workers with two entries each.
struct Counters {
    gauge: AtomicU64,
    operations: [AtomicU64; 2],
    ledgers: [[AtomicU32; 2]; 2],
    confirmed: [AtomicU32; 2],
}

impl Gauges for Counters {
    fn word(&self, target: u32) -> Option<&AtomicU64> {
        (target == 0).then_some(&self.gauge)
    }
    fn confirmed(&self, worker: u32) -> Option<&AtomicU32> {
        self.confirmed.get(worker as usize)
    }
}

impl Counters {
    fn books(&self, worker: u32) -> Books<'_> {
        let ledger = &self.ledgers[worker as usize];
        Books { worker, operation: &self.operations[worker as usize], ledger }
    }
}

/// The first worker is killed after `steps` steps of `work`; the second counts up `more` times and down once.
fn killed_while_counting(steps: u32, more: u32, work: fn(&Counters)) {
    // Every order with this many involuntary switches, as loom's authors advise for models of this size.
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let counters = Arc::new(Counters {
            gauge: AtomicU64::new(0),
            operations: std::array::from_fn(|_| AtomicU64::new(0)),
            ledgers: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU32::new(0))),
            confirmed: std::array::from_fn(|_| AtomicU32::new(0)),
        });
        let killed = {
            let counters = counters.clone();
            thread::spawn(move || {
                killed_after(steps, || work(&counters));
            })
        };
        let lives = {
            let counters = counters.clone();
            thread::spawn(move || {
                for entry in 0..more {
                    assert!(counters.books(1).acquire(&*counters, 0, entry));
                }
                assert!(counters.books(1).release(&*counters, 0));
            })
        };
        killed.join().unwrap();
        counters.books(0).settle(&*counters);
        assert_eq!(counters.books(0).settle(&*counters), 0, "nothing is given back twice");
        lives.join().unwrap();
        assert_eq!(count(counters.gauge.load(Ordering::Relaxed)), more - 1);
    });
}

#[test]
fn a_worker_killed_while_it_counts_up_leaves_nothing() {
    for steps in 0..4 {
        killed_while_counting(steps, 2, |c| assert!(c.books(0).acquire(c, 0, 1)));
    }
}

#[test]
fn a_worker_killed_while_it_counts_down_leaves_nothing() {
    for steps in 3..7 {
        killed_while_counting(steps, 1, |c| {
            assert!(c.books(0).acquire(c, 0, 1));
            assert!(c.books(0).release(c, 1));
        });
    }
}
