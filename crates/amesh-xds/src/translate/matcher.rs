//! Matchers of strings, headers and query parameters.

use super::format::name as header_name;
use super::notes::ignored;
use super::{Invalid, Notes};
use amesh_model::matcher::{
    self, CookieMatcher, Fraction, HeaderMatch, HeaderMatcher, QueryMatch, QueryParameterMatcher, Regex,
    RuntimeFraction, StringMatcher, StringPattern,
};
use envoy_types::pb::envoy::config::{core::v3 as core, route::v3 as route};
use envoy_types::pb::envoy::r#type::{matcher::v3 as pb, v3 as kind};

pub(super) fn regex(r: &pb::RegexMatcher, notes: &mut Notes) -> Result<Regex, Invalid> {
    let pb::RegexMatcher { regex, engine_type } = r;
    ignored!(notes, "the size of a compiled pattern has a limit of its own here"; engine_type);
    notes.regex("regex", regex)
}

/// A pattern and RE2's substitution for it.
pub(super) fn substitution(r: &pb::RegexMatchAndSubstitute, notes: &mut Notes) -> Result<(Regex, String), Invalid> {
    let pb::RegexMatchAndSubstitute { pattern, substitution } = r;
    let Some(pattern) = pattern else { return Err(notes.invalid("pattern", "is not set")) };
    let pattern = notes.within("pattern", |n| regex(pattern, n))?;
    let compiled = matcher::compile(&pattern.pattern).map_err(|e| notes.invalid("pattern.regex", e.to_string()))?;
    // The whole match is one of the groups.
    let groups = compiled.captures_len().saturating_sub(1);
    let mut bytes = substitution.bytes();
    while let Some(b) = bytes.next() {
        match (b, if b == b'\\' { bytes.next() } else { None }) {
            (b'\\', Some(d @ b'0'..=b'9')) if usize::from(d - b'0') <= groups => {}
            (b'\\', Some(d @ b'0'..=b'9')) => {
                let n = d - b'0';
                return Err(notes.invalid("substitution", format!("\\{n} of a pattern with {groups} groups")));
            }
            (b'\\', Some(b'\\')) => {}
            (b'\\', _) => {
                return Err(notes.invalid("substitution", "a backslash stands before no digit and no backslash"))
            }
            _ => {}
        }
    }
    Ok((pattern, substitution.clone()))
}

fn not_empty(text: &str, field: &str, notes: &Notes) -> Result<(), Invalid> {
    match text {
        "" => Err(notes.invalid(field, "is empty")),
        _ => Ok(()),
    }
}

pub(super) fn string(m: &pb::StringMatcher, notes: &mut Notes) -> Result<StringMatcher, Invalid> {
    use pb::string_matcher::MatchPattern as P;
    let pb::StringMatcher { ignore_case, match_pattern } = m;
    let text = |t: &str| if *ignore_case { t.to_ascii_lowercase() } else { t.to_owned() };
    let pattern = match match_pattern {
        None => return Err(notes.invalid("", "has no pattern: one of exact, prefix, suffix, contains, safe_regex")),
        Some(P::Exact(t)) => StringPattern::Exact(text(t)),
        Some(P::Prefix(t)) => {
            not_empty(t, "prefix", notes)?;
            StringPattern::Prefix(text(t))
        }
        Some(P::Suffix(t)) => {
            not_empty(t, "suffix", notes)?;
            StringPattern::Suffix(text(t))
        }
        Some(P::Contains(t)) => {
            not_empty(t, "contains", notes)?;
            StringPattern::Contains(text(t))
        }
        Some(P::SafeRegex(r)) => {
            let r = notes.within("safe_regex", |n| regex(r, n))?;
            return Ok(StringMatcher { pattern: StringPattern::SafeRegex(r), ignore_case: false });
        }
        Some(P::Custom(_)) => return Err(notes.invalid("custom", "matchers that are extensions are not supported")),
    };
    Ok(StringMatcher { pattern, ignore_case: *ignore_case })
}

/// A matcher of a header.
///
/// # Errors
/// [`Invalid`] names the field that makes no sense.
pub fn header(m: &route::HeaderMatcher, notes: &mut Notes) -> Result<HeaderMatcher, Invalid> {
    use route::header_matcher::HeaderMatchSpecifier as S;
    let route::HeaderMatcher { name, invert_match, treat_missing_header_as_empty, header_match_specifier } = m;
    let plain = |pattern| HeaderMatch::String(StringMatcher { pattern, ignore_case: false });
    let name = header_name(name, "name", notes)?;
    let value = match header_match_specifier {
        None => HeaderMatch::Present(true),
        Some(S::PresentMatch(p)) => HeaderMatch::Present(*p),
        Some(S::StringMatch(s)) => HeaderMatch::String(notes.within("string_match", |n| string(s, n))?),
        Some(S::ExactMatch(t)) => plain(StringPattern::Exact(t.clone())),
        Some(S::PrefixMatch(t)) => {
            not_empty(t, "prefix_match", notes)?;
            plain(StringPattern::Prefix(t.clone()))
        }
        Some(S::SuffixMatch(t)) => {
            not_empty(t, "suffix_match", notes)?;
            plain(StringPattern::Suffix(t.clone()))
        }
        Some(S::ContainsMatch(t)) => {
            not_empty(t, "contains_match", notes)?;
            plain(StringPattern::Contains(t.clone()))
        }
        Some(S::SafeRegexMatch(r)) => {
            plain(StringPattern::SafeRegex(notes.within("safe_regex_match", |n| regex(r, n))?))
        }
        Some(S::RangeMatch(r)) => HeaderMatch::Range { start: r.start, end: r.end },
    };
    Ok(HeaderMatcher {
        name,
        value,
        invert_match: *invert_match,
        treat_missing_header_as_empty: *treat_missing_header_as_empty,
    })
}

pub(super) fn query(m: &route::QueryParameterMatcher, notes: &mut Notes) -> Result<QueryParameterMatcher, Invalid> {
    use route::query_parameter_matcher::QueryParameterMatchSpecifier as S;
    let route::QueryParameterMatcher { name, query_parameter_match_specifier } = m;
    not_empty(name, "name", notes)?;
    let value = match query_parameter_match_specifier {
        None => QueryMatch::Present(true),
        Some(S::PresentMatch(p)) => QueryMatch::Present(*p),
        Some(S::StringMatch(s)) => QueryMatch::String(notes.within("string_match", |n| string(s, n))?),
    };
    Ok(QueryParameterMatcher { name: name.clone(), value })
}

pub(super) fn cookie(m: &route::CookieMatcher, notes: &mut Notes) -> Result<CookieMatcher, Invalid> {
    let route::CookieMatcher { name, string_match, invert_match } = m;
    not_empty(name, "name", notes)?;
    let Some(value) = string_match else { return Err(notes.invalid("string_match", "is not set")) };
    let value = notes.within("string_match", |n| string(value, n))?;
    Ok(CookieMatcher { name: name.clone(), value, invert_match: *invert_match })
}

pub(super) fn runtime_fraction(
    f: &core::RuntimeFractionalPercent,
    notes: &mut Notes,
) -> Result<RuntimeFraction, Invalid> {
    Ok(RuntimeFraction { default: fraction(f, notes)?, runtime_key: f.runtime_key.clone() })
}

/// A share where there is no runtime that could say otherwise, so the default is what counts.
pub(super) fn fraction(f: &core::RuntimeFractionalPercent, notes: &mut Notes) -> Result<Fraction, Invalid> {
    let core::RuntimeFractionalPercent { default_value, runtime_key: _ } = f;
    match default_value {
        None => Err(notes.invalid("default_value", "is not set")),
        Some(percent) => fractional_percent(percent, "default_value", notes),
    }
}

pub(super) fn fractional_percent(p: &kind::FractionalPercent, field: &str, notes: &Notes) -> Result<Fraction, Invalid> {
    use kind::fractional_percent::DenominatorType as D;
    let denominator = match super::value::enumeration::<D>(p.denominator, &format!("{field}.denominator"), notes)? {
        D::Hundred => 100,
        D::TenThousand => 10_000,
        D::Million => 1_000_000,
    };
    Ok(Fraction { numerator: p.numerator, denominator })
}
