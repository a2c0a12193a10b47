//! The TLS inspector: a ClientHello (RFC 8446, 4.1.2; RFC 5246, 7.4.1.2), its SNI and its ALPN.

use super::{Peek, MAX_PEEK};
use std::borrow::Cow;

/// What a ClientHello says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsHello {
    /// SNI (RFC 6066, 3), lower case.
    pub server_name: Option<String>,
    /// ALPN (RFC 7301), in the client's order; a name that is not UTF-8 is left out, no filter chain can name it.
    pub application_protocols: Vec<String>,
}

/// Length of a record's header.
const RECORD_HEADER: usize = 5;
/// Longest record (RFC 5246, 6.2.3).
const MAX_RECORD: usize = (16 << 10) + 2048;
/// Record type `handshake`.
const HANDSHAKE: u8 = 22;
/// Handshake type `client_hello`.
const CLIENT_HELLO: u8 = 1;
/// Extension `server_name`.
const SERVER_NAME: u16 = 0;
/// Extension `application_layer_protocol_negotiation`.
const ALPN: u16 = 16;

/// Looks for a ClientHello in `data`, the first bytes of a connection. It may be spread over several records.
///
/// As in Envoy nothing is known before a record's header is there: four bytes or fewer always wait.
pub fn tls(data: &[u8]) -> Peek<TlsHello> {
    if data.len() < RECORD_HEADER {
        return Peek::NeedMore;
    }
    match message(data) {
        Peek::Yes(body) => client_hello(&body).map_or(Peek::No, Peek::Yes),
        Peek::NeedMore if data.len() < MAX_PEEK => Peek::NeedMore,
        _ => Peek::No,
    }
}

/// The body of the first handshake message, put together from its records.
fn message(data: &[u8]) -> Peek<Cow<'_, [u8]>> {
    let mut joined: Cow<'_, [u8]> = Cow::Borrowed(&[]);
    let mut rest = data;
    while let [kind, major, _, high, low, payload @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if *kind != HANDSHAKE || *major != 3 || length == 0 || length > MAX_RECORD {
            return Peek::No;
        }
        let (part, next) = payload.split_at(length.min(payload.len()));
        if joined.is_empty() {
            joined = Cow::Borrowed(part);
        } else {
            joined.to_mut().extend_from_slice(part);
        }
        match joined.first() {
            Some(&kind) if kind != CLIENT_HELLO => return Peek::No,
            _ => {}
        }
        if let [_, a, b, c, body @ ..] = joined.as_ref() {
            let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            if length > MAX_PEEK {
                return Peek::No;
            }
            if body.len() >= length {
                return Peek::Yes(match joined {
                    Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[4..4 + length]),
                    Cow::Owned(bytes) => Cow::Owned(bytes[4..4 + length].to_vec()),
                });
            }
        }
        if part.len() < length {
            return Peek::NeedMore;
        }
        rest = next;
    }
    // A further record's header is cut off; what is there of it must fit already.
    match rest {
        [] | [HANDSHAKE] | [HANDSHAKE, 3, ..] => Peek::NeedMore,
        _ => Peek::No,
    }
}

/// A reader of length-prefixed fields; `None` is a field that is cut off.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    fn vec8(&mut self) -> Option<&'a [u8]> {
        let n = self.u8()?;
        self.take(n.into())
    }

    fn vec16(&mut self) -> Option<&'a [u8]> {
        let n = self.u16()?;
        self.take(n.into())
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The body of a ClientHello; `None` when it is malformed.
fn client_hello(body: &[u8]) -> Option<TlsHello> {
    let mut hello = TlsHello::default();
    let mut reader = Reader(body);
    reader.take(2 + 32)?;
    let session_id = reader.vec8()?;
    let cipher_suites = reader.vec16()?;
    let compression = reader.vec8()?;
    if session_id.len() > 32 || cipher_suites.is_empty() || cipher_suites.len() % 2 != 0 || compression.is_empty() {
        return None;
    }
    if reader.is_empty() {
        return Some(hello);
    }
    let mut extensions = Reader(reader.vec16()?);
    if !reader.is_empty() {
        return None;
    }
    while !extensions.is_empty() {
        let kind = extensions.u16()?;
        let data = extensions.vec16()?;
        match kind {
            SERVER_NAME => hello.server_name = Some(server_name(data)?),
            ALPN => hello.application_protocols = protocols(data)?,
            _ => {}
        }
    }
    Some(hello)
}

/// The one `host_name` of the extension. It has no NUL and at most 255 bytes.
fn server_name(data: &[u8]) -> Option<String> {
    let mut outer = Reader(data);
    let mut list = Reader(outer.vec16()?);
    let kind = list.u8()?;
    let name = list.vec16()?;
    if !outer.is_empty() || !list.is_empty() || kind != 0 || name.is_empty() || name.len() > 255 || name.contains(&0) {
        return None;
    }
    Some(std::str::from_utf8(name).ok()?.to_ascii_lowercase())
}

fn protocols(data: &[u8]) -> Option<Vec<String>> {
    let mut outer = Reader(data);
    let mut list = Reader(outer.vec16()?);
    if !outer.is_empty() || list.is_empty() {
        return None;
    }
    let mut names = Vec::new();
    while !list.is_empty() {
        let name = list.vec8()?;
        if name.is_empty() {
            return None;
        }
        names.extend(std::str::from_utf8(name).ok().map(str::to_owned));
    }
    Some(names)
}
