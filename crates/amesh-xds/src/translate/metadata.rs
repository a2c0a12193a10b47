//! Matchers of what filters know of a request.

use super::matcher::string;
use super::{Invalid, Notes};
use amesh_model::metadata::{FilterStateMatcher, MetadataMatcher, ValueMatcher};
use envoy_types::pb::envoy::r#type::{matcher::v3 as pb, v3 as kind};

/// Depth of matchers within matchers that is followed: workers follow it too, on their stack.
const MAX_DEPTH: usize = 16;

pub(super) fn metadata(m: &pb::MetadataMatcher, notes: &mut Notes) -> Result<MetadataMatcher, Invalid> {
    use pb::metadata_matcher::{path_segment::Segment, PathSegment};
    let pb::MetadataMatcher { filter, path, value, invert } = m;
    if filter.is_empty() {
        return Err(notes.invalid("filter", "is empty"));
    }
    if path.is_empty() {
        return Err(notes.invalid("path", "is empty"));
    }
    let path = notes.list("path", path, |PathSegment { segment }, n| match segment {
        Some(Segment::Key(key)) if !key.is_empty() => Ok(key.clone()),
        _ => Err(n.invalid("key", "is empty")),
    })?;
    let Some(value) = value else { return Err(notes.invalid("value", "is not set")) };
    let value = notes.within("value", |n| self::value(value, 0, n))?;
    Ok(MetadataMatcher { filter: filter.clone(), path, value, invert: *invert })
}

fn value(m: &pb::ValueMatcher, depth: usize, notes: &mut Notes) -> Result<ValueMatcher, Invalid> {
    use pb::value_matcher::MatchPattern as P;
    if depth > MAX_DEPTH {
        return Err(notes.invalid("", format!("matchers are more than {MAX_DEPTH} deep")));
    }
    let pb::ValueMatcher { match_pattern } = m;
    Ok(match match_pattern {
        None => return Err(notes.invalid("", "has no pattern")),
        Some(P::NullMatch(_)) => ValueMatcher::Null,
        Some(P::DoubleMatch(pb::DoubleMatcher { match_pattern })) => match match_pattern {
            None => return Err(notes.invalid("double_match", "is neither exact nor a range")),
            Some(pb::double_matcher::MatchPattern::Exact(n)) => ValueMatcher::Exact(*n),
            Some(pb::double_matcher::MatchPattern::Range(kind::DoubleRange { start, end })) => {
                ValueMatcher::Range(*start, *end)
            }
        },
        Some(P::StringMatch(s)) => ValueMatcher::String(notes.within("string_match", |n| string(s, n))?),
        Some(P::BoolMatch(b)) => ValueMatcher::Bool(*b),
        Some(P::PresentMatch(b)) => ValueMatcher::Present(*b),
        Some(P::ListMatch(list)) => match &list.match_pattern {
            None => return Err(notes.invalid("list_match.one_of", "is not set")),
            Some(pb::list_matcher::MatchPattern::OneOf(one)) => {
                ValueMatcher::OneOf(Box::new(notes.within("list_match.one_of", |n| value(one, depth + 1, n))?))
            }
        },
        Some(P::OrMatch(pb::OrMatcher { value_matchers })) => {
            if value_matchers.len() < 2 {
                return Err(notes.invalid("or_match.value_matchers", "has less than two alternatives"));
            }
            let any = |n: &mut Notes| n.list("value_matchers", value_matchers, |m, n| value(m, depth + 1, n));
            ValueMatcher::Or(notes.within("or_match", any)?)
        }
    })
}

pub(super) fn filter_state(m: &pb::FilterStateMatcher, notes: &mut Notes) -> Result<FilterStateMatcher, Invalid> {
    use pb::filter_state_matcher::Matcher as M;
    let pb::FilterStateMatcher { key, matcher } = m;
    if key.is_empty() {
        return Err(notes.invalid("key", "is empty"));
    }
    match matcher {
        None => Err(notes.invalid("matcher", "is not set")),
        Some(M::StringMatch(s)) => {
            Ok(FilterStateMatcher { key: key.clone(), value: notes.within("string_match", |n| string(s, n))? })
        }
        Some(M::AddressMatch(_)) => {
            Err(notes.invalid("address_match", "is not supported, and where requests go depends on it"))
        }
    }
}
