//! Versioned slots in memory that one writer and many processes share.
//!
//! The memory is one contiguous [`Region`]. Nothing in it is a pointer: everything is an offset, because the writer
//! may see it at another address than the readers. A slot is one atomic word of the directory that names a block; the
//! bytes of a block never change. An update writes a new block and swings the word with one release store. Readers pin
//! an epoch around what they read; the writer frees a replaced block when no live pin is as old as its replacement.
//!
//! Rust's atomics are the machine's and "address-free" (C++ [atomics.lockfree]): they mean the same between processes,
//! at whatever address the memory is mapped.

#![deny(unsafe_op_in_unsafe_fn)]

mod arena;
mod cell;
mod directory;
mod epoch;
mod layout;
mod process;
mod reader;
mod writer;

pub use cell::Cell;
pub use layout::{format, Options, Region};
pub use reader::{Held, Pin, Reader, Slot, WorkerSlot};
pub use writer::{Batch, Commit, Stats, Writer};

/// What goes wrong with a zone.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum Error {
    /// Too little memory to lay a zone out.
    #[error("zone is too small: needs {needed} bytes, has {available}")]
    TooSmall {
        /// Bytes that the fixed parts and one block need.
        needed: usize,
        /// Bytes there are.
        available: usize,
    },
    /// No room for an update.
    #[error("zone is full: needs {needed} bytes, has {available}{hint}")]
    Full {
        /// Bytes that the update needs.
        needed: usize,
        /// Bytes that are free.
        available: usize,
        /// Who holds memory back, and the way out.
        hint: String,
    },
    /// No room in one of the tables.
    #[error("zone is full: all {capacity} {what} are in use; make the zone larger")]
    TableFull {
        /// What the table holds.
        what: &'static str,
        /// How many it holds.
        capacity: usize,
    },
    /// The memory is not a zone, or one of another build.
    #[error("zone was laid out by another build of the module: restart nginx")]
    Layout,
    /// The system said no.
    #[error("{what}: {reason}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's words.
        reason: String,
    },
}

/// Hash of a slot's key: what [`Pin::get_hashed`] wants.
pub fn hash(kind: u8, key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(key, u64::from(kind))
}
