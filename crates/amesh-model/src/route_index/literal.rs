//! Texts that a path must have for a regular expression to match it.

use super::MAX_LITERAL;
use crate::matcher::syntax_tree;
use regex_syntax::hir::literal::Extractor;
use regex_syntax::hir::{Hir, HirKind};

/// Parts of an expression that are looked at, and how far each is followed: bounds the time that one expression takes.
const PARTS: usize = 64;
const FOLLOWED: usize = 8;
/// Longest text that a path is known to begin with, in bytes.
const LONGEST_START: usize = 256;
/// Texts of which one must be there; more are no help.
const TEXTS: usize = 32;
/// Sets of texts that are kept of one expression.
const KEPT: usize = 8;

/// What a match of a whole path needs. A set of texts means: one of them must be there.
#[derive(Default, Debug, PartialEq, Eq)]
pub(super) struct Needed {
    /// The path begins with one of these.
    pub start: Option<Vec<Vec<u8>>>,
    /// The path has one of these, in each set.
    pub within: Vec<Vec<Vec<u8>>>,
}

/// What `pattern` needs, when it must match the whole of a path.
pub(super) fn needed(pattern: &str) -> Needed {
    let Ok(tree) = syntax_tree(pattern) else { return Needed::default() };
    let mut parts = Vec::new();
    flatten(&tree, &mut parts);
    let start = texts(&parts, LONGEST_START);
    let from = |n: usize| parts.get(n..).and_then(|parts| texts(parts, MAX_LITERAL));
    let ends = parts.iter().filter_map(|part| end(part)).map(|text| vec![text]);
    let mut within: Vec<_> = (0..parts.len().min(PARTS)).filter_map(from).chain(ends.take(PARTS)).collect();
    // Long texts and few of them say most.
    within.sort_by_key(|set| (std::cmp::Reverse(shortest(set)), set.len()));
    within.truncate(KEPT);
    Needed { start, within }
}

/// The expression as a sequence of parts, without the groups around them.
fn flatten<'a>(tree: &'a Hir, parts: &mut Vec<&'a Hir>) {
    match tree.kind() {
        HirKind::Concat(subs) => subs.iter().for_each(|sub| flatten(sub, parts)),
        HirKind::Capture(group) => flatten(&group.sub, parts),
        _ => parts.push(tree),
    }
}

/// Texts with one of which every match of these parts begins; `None`: nothing is known.
fn texts(parts: &[&Hir], longest: usize) -> Option<Vec<Vec<u8>>> {
    let parts = parts.iter().take(FOLLOWED).map(|part| (*part).clone()).collect();
    // A class of more than four characters would only multiply the texts; both cases of a letter are two.
    let found =
        Extractor::new().limit_class(4).limit_total(TEXTS).limit_literal_len(longest).extract(&Hir::concat(parts));
    let mut texts: Vec<Vec<u8>> = found.literals()?.iter().map(|l| l.as_bytes().to_vec()).collect();
    texts.sort_unstable();
    texts.dedup();
    (shortest(&texts) > 0).then_some(texts)
}

/// The end of a text that is too long for the index: its beginning may be that of many others.
fn end(part: &Hir) -> Option<Vec<u8>> {
    let HirKind::Literal(text) = part.kind() else { return None };
    let from = text.0.len().checked_sub(MAX_LITERAL).filter(|from| *from > 0)?;
    text.0.get(from..).map(<[u8]>::to_vec)
}

fn shortest(texts: &[Vec<u8>]) -> usize {
    texts.iter().map(Vec::len).min().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matcher::compile_full;
    use proptest::prelude::*;

    fn start(pattern: &str) -> String {
        let texts = needed(pattern).start.unwrap_or_default();
        texts.iter().map(|t| String::from_utf8_lossy(t)).collect::<Vec<_>>().join(" ")
    }

    fn best_within(pattern: &str) -> String {
        let texts = needed(pattern).within.into_iter().next().unwrap_or_default();
        texts.iter().map(|t| String::from_utf8_lossy(t)).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_path_begins_with_what_stands_before_the_first_choice() {
        assert_eq!(start("/api/v[0-9]+/item-7/.*"), "/api/v");
        assert_eq!(start("^/api/(v1|v2)/.*$"), "/api/v1/ /api/v2/");
        assert_eq!(start("(?:/a)?/b"), "/a/b /b");
        assert_eq!(start("/ab*"), "/a /ab");
        assert_eq!(start(r"\Q/a.b\E.*"), "/a.b");
        assert_eq!(start("(?i)/x"), "/X /x");
        assert_eq!(start(".*"), "");
        assert_eq!(start("a*"), "");
        assert_eq!(start("/|"), "", "the empty path matches too");
    }

    #[test]
    fn a_text_within_is_found_behind_choices_and_in_groups() {
        assert_eq!(best_within("/api/v[0-9]+/item-7/.*"), "/item-7/");
        assert_eq!(best_within("/api/(v[0-9]+)/(item-7/.*)"), "/item-7/");
        assert_eq!(best_within("[a-z]+(/long)?.*"), "");
        let long = ["/", &"a".repeat(40), "/item-7/[0-9]+"].concat();
        let ends = needed(&long).within.into_iter().any(|set| set.iter().all(|t| t.ends_with(b"a/item-7/")));
        assert!(ends, "a text that is too long is looked for by its end too");
        assert!(needed(&long).within.iter().flatten().all(|t| t.len() <= MAX_LITERAL));
    }

    #[test]
    fn an_expression_that_never_matches_needs_nothing() {
        assert_eq!(needed(r"[^\s\S]"), Needed::default());
        assert_eq!(needed("("), Needed::default());
    }

    /// A pattern of random parts, and a text made like it.
    fn pattern() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            "[ab/]{1,3}",
            Just("[a-z]+".to_owned()),
            Just("[ab]".to_owned()),
            Just(".*".to_owned()),
            Just("(?i:aB)".to_owned()),
            Just(r"\Qa.\E".to_owned()),
            Just("^".to_owned()),
            Just("$".to_owned()),
            Just("é".to_owned()),
        ];
        leaf.prop_recursive(3, 12, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 1..4).prop_map(|parts| parts.concat()),
                prop::collection::vec(inner.clone(), 1..3).prop_map(|parts| format!("({})", parts.join("|"))),
                (inner, prop_oneof!["[*+?]", Just("{2}".to_owned()), Just("{0,2}".to_owned())])
                    .prop_map(|(sub, times)| format!("(?:{sub}){times}")),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn every_path_that_matches_has_what_is_needed(pattern in pattern(), paths in prop::collection::vec("[abAB./é]{0,6}", 20)) {
            let regex = compile_full(&pattern).unwrap();
            let needed = needed(&pattern);
            for path in paths.iter().filter(|path| regex.is_match(path.as_bytes())) {
                let path = path.as_bytes();
                if let Some(start) = &needed.start {
                    prop_assert!(start.iter().any(|t| path.starts_with(t)), "{pattern}: {needed:?}");
                }
                for set in &needed.within {
                    let found = set.iter().any(|t| path.windows(t.len()).any(|w| w == &t[..]));
                    prop_assert!(found, "{pattern}: {needed:?}");
                }
            }
        }
    }
}
