//! Redirects of an endpoint that are followed in place of the client (`config.route.v3.InternalRedirectPolicy`).

use rkyv::{Archive, Deserialize, Serialize};

/// Which redirects are followed.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct InternalRedirectPolicy {
    /// How many for one request; 1 by default.
    pub max_internal_redirects: u32,
    /// Of which statuses; 302 by default.
    pub redirect_response_codes: Vec<u16>,
    /// All must agree.
    pub predicates: Vec<RedirectPredicate>,
    /// From `http` to `https` and back.
    pub allow_cross_scheme_redirect: bool,
    /// Headers of the redirect that the next request has, and has not where the redirect has none (lower case).
    pub response_headers_to_copy: Vec<String>,
}

/// What a redirect is asked (`extensions.internal_redirect`).
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum RedirectPredicate {
    /// Not twice from one route to the same other.
    PreviousRoutes,
    /// Only to routes of these names.
    AllowListedRoutes(Vec<String>),
    /// Not from `http` to `https`.
    SafeCrossScheme,
}
