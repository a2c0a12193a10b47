//! How a zone is laid out.

use crate::cell::Cell;
use crate::Error;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const MAGIC: u64 = u64::from_ne_bytes(*b"ameshzn1");
/// Alignment of every part and every block, in bytes.
pub(crate) const ALIGN: usize = 16;

/// Memory that processes share: a base address in this process, and a length in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the region is only reached through atomics and through blocks whose protocol is this crate's.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Memory at `base`.
    ///
    /// # Safety
    /// `len` bytes at `base`, aligned to 64, must stay mapped for reading and writing as long as this, and everything
    /// attached to it, is used; nobody but this crate may write to them.
    pub const unsafe fn new(base: NonNull<u8>, len: usize) -> Region {
        Region { base, len }
    }

    /// A part of the region as `n` values of `T` from an offset on.
    ///
    /// # Safety
    /// `offset` must be aligned for `T` and the part must hold initialised values of it that are only changed through
    /// atomics.
    pub(crate) unsafe fn slice<'a, T>(self, offset: usize, n: usize) -> &'a [T] {
        debug_assert!(offset + n * size_of::<T>() <= self.len && offset.is_multiple_of(align_of::<T>()));
        // SAFETY: promised by the caller.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(offset).cast::<T>(), n) }
    }

    /// Address of an offset.
    pub(crate) fn at(self, offset: usize) -> *mut u8 {
        debug_assert!(offset <= self.len);
        // SAFETY: offsets come from the layout and lie within the region.
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// Bytes.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(self) -> usize {
        self.len
    }

    pub(crate) fn header<'a>(self) -> &'a Header {
        // SAFETY: `format` and `attach` have seen that the region is large enough; all of the header is atomic or constant.
        unsafe { &*self.base.as_ptr().cast::<Header>() }
    }
}

/// Sizes of the tables. 0: derived from the zone's size.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Processes that can read at one time, old workers that drain included.
    pub max_workers: u32,
    /// Active requests that one worker accounts for, so that they are given back when it is killed.
    pub ledger_entries: u32,
    /// Cells of counters.
    pub max_cells: u32,
    /// Slots.
    pub max_slots: u32,
}

/// The beginning of a zone.
#[repr(C, align(64))]
pub(crate) struct Header {
    magic: u64,
    layout_hash: u64,
    len: u64,
    pub(crate) max_workers: u32,
    pub(crate) ledger_entries: u32,
    pub(crate) max_cells: u32,
    pub(crate) directory_capacity: u32,
    pub(crate) workers: u64,
    pub(crate) ledgers: u64,
    pub(crate) cells: u64,
    pub(crate) directory: u64,
    pub(crate) arena: u64,
    pub(crate) arena_end: u64,
    /// Goes up by one with every commit.
    pub(crate) version: Line<AtomicU64>,
    /// Of reclamation.
    pub(crate) epoch: Line<AtomicU64>,
    /// Bytes of blocks that are published.
    pub(crate) used: AtomicU64,
    /// Bytes of blocks that are replaced and not yet free.
    pub(crate) retired: AtomicU64,
    pub(crate) slots: AtomicU64,
    pub(crate) cells_used: AtomicU64,
    pub(crate) full_rejections: AtomicU64,
    pub(crate) unledgered: AtomicU64,
    pub(crate) reaped: AtomicU64,
}

/// A cache line of its own.
#[repr(C, align(64))]
pub(crate) struct Line<T>(pub(crate) T);

/// A reader, in the table of workers.
#[repr(C, align(64))]
pub(crate) struct WorkerEntry {
    /// 0: free.
    pub(crate) pid: AtomicU32,
    /// Tells a process from a later one with its pid (`/proc/PID/stat`, field 22).
    pub(crate) start_time: AtomicU64,
    /// The epoch that it reads in; 0: none.
    pub(crate) pinned: AtomicU64,
}

const fn align(n: usize, to: usize) -> usize {
    n.div_ceil(to) * to
}

/// Lays a new, empty zone out.
///
/// # Errors
/// [`Error::TooSmall`].
pub fn format(region: Region, options: &Options, layout_hash: u64) -> Result<(), Error> {
    let or = |n: u32, derived: usize| if n > 0 { n as usize } else { derived };
    let len = region.len;
    let workers = or(options.max_workers, 128);
    let ledger = or(options.ledger_entries, (len / 16 / workers / 4).clamp(64, 8192));
    let cells = or(options.max_cells, (len / 512).max(64));
    let slots = or(options.max_slots, (len / 1024).max(64));
    // A directory at most three quarters full keeps probes short.
    let directory = (slots + slots / 3).next_power_of_two();
    let mut offset = align(size_of::<Header>(), 64);
    let mut place = |bytes: usize| {
        let at = offset;
        offset = align(offset + bytes, 64);
        at
    };
    let workers_at = place(workers * size_of::<WorkerEntry>());
    let ledgers_at = place(workers * ledger * size_of::<AtomicU32>());
    let cells_at = place(cells * size_of::<Cell>());
    let directory_at = place(directory * size_of::<AtomicU64>());
    let arena_at = offset;
    let needed = arena_at + 4096;
    if needed > len {
        return Err(Error::TooSmall { needed, available: len });
    }
    // SAFETY: the caller of Region::new gave this memory away, and nobody is attached to a zone that is being laid out.
    // All zeroes is a value of every table.
    unsafe {
        std::ptr::write_bytes(region.base.as_ptr(), 0, arena_at);
        region.base.as_ptr().cast::<Header>().write(Header {
            magic: MAGIC,
            layout_hash,
            len: len as u64,
            max_workers: workers as u32,
            ledger_entries: ledger as u32,
            max_cells: cells as u32,
            directory_capacity: directory as u32,
            workers: workers_at as u64,
            ledgers: ledgers_at as u64,
            cells: cells_at as u64,
            directory: directory_at as u64,
            arena: arena_at as u64,
            arena_end: (len / ALIGN * ALIGN) as u64,
            version: Line(AtomicU64::new(0)),
            epoch: Line(AtomicU64::new(1)),
            used: AtomicU64::new(0),
            retired: AtomicU64::new(0),
            slots: AtomicU64::new(0),
            cells_used: AtomicU64::new(0),
            full_rejections: AtomicU64::new(0),
            unledgered: AtomicU64::new(0),
            reaped: AtomicU64::new(0),
        });
    }
    std::sync::atomic::fence(Ordering::Release);
    Ok(())
}

/// Whether a region is a zone of this layout.
pub(crate) fn check(region: Region, layout_hash: u64) -> Result<&'static Header, Error> {
    if region.len < size_of::<Header>() {
        return Err(Error::Layout);
    }
    let header = region.header();
    if header.magic != MAGIC || header.layout_hash != layout_hash || header.len != region.len as u64 {
        return Err(Error::Layout);
    }
    Ok(header)
}

impl Header {
    pub(crate) fn workers<'a>(&self, region: Region) -> &'a [WorkerEntry] {
        // SAFETY: laid out by format; atomics alone.
        unsafe { region.slice(self.workers as usize, self.max_workers as usize) }
    }

    pub(crate) fn ledger<'a>(&self, region: Region, worker: usize) -> &'a [AtomicU32] {
        let entries = self.ledger_entries as usize;
        // SAFETY: as above.
        unsafe { region.slice(self.ledgers as usize + worker * entries * size_of::<AtomicU32>(), entries) }
    }

    pub(crate) fn cells<'a>(&self, region: Region) -> &'a [Cell] {
        // SAFETY: as above.
        unsafe { region.slice(self.cells as usize, self.max_cells as usize) }
    }

    pub(crate) fn directory<'a>(&self, region: Region) -> &'a [AtomicU64] {
        // SAFETY: as above.
        unsafe { region.slice(self.directory as usize, self.directory_capacity as usize) }
    }
}
