//! `ScopedRoutes`.

use super::format::name as header_name;
use super::hcm::INITIAL_FETCH_TIMEOUT;
use super::notes::ignored;
use super::value::millis;
use super::{route, Invalid, Notes};
use amesh_model::listener::{HeaderValueExtractor, Scope, ScopeElement, ScopeRoutes, ScopedRoutes};
use envoy_types::pb::envoy::config::route::v3 as config;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use pb::scoped_routes::scope_key_builder::{fragment_builder, FragmentBuilder};
use std::collections::{BTreeMap, HashSet};

/// The scopes, or why there are none; `tables` gets the names of route tables with the time to wait for each.
pub(super) fn scoped_routes(
    s: &pb::ScopedRoutes,
    tables: &mut BTreeMap<String, u64>,
    notes: &mut Notes,
) -> Result<Result<ScopedRoutes, String>, Invalid> {
    use pb::scoped_routes::ConfigSpecifier as C;
    let pb::ScopedRoutes { name, scope_key_builder, rds_config_source, config_specifier } = s;
    if name.is_empty() {
        return Err(notes.invalid("name", "is empty"));
    }
    let builder = match scope_key_builder {
        Some(builder) if !builder.fragments.is_empty() => notes.within("scope_key_builder", |n| {
            n.list("fragments", &builder.fragments, |f, n| n.within("header_value_extractor", |n| extractor(f, n)))
        })?,
        _ => return Err(notes.invalid("scope_key_builder.fragments", "is empty")),
    };
    let list = match config_specifier {
        None => return Err(notes.invalid("config_specifier", "is not set")),
        Some(C::ScopedRds(_)) => {
            let why = "scopes are not subscribed to (they may stand in scoped_route_configurations_list)";
            return Ok(Err(notes.refused("scoped_rds", why)));
        }
        Some(C::ScopedRouteConfigurationsList(list)) => &list.scoped_route_configurations,
    };
    let wait = match rds_config_source {
        Some(source) => {
            let field = "rds_config_source.initial_fetch_timeout";
            Some(millis(&source.initial_fetch_timeout, field, notes)?.unwrap_or(INITIAL_FETCH_TIMEOUT))
        }
        None => None,
    };
    let (mut names, mut keys) = (HashSet::new(), HashSet::new());
    let scopes = notes.within("scoped_route_configurations_list", |notes| {
        notes.list("scoped_route_configurations", list, |s, n| {
            let scope = scope(s, wait, tables, n)?;
            if !names.insert(scope.name.clone()) {
                return Err(n.invalid("name", format!("\"{}\" is the name of two scopes", scope.name)));
            }
            if !keys.insert(scope.key.clone()) {
                return Err(n.invalid("key", format!("is that of another scope: {:?}", scope.key)));
            }
            Ok(scope)
        })
    })?;
    Ok(Ok(ScopedRoutes { scope_key_builder: builder, scopes }))
}

fn extractor(f: &FragmentBuilder, notes: &mut Notes) -> Result<HeaderValueExtractor, Invalid> {
    use fragment_builder::header_value_extractor::ExtractType as E;
    let Some(fragment_builder::Type::HeaderValueExtractor(e)) = &f.r#type else {
        return Err(notes.invalid("", "is not set"));
    };
    let fragment_builder::HeaderValueExtractor { name, element_separator, extract_type } = e;
    let element = match extract_type {
        None => return Err(notes.invalid("extract_type", "is not set: index or element")),
        Some(E::Index(n)) if *n > 0 && element_separator.is_empty() => {
            return Err(notes.invalid("index", format!("is {n}, and without element_separator there is one element")));
        }
        Some(E::Index(n)) => ScopeElement::Index(*n),
        Some(E::Element(pair)) if pair.key.is_empty() || pair.separator.is_empty() => {
            return Err(notes.invalid("element", "has no key, or no separator"));
        }
        Some(E::Element(pair)) => ScopeElement::Pair { key: pair.key.clone(), separator: pair.separator.clone() },
    };
    Ok(HeaderValueExtractor {
        name: header_name(name, "name", notes)?,
        element_separator: element_separator.clone(),
        element,
    })
}

fn scope(
    s: &config::ScopedRouteConfiguration,
    wait: Option<u64>,
    tables: &mut BTreeMap<String, u64>,
    notes: &mut Notes,
) -> Result<Scope, Invalid> {
    use config::scoped_route_configuration::key::fragment::Type as T;
    let config::ScopedRouteConfiguration { on_demand, name, route_configuration_name, route_configuration, key } = s;
    ignored!(notes, "its routes are fetched at once"; on_demand);
    if name.is_empty() {
        return Err(notes.invalid("name", "is empty"));
    }
    let fragments = key.as_ref().map(|key| key.fragments.as_slice()).unwrap_or_default();
    if fragments.is_empty() {
        return Err(notes.invalid("key.fragments", "is empty"));
    }
    let key = notes.within("key", |notes| {
        notes.list("fragments", fragments, |f, n| match &f.r#type {
            Some(T::StringKey(key)) => Ok(key.clone()),
            None => Err(n.invalid("string_key", "is not set")),
        })
    })?;
    let routes = match (route_configuration_name.as_str(), route_configuration) {
        ("", None) => return Err(notes.invalid("route_configuration_name", "is empty, and there are no routes")),
        ("", Some(table)) => {
            ScopeRoutes::Inline(Box::new(notes.within("route_configuration", |n| route::route_table(table, n))?))
        }
        (_, Some(_)) => return Err(notes.invalid("route_configuration", "is there beside route_configuration_name")),
        (table, None) => {
            let Some(wait) = wait else {
                let reason = "needs rds_config_source of scoped_routes";
                return Err(notes.invalid("route_configuration_name", reason));
            };
            tables.insert(table.to_owned(), wait);
            ScopeRoutes::Rds(table.to_owned())
        }
    };
    Ok(Scope { name: name.clone(), key, routes })
}
