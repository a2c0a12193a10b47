//! What worker processes do: pin, find, read, count.

use crate::cell::Cell;
use crate::directory::Directory;
use crate::layout::{check, Header, Region, WorkerEntry};
use crate::{epoch, hash, process, Error};
use std::cell::{Cell as Local, RefCell};
use std::sync::atomic::{AtomicU32, Ordering};

/// A zone that can be read.
#[derive(Clone, Copy)]
pub struct Reader {
    region: Region,
    header: &'static Header,
}

impl Reader {
    /// Opens a zone that [`crate::format`] laid out.
    ///
    /// # Errors
    /// [`Error::Layout`] when it is not one, or of another build.
    pub fn attach(region: Region, layout_hash: u64) -> Result<Reader, Error> {
        Ok(Reader { region, header: check(region, layout_hash)? })
    }

    /// Takes a place among the readers, for this process. After a fork the child takes one of its own.
    ///
    /// # Errors
    /// [`Error::TableFull`] when there are more readers than the zone was laid out for.
    pub fn register(&self) -> Result<WorkerSlot, Error> {
        let workers = self.header.workers(self.region);
        let pid = std::process::id();
        let start_time = process::start_time(pid).unwrap_or(0);
        for (index, entry) in workers.iter().enumerate() {
            if entry.pid.compare_exchange(0, pid, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            entry.start_time.store(start_time, Ordering::Release);
            entry.pinned.store(0, Ordering::Release);
            let ledger = self.header.ledger(self.region, index);
            let free = (0..ledger.len() as u32).rev().collect();
            return Ok(WorkerSlot {
                reader: *self,
                entry,
                ledger,
                cells: self.header.cells(self.region),
                directory: Directory::new(self.region),
                depth: Local::new(0),
                free: RefCell::new(free),
                pid,
            });
        }
        Err(Error::TableFull { what: "places of workers", capacity: workers.len() })
    }

    /// The zone's version: one more with every commit, 0 before the first.
    pub fn version(&self) -> u64 {
        self.header.version.0.load(Ordering::Acquire)
    }
}

/// A process's place among the readers. Not for several threads.
pub struct WorkerSlot {
    reader: Reader,
    entry: &'static WorkerEntry,
    ledger: &'static [AtomicU32],
    cells: &'static [Cell],
    directory: Directory,
    depth: Local<u32>,
    /// Entries of the ledger that are free.
    free: RefCell<Vec<u32>>,
    pid: u32,
}

/// An active request that was counted: the cell, and where it stands in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    cell: u32,
    /// `u32::MAX`: the ledger was full.
    entry: u32,
}

impl WorkerSlot {
    /// Pins what is published now: it stays as long as the result, which must not live long.
    pub fn pin(&self) -> Pin<'_> {
        if self.depth.replace(self.depth.get() + 1) == 0 {
            epoch::pin(&self.entry.pinned, &self.reader.header.epoch.0);
        }
        Pin { worker: self }
    }

    /// The zone's version, see [`Reader::version`].
    pub fn version(&self) -> u64 {
        self.reader.version()
    }

    /// The counters of an index, `None` when it is out of range.
    pub fn cell(&self, index: u32) -> Option<&Cell> {
        self.cells.get(index as usize)
    }

    /// Counts an active request (`rq_active`, `rq_total`), so that it is given back even if this process is killed.
    /// `None` when the cell is out of range.
    pub fn acquire(&self, cell: u32) -> Option<Held> {
        let counters = self.cell(cell)?;
        counters.rq_total.fetch_add(1, Ordering::Relaxed);
        // Counted before it is written down: who is killed between the two leaves one too many, never one too few.
        counters.rq_active.fetch_add(1, Ordering::Relaxed);
        let entry = match self.free.borrow_mut().pop() {
            Some(entry) => {
                self.ledger[entry as usize].store(cell + 1, Ordering::Release);
                entry
            }
            None => {
                self.reader.header.unledgered.fetch_add(1, Ordering::Relaxed);
                u32::MAX
            }
        };
        Some(Held { cell, entry })
    }

    /// Gives back what [`WorkerSlot::acquire`] counted.
    pub fn release(&self, held: Held) {
        if let Some(entry) = self.ledger.get(held.entry as usize) {
            entry.store(0, Ordering::Release);
            self.free.borrow_mut().push(held.entry);
        } else {
            self.reader.header.unledgered.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(cell) = self.cell(held.cell) {
            cell.rq_active.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for WorkerSlot {
    fn drop(&mut self) {
        // A child that was forked with its parent's slot must not take it away.
        if self.pid != std::process::id() {
            return;
        }
        give_back(self.ledger, self.cells);
        self.entry.pinned.store(0, Ordering::Release);
        self.entry.pid.store(0, Ordering::Release);
    }
}

/// Takes what a ledger says off its cells. Returns how much that was.
pub(crate) fn give_back(ledger: &[AtomicU32], cells: &[Cell]) -> u64 {
    let mut n = 0;
    for entry in ledger {
        let cell = match entry.load(Ordering::Acquire) {
            0 => continue,
            cell => cell - 1,
        };
        entry.store(0, Ordering::Release);
        if let Some(cell) = cells.get(cell as usize) {
            cell.rq_active.fetch_sub(1, Ordering::Relaxed);
            n += 1;
        }
    }
    n
}

/// What is published stays while this lives.
pub struct Pin<'a> {
    worker: &'a WorkerSlot,
}

/// A published resource.
#[derive(Clone, Copy, Debug)]
pub struct Slot<'a> {
    /// The version that the writer gave it.
    pub version: u64,
    /// Its bytes, aligned to 16.
    pub bytes: &'a [u8],
}

impl Pin<'_> {
    /// The resource of a key.
    pub fn get(&self, kind: u8, key: &[u8]) -> Option<Slot<'_>> {
        self.get_hashed(kind, hash(kind, key), key)
    }

    /// The resource of a key whose [`hash`] is known.
    pub fn get_hashed(&self, kind: u8, hash: u64, key: &[u8]) -> Option<Slot<'_>> {
        // SAFETY: the pin holds back every block that is found while it lives.
        let block = unsafe {
            let (_, offset) = self.worker.directory.find(kind, hash, key)?;
            self.worker.directory.block(offset)
        };
        Some(Slot { version: block.version, bytes: block.payload() })
    }

    /// All resources of a kind, in no order.
    pub fn iter(&self, kind: u8) -> impl Iterator<Item = (&[u8], Slot<'_>)> {
        self.worker
            .directory
            .offsets()
            // SAFETY: as above.
            .map(|offset| unsafe { self.worker.directory.block(offset) })
            .filter(move |block| block.kind == kind)
            .map(|block| (block.key(), Slot { version: block.version, bytes: block.payload() }))
    }

    /// Sizes and counts of the zone.
    pub fn stats(&self) -> crate::Stats {
        crate::writer::stats(self.worker.reader.region, self.worker.reader.header)
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let depth = self.worker.depth.get() - 1;
        self.worker.depth.set(depth);
        if depth == 0 {
            epoch::unpin(&self.worker.entry.pinned);
        }
    }
}
