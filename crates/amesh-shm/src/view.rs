//! A region with its layout: the typed places that reader and writer share.

use crate::block::Block;
use crate::cell::{state, Cell};
use crate::error::Error;
use crate::layout::{header, Header, Layout, Place, Region, UNIT};
use crate::protocol::directory::{self, Table};
use crate::protocol::gauge::{Books, Gauges};
use crate::sync::{AtomicU32, AtomicU64, Ordering};

#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    region: Region,
    pub layout: Layout,
}

impl View {
    pub(crate) fn open(region: Region, layout_hash: u64) -> Result<View, Error> {
        header(&region)?;
        Ok(View { region, layout: Layout::open(region, layout_hash)? })
    }

    pub(crate) fn region(&self) -> Region {
        self.region
    }

    /// A table's element.
    ///
    /// # Safety
    /// The table at `start` has more than `index` elements of type `T`, which are valid for all bytes (atomics).
    unsafe fn element<T>(&self, start: usize, index: usize) -> &T {
        // SAFETY: inside the table, as the caller says; tables are aligned to 64 (directory and ledgers to what they
        // hold), and the region stays mapped as Region::new was promised.
        unsafe { &*self.region.at(start + index * size_of::<T>()).cast::<T>() }
    }

    #[inline]
    pub(crate) fn header(&self) -> &Header {
        // SAFETY: one header at the start.
        unsafe { self.element(0, 0) }
    }

    #[inline]
    pub(crate) fn place(&self, worker: u32) -> Option<&Place> {
        // SAFETY: below the number of places.
        (worker < self.layout.max_workers).then(|| unsafe { self.element(self.layout.places, worker as usize) })
    }

    pub(crate) fn places(&self) -> impl Iterator<Item = &Place> {
        (0..self.layout.max_workers).filter_map(|i| self.place(i))
    }

    /// The books of a worker, empty when its ledger was never initialised.
    #[inline]
    pub(crate) fn books(&self, worker: u32) -> Option<Books<'_>> {
        let place = self.place(worker)?;
        let entries = self.layout.ledger_entries as usize;
        let ledger = if place.ledger_ready.load(Ordering::Acquire) == 1 {
            // SAFETY: each of the max_workers ledgers has this many entries; they were initialised, and are atomics.
            unsafe {
                let first: &AtomicU32 = self.element(self.layout.ledgers, worker as usize * entries);
                std::slice::from_raw_parts(first, entries)
            }
        } else {
            &[]
        };
        Some(Books { worker, operation: &place.operation, ledger })
    }

    /// Initialises the ledger of a place that was taken for the first time.
    pub(crate) fn prepare_ledger(&self, worker: u32) {
        let Some(place) = self.place(worker) else { return };
        if place.ledger_ready.load(Ordering::Acquire) == 0 {
            let entries = self.layout.ledger_entries as usize;
            for index in 0..entries {
                // SAFETY: as in `books`; any bytes are a valid AtomicU32.
                let entry: &AtomicU32 = unsafe { self.element(self.layout.ledgers, worker as usize * entries + index) };
                entry.store(0, Ordering::Relaxed);
            }
            place.ledger_ready.store(1, Ordering::Release);
        }
    }

    /// A cell that was given once.
    #[inline]
    pub(crate) fn cell(&self, index: u32) -> Option<&Cell> {
        let used = self.header().cells_used.0.load(Ordering::Acquire);
        // SAFETY: below the number of cells (cells_used never exceeds it), atomics.
        (u64::from(index) < used.min(self.layout.max_cells.into()))
            .then(|| unsafe { self.element(self.layout.cells, index as usize) })
    }

    /// Takes one more of the cells that were never given.
    pub(crate) fn fresh_cell(&self) -> Option<u32> {
        let used = &self.header().cells_used.0;
        let index = used.load(Ordering::Relaxed);
        if index >= self.layout.max_cells.into() {
            return None;
        }
        // SAFETY: below the number of cells; nobody looks at it before cells_used is raised; zero is a valid cell.
        unsafe {
            let cell = self.region.at(self.layout.cells + index as usize * size_of::<Cell>());
            std::ptr::write_bytes(cell, 0, size_of::<Cell>());
        }
        used.store(index + 1, Ordering::Release);
        Some(index as u32)
    }

    /// Whether a cell is somebody's.
    pub(crate) fn cell_is_given(&self, index: u32) -> bool {
        self.cell(index).is_some_and(|c| c.state.load(Ordering::Acquire) != state::FREE)
    }

    /// The block at a unit of the region; `None` for what cannot be one. The bytes may be used only as long as the block
    /// is not freed: under a pin, or by the writer.
    #[inline]
    pub(crate) fn block(&self, unit: u32) -> Option<Block<'_>> {
        let offset = unit as usize * UNIT;
        if offset < self.layout.arena || offset >= self.layout.len {
            return None;
        }
        // SAFETY: in the arena, with the length that is left of it. The directory names only blocks that were written
        // whole (acquired with its entry).
        unsafe { Block::read(self.region.at(offset), self.layout.len - offset) }
    }

    #[inline]
    pub(crate) fn find(&self, kind: u8, hash: u64, key: &[u8]) -> Option<(usize, u32, Block<'_>)> {
        let mut found = None;
        let (index, unit) = directory::find(self, hash, |unit| {
            found = self.block(unit).filter(|b| b.is(kind, hash, key));
            found.is_some()
        })?;
        Some((index, unit, found?))
    }
}

impl Table for View {
    #[inline]
    fn mask(&self) -> usize {
        self.layout.entries - 1
    }

    #[inline]
    fn entry(&self, index: usize) -> &AtomicU64 {
        // SAFETY: masked to the number of entries, a power of two.
        unsafe { self.element(self.layout.directory, index & (self.layout.entries - 1)) }
    }

    #[inline]
    fn moves(&self) -> &AtomicU64 {
        &self.header().moves.0
    }
}

impl Gauges for View {
    #[inline]
    fn word(&self, target: u32) -> Option<&AtomicU64> {
        Some(&self.cell(target >> 2)?.gauge(target)?.0)
    }

    #[inline]
    fn confirmed(&self, worker: u32) -> Option<&AtomicU32> {
        Some(&self.place(worker)?.confirmed)
    }
}
