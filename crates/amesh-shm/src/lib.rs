//! Versioned slots in shared memory: one writer, many processes that read without a lock.
//!
//! A [`Region`] is memory of a fixed size that every process mapped before it was forked. The one [`Writer`] publishes
//! immutable payloads of bytes under `(kind, key)`; each process [registers](Reader::register) once, then
//! [pins](WorkerSlot::pin), looks up and reads. Nothing in the region is a pointer, so that the writer may use another
//! mapping of the same memory.
//!
//! ```text
//! region: header | directory | worker places | ledgers | cells | arena of blocks
//! directory entry (8 bytes) ──▶ block: hash, version, lengths | payload | key | cells it refers to
//! ```
//!
//! * **Publish.** A block is written first and never changes; then one release store of its place in the directory
//!   makes it the slot's. A reader can see the old block or the new one, nothing between.
//! * **Reclaim.** A worker announces the zone's version that it reads by (`protocol::epoch`). The writer frees an old
//!   block when every live pin is newer than its retirement; the pins of dead processes are cleared.
//! * **Cells.** Counters that outlive the update of their resource. What a worker counts as active is in its ledger too,
//!   so that the writer can give it back when the worker is killed (`protocol::gauge`).
//! * **Crash of the writer.** Its allocator is private memory, rebuilt from the directory when a writer attaches.
//!
//! Atomics are address-free: two mappings of the same memory act as one. The standard library promises the layout of
//! the integer alone, but all targets with lock-free 64-bit atomics compile them to instructions that act on the
//! physical memory (C11 7.17.5 and C++ \[atomics.lockfree\] ask for exactly this of lock-free atomics), and we
//! compile for no other.

#[cfg(not(target_has_atomic = "64"))]
compile_error!("amesh-shm needs lock-free 64-bit atomics: only those are address-free");

#[cfg(not(loom))]
mod protocol;
// For the models in tests/loom.rs.
#[cfg(loom)]
#[allow(missing_docs)]
pub mod protocol;
mod sync;

// Loom's atomics cannot be laid over raw memory, so under loom only the protocol is compiled: the same code.
#[cfg(not(loom))]
mod arena;
#[cfg(not(loom))]
mod batch;
#[cfg(not(loom))]
mod block;
#[cfg(not(loom))]
mod cell;
#[cfg(not(loom))]
mod cells;
#[cfg(not(loom))]
mod error;
#[cfg(not(loom))]
mod layout;
#[cfg(not(loom))]
mod process;
#[cfg(not(loom))]
mod reader;
#[cfg(not(loom))]
mod stats;
#[cfg(not(loom))]
mod view;
#[cfg(not(loom))]
mod writer;

#[cfg(not(loom))]
pub use crate::{
    batch::{Batch, Commit},
    block::hash,
    cell::{Cell, Gauge, Held, WORDS},
    error::Error,
    layout::{format, Options, Region},
    reader::{Iter, Pin, Reader, Slot, WorkerSlot},
    stats::Stats,
    writer::{Holder, Writer},
};
