//! Subsets of a cluster's endpoints by their metadata (`Cluster.LbSubsetConfig`).

use rkyv::{Archive, Deserialize, Serialize};
use std::collections::BTreeMap;
use xxhash_rust::xxh64::xxh64;

/// What a request asks of the metadata `envoy.lb` of endpoints: this key has this value. Lists of them are in the order of
/// their keys.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Criterion {
    /// The key.
    pub key: String,
    /// The value as text that two values share if they are equal; a string has quotes.
    pub value: String,
}

/// The metadata `envoy.lb` of an endpoint.
pub type LbMetadata = BTreeMap<String, LbValue>;

/// One value of them, see [`Criterion::value`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LbValue {
    /// The value.
    pub whole: String,
    /// Its elements, if it is a list.
    pub elements: Option<Vec<String>>,
}

/// `Cluster.LbSubsetConfig`, with one selector at least.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Subsets {
    /// Who takes requests that no subset takes.
    pub fallback: Fallback,
    /// The endpoints of [`Fallback::DefaultSubset`]: those with all of it.
    pub default_subset: Vec<Criterion>,
    /// By which keys there are subsets.
    pub selectors: Vec<Selector>,
    /// Localities have their weights within subsets.
    pub locality_weight_aware: bool,
    /// These weights are scaled by the part of a locality that is in the subset.
    pub scale_locality_weight: bool,
    /// Any endpoint is taken where the fallback has none.
    pub panic_mode_any: bool,
    /// An endpoint whose value is a list has each of its elements.
    pub list_as_any: bool,
    /// Keys of a request that no selector has are not looked at.
    pub allow_redundant_keys: bool,
}

/// `LbSubsetFallbackPolicy`, `LbSubsetSelectorFallbackPolicy`.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Fallback {
    /// Of a selector: what the cluster says.
    NotDefined,
    /// Nobody.
    NoFallback,
    /// Any endpoint.
    AnyEndpoint,
    /// The default subset.
    DefaultSubset,
    /// Of a selector: the subset by fewer keys, [`Selector::fallback_keys`].
    KeysSubset,
}

/// `LbSubsetSelector`.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Selector {
    /// In order, each once.
    pub keys: Vec<String>,
    /// A subset is one endpoint: the first.
    pub single_host_per_subset: bool,
    /// Who takes requests with these keys that no subset takes.
    pub fallback: Fallback,
    /// In order, each once; fewer than `keys`.
    pub fallback_keys: Vec<String>,
}

/// The number of a subset: the hash of its keys and values, in the order of the keys.
pub fn subset_id<'a>(criteria: impl IntoIterator<Item = (&'a str, &'a str)>) -> u64 {
    criteria.into_iter().fold(0, |id, (key, value)| xxh64(value.as_bytes(), xxh64(key.as_bytes(), id)))
}

impl Selector {
    /// The numbers of the subsets that an endpoint is in: one, or with `list_as_any` one for each combination of elements.
    pub(crate) fn subsets_of(&self, metadata: &LbMetadata, list_as_any: bool) -> Vec<u64> {
        let mut ids = vec![0];
        for key in &self.keys {
            let Some(value) = metadata.get(key) else { return Vec::new() };
            let alone = std::slice::from_ref(&value.whole);
            let values = value.elements.as_deref().filter(|_| list_as_any).unwrap_or(alone);
            let next = |id: u64| values.iter().map(move |v| xxh64(v.as_bytes(), xxh64(key.as_bytes(), id)));
            ids = ids.into_iter().flat_map(next).collect();
        }
        ids
    }
}

impl Subsets {
    /// Whether an endpoint is in the default subset.
    pub(crate) fn is_default(&self, metadata: &LbMetadata) -> bool {
        self.default_subset.iter().all(|c| {
            let has = |v: &LbValue| match v.elements.as_ref().filter(|_| self.list_as_any) {
                Some(elements) => elements.contains(&c.value),
                None => v.whole == c.value,
            };
            metadata.get(&c.key).is_some_and(has)
        })
    }
}
