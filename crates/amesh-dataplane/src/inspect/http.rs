//! The HTTP inspector: is this a request line, or the preface of HTTP/2?

use super::{Peek, MAX_PEEK};

/// What the HTTP inspector found; [`HttpKind::alpn`] is how filter chains call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpKind {
    /// Any HTTP/1 that is not 1.1, also a request line without a version.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2 with prior knowledge.
    H2c,
}

impl HttpKind {
    /// The name in `FilterChainMatch.application_protocols`.
    pub fn alpn(self) -> &'static str {
        match self {
            HttpKind::Http10 => "http/1.0",
            HttpKind::Http11 => "http/1.1",
            HttpKind::H2c => "h2c",
        }
    }
}

/// Client connection preface (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Looks for HTTP in `data`, the first bytes of a connection.
///
/// What cannot be a method decides at once, the rest of a request line only when the line has ended: a lone
/// `hello` waits, `hello\r\n` and `\0hello` do not (seen on Envoy 1.40).
pub fn http(data: &[u8]) -> Peek<HttpKind> {
    let seen = data.len().min(PREFACE.len());
    if data[..seen] == PREFACE[..seen] {
        return if seen == PREFACE.len() { Peek::Yes(HttpKind::H2c) } else { Peek::NeedMore };
    }
    let method = data.iter().position(|b| matches!(b, b' ' | b'\t' | b'\r' | b'\n')).unwrap_or(data.len());
    if method == 0 || !data[..method].iter().copied().all(is_token) {
        return Peek::No;
    }
    match data.iter().position(|b| *b == b'\n') {
        Some(end) => request_line(&data[..end]),
        None if data.len() >= MAX_PEEK => Peek::No,
        None => Peek::NeedMore,
    }
}

/// A request line without its end. Its parts are set apart by blanks, to which control characters count.
fn request_line(line: &[u8]) -> Peek<HttpKind> {
    let (method, rest) = word(line);
    let (target, rest) = word(rest);
    let version = rest.trim_ascii();
    let version = &version[..version.iter().rposition(|b| *b > b' ').map_or(0, |at| at + 1)];
    if !is_target(target, method == b"CONNECT") {
        return Peek::No;
    }
    match version {
        b"HTTP/1.1" => Peek::Yes(HttpKind::Http11),
        [] => Peek::Yes(HttpKind::Http10),
        [b'H', b'T', b'T', b'P', b'/', a, b'.', b] if a.is_ascii_digit() && b.is_ascii_digit() => {
            Peek::Yes(HttpKind::Http10)
        }
        _ => Peek::No,
    }
}

/// The first word of `line`, and what follows it without leading blanks.
fn word(line: &[u8]) -> (&[u8], &[u8]) {
    let start = line.iter().position(|b| *b > b' ').unwrap_or(line.len());
    let line = &line[start..];
    let end = line.iter().position(|b| *b <= b' ').unwrap_or(line.len());
    let (word, rest) = line.split_at(end);
    let next = rest.iter().position(|b| *b > b' ').unwrap_or(rest.len());
    (word, &rest[next..])
}

/// RFC 9110, 5.6.2.
fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

/// A path, `*`, an absolute URL, or for `CONNECT` also an authority.
fn is_target(target: &[u8], connect: bool) -> bool {
    if !target.iter().all(u8::is_ascii_graphic) {
        return false;
    }
    let Some(first) = target.first() else { return false };
    if matches!(first, b'/' | b'*') {
        return true;
    }
    let authority = if connect {
        target
    } else {
        let scheme = target.iter().position(|b| !(b.is_ascii_alphanumeric() || b"+-.".contains(b)));
        match scheme.and_then(|end| target[end..].strip_prefix(b"://")) {
            Some(rest) if first.is_ascii_alphabetic() => rest,
            _ => return false,
        }
    };
    let host = authority.split(|b| matches!(b, b'/' | b'?')).next().unwrap_or_default();
    host.iter().all(|b| b.is_ascii_alphanumeric() || b"!$%&'()*+,-.:;=@[]_~".contains(b))
        && !host.windows(2).any(|pair| pair == b"@@")
}
