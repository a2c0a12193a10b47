//! Matchers of what filters know of a request (`type.matcher.v3.MetadataMatcher`, `ValueMatcher`).

use crate::matcher::StringMatcher;
use rkyv::{Archive, Deserialize, Serialize};

/// What a value in the dynamic metadata must be (`type.matcher.v3.MetadataMatcher`).
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct MetadataMatcher {
    /// The filter whose metadata is looked at.
    pub filter: String,
    /// Keys from the outermost struct to the value; at least one.
    pub path: Vec<String>,
    /// What the value must be. A value that is not there matches nothing.
    pub value: ValueMatcher,
    /// The result is turned round.
    pub invert: bool,
}

/// What a value must be (`type.matcher.v3.ValueMatcher`).
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[rkyv(
    serialize_bounds(__S: rkyv::ser::Writer + rkyv::ser::Allocator, __S::Error: rkyv::rancor::Source),
    deserialize_bounds(__D::Error: rkyv::rancor::Source),
    bytecheck(bounds(__C: rkyv::validation::ArchiveContext, __C::Error: rkyv::rancor::Source))
)]
pub enum ValueMatcher {
    /// `null_match`.
    Null,
    /// `double_match.exact`.
    Exact(f64),
    /// `double_match.range`: `[start, end)`.
    Range(f64, f64),
    /// `string_match`.
    String(StringMatcher),
    /// `bool_match`.
    Bool(bool),
    /// `present_match`: is a null, a number, a text or a boolean. `false` matches nothing, as in Envoy.
    Present(bool),
    /// `list_match.one_of`: an element of a list matches.
    OneOf(#[rkyv(omit_bounds)] Box<ValueMatcher>),
    /// `or_match`: one of these matches.
    Or(#[rkyv(omit_bounds)] Vec<ValueMatcher>),
}

/// What an object in the filter state must be, as a text (`type.matcher.v3.FilterStateMatcher`). One that is not there
/// does not match.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct FilterStateMatcher {
    /// Its key.
    pub key: String,
    /// `string_match`.
    pub value: StringMatcher,
}
