//! Building the index.

use super::condition::{is_all, of_path, of_values, Condition, Key, Source, Text};
use super::sets::{sets, RegexSet};
use super::trie::{Entry, Trie};
use super::{RouteIndex, ValueIndex, ValueOf, MIN_ROUTES};
use crate::route::{PathSpecifier, Route, RouteMatch};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Headers and query parameters that routes are filed under, at the most: each request is asked for each of them.
pub const MAX_VALUES: usize = 8;
/// As many routes may share a key before a rarer one is looked for.
const FEW: usize = 4;
/// More expressions that no text tells apart are matched together.
const MANY: usize = 16;
/// A header or query parameter is asked for if at least so many routes would be filed under it.
const MIN_BY_VALUE: usize = 16;

impl RouteIndex {
    /// The index of a virtual host's routes; `None` when they are fewer than [`MIN_ROUTES`].
    pub fn new(routes: &[Route]) -> Option<RouteIndex> {
        (routes.len() >= MIN_ROUTES).then(|| Self::of_any(routes))
    }

    /// As [`RouteIndex::new`], however few the routes are.
    pub fn of_any(routes: &[Route]) -> RouteIndex {
        Self::of_matches(&routes.iter().map(|route| &route.matches).collect::<Vec<_>>())
    }

    fn of_matches(routes: &[&RouteMatch]) -> RouteIndex {
        let mut places = by_path(routes);
        by_value(&mut places);
        let crowd = places.iter().filter(|place| place.sharing > MANY && !place.by_value);
        let (sets, together, in_turn) = together(crowd.map(|place| (place.number, place.route)));
        let mut files = Files::default();
        for place in places.into_iter().filter(|place| !together.contains(&place.number)) {
            place.keys.into_iter().for_each(|key| files.file(place.number, place.route, key));
        }
        RouteIndex { sets, in_turn, ..files.index() }
    }
}

/// Where a route is to be filed.
struct Place<'a> {
    number: u32,
    route: &'a RouteMatch,
    keys: Condition<'a>,
    /// How many routes share the most common of its keys; what is few is all the same.
    sharing: usize,
    /// The keys are no longer of the path.
    by_value: bool,
}

/// Each route under the rarest of the conditions on its path.
fn by_path<'a>(routes: &[&'a RouteMatch]) -> Vec<Place<'a>> {
    let conditions: Vec<Vec<Condition<'a>>> = routes.iter().map(|route| of_path(route)).collect();
    let shared = count(conditions.iter().flatten().flatten());
    let sharing = |condition: &Condition<'a>| {
        condition.iter().filter_map(|key| shared.get(key)).copied().max().unwrap_or_default().max(FEW)
    };
    // The first of equals: it is looked up fastest.
    let rarest = |all: &Vec<Condition<'a>>| all.iter().map(sharing).enumerate().min_by_key(|(_, sharing)| *sharing);
    let rarest: Vec<(usize, usize)> = conditions.iter().map(|all| rarest(all).unwrap_or_default()).collect();
    let chosen = conditions.into_iter().zip(rarest).map(|(all, (at, sharing))| (all.into_iter().nth(at), sharing));
    let numbered = (0..).zip(routes);
    numbered
        .zip(chosen)
        .map(|((number, route), (keys, sharing))| Place {
            number,
            route,
            keys: keys.unwrap_or_default(),
            sharing,
            by_value: false,
        })
        .collect()
}

/// Moves routes whose path says less than the value of a header or query parameter that they want.
fn by_value(places: &mut [Place<'_>]) {
    let wanted: Vec<(usize, Key<'_>)> = (0..)
        .zip(places.iter())
        .filter(|(_, place)| place.sharing > FEW)
        .flat_map(|(at, place)| of_values(place.route).map(move |key| (at, key)))
        .collect();
    let shared = count(wanted.iter().map(|(_, key)| key));
    let sharing = |key: &Key<'_>| shared.get(key).copied().unwrap_or_default();
    // Of each route the rarest value, if it is rarer than the path.
    let mut rarest: BTreeMap<usize, &Key<'_>> = BTreeMap::new();
    for (at, key) in &wanted {
        let now = rarest.get(at).map(|key| sharing(key)).or_else(|| places.get(*at).map(|place| place.sharing));
        if now.is_some_and(|now| sharing(key) < now) {
            rarest.insert(*at, key);
        }
    }
    let mut sources: BTreeMap<Source<'_>, usize> = BTreeMap::new();
    for key in rarest.values() {
        if let Text::Value { of, .. } = key.of {
            *sources.entry(of).or_default() += 1;
        }
    }
    let mut sources: Vec<_> = sources.into_iter().filter(|(_, routes)| *routes >= MIN_BY_VALUE).collect();
    sources.sort_by_key(|(_, routes)| Reverse(*routes));
    sources.truncate(MAX_VALUES);
    let asked = |key: &Key<'_>| matches!(key.of, Text::Value { of, .. } if sources.iter().any(|(s, _)| *s == of));
    let moved: Vec<(usize, Key<'_>)> =
        rarest.into_iter().filter(|(_, key)| asked(key)).map(|(at, key)| (at, key.clone())).collect();
    for (at, key) in moved {
        if let Some(place) = places.get_mut(at) {
            *place = Place { keys: vec![key], by_value: true, ..*place };
        }
    }
}

fn count<'k, 'a: 'k>(keys: impl Iterator<Item = &'k Key<'a>>) -> HashMap<&'k Key<'a>, usize> {
    let mut shared = HashMap::new();
    for key in keys {
        *shared.entry(key).or_insert(0) += 1;
    }
    shared
}

/// Sets of the expressions of these routes; the routes that are in them; how many expressions are in none and should be.
fn together<'a>(routes: impl Iterator<Item = (u32, &'a RouteMatch)>) -> (Vec<RegexSet>, HashSet<u32>, u32) {
    let mut crowd: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for (number, route) in routes {
        if let PathSpecifier::SafeRegex(regex) = &route.path {
            crowd.entry(&regex.pattern).or_default().push(number);
        }
    }
    if crowd.len() <= MANY {
        return Default::default();
    }
    let (sets, left) = sets(crowd);
    let members = sets.iter().flat_map(|set| &set.members).flat_map(|member| member.routes.iter().copied()).collect();
    // A table of so many routes does not come over the wire.
    (sets, members, left.len() as u32)
}

/// The tries while they are filled.
#[derive(Default)]
struct Files<'a> {
    paths: File,
    any_case: File,
    within: File,
    values: BTreeMap<Source<'a>, File>,
}

type File = BTreeMap<Vec<u8>, Entry>;

impl<'a> Files<'a> {
    /// Routes must come in their order.
    fn file(&mut self, number: u32, route: &RouteMatch, key: Key<'a>) {
        let (file, begins) = match key.of {
            Text::Start { any_case: false } => (&mut self.paths, true),
            Text::Start { any_case: true } => (&mut self.any_case, true),
            Text::Path { any_case: false } => (&mut self.paths, false),
            Text::Path { any_case: true } => (&mut self.any_case, false),
            Text::Within => (&mut self.within, true),
            Text::Value { of, begins } => (self.values.entry(of).or_default(), begins),
        };
        let entry = file.entry(key.text.into_owned()).or_default();
        let (list, full) = match begins {
            true => (&mut entry.begins, &mut entry.begins_full),
            false => (&mut entry.whole, &mut entry.whole_full),
        };
        // Behind a route that takes all that this key stands for none is ever reached.
        if *full {
            return;
        }
        list.push(number);
        let alone = matches!(
            (&route.path, key.of),
            (PathSpecifier::Prefix(_), Text::Start { .. }) | (PathSpecifier::Path(_), Text::Path { .. })
        );
        *full = alone && is_all(route);
    }

    fn index(self) -> RouteIndex {
        let of = |source: Source<'_>| match source {
            Source::Header(name) => ValueOf::Header(name.to_owned()),
            Source::Query(name) => ValueOf::Query(name.to_owned()),
        };
        let values = self.values.into_iter();
        RouteIndex {
            paths: Trie::new(self.paths),
            any_case: Trie::new(self.any_case),
            within: Trie::new(self.within),
            values: values.map(|(source, file)| ValueIndex { of: of(source), values: Trie::new(file) }).collect(),
            ..RouteIndex::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matcher::{HeaderMatch, HeaderMatcher, Regex, StringMatcher, StringPattern};

    fn route(path: PathSpecifier, headers: &[(&str, &str)]) -> RouteMatch {
        let header = |(name, value): &(&str, &str)| HeaderMatcher {
            name: (*name).into(),
            value: HeaderMatch::String(StringMatcher {
                pattern: StringPattern::Exact((*value).into()),
                ignore_case: false,
            }),
            invert_match: false,
            treat_missing_header_as_empty: false,
        };
        RouteMatch {
            path,
            case_sensitive: true,
            headers: headers.iter().map(header).collect(),
            query_parameters: Vec::new(),
            grpc: false,
            runtime_fraction: None,
            cookies: Vec::new(),
            tls_context: None,
            dynamic_metadata: Vec::new(),
            filter_state: Vec::new(),
        }
    }

    fn prefix(text: &str, headers: &[(&str, &str)]) -> RouteMatch {
        route(PathSpecifier::Prefix(text.into()), headers)
    }

    fn regex(pattern: &str) -> RouteMatch {
        route(PathSpecifier::SafeRegex(Regex::new(pattern).unwrap()), &[])
    }

    fn of(routes: &[RouteMatch]) -> RouteIndex {
        RouteIndex::of_matches(&routes.iter().collect::<Vec<_>>())
    }

    #[test]
    fn what_is_never_reached_is_left_out() {
        let index = of(&[
            prefix("/", &[("a", "b")]),
            prefix("/", &[]),
            prefix("/", &[]),
            route(PathSpecifier::Path("/".into()), &[]),
            route(PathSpecifier::PathSeparatedPrefix("/".into()), &[]),
        ]);
        assert_eq!(index.paths.routes, [0, 1, 3]);
    }

    #[test]
    fn expressions_are_filed_under_what_tells_them_apart() {
        let mut routes: Vec<RouteMatch> = (0..20).map(|n| regex(&format!("/api/v[0-9]+/item-{n}/.*"))).collect();
        routes.extend((0..20).map(|n| regex(&format!("/shop-{n}/.*/end"))));
        routes.push(regex(".*"));
        let index = of(&routes);
        assert_eq!(index.within.nodes.iter().filter(|n| n.begins != n.whole).count(), 20, "{index:?}");
        assert_eq!(index.within.routes.len(), 20);
        assert_eq!(index.paths.routes.len(), 21, "those that begin differently, and what takes everything");
    }

    #[test]
    fn routes_of_one_path_are_filed_under_the_rarest_header() {
        let users: Vec<String> = (0..40).map(|n| format!("user-{n}")).collect();
        let mut routes: Vec<RouteMatch> =
            users.iter().map(|user| prefix("/", &[(":method", "GET"), ("end-user", user)])).collect();
        routes.push(prefix("/", &[("other", "x")]));
        routes.push(prefix("/", &[]));
        let index = of(&routes);
        let [by_user] = &index.values[..] else { panic!("{index:?}") };
        assert_eq!((&by_user.of, by_user.values.routes.len()), (&ValueOf::Header("end-user".into()), 40));
        assert_eq!(index.paths.routes, [40, 41], "a header of one route is not asked for");
        let empty: Vec<RouteMatch> = (0..40).map(|_| prefix("/", &[("end-user", "")])).collect();
        assert!(of(&empty).values.is_empty(), "the value of a header that is not there");
    }
}
