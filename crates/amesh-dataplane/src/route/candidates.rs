//! Which routes of a virtual host can take a request, by its index.

use super::matches::{each_value, query_value};
use super::RequestHead;
use crate::regex::RegexCache;
use amesh_model::route_index::{ArchivedRouteIndex, ArchivedValueOf};
use rkyv::rend::u32_le;
use std::cmp::Ordering;
use std::collections::binary_heap::PeekMut;
use std::collections::BinaryHeap;

/// Numbers of routes, ascending, each once.
pub(super) struct Candidates<'a> {
    lists: BinaryHeap<List<'a>>,
    last: Option<usize>,
}

/// The rest of a list: the next number, and those after it.
struct List<'a> {
    next: usize,
    then: &'a [u32_le],
}

impl<'a> List<'a> {
    fn of(list: &'a [u32_le]) -> Option<List<'a>> {
        list.split_first().map(|(next, then)| List { next: next.to_native() as usize, then })
    }
}

/// Greatest is the list whose number comes first: that is what a heap hands out.
impl Ord for List<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        other.next.cmp(&self.next)
    }
}

impl PartialOrd for List<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for List<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.next == other.next
    }
}

impl Eq for List<'_> {}

/// The routes that can take a request with this path and query.
pub(super) fn candidates<'a>(
    index: &'a ArchivedRouteIndex,
    (path, query): (&str, &str),
    head: &impl RequestHead,
    regexes: &mut RegexCache,
) -> Candidates<'a> {
    let path = path.as_bytes();
    let mut lists = Vec::new();
    let mut see = |list: &'a [u32_le]| lists.extend(List::of(list));
    index.paths.walk(path, false, &mut see);
    index.any_case.walk(path, true, &mut see);
    index.within.walk_within(path, &mut see);
    for index in index.values.iter() {
        let mut walk = |value: &[u8]| index.values.walk(value, false, &mut see);
        match &index.of {
            ArchivedValueOf::Header(name) => each_value(head, name, walk),
            ArchivedValueOf::Query(name) => query_value(query, name).into_iter().for_each(|v| walk(v.as_bytes())),
        }
    }
    for set in index.sets.iter() {
        match regexes.members(set, path) {
            Some(found) => found.filter_map(|at| set.members.get(at)).for_each(|member| see(&member.routes)),
            None => set.members.iter().for_each(|member| see(&member.routes)),
        }
    }
    Candidates { lists: lists.into(), last: None }
}

impl Iterator for Candidates<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        loop {
            let mut first = self.lists.peek_mut()?;
            let number = first.next;
            match List::of(first.then) {
                Some(rest) => *first = rest,
                None => drop(PeekMut::pop(first)),
            }
            // A route may be filed under several keys.
            if self.last.replace(number) != Some(number) {
                return Some(number);
            }
        }
    }
}
