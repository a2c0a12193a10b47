//! Scoped routes: what is read, which tables are needed, and what makes no sense.

#[path = "common/resources.rs"]
mod resources;

use amesh_model::listener::{ChainAction, RouteSpecifier, ScopeElement, ScopeRoutes, ScopedRoutes};
use amesh_xds::translate::{self, Invalid, Notes, TranslatedListener};
use resources::read;

const INLINE: &str = "route_configuration: {name: t, virtual_hosts: [{name: v, domains: ['*']}]}";

/// A listener whose connection manager has scoped routes of these fields.
fn listener(scoped: &str) -> Result<TranslatedListener, Invalid> {
    let yaml = format!(
        "{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 80}}}}, filter_chains: [{{filters: [{{name: h,
         typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
         stat_prefix: s, scoped_routes: {{{scoped}}}, http_filters: [
         {{name: r, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}]}}]}}"
    );
    translate::listener(&read(translate::LISTENER, &yaml), &mut Notes::new())
}

/// The fields of scoped routes with one extractor and these scopes.
fn with(extractor: &str, scopes: &str) -> String {
    format!(
        "name: s, scope_key_builder: {{fragments: [{{header_value_extractor: {{{extractor}}}}}]}},
         rds_config_source: {{ads: {{}}, initial_fetch_timeout: 2s}},
         scoped_route_configurations_list: {{scoped_route_configurations: [{scopes}]}}"
    )
}

fn scope(name: &str, key: &str, routes: &str) -> String {
    format!("{{name: {name}, key: {{fragments: [{{string_key: {key}}}]}}, {routes}}}")
}

fn scoped(text: &str) -> (ScopedRoutes, Vec<(String, u64)>) {
    let mut found = listener(text).unwrap();
    let ChainAction::Http(hcm) = found.listener.filter_chains.remove(0).action else { panic!() };
    let RouteSpecifier::Scoped(scoped) = hcm.routes else { panic!("{:?}", hcm.routes) };
    (*scoped, found.tables.into_iter().collect())
}

#[test]
fn scopes_name_their_tables_or_bring_them() {
    let scopes = [scope("a", "k", INLINE), scope("b", "l", "route_configuration_name: far, on_demand: true")].join(",");
    let (found, tables) = scoped(&with("name: X-A, index: 0", &scopes));
    assert_eq!(tables, [("far".to_owned(), 2000)], "these are subscribed to");
    assert_eq!(
        found.scopes.iter().map(|s| (s.name.as_str(), s.key.concat())).collect::<Vec<_>>(),
        [("a", "k".into()), ("b", "l".into())]
    );
    assert!(matches!(&found.scopes[0].routes, ScopeRoutes::Inline(table) if table.virtual_hosts.len() == 1));
    assert_eq!(found.scopes[1].routes, ScopeRoutes::Rds("far".into()));
    assert_eq!(
        (found.scope_key_builder[0].name.as_str(), &found.scope_key_builder[0].element),
        ("x-a", &ScopeElement::Index(0))
    );
    let (found, _) = scoped(&with("name: x, element_separator: ';', element: {key: k, separator: '='}", &scopes));
    let pair = ScopeElement::Pair { key: "k".into(), separator: "=".into() };
    assert_eq!(
        (found.scope_key_builder[0].element_separator.as_str(), &found.scope_key_builder[0].element),
        (";", &pair)
    );
}

#[test]
fn scopes_that_would_come_by_themselves_are_refused_by_name() {
    let text = "name: s, scope_key_builder: {fragments: [{header_value_extractor: {name: x, index: 0}}]},
                scoped_rds: {scoped_rds_config_source: {ads: {}}}";
    let found = listener(text).unwrap().listener;
    let ChainAction::Refuse(why) = &found.filter_chains[0].action else { panic!() };
    assert!(why.contains("scoped_routes.scoped_rds: "), "{why}");
}

#[test]
fn nonsense_of_scopes_is_named() {
    let good = scope("a", "k", INLINE);
    let list = "scoped_route_configurations_list.scoped_route_configurations";
    let builder = "scope_key_builder.fragments[0].header_value_extractor";
    for (text, field, words) in [
        ("name: s".to_owned(), "scope_key_builder.fragments".to_owned(), "is empty"),
        (with("name: x", &good), format!("{builder}.extract_type"), "is not set"),
        (with("name: x, index: 1", &good), format!("{builder}.index"), "without element_separator"),
        (with("name: x, element: {key: k}", &good), format!("{builder}.element"), "no separator"),
        (with("name: 'a b', index: 0", &good), format!("{builder}.name"), "no name of a header"),
        (with("name: x, index: 0", &[good.clone(), good.clone()].join(",")), format!("{list}[1].name"), "two scopes"),
        (
            with("name: x, index: 0", &[good.clone(), scope("b", "k", INLINE)].join(",")),
            format!("{list}[1].key"),
            "that of another",
        ),
        (with("name: x, index: 0", &scope("a", "k", "")), format!("{list}[0].route_configuration_name"), "is empty"),
        (
            with("name: x, index: 0", &scope("a", "k", &format!("route_configuration_name: r, {INLINE}"))),
            format!("{list}[0].route_configuration"),
            "beside",
        ),
        (with("name: x, index: 0", &format!("{{name: a, {INLINE}}}")), format!("{list}[0].key.fragments"), "is empty"),
        (
            with("name: x, index: 0", &scope("a", "k", "route_configuration_name: r"))
                .replace("rds_config_source: {ads: {}, initial_fetch_timeout: 2s},", ""),
            format!("{list}[0].route_configuration_name"),
            "rds_config_source",
        ),
    ] {
        let e = listener(&text).map(|_| ()).unwrap_err();
        let place = format!("filter_chains[0].filters[0].typed_config.scoped_routes.{field}");
        assert!(e.field == place && e.reason.contains(words), "{text}\n{e}");
    }
}
