//! What the nginx master's thread runs: sources in, batches out.
//!
//! [`Engine::load`] is for before the first fork, without a runtime: it reads the file source, or the snapshot, and
//! publishes it. [`Engine::run`] then keeps the world up to date until it is told to stop. The engine outlives changes
//! of the configuration and of the zones it publishes to.
//!
//! Descriptors: everything is opened inside [`Engine::run`], on the thread that runs it, so that thread may have a
//! descriptor table of its own. Hence commands come through a channel in memory, and a descriptor that the thread owns
//! only says that there are some.

mod config;
mod feed;
mod run;
mod status;
mod world;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use crate::health::Vitals;
use crate::store::Batch;
use crossbeam_channel::Sender;

pub use crate::transport::{Protocol, Target};
pub use config::{Config, ConfigError, Server, Source, Tls};
pub use run::{Engine, EngineError, LoadError, Loaded};

/// How much a message matters; nginx's own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something does not work, and last good serves.
    Error,
    /// Something is not as it should be.
    Warn,
    /// Something happened that an operator wants to know.
    Notice,
    /// For who wants to know more.
    Info,
}

/// Where messages go. Each event is told once, not at every retry.
pub trait Log {
    /// One message of one line or more.
    fn log(&self, level: Level, text: &str);
}

/// Why a batch was not published. Nothing of it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// There is no room.
    #[error("zone is full: needs {needed} bytes, has {available}; make the zone larger")]
    Full {
        /// Bytes that the batch needs.
        needed: u64,
        /// Bytes that are free.
        available: u64,
    },
    /// Anything else; the text names the way out.
    #[error("{0}")]
    Other(String),
}

/// Where batches go: a zone.
pub trait Publisher: Vitals {
    /// Publishes a whole batch, or nothing of it.
    ///
    /// # Errors
    /// The batch is kept and comes again, with what came since.
    fn publish(&mut self, batch: &Batch) -> Result<(), PublishError>;

    /// About once a second, for work that is not urgent.
    fn tick(&mut self) {}

    /// The status as JSON, when it has changed.
    fn status(&mut self, _json: &str) {}

    /// Whether anybody still reads what is published here; asked once a second of all but the newest publisher.
    fn is_read(&mut self) -> bool {
        true
    }
}

/// Somebody who follows what is published and serves it in another form, on the engine's thread and runtime: it may spawn
/// tasks there. It is told of each batch after the zones, whether it found room in them or not: a zone gets it later then.
pub trait Observer: Send {
    /// Called when the engine begins to run, and after commands: the time to look for orders of its own. `fresh`: the runtime
    /// is new, what was spawned and opened in another one is gone. Whether it has to be told all that is known.
    fn attend(&mut self, fresh: bool) -> bool;

    /// All that is known; what is not in it is gone. `complete`: it is a whole mesh, from files or a snapshot or because
    /// much came already, not the beginning of one.
    fn everything(&mut self, batch: Option<&Batch>, complete: bool);

    /// What changes.
    fn publish(&mut self, batch: &Batch);

    /// About once a second, for what it looks at itself.
    fn tick(&mut self) {}
}

/// What the engine can be told while it runs.
// Commands are rare: a box would save nothing.
#[allow(clippy::large_enum_variant)]
pub enum Command<P> {
    /// From now on this is the configuration.
    Configure(Config),
    /// From now on publish here too: all that is known first, then every change. The last one that came decides what
    /// is NACKed; the others are kept while they are read.
    Publish {
        /// The new one.
        publisher: P,
        /// Told when all that is known is there, or why not.
        reply: Sender<Result<(), PublishError>>,
    },
    /// There are orders for observers.
    Attend,
    /// Tell the status.
    Status(Sender<String>),
    /// End.
    Stop,
}

/// The runtime for [`Engine::run`]: of the calling thread alone. `park` is called before the thread waits and
/// `unpark` after, so between the two it holds no lock of its own and allocates nothing.
///
/// # Errors
/// When the system gives no descriptors.
pub fn runtime(
    park: impl Fn() + Send + Sync + 'static,
    unpark: impl Fn() + Send + Sync + 'static,
) -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .on_thread_park(park)
        .on_thread_unpark(unpark)
        .build()
}
