//! Normalisation of a request's path and host before anything looks at them.

use amesh_model::listener::{ArchivedEscapedSlashes, ArchivedHttpConnectionManager};
use std::borrow::Cow;

/// Why a request does not go on as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Answered with 400.
    #[error("the path is not allowed")]
    Reject400,
    /// Answered with 307 and this `location`; a gRPC request with 400 instead, gRPC knows no redirects.
    #[error("the path is redirected to {0}")]
    Redirect307(String),
}

/// The path (with its query) that routing, filters and the upstream see.
///
/// The order is Envoy's (`ConnectionManagerUtility::maybeNormalizePath`): a fragment is refused, escaped slashes,
/// parameters of dot segments, dot segments and percent-encodings, slashes merged. The query is never changed.
/// Bytes beyond printable ASCII are refused, as by Envoy's HTTP/1 codec.
///
/// # Errors
/// [`PathError`] when the request is refused or redirected.
pub fn normalize<'a>(path_and_query: &'a str, hcm: &ArchivedHttpConnectionManager) -> Result<Cow<'a, str>, PathError> {
    if !path_and_query.starts_with('/') || !path_and_query.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        return Err(PathError::Reject400);
    }
    let (path, query) = split_query(path_and_query);
    let mut path = Cow::Borrowed(path);
    let mut redirect = false;
    if !matches!(hcm.path_with_escaped_slashes_action, ArchivedEscapedSlashes::KeepUnchanged) {
        if let Some(plain) = unescape_slashes(&path) {
            match hcm.path_with_escaped_slashes_action {
                ArchivedEscapedSlashes::RejectRequest => return Err(PathError::Reject400),
                ArchivedEscapedSlashes::UnescapeAndRedirect => redirect = true,
                _ => {}
            }
            path = Cow::Owned(plain);
        }
    }
    if hcm.normalize_path {
        if let Some(plain) = strip_dot_parameters(&path) {
            path = Cow::Owned(plain);
        }
        if needs_canonicalizing(&path) {
            path = Cow::Owned(canonicalize(&path).ok_or(PathError::Reject400)?);
        }
    }
    if hcm.merge_slashes {
        if let Some(merged) = merge_slashes(&path) {
            path = Cow::Owned(merged);
        }
    }
    let whole = match path {
        Cow::Borrowed(_) => Cow::Borrowed(path_and_query),
        Cow::Owned(path) => Cow::Owned(path + query),
    };
    if redirect {
        return Err(PathError::Redirect307(whole.into_owned()));
    }
    Ok(whole)
}

/// A path with query, parted before the `?`; a fragment goes with the query.
pub(crate) fn split_query(path_and_query: &str) -> (&str, &str) {
    path_and_query.split_at(path_and_query.find(['?', '#']).unwrap_or(path_and_query.len()))
}

/// `%2F` and `%5C` decoded; `None`: there are none.
fn unescape_slashes(path: &str) -> Option<String> {
    path.contains('%')
        .then(|| path.replace("%2F", "/").replace("%2f", "/").replace("%5C", "\\").replace("%5c", "\\"))
        .filter(|plain| plain.len() != path.len())
}

/// `/..;a=b/` is `/../` and `/.;a/` is `/./`; `None`: there is no such segment.
fn strip_dot_parameters(path: &str) -> Option<String> {
    path.contains(".;").then(|| {
        let segments: Vec<&str> = path
            .split('/')
            .map(|segment| match segment {
                s if s.starts_with("..;") => "..",
                s if s.starts_with(".;") => ".",
                s => s,
            })
            .collect();
        segments.join("/")
    })
}

/// Whether [`canonicalize`] could change the path.
fn needs_canonicalizing(path: &str) -> bool {
    path.contains("/.") || path.bytes().any(|b| matches!(b, b'%' | b'\\') || is_escaped(b))
}

/// Printable characters that are percent-encoded.
fn is_escaped(b: u8) -> bool {
    matches!(b, b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}')
}

/// Characters whose percent-encoding is undone: the unreserved ones of RFC 3986, 2.3.
fn is_unreserved(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~')
}

/// The path as `url::CanonicalizePath` of Chromium makes it, which Envoy uses: dot segments (also written `%2e`) are
/// resolved, `\` is `/`, unreserved characters are decoded, some others encoded; any other `%XX` stays as it is
/// written, as does a `%` that begins none. `None`: it holds `%00`.
fn canonicalize(path: &str) -> Option<String> {
    let mut out = String::with_capacity(path.len() + 8);
    let mut rest = path.as_bytes();
    while let Some(&first) = rest.first() {
        if let Some(dot) = dot_length(rest) {
            if out.ends_with('/') {
                match dot_segment(rest) {
                    Some((up, length)) => {
                        if up {
                            let parent = out[..out.len() - 1].rfind('/').unwrap_or(0);
                            out.truncate(parent + 1);
                        }
                        rest = &rest[length..];
                        continue;
                    }
                    None => out.push('.'),
                }
            } else {
                out.push('.');
            }
            rest = &rest[dot..];
            continue;
        }
        let mut length = 1;
        match (first, escaped(rest)) {
            (b'%', Some(0)) => return None,
            (b'%', Some(byte)) => {
                length = 3;
                match is_unreserved(byte) {
                    true => out.push(char::from(byte)),
                    false => out.extend(rest[..3].iter().map(|b| char::from(*b))),
                }
            }
            (b'\\', _) => out.push('/'),
            (b, _) if is_escaped(b) => out.push_str(&format!("%{b:02X}")),
            (b, _) => out.push(char::from(b)),
        }
        rest = &rest[length..];
    }
    Some(out)
}

/// The byte that a text beginning with `%XX` encodes.
fn escaped(text: &[u8]) -> Option<u8> {
    let hex = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    match text {
        [b'%', high, low, ..] => Some(hex(*high)? << 4 | hex(*low)?),
        _ => None,
    }
}

/// Length of a leading `.` or `%2e`.
fn dot_length(text: &[u8]) -> Option<usize> {
    match text.first() {
        Some(b'.') => Some(1),
        _ => (escaped(text) == Some(b'.')).then_some(3),
    }
}

/// Whether a text that follows a slash begins with a dot segment: whether it goes up, and its length with its slash.
fn dot_segment(text: &[u8]) -> Option<(bool, usize)> {
    let end = |at: usize| match text.get(at) {
        None => Some(at),
        Some(b'/' | b'\\') => Some(at + 1),
        Some(_) => None,
    };
    let one = dot_length(text)?;
    if let Some(length) = end(one) {
        return Some((false, length));
    }
    let two = one + dot_length(&text[one..])?;
    end(two).map(|length| (true, length))
}

/// Runs of slashes made one; `None`: there are none. A path of nothing but slashes becomes `//`, as in Envoy.
fn merge_slashes(path: &str) -> Option<String> {
    path.contains("//").then(|| {
        let mut out = String::with_capacity(path.len());
        for segment in path.split('/').filter(|s| !s.is_empty()) {
            out.push('/');
            out.push_str(segment);
        }
        if out.is_empty() {
            out.push('/');
        }
        if path.ends_with('/') {
            out.push('/');
        }
        out
    })
}

/// Where the port of a host begins, the colon included (`HeaderUtility::getPortStart`): what follows need not be digits.
pub(crate) fn port_start(host: &str) -> Option<usize> {
    // Hosts are short: a search that is built for long texts costs more than it saves.
    let last = |wanted: u8| host.bytes().rposition(|byte| byte == wanted);
    let colon = last(b':')?;
    match last(b']') {
        Some(bracket) if bracket > colon => None,
        _ => Some(colon),
    }
}

/// The host that routing and the upstream see, of a request that came to `listener_port`
/// (the port of the original destination): `strip_trailing_host_dot`, then `strip_any_host_port` or
/// `strip_matching_host_port`.
pub fn normalize_host<'a>(host: &'a str, hcm: &ArchivedHttpConnectionManager, listener_port: u16) -> Cow<'a, str> {
    let mut host = Cow::Borrowed(host);
    if hcm.strip_trailing_host_dot {
        host = match host.rfind('.') {
            Some(dot) if dot + 1 == host.len() => shortened(host, dot),
            Some(dot) if host[dot + 1..].starts_with(':') => Cow::Owned([&host[..dot], &host[dot + 1..]].concat()),
            _ => host,
        };
    }
    if hcm.strip_any_host_port || hcm.strip_matching_host_port {
        if let Some(colon) = port_start(&host) {
            let port: Option<u32> = host[colon + 1..].trim_ascii().parse().ok();
            if port.is_some_and(|port| hcm.strip_any_host_port || port == u32::from(listener_port)) {
                host = shortened(host, colon);
            }
        }
    }
    host
}

fn shortened(text: Cow<'_, str>, length: usize) -> Cow<'_, str> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(&text[..length]),
        Cow::Owned(mut text) => {
            text.truncate(length);
            Cow::Owned(text)
        }
    }
}
