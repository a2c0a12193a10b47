use crate::sync::Ordering;
use crate::view::View;

/// Figures of the zone. Sizes are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// The whole region.
    pub size: u64,
    /// What blocks can have of it; the rest is header, directory, ledgers and cells.
    pub capacity: u64,
    /// Blocks that slots point to.
    pub used: u64,
    /// Free.
    pub free: u64,
    /// The longest run of free bytes.
    pub largest_free: u64,
    /// Replaced or removed, but maybe still read.
    pub retired: u64,
    /// Slots in use.
    pub slots: u64,
    /// Slots that there can be.
    pub slots_max: u64,
    /// Cells in use.
    pub cells: u64,
    /// Cells that there can be.
    pub cells_max: u64,
    /// Version of the zone.
    pub version: u64,
    /// Batches that were refused since the zone is full.
    pub full_rejections: u64,
    /// Times that something was counted on a cell with no room in the worker's ledger: it is not given back when the
    /// worker is killed.
    pub unledgered: u64,
    /// Workers that were found dead.
    pub reaped: u64,
    /// Workers.
    pub workers: u64,
    /// Workers that there can be at a time.
    pub workers_max: u64,
}

impl View {
    pub(crate) fn stats(&self) -> Stats {
        let header = self.header();
        let layout = &self.layout;
        let capacity = layout.len - layout.arena;
        Stats {
            size: layout.len as u64,
            capacity: capacity as u64,
            used: header.used.load(Ordering::Relaxed),
            free: header.free.load(Ordering::Relaxed),
            largest_free: header.largest_free.load(Ordering::Relaxed),
            retired: header.retired.load(Ordering::Relaxed),
            slots: header.slots.load(Ordering::Relaxed),
            slots_max: layout.max_slots as u64,
            cells: header.cells.load(Ordering::Relaxed),
            cells_max: layout.max_cells.into(),
            version: header.version.0.load(Ordering::Relaxed),
            full_rejections: header.full_rejections.load(Ordering::Relaxed),
            unledgered: header.unledgered.load(Ordering::Relaxed),
            reaped: header.reaped.load(Ordering::Relaxed),
            workers: self.places().filter(|p| p.owner.0.load(Ordering::Relaxed) != 0).count() as u64,
            workers_max: layout.max_workers.into(),
        }
    }
}
