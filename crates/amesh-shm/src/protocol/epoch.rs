//! Pins and epochs: when may the writer use a retired block's memory again?
//!
//! The epoch is the zone's version. The writer swings its slots, then raises the version from `e` to `e + 1`; what it
//! unlinked is *retired at e*. A reader stores the version that it saw into its own pin, passes a SeqCst fence, and reads.
//! A block retired at `e` is free when no pin is `<= e`:
//!
//! * A pin `> e` saw the version that was stored (release) after the swing, so it cannot find the old block.
//! * A pin that the writer's scan does not see yet: the writer's fence lies between swing and scan, the reader's between
//!   its pin and its reads. One of both fences is first: either the scan sees the pin, or the reader sees the swing.
//! * A pin that is older than need be (its process slept between load and store) only keeps memory longer. Hence one
//!   store is enough, with no second look at the version as collectors with many writers need it.
//!
//! Loom has fences with SeqCst order, but takes SeqCst accesses for AcqRel: the fences carry the argument.

use crate::sync::{crash_point, fence, AtomicU64, Ordering};

/// Value of a pin that holds nothing. Versions begin at 1.
pub const UNPINNED: u64 = 0;

/// Pins: from here to [`unpin`] nothing that can be found is reused.
#[inline]
pub fn pin(version: &AtomicU64, pin: &AtomicU64) {
    // Relaxed is enough: the fence below makes the load acquire what came before the version's release store.
    let seen = version.load(Ordering::Relaxed);
    // Release: a scan that sees this pin also sees that the reads under the pin before it are over.
    pin.store(seen, Ordering::Release);
    fence(Ordering::SeqCst);
    crash_point();
}

/// Ends a pin.
#[inline]
pub fn unpin(pin: &AtomicU64) {
    pin.store(UNPINNED, Ordering::Release);
}

/// After the writer's swings: raises the version and returns the one that unlinked blocks are retired at.
pub fn advance(version: &AtomicU64) -> u64 {
    let retired_at = version.load(Ordering::Relaxed);
    fence(Ordering::SeqCst);
    version.store(retired_at + 1, Ordering::Release);
    retired_at
}

/// The oldest version that any of the pins reads by; `u64::MAX` when there is none. What was retired before it is free.
pub fn oldest<'a>(pins: impl Iterator<Item = &'a AtomicU64>) -> u64 {
    fence(Ordering::SeqCst);
    pins.map(|pin| pin.load(Ordering::Acquire)).filter(|&seen| seen != UNPINNED).min().unwrap_or(u64::MAX)
}
