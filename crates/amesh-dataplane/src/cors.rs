//! What scripts of other origins may do (`CorsFilter`).

use crate::regex::RegexCache;
use crate::route::{string_matches, RequestHead};
use amesh_model::filter::ArchivedCors;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is no business of CORS.
    Pass,
    /// It goes on; its response gets the headers of [`response_headers`].
    Answered,
    /// It ends here: a preflight request, answered by 200 with the headers of [`preflight_headers`].
    Preflight,
    /// It ends here: a preflight request of an origin that is not allowed, answered by 200 without that.
    Denied,
}

/// Looks at a request.
pub fn verdict(cors: &ArchivedCors, head: &impl RequestHead, regexes: &mut RegexCache) -> Verdict {
    let share = &cors.enabled;
    if head.random() % u64::from(share.denominator.to_native().max(1)) >= share.numerator.to_native().into() {
        return Verdict::Pass;
    }
    let Some(origin) = head.first_value("origin").filter(|origin| !origin.is_empty()) else { return Verdict::Pass };
    let asks = head.first_value("access-control-request-method").is_some_and(|method| !method.is_empty());
    let preflight = head.method() == "OPTIONS" && asks;
    let mut allowed = |text: &[u8]| cors.allow_origin.iter().any(|m| string_matches(m, text, regexes));
    match (allowed(b"*") || allowed(origin), preflight) {
        (true, true) => Verdict::Preflight,
        (true, false) => Verdict::Answered,
        (false, true) if !cors.forward_not_matching_preflights => Verdict::Denied,
        (false, _) => Verdict::Pass,
    }
}

/// Headers of a response to an origin that is allowed.
pub fn response_headers<'a>(cors: &'a ArchivedCors, origin: &'a str) -> impl Iterator<Item = (&'static str, &'a str)> {
    set([
        ("access-control-allow-origin", origin),
        ("access-control-allow-credentials", if cors.allow_credentials { "true" } else { "" }),
        ("access-control-expose-headers", cors.expose_headers.as_str()),
    ])
}

/// Headers of the answer to a preflight request. `*` is what the request asks for. One that is denied learns all but
/// that it is allowed.
pub fn preflight_headers<'a>(
    cors: &'a ArchivedCors,
    origin: &'a str,
    denied: bool,
    head: &'a impl RequestHead,
) -> impl Iterator<Item = (&'static str, &'a str)> {
    let asked = |name| head.first_value(name).and_then(|value| std::str::from_utf8(value).ok()).unwrap_or_default();
    let private = cors.allow_private_network && asked("access-control-request-private-network") == "true";
    let methods = match cors.allow_methods.as_str() {
        "*" => asked("access-control-request-method"),
        methods => methods,
    };
    let names = match cors.allow_headers.as_str() {
        "*" => asked("access-control-request-headers"),
        names => names,
    };
    set([
        ("access-control-allow-origin", if denied { "" } else { origin }),
        ("access-control-allow-credentials", if cors.allow_credentials { "true" } else { "" }),
        ("access-control-allow-methods", methods),
        ("access-control-allow-headers", names),
        ("access-control-max-age", cors.max_age.as_str()),
        ("access-control-allow-private-network", if private { "true" } else { "" }),
        ("access-control-expose-headers", if denied { "" } else { cors.expose_headers.as_str() }),
    ])
}

fn set<'a, const N: usize>(headers: [(&'static str, &'a str); N]) -> impl Iterator<Item = (&'static str, &'a str)> {
    headers.into_iter().filter(|(_, value)| !value.is_empty())
}
