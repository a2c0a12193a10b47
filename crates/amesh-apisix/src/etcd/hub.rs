//! The store among its readers.

use super::errors::EtcdError;
use super::watch::Watch;
use super::{proto, Step};
use crate::store::Store;
use parking_lot::{Mutex, MutexGuard};
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::watch;

/// See [the module](self).
pub(super) struct Hub {
    store: Mutex<Store>,
    /// The mesh is known: before, nobody is told that it were empty.
    open: AtomicBool,
    changed: watch::Sender<()>,
}

impl Hub {
    pub(super) fn new(store: Store) -> Hub {
        Hub { store: Mutex::new(store), open: AtomicBool::new(false), changed: watch::Sender::new(()) }
    }

    /// The store, for as long as no await is in between.
    pub(super) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock()
    }

    /// The store for who asks, once the mesh is known.
    pub(super) fn read(&self) -> Result<MutexGuard<'_, Store>, EtcdError> {
        if self.is_open() {
            Ok(self.store.lock())
        } else {
            Err(EtcdError::NoLeader)
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    /// From now on what is known is told.
    pub(super) fn open(&self) {
        if !self.open.swap(true, Ordering::Relaxed) {
            self.store.lock().forget();
        }
    }

    /// There is something new.
    pub(super) fn tell(&self) {
        self.changed.send_replace(());
    }

    /// Wakes at once, and whenever there is something new.
    pub(super) fn wakes(&self) -> tokio_stream::wrappers::WatchStream<()> {
        tokio_stream::wrappers::WatchStream::new(self.changed.subscribe())
    }

    /// Begins a watch; with the revision at which it does.
    pub(super) fn watch(&self, request: &proto::WatchCreateRequest) -> Result<(Watch, i64), EtcdError> {
        let store = self.read()?;
        Ok((Watch::new(&store, request), store.revision()))
    }

    pub(super) fn step(&self, watch: &mut Watch) -> Step {
        watch.step(&self.store.lock())
    }
}
