//! What a route wants of a request at the least.

use super::literal;
use crate::matcher::{HeaderMatch, QueryMatch, StringMatcher, StringPattern};
use crate::route::{PathSpecifier, RouteMatch};
use std::borrow::Cow;

/// One thing that can be looked up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key<'a> {
    pub of: Text<'a>,
    pub text: Cow<'a, [u8]>,
}

/// What [`Key::text`] is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Text<'a> {
    /// The path begins so; case counts, or does not.
    Start { any_case: bool },
    /// The path is so.
    Path { any_case: bool },
    /// The path has this.
    Within,
    /// A value is so, or begins so.
    Value { of: Source<'a>, begins: bool },
}

/// Whose value it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Source<'a> {
    /// The header's of this name.
    Header(&'a str),
    /// The query parameter's of this name.
    Query(&'a str),
}

/// At least one of these keys is found in every request that the route takes.
pub(super) type Condition<'a> = Vec<Key<'a>>;

/// The conditions on the path, of which each must hold; the first is the one that is looked up fastest. Never empty.
pub(super) fn of_path(wanted: &RouteMatch) -> Vec<Condition<'_>> {
    let any_case = !wanted.case_sensitive;
    let key = |of, text: &'_ str| {
        let text = if any_case { text.to_ascii_lowercase().into_bytes() } else { text.as_bytes().to_vec() };
        vec![vec![Key { of, text: text.into() }]]
    };
    match &wanted.path {
        PathSpecifier::Prefix(text) | PathSpecifier::PathSeparatedPrefix(text) => key(Text::Start { any_case }, text),
        PathSpecifier::Path(text) => key(Text::Path { any_case }, text),
        // Every path begins so.
        PathSpecifier::Connect => key(Text::Start { any_case: false }, ""),
        PathSpecifier::SafeRegex(regex) => {
            let needed = literal::needed(&regex.pattern);
            let keys = |of, texts: Vec<Vec<u8>>| texts.into_iter().map(|t| Key { of, text: t.into() }).collect();
            // The empty text if nothing is known: every path begins so.
            let start = needed.start.unwrap_or_else(|| vec![Vec::new()]);
            let within = needed.within.into_iter().map(|texts| keys(Text::Within, texts));
            std::iter::once(keys(Text::Start { any_case: false }, start)).chain(within).collect()
        }
    }
}

/// Conditions on the values of headers and query parameters, of which each must hold.
pub(super) fn of_values(wanted: &RouteMatch) -> impl Iterator<Item = Key<'_>> {
    let headers = wanted.headers.iter().filter(|m| !m.invert_match).filter_map(|m| match &m.value {
        HeaderMatch::String(matcher) => of_value(Source::Header(&m.name), matcher),
        HeaderMatch::Present(_) | HeaderMatch::Range { .. } => None,
    });
    let parameters = wanted.query_parameters.iter().filter_map(|m| match &m.value {
        QueryMatch::String(matcher) => of_value(Source::Query(&m.name), matcher),
        QueryMatch::Present(_) => None,
    });
    headers.chain(parameters)
}

fn of_value<'a>(of: Source<'a>, wanted: &'a StringMatcher) -> Option<Key<'a>> {
    let (text, begins) = match &wanted.pattern {
        StringPattern::Exact(text) => (text, false),
        StringPattern::Prefix(text) => (text, true),
        StringPattern::Suffix(_) | StringPattern::Contains(_) | StringPattern::SafeRegex(_) => return None,
    };
    // The empty value may be that of a header that is not there.
    let alone = !wanted.ignore_case && !text.is_empty();
    alone.then(|| Key { of: Text::Value { of, begins }, text: text.as_bytes().into() })
}

/// Whether the route takes every request whose path fits.
pub(super) fn is_all(wanted: &RouteMatch) -> bool {
    let RouteMatch {
        path: _,
        case_sensitive: _,
        headers,
        query_parameters,
        grpc,
        runtime_fraction,
        cookies,
        tls_context,
        dynamic_metadata,
        filter_state,
    } = wanted;
    headers.is_empty()
        && query_parameters.is_empty()
        && !grpc
        && runtime_fraction.is_none()
        && cookies.is_empty()
        && tls_context.is_none()
        && dynamic_metadata.is_empty()
        && filter_state.is_empty()
}
