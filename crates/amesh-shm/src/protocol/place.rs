//! Who owns a worker's place: one word, so that a place is taken, left and reaped by one exchange.

use crate::protocol::epoch;
use crate::sync::{AtomicU64, Ordering};

/// Owner of a place that is nobody's.
pub const NOBODY: u64 = 0;
/// Owner of a place whose process was found dead, while the place is put in order.
pub const REAPING: u64 = u64::MAX;

/// Takes a place that is nobody's.
pub fn take(owner: &AtomicU64, own: u64) -> bool {
    owner.compare_exchange(NOBODY, own, Ordering::AcqRel, Ordering::Relaxed).is_ok()
}

/// Begins to put the place of a dead process in order. `false` when it is not that process's any more: it may have left
/// before it died, and another may have taken the place.
pub fn reap(owner: &AtomicU64, dead: u64) -> bool {
    owner.compare_exchange(dead, REAPING, Ordering::AcqRel, Ordering::Relaxed).is_ok()
}

/// Leaves a place in order: the pin ends before anyone else can take it.
pub fn leave(owner: &AtomicU64, pin: &AtomicU64) {
    epoch::unpin(pin);
    owner.store(NOBODY, Ordering::Release);
}
