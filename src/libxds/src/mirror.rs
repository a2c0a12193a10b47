//! What keeps the dictionaries as they are meant to be: objects of files, what a former process has left, who writes.

use crate::dictionary::Dictionary;
use crate::objects::Objects;
use crate::store::Store;
use crate::version::StoreError;
use amesh_xds::engine::{Level, Log};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a former process has left and nobody has asked for is given up so long after a control plane's first answer: that
/// answer comes in parts.
const DISOWN_AFTER: Duration = Duration::from_secs(10);

/// Where the mesh comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere: there are objects of files alone.
    Nowhere,
    /// From files, all of it at once.
    Files,
    /// From a control plane, in parts.
    ControlPlane,
}

/// The dictionaries, and what is known of them.
pub struct Mirror<D, L> {
    store: Store<D>,
    objects: Option<Objects>,
    origin: Origin,
    /// When what was inherited is given up; `None`: not known yet, or done.
    disown: Option<Instant>,
    disowned: bool,
    /// Another process writes now.
    lost: bool,
    on_lost: Box<dyn Fn() + Send>,
    told: Option<StoreError>,
    log: L,
}

impl<D: Dictionary, L: Log> Mirror<D, L> {
    /// Takes over what a former process has left, and reads the files of objects. `on_lost` is called when another process
    /// has taken over: nothing is written any more then.
    ///
    /// # Errors
    /// The dictionaries refuse.
    pub fn open(
        mut store: Store<D>,
        objects: Option<Objects>,
        origin: Origin,
        log: L,
        on_lost: Box<dyn Fn() + Send>,
    ) -> Result<Self, StoreError> {
        let inherited = store.inherit()?;
        if inherited > 0 {
            log.log(Level::Notice, &format!("{inherited} objects of a former process serve until the mesh is known"));
        }
        let mut mirror = Mirror {
            store,
            objects,
            origin,
            disown: None,
            disowned: inherited == 0,
            lost: false,
            on_lost,
            told: None,
            log,
        };
        mirror.look_at_objects();
        Ok(mirror)
    }

    /// Whether another process writes now.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// Writes what the mesh has changed.
    ///
    /// # Errors
    /// Nothing is changed, and it is tried again with the next change.
    pub fn write(
        &mut self,
        put: impl IntoIterator<Item = (Arc<str>, Arc<str>)>,
        delete: impl IntoIterator<Item = Arc<str>>,
    ) -> Result<(), StoreError> {
        if self.lost {
            return Ok(());
        }
        self.store.change(put, delete);
        self.settle()
    }

    /// Something of the source is there: soon all of it is.
    pub fn begun(&mut self) {
        if !self.disowned && self.disown.is_none() {
            let after = if self.origin == Origin::ControlPlane { DISOWN_AFTER } else { Duration::ZERO };
            self.disown = Some(Instant::now() + after);
        }
    }

    fn settle(&mut self) -> Result<(), StoreError> {
        match self.store.settle() {
            Err(StoreError::Lost) => {
                if !std::mem::replace(&mut self.lost, true) {
                    self.log.log(Level::Notice, "a younger process writes the shared dictionaries now, this one ends");
                    (self.on_lost)();
                }
                Ok(())
            }
            result => result.map(|_| ()),
        }
    }

    /// Writes what changed outside of the engine's batches, and tells once why it cannot.
    fn settle_and_tell(&mut self) {
        match self.settle() {
            Ok(()) => self.told = None,
            Err(e) => {
                if self.told.as_ref() != Some(&e) {
                    self.log.log(Level::Error, &format!("{e}; last good serves"));
                }
                self.told = Some(e);
            }
        }
    }

    fn look_at_objects(&mut self) {
        let Some(objects) = &mut self.objects else { return };
        let found = objects.look();
        for e in &found.errors {
            self.log.log(Level::Error, &e.to_string());
        }
        if self.origin == Origin::Nowhere && objects.is_read() {
            self.begun();
        }
        if !found.put.is_empty() || !found.gone.is_empty() {
            self.store.change(found.put, found.gone);
            self.settle_and_tell();
        }
    }

    /// About once a second.
    pub fn look(&mut self) {
        if self.lost {
            return;
        }
        if self.store.check_owner() == Err(StoreError::Lost) {
            self.settle_and_tell();
            return;
        }
        self.look_at_objects();
        let due = self.disown.is_some_and(|at| Instant::now() >= at);
        if due {
            self.disown = None;
            self.disowned = true;
            let gone = self.store.disown();
            if gone > 0 {
                self.log.log(Level::Notice, &format!("{gone} objects of a former process are gone from the mesh"));
            }
            // Another process may have written while it did not know of this one.
            if let Err(e) = self.store.audit() {
                self.log.log(Level::Error, &e.to_string());
            }
        }
        if due || self.told.is_some() {
            self.settle_and_tell();
        }
    }
}
