//! Regular expressions of RE2 in the syntax of PCRE, which APISIX has. The pattern is not taken over as text: what looks the
//! same may mean another thing (`a++`, `\v`, `$` before a line break). It is read, and written anew.

use amesh_model::matcher::syntax_tree;
use regex_syntax::hir::{Class, Hir, HirKind, Look};
use regex_syntax::utf8::Utf8Sequences;
use std::fmt::Write;

/// Longest expression that is written.
const LONGEST: usize = 16 * 1024;

/// Matches the whole text that `pattern` matches as a whole.
pub(crate) fn whole(pattern: &str) -> Result<String, String> {
    Ok(format!("\\A(?:{})\\z", Writer::default().write(&tree(pattern)?)?))
}

/// Is found where `pattern` is found; groups keep their numbers.
pub(crate) fn search(pattern: &str) -> Result<String, String> {
    Writer::default().write(&tree(pattern)?)
}

/// A part of an expression that matches what `pattern` matches as a whole, of texts without the byte `end`, and never goes
/// beyond one.
pub(crate) fn within(pattern: &str, end: u8) -> Result<String, String> {
    let tree = tree(pattern)?;
    let inner = Writer { without: Some(end), ..Writer::default() }.write(&strip_anchors(tree))?;
    Ok(format!("(?:{inner})"))
}

/// At most one match of the pattern can be found in a path: what replaces all replaces the first.
pub(crate) fn matches_once(pattern: &str) -> bool {
    let Ok(tree) = syntax_tree(pattern) else { return false };
    let properties = tree.properties();
    let to_the_end = properties.look_set_suffix().contains(Look::End) || takes_the_rest(&tree);
    properties.look_set_prefix().contains(Look::Start)
        || (to_the_end && properties.minimum_len().is_some_and(|length| length > 0))
}

/// The pattern ends with what takes all that is left of a path.
fn takes_the_rest(tree: &Hir) -> bool {
    let all = |start: u32, end: u32| start <= 0x21 && end >= 0x7e;
    match tree.kind() {
        HirKind::Concat(parts) => parts.last().is_some_and(takes_the_rest),
        HirKind::Capture(capture) => takes_the_rest(&capture.sub),
        HirKind::Repetition(repetition) if repetition.greedy && repetition.max.is_none() => match repetition.sub.kind()
        {
            HirKind::Class(Class::Bytes(class)) => class.ranges().iter().any(|r| all(r.start().into(), r.end().into())),
            HirKind::Class(Class::Unicode(class)) => {
                class.ranges().iter().any(|r| all(r.start().into(), r.end().into()))
            }
            _ => false,
        },
        _ => false,
    }
}

/// A text that matches itself.
pub(crate) fn quote(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        literal(byte, &mut out);
        out
    })
}

fn tree(pattern: &str) -> Result<Hir, String> {
    syntax_tree(pattern).map_err(|e| e.to_string())
}

/// Without what says that it begins and ends where the text does.
fn strip_anchors(tree: Hir) -> Hir {
    let is = |hir: &Hir, look| matches!(hir.kind(), HirKind::Look(found) if *found == look);
    match tree.into_kind() {
        HirKind::Concat(mut parts) => {
            if parts.first().is_some_and(|part| is(part, Look::Start)) {
                parts.remove(0);
            }
            if parts.last().is_some_and(|part| is(part, Look::End)) {
                parts.pop();
            }
            Hir::concat(parts)
        }
        HirKind::Look(Look::Start | Look::End) | HirKind::Empty => Hir::empty(),
        HirKind::Literal(regex_syntax::hir::Literal(bytes)) => Hir::literal(bytes),
        HirKind::Class(class) => Hir::class(class),
        HirKind::Look(look) => Hir::look(look),
        HirKind::Repetition(repetition) => Hir::repetition(repetition),
        HirKind::Capture(capture) => Hir::capture(capture),
        HirKind::Alternation(parts) => Hir::alternation(parts),
    }
}

#[derive(Default)]
struct Writer {
    out: String,
    /// A byte that is not matched, whatever the expression says.
    without: Option<u8>,
}

impl Writer {
    fn write(mut self, tree: &Hir) -> Result<String, String> {
        self.hir(tree)?;
        Ok(self.out)
    }

    fn hir(&mut self, tree: &Hir) -> Result<(), String> {
        if self.out.len() > LONGEST {
            return Err(format!("in the syntax of PCRE it is longer than {LONGEST} bytes"));
        }
        match tree.kind() {
            HirKind::Empty => self.out.push_str("(?:)"),
            HirKind::Literal(text) => {
                for &byte in text.0.iter() {
                    if self.without == Some(byte) {
                        self.out.push_str("(?!)");
                    }
                    literal(byte, &mut self.out);
                }
            }
            HirKind::Class(class) => self.class(class),
            HirKind::Look(look) => self.look(*look)?,
            HirKind::Repetition(repetition) => {
                self.group("(?:", &repetition.sub)?;
                let (min, lazy) = (repetition.min, if repetition.greedy { "" } else { "?" });
                let _ = match (min, repetition.max) {
                    (0, None) => write!(self.out, "*{lazy}"),
                    (1, None) => write!(self.out, "+{lazy}"),
                    (0, Some(1)) => write!(self.out, "?{lazy}"),
                    (min, None) => write!(self.out, "{{{min},}}{lazy}"),
                    (min, Some(max)) => write!(self.out, "{{{min},{max}}}{lazy}"),
                };
            }
            HirKind::Capture(capture) => self.group("(", &capture.sub)?,
            HirKind::Concat(parts) => parts.iter().try_for_each(|part| self.hir(part))?,
            HirKind::Alternation(parts) => {
                self.out.push_str("(?:");
                for (at, part) in parts.iter().enumerate() {
                    if at > 0 {
                        self.out.push('|');
                    }
                    self.hir(part)?;
                }
                self.out.push(')');
            }
        }
        Ok(())
    }

    fn group(&mut self, open: &str, inner: &Hir) -> Result<(), String> {
        self.out.push_str(open);
        self.hir(inner)?;
        self.out.push(')');
        Ok(())
    }

    fn look(&mut self, look: Look) -> Result<(), String> {
        if self.without.is_some() {
            return Err("it looks round itself, in a part of a text".to_owned());
        }
        self.out.push_str(match look {
            Look::Start => "\\A",
            Look::End => "\\z",
            Look::StartLF => "(?m:^)",
            Look::EndLF => "(?=\\n|\\z)",
            Look::WordAscii => "\\b",
            Look::WordAsciiNegate => "\\B",
            other => return Err(format!("PCRE has no {other:?}")),
        });
        Ok(())
    }

    fn class(&mut self, class: &Class) {
        match class {
            Class::Bytes(class) => {
                let ranges: Vec<_> = class.ranges().iter().map(|r| (r.start(), r.end())).collect();
                self.bytes(&ranges);
            }
            Class::Unicode(class) => {
                self.out.push_str("(?:");
                let mut first = true;
                for range in class.ranges() {
                    for sequence in Utf8Sequences::new(range.start(), range.end()) {
                        if !std::mem::take(&mut first) {
                            self.out.push('|');
                        }
                        for bytes in sequence.as_slice() {
                            self.bytes(&[(bytes.start, bytes.end)]);
                        }
                    }
                }
                self.out.push_str(if first { "(?!))" } else { ")" });
            }
        }
    }

    fn bytes(&mut self, ranges: &[(u8, u8)]) {
        let mut inner = String::new();
        for &(start, end) in ranges {
            for (start, end) in cut(start, end, self.without) {
                let _ = match end - start {
                    0 => write!(inner, "\\x{start:02x}"),
                    _ => write!(inner, "\\x{start:02x}-\\x{end:02x}"),
                };
            }
        }
        match inner.as_str() {
            "" => self.out.push_str("(?!)"),
            inner => {
                let _ = write!(self.out, "[{inner}]");
            }
        }
    }
}

/// A range without one byte.
fn cut(start: u8, end: u8, without: Option<u8>) -> impl Iterator<Item = (u8, u8)> {
    let parts = match without {
        Some(byte) if (start..=end).contains(&byte) => {
            let before = byte.checked_sub(1).map(|last| (start, last));
            [before, byte.checked_add(1).map(|first| (first, end))]
        }
        _ => [Some((start, end)), None],
    };
    parts.into_iter().flatten().filter(|(start, end)| start <= end)
}

fn literal(byte: u8, out: &mut String) {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'=' | b'~' | b':' | b',' => {
            out.push(byte.into())
        }
        b'.' => out.push_str("\\."),
        byte => {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amesh_model::matcher::{compile, compile_full};
    use proptest::prelude::*;

    #[test]
    fn what_looks_alike_is_not_taken_over() {
        assert_eq!(whole("/a").unwrap(), "\\A(?:/a)\\z");
        assert_eq!(search("a++").unwrap(), "(?:(?:a)+)+", "no possessive quantifier");
        assert_eq!(search(r"^/v([0-9]+)/(.*?)$").unwrap(), r"\A/v((?:[\x30-\x39])+)/((?:[\x00-\x09\x0b-\xff])*?)\z");
        assert_eq!(search(r"\Qa.b\E").unwrap(), r"a\.b");
        assert!(search(r"\b{start}").is_err());
    }

    #[test]
    fn a_part_never_goes_beyond_its_end() {
        let part = within("^.*x$", b'&').unwrap();
        assert_eq!(part, r"(?:(?:[\x00-\x09\x0b-\x25\x27-\xff])*x)");
        assert!(within("a&b", b'&').unwrap().contains("(?!)"));
        assert!(within(r"a\b", b'&').is_err());
    }

    #[test]
    fn what_is_replaced_once_is_known() {
        for once in ["^/a", "^/a/(.*)$", "/a$", "^(/x|/y)", "/item/([0-9]+)/(.*)"] {
            assert!(matches_once(once), "{once}");
        }
        for often in ["/a", "a*$", "(^/a|/b)", ".*", "/a(.*?)", "/a.*/b"] {
            assert!(!matches_once(often), "{often}");
        }
    }

    proptest! {
        // What is written is in the common part of both syntaxes, so the same engine can judge it.
        #[test]
        fn what_is_written_means_the_same(p in r"(\^)?[ab/]([ab./]|\(a\|b\)|\[ab\]|[ab][*+?]|\\d|a\{1,2\}){0,5}(\$)?", s in "[ab/.1]{0,8}") {
            prop_assume!(compile(&p).is_ok());
            let wanted = compile_full(&p).unwrap().is_match(&s);
            prop_assert_eq!(compile(&whole(&p).unwrap()).unwrap().is_match(&s), wanted);
            prop_assert_eq!(compile(&search(&p).unwrap()).unwrap().is_match(&s), compile(&p).unwrap().is_match(&s));
        }

        #[test]
        fn a_part_matches_what_the_whole_does(p in r"[ab]([ab.]|\[ab\]|a[*+?]|\.\*){0,4}", value in "[abc]{0,6}") {
            let part = format!("\\Ax={}(?:\\x26|\\z)", within(&p, b'&').unwrap_or_else(|_| unreachable!()));
            let found = compile(&part).unwrap().is_match(&format!("x={value}&y=ab"));
            prop_assert_eq!(found, compile_full(&p).unwrap().is_match(&value));
        }

        #[test]
        fn a_quoted_text_matches_itself(s in "[ -~]{0,12}") {
            prop_assert!(compile_full(&quote(&s)).unwrap().is_match(&s));
        }
    }
}
