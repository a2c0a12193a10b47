//! Which units of the arena are free: best fit, neighbours are joined. Private memory of the writer.

use std::collections::{BTreeMap, BTreeSet};

/// Free runs of units.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Arena {
    /// Start → length.
    runs: BTreeMap<u32, u32>,
    /// (length, start).
    by_len: BTreeSet<(u32, u32)>,
    free: usize,
}

impl Arena {
    /// Takes the smallest run that is long enough, the lowest of equals.
    pub(crate) fn take(&mut self, units: u32) -> Option<u32> {
        let (len, start) = *self.by_len.range((units, 0)..).next()?;
        self.unlink(start, len);
        if len > units {
            self.link(start + units, len - units);
        }
        Some(start)
    }

    /// Gives a run back that was taken, or that was never free.
    pub(crate) fn give(&mut self, start: u32, units: u32) {
        if units == 0 {
            return;
        }
        let (mut from, mut to) = (start, start + units);
        if let Some((&before, &len)) = self.runs.range(..start).next_back() {
            if before + len == start {
                self.unlink(before, len);
                from = before;
            }
        }
        if let Some(&len) = self.runs.get(&to) {
            self.unlink(to, len);
            to += len;
        }
        self.link(from, to - from);
    }

    /// Free units.
    pub(crate) fn free(&self) -> usize {
        self.free
    }

    /// Units of the longest run.
    pub(crate) fn largest(&self) -> usize {
        self.by_len.last().map_or(0, |&(len, _)| len as usize)
    }

    fn link(&mut self, start: u32, len: u32) {
        self.runs.insert(start, len);
        self.by_len.insert((len, start));
        self.free += len as usize;
    }

    fn unlink(&mut self, start: u32, len: u32) {
        self.runs.remove(&start);
        self.by_len.remove(&(len, start));
        self.free -= len as usize;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn best_fit_and_neighbours_are_joined() {
        let mut arena = Arena::default();
        arena.give(10, 90);
        let taken: Vec<u32> = [20, 5, 30, 5].iter().map(|&n| arena.take(n).unwrap()).collect();
        assert_eq!(taken, [10, 30, 35, 65]);
        assert_eq!((arena.free(), arena.largest()), (30, 30));
        arena.give(30, 5);
        arena.give(10, 20);
        assert_eq!(arena.take(25), Some(10), "joined, and a better fit than the 30 at the end");
        assert_eq!(arena.take(31), None);
        arena.give(65, 5);
        arena.give(10, 25);
        arena.give(35, 30);
        assert_eq!((arena.free(), arena.largest()), (90, 90));
        assert_eq!(arena.runs.len(), 1);
    }
}
