//! The mesh as Apache APISIX reads it: objects of its data model, made of the mesh model.
//!
//! Whoever publishes batches of the model hands them to a translator, and passes the [`Changes`] that come back to a store
//! that APISIX reads: the etcd face or its shared dictionaries.

#![forbid(unsafe_code)]

pub mod object;

pub use object::{Changes, Directory, Key, Object, Refusal};
