//! Paths of routes, and where they stand in APISIX's tree of paths.
//!
//! APISIX looks a request's path up among exact paths first, then among prefixes, the longest first; where none of the routes
//! at a place takes the request it goes on with the next shorter one. Only among the routes of one place does `priority`
//! count. Envoy asks all routes in their order. So each route stands at its own place and at all longer ones that its path
//! covers: whatever place is the first for a request, all routes that may take it are there, in order.

use crate::cond::Cond;
use crate::pcre;
use amesh_model::matcher::compile_full;
use amesh_model::route::PathSpecifier;
use regex_automata::meta::Regex;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// More places than this, all in all, and the virtual host stands at one place, with its paths as conditions.
const PLACES: usize = 20_000;

/// Which paths a route takes, as APISIX sees them: decoded.
#[derive(Clone, Debug)]
pub(crate) enum Path {
    /// This one.
    Exact(String),
    /// Those that begin so.
    Prefix(String),
    /// This one, and those in which a `/` follows.
    Separated(String),
    /// Those that an expression takes as a whole: of PCRE, and as Envoy has it.
    Pattern {
        /// For APISIX.
        pcre: String,
        /// For us.
        regex: Box<Regex>,
    },
}

/// A place in the tree. Exact paths come before prefixes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Place {
    Exact(String),
    Prefix(String),
}

impl Place {
    fn uri(&self) -> String {
        match self {
            Place::Exact(path) => path.clone(),
            Place::Prefix(prefix) => format!("{prefix}*"),
        }
    }
}

impl Path {
    /// The path of a route, and what is asked beyond it: of the path as it came, where that is asked for what is
    /// percent-encoded. `Ok(None)`: no request has it.
    pub fn of(wanted: &PathSpecifier, case_sensitive: bool) -> Result<Option<(Path, Cond)>, String> {
        let raw = |pattern: String| {
            let cond = Cond::finds("real_request_uri", &format!("\\A{pattern}"));
            Ok(Some((Path::Prefix("/".to_owned()), cond)))
        };
        let case = if case_sensitive { "" } else { "(?i)" };
        let (text, make): (_, fn(String) -> Path) = match wanted {
            PathSpecifier::Prefix(text) => (text, Path::Prefix),
            PathSpecifier::Path(text) => (text, Path::Exact),
            PathSpecifier::PathSeparatedPrefix(text) => (text, Path::Separated),
            PathSpecifier::SafeRegex(regex) if regex.pattern.contains('%') => {
                return raw(format!("{}(?:\\?|\\z)", pcre::within(&regex.pattern, b'?')?));
            }
            PathSpecifier::SafeRegex(regex) => return Ok(Some((Path::pattern(&regex.pattern)?, Cond::True))),
            PathSpecifier::Connect => return Err("nginx answers CONNECT requests itself".to_owned()),
        };
        if text.contains(['?', '#']) || !(text.is_empty() || text.starts_with('/')) {
            return Ok(None);
        }
        match (wanted, text.as_str()) {
            (PathSpecifier::Path(_), "") => return Ok(None),
            (_, "") => return Ok(Some((Path::Prefix("/".to_owned()), Cond::True))),
            _ => {}
        }
        let Some(plain) = decoded(text) else {
            let text = pcre::quote(text);
            return raw(match wanted {
                PathSpecifier::Path(_) => format!("{case}{text}(?:\\?|\\z)"),
                PathSpecifier::PathSeparatedPrefix(_) => format!("{case}{text}(?:[/?]|\\z)"),
                _ => format!("{case}{text}"),
            });
        };
        let path = make(plain);
        Ok(Some(match case_sensitive && path.stands() {
            true => (path, Cond::True),
            false => (Path::pattern(&format!("{case}{}", path.expression(regex_syntax::escape)))?, Cond::True),
        }))
    }

    fn pattern(pattern: &str) -> Result<Path, String> {
        let regex = Box::new(compile_full(pattern).map_err(|e| e.to_string())?);
        Ok(Path::Pattern { pcre: pcre::whole(pattern)?, regex })
    }

    /// Whether APISIX's tree of paths can hold it as it is. In it `*` ends a prefix; and where a segment is `*` alone, or
    /// begins with a colon, the whole path is taken for a regular expression.
    fn stands(&self) -> bool {
        let (Path::Exact(text) | Path::Prefix(text) | Path::Separated(text)) = self else { return false };
        let asterisk_alone =
            !matches!(self, Path::Exact(_)) && (text.ends_with('/') || matches!(self, Path::Separated(_)));
        let misread = asterisk_alone && text.contains(|c| "+?()[]{}|^$\\".contains(c));
        !(text.contains('*') || text.contains("/:") || misread)
    }

    /// As a regular expression, for which texts are quoted so.
    fn expression(&self, quote: impl Fn(&str) -> String) -> String {
        match self {
            Path::Exact(text) => quote(text),
            Path::Prefix(text) => format!("{}(?s:.*)", quote(text)),
            Path::Separated(text) => format!("{}(?:/(?s:.*))?", quote(text)),
            Path::Pattern { pcre, .. } => pcre.clone(),
        }
    }

    /// As a condition on the path.
    fn cond(&self) -> Cond {
        match self {
            Path::Prefix(text) if matches!(text.as_str(), "" | "/") => Cond::True,
            Path::Exact(text) => Cond::is("uri", text),
            Path::Prefix(text) => Cond::finds("uri", &format!("\\A{}", pcre::quote(text))),
            Path::Separated(text) => Cond::finds("uri", &format!("\\A{}(?:/|\\z)", pcre::quote(text))),
            Path::Pattern { pcre, .. } => Cond::finds("uri", pcre),
        }
    }
}

/// A path with its percent-encodings undone, as nginx does it; `None`: that would be another path.
fn decoded(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, then @ ..] = rest {
        rest = then;
        let hex = |b: &u8| char::from(*b).to_digit(16);
        let code = match (first, then) {
            (b'%', [high, low, ..]) => hex(high).zip(hex(low)).and_then(|(h, l)| u8::try_from(h * 16 + l).ok()),
            _ => None,
        };
        match code {
            Some(b'/' | b'?' | b'#' | b'.' | 0) => return None,
            Some(byte) => {
                out.push(byte);
                rest = then.get(2..).unwrap_or_default();
            }
            None => out.push(*first),
        }
    }
    String::from_utf8(out).ok()
}

/// A route in its places.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Placed {
    /// Which of the routes.
    pub index: usize,
    /// `uris`.
    pub uris: Vec<String>,
    /// Its condition, with what it asks of the path beyond its places.
    pub cond: Cond,
}

/// The places of routes, which are in Envoy's order. One that no request reaches is not among them.
pub(crate) fn place(routes: &[(Path, Cond)]) -> Vec<Placed> {
    let alive = |(_, (_, cond)): &(usize, &(Path, Cond))| *cond != Cond::False;
    let mut tree = Tree::default();
    for (index, (path, _)) in routes.iter().enumerate().filter(alive) {
        tree.add(index, path);
    }
    tree.fill(routes).unwrap_or_else(|| at_one_place(routes))
}

/// All routes at `/*`, with their paths as conditions.
fn at_one_place(routes: &[(Path, Cond)]) -> Vec<Placed> {
    let mut out = Vec::new();
    for (index, (path, cond)) in routes.iter().enumerate() {
        let cond = Cond::all([path.cond(), cond.clone()]);
        let last = cond == Cond::True;
        if cond != Cond::False {
            out.push(Placed { index, uris: vec!["/*".to_owned()], cond });
        }
        if last {
            break;
        }
    }
    out
}

#[derive(Default)]
struct Tree<'a> {
    places: BTreeSet<Place>,
    exact: HashMap<&'a str, Vec<usize>>,
    prefix: HashMap<&'a str, Vec<usize>>,
    separated: HashMap<&'a str, Vec<usize>>,
    patterns: Vec<usize>,
}

impl<'a> Tree<'a> {
    fn add(&mut self, index: usize, path: &'a Path) {
        match path {
            Path::Exact(text) => {
                self.exact.entry(text).or_default().push(index);
                self.places.insert(Place::Exact(text.clone()));
            }
            Path::Prefix(text) => {
                self.prefix.entry(text).or_default().push(index);
                let text = if text.is_empty() { "/" } else { text };
                self.places.insert(Place::Prefix(text.to_owned()));
            }
            Path::Separated(text) => {
                self.separated.entry(text).or_default().push(index);
                self.places.insert(Place::Exact(text.clone()));
                self.places.insert(Place::Prefix(format!("{text}/")));
            }
            Path::Pattern { .. } => {
                self.patterns.push(index);
                self.places.insert(Place::Prefix("/".to_owned()));
            }
        }
    }

    /// `None`: that would be too many places.
    fn fill(&self, routes: &[(Path, Cond)]) -> Option<Vec<Placed>> {
        let mut uris: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        let mut count = 0;
        for place in &self.places {
            for index in self.candidates(place, routes) {
                uris.entry(index).or_default().push(place.uri());
                count += 1;
                if count > PLACES.max(4 * routes.len()) {
                    return None;
                }
                let Some((path, cond)) = routes.get(index) else { continue };
                let whole = !matches!((place, path), (Place::Prefix(_), Path::Pattern { .. }));
                if whole && *cond == Cond::True {
                    break;
                }
            }
        }
        let placed = uris.into_iter().filter_map(|(index, uris)| {
            let (path, cond) = routes.get(index)?;
            let of_path = if matches!(path, Path::Pattern { .. }) { path.cond() } else { Cond::True };
            Some(Placed { index, uris, cond: Cond::all([of_path, cond.clone()]) })
        });
        Some(placed.collect())
    }

    /// The routes that may take a path of this place, in their order.
    fn candidates(&self, place: &Place, routes: &[(Path, Cond)]) -> Vec<usize> {
        let (Place::Exact(text) | Place::Prefix(text)) = place;
        let mut out: Vec<usize> = Vec::new();
        let mut see = |map: &HashMap<&str, Vec<usize>>, text: &str| out.extend(map.get(text).into_iter().flatten());
        for (at, _) in text.char_indices().chain([(text.len(), ' ')]) {
            let (before, after) = text.split_at(at);
            see(&self.prefix, before);
            if after.starts_with('/') {
                see(&self.separated, before);
            }
        }
        if let Place::Exact(text) = place {
            see(&self.exact, text);
            see(&self.separated, text);
        }
        out.extend(self.patterns.iter().filter(|index| match (place, routes.get(**index)) {
            (Place::Exact(text), Some((Path::Pattern { regex, .. }, _))) => regex.is_match(text),
            _ => true,
        }));
        out.sort_unstable();
        out.dedup();
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amesh_model::matcher::Regex as Wanted;

    fn prefix(text: &str) -> Path {
        Path::of(&PathSpecifier::Prefix(text.into()), true).unwrap().unwrap().0
    }

    fn exact(text: &str) -> Path {
        Path::of(&PathSpecifier::Path(text.into()), true).unwrap().unwrap().0
    }

    fn regex(text: &str) -> Path {
        Path::of(&PathSpecifier::SafeRegex(Wanted::new(text).unwrap()), true).unwrap().unwrap().0
    }

    /// `index: uris` of each route that is left; conditions are the names of headers.
    fn placed(routes: Vec<(Path, &str)>) -> Vec<String> {
        let cond = |name: &str| if name.is_empty() { Cond::True } else { Cond::set(name) };
        let routes: Vec<_> = routes.into_iter().map(|(path, name)| (path, cond(name))).collect();
        place(&routes).iter().map(|p| format!("{}: {}", p.index, p.uris.join(" "))).collect()
    }

    #[test]
    fn an_earlier_route_stands_at_the_longer_paths_of_later_ones() {
        assert_eq!(
            placed(vec![(prefix("/cc/"), "h"), (prefix("/cc/long/"), "")]),
            ["0: /cc/* /cc/long/*", "1: /cc/long/*"]
        );
        assert_eq!(
            placed(vec![(prefix("/"), "h"), (exact("/a"), ""), (prefix("/"), "")]),
            ["0: /a /*", "1: /a", "2: /*"]
        );
    }

    #[test]
    fn a_route_that_nothing_reaches_is_left_out() {
        assert_eq!(placed(vec![(prefix("/a"), ""), (prefix("/a/b"), ""), (exact("/ab"), "h")]), ["0: /ab /a* /a/b*"]);
    }

    #[test]
    fn an_expression_stands_where_it_may_match() {
        assert_eq!(
            placed(vec![(regex("/[0-9]+"), ""), (exact("/1"), ""), (exact("/x"), ""), (prefix("/p"), "")]),
            ["0: /1 /* /p*", "2: /x", "3: /p*"]
        );
    }

    #[test]
    fn a_separated_prefix_is_two_places() {
        let path = Path::of(&PathSpecifier::PathSeparatedPrefix("/p".into()), true).unwrap().unwrap().0;
        assert_eq!(placed(vec![(path, ""), (prefix("/"), "")]), ["0: /p /p/*", "1: /*"]);
    }

    #[test]
    fn what_the_tree_would_misread_is_an_expression() {
        for text in ["/a*b", "/:a", "/a+b/"] {
            assert!(matches!(prefix(text), Path::Pattern { .. }), "{text}");
        }
        assert!(matches!(prefix("/a+b"), Path::Prefix(_)));
        assert!(matches!(exact("/a.b/"), Path::Exact(_)));
    }

    #[test]
    fn paths_are_decoded() {
        assert!(matches!(exact("/a%20b"), Path::Exact(text) if text == "/a b"));
        let raw = |path| match Path::of(&path, true).unwrap().unwrap() {
            (Path::Prefix(_), Cond::Test { var, value, .. }) if var == "real_request_uri" => value.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(raw(PathSpecifier::Path("/a%2Fb".into())), r#""\\A/a\\x252Fb(?:\\?|\\z)""#);
        assert_eq!(
            raw(PathSpecifier::SafeRegex(Wanted::new("/%2F.").unwrap())),
            r#""\\A(?:/\\x252F[\\x00-\\x09\\x0b-\\x3e\\x40-\\xff])(?:\\?|\\z)""#
        );
        assert!(matches!(Path::of(&PathSpecifier::Path("no-slash".into()), true), Ok(None)));
        assert!(matches!(Path::of(&PathSpecifier::Path("/a?b".into()), true), Ok(None)));
    }

    #[test]
    fn too_many_places_become_one() {
        let mut routes: Vec<_> = (0..200).map(|n| (regex(&format!("/r{n}/.*")), Cond::True)).collect();
        routes.extend((0..200).map(|n| (prefix(&format!("/p{n}/")), Cond::True)));
        let placed = place(&routes);
        assert_eq!(placed.len(), 400);
        assert!(placed.iter().all(|p| p.uris == ["/*"]));
    }
}
