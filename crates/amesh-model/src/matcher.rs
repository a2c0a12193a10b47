//! Matchers of strings, headers and query parameters (`type.matcher.v3`), and regular expressions as RE2 means them.

use regex_automata::nfa::thompson;
use regex_automata::{hybrid::dfa, meta, util::syntax, MatchKind};
use regex_syntax::hir::Hir;
use rkyv::{Archive, Deserialize, Serialize};

/// Longest pattern that is compiled, in bytes; Envoy bounds the program's size instead.
pub const MAX_PATTERN: usize = 16 * 1024;
/// Largest compiled form of a pattern, in bytes.
const MAX_COMPILED: usize = 4 << 20;
/// Largest compiled form of a set of patterns, in bytes, and as much again for what a worker learns while it matches.
const MAX_SET: usize = 1 << 20;

/// Why a regular expression is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RegexError {
    /// Longer than [`MAX_PATTERN`].
    #[error("regex is {0} bytes long, the limit is {MAX_PATTERN}")]
    TooLong(usize),
    /// Not the syntax of RE2, or larger than is allowed once compiled.
    #[error("regex \"{pattern}\": {reason}")]
    Invalid {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// They cannot be matched together; each alone can.
    #[error("{patterns} regexes cannot be matched together: {reason}")]
    Set {
        /// How many there are.
        patterns: usize,
        /// Why.
        reason: String,
    },
}

/// A regular expression. `id` is a hash of the pattern: workers cache the compiled form under it.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Regex {
    /// The pattern, as the control plane wrote it.
    pub pattern: String,
    /// FNV-1a of the pattern.
    pub id: u64,
}

impl Regex {
    /// Checks `pattern` and keeps it.
    ///
    /// # Errors
    /// [`RegexError`] when it cannot be compiled.
    pub fn new(pattern: &str) -> Result<Regex, RegexError> {
        compile_full(pattern)?;
        Ok(Regex { pattern: pattern.to_owned(), id: pattern_id(pattern) })
    }
}

fn pattern_id(pattern: &str) -> u64 {
    pattern.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// Compiles `pattern` with RE2's meaning: `\d`, `\w`, `\s` and `\b` are ASCII, `\Q…\E` quotes.
/// Matches are found anywhere, see [`compile_full`].
///
/// # Errors
/// [`RegexError`] when the pattern is too long, too large or not understood.
pub fn compile(pattern: &str) -> Result<meta::Regex, RegexError> {
    build(pattern, &unquote(pattern))
}

/// Compiles `pattern` so that a match is a match of the whole input (Envoy's `safe_regex`).
///
/// # Errors
/// As [`compile`].
pub fn compile_full(pattern: &str) -> Result<meta::Regex, RegexError> {
    let alone = unquote(pattern);
    // On its own first: a pattern that closes a group which is not its own must not get through.
    parse(pattern, &alone)?;
    build(pattern, &whole(&alone))
}

/// Compiles patterns into one automaton that tells which of them match the whole input, each as [`compile_full`] does.
/// Its states are made while it matches, in a cache of the caller's.
///
/// # Errors
/// [`RegexError::Set`] when they are too many or too large.
pub fn compile_set<'a>(patterns: impl Iterator<Item = &'a str>) -> Result<dfa::DFA, RegexError> {
    let trees = patterns.map(|p| parse(p, &whole(&unquote(p)))).collect::<Result<Vec<_>, _>>()?;
    let refused = |reason: String| RegexError::Set { patterns: trees.len(), reason };
    let config = thompson::Config::new().utf8(false).nfa_size_limit(Some(MAX_SET));
    let nfa = thompson::Compiler::new()
        .configure(config.which_captures(thompson::WhichCaptures::None))
        .build_many_from_hir(&trees)
        .map_err(|e| refused(e.to_string()))?;
    // All: also those behind one that matches. A cache that has been emptied three times and is of no use gives up.
    let config = dfa::Config::new()
        .match_kind(MatchKind::All)
        .cache_capacity(MAX_SET)
        .minimum_cache_clear_count(Some(3))
        .minimum_bytes_per_state(Some(10));
    dfa::Builder::new().configure(config).build_from_nfa(nfa).map_err(|e| refused(e.to_string()))
}

fn whole(expression: &str) -> String {
    format!("^(?:{expression})$")
}

fn build(pattern: &str, expression: &str) -> Result<meta::Regex, RegexError> {
    let tree = parse(pattern, expression)?;
    meta::Regex::builder()
        .configure(meta::Config::new().utf8_empty(false).nfa_size_limit(Some(MAX_COMPILED)))
        .build_from_hir(&tree)
        .map_err(|e| invalid(pattern, e.to_string()))
}

/// What `expression`, made of `pattern`, means.
fn parse(pattern: &str, expression: &str) -> Result<Hir, RegexError> {
    if pattern.len() > MAX_PATTERN {
        return Err(RegexError::TooLong(pattern.len()));
    }
    // Bytes, unless the pattern itself speaks of characters beyond ASCII.
    let unicode = !pattern.is_ascii() || pattern.contains("\\p") || pattern.contains("\\P");
    let config = syntax::Config::new().unicode(unicode).utf8(false);
    syntax::parse_with(expression, &config).map_err(|e| invalid(pattern, e.to_string().replace('\n', " ")))
}

fn invalid(pattern: &str, reason: String) -> RegexError {
    RegexError::Invalid { pattern: pattern.chars().take(200).collect(), reason }
}

/// What `pattern` means, as [`compile`] understands it.
///
/// # Errors
/// As [`compile`], but for the size of what is compiled.
pub fn syntax_tree(pattern: &str) -> Result<Hir, RegexError> {
    parse(pattern, &unquote(pattern))
}

/// `\Q…\E` of RE2 in the syntax of the regex crates.
fn unquote(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let mut rest = pattern;
    while let Some(at) = rest.find("\\Q") {
        let escaped = rest[..at].bytes().rev().take_while(|b| *b == b'\\').count() % 2 == 1;
        if escaped {
            out.push_str(&rest[..at + 2]);
            rest = &rest[at + 2..];
            continue;
        }
        out.push_str(&rest[..at]);
        let quoted = &rest[at + 2..];
        let end = quoted.find("\\E").unwrap_or(quoted.len());
        regex_syntax::escape_into(&quoted[..end], &mut out);
        rest = quoted.get(end + 2..).unwrap_or("");
    }
    out.push_str(rest);
    out
}

/// How a text must look (`type.matcher.v3.StringMatcher`). With `ignore_case` the text here is lower case already.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct StringMatcher {
    /// The pattern.
    pub pattern: StringPattern,
    /// ASCII case is not looked at; has no meaning for a regex.
    pub ignore_case: bool,
}

/// The pattern of a [`StringMatcher`].
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum StringPattern {
    /// Equal.
    Exact(String),
    /// Begins so.
    Prefix(String),
    /// Ends so.
    Suffix(String),
    /// Is found within.
    Contains(String),
    /// The whole text matches.
    SafeRegex(Regex),
}

/// What a header must look like (`config.route.v3.HeaderMatcher`). All matchers of a route must hold.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct HeaderMatcher {
    /// Name, lower case; `:method`, `:path`, `:authority` and `:scheme` are the request line's.
    pub name: String,
    /// What its value must be. Of several lines of one name one must match; headers of which Envoy keeps one value
    /// (`accept`, `x-forwarded-for` …) are joined by a comma.
    pub value: HeaderMatch,
    /// The result is turned round.
    pub invert_match: bool,
    /// An absent header is the empty string; else an absent header never matches `value`
    /// (and with `invert_match` matches only where `value` is [`HeaderMatch::Present`]).
    pub treat_missing_header_as_empty: bool,
}

/// The value part of a [`HeaderMatcher`].
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum HeaderMatch {
    /// `present_match`: is there (`true`) or is not (`false`).
    Present(bool),
    /// `string_match`, and the older `exact_match`, `prefix_match` and so on.
    String(StringMatcher),
    /// `range_match`: a decimal integer in `[start, end)`.
    Range {
        /// First number that matches.
        start: i64,
        /// First number that does not.
        end: i64,
    },
}

/// What a query parameter must look like (`config.route.v3.QueryParameterMatcher`). The first of a name counts.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct QueryParameterMatcher {
    /// Name, as it stands in the query: nothing is decoded.
    pub name: String,
    /// What its value must be.
    pub value: QueryMatch,
}

/// The value part of a [`QueryParameterMatcher`].
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum QueryMatch {
    /// `present_match`: is there, or (`false`) is not. With neither matcher: is there.
    Present(bool),
    /// `string_match`.
    String(StringMatcher),
}

/// What a cookie must be (`config.route.v3.CookieMatcher`). The first of a name counts; one that is not there does not
/// match.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct CookieMatcher {
    /// Its name; case matters.
    pub name: String,
    /// What its value must be, without the quotation marks around it.
    pub value: StringMatcher,
    /// The result is turned round.
    pub invert_match: bool,
}

/// What the client's certificate must be (`RouteMatch.TlsContextMatchOptions`).
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct TlsContextMatch {
    /// There is one, or there is none.
    pub presented: Option<bool>,
    /// It was validated, or not.
    pub validated: Option<bool>,
}

/// A share of requests that the runtime may set (`config.core.v3.RuntimeFractionalPercent`).
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct RuntimeFraction {
    /// What counts when the runtime says nothing.
    pub default: Fraction,
    /// The runtime's key; may be empty.
    pub runtime_key: String,
}

/// A share of requests (`type.v3.FractionalPercent`).
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Fraction {
    /// Out of `denominator`.
    pub numerator: u32,
    /// 100, 10,000 or 1,000,000.
    pub denominator: u32,
}

impl Default for Fraction {
    /// None.
    fn default() -> Fraction {
        Fraction { numerator: 0, denominator: 100 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(p: &str, s: &str) -> bool {
        compile_full(p).unwrap().is_match(s)
    }

    #[test]
    fn a_match_is_of_the_whole_input() {
        assert!(full("/item/[0-9]+/.*", "/item/42/x"));
        assert!(!full("/item/[0-9]+", "/item/42/x"));
        assert!(full("a|ab", "ab"), "the alternation is grouped");
    }

    #[test]
    fn classes_are_ascii_as_in_re2() {
        assert!(full(r"\d+", "42"));
        assert!(!full(r"\d+", "٤٢"));
        assert!(full(".", "é") || full("..", "é"), "a character beyond ASCII can be matched");
    }

    #[test]
    fn quoting_is_re2s() {
        assert!(full(r"\Qa.b\E+", "a.bb"));
        assert!(!full(r"\Qa.b\E", "axb"));
        assert!(full(r"\Qa(b", "a(b"));
        assert!(full(r"\\Q", "\\Q"));
    }

    #[test]
    fn what_cannot_be_compiled_is_named() {
        let e = Regex::new("(").unwrap_err();
        assert!(e.to_string().contains("\"(\""), "{e}");
        assert!(compile_full("a)(b").is_err(), "a pattern may not leave its group");
        assert!(Regex::new(&"a".repeat(MAX_PATTERN + 1)).is_err());
        assert!(Regex::new("(?=a)").is_err(), "RE2 has no look-ahead");
    }

    proptest::proptest! {
        #[test]
        fn any_pattern_is_compiled_or_refused(p in ".{0,40}") {
            let _ = Regex::new(&p);
        }

        #[test]
        fn quoted_text_matches_itself(s in "[ -~]{0,20}") {
            proptest::prop_assume!(!s.contains("\\E"));
            proptest::prop_assert!(full(&["\\Q", &s, "\\E"].concat(), &s));
        }
    }
}
