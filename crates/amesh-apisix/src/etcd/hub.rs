//! The store among its readers.

use super::errors::EtcdError;
use super::watch::Watch;
use super::{proto, Step};
use crate::store::Store;
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Answers that are worth sharing have so many bytes at least.
const LARGE: usize = 64 << 10;
/// So many of them are kept ...
const KEPT: usize = 8;
/// ... for so long. After a restart all processes of all gateways ask for the same at once.
const KEPT_FOR: Duration = Duration::from_secs(5);

/// Large answers that many ask for at the same time: they share the bytes.
#[derive(Default)]
struct Shared {
    revision: i64,
    answers: Vec<(proto::RangeRequest, Bytes)>,
}

/// See [the module](self).
pub(super) struct Hub {
    store: Mutex<Store>,
    /// The mesh is known: before, nobody is told that it were empty.
    open: AtomicBool,
    changed: watch::Sender<()>,
    shared: Mutex<Shared>,
}

impl Hub {
    pub(super) fn new(store: Store) -> Hub {
        Hub {
            store: Mutex::new(store),
            open: AtomicBool::new(false),
            changed: watch::Sender::new(()),
            shared: Mutex::default(),
        }
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

    /// The answer to a range, written by `answer`, or as it was written for who asked the same just before.
    pub(super) fn range(
        self: &Arc<Hub>,
        request: &proto::RangeRequest,
        answer: impl FnOnce(&Store) -> Result<Bytes, EtcdError>,
    ) -> Result<Bytes, EtcdError> {
        let store = self.read()?;
        let mut shared = self.shared.lock();
        if shared.revision != store.revision() {
            *shared = Shared { revision: store.revision(), answers: Vec::new() };
        }
        if let Some((_, bytes)) = shared.answers.iter().find(|(r, _)| r == request) {
            return Ok(bytes.clone());
        }
        let bytes = answer(&store)?;
        if bytes.len() >= LARGE && shared.answers.len() < KEPT {
            if shared.answers.is_empty() {
                let hub = Arc::downgrade(self);
                tokio::spawn(async move {
                    tokio::time::sleep(KEPT_FOR).await;
                    if let Some(hub) = hub.upgrade() {
                        hub.shared.lock().answers = Vec::new();
                    }
                });
            }
            shared.answers.push((request.clone(), bytes.clone()));
        }
        Ok(bytes)
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
