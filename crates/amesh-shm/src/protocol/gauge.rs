//! Gauges that stay right when a process is killed between any two instructions.
//!
//! A gauge is changed by all workers; what each of them holds is in its own ledger, so that the writer can give a dead
//! worker's share back. Between the change of the gauge and the note in the ledger the worker may be killed: was it
//! counted or not? So a worker says first what it is about to do (its *operation*, with a sequence number), and the
//! gauge's word carries who changed it last, with that number. Whoever changes the word after another worker first
//! confirms the other's number in the other's place. Hence an interrupted operation took place exactly if the word still
//! carries its number, or if it was confirmed.

use crate::sync::{crash_point, AtomicU32, AtomicU64, Ordering};

/// The most workers that a gauge's word can tell apart.
pub const MAX_WORKERS: u32 = (1 << 10) - 1;

const COUNT_SHIFT: u32 = 42;
const WORKER_SHIFT: u32 = 32;
const IDLE: u64 = 0;
const ACQUIRE: u64 = 1;
const RELEASE: u64 = 2;
/// An entry of a ledger that holds nothing; otherwise it is a target plus one.
const FREE: u32 = 0;

/// The count in a gauge's word.
#[inline]
pub fn count(word: u64) -> u32 {
    (word >> COUNT_SHIFT) as u32
}

/// Last worker (index plus one, 0 is nobody) and its sequence number.
fn last(word: u64) -> (u32, u32) {
    ((word >> WORKER_SHIFT) as u32 & MAX_WORKERS, word as u32)
}

/// An operation under way: kind, entry of the ledger, sequence number.
fn operation(kind: u64, entry: u32, sequence: u32) -> u64 {
    kind << 62 | u64::from(entry) << 32 | u64::from(sequence)
}

/// Where the gauges are, and who confirms what.
pub trait Gauges {
    /// The word of a gauge; `None` for a target that does not exist.
    fn word(&self, target: u32) -> Option<&AtomicU64>;
    /// The highest sequence number of a worker that others confirmed.
    fn confirmed(&self, worker: u32) -> Option<&AtomicU32>;
}

/// A worker's own books.
#[derive(Clone, Copy)]
pub struct Books<'a> {
    /// Index of the worker, below [`MAX_WORKERS`].
    pub worker: u32,
    /// The operation under way. Its sequence number goes on over the lives of all workers in this place.
    pub operation: &'a AtomicU64,
    /// What the worker holds.
    pub ledger: &'a [AtomicU32],
}

fn change(gauges: &impl Gauges, word: &AtomicU64, by: (u32, u32), change: impl Fn(u32) -> u32) {
    let mut now = word.load(Ordering::Acquire);
    loop {
        let (worker, sequence) = last(now);
        if worker != 0 && worker != by.0 {
            if let Some(confirmed) = gauges.confirmed(worker - 1) {
                confirm(confirmed, sequence);
            }
        }
        let next = u64::from(change(count(now))) << COUNT_SHIFT | u64::from(by.0) << WORKER_SHIFT | u64::from(by.1);
        match word.compare_exchange_weak(now, next, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return,
            Err(seen) => now = seen,
        }
    }
}

/// Raises a confirmed number; numbers wrap.
fn confirm(confirmed: &AtomicU32, sequence: u32) {
    let mut now = confirmed.load(Ordering::Acquire);
    while sequence.wrapping_sub(now) as i32 > 0 {
        match confirmed.compare_exchange_weak(now, sequence, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return,
            Err(seen) => now = seen,
        }
    }
}

fn up(count: u32) -> u32 {
    // 22 bits.
    (count + 1).min(u32::MAX >> 10)
}

fn down(count: u32) -> u32 {
    count.saturating_sub(1)
}

impl Books<'_> {
    fn next_sequence(&self) -> u32 {
        (self.operation.load(Ordering::Relaxed) as u32).wrapping_add(1)
    }

    /// Counts up a gauge and notes it in a free entry of the ledger. `false` when there is no such gauge or entry.
    pub fn acquire(&self, gauges: &impl Gauges, target: u32, entry: u32) -> bool {
        let (Some(word), Some(held)) = (gauges.word(target), self.ledger.get(entry as usize)) else { return false };
        let sequence = self.next_sequence();
        self.operation.store(operation(ACQUIRE, entry, sequence), Ordering::Release);
        crash_point();
        held.store(target + 1, Ordering::Release);
        crash_point();
        change(gauges, word, (self.worker + 1, sequence), up);
        crash_point();
        self.operation.store(operation(IDLE, 0, sequence), Ordering::Release);
        true
    }

    /// Gives back what an entry of the ledger holds. `false` when it holds nothing.
    pub fn release(&self, gauges: &impl Gauges, entry: u32) -> bool {
        let Some(held) = self.ledger.get(entry as usize) else { return false };
        let target = held.load(Ordering::Relaxed);
        if target == FREE {
            return false;
        }
        let Some(word) = gauges.word(target - 1) else { return false };
        let sequence = self.next_sequence();
        self.operation.store(operation(RELEASE, entry, sequence), Ordering::Release);
        crash_point();
        change(gauges, word, (self.worker + 1, sequence), down);
        crash_point();
        held.store(FREE, Ordering::Release);
        crash_point();
        self.operation.store(operation(IDLE, 0, sequence), Ordering::Release);
        true
    }

    /// Counts up or down without the ledger: what is lost when the worker is killed stays lost.
    pub fn unledgered(&self, gauges: &impl Gauges, target: u32, more: bool) -> bool {
        let Some(word) = gauges.word(target) else { return false };
        let sequence = self.next_sequence();
        self.operation.store(operation(IDLE, 0, sequence), Ordering::Release);
        change(gauges, word, (self.worker + 1, sequence), if more { up } else { down });
        true
    }

    /// Gives back all that a worker holds which runs no more (or which calls this itself). Returns how many.
    pub fn settle(&self, gauges: &impl Gauges) -> u32 {
        let open = self.operation.load(Ordering::Acquire);
        let (kind, sequence) = (open >> 62, open as u32);
        let entry = (open >> 32) as u32 & (u32::MAX >> 2);
        let mut returned = 0;
        for (index, held) in self.ledger.iter().enumerate() {
            let target = held.load(Ordering::Acquire);
            if target == FREE {
                continue;
            }
            if let Some(word) = gauges.word(target - 1) {
                let interrupted = kind != IDLE && index == entry as usize;
                let counted = !interrupted || (kind == ACQUIRE) == self.took_place(gauges, word, sequence);
                if counted {
                    change(gauges, word, (0, 0), down);
                    returned += 1;
                }
            }
            held.store(FREE, Ordering::Release);
        }
        self.operation.store(operation(IDLE, 0, sequence), Ordering::Release);
        returned
    }

    /// Whether an operation took place that its worker could not finish. The word is read before the confirmation: it is
    /// confirmed before it is overwritten.
    fn took_place(&self, gauges: &impl Gauges, word: &AtomicU64, sequence: u32) -> bool {
        last(word.load(Ordering::Acquire)) == (self.worker + 1, sequence)
            || gauges.confirmed(self.worker).is_some_and(|c| c.load(Ordering::Acquire) == sequence)
    }
}
