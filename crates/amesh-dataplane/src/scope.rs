//! Which scope a request is in (`ScopeKeyBuilderImpl`).

use amesh_model::listener::{ArchivedHeaderValueExtractor, ArchivedScope, ArchivedScopeElement, ArchivedScopedRoutes};

/// The scope of a request, by the first value of each of its headers (lower case names); `None`: it is in none.
pub fn find<'s, 'v>(
    routes: &'s ArchivedScopedRoutes,
    header: impl Fn(&str) -> Option<&'v [u8]>,
) -> Option<&'s ArchivedScope> {
    let parts = routes.scope_key_builder.iter().map(|part| extract(part, header(&part.name)?));
    let key: Vec<&str> = parts.collect::<Option<_>>()?;
    let same = |scope: &&ArchivedScope| {
        scope.key.len() == key.len() && scope.key.iter().zip(&key).all(|(wanted, part)| wanted == part)
    };
    routes.scopes.iter().find(same)
}

fn extract<'v>(part: &ArchivedHeaderValueExtractor, value: &'v [u8]) -> Option<&'v str> {
    let value = std::str::from_utf8(value).ok()?;
    let separator = part.element_separator.as_str();
    let (mut split, mut whole) = (value.split(separator), std::iter::once(value));
    let elements: &mut dyn Iterator<Item = &'v str> = match separator {
        "" => &mut whole,
        _ => &mut split,
    };
    match &part.element {
        ArchivedScopeElement::Index(n) => elements.nth(n.to_native() as usize),
        ArchivedScopeElement::Pair { key, separator } => elements
            .map(|element| element.split_once(separator.as_str()).unwrap_or((element, "")))
            .find_map(|(name, value)| (name == key.as_str()).then_some(value)),
    }
}
