//! Which cell is whose, and which can be given again. Private memory of the writer.

use crate::cell::state;
use crate::error::Error;
use crate::sync::Ordering;
use crate::view::View;
use std::collections::{BTreeMap, HashMap};
use xxhash_rust::xxh3::xxh3_128;

#[derive(Debug, Default)]
pub(crate) struct Cells {
    by_key: HashMap<u128, u32>,
    /// How many blocks refer to each cell; retired blocks count until they are freed.
    references: Vec<u32>,
    free: Vec<u32>,
    /// Cells that no block refers to, and the version that pins must be newer than.
    idle: BTreeMap<u32, u64>,
}

impl Cells {
    /// Rebuilds the accounts from the cells, and from those that the directory's blocks refer to.
    pub(crate) fn attach(view: &View, referred: impl Iterator<Item = u32>, retired_at: u64) -> Cells {
        let used = view.header().cells_used.0.load(Ordering::Acquire) as u32;
        let mut cells = Cells { references: vec![0; used as usize], ..Cells::default() };
        for index in referred {
            if let Some(n) = cells.references.get_mut(index as usize) {
                *n += 1;
            }
        }
        for index in 0..used {
            let Some(cell) = view.cell(index) else { continue };
            match cell.state.load(Ordering::Acquire) {
                state::FREE => cells.free.push(index),
                state => {
                    cells.by_key.insert(cell.key(), index);
                    if state == state::REFERRED && cells.references[index as usize] == 0 {
                        cells.idle.insert(index, retired_at);
                    }
                }
            }
        }
        cells
    }

    /// Finds or takes the cell of a key.
    pub(crate) fn give(&mut self, view: &View, key: &[u8]) -> Result<u32, Error> {
        let key = xxh3_128(key);
        if let Some(&index) = self.by_key.get(&key) {
            if self.references[index as usize] == 0 {
                // It may wait to be freed: it does not any more.
                self.idle.remove(&index);
                set(view, index, state::GIVEN);
            }
            return Ok(index);
        }
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let full = Error::CellsFull { cells: view.layout.max_cells };
                let index = view.fresh_cell().ok_or(full)?;
                self.references.push(0);
                index
            }
        };
        if let Some(cell) = view.cell(index) {
            cell.begin(key);
        }
        self.by_key.insert(key, index);
        Ok(index)
    }

    /// The cell of a key, where there is one.
    pub(crate) fn find(&self, key: &[u8]) -> Option<u32> {
        self.by_key.get(&xxh3_128(key)).copied()
    }

    /// A block that refers to cells was published.
    pub(crate) fn refer(&mut self, view: &View, cells: impl Iterator<Item = u32>) {
        for index in cells {
            if let Some(n) = self.references.get_mut(index as usize) {
                *n += 1;
                self.idle.remove(&index);
                set(view, index, state::REFERRED);
            }
        }
    }

    /// A block that referred to cells was freed.
    pub(crate) fn forget(&mut self, cells: impl Iterator<Item = u32>, retired_at: u64) {
        for index in cells {
            if let Some(n) = self.references.get_mut(index as usize) {
                *n = n.saturating_sub(1);
                if *n == 0 {
                    self.idle.insert(index, retired_at);
                }
            }
        }
    }

    /// The cell may be freed as soon as no block refers to it.
    pub(crate) fn release(&mut self, view: &View, index: u32, retired_at: u64) {
        if self.references.get(index as usize) == Some(&0) && view.cell_is_given(index) {
            set(view, index, state::REFERRED);
            self.idle.insert(index, retired_at);
        }
    }

    /// Frees what nothing refers to, no pin can have found, and nobody counts on.
    pub(crate) fn sweep(&mut self, view: &View, oldest_pin: u64) {
        let Cells { by_key, free, idle, .. } = self;
        idle.retain(|&index, &mut retired_at| {
            let Some(cell) = view.cell(index) else { return false };
            if retired_at >= oldest_pin || !cell.is_idle() {
                return true;
            }
            by_key.remove(&cell.key());
            cell.state.store(state::FREE, Ordering::Release);
            free.push(index);
            false
        });
    }

    /// Cells in use.
    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }
}

fn set(view: &View, index: u32, state: u32) {
    if let Some(cell) = view.cell(index) {
        cell.state.store(state, Ordering::Release);
    }
}
