//! Matchers of a route as conditions. What has no such form is an error: the reason.

use crate::cond::Cond;
use crate::pcre;
use amesh_model::matcher::{
    CookieMatcher, HeaderMatch, HeaderMatcher, QueryMatch, QueryParameterMatcher, StringMatcher, StringPattern,
};
use amesh_model::route::RouteMatch;

/// What a route asks of a request besides its path, as far as it can be said, and the first thing that cannot.
pub(crate) fn conditions(wanted: &RouteMatch) -> (Cond, Option<String>) {
    let mut all = Vec::new();
    let mut unsaid = None;
    let mut take = |cond: Result<Cond, String>| match cond {
        Ok(cond) => all.push(cond),
        Err(why) => drop(unsaid.get_or_insert(why)),
    };
    wanted.headers.iter().map(header).for_each(&mut take);
    wanted.query_parameters.iter().map(query).for_each(&mut take);
    wanted.cookies.iter().map(cookie).for_each(&mut take);
    if wanted.grpc {
        take(Ok(Cond::finds("http_content_type", "\\Aapplication/grpc(?:\\+|\\z)")));
    }
    if let Some(fraction) = &wanted.runtime_fraction {
        match (fraction.default.numerator, fraction.default.denominator) {
            (0, _) => take(Ok(Cond::False)),
            (some, of) if some >= of => {}
            _ => take(Err("it takes only a share of requests (runtime_fraction)".to_owned())),
        }
    }
    if wanted.tls_context.is_some() {
        take(Err("it asks for the client's certificate (tls_context)".to_owned()));
    }
    if !wanted.dynamic_metadata.is_empty() {
        take(Err("it asks for dynamic metadata".to_owned()));
    }
    if !wanted.filter_state.is_empty() {
        take(Err("it asks for filter state".to_owned()));
    }
    (Cond::all(all), unsaid)
}

/// The variable with a header's value.
pub(crate) fn header_variable(name: &str) -> Result<String, String> {
    match name {
        ":method" => Ok("request_method".to_owned()),
        ":path" => Ok("request_uri".to_owned()),
        ":authority" | "host" => Ok("http_host".to_owned()),
        ":scheme" => Ok("scheme".to_owned()),
        name if !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) => {
            Ok(format!("http_{}", name.to_ascii_lowercase().replace('-', "_")))
        }
        name => Err(format!("no variable has the header \"{name}\"")),
    }
}

/// A header (`HeaderUtility::matchHeaders`).
pub(crate) fn header(wanted: &HeaderMatcher) -> Result<Cond, String> {
    let var = header_variable(&wanted.name)?;
    let present = Cond::set(&var);
    let turned = wanted.invert_match;
    let (value, of_nothing) = match &wanted.value {
        HeaderMatch::Present(there) if wanted.treat_missing_header_as_empty => {
            return Ok(if *there != turned { Cond::True } else { Cond::False });
        }
        HeaderMatch::Present(there) => return Ok(present.not_if(*there == turned)),
        HeaderMatch::String(matcher) => (text(&var, matcher)?, takes(matcher, "")?),
        HeaderMatch::Range { start, end } => (range(&var, *start, *end)?, false),
    };
    Ok(match wanted.treat_missing_header_as_empty {
        // An absent header never matches, not even where the result is turned round.
        false if turned => Cond::all([present, value.not()]),
        false => value,
        true if of_nothing => Cond::any([present.not(), value]).not_if(turned),
        true => value.not_if(turned),
    })
}

/// A decimal integer in a range. Lua reads other numbers, too: they are kept out.
fn range(var: &str, start: i64, end: i64) -> Result<Cond, String> {
    const EXACT: i64 = 1 << 53;
    let blank = "[\\x09-\\x0d\\x20]*";
    let integer = Cond::finds(var, &format!("\\A{blank}[-\\+]?[0-9]{{1,15}}{blank}\\z"));
    if start < -EXACT || end > EXACT {
        return Err("a range beyond 2^53 is not exact in Lua".to_owned());
    }
    Ok(Cond::all([integer, Cond::number(var, ">", start - 1), Cond::number(var, "<", end)]))
}

/// A variable as a matcher wants it.
pub(crate) fn text(var: &str, wanted: &StringMatcher) -> Result<Cond, String> {
    let pattern = |before: &str, text: &str, after: &str| {
        let case = if wanted.ignore_case { "(?i)" } else { "" };
        Cond::finds(var, &format!("{case}{before}{}{after}", pcre::quote(text)))
    };
    Ok(match &wanted.pattern {
        StringPattern::Exact(text) if !wanted.ignore_case => Cond::is(var, text),
        StringPattern::Exact(text) => pattern("\\A", text, "\\z"),
        StringPattern::Prefix(text) => pattern("\\A", text, ""),
        StringPattern::Suffix(text) => pattern("", text, "\\z"),
        StringPattern::Contains(text) if text.is_empty() => Cond::set(var),
        StringPattern::Contains(text) => pattern("", text, ""),
        StringPattern::SafeRegex(regex) => Cond::finds(var, &pcre::whole(&regex.pattern)?),
    })
}

/// Whether a matcher takes a text that is known.
fn takes(wanted: &StringMatcher, text: &str) -> Result<bool, String> {
    let (text, lower) = (text, text.to_ascii_lowercase());
    let text = if wanted.ignore_case { lower.as_str() } else { text };
    Ok(match &wanted.pattern {
        StringPattern::Exact(pattern) => text == pattern,
        StringPattern::Prefix(pattern) => text.starts_with(pattern.as_str()),
        StringPattern::Suffix(pattern) => text.ends_with(pattern.as_str()),
        StringPattern::Contains(pattern) => text.contains(pattern.as_str()),
        StringPattern::SafeRegex(regex) => {
            amesh_model::matcher::compile_full(&regex.pattern).map_err(|e| e.to_string())?.is_match(text)
        }
    })
}

/// A query parameter. Its variable in APISIX is decoded; the query as it came is looked at instead, as Envoy does. The first
/// of a name counts.
fn query(wanted: &QueryParameterMatcher) -> Result<Cond, String> {
    const END: &str = "(?:\\x26|\\z)";
    let name = pcre::quote(&wanted.name);
    let before = format!("\\A(?:(?!{name}(?:[=\\x26]|\\z))[^\\x26]*\\x26)*{name}");
    let present = || format!("{before}(?:[=\\x26]|\\z)");
    let StringMatcher { pattern, ignore_case } = match &wanted.value {
        QueryMatch::Present(there) => return Ok(Cond::finds("args", &present()).not_if(!there)),
        QueryMatch::String(matcher) => matcher,
    };
    let quoted = |text: &str| match ignore_case {
        true => format!("(?i:{})", pcre::quote(text)),
        false => pcre::quote(text),
    };
    Ok(match pattern {
        StringPattern::Exact(text)
        | StringPattern::Prefix(text)
        | StringPattern::Suffix(text)
        | StringPattern::Contains(text)
            if text.contains('&') =>
        {
            Cond::False
        }
        StringPattern::Exact(text) if text.is_empty() => Cond::finds("args", &format!("{before}=?{END}")),
        StringPattern::Exact(text) => Cond::finds("args", &format!("{before}={}{END}", quoted(text))),
        StringPattern::Prefix(text) | StringPattern::Suffix(text) | StringPattern::Contains(text)
            if text.is_empty() =>
        {
            Cond::finds("args", &present())
        }
        StringPattern::Prefix(text) => Cond::finds("args", &format!("{before}={}", quoted(text))),
        StringPattern::Suffix(text) => Cond::finds("args", &format!("{before}=[^\\x26]*{}{END}", quoted(text))),
        StringPattern::Contains(text) => Cond::finds("args", &format!("{before}=[^\\x26]*{}", quoted(text))),
        StringPattern::SafeRegex(regex) => {
            let value = pcre::within(&regex.pattern, b'&')?;
            let some = Cond::finds("args", &format!("{before}={value}{END}"));
            match takes(&StringMatcher { pattern: pattern.clone(), ignore_case: false }, "")? {
                true => Cond::any([some, Cond::finds("args", &format!("{before}{END}"))]),
                false => some,
            }
        }
    })
}

/// A cookie: the first of a name, without quotation marks.
fn cookie(wanted: &CookieMatcher) -> Result<Cond, String> {
    const BLANK: &str = "[\\x09\\x0a\\x0c\\x0d\\x20]*";
    let name = pcre::quote(&wanted.name);
    let before = format!("\\A(?:(?!{BLANK}{name}=)[^;]*;)*{BLANK}{name}=");
    let end = format!("{BLANK}(?:;|\\z)");
    let StringMatcher { pattern, ignore_case } = &wanted.value;
    let text = match pattern {
        StringPattern::Exact(text)
        | StringPattern::Prefix(text)
        | StringPattern::Suffix(text)
        | StringPattern::Contains(text) => {
            match text.bytes().any(|b| matches!(b, b'"' | b';') || b.is_ascii_whitespace()) {
                true => return Err(format!("the cookie \"{}\" is compared with what no cookie has", wanted.name)),
                false if *ignore_case => format!("(?i:{})", pcre::quote(text)),
                false => pcre::quote(text),
            }
        }
        StringPattern::SafeRegex(regex) => pcre::within(&regex.pattern, b';')?,
    };
    let inner = match pattern {
        StringPattern::Exact(_) | StringPattern::SafeRegex(_) => text,
        StringPattern::Prefix(_) => format!("{text}[^;]*"),
        StringPattern::Suffix(_) => format!("[^;]*{text}"),
        StringPattern::Contains(_) => format!("[^;]*{text}[^;]*"),
    };
    let pattern = format!("{before}(?:\"{inner}\"{end}|(?!\"[^;]*\"{end}){inner}{end})");
    Ok(Cond::finds("http_cookie", &pattern).not_if(wanted.invert_match))
}
