//! Which route takes a request, and what it does with it.

mod body;
mod candidates;
mod cleaned;
mod decide;
mod facts;
mod matches;
mod rewrite;
mod virtual_host;

pub use decide::{decide, Decision, Forward, NewHost};
pub(crate) use matches::{all_headers_match, any_header_matches, string_matches};
pub use matches::{header_matches, is_grpc, route};
pub use virtual_host::{virtual_cluster, virtual_host};

use crate::header::Command;
use std::borrow::Cow;

/// The client's certificate, as far as routing looks at it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Certificate {
    /// The client has shown one.
    pub presented: bool,
    /// It was validated; never on a resumed TLS session.
    pub validated: bool,
}

/// A value that a filter has set in the dynamic metadata (`google.protobuf.Value`).
#[derive(Clone, Debug, PartialEq)]
pub enum MetadataValue<'a> {
    /// A null.
    Null,
    /// A number.
    Number(f64),
    /// A text.
    String(&'a str),
    /// A boolean.
    Bool(bool),
    /// A list.
    List(Vec<MetadataValue<'a>>),
    /// A struct; no matcher looks into it from outside.
    Struct,
}

/// A request, as far as routing looks at it.
pub trait RequestHead {
    /// The method.
    fn method(&self) -> &str;
    /// The path with its query, after [`crate::path::normalize`].
    fn path(&self) -> &str;
    /// The host (`:authority`), after [`crate::path::normalize_host`]; may be empty.
    fn host(&self) -> &str;
    /// `http` or `https`, as the client speaks (`x-forwarded-proto`).
    fn scheme(&self) -> &str;
    /// The values of a header, in their order, one for every line. The name is lower case.
    fn header_values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a;
    /// A random number: the same at each call for one request, as Envoy draws once for all of a route's choices.
    fn random(&self) -> u64;

    /// Whether the request comes from inside the mesh. Envoy believes no client that says so itself: it is for the
    /// connection manager to find out (`internal_address_config`), and by default no address is internal.
    fn is_internal(&self) -> bool {
        false
    }

    /// The share of requests that the runtime sets for a key, with its denominator; `None`: it says nothing of it.
    fn runtime_fraction(&self, _key: &str) -> Option<(u32, u32)> {
        None
    }

    /// The client's certificate. Default: none was shown.
    fn client_certificate(&self) -> Certificate {
        Certificate::default()
    }

    /// What is found in a filter's dynamic metadata when one goes from key to key. Default: no filter has set any.
    fn dynamic_metadata(&self, _filter: &str, _path: &[&str]) -> Option<MetadataValue<'_>> {
        None
    }

    /// An object of the filter state as a text. Default: there is none.
    fn filter_state(&self, _key: &str) -> Option<Cow<'_, [u8]>> {
        None
    }

    /// Appends the value of a substitution command that is neither text nor part of the request. Default: nothing, as
    /// for what is not known.
    fn write(&self, _command: Command, _out: &mut Vec<u8>) {}

    /// The first value of a header; pseudo-headers and `host` are the request line's.
    #[inline]
    fn first_value<'a>(&'a self, name: &'a str) -> Option<&'a [u8]> {
        match pseudo(self, name) {
            Some(value) => Some(value.as_bytes()),
            None => self.header_values(name).next(),
        }
    }
}

/// The part of the request line that goes by the name of a header.
#[inline]
fn pseudo<'a, H: RequestHead + ?Sized>(head: &'a H, name: &str) -> Option<&'a str> {
    match name {
        ":method" => Some(head.method()),
        ":path" => Some(head.path()),
        ":authority" | "host" => Some(head.host()),
        ":scheme" => Some(head.scheme()),
        _ => None,
    }
}
