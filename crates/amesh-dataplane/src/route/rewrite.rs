//! New paths, hosts and locations (`RouteEntryImplBase::finalizePathHeader`, `Http::Utility::newUri`).

use super::matches::begins;
use super::{body, RequestHead};
use crate::path::split_query;
use crate::regex::RegexCache;
use amesh_model::route::{
    ArchivedHostRewrite, ArchivedPathRewrite, ArchivedPathSpecifier, ArchivedRedirectAction, ArchivedRouteMatch,
};
use std::borrow::Cow;

/// The path with query after a rewrite, `None` when there is none.
///
/// A prefix takes the place of what the route matched: prefix, path, or for a regex the whole path; a path that matched
/// only without its parameters stays. The query stays behind it as it was, whatever the rewrite has put there.
pub(super) fn path(
    rewrite: &ArchivedPathRewrite,
    matched: &ArchivedRouteMatch,
    head: &impl RequestHead,
    regexes: &mut RegexCache,
) -> Option<String> {
    let path_and_query = head.path();
    let (path, query) = split_query(path_and_query);
    match rewrite {
        ArchivedPathRewrite::None => None,
        ArchivedPathRewrite::Prefix(text) if text.is_empty() => None,
        ArchivedPathRewrite::Prefix(text) => {
            let length = match &matched.path {
                ArchivedPathSpecifier::Prefix(text)
                | ArchivedPathSpecifier::Path(text)
                | ArchivedPathSpecifier::PathSeparatedPrefix(text) => {
                    begins(matched, path, text).then_some(text.len())?
                }
                ArchivedPathSpecifier::SafeRegex(_) | ArchivedPathSpecifier::Connect => path.len(),
            };
            Some([text, path_and_query.get(length..).unwrap_or_default()].concat())
        }
        ArchivedPathRewrite::Regex { pattern, substitution } => {
            let new = regexes.replace_all(pattern, path, substitution);
            // Envoy leaves a path alone that would be empty.
            (!new.is_empty()).then(|| new + query)
        }
        ArchivedPathRewrite::Full(text) => Some([text, query].concat()),
        ArchivedPathRewrite::Format(parts) => {
            let new = body::text(parts, head, "");
            (!new.is_empty()).then(|| new + query)
        }
    }
}

/// The host of a forwarded request after the route's rewrite, `None` when it stays, is the endpoint's, or that of a
/// header.
pub(super) fn host(rewrite: &ArchivedHostRewrite, head: &impl RequestHead, regexes: &mut RegexCache) -> Option<String> {
    let host = match rewrite {
        // A header is read when the edits are made (`Forward::new_host`).
        ArchivedHostRewrite::None | ArchivedHostRewrite::Auto | ArchivedHostRewrite::Header(_) => None,
        ArchivedHostRewrite::Literal(text) => Some(text.as_str().to_owned()),
        ArchivedHostRewrite::PathRegex { pattern, substitution } => {
            Some(regexes.replace_all(pattern, split_query(head.path()).0, substitution))
        }
        ArchivedHostRewrite::Format(parts) => Some(body::text(parts, head, "-")),
    };
    host.filter(|host| !host.is_empty())
}

/// The `location` of a redirect.
pub(super) fn location(
    redirect: &ArchivedRedirectAction,
    matched: &ArchivedRouteMatch,
    head: &impl RequestHead,
    regexes: &mut RegexCache,
) -> String {
    let scheme = match (redirect.scheme.as_str(), redirect.https_redirect) {
        ("", true) => "https",
        ("", false) => head.scheme(),
        (scheme, _) => scheme,
    };
    let port = match redirect.port.to_native() {
        0 => String::new(),
        port => format!(":{port}"),
    };
    let host = match redirect.host.as_str() {
        "" => request_host(head, scheme, !port.is_empty()),
        host => host,
    };
    let mut own_query = false;
    let mut path = match &redirect.path {
        ArchivedPathRewrite::Full(text) if text.contains('?') => {
            own_query = true;
            Cow::Borrowed(text.as_str())
        }
        ArchivedPathRewrite::Format(parts) => match body::text(parts, head, "") {
            text if text.contains('?') => {
                own_query = true;
                Cow::Owned(text)
            }
            text if text.is_empty() => Cow::Borrowed(head.path()),
            text => Cow::Owned(text + split_query(head.path()).1),
        },
        rewrite => self::path(rewrite, matched, head, regexes).map_or(Cow::Borrowed(head.path()), Cow::Owned),
    };
    if redirect.strip_query && !own_query {
        if let Some(at) = path.find('?') {
            path = Cow::Owned(path[..at].to_owned());
        }
    }
    let slash = if path.starts_with('/') { "" } else { "/" };
    [scheme, "://", host, &port, slash, &path].concat()
}

/// Where a request is already: the `location` of a direct response with a status that has one.
pub(super) fn here(head: &impl RequestHead) -> String {
    [head.scheme(), "://", head.host(), head.path()].concat()
}

/// Where a plaintext request goes that must be TLS (`createSslRedirectPath`): the host keeps its port.
pub(super) fn https_location(head: &impl RequestHead) -> String {
    ["https://", head.host(), head.path()].concat()
}

/// The request's host without its port where a new port is set, or where the scheme changes and the port was the old
/// scheme's default.
fn request_host<'a>(head: &'a impl RequestHead, new_scheme: &str, new_port: bool) -> &'a str {
    let host = head.host();
    let colon = match host.starts_with('[') {
        true => host.rfind("]:").map(|at| at + 1),
        false => host.rfind(':'),
    };
    let Some(colon) = colon else { return host };
    let old = head.scheme();
    let default = match &host[colon..] {
        ":443" => old.eq_ignore_ascii_case("https"),
        ":80" => old.eq_ignore_ascii_case("http"),
        _ => false,
    };
    match new_port || (new_scheme != old && default) {
        true => &host[..colon],
        false => host,
    }
}
