//! Regular expressions that no text tells apart are matched together, by one automaton a set.

use crate::matcher::compile_set;
use rkyv::{Archive, Deserialize, Serialize};
use std::collections::BTreeMap;
use xxhash_rust::xxh3::{xxh3_128, Xxh3};

/// A set's expressions, while [`MAX_SETS`] are enough: one that changes makes a worker compile its whole set anew.
const MEMBERS: usize = 128;
/// Sets of a virtual host at the most: each request may be held against each, and workers keep a bounded number.
pub const MAX_SETS: usize = 16;

/// Regular expressions that are matched together.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct RegexSet {
    /// XXH3 (128 bits) of the expressions in their order: workers keep the compiled form under it.
    pub id: u128,
    /// Each expression once.
    pub members: Vec<Member>,
}

/// An expression of a [`RegexSet`].
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The expression, which must match the whole path.
    pub pattern: String,
    /// Routes that have it, ascending.
    pub routes: Vec<u32>,
}

/// Puts expressions into sets. What finds no room, or is too large to be compiled together with anything, is handed back.
pub(super) fn sets(expressions: BTreeMap<&str, Vec<u32>>) -> (Vec<RegexSet>, Vec<Vec<u32>>) {
    // By the hash of an expression, so that one which comes or goes changes its own set alone.
    let count = expressions.len().div_ceil(MEMBERS).next_power_of_two().min(MAX_SETS);
    let mut parts: Vec<Vec<Member>> = vec![Vec::new(); count];
    for (pattern, routes) in expressions {
        let at = xxh3_128(pattern.as_bytes()) as usize % count;
        if let Some(part) = parts.get_mut(at) {
            part.push(Member { pattern: pattern.to_owned(), routes });
        }
    }
    let (mut sets, mut left) = (Vec::new(), Vec::new());
    while let Some(mut members) = parts.pop() {
        if sets.len() < MAX_SETS && compile_set(members.iter().map(|m| m.pattern.as_str())).is_ok() {
            sets.push(RegexSet { id: id(&members), members });
        } else if sets.len() < MAX_SETS && members.len() > 1 {
            let half = members.split_off(members.len() / 2);
            parts.extend([half, members]);
        } else {
            left.extend(members.into_iter().map(|member| member.routes));
        }
    }
    (sets, left)
}

fn id(members: &[Member]) -> u128 {
    let mut hash = Xxh3::new();
    for member in members {
        // With its length: where one expression ends counts too.
        hash.update(&(member.pattern.len() as u64).to_le_bytes());
        hash.update(member.pattern.as_bytes());
    }
    hash.digest128()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(patterns: &[String]) -> BTreeMap<&str, Vec<u32>> {
        (0..).zip(patterns).map(|(n, pattern)| (pattern.as_str(), vec![n])).collect()
    }

    fn small(count: usize) -> Vec<String> {
        (0..count).map(|n| format!("/[a-z]+/[0-9]{{{}}}/[a-f]{{{}}}", n / 50 + 1, n % 50 + 1)).collect()
    }

    #[test]
    fn each_expression_is_in_one_set() {
        let patterns = small(1000);
        let (sets, left) = sets(numbered(&patterns));
        assert!(left.is_empty());
        assert_eq!(sets.len(), 8);
        let mut routes: Vec<u32> = sets.iter().flat_map(|s| &s.members).flat_map(|m| m.routes.clone()).collect();
        routes.sort_unstable();
        assert_eq!(routes, (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn one_expression_more_changes_one_set() {
        let mut patterns = small(1000);
        let ids = |patterns: &[String]| sets(numbered(patterns)).0.iter().map(|set| set.id).collect::<Vec<_>>();
        let before = ids(&patterns);
        patterns.insert(0, "/new/[a-z]".into());
        let changed = ids(&patterns).iter().zip(before).filter(|(now, before)| *now != before).count();
        assert_eq!(changed, 1, "the numbers of all routes are others now");
    }

    #[test]
    fn what_is_too_large_for_a_set_is_handed_back() {
        let mut patterns = small(100);
        patterns.extend((0..3).map(|n| format!("/[a-z]{{{}}}", 40_000 + n)));
        let (sets, left) = sets(numbered(&patterns));
        assert_eq!(left, [[100], [101], [102]]);
        assert_eq!(sets.iter().map(|s| s.members.len()).sum::<usize>(), 100);
        assert!(sets.len() <= MAX_SETS);
    }
}
