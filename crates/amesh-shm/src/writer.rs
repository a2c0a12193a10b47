//! The one writer: commits batches, frees what nobody reads any more, and gives back what dead workers held.

use crate::arena::Arena;
use crate::cell::Cell;
use crate::directory::{Block, Directory};
use crate::layout::{check, Header, Region};
use crate::reader::give_back;
use crate::{epoch, hash, process, Error};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;

/// The writer of a zone. There must be one at a time.
pub struct Writer {
    region: Region,
    header: &'static Header,
    directory: Directory,
    cells: &'static [Cell],
    arena: Arena,
    retired: VecDeque<Retired>,
    cell_of: HashMap<u64, u32>,
    free_cells: Vec<u32>,
}

/// What may be in use by readers that pinned `epoch` or an older one.
struct Retired {
    epoch: u64,
    what: What,
}

enum What {
    Block { offset: usize, len: usize },
    Cell(u32),
}

/// Changes that are published together.
#[derive(Default)]
pub struct Batch {
    puts: Vec<Put>,
    removes: Vec<(u8, Vec<u8>)>,
}

struct Put {
    kind: u8,
    key: Vec<u8>,
    version: u64,
    payload: Vec<u8>,
}

/// What a commit did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    /// Slots that were written.
    pub put: usize,
    /// Slots whose bytes were the same already.
    pub unchanged: usize,
    /// Slots that were removed.
    pub removed: usize,
    /// The zone's version afterwards.
    pub version: u64,
}

/// Sizes and counts of a zone, in bytes where nothing else is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// The zone's version.
    pub version: u64,
    /// All of the zone.
    pub size: u64,
    /// What blocks can use.
    pub capacity: u64,
    /// Published.
    pub used: u64,
    /// Replaced, and held back by readers.
    pub retired: u64,
    /// Published resources.
    pub slots: u64,
    /// Resources there can be.
    pub slots_max: u64,
    /// Cells in use.
    pub cells: u64,
    /// Cells there can be.
    pub cells_max: u64,
    /// Processes that read.
    pub workers: u64,
    /// Updates that were rejected because there was no room.
    pub full_rejections: u64,
    /// Active requests that a killed worker would not give back.
    pub unledgered: u64,
    /// Active requests given back for workers that were killed.
    pub reaped: u64,
}

pub(crate) fn stats(region: Region, header: &Header) -> Stats {
    let load = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
    Stats {
        version: header.version.0.load(Ordering::Acquire),
        size: region.len() as u64,
        capacity: header.arena_end - header.arena,
        used: load(&header.used),
        retired: load(&header.retired),
        slots: load(&header.slots),
        slots_max: u64::from(header.directory_capacity) / 4 * 3,
        cells: load(&header.cells_used),
        cells_max: header.max_cells.into(),
        workers: header.workers(region).iter().filter(|w| w.pid.load(Ordering::Relaxed) != 0).count() as u64,
        full_rejections: load(&header.full_rejections),
        unledgered: load(&header.unledgered),
        reaped: load(&header.reaped),
    }
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Publishes `payload` under a key of at most 65535 bytes.
    pub fn put(&mut self, kind: u8, key: &[u8], version: u64, payload: &[u8]) {
        self.puts.push(Put { kind, key: key.to_vec(), version, payload: payload.to_vec() });
    }

    /// Removes a key.
    pub fn remove(&mut self, kind: u8, key: &[u8]) {
        self.removes.push((kind, key.to_vec()));
    }
}

impl Writer {
    /// Takes a zone over, from nobody or from a writer that is gone. What is published stays; all else is free once
    /// no reader can be in it.
    ///
    /// # Errors
    /// [`Error::Layout`] when it is no zone, or of another build.
    pub fn attach(region: Region, layout_hash: u64) -> Result<Writer, Error> {
        let header = check(region, layout_hash)?;
        let mut writer = Writer {
            region,
            header,
            directory: Directory::new(region),
            cells: header.cells(region),
            arena: Arena::default(),
            retired: VecDeque::new(),
            cell_of: HashMap::new(),
            free_cells: Vec::new(),
        };
        let mut live: Vec<(usize, usize)> = writer
            .directory
            .offsets()
            // SAFETY: only the writer frees blocks.
            .map(|offset| (offset, unsafe { writer.directory.block(offset) }.own_size()))
            .collect();
        live.sort_unstable();
        let used: usize = live.iter().map(|(_, len)| len).sum();
        header.used.store(used as u64, Ordering::Relaxed);
        header.slots.store(live.len() as u64, Ordering::Relaxed);
        header.retired.store(0, Ordering::Relaxed);
        live.push((header.arena_end as usize, 0));
        let epoch = epoch::advance(&header.epoch.0);
        let mut at = header.arena as usize;
        for (offset, len) in live {
            writer.retire(epoch, What::Block { offset: at, len: offset - at });
            at = offset + len;
        }
        for (index, cell) in writer.cells.iter().enumerate().rev() {
            match cell.key.load(Ordering::Relaxed) {
                0 => writer.free_cells.push(index as u32),
                key => drop(writer.cell_of.insert(key, index as u32)),
            }
        }
        writer.reclaim();
        Ok(writer)
    }

    fn retire(&mut self, epoch: u64, what: What) {
        if let What::Block { len, .. } = what {
            if len == 0 {
                return;
            }
            self.header.retired.fetch_add(len as u64, Ordering::Relaxed);
        }
        self.retired.push_back(Retired { epoch, what });
    }

    /// Publishes a batch: puts in their order, then removals. The batch is written whole or not at all.
    ///
    /// # Errors
    /// [`Error::Full`] and [`Error::TableFull`]: nothing was changed.
    pub fn commit(&mut self, batch: &Batch) -> Result<Commit, Error> {
        let mut done = Commit::default();
        let mut fresh = Vec::with_capacity(batch.puts.len());
        for (index, put) in batch.puts.iter().enumerate() {
            let hash = hash(put.kind, &put.key);
            let content = xxhash_rust::xxh3::xxh3_64(&put.payload);
            // SAFETY: only the writer frees blocks.
            let same = unsafe {
                self.directory.find(put.kind, hash, &put.key).is_some_and(|(_, offset)| {
                    let block = self.directory.block(offset);
                    block.content == content && block.payload() == put.payload
                })
            };
            if same {
                done.unchanged += 1;
            } else {
                fresh.push((index, hash, content));
            }
        }
        let placed = self.place(batch, &fresh)?;
        for ((index, hash, content), offset) in fresh.into_iter().zip(placed) {
            let put = &batch.puts[index];
            self.write(put, hash, content, offset);
            self.swing(put, hash, offset);
            done.put += 1;
        }
        for (kind, key) in &batch.removes {
            let hash = hash(*kind, key);
            // SAFETY: as above.
            if let Some((at, offset)) = unsafe { self.directory.find(*kind, hash, key) } {
                self.directory.clear(at);
                self.replaced(offset);
                self.header.slots.fetch_sub(1, Ordering::Relaxed);
                done.removed += 1;
            }
        }
        if done.put + done.removed > 0 {
            self.header.version.0.fetch_add(1, Ordering::Release);
            epoch::advance(&self.header.epoch.0);
        }
        done.version = self.header.version.0.load(Ordering::Relaxed);
        self.reclaim();
        Ok(done)
    }

    /// Finds room for every block of a batch, or for none.
    fn place(&mut self, batch: &Batch, fresh: &[(usize, u64, u64)]) -> Result<Vec<usize>, Error> {
        let slots_max = self.header.directory_capacity as usize / 4 * 3;
        if self.header.slots.load(Ordering::Relaxed) as usize + fresh.len() > slots_max {
            // Only now it is worth to count which of them are new.
            let new = fresh
                .iter()
                // SAFETY: only the writer frees blocks.
                .filter(|(i, hash, _)| unsafe {
                    self.directory.find(batch.puts[*i].kind, *hash, &batch.puts[*i].key).is_none()
                })
                .count();
            if self.header.slots.load(Ordering::Relaxed) as usize + new > slots_max {
                self.header.full_rejections.fetch_add(1, Ordering::Relaxed);
                return Err(Error::TableFull { what: "slots", capacity: slots_max });
            }
        }
        let mut placed = Vec::with_capacity(fresh.len());
        for (index, ..) in fresh {
            let put = &batch.puts[*index];
            let size = Block::size(put.key.len(), put.payload.len());
            let offset = self.arena.take(size).or_else(|| {
                self.reclaim();
                self.arena.take(size)
            });
            match offset {
                Some(offset) => placed.push(offset),
                None => {
                    for (offset, (index, ..)) in placed.into_iter().zip(fresh) {
                        let put = &batch.puts[*index];
                        self.arena.give(offset, Block::size(put.key.len(), put.payload.len()));
                    }
                    self.header.full_rejections.fetch_add(1, Ordering::Relaxed);
                    let size = |i: usize| Block::size(batch.puts[i].key.len(), batch.puts[i].payload.len());
                    return Err(Error::Full {
                        needed: fresh.iter().map(|(i, ..)| size(*i)).sum(),
                        available: self.arena.free_bytes(),
                        hint: self.hint(),
                    });
                }
            }
        }
        Ok(placed)
    }

    /// Why less is free than could be.
    fn hint(&self) -> String {
        let retired = self.header.retired.load(Ordering::Relaxed);
        let holding = self.holders();
        if retired == 0 || holding.is_empty() {
            return "; make the zone larger".to_owned();
        }
        format!("; {retired} bytes more are held back by process {holding:?}, which is stopped while it reads")
    }

    fn write(&self, put: &Put, hash: u64, content: u64, offset: usize) {
        // SAFETY: the range was just taken from the arena: it is large enough, aligned, and nobody reads it.
        unsafe {
            let at = self.region.at(offset);
            at.cast::<Block>().write(Block {
                hash,
                version: put.version,
                content,
                len: put.payload.len() as u32,
                key_len: put.key.len() as u16,
                kind: put.kind,
            });
            let key = at.add(size_of::<Block>());
            std::ptr::copy_nonoverlapping(put.key.as_ptr(), key, put.key.len());
            let payload = at.add(Block::size(put.key.len(), 0));
            std::ptr::copy_nonoverlapping(put.payload.as_ptr(), payload, put.payload.len());
        }
        let size = Block::size(put.key.len(), put.payload.len());
        self.header.used.fetch_add(size as u64, Ordering::Relaxed);
    }

    fn swing(&mut self, put: &Put, hash: u64, offset: usize) {
        // SAFETY: only the writer frees blocks.
        if let Some((at, old)) = unsafe { self.directory.find(put.kind, hash, &put.key) } {
            self.directory.set(at, hash, offset);
            self.replaced(old);
        } else if let Some(at) = self.directory.vacancy(hash) {
            self.directory.set(at, hash, offset);
            self.header.slots.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A block is not to be found any more: it is free when no reader can be in it.
    fn replaced(&mut self, offset: usize) {
        // SAFETY: only the writer frees blocks, and this one is not freed yet.
        let len = unsafe { self.directory.block(offset) }.own_size();
        self.header.used.fetch_sub(len as u64, Ordering::Relaxed);
        let epoch = self.header.epoch.0.load(Ordering::Relaxed);
        self.retire(epoch, What::Block { offset, len });
    }

    /// Frees what no reader can be in, after dead workers were seen to.
    pub fn reclaim(&mut self) {
        let Some(oldest) = self.retired.front().map(|r| r.epoch) else { return };
        let workers = self.header.workers(self.region);
        if workers.iter().any(|w| epoch::holds(&w.pinned, oldest)) {
            self.reap();
        }
        // Cells that are still counted on go back to the end: each is looked at once.
        for _ in 0..self.retired.len() {
            let Some(retired) = self.retired.front() else { break };
            if workers.iter().any(|w| epoch::holds(&w.pinned, retired.epoch)) {
                break;
            }
            match self.retired.pop_front().map(|r| r.what) {
                Some(What::Block { offset, len }) => {
                    self.header.retired.fetch_sub(len as u64, Ordering::Relaxed);
                    self.arena.give(offset, len);
                }
                Some(What::Cell(index)) => self.free_cell(index),
                None => break,
            }
        }
    }

    /// Clears the places of workers that are gone, and gives back what they held.
    pub fn reap(&mut self) {
        for (index, entry) in self.header.workers(self.region).iter().enumerate() {
            let pid = entry.pid.load(Ordering::Acquire);
            let started = entry.start_time.load(Ordering::Acquire);
            // A place that is just being taken has no start time yet.
            let alive = |found| started == 0 || found == started;
            if pid == 0 || process::start_time(pid).is_some_and(alive) {
                continue;
            }
            let n = give_back(self.header.ledger(self.region, index), self.cells);
            self.header.reaped.fetch_add(n, Ordering::Relaxed);
            entry.pinned.store(0, Ordering::Release);
            entry.start_time.store(0, Ordering::Release);
            entry.pid.store(0, Ordering::Release);
        }
    }

    /// Processes whose pins hold memory back right now.
    pub fn holders(&self) -> Vec<u32> {
        let Some(oldest) = self.retired.front().map(|r| r.epoch) else { return Vec::new() };
        self.header
            .workers(self.region)
            .iter()
            .filter(|w| epoch::holds(&w.pinned, oldest))
            .map(|w| w.pid.load(Ordering::Relaxed))
            .collect()
    }

    /// The cell of a key: the one that it has, or a new one with all counters at 0.
    ///
    /// # Errors
    /// [`Error::TableFull`] when all are in use.
    pub fn cell(&mut self, key: &[u8]) -> Result<u32, Error> {
        let key = xxhash_rust::xxh3::xxh3_64(key).max(1);
        if let Some(index) = self.cell_of.get(&key) {
            return Ok(*index);
        }
        if self.free_cells.is_empty() {
            self.reclaim();
        }
        let index =
            self.free_cells.pop().ok_or(Error::TableFull { what: "cells of counters", capacity: self.cells.len() })?;
        let cell = &self.cells[index as usize];
        cell.cursor.store(0, Ordering::Relaxed);
        cell.rq_active.store(0, Ordering::Relaxed);
        for counter in [&cell.rq_total, &cell.rq_error, &cell.cx_connect_fail] {
            counter.store(0, Ordering::Relaxed);
        }
        cell.key.store(key, Ordering::Release);
        self.cell_of.insert(key, index);
        self.header.cells_used.fetch_add(1, Ordering::Relaxed);
        Ok(index)
    }

    /// A cell that no published resource names any more: another key may have it when nobody counts on it.
    pub fn release_cell(&mut self, index: u32) {
        let Some(cell) = self.cells.get(index as usize) else { return };
        let key = cell.key.load(Ordering::Relaxed);
        if self.cell_of.remove(&key).is_some() {
            let epoch = self.header.epoch.0.load(Ordering::Relaxed);
            self.retire(epoch, What::Cell(index));
        }
    }

    fn free_cell(&mut self, index: u32) {
        let cell = &self.cells[index as usize];
        if cell.rq_active.load(Ordering::Relaxed) > 0 {
            // A long request still counts on it; it is looked at again later.
            let epoch = self.header.epoch.0.load(Ordering::Relaxed);
            self.retire(epoch, What::Cell(index));
            return;
        }
        cell.key.store(0, Ordering::Release);
        self.free_cells.push(index);
        self.header.cells_used.fetch_sub(1, Ordering::Relaxed);
    }

    /// Sizes and counts.
    pub fn stats(&self) -> Stats {
        stats(self.region, self.header)
    }
}
