//! Compiled regular expressions, cached by a worker.

mod sets;

use amesh_model::matcher::{compile, compile_full, ArchivedRegex};
use amesh_model::route_index::ArchivedRegexSet;
use regex_automata::meta;
use sets::SetCache;
pub use sets::CACHED_SETS;
use std::collections::HashMap;

/// Compiled patterns that one worker keeps, so that memory stays bounded whatever the control plane sends.
pub const CACHED_PATTERNS: usize = 4096;

/// Compiled patterns by the id of the pattern. Compiling happens at a pattern's first use in a worker.
///
/// Two generations: what was not used while half the cache filled up anew is dropped.
#[derive(Default)]
pub struct RegexCache {
    young: Generation,
    old: Generation,
    capacity: Option<usize>,
    sets: SetCache,
}

type Generation = HashMap<(u64, Kind), Entry>;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    /// Matches the whole input.
    Full,
    /// Is searched for.
    Search,
}

struct Entry {
    pattern: Box<str>,
    /// `None`: it could not be compiled, nothing matches it.
    regex: Option<meta::Regex>,
}

impl RegexCache {
    /// An empty cache of [`CACHED_PATTERNS`].
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty cache of another size.
    pub fn with_capacity(patterns: usize) -> Self {
        RegexCache { capacity: Some(patterns), ..Self::default() }
    }

    /// Patterns that are compiled at the moment.
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Whether nothing is compiled.
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && self.sets.len() == 0
    }

    /// Whether the whole of `input` matches.
    pub fn is_match(&mut self, regex: &ArchivedRegex, input: &[u8]) -> bool {
        self.get(regex, Kind::Full).is_some_and(|r| r.is_match(input))
    }

    /// Which members of a set match the whole of `input`; `None` if that cannot be told by the set: more than
    /// [`CACHED_SETS`] are in use, or it has too many states.
    pub fn members(&mut self, set: &ArchivedRegexSet, input: &[u8]) -> Option<impl Iterator<Item = usize> + '_> {
        self.sets.members(set, input)
    }

    /// `input` with every match replaced, as RE2's `GlobalReplace` does it: in `substitution` `\0` … `\9` are groups and
    /// `\\` is a backslash. A pattern that cannot be compiled changes nothing.
    pub fn replace_all(&mut self, regex: &ArchivedRegex, input: &str, substitution: &str) -> String {
        let Some(regex) = self.get(regex, Kind::Search) else { return input.to_owned() };
        let mut out = Vec::with_capacity(input.len() + substitution.len());
        let mut copied = 0;
        for found in regex.captures_iter(input) {
            let Some(whole) = found.get_match() else { continue };
            out.extend_from_slice(&input.as_bytes()[copied..whole.start()]);
            let mut escape = false;
            for b in substitution.bytes() {
                match (escape, b) {
                    (false, b'\\') => {
                        escape = true;
                        continue;
                    }
                    (true, b'0'..=b'9') => {
                        if let Some(group) = found.get_group(usize::from(b - b'0')) {
                            out.extend_from_slice(&input.as_bytes()[group.range()]);
                        }
                    }
                    _ => out.push(b),
                }
                escape = false;
            }
            copied = whole.end();
        }
        out.extend_from_slice(&input.as_bytes()[copied..]);
        match String::from_utf8(out) {
            Ok(text) => text,
            Err(e) => String::from_utf8_lossy(e.as_bytes()).into_owned(),
        }
    }

    fn get(&mut self, regex: &ArchivedRegex, kind: Kind) -> Option<&meta::Regex> {
        let key = (regex.id.to_native(), kind);
        let pattern = regex.pattern.as_str();
        let fresh = self.young.get(&key).is_some_and(|entry| &*entry.pattern == pattern);
        if !fresh {
            let entry = match self.old.remove(&key) {
                Some(entry) if &*entry.pattern == pattern => entry,
                _ => Entry {
                    pattern: pattern.into(),
                    regex: match kind {
                        Kind::Full => compile_full(pattern).ok(),
                        Kind::Search => compile(pattern).ok(),
                    },
                },
            };
            if self.young.len() >= self.capacity.unwrap_or(CACHED_PATTERNS).div_ceil(2) {
                self.old = std::mem::take(&mut self.young);
            }
            self.young.insert(key, entry);
        }
        self.young.get(&key).and_then(|entry| entry.regex.as_ref())
    }
}
