//! What a translation has to say beside its result, and where in the resource it is.

use super::Invalid;
use amesh_model::matcher::Regex;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

/// What became of a field that is not acted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NoteKind {
    /// It changes comfort only and was left out.
    Ignored,
    /// Leaving it out would weaken security: connections or requests that meet it are refused.
    Refused,
}

/// One field of a resource that is not acted on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct Note {
    /// Path of the field, without indexes: `virtual_hosts[].routes[].route.timeout`.
    pub field: String,
    /// What became of it.
    pub kind: NoteKind,
    /// Why.
    pub why: Cow<'static, str>,
}

enum Segment {
    Field(&'static str),
    Index(&'static str, usize),
    Key(&'static str, String),
}

/// Collects [`Note`]s of one resource and knows the place that is being translated.
#[derive(Default)]
pub struct Notes {
    path: Vec<Segment>,
    found: BTreeMap<Note, u32>,
    regexes: HashMap<String, Regex>,
}

impl Notes {
    /// No notes, at the root of a resource.
    pub fn new() -> Notes {
        Notes::default()
    }

    /// The notes, each with the number of places where it holds.
    pub fn into_counts(self) -> BTreeMap<Note, u32> {
        self.found
    }

    /// The notes so far.
    pub fn iter(&self) -> impl Iterator<Item = (&Note, u32)> {
        self.found.iter().map(|(n, c)| (n, *c))
    }

    pub(super) fn within<T>(&mut self, field: &'static str, f: impl FnOnce(&mut Notes) -> T) -> T {
        self.step(Segment::Field(field), f)
    }

    pub(super) fn each<T>(&mut self, field: &'static str, index: usize, f: impl FnOnce(&mut Notes) -> T) -> T {
        self.step(Segment::Index(field, index), f)
    }

    pub(super) fn entry<T>(&mut self, field: &'static str, key: &str, f: impl FnOnce(&mut Notes) -> T) -> T {
        self.step(Segment::Key(field, key.to_owned()), f)
    }

    fn step<T>(&mut self, segment: Segment, f: impl FnOnce(&mut Notes) -> T) -> T {
        self.path.push(segment);
        let out = f(self);
        self.path.pop();
        out
    }

    /// The translation of every element of a list.
    pub(super) fn list<S, T>(
        &mut self,
        field: &'static str,
        list: &[S],
        mut f: impl FnMut(&S, &mut Notes) -> Result<T, Invalid>,
    ) -> Result<Vec<T>, Invalid> {
        list.iter().enumerate().map(|(i, s)| self.each(field, i, |n| f(s, n))).collect()
    }

    /// Path of `field` at the present place; an empty `field` is the place itself.
    fn place(&self, field: &str, indexes: bool) -> String {
        let mut out = String::new();
        for s in &self.path {
            if !out.is_empty() {
                out.push('.');
            }
            match s {
                Segment::Field(f) => out.push_str(f),
                Segment::Index(f, i) if indexes => out.push_str(&format!("{f}[{i}]")),
                Segment::Index(f, _) => out.push_str(&format!("{f}[]")),
                Segment::Key(f, k) => out.push_str(&format!("{f}[\"{k}\"]")),
            }
        }
        if !field.is_empty() {
            if !out.is_empty() {
                out.push('.');
            }
            out.push_str(field);
        }
        out
    }

    /// The place with its indexes, for a reason that stands in the model.
    pub(super) fn here(&self, field: &str) -> String {
        self.place(field, true)
    }

    fn note(&mut self, field: &str, kind: NoteKind, why: Cow<'static, str>) {
        let note = Note { field: self.place(field, false), kind, why };
        *self.found.entry(note).or_default() += 1;
    }

    pub(super) fn ignored(&mut self, field: &str, why: impl Into<Cow<'static, str>>) {
        self.note(field, NoteKind::Ignored, why.into());
    }

    /// Says that the place fails closed; the reason, with the place, is for the model.
    pub(super) fn refused(&mut self, field: &str, why: impl Into<Cow<'static, str>>) -> String {
        let why = why.into();
        let reason = format!("{}: {why}", self.here(field));
        self.note(field, NoteKind::Refused, why);
        reason
    }

    pub(super) fn invalid(&self, field: &str, reason: impl Into<String>) -> Invalid {
        Invalid { field: self.place(field, true), reason: reason.into() }
    }

    /// A checked regex; the same pattern is compiled once a resource.
    pub(super) fn regex(&mut self, field: &str, pattern: &str) -> Result<Regex, Invalid> {
        if let Some(r) = self.regexes.get(pattern) {
            return Ok(r.clone());
        }
        if pattern.is_empty() {
            return Err(self.invalid(field, "the regex is empty"));
        }
        let r = Regex::new(pattern).map_err(|e| self.invalid(field, e.to_string()))?;
        self.regexes.insert(pattern.to_owned(), r.clone());
        Ok(r)
    }
}

/// Whether a field of a message says anything.
pub(super) trait Set {
    fn is_set(&self) -> bool;
}

macro_rules! set {
    ($($t:ty => $f:expr),+) => { $(impl Set for $t { fn is_set(&self) -> bool { let f: fn(&$t) -> bool = $f; f(self) } })+ };
}

set!(String => |s| !s.is_empty(), bool => |b| *b, i32 => |n| *n != 0, u32 => |n| *n != 0, i64 => |n| *n != 0);

impl<T> Set for Option<T> {
    fn is_set(&self) -> bool {
        self.is_some()
    }
}

impl<T> Set for Vec<T> {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }
}

impl<K, V> Set for HashMap<K, V> {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }
}

/// Notes those of the named bindings (fields of the message that was just taken apart) that are set.
macro_rules! ignored {
    ($notes:expr, $why:expr; $($field:ident),+ $(,)?) => {
        $(if $crate::translate::notes::Set::is_set($field) { $notes.ignored(stringify!($field), $why); })+
    };
}

/// Rejects the resource when one of the named bindings is set.
macro_rules! unsupported {
    ($notes:expr; $($field:ident),+ $(,)?) => {
        $(if $crate::translate::notes::Set::is_set($field) {
            return Err($notes.invalid(stringify!($field), "is not supported, and where requests go depends on it"));
        })+
    };
}

pub(super) use {ignored, unsupported};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_have_indexes_where_they_help_and_not_where_they_multiply() {
        let mut n = Notes::new();
        for i in 0..3 {
            n.each("routes", i, |n| n.within("route", |n| n.ignored("timeout", "later")));
        }
        let e = n.each("routes", 2, |n| n.entry("typed", "a.b", |n| n.invalid("x", "no")));
        assert_eq!(e.to_string(), "routes[2].typed[\"a.b\"].x: no");
        let counts = n.into_counts();
        let (note, count) = counts.iter().next().unwrap();
        assert_eq!((note.field.as_str(), *count, counts.len()), ("routes[].route.timeout", 3, 1));
    }
}
