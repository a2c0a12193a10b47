//! Whether a route takes a request (`RouteEntryImplBase::matchRoute`, `HeaderUtility::matchHeaders`).

use super::candidates::candidates;
use super::{facts, pseudo, RequestHead};
use crate::path::split_query;
use crate::regex::RegexCache;
use amesh_model::matcher::{
    ArchivedHeaderMatch, ArchivedHeaderMatcher, ArchivedQueryMatch, ArchivedQueryParameterMatcher,
    ArchivedRuntimeFraction, ArchivedStringMatcher, ArchivedStringPattern,
};
use amesh_model::route::{ArchivedPathSpecifier, ArchivedRoute, ArchivedRouteMatch, ArchivedVirtualHost};
use std::borrow::Cow;

/// Headers of which Envoy keeps one value, several lines joined by a comma. Of any other header each line is matched
/// by itself, and one that matches is enough. (Found by asking Envoy 1.40.)
const JOINED: &[&str] = &[
    "accept",
    "accept-encoding",
    "access-control-request-headers",
    "access-control-request-method",
    "authorization",
    "cache-control",
    "content-encoding",
    "content-type",
    "expect",
    "grpc-accept-encoding",
    "grpc-timeout",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "origin",
    "pragma",
    "referer",
    "user-agent",
    "via",
    "x-client-trace-id",
    "x-envoy-attempt-count",
    "x-envoy-decorator-operation",
    "x-envoy-external-address",
    "x-envoy-original-path",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-request-id",
];

/// The first route of a virtual host that takes the request, with its index.
pub fn route<'a>(
    virtual_host: &'a ArchivedVirtualHost,
    head: &impl RequestHead,
    regexes: &mut RegexCache,
) -> Option<(usize, &'a ArchivedRoute)> {
    let (path, query) = split_query(head.path());
    let path = match virtual_host.ignore_path_parameters && path.contains(';') {
        true => Cow::Owned(without_parameters(path)),
        false => Cow::Borrowed(path),
    };
    let path = path.as_ref();
    let candidates = virtual_host.index.as_ref().map(|index| candidates(index, (path, query), head, regexes));
    let numbered = |number: usize| {
        let route = virtual_host.routes.get(number)?;
        takes(&route.matches, path, query, head, regexes).then_some((number, route))
    };
    match candidates {
        None => (0..virtual_host.routes.len()).find_map(numbered),
        Some(mut candidates) => candidates.find_map(numbered),
    }
}

/// A path without what follows a `;` in each of its segments.
fn without_parameters(path: &str) -> String {
    let segments: Vec<&str> = path.split('/').map(|segment| segment.split(';').next().unwrap_or_default()).collect();
    segments.join("/")
}

fn takes(
    wanted: &ArchivedRouteMatch,
    path: &str,
    query: &str,
    head: &impl RequestHead,
    regexes: &mut RegexCache,
) -> bool {
    path_matches(wanted, path, head, regexes)
        && wanted.runtime_fraction.as_ref().is_none_or(|f| falls_under(f, head))
        && (!wanted.grpc || is_grpc(head))
        && wanted.headers.iter().all(|m| header_matches(m, head, regexes))
        && wanted.query_parameters.iter().all(|m| query_matches(m, query, regexes))
        && facts::hold(wanted, head, regexes)
}

fn falls_under(fraction: &ArchivedRuntimeFraction, head: &impl RequestHead) -> bool {
    let default = &fraction.default;
    let (numerator, denominator) = head
        .runtime_fraction(&fraction.runtime_key)
        .unwrap_or((default.numerator.to_native(), default.denominator.to_native()));
    head.random() % u64::from(denominator.max(1)) < numerator.into()
}

fn path_matches(wanted: &ArchivedRouteMatch, path: &str, head: &impl RequestHead, regexes: &mut RegexCache) -> bool {
    let equal = |a: &str, b: &str| equal(wanted, a, b);
    let begins = |text: &str| begins(wanted, path, text);
    match &wanted.path {
        ArchivedPathSpecifier::Prefix(text) => begins(text),
        ArchivedPathSpecifier::Path(text) => equal(path, text),
        ArchivedPathSpecifier::SafeRegex(regex) => regexes.is_match(regex, path.as_bytes()),
        ArchivedPathSpecifier::PathSeparatedPrefix(text) => {
            begins(text) && matches!(path.as_bytes().get(text.len()), None | Some(b'/'))
        }
        ArchivedPathSpecifier::Connect => head.method() == "CONNECT",
    }
}

/// Whether a path begins with a text, as the route looks at case.
pub(super) fn begins(wanted: &ArchivedRouteMatch, path: &str, text: &str) -> bool {
    path.get(..text.len()).is_some_and(|start| equal(wanted, start, text))
}

fn equal(wanted: &ArchivedRouteMatch, a: &str, b: &str) -> bool {
    match wanted.case_sensitive {
        true => a == b,
        false => a.eq_ignore_ascii_case(b),
    }
}

/// Whether all matchers hold.
pub(crate) fn all_headers_match(
    wanted: &[ArchivedHeaderMatcher],
    head: &impl RequestHead,
    regexes: &mut RegexCache,
) -> bool {
    wanted.iter().all(|m| header_matches(m, head, regexes))
}

/// Whether one matcher holds.
pub(crate) fn any_header_matches(
    wanted: &[ArchivedHeaderMatcher],
    head: &impl RequestHead,
    regexes: &mut RegexCache,
) -> bool {
    wanted.iter().any(|m| header_matches(m, head, regexes))
}

/// Whether a request is a call of gRPC (`Grpc::Common::hasGrpcContentType`).
pub fn is_grpc(head: &impl RequestHead) -> bool {
    head.first_value("content-type")
        .and_then(|value| value.strip_prefix(b"application/grpc"))
        .is_some_and(|rest| matches!(rest, [] | [b'+', ..]))
}

/// Whether a message has a header as it is wanted (`HeaderUtility::matchHeaders`).
pub fn header_matches(wanted: &ArchivedHeaderMatcher, head: &impl RequestHead, regexes: &mut RegexCache) -> bool {
    let name = wanted.name.as_str();
    let line = pseudo(head, name).map(str::as_bytes).filter(|value| !value.is_empty());
    let present = line.is_some() || head.header_values(name).next().is_some();
    if !present && !wanted.treat_missing_header_as_empty {
        return match wanted.value {
            ArchivedHeaderMatch::Present(present) => present == wanted.invert_match,
            _ => false,
        };
    }
    let mut is_match = |value: &[u8]| match &wanted.value {
        ArchivedHeaderMatch::Present(present) => *present,
        ArchivedHeaderMatch::String(matcher) => string_matches(matcher, value, regexes),
        ArchivedHeaderMatch::Range { start, end } => {
            integer(value).is_some_and(|n| (start.to_native()..end.to_native()).contains(&n))
        }
    };
    let found = match line {
        Some(value) => is_match(value),
        None if !present => is_match(b""),
        None if JOINED.binary_search(&name).is_ok() => is_match(&joined(head, name)),
        None => head.header_values(name).any(is_match),
    };
    found != wanted.invert_match
}

/// The values of a header that a matcher is held against, if the header is there.
pub(super) fn each_value(head: &impl RequestHead, name: &str, mut see: impl FnMut(&[u8])) {
    if let Some(line) = pseudo(head, name).filter(|line| !line.is_empty()) {
        see(line.as_bytes());
    } else if JOINED.binary_search(&name).is_ok() {
        see(&joined(head, name));
    } else {
        head.header_values(name).for_each(see);
    }
}

fn joined<'a>(head: &'a impl RequestHead, name: &'a str) -> Cow<'a, [u8]> {
    let mut values = head.header_values(name);
    let mut whole = Cow::Borrowed(values.next().unwrap_or_default());
    for value in values {
        let whole = whole.to_mut();
        whole.push(b',');
        whole.extend_from_slice(value);
    }
    whole
}

/// A decimal integer as `absl::SimpleAtoi` reads it: blanks around it and a sign are allowed.
fn integer(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value.trim_ascii()).ok()?.parse().ok()
}

pub(crate) fn string_matches(wanted: &ArchivedStringMatcher, value: &[u8], regexes: &mut RegexCache) -> bool {
    let equal = |a: &[u8], b: &[u8]| match wanted.ignore_case {
        true => a.eq_ignore_ascii_case(b),
        false => a == b,
    };
    match &wanted.pattern {
        ArchivedStringPattern::Exact(text) => equal(value, text.as_bytes()),
        ArchivedStringPattern::Prefix(text) => value.get(..text.len()).is_some_and(|v| equal(v, text.as_bytes())),
        ArchivedStringPattern::Suffix(text) => {
            value.len().checked_sub(text.len()).is_some_and(|at| equal(&value[at..], text.as_bytes()))
        }
        ArchivedStringPattern::Contains(text) => {
            text.is_empty() || value.windows(text.len()).any(|v| equal(v, text.as_bytes()))
        }
        ArchivedStringPattern::SafeRegex(regex) => regexes.is_match(regex, value),
    }
}

fn query_matches(wanted: &ArchivedQueryParameterMatcher, query: &str, regexes: &mut RegexCache) -> bool {
    let value = query_value(query, &wanted.name);
    match (&wanted.value, value) {
        (ArchivedQueryMatch::Present(present), value) => *present == value.is_some(),
        (ArchivedQueryMatch::String(matcher), Some(value)) => string_matches(matcher, value.as_bytes(), regexes),
        (ArchivedQueryMatch::String(_), None) => false,
    }
}

/// The value of a query parameter. Names and values count as they stand, nothing is decoded; of several parameters of a
/// name the first counts (`QueryParamsMulti::parseQueryString`).
pub(super) fn query_value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.strip_prefix('?').unwrap_or_default().split('&').find_map(|parameter| {
        let (found, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        (found == name).then_some(value)
    })
}
