//! xDS: what a control plane or a file says, turned into the mesh model.

#![forbid(unsafe_code)]

pub mod descriptor;
pub mod store;
pub mod translate;
