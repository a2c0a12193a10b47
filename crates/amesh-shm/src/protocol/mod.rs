//! What the processes agree on, apart from where it lies in memory: the same code runs in loom's models.

#[cfg(loom)]
pub mod crash;
pub mod directory;
pub mod epoch;
pub mod gauge;
pub mod place;
