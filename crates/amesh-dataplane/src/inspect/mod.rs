//! What Envoy's listener filters `tls_inspector` and `http_inspector` see in the first bytes of a connection.
//!
//! The bytes are peeked at, never consumed. As in Envoy the TLS inspector is asked first, and HTTP is looked for
//! only where it found no TLS.

mod http;
mod tls;

pub use http::{http, HttpKind};
pub use tls::{tls, TlsHello};

/// Bytes that are looked at; a protocol that has not shown itself by then is not there.
/// (Envoy closes a connection whose request line or ClientHello is longer than 64 KiB.)
pub const MAX_PEEK: usize = 16 * 1024;

/// What the first bytes of a connection say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peek<T> {
    /// Too few bytes to tell; there may be more to come.
    NeedMore,
    /// It is not that protocol.
    No,
    /// It is.
    Yes(T),
}
