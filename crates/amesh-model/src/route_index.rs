//! The index of a virtual host's routes: which of them can take a path at all.
//!
//! Each route is filed under one condition that every request it takes must meet: the path begins so, is so, has this
//! text within, or a header or query parameter has this value. Of several conditions the one that fewest routes share is taken. A lookup
//! gathers what is filed under the conditions that a request meets; the rest of each of these routes is checked as
//! without an index, in the order of the configuration. So the index never decides, it only leaves out, and a lookup
//! costs what the path's length costs, not what the number of routes costs.
//!
//! It is built when a route table is translated, and lies in the table's slot: workers build nothing.

mod build;
mod condition;
mod literal;
mod sets;
mod trie;

pub use build::MAX_VALUES;
pub use sets::{ArchivedMember, ArchivedRegexSet, Member, RegexSet, MAX_SETS};
pub use trie::{ArchivedTrie, Node, Span, Trie};

use rkyv::{Archive, Deserialize, Serialize};

/// Virtual hosts with fewer routes have no index: to walk them is as fast.
pub const MIN_ROUTES: usize = 16;

/// Longest text of a regular expression that is looked for within the path, in bytes: bounds what a lookup costs.
pub const MAX_LITERAL: usize = 32;

/// Where the routes of a virtual host are filed, by their numbers in `VirtualHost::routes`. Every route is in one of the
/// tries (under several keys if one of several conditions must hold) or in a set, but for those that are never reached.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteIndex {
    /// By the path, from its start.
    pub paths: Trie,
    /// The same for routes that do not look at case: keys are lower case.
    pub any_case: Trie,
    /// By a text anywhere in the path (regular expressions); no key is longer than [`MAX_LITERAL`].
    pub within: Trie,
    /// By the value of a header or query parameter, at most [`MAX_VALUES`] of them.
    pub values: Vec<ValueIndex>,
    /// Regular expressions that no text tells apart, at most [`MAX_SETS`] sets.
    pub sets: Vec<RegexSet>,
    /// Regular expressions that should be in `sets` and cannot: each is tried in turn.
    pub in_turn: u32,
}

/// Routes that want a header or a query parameter to be one text, or to begin with one.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct ValueIndex {
    /// Whose value.
    pub of: ValueOf,
    /// By the text.
    pub values: Trie,
}

/// What has a value.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum ValueOf {
    /// The header of this name, lower case; pseudo-headers too.
    Header(String),
    /// The query parameter of this name.
    Query(String),
}
