//! What a route asks of a request besides path, headers and query: cookies, the client's certificate, and what filters
//! know (`RouteEntryImplBase::matchRoute`).

use super::matches::string_matches;
use super::{Certificate, MetadataValue, RequestHead};
use crate::regex::RegexCache;
use amesh_model::matcher::{ArchivedCookieMatcher, ArchivedTlsContextMatch};
use amesh_model::metadata::{ArchivedFilterStateMatcher, ArchivedMetadataMatcher, ArchivedValueMatcher};
use amesh_model::route::ArchivedRouteMatch;

/// Whether these parts of a match hold.
pub(super) fn hold(wanted: &ArchivedRouteMatch, head: &impl RequestHead, regexes: &mut RegexCache) -> bool {
    wanted.cookies.iter().all(|m| cookie_matches(m, head, regexes))
        && wanted.tls_context.as_ref().is_none_or(|m| tls_matches(m, head.client_certificate()))
        && wanted.dynamic_metadata.iter().all(|m| metadata_matches(m, head, regexes))
        && wanted.filter_state.iter().all(|m| filter_state_matches(m, head, regexes))
}

/// The first cookie of the name counts.
fn cookie_matches(wanted: &ArchivedCookieMatcher, head: &impl RequestHead, regexes: &mut RegexCache) -> bool {
    let found = head
        .header_values("cookie")
        .flat_map(|line| line.split(|b| *b == b';'))
        .filter_map(|pair| {
            let at = pair.iter().position(|b| *b == b'=')?;
            (pair[..at].trim_ascii_start() == wanted.name.as_bytes()).then(|| unquoted(pair[at + 1..].trim_ascii_end()))
        })
        .next();
    found.is_some_and(|value| string_matches(&wanted.value, value, regexes)) != wanted.invert_match
}

/// A cookie's value without the quotation marks around it.
fn unquoted(value: &[u8]) -> &[u8] {
    match value {
        [b'"', inner @ .., b'"'] => inner,
        value => value,
    }
}

fn tls_matches(wanted: &ArchivedTlsContextMatch, certificate: Certificate) -> bool {
    wanted.presented.as_ref().is_none_or(|presented| *presented == certificate.presented)
        && wanted.validated.as_ref().is_none_or(|validated| *validated == certificate.validated)
}

fn metadata_matches(wanted: &ArchivedMetadataMatcher, head: &impl RequestHead, regexes: &mut RegexCache) -> bool {
    let path: Vec<&str> = wanted.path.iter().map(|key| key.as_str()).collect();
    let value = head.dynamic_metadata(&wanted.filter, &path);
    value.is_some_and(|value| value_matches(&wanted.value, &value, regexes)) != wanted.invert
}

fn value_matches(wanted: &ArchivedValueMatcher, value: &MetadataValue<'_>, regexes: &mut RegexCache) -> bool {
    match (wanted, value) {
        (ArchivedValueMatcher::Null, MetadataValue::Null) => true,
        (ArchivedValueMatcher::Exact(n), MetadataValue::Number(value)) => n.to_native() == *value,
        (ArchivedValueMatcher::Range(start, end), MetadataValue::Number(value)) => {
            (start.to_native()..end.to_native()).contains(value)
        }
        (ArchivedValueMatcher::String(wanted), MetadataValue::String(text)) => {
            string_matches(wanted, text.as_bytes(), regexes)
        }
        (ArchivedValueMatcher::Bool(wanted), MetadataValue::Bool(value)) => wanted == value,
        (ArchivedValueMatcher::Present(present), value) => {
            *present && !matches!(value, MetadataValue::List(_) | MetadataValue::Struct)
        }
        (ArchivedValueMatcher::OneOf(wanted), MetadataValue::List(values)) => {
            values.iter().any(|value| value_matches(wanted, value, regexes))
        }
        (ArchivedValueMatcher::Or(any), value) => any.iter().any(|wanted| value_matches(wanted, value, regexes)),
        _ => false,
    }
}

fn filter_state_matches(
    wanted: &ArchivedFilterStateMatcher,
    head: &impl RequestHead,
    regexes: &mut RegexCache,
) -> bool {
    head.filter_state(&wanted.key).is_some_and(|value| string_matches(&wanted.value, &value, regexes))
}
