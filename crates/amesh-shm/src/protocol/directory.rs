//! The directory: hash table of 64-bit words, linear probing, one writer, readers without a lock.
//!
//! A word is the upper half of the key's hash and the place of the slot's block, so one store swings a slot. A removal
//! shifts the entries behind it back instead of leaving a tombstone: probes stay as short as the load allows, however
//! long the zone lives. A reader that probes meanwhile can miss an entry that moves from before it to behind it; it
//! notices by the counter of moves, and probes again.

use crate::sync::{AtomicU64, Ordering};

/// An entry that ends a probe.
pub const EMPTY: u64 = 0;

/// Where the words are.
pub trait Table {
    /// Number of entries less one; the number is a power of two.
    fn mask(&self) -> usize;
    /// An entry, `index <= mask`.
    fn entry(&self, index: usize) -> &AtomicU64;
    /// Counts moved entries.
    fn moves(&self) -> &AtomicU64;
}

/// The word for a block. `block` is not 0.
pub fn word(hash: u64, block: u32) -> u64 {
    (hash & 0xffff_ffff_0000_0000) | u64::from(block)
}

/// The block that a word stands for.
pub fn block(word: u64) -> u32 {
    word as u32
}

fn home(table: &impl Table, hash: u64) -> usize {
    hash as usize & table.mask()
}

/// Finds the entry with this hash whose block `is` the one: its index and block.
#[inline]
pub fn find(table: &impl Table, hash: u64, mut is: impl FnMut(u32) -> bool) -> Option<(usize, u32)> {
    loop {
        let moves = table.moves().load(Ordering::Acquire);
        let mut index = home(table, hash);
        for _ in 0..=table.mask() {
            let entry = table.entry(index).load(Ordering::Acquire);
            if entry == EMPTY {
                break;
            }
            if entry >> 32 == hash >> 32 && is(block(entry)) {
                return Some((index, block(entry)));
            }
            index = (index + 1) & table.mask();
        }
        // An entry that moved away from before us was overwritten after the counter went up: whoever saw the one sees
        // the other.
        if table.moves().load(Ordering::Acquire) == moves {
            return None;
        }
    }
}

/// Writer: gives an existing entry another block.
pub fn swing(table: &impl Table, index: usize, hash: u64, block: u32) {
    table.entry(index).store(word(hash, block), Ordering::Release);
}

/// Writer: adds an entry for a key that has none. `false` when every entry is taken.
pub fn insert(table: &impl Table, hash: u64, block: u32) -> bool {
    let mut index = home(table, hash);
    for _ in 0..=table.mask() {
        if table.entry(index).load(Ordering::Relaxed) == EMPTY {
            table.entry(index).store(word(hash, block), Ordering::Release);
            return true;
        }
        index = (index + 1) & table.mask();
    }
    false
}

/// Writer: removes the entry at `hole`. `hash_of` tells the hash of a block. At least one entry must be empty.
///
/// A writer that stops half-way leaves one entry twice; calling this again for the later of both goes on.
pub fn remove(table: &impl Table, mut hole: usize, hash_of: impl Fn(u32) -> u64) {
    let mask = table.mask();
    let mut index = hole;
    loop {
        index = (index + 1) & mask;
        let entry = table.entry(index).load(Ordering::Relaxed);
        if entry == EMPTY || index == hole {
            table.entry(hole).store(EMPTY, Ordering::Release);
            return;
        }
        let from_home = index.wrapping_sub(home(table, hash_of(block(entry)))) & mask;
        let from_hole = index.wrapping_sub(hole) & mask;
        if from_home >= from_hole {
            table.entry(hole).store(entry, Ordering::Release);
            let moves = table.moves().load(Ordering::Relaxed);
            table.moves().store(moves.wrapping_add(1), Ordering::Release);
            hole = index;
        }
    }
}
