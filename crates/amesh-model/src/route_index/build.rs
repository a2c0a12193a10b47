//! Building the index.

use super::condition::{is_all, of_header, of_path, Condition, Key, Place};
use super::sets::{sets, RegexSet};
use super::trie::{Entry, Trie};
use super::{HeaderIndex, RouteIndex, MIN_ROUTES};
use crate::route::{PathSpecifier, Route, RouteMatch};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Headers that routes are filed under, at the most: each request is asked for each of them.
pub const MAX_HEADERS: usize = 8;
/// As many routes may share a key before a rarer one is looked for.
const FEW: usize = 4;
/// More expressions that no text tells apart are matched together.
const MANY: usize = 16;
/// A header is asked for if at least so many routes would be filed under it.
const MIN_BY_HEADER: usize = 16;

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
        let by_path: Vec<Vec<Condition<'_>>> = routes.iter().map(|route| of_path(route)).collect();
        let mut shared = HashMap::new();
        for key in by_path.iter().flatten().flatten() {
            *shared.entry(key.clone()).or_insert(0) += 1;
        }
        let by_path: Vec<Condition<'_>> = by_path.into_iter().map(|all| rarest(all, &shared)).collect();
        let by_header = by_header(routes, &by_path, &shared);
        let crowd = (0..)
            .zip(routes)
            .zip(&by_path)
            .filter(|((number, _), path)| sharing(path, &shared) > MANY && !by_header.contains_key(number));
        let (sets, together, in_turn) = together(crowd.map(|((number, route), _)| (number, *route)));
        let mut files = Files::default();
        for ((number, route), condition) in (0..).zip(routes).zip(by_path) {
            match by_header.get(&number) {
                Some(key) => files.file(number, route, key.clone()),
                None if together.contains(&number) => {}
                None => condition.into_iter().for_each(|key| files.file(number, route, key)),
            }
        }
        RouteIndex { sets, in_turn, ..files.index() }
    }
}

type Shared<'a> = HashMap<Key<'a>, usize>;

/// How many routes share the most common key of a condition; what is few is all the same.
fn sharing(condition: &Condition<'_>, shared: &Shared<'_>) -> usize {
    condition.iter().filter_map(|key| shared.get(key)).copied().max().unwrap_or_default().max(FEW)
}

fn rarest<'a>(conditions: Vec<Condition<'a>>, shared: &Shared<'_>) -> Condition<'a> {
    conditions.into_iter().min_by_key(|condition| sharing(condition, shared)).unwrap_or_default()
}

/// Routes whose path says less than the value of a header that they want: the key to file them under.
fn by_header<'a>(routes: &[&'a RouteMatch], by_path: &[Condition<'a>], shared: &Shared<'_>) -> HashMap<u32, Key<'a>> {
    let mut keys: Vec<(u32, Key<'a>)> = Vec::new();
    for ((number, route), path) in (0..).zip(routes).zip(by_path) {
        if sharing(path, shared) > FEW {
            keys.extend(route.headers.iter().filter_map(of_header).map(|key| (number, key)));
        }
    }
    let mut shared_values = HashMap::new();
    for (_, key) in &keys {
        *shared_values.entry(key.clone()).or_insert(0) += 1;
    }
    let mut best: HashMap<u32, Key<'a>> = HashMap::new();
    for (number, key) in keys {
        let sharing = |key: &Key<'_>| shared_values.get(key).copied().unwrap_or_default();
        let path = by_path.get(number as usize).map_or(0, |path| self::sharing(path, shared));
        let rarer = best.get(&number).map_or(path, sharing);
        if sharing(&key) < rarer {
            best.insert(number, key);
        }
    }
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    for key in best.values() {
        if let Place::Header(name) = key.place {
            *names.entry(name).or_default() += 1;
        }
    }
    let mut names: Vec<(&str, usize)> = names.into_iter().filter(|(_, routes)| *routes >= MIN_BY_HEADER).collect();
    names.sort_by_key(|(_, routes)| std::cmp::Reverse(*routes));
    names.truncate(MAX_HEADERS);
    best.retain(|_, key| matches!(key.place, Place::Header(name) if names.iter().any(|(n, _)| *n == name)));
    best
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
    headers: BTreeMap<&'a str, File>,
}

type File = BTreeMap<Vec<u8>, Entry>;

impl<'a> Files<'a> {
    /// Routes must come in their order.
    fn file(&mut self, number: u32, route: &RouteMatch, key: Key<'a>) {
        let (file, begins) = match key.place {
            Place::Start { any_case: false } => (&mut self.paths, true),
            Place::Start { any_case: true } => (&mut self.any_case, true),
            Place::Path { any_case: false } => (&mut self.paths, false),
            Place::Path { any_case: true } => (&mut self.any_case, false),
            Place::Within => (&mut self.within, true),
            Place::Header(name) => (self.headers.entry(name).or_default(), false),
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
            (&route.path, key.place),
            (PathSpecifier::Prefix(_), Place::Start { .. }) | (PathSpecifier::Path(_), Place::Path { .. })
        );
        *full = alone && is_all(route);
    }

    fn index(self) -> RouteIndex {
        let headers = self.headers.into_iter();
        RouteIndex {
            paths: Trie::new(self.paths),
            any_case: Trie::new(self.any_case),
            within: Trie::new(self.within),
            headers: headers
                .map(|(name, file)| HeaderIndex { name: name.to_owned(), values: Trie::new(file) })
                .collect(),
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
        let [by_user] = &index.headers[..] else { panic!("{index:?}") };
        assert_eq!((by_user.name.as_str(), by_user.values.routes.len()), ("end-user", 40));
        assert_eq!(index.paths.routes, [40, 41], "a header of one route is not asked for");
        let empty: Vec<RouteMatch> = (0..40).map(|_| prefix("/", &[("end-user", "")])).collect();
        assert!(of(&empty).headers.is_empty(), "the value of a header that is not there");
    }
}
