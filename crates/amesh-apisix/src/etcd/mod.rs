//! The etcd v3 face: what APISIX, `etcdctl` and etcd's clients may read of a [`Store`](crate::store::Store). HTTP/1.1 with
//! JSON as etcd's gateway speaks it, and gRPC, on one address. Writes are refused as to a user that may only read.
//!
//! Everything is opened and runs on the runtime that [`Face::configure`] is called in.

mod access;
mod answer;
mod errors;
mod face;
mod gateway;
mod grpc;
mod hub;
mod json;
mod listener;
pub mod proto;
mod tls;
mod watch;

pub use access::Credentials;
pub use answer::{range, ETCD_VERSION};
pub use errors::EtcdError;
pub use face::{Address, Config, Face, Listen};
pub use tls::{acceptor, TlsError};
pub use watch::{Step, Watch};

use std::sync::Arc;

/// How much a message matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Nobody can connect.
    Error,
    /// It is over.
    Notice,
}

/// Where messages go.
pub type Log = Arc<dyn Fn(Severity, &str) + Send + Sync>;
