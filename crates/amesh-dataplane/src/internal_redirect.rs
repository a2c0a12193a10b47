//! Redirects of an endpoint that are followed in place of the client (`Filter::convertRequestHeadersForInternalRedirect`,
//! `extensions.internal_redirect`).

use amesh_model::internal_redirect::{ArchivedInternalRedirectPolicy, ArchivedRedirectPredicate};
use std::borrow::Cow;

/// Where a `location` points to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// `http` or `https`.
    pub scheme: &'static str,
    /// With its port, as it stands there.
    pub host: &'a str,
    /// Path and query, without a fragment.
    pub path: Cow<'a, str>,
}

/// The target of a `location`; `None`: it is no whole address, and the client has to find out what it means.
pub fn target(location: &str) -> Option<Target<'_>> {
    let (scheme, rest) = location.split_once("://")?;
    let scheme = match scheme {
        s if s.eq_ignore_ascii_case("http") => "http",
        s if s.eq_ignore_ascii_case("https") => "https",
        _ => return None,
    };
    let (host, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let path = path.split('#').next().unwrap_or_default();
    if host.is_empty() || location.bytes().any(|b| b <= b' ' || b == 0x7f) {
        return None;
    }
    let path = match path.starts_with('/') {
        true => Cow::Borrowed(path),
        false => Cow::Owned(format!("/{path}")),
    };
    Some(Target { scheme, host, path })
}

/// Whether the policy is for responses of this status.
pub fn takes(policy: &ArchivedInternalRedirectPolicy, status: u16) -> bool {
    policy.redirect_response_codes.contains(&status.into())
}

/// A step from one route to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step<'a> {
    /// The name of the route whose endpoint redirects.
    pub from: &'a str,
    /// The name of the route that the target has.
    pub to: &'a str,
    /// Of the request.
    pub scheme: &'a str,
    /// Of the target.
    pub target_scheme: &'a str,
}

/// Whether a step may be made after those in `before` (routes they led from and to).
pub fn allows<'b>(
    policy: &ArchivedInternalRedirectPolicy,
    step: Step<'_>,
    before: impl Iterator<Item = (&'b str, &'b str)> + Clone,
) -> bool {
    if before.clone().count() >= policy.max_internal_redirects.to_native() as usize
        || (!policy.allow_cross_scheme_redirect && step.scheme != step.target_scheme)
    {
        return false;
    }
    policy.predicates.iter().all(|predicate| match predicate {
        ArchivedRedirectPredicate::PreviousRoutes => before.clone().all(|made| made != (step.from, step.to)),
        ArchivedRedirectPredicate::AllowListedRoutes(routes) => routes.iter().any(|name| name == step.to),
        ArchivedRedirectPredicate::SafeCrossScheme => step.scheme == "https" || step.target_scheme != "https",
    })
}
