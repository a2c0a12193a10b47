//! Atomics: the standard library's, or loom's in a model.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{fence, AtomicU32, AtomicU64, Ordering};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{fence, AtomicU32, AtomicU64, Ordering};

/// A place between two steps of a worker where SIGKILL may hit: loom's models stop a worker at any of them.
#[cfg(not(loom))]
#[inline(always)]
pub(crate) fn crash_point() {}
#[cfg(loom)]
pub(crate) use crate::protocol::crash::crash_point;
