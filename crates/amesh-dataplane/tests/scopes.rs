//! Which scope a request is in.

mod common;

use amesh_dataplane::scope::find;
use amesh_model::listener::{HeaderValueExtractor, Scope, ScopeElement, ScopeRoutes, ScopedRoutes};
use common::stored;

fn part(name: &str, element_separator: &str, element: ScopeElement) -> HeaderValueExtractor {
    HeaderValueExtractor { name: name.into(), element_separator: element_separator.into(), element }
}

fn pair(key: &str, separator: &str) -> ScopeElement {
    ScopeElement::Pair { key: key.into(), separator: separator.into() }
}

/// The name of the scope of a request with these headers.
fn scope_of(parts: &[HeaderValueExtractor], keys: &[&[&str]], headers: &[(&str, &str)]) -> Option<String> {
    let scope = |key: &&[&str]| Scope {
        name: key.join("/"),
        key: key.iter().map(|k| (*k).to_owned()).collect(),
        routes: ScopeRoutes::Rds("t".into()),
    };
    let routes = ScopedRoutes { scope_key_builder: parts.to_vec(), scopes: keys.iter().map(scope).collect() };
    let header = |name: &str| headers.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_bytes());
    find(stored(&routes), header).map(|scope| scope.name.as_str().to_owned())
}

#[test]
fn a_whole_value_an_element_and_a_pair_are_parts_of_a_key() {
    for (part, value, want) in [
        (part("h", "", ScopeElement::Index(0)), "a,b", Some("a,b")),
        (part("h", ",", ScopeElement::Index(1)), "a,b", Some("b")),
        (part("h", ",", ScopeElement::Index(2)), "a,b", None),
        (part("h", ";", pair("k", "=")), "x=a;k=b=c;k=d", Some("b=c")),
        (part("h", "", pair("k", "=")), "k=x", Some("x")),
        (part("h", ";", pair("k", "=")), "x=a", None),
        (part("h", ";", pair("k", "=")), "k", Some("")),
    ] {
        let keys: Vec<&[&str]> = vec![&["a,b"], &["b"], &["b=c"], &["x"], &[""]];
        let parts = [part];
        assert_eq!(scope_of(&parts, &keys, &[("h", value)]).as_deref(), want, "{parts:?} {value}");
        assert_eq!(scope_of(&parts, &keys, &[("other", value)]), None);
    }
}

#[test]
fn all_parts_must_be_those_of_the_scope() {
    let parts = [part("a", "", ScopeElement::Index(0)), part("b", "", ScopeElement::Index(0))];
    let keys: Vec<&[&str]> = vec![&["1", "1"], &["1", "2"], &["1"]];
    assert_eq!(scope_of(&parts, &keys, &[("a", "1"), ("b", "2")]).as_deref(), Some("1/2"));
    assert_eq!(scope_of(&parts, &keys, &[("a", "2"), ("b", "1")]), None);
    assert_eq!(scope_of(&parts, &keys, &[("a", "1")]), None, "a part that is not there");
}
