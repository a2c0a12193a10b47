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
        let mut transaction = Transaction {
            writer: self,
            steps: Vec::with_capacity(batch.changes.len()),
            by_key: HashMap::new(),
            needed: 0,
            full: false,
            unchanged: 0,
        };
        for change in &batch.changes {
            match change {
                Change::Put { kind, key, version, payload, cells } => {
                    let content =
                        Content { kind: *kind, hash: hash(*kind, key), version: *version, key, payload, cells };
                    transaction.put(content)?;
                }
                Change::Remove { kind, key } => transaction.remove(*kind, key),
            }
        }
        transaction.commit()
    }
}

/// A batch on its way into the zone. Dropped without [`Transaction::commit`], it leaves no trace.
struct Transaction<'w, 'b> {
    writer: &'w mut Writer,
    steps: Vec<Step<'b>>,
    /// Which step is a key's.
    by_key: HashMap<(u8, &'b [u8]), usize>,
    /// Units that the batch needs.
    needed: usize,
    full: bool,
    unchanged: usize,
}

enum Step<'b> {
    Put {
        unit: u32,
    },
    /// A put that found no room.
    Missing {
        units: usize,
    },
    Remove {
        kind: u8,
        key: &'b [u8],
    },
    /// Overruled by a later step.
    Void,
}

impl<'b> Transaction<'_, 'b> {
    /// Writes the block of a put.
    fn put(&mut self, content: Content<'b>) -> Result<(), Error> {
        let Content { kind, key, payload, cells, .. } = content;
        for (what, len) in [("key", key.len()), ("payload", payload.len()), ("list of cells", size_of_val(cells))] {
            if len > MAX_LEN {
                return Err(Error::TooLong { what, len, most: MAX_LEN });
            }
        }
        if let Some(&cell) = cells.iter().find(|&&cell| !self.writer.view.cell_is_given(cell)) {
            return Err(Error::NoSuchCell(cell));
        }
        self.overrule(kind, key);
        if self.writer.view.find(kind, content.hash, key).is_some_and(|(_, _, block)| block.holds(&content)) {
            self.unchanged += 1;
            return Ok(());
        }
        let units = content.units();
        self.needed += units;
        // Without room, go on to learn how much is missing.
        let unit = if self.full { None } else { self.writer.write(&content) };
        self.full |= unit.is_none();
        self.step(kind, key, unit.map_or(Step::Missing { units }, |unit| Step::Put { unit }));
        Ok(())
    }

    fn remove(&mut self, kind: u8, key: &'b [u8]) {
        self.overrule(kind, key);
        self.step(kind, key, Step::Remove { kind, key });
    }

    fn step(&mut self, kind: u8, key: &'b [u8], step: Step<'b>) {
        self.by_key.insert((kind, key), self.steps.len());
        self.steps.push(step);
    }

    fn overrule(&mut self, kind: u8, key: &'b [u8]) {
        if let Some(index) = self.by_key.remove(&(kind, key)) {
            match std::mem::replace(&mut self.steps[index], Step::Void) {
                Step::Put { unit } => self.needed -= self.writer.unwrite(unit),
                Step::Missing { units } => self.needed -= units,
                Step::Remove { .. } | Step::Void => {}
            }
        }
    }

    fn commit(mut self) -> Result<Commit, Error> {
        if self.steps.iter().any(|step| matches!(step, Step::Missing { .. })) {
            let needed = self.needed;
            self.roll_back();
            return Err(self.writer.full(needed));
        }
        self.writer.room_for(self.steps.iter().filter(|step| self.is_new(step)).count())?;

        let mut done = Commit { version: 0, written: 0, bytes: 0, unchanged: self.unchanged, removed: 0 };
        let mut removals = Vec::new();
        for step in std::mem::take(&mut self.steps) {
            match step {
                Step::Put { unit } => {
                    done.bytes += self.writer.publish(unit) * UNIT;
                    done.written += 1;
                }
                Step::Remove { kind, key } => removals.push((kind, key)),
                Step::Missing { .. } | Step::Void => {}
            }
        }
        for (kind, key) in removals {
            done.removed += usize::from(self.writer.unpublish(kind, hash(kind, key), key));
        }
        if done.written + done.removed > 0 {
            self.writer.advance();
        }
        done.version = self.writer.version();
        Ok(done)
    }

    fn is_new(&self, step: &Step) -> bool {
        let Step::Put { unit } = *step else { return false };
        let view = &self.writer.view;
        view.block(unit).is_some_and(|b| view.find(b.kind(), b.hash(), b.key()).is_none())
    }

    fn roll_back(&mut self) {
        for step in std::mem::take(&mut self.steps) {
            if let Step::Put { unit } = step {
                self.writer.unwrite(unit);
            }
        }
    }
}

impl Drop for Transaction<'_, '_> {
    fn drop(&mut self) {
        self.roll_back();
    }
}
