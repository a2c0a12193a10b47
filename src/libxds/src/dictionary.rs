//! A shared dictionary of nginx's Lua module, as far as it is used here.

/// Why a dictionary did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DictionaryError {
    /// No room is left, and nothing was evicted to make some.
    #[error("no memory")]
    Full,
    /// Anything else, in the dictionary's own words.
    #[error("{0}")]
    Other(String),
}

/// A shared dictionary. Every call is atomic in itself, for every process.
pub trait Dictionary {
    /// The value of a key, a number in decimal.
    ///
    /// # Errors
    /// [`DictionaryError`].
    fn get(&self, key: &str) -> Result<Option<String>, DictionaryError>;

    /// Writes a value without evicting any other. When that fails, a former value of the key may be gone.
    ///
    /// # Errors
    /// [`DictionaryError`].
    fn store(&self, key: &str, value: &str) -> Result<(), DictionaryError>;

    /// Removes a key; an absent one is no error.
    ///
    /// # Errors
    /// [`DictionaryError`].
    fn delete(&self, key: &str) -> Result<(), DictionaryError>;
}
