//! Which redirects of an endpoint are followed, and where to.

mod common;

use amesh_dataplane::internal_redirect::{allows, takes, target, Step, Target};
use amesh_model::internal_redirect::{InternalRedirectPolicy, RedirectPredicate};
use common::stored;

fn policy(max: u32, cross: bool, predicates: Vec<RedirectPredicate>) -> InternalRedirectPolicy {
    InternalRedirectPolicy {
        max_internal_redirects: max,
        redirect_response_codes: vec![302, 307],
        predicates,
        allow_cross_scheme_redirect: cross,
        response_headers_to_copy: vec![],
    }
}

const STEP: Step = Step { from: "a", to: "b", scheme: "http", target_scheme: "http" };

fn may(policy: InternalRedirectPolicy, step: Step<'_>, before: &[(&str, &str)]) -> bool {
    allows(stored(&policy), step, before.iter().copied())
}

#[test]
fn a_target_is_a_whole_address() {
    let of = |location| {
        target(location).map(|Target { scheme, host, path }| format!("{scheme} {host} {path}")).unwrap_or_default()
    };
    assert_eq!(of("http://a.example/x?y=1"), "http a.example /x?y=1");
    assert_eq!(of("HTTPS://a.example:8443"), "https a.example:8443 /");
    assert_eq!(of("http://a?q"), "http a /?q");
    assert_eq!(of("http://[::1]:80/x#f"), "http [::1]:80 /x");
    assert_eq!(of("http://a#f"), "http a /");
    for location in ["", "/x", "a/x", "//a/x", "ftp://a/x", "http://", "http:///x", "http://a b/", "http://a/\r\n"] {
        assert_eq!(of(location), "", "{location:?}");
    }
}

#[test]
fn the_policy_says_how_many_and_from_which_scheme() {
    assert!(takes(stored(&policy(1, false, vec![])), 307) && !takes(stored(&policy(1, false, vec![])), 301));
    assert!(may(policy(1, false, vec![]), STEP, &[]));
    assert!(!may(policy(0, false, vec![]), STEP, &[]));
    assert!(!may(policy(1, false, vec![]), STEP, &[("x", "y")]));
    assert!(may(policy(2, false, vec![]), STEP, &[("x", "y")]));
    let across = Step { target_scheme: "https", ..STEP };
    assert!(!may(policy(1, false, vec![]), across, &[]));
    assert!(may(policy(1, true, vec![]), across, &[]));
}

#[test]
fn all_predicates_must_agree() {
    let previous = || vec![RedirectPredicate::PreviousRoutes];
    assert!(may(policy(5, false, previous()), STEP, &[("b", "a"), ("c", "b")]));
    assert!(!may(policy(5, false, previous()), STEP, &[("b", "a"), ("a", "b")]));
    let listed =
        |names: &[&str]| vec![RedirectPredicate::AllowListedRoutes(names.iter().map(|n| (*n).to_owned()).collect())];
    assert!(may(policy(1, false, listed(&["x", "b"])), STEP, &[]));
    assert!(!may(policy(1, false, listed(&["a"])), STEP, &[]));
    assert!(!may(policy(1, false, [listed(&["b"]), listed(&[])].concat()), STEP, &[]));
    let safe = |from, to| {
        let step = Step { scheme: from, target_scheme: to, ..STEP };
        may(policy(1, true, vec![RedirectPredicate::SafeCrossScheme]), step, &[])
    };
    assert_eq!([safe("http", "http"), safe("http", "https"), safe("https", "http")], [true, false, true]);
}
