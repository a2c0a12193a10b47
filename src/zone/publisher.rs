//! The writer's side of the zone: batches of the store become archived bytes in slots.

use super::layout_hash;
use amesh_model::address::Address;
use amesh_model::cluster::Cluster;
use amesh_model::Kind;
use amesh_shm::{Error, Region, Writer};
use amesh_xds::engine::{PublishError, Publisher as Publish};
use amesh_xds::store::{Batch, Item, Value};
use rkyv::rancor::Error as ArchiveError;
use rkyv::util::AlignedVec;
use std::collections::HashMap;

/// Kind of the slot that holds the thread's status as JSON; not one of the model's.
pub const STATUS_KIND: u8 = 255;

/// The one writer of a zone.
pub struct Publisher {
    writer: Writer,
    /// Cells that a published resource names.
    cells: HashMap<(Kind, String), Vec<u32>>,
    /// How many published resources name a cell.
    uses: HashMap<u32, u32>,
}

impl Publisher {
    /// A writer of a formatted zone.
    ///
    /// # Errors
    /// When the zone is not of this layout.
    pub fn attach(region: Region) -> Result<Publisher, Error> {
        Ok(Publisher { writer: Writer::attach(region, layout_hash())?, cells: HashMap::new(), uses: HashMap::new() })
    }

    /// Archives one resource, with its cells of counters filled in; and which cells those are.
    fn archive(&mut self, item: &Item) -> Result<(AlignedVec, Vec<u32>), PublishError> {
        let mut cells = Vec::new();
        let bytes = match &item.value {
            Value::Listener(v) => rkyv::to_bytes::<ArchiveError>(v),
            Value::RouteTable(v) => rkyv::to_bytes::<ArchiveError>(v),
            Value::ListenerIndex(v) => rkyv::to_bytes::<ArchiveError>(v),
            Value::Cluster(v) => {
                let v = Cluster { cell: self.cell(&mut cells, &[b"cluster/", v.name.as_bytes()])?, ..v.clone() };
                rkyv::to_bytes::<ArchiveError>(&v)
            }
            Value::EndpointSet(v) => {
                let mut v = v.clone();
                for endpoint in v.localities.iter_mut().flat_map(|l| &mut l.endpoints) {
                    endpoint.cell = self.endpoint_cell(&mut cells, &v.cluster, &endpoint.address)?;
                }
                rkyv::to_bytes::<ArchiveError>(&v)
            }
        };
        Ok((bytes.map_err(|e| PublishError::Other(format!("{}: {e}", item.name)))?, cells))
    }

    fn endpoint_cell(&mut self, cells: &mut Vec<u32>, cluster: &str, to: &Address) -> Result<u32, PublishError> {
        self.cell(cells, &[b"endpoint/", cluster.as_bytes(), b"/", to.to_string().as_bytes()])
    }

    fn cell(&mut self, cells: &mut Vec<u32>, key: &[&[u8]]) -> Result<u32, PublishError> {
        let cell = self.writer.cell(&key.concat()).map_err(error)?;
        cells.push(cell);
        Ok(cell)
    }

    /// A resource names other cells from now on; those that nothing names any more are given back.
    fn rename(&mut self, key: (Kind, String), cells: Vec<u32>) {
        for cell in &cells {
            *self.uses.entry(*cell).or_default() += 1;
        }
        let before = if cells.is_empty() { self.cells.remove(&key) } else { self.cells.insert(key, cells) };
        self.drop_uses(before.unwrap_or_default());
    }

    fn drop_uses(&mut self, cells: Vec<u32>) {
        for cell in cells {
            let Some(uses) = self.uses.get_mut(&cell) else { continue };
            *uses -= 1;
            if *uses == 0 {
                self.uses.remove(&cell);
                self.writer.release_cell(cell);
            }
        }
    }

    /// A batch that was not published leaves no cells behind.
    fn unname(&mut self, named: impl IntoIterator<Item = Vec<u32>>) {
        for cell in named.into_iter().flatten() {
            if !self.uses.contains_key(&cell) {
                self.writer.release_cell(cell);
            }
        }
    }
}

fn error(e: Error) -> PublishError {
    PublishError::Other(e.to_string())
}

impl Publish for Publisher {
    fn publish(&mut self, batch: &Batch) -> Result<(), PublishError> {
        let mut out = amesh_shm::Batch::new();
        let mut named = Vec::with_capacity(batch.put.len());
        for item in &batch.put {
            match self.archive(item) {
                Ok((bytes, cells)) => {
                    out.put(item.kind as u8, item.name.as_bytes(), 0, &bytes);
                    named.push(cells);
                }
                Err(e) => {
                    self.unname(named);
                    return Err(e);
                }
            }
        }
        for (kind, name) in &batch.remove {
            out.remove(*kind as u8, name.as_bytes());
        }
        if let Err(e) = self.writer.commit(&out) {
            self.unname(named);
            return Err(error(e));
        }
        for (item, cells) in batch.put.iter().zip(named) {
            self.rename((item.kind, item.name.clone()), cells);
        }
        for (kind, name) in &batch.remove {
            self.rename((*kind, name.clone()), Vec::new());
        }
        Ok(())
    }

    fn tick(&mut self) {
        self.writer.reap();
        self.writer.reclaim();
    }

    fn status(&mut self, json: &str) {
        let mut out = amesh_shm::Batch::new();
        out.put(STATUS_KIND, b"", 0, json.as_bytes());
        // A status that finds no room is not worth a rejection: the next one may.
        let _ = self.writer.commit(&out);
    }
}
