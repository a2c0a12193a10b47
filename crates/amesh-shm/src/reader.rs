//! The readers' side: processes that register once, then pin and look up.

use crate::block::{hash, Block};
use crate::cell::{target, Cell, Held, Which, UNLEDGERED};
use crate::error::Error;
use crate::layout::Region;
use crate::process::Identity;
use crate::protocol::directory::{self, Table, EMPTY};
use crate::protocol::{epoch, place};
use crate::stats::Stats;
use crate::sync::Ordering;
use crate::view::View;
use std::cell::{Cell as Local, RefCell};
use std::collections::HashSet;
use std::marker::PhantomData;

/// A formatted zone, not yet read by.
#[derive(Clone, Copy, Debug)]
pub struct Reader {
    view: View,
}

impl Reader {
    /// Looks at a zone. `layout_hash` is what [`crate::format`] was given.
    ///
    /// # Errors
    /// [`Error::NotFormatted`], [`Error::Layout`].
    pub fn attach(region: Region, layout_hash: u64) -> Result<Reader, Error> {
        Ok(Reader { view: View::open(region, layout_hash)? })
    }

    /// Takes a place for this process: in the process that will read, that is, after the fork.
    ///
    /// # Errors
    /// [`Error::WorkersFull`] when every place is taken. Those of dead processes are given back by
    /// [`crate::Writer::reclaim`].
    pub fn register(&self) -> Result<WorkerSlot, Error> {
        let own = Identity::own();
        for (at, worker) in self.view.places().zip(0..) {
            if place::take(&at.owner.0, own.0) {
                self.view.prepare_ledger(worker);
                return Ok(WorkerSlot {
                    view: self.view,
                    worker,
                    own,
                    depth: Local::new(0),
                    entries: RefCell::default(),
                    process: PhantomData,
                });
            }
        }
        Err(Error::WorkersFull(self.view.layout.max_workers))
    }

    /// Version of the zone: raised by every commit that changed something.
    pub fn version(&self) -> u64 {
        self.view.header().version.0.load(Ordering::Acquire)
    }

    /// The cell of an index; `None` when there never was one. See [`WorkerSlot::cell`].
    pub fn cell(&self, index: u32) -> Option<&Cell> {
        self.view.cell(index)
    }
}

/// Entries of the ledger that are not in use.
#[derive(Debug, Default)]
struct Entries {
    /// Entries before this one were used at least once.
    used: u32,
    returned: Vec<u32>,
}

/// A process's place in the zone. Dropped, it gives the place back, and what it still holds.
#[derive(Debug)]
pub struct WorkerSlot {
    view: View,
    worker: u32,
    own: Identity,
    depth: Local<u32>,
    entries: RefCell<Entries>,
    /// Pins are counted without atomics: one thread only.
    process: PhantomData<*const ()>,
}

impl WorkerSlot {
    /// Pins the zone: what is found stays readable until the pin is dropped. One store and a fence; a pin under a pin
    /// costs a counter. Hold it for a match and a pick, never over a turn of the event loop: it keeps memory from being
    /// used again.
    #[inline]
    pub fn pin(&self) -> Pin<'_> {
        let depth = self.depth.get();
        if depth == 0 {
            if let Some(place) = self.view.place(self.worker) {
                epoch::pin(&self.view.header().version.0, &place.pin);
            }
        }
        self.depth.set(depth + 1);
        Pin { worker: self }
    }

    /// Version of the zone: raised by every commit that changed something. One load tells that nothing did.
    #[inline]
    pub fn version(&self) -> u64 {
        self.view.header().version.0.load(Ordering::Acquire)
    }

    /// The cell of an index; `None` when there never was one.
    ///
    /// An index from a slot stays that of its key while the pin lives, and while the process holds something on it
    /// ([`WorkerSlot::acquire`]): count totals before the release.
    #[inline]
    pub fn cell(&self, index: u32) -> Option<&Cell> {
        self.view.cell(index)
    }

    /// Counts a request on a cell (`rq_total`), and as active (`rq_active`). `None` when there is no such cell.
    ///
    /// Call it under the pin that the index was read by. It is noted in this worker's ledger, so that it is given back
    /// when the worker is killed. When the ledger is full, it counts all the same, and the zone's statistics say so.
    #[inline]
    pub fn acquire(&self, cell: u32) -> Option<Held> {
        self.cell(cell)?.rq_total.fetch_add(1, Ordering::Relaxed);
        self.hold(cell, Which::Request)
    }

    /// Counts an open connection on a cell (`cx_active`), as [`WorkerSlot::acquire`].
    #[inline]
    pub fn acquire_connection(&self, cell: u32) -> Option<Held> {
        self.cell(cell)?;
        self.hold(cell, Which::Connection)
    }

    /// Counts a retry under way on a cell (`rq_retry_active`), as [`WorkerSlot::acquire`].
    #[inline]
    pub fn acquire_retry(&self, cell: u32) -> Option<Held> {
        self.cell(cell)?;
        self.hold(cell, Which::Retry)
    }

    fn hold(&self, cell: u32, which: Which) -> Option<Held> {
        let target = target(cell, which);
        let books = self.view.books(self.worker)?;
        let mut entries = self.entries.borrow_mut();
        let entry = entries.returned.pop().unwrap_or(entries.used);
        if books.acquire(&self.view, target, entry) {
            entries.used = entries.used.max(entry + 1);
            return Some(Held(entry));
        }
        self.view.header().unledgered.fetch_add(1, Ordering::Relaxed);
        books.unledgered(&self.view, target, true).then_some(Held(UNLEDGERED | target))
    }

    /// Gives back what [`WorkerSlot::acquire`] or one of its like gave, once.
    #[inline]
    pub fn release(&self, held: Held) {
        let Some(books) = self.view.books(self.worker) else { return };
        if held.0 & UNLEDGERED != 0 {
            books.unledgered(&self.view, held.0 & !UNLEDGERED, false);
        } else if books.release(&self.view, held.0) {
            self.entries.borrow_mut().returned.push(held.0);
        }
    }
}

impl Drop for WorkerSlot {
    fn drop(&mut self) {
        // A child that was forked since has a copy of this, but not the place.
        if std::process::id() != self.own.pid() {
            return;
        }
        if let Some(books) = self.view.books(self.worker) {
            books.settle(&self.view);
        }
        if let Some(place) = self.view.place(self.worker) {
            place::leave(&place.owner.0, &place.pin);
        }
    }
}

/// While it lives, all that it finds stays as it is.
#[derive(Debug)]
pub struct Pin<'a> {
    worker: &'a WorkerSlot,
}

/// One resource as it was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot<'p> {
    /// Version that the writer gave the resource.
    pub version: u64,
    /// The payload, aligned to 16 bytes.
    pub bytes: &'p [u8],
    /// Where the directory has it, for [`Pin::by_id`].
    pub id: u32,
}

impl<'p> Slot<'p> {
    fn new(id: usize, block: Block<'p>) -> Slot<'p> {
        Slot { version: block.version(), bytes: block.payload(), id: id as u32 }
    }
}

impl Pin<'_> {
    /// Finds a slot by kind and key.
    #[inline]
    pub fn get(&self, kind: u8, key: &[u8]) -> Option<Slot<'_>> {
        self.get_hashed(kind, hash(kind, key), key)
    }

    /// As [`Pin::get`], with the [`hash`] of kind and key that the caller kept.
    #[inline]
    pub fn get_hashed(&self, kind: u8, hash: u64, key: &[u8]) -> Option<Slot<'_>> {
        let (id, _, block) = self.worker.view.find(kind, hash, key)?;
        Some(Slot::new(id, block))
    }

    /// The slot that was found at `id` before, if it is still that of this hash (the caller compares versions). `None`
    /// does not mean that it is gone: entries move when others are removed. Look it up by key then.
    #[inline]
    pub fn by_id(&self, id: u32, hash: u64) -> Option<Slot<'_>> {
        let view = &self.worker.view;
        if id as usize > view.mask() {
            return None;
        }
        let word = view.entry(id as usize).load(Ordering::Acquire);
        let block = view.block(directory::block(word)).filter(|b| b.hash() == hash)?;
        Some(Slot::new(id as usize, block))
    }

    /// Figures of the zone.
    pub fn stats(&self) -> Stats {
        self.worker.view.stats()
    }

    /// All slots of a kind, in no order, with their keys: for status pages, since it looks at every entry there is.
    pub fn iter(&self, kind: u8) -> Iter<'_> {
        Iter { view: &self.worker.view, kind, entries: self.entries().into_iter() }
    }

    /// The directory's entries, each once, as they were at one time; under removals without end, as they nearly were.
    fn entries(&self) -> Vec<(usize, u32)> {
        let view = &self.worker.view;
        let mut entries = Vec::new();
        for _ in 0..100 {
            let moves = view.moves().load(Ordering::Acquire);
            let mut seen = HashSet::new();
            entries.clear();
            for index in 0..=view.mask() {
                let word = view.entry(index).load(Ordering::Acquire);
                if word != EMPTY && seen.insert(directory::block(word)) {
                    entries.push((index, directory::block(word)));
                }
            }
            if view.moves().load(Ordering::Acquire) == moves {
                break;
            }
        }
        entries
    }
}

impl Drop for Pin<'_> {
    #[inline]
    fn drop(&mut self) {
        let depth = self.worker.depth.get() - 1;
        self.worker.depth.set(depth);
        if depth == 0 {
            if let Some(place) = self.worker.view.place(self.worker.worker) {
                epoch::unpin(&place.pin);
            }
        }
    }
}

/// Slots of a kind: key and slot.
#[derive(Debug)]
pub struct Iter<'p> {
    view: &'p View,
    kind: u8,
    entries: std::vec::IntoIter<(usize, u32)>,
}

impl<'p> Iterator for Iter<'p> {
    type Item = (&'p [u8], Slot<'p>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (index, unit) = self.entries.next()?;
            if let Some(block) = self.view.block(unit).filter(|b| b.kind() == self.kind) {
                return Some((block.key(), Slot::new(index, block)));
            }
        }
    }
}
