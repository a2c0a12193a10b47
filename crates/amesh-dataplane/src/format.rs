//! Values with substitution commands (`Formatter::FormatterImpl`).

use crate::header::Command;
use crate::path::split_query;
use amesh_model::header::{ArchivedFormat, ArchivedPathSource};
use std::borrow::Cow;

/// Where the path was kept when it was rewritten.
const ORIGINAL_PATH: &str = "x-envoy-original-path";

/// What commands are answered from.
pub(crate) trait Source {
    /// The first value of a request header or pseudo-header.
    fn request(&self, name: &str) -> Option<Cow<'_, [u8]>>;
    /// The first value of a response header; `None` while there is no response.
    fn response(&self, name: &str) -> Option<Cow<'_, [u8]>>;
    /// Appends the value of any other command.
    fn command(&self, command: Command, out: &mut Vec<u8>);
}

/// Appends a value; `missing` takes the place of each command that comes out empty.
pub(crate) fn expand(parts: &[ArchivedFormat], source: &impl Source, missing: &str, out: &mut Vec<u8>) {
    for part in parts {
        if let ArchivedFormat::Text(text) = part {
            out.extend_from_slice(text.as_bytes());
            continue;
        }
        let before = out.len();
        command(part, source, out);
        if out.len() == before {
            out.extend_from_slice(missing.as_bytes());
        }
    }
}

fn command(part: &ArchivedFormat, source: &impl Source, out: &mut Vec<u8>) {
    let command = match part {
        ArchivedFormat::Text(_) => return,
        ArchivedFormat::Req { name, alternative, max } => {
            return header(|name| source.request(name), name, alternative, max.to_native(), out);
        }
        ArchivedFormat::Resp { name, alternative, max } => {
            return header(|name| source.response(name), name, alternative, max.to_native(), out);
        }
        ArchivedFormat::Path { query, source: of, max } => {
            let (first, second) = match of {
                ArchivedPathSource::Original => (ORIGINAL_PATH, ""),
                ArchivedPathSource::Path => (":path", ""),
                ArchivedPathSource::OriginalOrPath => (ORIGINAL_PATH, ":path"),
            };
            let path = source.request(first).or_else(|| source.request(second));
            let path = path.map(|path| match query {
                true => path,
                false => without_query(path),
            });
            return cut(path, max.to_native(), out);
        }
        ArchivedFormat::QueryParam { name, max } => {
            let path = source.request(":path");
            return cut(path.as_deref().and_then(|path| parameter(path, name)), max.to_native(), out);
        }
        ArchivedFormat::DownstreamRemoteAddress => Command::DownstreamRemoteAddress,
        ArchivedFormat::DownstreamRemoteAddressWithoutPort => Command::DownstreamRemoteAddressWithoutPort,
        ArchivedFormat::DownstreamRemotePort => Command::DownstreamRemotePort,
        ArchivedFormat::DownstreamDirectRemoteAddress => Command::DownstreamDirectRemoteAddress,
        ArchivedFormat::DownstreamDirectRemoteAddressWithoutPort => Command::DownstreamDirectRemoteAddressWithoutPort,
        ArchivedFormat::DownstreamDirectRemotePort => Command::DownstreamDirectRemotePort,
        ArchivedFormat::DownstreamLocalAddress => Command::DownstreamLocalAddress,
        ArchivedFormat::DownstreamLocalAddressWithoutPort => Command::DownstreamLocalAddressWithoutPort,
        ArchivedFormat::DownstreamLocalPort => Command::DownstreamLocalPort,
        ArchivedFormat::Protocol => Command::Protocol,
        ArchivedFormat::UpstreamHost => Command::UpstreamHost,
        ArchivedFormat::UpstreamCluster => Command::UpstreamCluster,
        ArchivedFormat::RouteName => Command::RouteName,
        ArchivedFormat::VirtualClusterName => Command::VirtualClusterName,
        ArchivedFormat::ResponseCode => Command::ResponseCode,
        ArchivedFormat::RequestedServerName => Command::RequestedServerName,
        ArchivedFormat::StartTime => Command::StartTime,
    };
    source.command(command, out);
}

/// Appends a header, or the alternative when it is absent.
fn header<'a>(get: impl Fn(&str) -> Option<Cow<'a, [u8]>>, name: &str, alternative: &str, max: u32, out: &mut Vec<u8>) {
    let value = get(name).or_else(|| (!alternative.is_empty()).then(|| get(alternative)).flatten());
    cut(value, max, out);
}

/// Appends a value, cut to `max` bytes (0: whole).
fn cut(value: Option<Cow<'_, [u8]>>, max: u32, out: &mut Vec<u8>) {
    let Some(value) = value else { return };
    let length = match max {
        0 => value.len(),
        max => value.len().min(max as usize),
    };
    out.extend_from_slice(&value[..length]);
}

fn without_query(path: Cow<'_, [u8]>) -> Cow<'_, [u8]> {
    let length = match std::str::from_utf8(&path) {
        Ok(text) => split_query(text).0.len(),
        Err(_) => path.len(),
    };
    match path {
        Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[..length]),
        Cow::Owned(mut bytes) => {
            bytes.truncate(length);
            Cow::Owned(bytes)
        }
    }
}

/// The value of the first parameter of a name in the path's query. `%xx` is decoded in both.
fn parameter<'a>(path: &'a [u8], wanted: &str) -> Option<Cow<'a, [u8]>> {
    let query = path.splitn(2, |b| *b == b'?').nth(1)?;
    query.split(|b| *b == b'&').find_map(|parameter| {
        let mut halves = parameter.splitn(2, |b| *b == b'=');
        let (name, value) = (halves.next()?, halves.next().unwrap_or_default());
        (decoded(name).as_ref() == wanted.as_bytes()).then(|| decoded(value))
    })
}

/// A text with its `%xx` decoded; what is no such escape stays.
fn decoded(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'%') {
        return Cow::Borrowed(text);
    }
    let digit = |b: Option<&u8>| b.and_then(|b| char::from(*b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match (first, digit(after.first()), digit(after.get(1))) {
            (b'%', Some(high), Some(low)) => {
                out.push(high * 16 + low);
                rest = after.get(2..).unwrap_or_default();
            }
            _ => out.push(*first),
        }
    }
    Cow::Owned(out)
}

/// Appends a text as the inside of a JSON string.
pub(crate) fn json_escaped(text: &[u8], out: &mut Vec<u8>) {
    for c in String::from_utf8_lossy(text).chars() {
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            c if c.is_control() => out.extend_from_slice(format!("\\u{:04x}", u32::from(c)).as_bytes()),
            c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}
