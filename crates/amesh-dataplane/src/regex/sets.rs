//! Sets of expressions that are matched together, cached by a worker.

use amesh_model::matcher::compile_set;
use amesh_model::route_index::ArchivedRegexSet;
use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::{Anchored, Input, PatternSet};
use std::collections::HashMap;

/// Compiled sets that one worker keeps, each of some MB at the most.
pub const CACHED_SETS: usize = 32;
/// Once the cache is full, a set gives way to another when it was not asked for while others were so many times.
const IDLE: u64 = 10_000;

/// Compiled sets by their id, which is a hash of their expressions: what an update does not change stays.
#[derive(Default)]
pub(super) struct SetCache {
    kept: HashMap<u128, Entry>,
    asked: u64,
}

struct Entry {
    /// `None`: it could not be compiled.
    compiled: Option<Box<Compiled>>,
    /// [`SetCache::asked`] when it was last.
    used: u64,
}

struct Compiled {
    automaton: DFA,
    states: Cache,
    found: PatternSet,
}

impl SetCache {
    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    /// Which members of the set match the whole of `input`; `None` if that cannot be told by the set.
    pub(super) fn members(&mut self, set: &ArchivedRegexSet, input: &[u8]) -> Option<impl Iterator<Item = usize> + '_> {
        self.asked += 1;
        let id = set.id.to_native();
        if !self.kept.contains_key(&id) && !self.room() {
            return None;
        }
        let entry = self.kept.entry(id).or_insert_with(|| Entry { compiled: compiled(set), used: 0 });
        entry.used = self.asked;
        let Compiled { automaton, states, found } = entry.compiled.as_deref_mut()?;
        found.clear();
        let input = Input::new(input).anchored(Anchored::Yes);
        // Fails where the automaton has too many states for its cache.
        automaton.try_which_overlapping_matches(states, &input, found).ok()?;
        Some(found.iter().map(|member| member.as_usize()))
    }

    /// Whether one more may be compiled.
    fn room(&mut self) -> bool {
        if self.kept.len() < CACHED_SETS {
            return true;
        }
        let idlest = self.kept.iter().min_by_key(|(_, entry)| entry.used);
        match idlest.map(|(id, entry)| (*id, entry.used)) {
            Some((id, used)) if self.asked - used > IDLE => self.kept.remove(&id).is_some(),
            _ => false,
        }
    }
}

fn compiled(set: &ArchivedRegexSet) -> Option<Box<Compiled>> {
    let automaton = compile_set(set.members.iter().map(|member| member.pattern.as_str())).ok()?;
    let (states, found) = (automaton.create_cache(), PatternSet::new(automaton.pattern_len()));
    Some(Box::new(Compiled { automaton, states, found }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use amesh_model::route_index::{Member, RegexSet};
    use rkyv::rancor::Error;

    fn stored(id: u128, patterns: &[&str]) -> rkyv::util::AlignedVec {
        let member = |pattern: &&str| Member { pattern: (*pattern).into(), routes: Vec::new() };
        rkyv::to_bytes::<Error>(&RegexSet { id, members: patterns.iter().map(member).collect() }).unwrap()
    }

    fn found(cache: &mut SetCache, set: &[u8], input: &str) -> Option<Vec<usize>> {
        let set = rkyv::access::<ArchivedRegexSet, Error>(set).unwrap();
        cache.members(set, input.as_bytes()).map(Iterator::collect)
    }

    #[test]
    fn all_that_match_the_whole_input_are_found() {
        let mut cache = SetCache::default();
        let set = stored(1, &["/a", "/.*", "/[a-c]+", "a", "/a|/ab", r"\Q/ab\E", "/ab^", "/é", r"/a\b.*", "/[é-ü]"]);
        assert_eq!(found(&mut cache, &set, "/ab"), Some(vec![1, 2, 4, 5]));
        assert_eq!(found(&mut cache, &set, "/a"), Some(vec![0, 1, 2, 4, 8]));
        assert_eq!(found(&mut cache, &set, "/é"), Some(vec![1, 7, 9]));
        assert_eq!(found(&mut cache, &set, ""), Some(vec![]));
    }

    #[test]
    fn a_set_that_cannot_be_compiled_says_nothing() {
        let set = stored(1, &["/a", "/[a-z]{60000}"]);
        assert_eq!(found(&mut SetCache::default(), &set, "/a"), None);
    }

    #[test]
    fn a_set_that_grows_too_many_states_says_nothing() {
        // Every state remembers which of the last letters were an `a`.
        let set = stored(1, &["/[ab]*a[ab]{18}"]);
        let mut cache = SetCache::default();
        let mut x = 1u32;
        let mut letter = || {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if x & 1 << 20 == 0 {
                'a'
            } else {
                'b'
            }
        };
        let answers: Vec<_> = (0..20)
            .map(|_| std::iter::once('/').chain((0..20_000).map(|_| letter())).collect::<String>())
            .map(|path| found(&mut cache, &set, &path))
            .collect();
        assert!(answers.contains(&None));
        assert_eq!(found(&mut cache, &set, "/"), Some(vec![]), "short paths are still matched");
    }

    #[test]
    fn the_cache_is_bounded_and_what_is_in_use_stays() {
        let mut cache = SetCache::default();
        let sets: Vec<_> = (0..=CACHED_SETS as u128).map(|n| stored(n, &["/a"])).collect();
        let (first, last) = (&sets[0], &sets[CACHED_SETS]);
        for set in &sets[..CACHED_SETS] {
            assert!(found(&mut cache, set, "/a").is_some());
        }
        assert_eq!(found(&mut cache, last, "/a"), None);
        for _ in 0..IDLE {
            found(&mut cache, first, "/a");
        }
        assert!(found(&mut cache, last, "/a").is_some(), "another was idle");
        assert!(found(&mut cache, first, "/a").is_some());
        assert_eq!(cache.len(), CACHED_SETS);
    }
}
