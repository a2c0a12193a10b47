//! Which routes, and which of their fields, the tests have looked at.

use super::check::{Field, Outcome, Place};
use amesh_model::route::{
    ArchivedClusterSpecifier, ArchivedPathSpecifier, ArchivedRoute, ArchivedRouteAction, ArchivedRouteTable,
};
use std::collections::{BTreeMap, BTreeSet};

/// The routes of a table, and what of them is tested. Each arm of a weighted cluster counts as a route, as in Envoy's
/// tool.
pub struct Coverage<'a> {
    table: &'a ArchivedRouteTable,
    covered: BTreeMap<Place, BTreeSet<Field>>,
}

impl<'a> Coverage<'a> {
    /// Nothing of a table is tested.
    pub fn new(table: &'a ArchivedRouteTable) -> Coverage<'a> {
        Coverage { table, covered: BTreeMap::new() }
    }

    /// Remembers what a test has found as it expected it.
    pub fn mark(&mut self, outcome: &Outcome) {
        if let (Some(place), false) = (outcome.place, outcome.met.is_empty()) {
            self.covered.entry(place).or_default().extend(&outcome.met);
        }
    }

    fn routes(&self) -> impl Iterator<Item = (Place, &'a str, &'a ArchivedRoute)> {
        let table = self.table;
        table.virtual_hosts.iter().enumerate().flat_map(|(h, host)| {
            host.routes.iter().enumerate().flat_map(move |(r, route)| {
                (0..arms(route)).map(move |arm| (Place { host: h, route: r, arm }, host.name.as_str(), route))
            })
        })
    }

    /// The share of routes that are tested, in per cent.
    pub fn of_routes(&self) -> f64 {
        self.share(|_, _| 1.0)
    }

    /// The share of the routes' fields that are tested, in per cent.
    pub fn of_fields(&self) -> f64 {
        self.share(|route, met| {
            let fields = match route.action {
                ArchivedRouteAction::Redirect(_) | ArchivedRouteAction::DirectResponse(_) => &[Field::PathRedirect][..],
                _ => {
                    &[Field::Cluster, Field::VirtualCluster, Field::VirtualHost, Field::PathRewrite, Field::HostRewrite]
                }
            };
            fields.iter().filter(|field| met.contains(field)).count() as f64 / fields.len() as f64
        })
    }

    fn share(&self, weight: impl Fn(&ArchivedRoute, &BTreeSet<Field>) -> f64) -> f64 {
        let (mut covered, mut all) = (0.0, 0u32);
        for (place, _, route) in self.routes() {
            all += 1;
            covered += self.covered.get(&place).map_or(0.0, |met| weight(route, met));
        }
        match all {
            0 => 0.0,
            all => 100.0 * covered / f64::from(all),
        }
    }

    /// The routes without a test, a line each.
    pub fn missing(&self) -> Vec<String> {
        let tested = |place: &Place| self.covered.keys().any(|p| (p.host, p.route) == (place.host, place.route));
        self.routes()
            .filter(|(place, ..)| place.arm == 0 && !tested(place))
            .map(|(_, host, route)| {
                let name = match route.name.as_str() {
                    "" => String::new(),
                    name => format!("route name: {name}, "),
                };
                format!("Missing test for host: {host}, {name}route: {}", path(&route.matches.path))
            })
            .collect()
    }
}

/// The clusters of a weighted route; 1 for any other.
fn arms(route: &ArchivedRoute) -> usize {
    match &route.action {
        ArchivedRouteAction::Route(action) => match &action.cluster {
            ArchivedClusterSpecifier::Weighted { clusters, .. } => clusters.len(),
            _ => 1,
        },
        _ => 1,
    }
}

fn path(path: &ArchivedPathSpecifier) -> String {
    let (field, text) = match path {
        ArchivedPathSpecifier::Prefix(text) => ("prefix", text.as_str()),
        ArchivedPathSpecifier::Path(text) => ("path", text.as_str()),
        ArchivedPathSpecifier::SafeRegex(regex) => ("safe_regex", regex.pattern.as_str()),
        ArchivedPathSpecifier::PathSeparatedPrefix(text) => ("path_separated_prefix", text.as_str()),
        ArchivedPathSpecifier::Connect => return "connect_matcher".to_owned(),
    };
    format!("{field}: {text:?}")
}
