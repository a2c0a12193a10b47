//! Which route takes a request, and what it does with it.

mod candidates;
mod decide;
mod matches;
mod rewrite;
mod virtual_host;

pub use decide::{decide, Decision, Forward};
pub(crate) use matches::{all_headers_match, any_header_matches, string_matches};
pub use matches::{is_grpc, route};
pub use virtual_host::virtual_host;

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

    /// The first value of a header; pseudo-headers and `host` are the request line's.
    fn first_value<'a>(&'a self, name: &'a str) -> Option<&'a [u8]> {
        match pseudo(self, name) {
            Some(value) => Some(value.as_bytes()),
            None => self.header_values(name).next(),
        }
    }
}

/// The part of the request line that goes by the name of a header.
fn pseudo<'a, H: RequestHead + ?Sized>(head: &'a H, name: &str) -> Option<&'a str> {
    match name {
        ":method" => Some(head.method()),
        ":path" => Some(head.path()),
        ":authority" | "host" => Some(head.host()),
        ":scheme" => Some(head.scheme()),
        _ => None,
    }
}
