//! The dictionary of the version: what tells APISIX to read its objects anew, and which process writes them.

use crate::dictionary::{Dictionary, DictionaryError};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Says that APISIX is to read the objects anew.
const VERSION: &str = "version";
/// Says which process writes.
const OWNER: &str = "owner";
/// Its name in APISIX.
const NAME: &str = "xds-config-version";

/// Why something was not written. What was there before still is, and a batch is tried again with the next one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No room.
    #[error("shared dictionary \"{0}\" is full: make it larger in \"custom_lua_shared_dict\"")]
    Full(&'static str),
    /// The dictionary said no.
    #[error("shared dictionary \"{dictionary}\": {key}: {reason}")]
    Refused {
        /// Which dictionary.
        dictionary: &'static str,
        /// The key.
        key: Arc<str>,
        /// The reason.
        reason: String,
    },
    /// A younger process has taken the dictionaries over: this one has to end.
    #[error("another process writes the shared dictionaries now")]
    Lost,
}

/// What a dictionary's error is to whoever reads the log.
pub fn refused(dictionary: &'static str, key: &str, e: DictionaryError) -> StoreError {
    match e {
        DictionaryError::Full => StoreError::Full(dictionary),
        DictionaryError::Other(reason) => StoreError::Refused { dictionary, key: key.into(), reason },
    }
}

/// The version, and the right to write.
pub struct Version<D> {
    dictionary: D,
    owner: String,
    /// It is not raised for now: what is being loaded comes in several batches.
    held: AtomicBool,
    /// Something was written and it was not raised.
    due: AtomicBool,
}

impl<D: Dictionary> Version<D> {
    /// Takes the dictionaries over: from now on any other process stops writing. `owner` is unlike that of any other.
    ///
    /// # Errors
    /// The dictionary refuses.
    pub fn take(dictionary: D, owner: String, held: bool) -> Result<Version<D>, StoreError> {
        dictionary.store(OWNER, &owner).map_err(|e| refused(NAME, OWNER, e))?;
        Ok(Version { dictionary, owner, held: AtomicBool::new(held), due: AtomicBool::new(false) })
    }

    /// Whether this process is still the one that writes.
    ///
    /// # Errors
    /// [`StoreError::Lost`], and what the dictionary says.
    pub fn check_owner(&self) -> Result<(), StoreError> {
        match self.dictionary.get(OWNER).map_err(|e| refused(NAME, OWNER, e))? {
            Some(owner) if owner == self.owner => Ok(()),
            Some(_) => Err(StoreError::Lost),
            // Somebody has emptied the dictionary.
            None => self.dictionary.store(OWNER, &self.owner).map_err(|e| refused(NAME, OWNER, e)),
        }
    }

    /// Whether APISIX waits: it does until there is a version.
    ///
    /// # Errors
    /// The dictionary refuses.
    pub fn is_awaited(&self) -> Result<bool, StoreError> {
        Ok(self.dictionary.get(VERSION).map_err(|e| refused(NAME, VERSION, e))?.is_none())
    }

    /// Something was written: raises the version, now or when it is released.
    ///
    /// # Errors
    /// The dictionary refuses; it is raised with the next batch.
    pub fn raise(&self) -> Result<(), StoreError> {
        self.due.store(true, Ordering::Relaxed);
        self.settle()
    }

    /// Raises the version if that is due: Unix time in ms, above what is there.
    ///
    /// # Errors
    /// As [`Version::raise`].
    pub fn settle(&self) -> Result<(), StoreError> {
        if self.held.load(Ordering::Relaxed) || !self.due.load(Ordering::Relaxed) {
            return Ok(());
        }
        let refused = |e| refused(NAME, VERSION, e);
        // Others may have written a number with a fraction.
        let last = self.dictionary.get(VERSION).map_err(refused)?.and_then(|v| v.parse::<f64>().ok()).unwrap_or(0.0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        let next = now.max((last as u64).saturating_add(1));
        self.dictionary.store(VERSION, &next.to_string()).map_err(refused)?;
        self.due.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// From now on the version is raised; now, if that is due or APISIX waits. Once is enough.
    ///
    /// # Errors
    /// The dictionary refuses.
    pub fn release(&self) -> Result<(), StoreError> {
        if !self.held.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        if self.is_awaited()? {
            self.due.store(true, Ordering::Relaxed);
        }
        self.settle()
    }
}
