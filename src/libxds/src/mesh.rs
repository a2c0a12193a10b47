//! Batches of the mesh model, written as APISIX's objects.

use crate::dictionary::Dictionary;
use crate::mirror::Mirror;
use crate::version::StoreError;
use amesh_apisix::plugins::PluginDirectory;
use amesh_apisix::{Changes, Options, Translator};
use amesh_model::batch::Batch;
use amesh_xds::engine::{Level, Log, PublishError, Publisher};
use amesh_xds::health::Vitals;

/// The mesh, and the dictionaries that it is written to.
pub struct Mesh<D, L> {
    mirror: Mirror<D, L>,
    translator: Translator,
    plugins: Option<PluginDirectory>,
    log: L,
}

impl<D: Dictionary, L: Log> Mesh<D, L> {
    /// A mesh that nothing is known of yet.
    pub fn new(mirror: Mirror<D, L>, plugins: Option<PluginDirectory>, options: Options, log: L) -> Mesh<D, L> {
        let mut mesh = Mesh { mirror, translator: Translator::new(options), plugins, log };
        // There are no routes to put them on yet: nothing is written.
        mesh.look_at_plugins();
        mesh
    }

    /// Puts the plugins of files that have changed on the routes; the changes of that.
    fn look_at_plugins(&mut self) -> Option<Changes> {
        let found = self.plugins.as_mut()?.look();
        for e in &found.errors {
            self.log.log(Level::Error, e);
        }
        Some(self.translator.set_plugins(found.plugins?))
    }

    /// Whether another process writes now.
    pub fn is_lost(&self) -> bool {
        self.mirror.is_lost()
    }

    /// Writes what a batch changes.
    ///
    /// # Errors
    /// Nothing is changed in the dictionaries; the next batch, an empty one too, tries it again.
    pub fn apply(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let changes = self.translator.apply(batch);
        self.write(changes)?;
        self.mirror.begun();
        Ok(())
    }

    fn write(&mut self, changes: Changes) -> Result<(), StoreError> {
        for refusal in &changes.refused {
            self.log.log(Level::Warn, &format!("{}: {}", refusal.what, refusal.reason));
        }
        let put = changes.put.into_iter().map(|object| (object.key.to_string().into(), object.json));
        self.mirror.write(put, changes.delete.into_iter().map(|key| key.to_string().into()))
    }
}

impl<D, L> Vitals for Mesh<D, L> {
    /// APISIX checks its upstreams itself.
    fn are_kept(&self) -> bool {
        false
    }
}

impl<D: Dictionary, L: Log> Publisher for Mesh<D, L> {
    fn publish(&mut self, batch: &Batch) -> Result<(), PublishError> {
        self.apply(batch).map_err(|e| PublishError::Other(e.to_string()))
    }

    fn tick(&mut self) {
        if let Some(changes) = self.look_at_plugins() {
            if let Err(e) = self.write(changes) {
                self.log.log(Level::Error, &format!("{e}; last good serves"));
            }
        }
        self.mirror.look();
    }
}
