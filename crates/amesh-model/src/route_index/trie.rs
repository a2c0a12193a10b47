//! A radix trie, written once and read in place.

use rkyv::rend::u32_le;
use rkyv::{Archive, Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// A radix trie over bytes. All vectors are flat, so that a lookup touches little memory.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Trie {
    /// The root first; the children of a node stand next to each other.
    pub nodes: Vec<Node>,
    /// The first byte of each node's label; 0 where it is empty, which only the root's can be.
    pub firsts: Vec<u8>,
    /// What the labels of nodes are taken from.
    pub labels: Vec<u8>,
    /// What the lists of nodes are taken from.
    pub routes: Vec<u32>,
}

/// A node of a [`Trie`]. Its key is its label after those of all nodes above it.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// In [`Trie::labels`].
    pub label: Span,
    /// In [`Trie::nodes`].
    pub children: Span,
    /// In [`Trie::routes`], ascending: routes for texts that begin with the key.
    pub begins: Span,
    /// In [`Trie::routes`], ascending: routes for texts that are the key.
    pub whole: Span,
}

/// Part of a vector: `start` is within, `end` is not.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// First index.
    pub start: u32,
    /// Index after the last.
    pub end: u32,
}

impl Span {
    fn appended<T>(to: &mut Vec<T>, items: impl IntoIterator<Item = T>) -> Span {
        let start = position(to.len());
        to.extend(items);
        Span { start, end: position(to.len()) }
    }
}

/// Slots are far smaller than 4 GB.
fn position(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn part<'a, T>(of: &'a [T], span: &ArchivedSpan) -> &'a [T] {
    of.get(span.start.to_native() as usize..span.end.to_native() as usize).unwrap_or_default()
}

/// The routes of one key.
#[derive(Default)]
pub(super) struct Entry {
    /// For texts that begin with the key.
    pub begins: Vec<u32>,
    /// Nothing more comes into `begins`.
    pub begins_full: bool,
    /// For texts that are the key.
    pub whole: Vec<u32>,
    /// Nothing more comes into `whole`.
    pub whole_full: bool,
}

impl Trie {
    pub(super) fn new(entries: BTreeMap<Vec<u8>, Entry>) -> Trie {
        let entries: Vec<(Vec<u8>, Entry)> = entries.into_iter().collect();
        let mut trie = Trie::default();
        if entries.is_empty() {
            return trie;
        }
        // Nodes whose places are given, in that order: their entries, and how many bytes stand in the labels above.
        let mut open = VecDeque::from([(entries.as_slice(), 0)]);
        let mut given = 1;
        while let Some((entries, depth)) = open.pop_front() {
            let ([(first, entry), others @ ..], Some((last, _))) = (entries, entries.last()) else { continue };
            // Sorted: what the first and the last have in common all have.
            let common = first.iter().zip(last).skip(depth).take_while(|(a, b)| a == b).count();
            let end = depth + common;
            let label = &first[depth..end];
            trie.firsts.push(label.first().copied().unwrap_or_default());
            let mut node = Node { label: Span::appended(&mut trie.labels, label.iter().copied()), ..Node::default() };
            let mut below = entries;
            if first.len() == end {
                node.begins = Span::appended(&mut trie.routes, entry.begins.iter().copied());
                node.whole = Span::appended(&mut trie.routes, entry.whole.iter().copied());
                below = others;
            }
            let before = given;
            for child in below.chunk_by(|(a, _), (b, _)| a.get(end) == b.get(end)) {
                open.push_back((child, end));
                given += 1;
            }
            node.children = Span { start: position(before), end: position(given) };
            trie.nodes.push(node);
        }
        trie
    }
}

impl ArchivedTrie {
    /// As [`ArchivedTrie::walk`], from each position of the text; the empty key is not looked for.
    pub fn walk_within<'a>(&'a self, text: &[u8], mut see: impl FnMut(&'a [u32_le])) {
        let Some(root) = self.nodes.first() else { return };
        let firsts = match part(&self.labels, &root.label) {
            [first, ..] => std::slice::from_ref(first),
            [] => part(&self.firsts, &root.children),
        };
        // At most positions no key begins.
        let mut begins = [false; 256];
        for first in firsts {
            begins[usize::from(*first)] = true;
        }
        for (at, _) in text.iter().enumerate().filter(|(_, byte)| begins[usize::from(**byte)]) {
            self.walk(text.get(at..).unwrap_or_default(), false, &mut see);
        }
    }

    /// Shows every list of routes, none empty, whose key `text` begins with ([`Node::begins`]) or is
    /// ([`Node::whole`]). With `any_case` the text is compared as if it were lower case (ASCII).
    pub fn walk<'a>(&'a self, text: &[u8], any_case: bool, mut see: impl FnMut(&'a [u32_le])) {
        let mut see = |span: &ArchivedSpan| match part(&self.routes, span) {
            [] => {}
            list => see(list),
        };
        let Some(mut node) = self.nodes.first() else { return };
        let mut rest = text;
        loop {
            let label = part(&self.labels, &node.label);
            let Some((head, tail)) = rest.split_at_checked(label.len()) else { return };
            let same = if any_case { head.eq_ignore_ascii_case(label) } else { head == label };
            if !same {
                return;
            }
            rest = tail;
            see(&node.begins);
            let Some(first) = rest.first() else { return see(&node.whole) };
            let first = if any_case { first.to_ascii_lowercase() } else { *first };
            let Some(at) = part(&self.firsts, &node.children).iter().position(|f| *f == first) else { return };
            let Some(child) = self.nodes.get(node.children.start.to_native() as usize + at) else { return };
            node = child;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::{btree_set, vec};
    use rkyv::rancor::Error;

    /// A trie in which key `n` has `2n` for texts that begin so and `2n + 1` for texts that are so.
    fn stored(keys: &[Vec<u8>]) -> rkyv::util::AlignedVec {
        let entry = |n: u32| Entry { begins: vec![2 * n], whole: vec![2 * n + 1], ..Entry::default() };
        let entries = (0..).zip(keys).map(|(n, key)| (key.clone(), entry(n))).collect();
        rkyv::to_bytes::<Error>(&Trie::new(entries)).unwrap()
    }

    fn seen(bytes: &[u8], text: &[u8], any_case: bool) -> Vec<u32> {
        let mut out = Vec::new();
        let trie = rkyv::access::<ArchivedTrie, Error>(bytes).unwrap();
        trie.walk(text, any_case, |list| out.extend(list.iter().map(|n| n.to_native())));
        out.sort_unstable();
        out
    }

    #[test]
    fn an_empty_trie_has_nothing() {
        assert!(seen(&stored(&[]), b"", false).is_empty());
        assert!(seen(&stored(&[]), b"/a", false).is_empty());
    }

    #[test]
    fn the_empty_key_is_the_start_of_everything() {
        let bytes = stored(&[b"".to_vec(), b"/".to_vec()]);
        assert_eq!(seen(&bytes, b"", false), [0, 1]);
        assert_eq!(seen(&bytes, b"x", false), [0]);
        assert_eq!(seen(&bytes, b"/", false), [0, 2, 3]);
    }

    #[test]
    fn case_is_looked_at_unless_told_otherwise() {
        let bytes = stored(&[b"/api".to_vec(), b"/apis".to_vec()]);
        assert!(seen(&bytes, b"/API", false).is_empty());
        assert_eq!(seen(&bytes, b"/API", true), [0, 1]);
        assert_eq!(seen(&bytes, b"/aPiS/x", true), [0, 2]);
    }

    proptest::proptest! {
        #[test]
        fn a_walk_finds_what_a_look_at_every_key_finds(
            keys in btree_set(vec(proptest::sample::select(b"/ab\xff\0".to_vec()), 0..6), 0..40),
            text in vec(proptest::sample::select(b"/abB\xff\0".to_vec()), 0..8),
            any_case: bool,
        ) {
            let keys: Vec<_> = keys.into_iter().collect();
            let asked = if any_case { text.to_ascii_lowercase() } else { text.clone() };
            let begins = (0..).zip(&keys).filter(|(_, k)| asked.starts_with(k)).map(|(n, _)| 2 * n);
            let whole = (0..).zip(&keys).filter(|(_, k)| asked == **k).map(|(n, _)| 2 * n + 1);
            let mut wanted: Vec<u32> = begins.chain(whole).collect();
            wanted.sort_unstable();
            proptest::prop_assert_eq!(seen(&stored(&keys), &text, any_case), wanted);
        }

        #[test]
        fn a_walk_within_finds_every_key_that_is_in_the_text(
            keys in btree_set(vec(proptest::sample::select(b"/ab\xff\0".to_vec()), 1..4), 0..20),
            text in vec(proptest::sample::select(b"/ab\xff\0".to_vec()), 0..8),
        ) {
            let keys: Vec<_> = keys.into_iter().collect();
            let within = (0..).zip(&keys).filter(|(_, k)| text.windows(k.len()).any(|w| w == &k[..])).map(|(n, _)| 2 * n);
            let bytes = stored(&keys);
            let mut found = Vec::new();
            let trie = rkyv::access::<ArchivedTrie, Error>(&bytes).unwrap();
            trie.walk_within(&text, |list| found.extend(list.iter().map(|n| n.to_native()).filter(|n| n % 2 == 0)));
            found.sort_unstable();
            found.dedup();
            proptest::prop_assert_eq!(found, within.collect::<Vec<u32>>());
        }
    }
}
