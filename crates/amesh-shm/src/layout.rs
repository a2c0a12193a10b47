//! Where everything is in the region.

use crate::cell::{Cell, MAX_CELLS};
use crate::error::Error;
use crate::protocol::gauge::MAX_WORKERS;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use std::ptr::NonNull;

const MAGIC: u64 = u64::from_le_bytes(*b"ameshshm");
/// Bytes of the unit that blocks are measured in; payloads are aligned to it.
pub(crate) const UNIT: usize = 16;
const LEAST_ARENA: usize = 4096;

/// Memory that all processes share.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a region is a place only; what lies there is atomics, and blocks that the protocol guards.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// `len` bytes from `base`, which is a multiple of 64.
    ///
    /// # Safety
    /// The memory is readable and writable, stays mapped as long as the region or anything made of it lives, and is used
    /// by this crate alone.
    pub unsafe fn new(base: NonNull<u8>, len: usize) -> Region {
        Region { base, len }
    }

    /// First byte.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Pointer to a byte of the region.
    ///
    /// # Safety
    /// `offset <= len`.
    pub(crate) unsafe fn at(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset <= self.len);
        // SAFETY: in the region, as the caller says.
        unsafe { self.base.as_ptr().add(offset) }
    }
}

/// How large the tables of a zone are. 0 means: as fits the zone's size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Processes that can read at a time (during a reload there are twice as many), at most 1,023. Derived: one per 64 KB
    /// of zone, 8 to 256.
    pub max_workers: u32,
    /// What a worker can hold at a time and get back when it is killed: two per request. Derived: all ledgers are a
    /// sixteenth of the zone.
    pub ledger_entries: u32,
    /// Cells of counters, one for each cluster and endpoint. Derived: a quarter of the zone.
    pub max_cells: u32,
    /// Slots, one for each resource. Derived: one per KB of zone.
    pub max_slots: u32,
}

/// First bytes of a zone. All are atomics, since processes look at them while another formats or writes.
#[repr(C, align(64))]
pub(crate) struct Header {
    magic: AtomicU64,
    layout_hash: AtomicU64,
    len: AtomicU64,
    max_slots: AtomicU64,
    max_workers: AtomicU64,
    ledger_entries: AtomicU64,
    max_cells: AtomicU64,
    /// Counts writers: the last one that attached is the writer.
    pub writer: AtomicU64,
    /// Version of the zone, and epoch: raised by every commit.
    pub version: Line<AtomicU64>,
    /// See [`crate::protocol::directory`].
    pub moves: Line<AtomicU64>,
    /// Cells that were ever given: those before this index are initialised.
    pub cells_used: Line<AtomicU64>,
    /// Batches that were refused since the zone is full.
    pub full_rejections: AtomicU64,
    /// Times that a worker's ledger was full.
    pub unledgered: AtomicU64,
    /// Workers that were found dead.
    pub reaped: AtomicU64,
    /// These are the writer's figures, see [`crate::Stats`].
    pub used: AtomicU64,
    pub free: AtomicU64,
    pub largest_free: AtomicU64,
    pub retired: AtomicU64,
    pub slots: AtomicU64,
    pub cells: AtomicU64,
}

/// A cache line of its own.
#[repr(C, align(64))]
pub(crate) struct Line<T>(pub T);

/// A worker's place. The first line is its own, the second is written by others.
#[repr(C, align(64))]
pub(crate) struct Place {
    /// Version that it reads by, or 0.
    pub pin: AtomicU64,
    /// See [`crate::protocol::gauge`].
    pub operation: AtomicU64,
    /// 1 when the ledger's memory was initialised.
    pub ledger_ready: AtomicU32,
    /// Whose place it is ([`crate::process::Identity`]), or 0.
    pub owner: Line<AtomicU64>,
    /// See [`crate::protocol::gauge`].
    pub confirmed: AtomicU32,
}

/// Offsets and sizes of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub len: usize,
    pub max_slots: usize,
    /// Entries of the directory: a power of two.
    pub entries: usize,
    pub max_workers: u32,
    pub ledger_entries: u32,
    pub max_cells: u32,
    pub directory: usize,
    pub places: usize,
    pub ledgers: usize,
    pub cells: usize,
    /// Start of the arena.
    pub arena: usize,
}

fn lines(bytes: usize) -> usize {
    bytes.next_multiple_of(64)
}

impl Layout {
    fn new(len: usize, options: Options) -> Result<Layout, Error> {
        let most = |what, given: u32, most: u32| match given <= most {
            true => Ok(given),
            false => Err(Error::Option { what, given, most }),
        };
        let max_workers = most("workers", options.max_workers, MAX_WORKERS)?;
        let ledger_entries = most("ledger entries", options.ledger_entries, 1 << 24)?;
        let max_cells = most("cells", options.max_cells, MAX_CELLS)?;
        let max_slots = most("slots", options.max_slots, 1 << 28)? as usize;
        // A directory that is two thirds full at most: probes stay short.
        let entries = (max_slots + max_slots / 2 + 1).next_power_of_two();
        let directory = size_of::<Header>();
        let places = lines(directory + entries * size_of::<AtomicU64>());
        let ledgers = places + max_workers as usize * size_of::<Place>();
        let cells = lines(ledgers + max_workers as usize * ledger_entries as usize * size_of::<AtomicU32>());
        let arena = cells + max_cells as usize * size_of::<Cell>();
        let len = len / UNIT * UNIT;
        if len < arena + LEAST_ARENA || len / UNIT > u32::MAX as usize {
            return Err(Error::TooSmall { needed: arena + LEAST_ARENA, available: len });
        }
        Ok(Layout {
            len,
            max_slots,
            entries,
            max_workers,
            ledger_entries,
            max_cells,
            directory,
            places,
            ledgers,
            cells,
            arena,
        })
    }

    /// Reads the layout of a formatted region.
    pub(crate) fn open(region: Region, layout_hash: u64) -> Result<Layout, Error> {
        let header = header(&region)?;
        if header.magic.load(Ordering::Acquire) != MAGIC || header.len.load(Ordering::Relaxed) != region.len as u64 {
            return Err(Error::NotFormatted);
        }
        let found = header.layout_hash.load(Ordering::Relaxed);
        if found != layout_hash {
            return Err(Error::Layout { expected: layout_hash, found });
        }
        let options = Options {
            max_workers: header.max_workers.load(Ordering::Relaxed) as u32,
            ledger_entries: header.ledger_entries.load(Ordering::Relaxed) as u32,
            max_cells: header.max_cells.load(Ordering::Relaxed) as u32,
            max_slots: header.max_slots.load(Ordering::Relaxed) as u32,
        };
        Layout::new(region.len, options)
    }
}

/// The header of a region that is large enough for one.
pub(crate) fn header(region: &Region) -> Result<&Header, Error> {
    if !(region.base.as_ptr() as usize).is_multiple_of(64) {
        return Err(Error::Misaligned);
    }
    if region.len < size_of::<Header>() {
        return Err(Error::TooSmall { needed: size_of::<Header>() + LEAST_ARENA, available: region.len });
    }
    // SAFETY: aligned, long enough, all atomics, and mapped as Region::new was promised.
    Ok(unsafe { region.base.cast::<Header>().as_ref() })
}

impl Options {
    fn derived(self, len: usize) -> Options {
        let or = |given: u32, derived: usize| if given == 0 { derived as u32 } else { given };
        let max_workers = or(self.max_workers, (len / 65536).clamp(8, 256));
        let ledgers = len / 16 / size_of::<AtomicU32>();
        Options {
            max_workers,
            ledger_entries: or(self.ledger_entries, (ledgers / max_workers as usize).clamp(16, 1 << 16)),
            max_cells: or(self.max_cells, (len / 4 / size_of::<Cell>()).clamp(16, MAX_CELLS as usize)),
            max_slots: or(self.max_slots, (len / 1024).clamp(16, 1 << 28)),
        }
    }
}

/// Makes an empty zone of a region that nobody uses. `layout_hash` says what the payloads' bytes mean.
///
/// Ledgers and cells are not touched until they are used: pages are charged to the memory limit when they are.
///
/// # Errors
/// [`Error::TooSmall`] when the tables do not fit, [`Error::Option`], [`Error::Misaligned`].
pub fn format(region: Region, options: Options, layout_hash: u64) -> Result<(), Error> {
    let header = header(&region)?;
    let options = options.derived(region.len);
    let layout = Layout::new(region.len, options)?;
    header.magic.store(0, Ordering::Release);
    // SAFETY: all before the ledgers lies in the region, and zero is a valid value of its atomics.
    unsafe { std::ptr::write_bytes(region.at(0), 0, layout.ledgers) };
    header.layout_hash.store(layout_hash, Ordering::Relaxed);
    header.len.store(region.len as u64, Ordering::Relaxed);
    header.max_slots.store(layout.max_slots as u64, Ordering::Relaxed);
    header.max_workers.store(layout.max_workers.into(), Ordering::Relaxed);
    header.ledger_entries.store(layout.ledger_entries.into(), Ordering::Relaxed);
    header.max_cells.store(layout.max_cells.into(), Ordering::Relaxed);
    header.version.0.store(1, Ordering::Relaxed);
    header.magic.store(MAGIC, Ordering::Release);
    Ok(())
}
