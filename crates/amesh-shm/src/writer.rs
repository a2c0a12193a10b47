//! The writer's side: one thread of one process.

use crate::arena::Arena;
use crate::block::Content;
use crate::cell::Cell;
use crate::cells::Cells;
use crate::error::Error;
use crate::layout::{Region, UNIT};
use crate::process::{Identity, Life};
use crate::protocol::directory::{self, Table, EMPTY};
use crate::protocol::{epoch, place};
use crate::stats::Stats;
use crate::sync::Ordering;
use crate::view::View;
use std::collections::{HashMap, VecDeque};

/// A run of units that readers may still look at.
#[derive(Debug)]
struct Retired {
    at: u64,
    unit: u32,
    units: u32,
    /// Whether it is a block; else what a writer before this one left, of which nothing more is known.
    block: bool,
}

/// A worker that keeps retired memory from being used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// Its pid.
    pub pid: u32,
    /// Whether it is stopped (SIGSTOP, a debugger): it holds the memory until someone lets it go on.
    pub stopped: bool,
}

/// The one writer of a zone.
#[derive(Debug)]
pub struct Writer {
    pub(crate) view: View,
    /// Number of this writer: the zone's last one is the writer.
    number: u64,
    arena: Arena,
    pub(crate) cells: Cells,
    retired: VecDeque<Retired>,
    retired_units: usize,
    used_units: usize,
    slots: usize,
    holders: Vec<Holder>,
}

impl Writer {
    /// Becomes the zone's writer. Any writer before must have ended: it gets [`Error::Superseded`] from now on, but what
    /// it does at this very moment is not guarded against.
    ///
    /// What is free is found from the directory; a commit that was cut short stays as far as it came, in whole slots.
    ///
    /// # Errors
    /// [`Error::NotFormatted`], [`Error::Layout`], [`Error::Damaged`].
    pub fn attach(region: Region, layout_hash: u64) -> Result<Writer, Error> {
        let view = View::open(region, layout_hash)?;
        let number = view.header().writer.load(Ordering::Relaxed) + 1;
        view.header().writer.store(number, Ordering::Relaxed);
        finish_removal(&view);

        let mut blocks = Vec::new();
        for index in 0..=view.mask() {
            let word = view.entry(index).load(Ordering::Relaxed);
            if word != EMPTY {
                let unit = directory::block(word);
                let block = view.block(unit).ok_or(Error::Damaged { at: unit as usize * UNIT })?;
                blocks.push((unit, block));
            }
        }
        blocks.sort_unstable_by_key(|&(unit, _)| unit);

        // Readers may still look at what the last writer retired: all that is between the blocks is retired now.
        let at = epoch::advance(&view.header().version.0);
        let referred = blocks.iter().flat_map(|(_, block)| block.cells());
        let mut writer = Writer {
            view,
            number,
            arena: Arena::default(),
            cells: Cells::attach(&view, referred, at),
            retired: VecDeque::new(),
            retired_units: 0,
            used_units: 0,
            slots: blocks.len(),
            holders: Vec::new(),
        };
        let mut end = (view.layout.arena / UNIT) as u32;
        for (unit, block) in &blocks {
            let units = unit.checked_sub(end).ok_or(Error::Damaged { at: *unit as usize * UNIT })?;
            writer.retire(Retired { at, unit: end, units, block: false });
            writer.used_units += block.units();
            end = unit + block.units() as u32;
        }
        let units = (view.layout.len / UNIT) as u32 - end;
        writer.retire(Retired { at, unit: end, units, block: false });
        writer.collect();
        Ok(writer)
    }

    /// Finds or takes the cell of a key. It stays that of the key until [`Writer::release_cell`], or until the last slot
    /// is gone that was published [with](crate::Batch::put_with_cells) it.
    ///
    /// # Errors
    /// [`Error::CellsFull`], [`Error::Superseded`].
    pub fn cell(&mut self, key: &[u8]) -> Result<u32, Error> {
        self.check()?;
        let given = self.cells.give(&self.view, key);
        self.note();
        given
    }

    /// The cell of a key, where one was given and is not free again.
    pub fn find_cell(&self, key: &[u8]) -> Option<&Cell> {
        self.view.cell(self.cells.find(key)?)
    }

    /// Gives a cell back that no slot was published with. It is used again when no worker can know of it any more.
    pub fn release_cell(&mut self, cell: u32) {
        if self.check().is_ok() {
            self.cells.release(&self.view, cell, self.version());
        }
    }

    /// Version of the zone.
    pub fn version(&self) -> u64 {
        self.view.header().version.0.load(Ordering::Relaxed)
    }

    /// Puts the places of dead workers in order: their pins, and what their ledgers say that they held. Returns their
    /// pids. Call it now and then, and when a worker died: commits look after dead workers only where these hold memory
    /// back. A worker is dead when it is a zombie, or when its pid is gone or another process's.
    pub fn reap(&mut self) -> Vec<u32> {
        if self.check().is_err() {
            return Vec::new();
        }
        (0..self.view.layout.max_workers).filter_map(|worker| self.reap_place(worker)).collect()
    }

    /// Frees what no live pin holds. Commits do this too.
    pub fn reclaim(&mut self) {
        if self.check().is_ok() {
            self.collect();
        }
    }

    /// Workers that held retired memory back when it was looked at last. One that is found again and again, or is
    /// stopped, fills the zone in the end.
    pub fn holders(&self) -> &[Holder] {
        &self.holders
    }

    /// Figures of the zone.
    pub fn stats(&self) -> Stats {
        self.view.stats()
    }

    /// Puts the figures that only the writer knows where all can see them.
    pub(crate) fn note(&self) {
        let header = self.view.header();
        for (figure, value) in [
            (&header.used, self.used_units * UNIT),
            (&header.free, self.arena.free() * UNIT),
            (&header.largest_free, self.arena.largest() * UNIT),
            (&header.retired, self.retired_units * UNIT),
            (&header.slots, self.slots),
            (&header.cells, self.cells.len()),
        ] {
            figure.store(value as u64, Ordering::Relaxed);
        }
    }

    /// Whether this is still the zone's writer.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match self.view.header().writer.load(Ordering::Relaxed) == self.number {
            true => Ok(()),
            false => Err(Error::Superseded),
        }
    }

    /// Writes a block that nobody sees yet.
    pub(crate) fn write(&mut self, content: &Content) -> Option<u32> {
        let units = u32::try_from(content.units()).ok()?;
        let unit = self.arena.take(units).or_else(|| {
            self.collect();
            self.arena.take(units)
        })?;
        // SAFETY: the arena has given these units, which lie in the region, to nobody else; no pin can see them.
        unsafe { content.write(self.view.region().at(unit as usize * UNIT)) };
        Some(unit)
    }

    /// Takes a block back that nobody saw.
    pub(crate) fn unwrite(&mut self, unit: u32) {
        let units = self.view.block(unit).map_or(0, |b| b.units());
        self.arena.give(unit, units as u32);
    }

    /// Counts a refused batch, and says why.
    pub(crate) fn full(&mut self, needed: usize) -> Error {
        self.view.header().full_rejections.fetch_add(1, Ordering::Relaxed);
        Error::Full {
            needed: needed * UNIT,
            available: self.arena.free() * UNIT,
            largest: self.arena.largest() * UNIT,
            retired: self.retired_units * UNIT,
            holders: self.holders.iter().map(|h| h.pid).collect(),
        }
    }

    /// Fails when the directory has no room for `new` slots.
    pub(crate) fn room_for(&self, new: usize) -> Result<(), Error> {
        let available = self.view.layout.max_slots.saturating_sub(self.slots);
        if new <= available {
            return Ok(());
        }
        self.view.header().full_rejections.fetch_add(1, Ordering::Relaxed);
        Err(Error::SlotsFull { needed: new, available })
    }

    /// Makes a written block the slot's; retires the one before. Returns the block's units.
    pub(crate) fn publish(&mut self, unit: u32) -> usize {
        let view = self.view;
        let Some(block) = view.block(unit) else { return 0 };
        match view.find(block.kind(), block.hash(), block.key()) {
            Some((index, old, old_block)) => {
                directory::swing(&view, index, block.hash(), unit);
                self.retire_block(old, old_block.units());
            }
            None => {
                // The directory is two thirds full at most: there is an empty entry.
                directory::insert(&view, block.hash(), unit);
                self.slots += 1;
            }
        }
        self.used_units += block.units();
        self.cells.refer(&view, block.cells());
        block.units()
    }

    /// Removes a slot; `false` when there is none.
    pub(crate) fn unpublish(&mut self, kind: u8, hash: u64, key: &[u8]) -> bool {
        let view = self.view;
        let Some((index, unit, block)) = view.find(kind, hash, key) else { return false };
        directory::remove(&view, index, |unit| view.block(unit).map_or(0, |b| b.hash()));
        self.retire_block(unit, block.units());
        self.slots -= 1;
        true
    }

    /// Ends a commit: from the next version on, readers cannot find what was retired.
    pub(crate) fn advance(&mut self) {
        epoch::advance(&self.view.header().version.0);
        self.collect();
    }

    fn retire_block(&mut self, unit: u32, units: usize) {
        self.used_units -= units;
        self.retire(Retired { at: self.version(), unit, units: units as u32, block: true });
    }

    fn retire(&mut self, retired: Retired) {
        if retired.units > 0 {
            self.retired_units += retired.units as usize;
            self.retired.push_back(retired);
        }
    }

    /// Frees what no pin holds; where a dead worker holds it, puts that right first.
    fn collect(&mut self) {
        self.free_older();
        self.look_for_holders();
        self.note();
    }

    fn look_for_holders(&mut self) {
        self.holders.clear();
        let Some(newest) = self.retired.back().map(|r| r.at) else { return };
        let mut reaped = false;
        for worker in 0..self.view.layout.max_workers {
            let Some(place) = self.view.place(worker) else { continue };
            let pin = place.pin.load(Ordering::Acquire);
            let owner = Identity(place.owner.0.load(Ordering::Acquire));
            if pin == epoch::UNPINNED || pin > newest || owner.0 == place::NOBODY {
                continue;
            }
            match owner.life() {
                Life::Dead => reaped |= self.reap_dead(worker, owner),
                life => self.holders.push(Holder { pid: owner.pid(), stopped: life == Life::Stopped }),
            }
        }
        if reaped {
            self.free_older();
        }
    }

    fn free_older(&mut self) {
        let view = self.view;
        let oldest = epoch::oldest(view.places().map(|p| &p.pin));
        while self.retired.front().is_some_and(|r| r.at < oldest) {
            let Some(retired) = self.retired.pop_front() else { break };
            if retired.block {
                if let Some(block) = view.block(retired.unit) {
                    self.cells.forget(block.cells(), retired.at);
                }
            }
            self.retired_units -= retired.units as usize;
            poison(&view, &retired);
            self.arena.give(retired.unit, retired.units);
        }
        self.cells.sweep(&view, oldest);
    }

    /// Puts a place in order if its process is dead; returns its pid.
    fn reap_place(&mut self, worker: u32) -> Option<u32> {
        let owner = Identity(self.view.place(worker)?.owner.0.load(Ordering::Acquire));
        (owner.0 != place::NOBODY && owner.life() == Life::Dead && self.reap_dead(worker, owner)).then_some(owner.pid())
    }

    fn reap_dead(&mut self, worker: u32, owner: Identity) -> bool {
        let Some(place) = self.view.place(worker) else { return false };
        if !place::reap(&place.owner.0, owner.0) {
            return false;
        }
        if let Some(books) = self.view.books(worker) {
            books.settle(&self.view);
        }
        place::leave(&place.owner.0, &place.pin);
        self.view.header().reaped.fetch_add(1, Ordering::Relaxed);
        true
    }
}

/// A writer that died in a removal left one entry twice: goes on from there.
fn finish_removal(view: &View) {
    let mut seen = HashMap::new();
    for index in 0..=view.mask() {
        let word = view.entry(index).load(Ordering::Relaxed);
        if word == EMPTY {
            continue;
        }
        if let Some(first) = seen.insert(directory::block(word), index) {
            let hash_of = |unit| view.block(unit).map_or(0, |b| b.hash());
            let hash = hash_of(directory::block(word)) as usize;
            let from_home = |index: usize| index.wrapping_sub(hash) & view.mask();
            let later = if from_home(first) > from_home(index) { first } else { index };
            return directory::remove(view, later, hash_of);
        }
    }
}

/// Makes a read after free seen: what is freed is overwritten, in builds for tests.
fn poison(view: &View, retired: &Retired) {
    if cfg!(debug_assertions) && retired.block {
        // SAFETY: the units lie in the region, and nobody can see them any more.
        unsafe { view.region().at(retired.unit as usize * UNIT).write_bytes(0xdd, retired.units as usize * UNIT) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{format, Batch, Options, Reader};
    use std::ptr::NonNull;

    #[repr(align(64))]
    struct Memory([u8; 1 << 16]);

    #[test]
    fn a_removal_that_was_cut_short_is_finished_by_the_next_writer() {
        let mut memory = Box::new(Memory([0; 1 << 16]));
        // SAFETY: aligned, and outlives all that is made of it.
        let region = unsafe { Region::new(NonNull::from(&mut memory.0).cast(), 1 << 16) };
        format(region, Options::default(), 1).unwrap();
        let mut writer = Writer::attach(region, 1).unwrap();
        let mut batch = Batch::new();
        (0..60u8).for_each(|key| batch.put(1, &[key], 1, &[key]));
        writer.commit(&batch).unwrap();
        let before = writer.stats();

        // An entry has moved back, and where it was is not yet closed.
        let view = writer.view;
        let load = |index| view.entry(index).load(Ordering::Relaxed);
        let at = (0..view.mask()).find(|&i| load(i) != EMPTY && load(i + 1) == EMPTY).unwrap();
        view.entry(at + 1).store(load(at), Ordering::Relaxed);
        drop(writer);
        let writer = Writer::attach(region, 1).unwrap();
        assert_eq!(load(at + 1), EMPTY);
        assert_ne!(load(at), EMPTY);
        assert_eq!((writer.stats().slots, writer.stats().used), (before.slots, before.used));
        let worker = Reader::attach(region, 1).unwrap().register().unwrap();
        assert!((0..60u8).all(|key| worker.pin().get(1, &[key]).unwrap().bytes == [key]));
    }

    #[test]
    fn a_damaged_directory_is_refused() {
        let mut memory = Box::new(Memory([0; 1 << 16]));
        // SAFETY: as above.
        let region = unsafe { Region::new(NonNull::from(&mut memory.0).cast(), 1 << 16) };
        format(region, Options::default(), 1).unwrap();
        let view = View::open(region, 1).unwrap();
        for unit in [1, (1 << 16) / UNIT as u32, u32::MAX] {
            view.entry(3).store(unit.into(), Ordering::Relaxed);
            assert_eq!(Writer::attach(region, 1).err(), Some(Error::Damaged { at: unit as usize * UNIT }));
            let worker = Reader::attach(region, 1).unwrap().register().unwrap();
            assert_eq!(worker.pin().iter(1).count(), 0);
        }
    }
}
