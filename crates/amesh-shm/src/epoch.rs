//! Pins and what they hold back.
//!
//! A reader writes the epoch it reads in, then passes a fence, then reads. The writer swings a slot, passes a fence,
//! moves the epoch on, and looks at the pins. Of the two fences one comes first: either the writer sees the pin, or the
//! reader sees the new block.

#[cfg(loom)]
use loom::sync::atomic::{fence, AtomicU64, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{fence, AtomicU64, Ordering};

/// A reader begins: what it finds from now on stays until [`unpin`].
pub fn pin(pinned: &AtomicU64, epoch: &AtomicU64) {
    pinned.store(epoch.load(Ordering::Acquire), Ordering::Relaxed);
    fence(Ordering::SeqCst);
}

/// A reader is done with all that it found.
pub fn unpin(pinned: &AtomicU64) {
    pinned.store(0, Ordering::Release);
}

/// The writer has swung its slots: blocks replaced so far may be held by pins of the returned epoch and older ones.
pub fn advance(epoch: &AtomicU64) -> u64 {
    fence(Ordering::SeqCst);
    epoch.fetch_add(1, Ordering::AcqRel)
}

/// Whether a pin holds back what was retired in `epoch`.
pub fn holds(pinned: &AtomicU64, epoch: u64) -> bool {
    let pin = pinned.load(Ordering::Acquire);
    pin != 0 && pin <= epoch
}
