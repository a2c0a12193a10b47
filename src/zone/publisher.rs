//! The writer's side of the zone: batches of the store become archived bytes in slots.

use super::{layout_hash, Alias};
use crate::listening;
use amesh_model::address::Address;
use amesh_model::batch::{Batch, Item, Value};
use amesh_model::bucket::TokenBucket;
use amesh_model::cluster::Cluster;
use amesh_model::vitals::{ClusterVitals, EndpointVitals};
use amesh_shm::{Error, Writer};
use amesh_xds::engine::{PublishError, Publisher as Publish};
use amesh_xds::health::Vitals;
use rkyv::rancor::Error as ArchiveError;
use rkyv::util::AlignedVec;
use std::sync::atomic::Ordering;

/// Kind of the slot that holds the thread's status as JSON; not one of the model's.
pub const STATUS_KIND: u8 = 255;

/// The one writer of a zone.
pub struct Publisher {
    /// Before its mapping: dropped first.
    writer: Writer,
    _alias: Alias,
}

impl Publisher {
    /// A writer of a formatted zone.
    ///
    /// # Errors
    /// When the zone is not of this layout.
    pub fn attach(alias: Alias) -> Result<Publisher, Error> {
        Ok(Publisher { writer: Writer::attach(alias.region, layout_hash())?, _alias: alias })
    }

    /// Archives one resource, with its cells of counters filled in; and which cells those are.
    fn archive(&mut self, item: &Item) -> Result<(AlignedVec, Vec<u32>), PublishError> {
        let mut cells = Vec::new();
        let with_buckets;
        let value = if item.value.has_buckets() {
            let mut value = item.value.clone();
            value.buckets(&mut |bucket| {
                bucket.cell = self.cell(&mut cells, &bucket_key(item, bucket))?;
                Ok::<_, PublishError>(())
            })?;
            cells.sort_unstable();
            cells.dedup();
            with_buckets = value;
            &with_buckets
        } else {
            &item.value
        };
        let bytes = match value {
            Value::Listener(v) => rkyv::to_bytes::<ArchiveError>(v),
            Value::RouteTable(v) => rkyv::to_bytes::<ArchiveError>(v),
            Value::ListenerIndex(v) => rkyv::to_bytes::<ArchiveError>(v),
            Value::Cluster(v) => {
                let mut v = Cluster { cell: self.cell(&mut cells, &cluster_key(&v.name))?, ..v.clone() };
                if let Some(high) = &mut v.high_priority {
                    high.cell = self.cell(&mut cells, &high_priority_key(&v.name))?;
                }
                rkyv::to_bytes::<ArchiveError>(&v)
            }
            Value::EndpointSet(v) => {
                let mut v = v.clone();
                for endpoint in v.localities.iter_mut().flat_map(|l| &mut l.endpoints) {
                    endpoint.cell = self.cell(&mut cells, &endpoint_key(&v.cluster, &endpoint.address))?;
                }
                rkyv::to_bytes::<ArchiveError>(&v)
            }
        };
        Ok((bytes.map_err(|e| PublishError::Other(format!("{}: {e}", item.name)))?, cells))
    }

    fn cell(&mut self, cells: &mut Vec<u32>, key: &[u8]) -> Result<u32, PublishError> {
        let cell = self.writer.cell(key).map_err(error)?;
        cells.push(cell);
        Ok(cell)
    }

    fn fill(&mut self, batch: &Batch, out: &mut amesh_shm::Batch, cells: &mut Vec<u32>) -> Result<(), PublishError> {
        // That of the zone when this batch is in it.
        let version = self.writer.version() + 1;
        for item in &batch.put {
            let (bytes, named) = self.archive(item)?;
            out.put_with_cells(item.kind as u8, item.name.as_bytes(), version, &bytes, &named);
            cells.extend(named);
        }
        for (kind, name) in &batch.remove {
            out.remove(*kind as u8, name.as_bytes());
        }
        self.writer.commit(out).map_err(error)?;
        Ok(())
    }
}

fn error(e: Error) -> PublishError {
    match e {
        Error::Full { needed, available, .. } if needed > available => {
            PublishError::Full { needed: needed as u64, available: available as u64 }
        }
        e => PublishError::Other(e.to_string()),
    }
}

/// Key of a cluster's cell.
fn cluster_key(cluster: &str) -> Vec<u8> {
    [b"cluster/", cluster.as_bytes()].concat()
}

/// Key of the cell that counts a cluster's requests of high priority.
fn high_priority_key(cluster: &str) -> Vec<u8> {
    [b"high/", cluster.as_bytes()].concat()
}

/// Key of an endpoint's cell.
fn endpoint_key(cluster: &str, to: &Address) -> Vec<u8> {
    [b"endpoint/", cluster.as_bytes(), b"/", to.to_string().as_bytes()].concat()
}

/// Key of a token bucket's cell. A bucket with other numbers is another.
fn bucket_key(item: &Item, bucket: &TokenBucket) -> Vec<u8> {
    let TokenBucket { max_tokens, tokens_per_fill, fill_interval, place, cell: _ } = bucket;
    let kind = item.kind as u8;
    format!("bucket/{kind}/{}/{place}/{max_tokens}/{tokens_per_fill}/{fill_interval}", item.name).into_bytes()
}

impl Vitals for Publisher {
    fn cluster(&self, cluster: &str) -> Option<ClusterVitals<'_>> {
        Some(ClusterVitals(&self.writer.find_cell(&cluster_key(cluster))?.words))
    }

    fn endpoint(&self, cluster: &str, endpoint: &Address) -> Option<EndpointVitals<'_>> {
        Some(EndpointVitals(&self.writer.find_cell(&endpoint_key(cluster, endpoint))?.words))
    }

    fn had_traffic(&self, cluster: &str) -> bool {
        self.writer.find_cell(&cluster_key(cluster)).is_some_and(|c| c.rq_total.load(Ordering::Relaxed) > 0)
    }

    fn clock(&self) -> u32 {
        super::clock()
    }
}

impl Publish for Publisher {
    fn publish(&mut self, batch: &Batch) -> Result<(), PublishError> {
        for item in &batch.put {
            if let Value::Listener(listener) = &item.value {
                listening::check(listener);
            }
        }
        let mut cells = Vec::new();
        let done = self.fill(batch, &mut amesh_shm::Batch::new(), &mut cells);
        if done.is_err() {
            // Cells that only this batch named are free again.
            cells.into_iter().for_each(|cell| self.writer.release_cell(cell));
        }
        done
    }

    fn tick(&mut self) {
        self.writer.reap();
        self.writer.reclaim();
    }

    fn is_read(&mut self) -> bool {
        self.writer.stats().workers > 0
    }

    fn status(&mut self, json: &str) {
        let mut out = amesh_shm::Batch::new();
        out.put(STATUS_KIND, b"", 0, json.as_bytes());
        // A status that finds no room is not worth a rejection: the next one may.
        let _ = self.writer.commit(&out);
    }
}
