//! xDS: what a control plane or a file says, turned into the mesh model.

#![forbid(unsafe_code)]

pub mod ads;
pub mod descriptor;
pub mod dns;
pub mod engine;
pub mod health;
pub mod node;
pub mod persist;
mod readiness;
pub mod settings;
pub mod source;
pub mod store;
pub mod translate;
pub mod transport;
