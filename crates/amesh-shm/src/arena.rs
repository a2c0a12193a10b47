//! Which bytes of the arena are free. Kept in the writer's own memory and made anew from the directory when a writer
//! attaches, so that a crash in the middle of a change loses nothing.

use std::collections::{BTreeMap, BTreeSet};

/// Free ranges, best fit, neighbours joined.
#[derive(Debug, Default)]
pub(crate) struct Arena {
    by_offset: BTreeMap<usize, usize>,
    by_len: BTreeSet<(usize, usize)>,
    free: usize,
}

impl Arena {
    /// Bytes that are free.
    pub(crate) fn free_bytes(&self) -> usize {
        self.free
    }

    /// Takes `len` bytes; the offset, `None` when no range is large enough.
    pub(crate) fn take(&mut self, len: usize) -> Option<usize> {
        let (have, offset) = *self.by_len.range((len, 0)..).next()?;
        self.remove(offset, have);
        if have > len {
            self.insert(offset + len, have - len);
        }
        Some(offset)
    }

    /// Gives a range back.
    pub(crate) fn give(&mut self, mut offset: usize, mut len: usize) {
        if len == 0 {
            return;
        }
        if let Some((before, n)) = self.by_offset.range(..offset).next_back().map(|(o, n)| (*o, *n)) {
            if before + n == offset {
                self.remove(before, n);
                offset = before;
                len += n;
            }
        }
        if let Some(n) = self.by_offset.get(&(offset + len)).copied() {
            self.remove(offset + len, n);
            len += n;
        }
        self.insert(offset, len);
    }

    fn insert(&mut self, offset: usize, len: usize) {
        self.by_offset.insert(offset, len);
        self.by_len.insert((len, offset));
        self.free += len;
    }

    fn remove(&mut self, offset: usize, len: usize) {
        self.by_offset.remove(&offset);
        self.by_len.remove(&(len, offset));
        self.free -= len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ranges_never_overlap_and_all_come_back(sizes in proptest::collection::vec((1usize..40, any::<bool>()), 1..200)) {
            let mut arena = Arena::default();
            arena.give(0, 4096);
            let mut taken: Vec<(usize, usize)> = Vec::new();
            for (n, give) in sizes {
                if give && !taken.is_empty() {
                    let (o, l) = taken.swap_remove(n % taken.len());
                    arena.give(o, l);
                } else if let Some(o) = arena.take(n * 16) {
                    prop_assert!(o + n * 16 <= 4096);
                    prop_assert!(taken.iter().all(|(a, l)| o >= a + l || o + n * 16 <= *a));
                    taken.push((o, n * 16));
                }
                prop_assert_eq!(arena.free_bytes() + taken.iter().map(|t| t.1).sum::<usize>(), 4096);
            }
            for (o, l) in taken {
                arena.give(o, l);
            }
            prop_assert_eq!(arena.take(4096), Some(0));
        }
    }
}
