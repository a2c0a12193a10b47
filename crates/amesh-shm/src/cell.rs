use crate::protocol::gauge;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Counters of a cluster or an endpoint, shared by all workers. A cell keeps its index as long as a slot refers to it,
/// over all updates. Names are Envoy's. Two cache lines: what each request counts, and what is mostly read.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Cell {
    /// Active requests. Changed by [`crate::WorkerSlot::acquire`] alone.
    pub rq_active: Gauge,
    /// Open connections. Changed by [`crate::WorkerSlot::acquire_connection`] alone.
    pub cx_active: Gauge,
    /// Retries under way. Changed by [`crate::WorkerSlot::acquire_retry`] alone.
    pub rq_retry_active: Gauge,
    /// Requests. [`crate::WorkerSlot::acquire`] counts one.
    pub rq_total: AtomicU64,
    /// Requests that failed.
    pub rq_error: AtomicU64,
    /// Connections that could not be opened.
    pub cx_connect_fail: AtomicU64,
    /// Position of round robin; wraps.
    pub cursor: AtomicU32,
    pub(crate) state: AtomicU32,
    /// What else is known of it at run time, in words that mean nothing here (the model says what they are). All are 0
    /// when the cell is given.
    pub words: [AtomicU32; WORDS],
    pub(crate) key: [AtomicU64; 2],
}

impl Cell {
    /// The whole of a cell that is a token bucket's: one number, 0 when the cell is given.
    pub fn bucket(&self) -> &AtomicU64 {
        &self.rq_total
    }
}

/// Words of a [`Cell`].
pub const WORDS: usize = 14;

/// A number that goes up and down, and is right again when one of those who count is killed.
#[repr(transparent)]
#[derive(Debug, Default)]
pub struct Gauge(pub(crate) AtomicU64);

impl Gauge {
    /// The number.
    #[inline]
    pub fn load(&self, order: Ordering) -> u32 {
        gauge::count(self.0.load(order))
    }
}

/// What [`crate::WorkerSlot::acquire`] counted, to be given to [`crate::WorkerSlot::release`] once. A plain number, for a
/// field of a C struct.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Held(pub u32);

/// Marks a [`Held`] that is in no ledger; the rest is the target.
pub(crate) const UNLEDGERED: u32 = 1 << 31;

/// Most cells: a target has two more bits, and one is kept for [`UNLEDGERED`].
pub(crate) const MAX_CELLS: u32 = 1 << 28;

/// A gauge of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Request = 0,
    Connection = 1,
    Retry = 2,
}

/// Which gauge of which cell.
pub(crate) fn target(cell: u32, which: Which) -> u32 {
    cell << 2 | which as u32
}

/// What [`Cell::state`] says.
pub(crate) mod state {
    /// Nobody's.
    pub(crate) const FREE: u32 = 0;
    /// Given by key, no slot has referred to it yet: kept.
    pub(crate) const GIVEN: u32 = 1;
    /// Slots referred to it: free when none does any more.
    pub(crate) const REFERRED: u32 = 2;
}

impl Cell {
    /// Makes a free cell that of a key.
    pub(crate) fn begin(&self, key: u128) {
        for counter in [&self.rq_total, &self.rq_error, &self.cx_connect_fail] {
            counter.store(0, Ordering::Relaxed);
        }
        self.cursor.store(0, Ordering::Relaxed);
        self.words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        self.key[0].store(key as u64, Ordering::Relaxed);
        self.key[1].store((key >> 64) as u64, Ordering::Relaxed);
        self.state.store(state::GIVEN, Ordering::Release);
    }

    /// Hash of the key.
    pub(crate) fn key(&self) -> u128 {
        u128::from(self.key[1].load(Ordering::Relaxed)) << 64 | u128::from(self.key[0].load(Ordering::Relaxed))
    }

    /// Whether nobody counts on it.
    pub(crate) fn is_idle(&self) -> bool {
        [&self.rq_active, &self.cx_active, &self.rq_retry_active].iter().all(|g| g.load(Ordering::Acquire) == 0)
    }

    /// A gauge by the low bits of a target.
    pub(crate) fn gauge(&self, target: u32) -> Option<&Gauge> {
        match target & 3 {
            0 => Some(&self.rq_active),
            1 => Some(&self.cx_active),
            2 => Some(&self.rq_retry_active),
            _ => None,
        }
    }
}

const _: () = assert!(size_of::<Cell>() == 128);
