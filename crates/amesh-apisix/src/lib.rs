//! The mesh as Apache APISIX reads it: objects of its data model, made of the mesh model.
//!
//! Whoever publishes batches of the model hands them to a [`Translator`], and passes the [`Changes`] that come back to a
//! store that APISIX reads: the etcd face or its shared dictionaries.
//!
//! A translator of an empty mesh has no objects. A store that must not be empty (APISIX keeps its old routes when a shared
//! dictionary has no keys) keeps a key of its own that is no directory of APISIX, such as `/_amesh`.

#![forbid(unsafe_code)]

mod action;
mod checks;
mod cond;
pub mod etcd;
pub mod files;
mod filters;
mod headers;
mod hosts;
mod id;
mod listeners;
mod look;
mod matchers;
pub mod object;
mod options;
mod path;
mod pcre;
pub mod plugins;
mod rewrite;
pub mod store;
mod stream;
mod table;
mod translator;
mod upstream;
mod usage;

pub use object::{Changes, Directory, Key, Object, Refusal};
pub use options::{Destination, Options};
pub use plugins::PluginSet;
pub use translator::Translator;
