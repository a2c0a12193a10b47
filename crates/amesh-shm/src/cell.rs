//! Counters that survive the update of what they count for.

use std::sync::atomic::{AtomicU32, AtomicU64};

/// Counters of a cluster or an endpoint. They stay while their resource is replaced.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Cell {
    /// Hash of the key; 0: free.
    pub(crate) key: AtomicU64,
    /// Position of a round robin.
    pub cursor: AtomicU32,
    /// Active requests.
    pub rq_active: AtomicU32,
    /// Requests.
    pub rq_total: AtomicU64,
    /// Requests that failed once connected.
    pub rq_error: AtomicU64,
    /// Connections that failed.
    pub cx_connect_fail: AtomicU64,
}
