//! Subsets: `LbSubsetConfig`, and the metadata that requests and endpoints are matched by.

use super::notes::Set;
use super::value::enumeration;
use super::{Invalid, Notes};
use amesh_model::subset::{Criterion, Fallback, LbMetadata, LbValue, Selector, Subsets};
use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::envoy::extensions::load_balancing_policies::subset::v3 as pb;
use envoy_types::pb::google::protobuf::{value::Kind, Struct, Value};
use std::collections::BTreeMap;

/// The part of metadata that balancing looks at.
const ENVOY_LB: &str = "envoy.lb";

/// Subsets by the newer form; the older one has the same fields. `None`: without a selector there are none.
pub(super) fn subsets(s: &pb::Subset, notes: &mut Notes) -> Result<Option<Subsets>, Invalid> {
    use pb::subset::LbSubsetFallbackPolicy as F;
    let pb::Subset {
        fallback_policy,
        default_subset,
        subset_selectors,
        allow_redundant_keys,
        locality_weight_aware,
        scale_locality_weight,
        panic_mode_any,
        list_as_any,
        metadata_fallback_policy,
        subset_lb_policy: _,
    } = s;
    if subset_selectors.is_empty() {
        return Ok(None);
    }
    if metadata_fallback_policy.is_set() {
        return Err(notes.invalid("metadata_fallback_policy", "FALLBACK_LIST is not supported"));
    }
    let mut selectors = notes.list("subset_selectors", subset_selectors, selector)?;
    for at in 0..selectors.len() {
        let (before, rest) = selectors.split_at_mut(at);
        let Some(this) = rest.first_mut() else { break };
        // Envoy keeps fallbacks in a tree of keys: one of a node that a longer list has made before is lost.
        if before.iter().any(|s| s.keys.len() > this.keys.len() && s.keys.starts_with(&this.keys)) {
            this.fallback = Fallback::NotDefined;
        }
    }
    Ok(Some(Subsets {
        fallback: match enumeration::<F>(*fallback_policy, "fallback_policy", notes)? {
            F::NoFallback => Fallback::NoFallback,
            F::AnyEndpoint => Fallback::AnyEndpoint,
            F::DefaultSubset => Fallback::DefaultSubset,
        },
        default_subset: default_subset.as_ref().map(criteria).unwrap_or_default(),
        selectors,
        locality_weight_aware: *locality_weight_aware,
        scale_locality_weight: *scale_locality_weight,
        panic_mode_any: *panic_mode_any,
        list_as_any: *list_as_any,
        allow_redundant_keys: *allow_redundant_keys,
    }))
}

fn selector(s: &pb::subset::LbSubsetSelector, notes: &mut Notes) -> Result<Selector, Invalid> {
    use pb::subset::lb_subset_selector::LbSubsetSelectorFallbackPolicy as F;
    let pb::subset::LbSubsetSelector { keys, single_host_per_subset, fallback_policy, fallback_keys_subset } = s;
    let fallback = match enumeration::<F>(*fallback_policy, "fallback_policy", notes)? {
        F::NotDefined => Fallback::NotDefined,
        F::NoFallback => Fallback::NoFallback,
        F::AnyEndpoint => Fallback::AnyEndpoint,
        F::DefaultSubset => Fallback::DefaultSubset,
        F::KeysSubset => Fallback::KeysSubset,
    };
    let sorted = |keys: &[String]| {
        let mut keys = keys.to_vec();
        keys.sort_unstable();
        keys.dedup();
        keys
    };
    let (keys, fallback_keys) = (sorted(keys), sorted(fallback_keys_subset));
    if keys.is_empty() {
        return Err(notes.invalid("keys", "is empty"));
    }
    let fewer = !fallback_keys.is_empty() && fallback_keys.len() < keys.len();
    if fallback == Fallback::KeysSubset && !(fewer && fallback_keys.iter().all(|k| keys.contains(k))) {
        return Err(notes.invalid("fallback_keys_subset", "must be some of keys, and fewer"));
    }
    let single_host_per_subset = *single_host_per_subset;
    Ok(Selector { keys, single_host_per_subset, fallback, fallback_keys })
}

/// What a request asks of endpoints.
pub(super) fn metadata_match(metadata: &Option<Metadata>) -> Vec<Criterion> {
    metadata.as_ref().and_then(|m| m.filter_metadata.get(ENVOY_LB)).map(criteria).unwrap_or_default()
}

/// The same, with what `of` says for keys that this does not name.
pub(super) fn merged(own: &Option<Metadata>, of: &[Criterion]) -> Vec<Criterion> {
    let all = of.iter().cloned().chain(metadata_match(own)).map(|c| (c.key, c.value));
    all.collect::<BTreeMap<_, _>>().into_iter().map(|(key, value)| Criterion { key, value }).collect()
}

fn criteria(s: &Struct) -> Vec<Criterion> {
    let fields: BTreeMap<_, _> = s.fields.iter().collect();
    fields.into_iter().map(|(key, value)| Criterion { key: key.clone(), value: text(value) }).collect()
}

/// What an endpoint has.
pub(super) fn lb_metadata(metadata: &Option<Metadata>) -> LbMetadata {
    let value = |v: &Value| {
        let elements = match &v.kind {
            Some(Kind::ListValue(l)) => Some(l.values.iter().map(text).collect()),
            _ => None,
        };
        LbValue { whole: text(v), elements }
    };
    let fields = metadata.as_ref().and_then(|m| m.filter_metadata.get(ENVOY_LB)).map(|s| &s.fields);
    fields.into_iter().flatten().map(|(k, v)| (k.clone(), value(v))).collect()
}

/// The same text for equal values, and for them only.
fn text(v: &Value) -> String {
    match &v.kind {
        None | Some(Kind::NullValue(_)) => "null".to_owned(),
        Some(Kind::BoolValue(b)) => b.to_string(),
        Some(Kind::NumberValue(n)) => format!("{n:?}"),
        Some(Kind::StringValue(s)) => format!("{s:?}"),
        Some(Kind::ListValue(l)) => format!("[{}]", l.values.iter().map(text).collect::<Vec<_>>().join(",")),
        Some(Kind::StructValue(s)) => {
            let fields: BTreeMap<_, _> = s.fields.iter().collect();
            let fields: Vec<_> = fields.into_iter().map(|(k, v)| format!("{k:?}:{}", text(v))).collect();
            format!("{{{}}}", fields.join(","))
        }
    }
}
