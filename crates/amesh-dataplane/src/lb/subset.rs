//! Which subset of the endpoints takes a request (`SubsetLoadBalancer::chooseHostIteration`).

use amesh_model::plan::{ArchivedPlan, ArchivedSubsetPlan, ArchivedView};
use amesh_model::subset::{subset_id, ArchivedCriterion, ArchivedFallback, ArchivedSelector, ArchivedSubsets};
use rkyv::string::ArchivedString;

/// The views to pick from, in order: the next one where one has nobody who may be picked.
pub(super) fn views<'a>(
    subsets: &ArchivedSubsets,
    plan: &'a ArchivedPlan,
    criteria: &[ArchivedCriterion],
) -> [Option<&'a ArchivedView>; 2] {
    let Some(found) = plan.subsets.as_ref() else { return [None; 2] };
    let mut criteria: Vec<&ArchivedCriterion> = criteria.iter().collect();
    // Each turn has fewer keys.
    while !criteria.is_empty() {
        if subsets.allow_redundant_keys {
            let fits = |s: &&ArchivedSelector| s.keys.iter().all(|k| criteria.iter().any(|c| c.key == *k));
            if let Some(selector) = subsets.selectors.iter().find(fits) {
                criteria.retain(|c| selector.keys.contains(&c.key));
            }
        }
        if let Some(view) = subset(found, &criteria) {
            // Even if none of its endpoints is well.
            return [Some(view), None];
        }
        let same = |s: &&ArchivedSelector| has_keys(&s.keys, &criteria);
        let Some(selector) = subsets.selectors.iter().find(same) else { break };
        match selector.fallback {
            ArchivedFallback::NotDefined => break,
            ArchivedFallback::NoFallback => return [None; 2],
            ArchivedFallback::AnyEndpoint => return [Some(&plan.view), None],
            ArchivedFallback::DefaultSubset => return [Some(&found.default), None],
            ArchivedFallback::KeysSubset => {
                let before = criteria.len();
                criteria.retain(|c| selector.fallback_keys.contains(&c.key));
                if criteria.len() == before {
                    return [None; 2];
                }
            }
        }
    }
    let panic = subsets.panic_mode_any.then_some(&plan.view);
    match subsets.fallback {
        ArchivedFallback::AnyEndpoint => [Some(&plan.view), panic],
        ArchivedFallback::DefaultSubset => [Some(&found.default), panic],
        _ => [None; 2],
    }
}

fn subset<'a>(found: &'a ArchivedSubsetPlan, criteria: &[&ArchivedCriterion]) -> Option<&'a ArchivedView> {
    let id = subset_id(criteria.iter().map(|c| (c.key.as_str(), c.value.as_str())));
    let at = found.ids.binary_search_by_key(&id, |id| id.to_native()).ok()?;
    found.views.get(at)
}

fn has_keys(keys: &[ArchivedString], criteria: &[&ArchivedCriterion]) -> bool {
    keys.iter().eq(criteria.iter().map(|c| &c.key))
}
