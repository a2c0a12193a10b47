use crate::block::{hash, Content, MAX_LEN};
use crate::error::Error;
use crate::layout::UNIT;
use crate::writer::Writer;
use std::collections::HashMap;

/// An update of many slots, for [`Writer::commit`]: taken whole or not at all. Of several changes of one key the last one
/// counts.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    changes: Vec<Change>,
}

#[derive(Debug, Clone)]
enum Change {
    Put { kind: u8, key: Box<[u8]>, version: u64, payload: Box<[u8]>, cells: Box<[u32]> },
    Remove { kind: u8, key: Box<[u8]> },
}

impl Change {
    fn key(&self) -> (u8, &[u8]) {
        let (Change::Put { kind, key, .. } | Change::Remove { kind, key }) = self;
        (*kind, key)
    }
}

impl Batch {
    /// A batch that changes nothing.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Publishes a payload under kind and key. A slot that holds these very bytes already stays as it is, with its
    /// version.
    pub fn put(&mut self, kind: u8, key: &[u8], version: u64, payload: &[u8]) {
        self.put_with_cells(kind, key, version, payload, &[]);
    }

    /// As [`Batch::put`]; the cells, which the payload names by index, stay their keys' at least as long as the slot, and
    /// are used for other keys when no slot refers to them any more.
    pub fn put_with_cells(&mut self, kind: u8, key: &[u8], version: u64, payload: &[u8], cells: &[u32]) {
        let (key, payload, cells) = (key.into(), payload.into(), cells.into());
        self.changes.push(Change::Put { kind, key, version, payload, cells });
    }

    /// Removes a slot, if there is one. Removals take place after all puts.
    pub fn remove(&mut self, kind: u8, key: &[u8]) {
        self.changes.push(Change::Remove { kind, key: key.into() });
    }
}

/// What a commit did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// Version of the zone now. Raised by one if anything was written or removed.
    pub version: u64,
    /// Slots that were written.
    pub written: usize,
    /// Bytes of their blocks.
    pub bytes: usize,
    /// Slots that held the same bytes already, and keep their version.
    pub unchanged: usize,
    /// Slots that were removed.
    pub removed: usize,
}

impl Writer {
    /// Swings the slots of a batch: puts in their order, then removals, then the zone's version.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::SlotsFull`], [`Error::TooLong`], [`Error::NoSuchCell`], [`Error::Superseded`]: all is as
    /// it was before.
    pub fn commit(&mut self, batch: &Batch) -> Result<Commit, Error> {
        self.check()?;
        let last: HashMap<_, _> = batch.changes.iter().map(Change::key).zip(0..).collect();
        let mut transaction = Transaction {
            writer: self,
            blocks: Vec::new(),
            removals: Vec::new(),
            needed: 0,
            full: false,
            unchanged: 0,
        };
        for (change, index) in batch.changes.iter().zip(0..) {
            if last.get(&change.key()) != Some(&index) {
                continue;
            }
            match change {
                Change::Put { kind, key, version, payload, cells } => {
                    let (kind, version) = (*kind, *version);
                    transaction.put(Content { kind, hash: hash(kind, key), version, key, payload, cells })?;
                }
                Change::Remove { kind, key } => transaction.removals.push((*kind, key)),
            }
        }
        transaction.commit()
    }
}

/// A batch on its way into the zone. Dropped without [`Transaction::commit`], it leaves no trace.
struct Transaction<'w, 'b> {
    writer: &'w mut Writer,
    /// What was written, and nobody sees yet.
    blocks: Vec<u32>,
    removals: Vec<(u8, &'b [u8])>,
    /// Units that the batch needs.
    needed: usize,
    full: bool,
    unchanged: usize,
}

impl Transaction<'_, '_> {
    /// Writes the block of a put.
    fn put(&mut self, content: Content) -> Result<(), Error> {
        let Content { kind, key, payload, cells, .. } = content;
        for (what, len) in [("key", key.len()), ("payload", payload.len()), ("list of cells", size_of_val(cells))] {
            if len > MAX_LEN {
                return Err(Error::TooLong { what, len, most: MAX_LEN });
            }
        }
        if let Some(&cell) = cells.iter().find(|&&cell| !self.writer.view.cell_is_given(cell)) {
            return Err(Error::NoSuchCell(cell));
        }
        if self.writer.view.find(kind, content.hash, key).is_some_and(|(_, _, block)| block.holds(&content)) {
            self.unchanged += 1;
            return Ok(());
        }
        self.needed += content.units();
        // Without room, go on to learn how much is missing.
        if !self.full {
            match self.writer.write(&content) {
                Some(unit) => self.blocks.push(unit),
                None => self.full = true,
            }
        }
        Ok(())
    }

    fn commit(mut self) -> Result<Commit, Error> {
        if self.full {
            self.roll_back();
            return Err(self.writer.full(self.needed));
        }
        self.writer.room_for(self.blocks.iter().filter(|&&unit| self.is_new(unit)).count())?;

        let written = self.blocks.len();
        let units: usize = std::mem::take(&mut self.blocks).into_iter().map(|unit| self.writer.publish(unit)).sum();
        let mut removed = 0;
        for (kind, key) in std::mem::take(&mut self.removals) {
            removed += usize::from(self.writer.unpublish(kind, hash(kind, key), key));
        }
        if written + removed > 0 {
            self.writer.advance();
        }
        let version = self.writer.version();
        Ok(Commit { version, written, bytes: units * UNIT, unchanged: self.unchanged, removed })
    }

    fn is_new(&self, unit: u32) -> bool {
        let view = &self.writer.view;
        view.block(unit).is_some_and(|b| view.find(b.kind(), b.hash(), b.key()).is_none())
    }

    fn roll_back(&mut self) {
        for unit in std::mem::take(&mut self.blocks) {
            self.writer.unwrite(unit);
        }
    }
}

impl Drop for Transaction<'_, '_> {
    fn drop(&mut self) {
        self.roll_back();
        self.writer.note();
    }
}
