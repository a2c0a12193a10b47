//! Waiting for a descriptor that tokio has no type for.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use tokio::io::unix::AsyncFd;
use tokio::io::Interest;

/// Registers a descriptor with the current runtime, to be told when it can be read.
///
/// tokio wants `unsafe` for types whose descriptor might change or be closed under it; what is [`AsFd`] keeps its own
/// open as long as it lives, so the function that was there before is as good.
#[allow(deprecated)]
pub(crate) fn readable<T: AsFd + AsRawFd>(owner: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(owner, Interest::READABLE)
}
