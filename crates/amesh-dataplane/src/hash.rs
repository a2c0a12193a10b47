//! The hash of a request (`Http::HashPolicyImpl`), bit for bit as Envoy's: in a mixed mesh the same request goes to the
//! same endpoint.

use crate::path::split_query;
use crate::regex::RegexCache;
use crate::route::RequestHead;
use amesh_model::hash_policy::{ArchivedHashCookie, ArchivedHashMethod, ArchivedHashPolicy};
use std::net::{IpAddr, SocketAddr};
use xxhash_rust::xxh64::xxh64;

/// Both ends of the client's connection. An address that is no IP (a Unix socket) is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// The client, as the connection manager trusts it.
    pub remote: Option<SocketAddr>,
    /// This side; of a redirected connection where it was going.
    pub local: Option<SocketAddr>,
}

/// The hash of a request, and what the client must be told so that its next one has the same.
#[derive(Clone, Default)]
pub struct RequestHash<'p> {
    /// `None`: nothing of the request is hashed, any endpoint is as good.
    pub hash: Option<u64>,
    /// Cookies that go on the response.
    pub cookies: Vec<NewCookie<'p>>,
}

/// A cookie that the client has not, and is given.
#[derive(Clone)]
pub struct NewCookie<'p> {
    /// Its policy: name, time to live, path and further attributes.
    pub policy: &'p ArchivedHashCookie,
    /// Its value.
    pub value: String,
}

impl NewCookie<'_> {
    /// The value of `set-cookie` (`Http::Utility::makeSetCookieValue`).
    pub fn set_cookie(&self) -> String {
        let ArchivedHashCookie { name, ttl, path, attributes } = self.policy;
        let mut out = format!("{name}=\"{}\"", self.value);
        let mut add = |name: &str, value: &str| {
            out.push_str("; ");
            out.push_str(name);
            if !value.is_empty() {
                out.push('=');
                out.push_str(value);
            }
        };
        match ttl.as_ref().map_or(0, |t| t.to_native()) {
            0 => {}
            seconds => add("Max-Age", &seconds.to_string()),
        }
        if !path.is_empty() {
            add("Path", path);
        }
        attributes.iter().for_each(|a| add(&a.0, &a.1));
        add("HttpOnly", "");
        out
    }
}

/// Hashes a request. Header and path are those that the client sent, before the route rewrites them.
pub fn request_hash<'p>(
    policies: &'p [ArchivedHashPolicy],
    head: &impl RequestHead,
    ends: Ends,
    regexes: &mut RegexCache,
) -> RequestHash<'p> {
    let mut out = RequestHash::default();
    for policy in policies {
        let new = match &policy.method {
            ArchivedHashMethod::Header { name, rewrite } => {
                let mut values = header_values(head, name);
                if let Some(rewrite) = rewrite.as_ref() {
                    for value in &mut values {
                        let text = String::from_utf8_lossy(value);
                        *value = regexes.replace_all(&rewrite.pattern, &text, &rewrite.substitution).into_bytes();
                    }
                }
                hash_values(values)
            }
            ArchivedHashMethod::Cookie(policy) => match cookie(head, &policy.name) {
                Some(value) if !value.is_empty() => Some(xxh64(value, 0)),
                _ if policy.ttl.is_some() => {
                    let value = cookie_value(ends);
                    let hash = xxh64(value.as_bytes(), 0);
                    out.cookies.extend((!value.is_empty()).then_some(NewCookie { policy, value }));
                    Some(hash)
                }
                _ => None,
            },
            ArchivedHashMethod::SourceIp => ends.remote.map(|a| source_hash(a.ip())),
            ArchivedHashMethod::QueryParameter(name) => {
                query_parameter(head.path(), name).map(|value| xxh64(value.as_bytes(), 0))
            }
        };
        if let Some(new) = new {
            // Rotated, so that the same value twice does not cancel itself out.
            out.hash = Some(out.hash.map_or(0, |h| h.rotate_left(1)) ^ new);
        }
        if policy.terminal && out.hash.is_some() {
            break;
        }
    }
    out
}

/// The hash of a connection by its source address (`source_ip`).
pub fn source_hash(source: IpAddr) -> u64 {
    xxh64(source.to_string().as_bytes(), 0)
}

/// The hash of a text that is configured (`key`).
pub fn key_hash(key: &str) -> u64 {
    xxh64(key.as_bytes(), 0)
}

/// The values of a header; those of the request line have one.
fn header_values(head: &impl RequestHead, name: &str) -> Vec<Vec<u8>> {
    match name {
        ":method" | ":path" | ":authority" | ":scheme" | "host" => {
            head.first_value(name).map(<[u8]>::to_vec).into_iter().collect()
        }
        _ => head.header_values(name).map(<[u8]>::to_vec).collect(),
    }
}

/// All values together, whatever their order; `None` for none.
fn hash_values(mut values: Vec<Vec<u8>>) -> Option<u64> {
    values.sort_unstable();
    (!values.is_empty()).then(|| values.iter().fold(0, |seed, value| xxh64(value, seed)))
}

/// The value of the first cookie of a name (`Http::Utility::parseCookieValue`), without its quotes.
fn cookie<'a>(head: &'a impl RequestHead, name: &str) -> Option<&'a [u8]> {
    let pairs = head.header_values("cookie").flat_map(|line| line.split(|b| *b == b';'));
    let value = pairs.map(|pair| pair.trim_ascii_start()).find_map(|pair| {
        let at = pair.iter().position(|b| *b == b'=')?;
        (pair.get(..at)? == name.as_bytes()).then_some(pair.get(at + 1..)?)
    })?;
    Some(value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value))
}

/// The value of a new cookie: all requests of one connection get the same.
fn cookie_value(ends: Ends) -> String {
    match (ends.remote, ends.local) {
        (Some(remote), Some(local)) => format!("{:016x}", xxh64(format!("{remote}{local}").as_bytes(), 0)),
        _ => String::new(),
    }
}

/// The first value of a query parameter, as it stands there; empty where it has none.
fn query_parameter<'a>(path: &'a str, name: &str) -> Option<&'a str> {
    let query = split_query(path).1.strip_prefix('?')?;
    query
        .split('&')
        .filter(|p| !p.is_empty())
        .map(|p| p.split_once('=').unwrap_or((p, "")))
        .find(|p| p.0 == name)
        .map(|p| p.1)
}
