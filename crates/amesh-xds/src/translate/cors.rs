//! `CorsPolicy`, in both of its forms.

use super::matcher;
use super::notes::ignored;
use super::{Invalid, Notes};
use amesh_model::filter::Cors;
use amesh_model::matcher::{Fraction, StringMatcher};
use envoy_types::pb::envoy::config::route::v3 as old;
use envoy_types::pb::envoy::extensions::filters::http::cors::v3 as pb;

const ALWAYS: Fraction = Fraction { numerator: 100, denominator: 100 };

/// What one place (route, virtual host, table) says: what it leaves open is said by the next one outside.
#[derive(Clone, Debug, Default)]
pub(super) struct Level {
    enabled: Option<Fraction>,
    allow_origin: Vec<StringMatcher>,
    allow_methods: String,
    allow_headers: String,
    expose_headers: String,
    max_age: String,
    allow_credentials: Option<bool>,
    allow_private_network: Option<bool>,
    forward_not_matching_preflights: Option<bool>,
}

impl Level {
    /// The filter is off here.
    pub(super) fn disabled() -> Level {
        Level { enabled: Some(Fraction { numerator: 0, denominator: 100 }), ..Level::default() }
    }

    /// What `self` says, and what `outer` says of the rest.
    pub(super) fn or(self, outer: &Level) -> Level {
        let text = |inner: String, outer: &String| if inner.is_empty() { outer.clone() } else { inner };
        let matchers = |inner: Vec<_>, outer: &Vec<_>| if inner.is_empty() { outer.clone() } else { inner };
        Level {
            enabled: self.enabled.or(outer.enabled),
            allow_origin: matchers(self.allow_origin, &outer.allow_origin),
            allow_methods: text(self.allow_methods, &outer.allow_methods),
            allow_headers: text(self.allow_headers, &outer.allow_headers),
            expose_headers: text(self.expose_headers, &outer.expose_headers),
            max_age: text(self.max_age, &outer.max_age),
            allow_credentials: self.allow_credentials.or(outer.allow_credentials),
            allow_private_network: self.allow_private_network.or(outer.allow_private_network),
            forward_not_matching_preflights: self
                .forward_not_matching_preflights
                .or(outer.forward_not_matching_preflights),
        }
    }

    /// The policy of a route.
    pub(super) fn finish(self) -> Cors {
        Cors {
            enabled: self.enabled.unwrap_or(ALWAYS),
            allow_origin: self.allow_origin,
            allow_methods: self.allow_methods,
            allow_headers: self.allow_headers,
            expose_headers: self.expose_headers,
            max_age: self.max_age,
            allow_credentials: self.allow_credentials.unwrap_or(false),
            allow_private_network: self.allow_private_network.unwrap_or(false),
            forward_not_matching_preflights: self.forward_not_matching_preflights.unwrap_or(true),
        }
    }
}

/// A policy of `typed_per_filter_config`.
pub(super) fn policy(policy: &pb::CorsPolicy, notes: &mut Notes) -> Result<Level, Invalid> {
    let pb::CorsPolicy {
        allow_origin_string_match,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        filter_enabled,
        shadow_enabled,
        allow_private_network_access,
        forward_not_matching_preflights,
    } = policy;
    ignored!(notes, "statistics only"; shadow_enabled);
    Ok(Level {
        enabled: Some(match filter_enabled {
            None => ALWAYS,
            Some(f) => notes.within("filter_enabled", |n| matcher::fraction(f, n))?,
        }),
        allow_origin: notes.list("allow_origin_string_match", allow_origin_string_match, matcher::string)?,
        allow_methods: allow_methods.clone(),
        allow_headers: allow_headers.clone(),
        expose_headers: expose_headers.clone(),
        max_age: max_age.clone(),
        allow_credentials: allow_credentials.map(|b| b.value),
        allow_private_network: allow_private_network_access.map(|b| b.value),
        forward_not_matching_preflights: forward_not_matching_preflights.map(|b| b.value),
    })
}

/// The older policy, a field of routes and virtual hosts.
pub(super) fn deprecated(policy: &old::CorsPolicy, notes: &mut Notes) -> Result<Level, Invalid> {
    let old::CorsPolicy {
        allow_origin_string_match,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        shadow_enabled,
        allow_private_network_access,
        forward_not_matching_preflights,
        enabled_specifier,
    } = policy;
    let filter_enabled =
        enabled_specifier.as_ref().map(|old::cors_policy::EnabledSpecifier::FilterEnabled(f)| f.clone());
    self::policy(
        &pb::CorsPolicy {
            allow_origin_string_match: allow_origin_string_match.clone(),
            allow_methods: allow_methods.clone(),
            allow_headers: allow_headers.clone(),
            expose_headers: expose_headers.clone(),
            max_age: max_age.clone(),
            allow_credentials: *allow_credentials,
            filter_enabled,
            shadow_enabled: shadow_enabled.clone(),
            allow_private_network_access: *allow_private_network_access,
            forward_not_matching_preflights: *forward_not_matching_preflights,
        },
        notes,
    )
}
