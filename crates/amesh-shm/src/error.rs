/// Why the zone cannot be used, or cannot take an update. The caller names the zone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The memory cannot even hold the tables.
    #[error("zone is too small: needs {needed} bytes, has {available}")]
    TooSmall {
        /// Bytes of the tables, and of a little arena.
        needed: usize,
        /// Bytes of the region.
        available: usize,
    },
    /// The region starts at an odd address.
    #[error("zone is not aligned: its memory must start at a multiple of 64 bytes")]
    Misaligned,
    /// An option is out of range.
    #[error("zone cannot have {given} {what}: at most {most}")]
    Option {
        /// Which option.
        what: &'static str,
        /// What it is.
        given: u32,
        /// What it may be.
        most: u32,
    },
    /// There is no zone in this memory.
    #[error("memory holds no zone: format it first")]
    NotFormatted,
    /// The zone was written by a build with other data types.
    #[error("zone has another layout ({found:#x}, this build has {expected:#x}): it must be formatted again")]
    Layout {
        /// Layout hash of this build.
        expected: u64,
        /// Layout hash in the zone's header.
        found: u64,
    },
    /// The directory points to something that is no block.
    #[error("zone is damaged at byte {at}: it must be formatted again")]
    Damaged {
        /// Offset in the region.
        at: usize,
    },
    /// The arena has no room for a batch.
    #[error("zone is full: needs {needed} bytes, has {available}{}", why(*.needed, *.available, *.largest, *.retired, .holders))]
    Full {
        /// Bytes that the batch needs, in all.
        needed: usize,
        /// Bytes that were free.
        available: usize,
        /// The longest run of free bytes.
        largest: usize,
        /// Bytes that will be free when readers have moved on.
        retired: usize,
        /// Pids of the workers that hold retired bytes.
        holders: Vec<u32>,
    },
    /// The directory has no room for a batch.
    #[error("zone is full: needs {needed} more slots, has {available}; a larger zone has more")]
    SlotsFull {
        /// New slots of the batch.
        needed: usize,
        /// Slots that were free.
        available: usize,
    },
    /// Every cell of counters is taken.
    #[error("zone is full: all {cells} cells of counters are taken; a larger zone has more")]
    CellsFull {
        /// Cells of the zone.
        cells: u32,
    },
    /// A key or a payload is longer than a block can say.
    #[error("{what} of {len} bytes is too long for a slot: at most {most}")]
    TooLong {
        /// `key` or `payload`.
        what: &'static str,
        /// Its length.
        len: usize,
        /// The greatest length.
        most: usize,
    },
    /// A payload refers to a cell that [`crate::Writer::cell`] did not give.
    #[error("slot refers to cell {0}, which is not in use")]
    NoSuchCell(u32),
    /// Another writer attached later.
    #[error("another writer has taken the zone over")]
    Superseded,
    /// No place is left for this process.
    #[error("all {0} worker places of the zone are taken; a larger zone has more")]
    WorkersFull(u32),
}

/// What is behind a full zone, where it is more than the numbers say.
fn why(needed: usize, available: usize, largest: usize, retired: usize, holders: &[u32]) -> String {
    let mut text = String::new();
    if needed <= available {
        text += &format!(" in pieces of at most {largest}");
    }
    if !holders.is_empty() {
        let pids = holders.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        text += &format!("; {retired} more are held back by stopped or slow workers, pid {pids}");
    }
    text
}
