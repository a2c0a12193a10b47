//! `InternalRedirectPolicy`.

use super::format::name as header_name;
use super::value::{type_name, u32_or, unpack};
use super::{Invalid, Notes};
use amesh_model::internal_redirect::{InternalRedirectPolicy, RedirectPredicate};
use envoy_types::pb::envoy::config::{core::v3 as core, route::v3 as pb};
use envoy_types::pb::envoy::extensions::internal_redirect::allow_listed_routes::v3::AllowListedRoutesConfig;

const PREVIOUS_ROUTES: &str = "envoy.extensions.internal_redirect.previous_routes.v3.PreviousRoutesConfig";
const ALLOW_LISTED: &str = "envoy.extensions.internal_redirect.allow_listed_routes.v3.AllowListedRoutesConfig";
const SAFE_CROSS_SCHEME: &str = "envoy.extensions.internal_redirect.safe_cross_scheme.v3.SafeCrossSchemeConfig";

/// The longest row of redirects that nginx follows for one request (`NGX_HTTP_MAX_URI_CHANGES`).
const LONGEST: u32 = 9;

pub(super) fn policy(p: &pb::InternalRedirectPolicy, notes: &mut Notes) -> Result<InternalRedirectPolicy, Invalid> {
    let pb::InternalRedirectPolicy {
        max_internal_redirects,
        redirect_response_codes,
        predicates,
        allow_cross_scheme_redirect,
        response_headers_to_copy,
    } = p;
    let max_internal_redirects = u32_or(max_internal_redirects, 1);
    if max_internal_redirects > LONGEST {
        notes.ignored("max_internal_redirects", format!("nginx follows no more than {LONGEST} for one request"));
    }
    if redirect_response_codes.len() > 5 {
        return Err(notes.invalid("redirect_response_codes", "are more than five"));
    }
    Ok(InternalRedirectPolicy {
        max_internal_redirects: max_internal_redirects.min(LONGEST),
        redirect_response_codes: match redirect_response_codes.as_slice() {
            [] => vec![302],
            // As Envoy, which passes over all others.
            codes => [301, 302, 303, 307, 308].into_iter().filter(|code| codes.contains(&u32::from(*code))).collect(),
        },
        predicates: notes.list("predicates", predicates, predicate)?,
        allow_cross_scheme_redirect: *allow_cross_scheme_redirect,
        response_headers_to_copy: notes
            .list("response_headers_to_copy", response_headers_to_copy, |h, n| header_name(h, "", n))?,
    })
}

fn predicate(e: &core::TypedExtensionConfig, notes: &mut Notes) -> Result<RedirectPredicate, Invalid> {
    let core::TypedExtensionConfig { name, typed_config } = e;
    let kind = typed_config.as_ref().map(type_name).unwrap_or_default();
    match (kind.as_str(), typed_config) {
        (PREVIOUS_ROUTES, _) => Ok(RedirectPredicate::PreviousRoutes),
        (SAFE_CROSS_SCHEME, _) => Ok(RedirectPredicate::SafeCrossScheme),
        (ALLOW_LISTED, Some(any)) => {
            let AllowListedRoutesConfig { allowed_route_names } = unpack(any, "typed_config", notes)?;
            Ok(RedirectPredicate::AllowListedRoutes(allowed_route_names))
        }
        _ => Err(notes.invalid("", format!("\"{name}\" ({kind}) is not supported, and redirects depend on it"))),
    }
}
