//! Which block a key names: open addressing, one writer, readers without a lock.
//!
//! An entry is one word: the upper half of the key's hash, and the block's offset in units of [`ALIGN`]. 0 is an empty
//! entry and ends a probe, [`TOMBSTONE`] is one whose key is gone.

use crate::layout::{Region, ALIGN};
use std::sync::atomic::{AtomicU64, Ordering};

const TOMBSTONE: u64 = 1;

/// The beginning of a block; the key follows, then, aligned, the payload.
#[repr(C, align(16))]
pub(crate) struct Block {
    pub(crate) hash: u64,
    pub(crate) version: u64,
    /// Hash of the payload.
    pub(crate) content: u64,
    pub(crate) len: u32,
    pub(crate) key_len: u16,
    pub(crate) kind: u8,
}

impl Block {
    /// Bytes that a block takes in the arena.
    pub(crate) fn size(key: usize, payload: usize) -> usize {
        size_of::<Block>() + key.div_ceil(ALIGN) * ALIGN + payload.div_ceil(ALIGN) * ALIGN
    }

    pub(crate) fn own_size(&self) -> usize {
        Self::size(self.key_len.into(), self.len as usize)
    }

    fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        // SAFETY: a block is written whole before its offset is published, and lies in one range of the arena.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast::<u8>().add(offset), len) }
    }

    pub(crate) fn key(&self) -> &[u8] {
        self.bytes(size_of::<Block>(), self.key_len.into())
    }

    pub(crate) fn payload(&self) -> &[u8] {
        self.bytes(size_of::<Block>() + usize::from(self.key_len).div_ceil(ALIGN) * ALIGN, self.len as usize)
    }
}

/// The table of a zone.
#[derive(Clone, Copy)]
pub(crate) struct Directory {
    region: Region,
    entries: &'static [AtomicU64],
}

fn entry(hash: u64, offset: usize) -> u64 {
    (hash & 0xffff_ffff_0000_0000) | (offset / ALIGN) as u64
}

fn offset(entry: u64) -> usize {
    (entry & 0xffff_ffff) as usize * ALIGN
}

impl Directory {
    pub(crate) fn new(region: Region) -> Directory {
        Directory { region, entries: region.header().directory(region) }
    }

    /// The block at an offset that an entry named.
    ///
    /// # Safety
    /// The block must not be freed as long as `'a`.
    pub(crate) unsafe fn block<'a>(&self, offset: usize) -> &'a Block {
        // SAFETY: offsets of entries come from the writer, aligned, within the arena.
        unsafe { &*self.region.at(offset).cast::<Block>() }
    }

    fn probe(&self, hash: u64) -> impl Iterator<Item = usize> {
        let mask = self.entries.len() - 1;
        let start = hash as usize & mask;
        (0..=mask).map(move |i| (start + i) & mask)
    }

    /// The entry and offset of a key's block.
    ///
    /// # Safety
    /// The caller must hold a pin, or be the writer.
    pub(crate) unsafe fn find(&self, kind: u8, hash: u64, key: &[u8]) -> Option<(usize, usize)> {
        for at in self.probe(hash) {
            let word = self.entries[at].load(Ordering::Acquire);
            match word {
                0 => return None,
                TOMBSTONE => {}
                word if word >> 32 == hash >> 32 => {
                    // SAFETY: promised by the caller.
                    let block = unsafe { self.block(offset(word)) };
                    if block.hash == hash && block.kind == kind && block.key() == key {
                        return Some((at, offset(word)));
                    }
                }
                _ => {}
            }
        }
        None
    }

    /// Offsets of all blocks.
    pub(crate) fn offsets(&self) -> impl Iterator<Item = usize> + '_ {
        self.entries.iter().map(|e| e.load(Ordering::Acquire)).filter(|e| *e > TOMBSTONE).map(offset)
    }

    /// Where a new key goes, `None` when the table is full. Writer only.
    pub(crate) fn vacancy(&self, hash: u64) -> Option<usize> {
        self.probe(hash).find(|at| self.entries[*at].load(Ordering::Relaxed) <= TOMBSTONE)
    }

    /// Publishes a block: every byte of it is visible to whoever sees the word. Writer only.
    pub(crate) fn set(&self, at: usize, hash: u64, offset: usize) {
        self.entries[at].store(entry(hash, offset), Ordering::Release);
    }

    /// Takes an entry out. Tombstones before an empty entry end no probe that would have gone on, so they are emptied.
    /// Writer only.
    pub(crate) fn clear(&self, at: usize) {
        let mask = self.entries.len() - 1;
        self.entries[at].store(TOMBSTONE, Ordering::Release);
        if self.entries[(at + 1) & mask].load(Ordering::Relaxed) != 0 {
            return;
        }
        let mut at = at;
        while self.entries[at].load(Ordering::Relaxed) == TOMBSTONE {
            self.entries[at].store(0, Ordering::Release);
            at = at.wrapping_sub(1) & mask;
        }
    }
}
