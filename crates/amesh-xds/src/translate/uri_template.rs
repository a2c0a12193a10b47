//! URI templates (`envoy.path.match.uri_template`, `envoy.path.rewrite.uri_template`): `/v{version}/{lang=lang/*}/**`.
//!
//! A template becomes a regular expression, and a rewrite a substitution for it: workers know neither. What is a
//! template and what it matches was found out by asking Envoy 1.40.

use amesh_model::matcher::Regex;

/// What a path may consist of, as a class of a regex: `pchar` of RFC 3986.
const PCHAR: &str = r"a-zA-Z0-9\-._~%!$&'()*+,;=:@";
/// Envoy's limits.
const MAX_LENGTH: usize = 256;
const MAX_VARIABLES: usize = 5;
const MAX_NAME: usize = 16;

/// A template that paths are matched with.
#[derive(Debug)]
pub(super) struct Template {
    /// Matches the whole path without query.
    pub regex: Regex,
    /// Names of the variables, in the order of the regex's groups.
    variables: Vec<String>,
}

impl Template {
    /// Reads a template. The error says what is wrong with it.
    pub fn new(text: &str) -> Result<Template, String> {
        let mut parser = Parser { rest: length(text)?, ..Parser::default() };
        let pattern = parser.template()?;
        let regex = Regex::new(&pattern).map_err(|e| e.to_string())?;
        Ok(Template { regex, variables: parser.variables })
    }

    /// RE2's substitution for a rewrite such as `/{lang}/x`.
    pub fn substitution(&self, rewrite: &str) -> Result<String, String> {
        let mut rest = length(rewrite)?;
        if !rest.starts_with('/') {
            return Err(format!("\"{rewrite}\" does not begin with a slash"));
        }
        if rest.contains("//") {
            return Err(format!("\"{rewrite}\" has two slashes in a row"));
        }
        let mut out = String::new();
        while let Some((text, after)) = rest.split_once('{') {
            out.push_str(literal(text, "/")?);
            let (name, after) = after.split_once('}').ok_or("a bracket is not closed")?;
            let known = self.variables.iter().position(|v| v == name);
            let group = known.ok_or_else(|| format!("{{{name}}} is no variable of the template that is matched"))? + 1;
            out.push_str(&format!("\\{group}"));
            rest = after;
        }
        out.push_str(literal(rest, "/")?);
        Ok(out)
    }
}

fn length(text: &str) -> Result<&str, String> {
    match text.len() {
        1..=MAX_LENGTH => Ok(text),
        length => Err(format!("is {length} bytes long, 1 to {MAX_LENGTH} are allowed")),
    }
}

/// A text of `pchar`s and of what is allowed `besides`.
fn literal<'t>(text: &'t str, besides: &str) -> Result<&'t str, String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:@".contains(&b);
    match text.bytes().all(|b| allowed(b) || besides.as_bytes().contains(&b)) {
        true => Ok(text),
        false => Err(format!("\"{text}\" has characters that a path segment has not")),
    }
}

#[derive(Default)]
struct Parser<'t> {
    rest: &'t str,
    variables: Vec<String>,
    /// `**` was there: no further wildcard may follow.
    text_glob: bool,
}

impl<'t> Parser<'t> {
    /// The regex of a template.
    fn template(&mut self) -> Result<String, String> {
        let mut out = String::from("/");
        self.rest =
            self.rest.strip_prefix('/').ok_or_else(|| format!("\"{}\" has no slash at its start", self.rest))?;
        while !self.rest.is_empty() {
            self.segment(&mut out)?;
            if let Some(after) = self.rest.strip_prefix('/') {
                out.push('/');
                self.rest = after;
            }
        }
        Ok(out)
    }

    fn segment(&mut self, out: &mut String) -> Result<(), String> {
        if self.rest.starts_with('*') {
            self.glob(out)?;
            let suffix = self.until_slash();
            out.push_str(&escaped(suffix)?);
            return match suffix.is_empty() || self.rest.is_empty() {
                true => Ok(()),
                false => Err(format!("\"{suffix}\" after a wildcard must end the template")),
            };
        }
        let segment = self.rest.split('/').next().unwrap_or_default();
        let Some(bracket) = segment.find('{') else {
            self.until_slash();
            return match segment {
                "" => Err("has an empty segment".to_owned()),
                text => {
                    out.push_str(&escaped(text)?);
                    Ok(())
                }
            };
        };
        let (prefix, variable) = self.rest.split_at(bracket);
        let Some((inner, after)) = variable[1..].split_once('}') else {
            return Err("a bracket is not closed".to_owned());
        };
        if !prefix.is_empty() && inner.contains('/') {
            return Err(format!("{{{inner}}} is more than a segment, so nothing may stand before it in its own"));
        }
        out.push_str(&escaped(prefix)?);
        self.variable(inner, out)?;
        self.rest = after;
        let suffix = self.until_slash();
        out.push_str(&escaped(suffix)?);
        Ok(())
    }

    /// The text up to the next slash.
    fn until_slash(&mut self) -> &'t str {
        let end = self.rest.find('/').unwrap_or(self.rest.len());
        let (text, rest) = self.rest.split_at(end);
        self.rest = rest;
        text
    }

    /// `*` or `**` at the start of the rest.
    fn glob(&mut self, out: &mut String) -> Result<(), String> {
        if self.text_glob {
            return Err("a wildcard follows `**`".to_owned());
        }
        if let Some(rest) = self.rest.strip_prefix("**") {
            self.text_glob = true;
            self.rest = rest;
            out.push_str(&format!("[{PCHAR}/]*"));
        } else {
            self.rest = &self.rest[1..];
            out.push_str(&format!("[{PCHAR}]+"));
        }
        Ok(())
    }

    /// `name` or `name=lang/*`.
    fn variable(&mut self, inner: &'t str, out: &mut String) -> Result<(), String> {
        let (name, matched) = inner.split_once('=').unwrap_or((inner, "*"));
        let mut letters = name.bytes();
        let begins = letters.next().is_some_and(|b| b.is_ascii_alphabetic());
        if !begins || name.len() > MAX_NAME || !letters.all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(format!("\"{name}\" is no name of a variable: a letter, then at most 15 letters, digits or _"));
        }
        if self.variables.iter().any(|v| v == name) {
            return Err(format!("{{{name}}} is there twice"));
        }
        if self.variables.len() == MAX_VARIABLES {
            return Err(format!("has more than {MAX_VARIABLES} variables"));
        }
        self.variables.push(name.to_owned());
        out.push('(');
        for (i, segment) in matched.split('/').enumerate() {
            if i > 0 {
                out.push('/');
            }
            match segment {
                "" => return Err(format!("{{{inner}}} has an empty segment")),
                "*" | "**" => {
                    let after = std::mem::replace(&mut self.rest, segment);
                    self.glob(out)?;
                    self.rest = after;
                }
                text if text.starts_with('*') => return Err(format!("{{{inner}}} has text behind a wildcard")),
                text => out.push_str(&escaped(text)?),
            }
        }
        out.push(')');
        Ok(())
    }
}

/// A literal as a regex. A star in it is what it is to Envoy, which does not escape it: a repetition.
fn escaped(text: &str) -> Result<String, String> {
    literal(text, "")?;
    if text.contains("**") {
        return Err(format!("\"{text}\" has `**` within a segment: Envoy matches nothing with it"));
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if "$()+.".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use amesh_model::matcher::{compile, compile_full};

    /// Which of the paths a template matches.
    fn matched<'p>(template: &str, paths: &[&'p str]) -> Vec<&'p str> {
        let regex = compile_full(&Template::new(template).unwrap().regex.pattern).unwrap();
        paths.iter().copied().filter(|path| regex.is_match(path)).collect()
    }

    fn rewritten(template: &str, rewrite: &str, path: &str) -> String {
        let template = Template::new(template).unwrap();
        let substitution = template.substitution(rewrite).unwrap();
        let regex = compile(&format!("^(?:{})$", template.regex.pattern)).unwrap();
        let mut found = regex.create_captures();
        regex.captures(path, &mut found);
        let mut out = String::new();
        let mut pieces = substitution.split('\\');
        out.push_str(pieces.next().unwrap());
        for piece in pieces {
            let (group, text) = piece.split_at(1);
            out.push_str(&path[found.get_group(group.parse().unwrap()).unwrap().range()]);
            out.push_str(text);
        }
        out
    }

    #[test]
    fn templates_match_what_envoy_matches() {
        let paths = ["/", "/x", "/xa/b", "/x/", "/v1/x", "/v/x", "/1.json", "/q/r.mpd", "/.mpd", "//x", "/a=b", "/q/é"];
        assert_eq!(matched("/*", &paths), ["/x", "/1.json", "/.mpd", "/a=b"]);
        assert_eq!(matched("/**", &paths).len(), paths.len() - 1, "all but what is no ASCII");
        assert_eq!(matched("/**/x", &paths), ["/v1/x", "/v/x", "//x"]);
        assert_eq!(matched("/**.mpd", &paths), ["/q/r.mpd", "/.mpd"]);
        assert_eq!(matched("/v{version}/x", &paths), ["/v1/x"]);
        assert_eq!(matched("/{id}.json", &paths), ["/1.json"]);
        assert_eq!(matched("/x{a=**}", &paths), ["/x", "/xa/b", "/x/"]);
        assert_eq!(matched("/{a}/", &paths), ["/x/"]);
        assert_eq!(matched("/", &paths), ["/"]);
        assert_eq!(matched("/a=b", &paths), ["/a=b"]);
        assert_eq!(matched("/{a=*/b/**}/c", &["/1/b/2/3/c", "/1/b//c", "/1/b/c"]), ["/1/b/2/3/c", "/1/b//c"]);
        assert_eq!(matched("/a.b", &["/a.b", "/axb"]), ["/a.b"]);
    }

    #[test]
    fn what_envoy_refuses_is_refused() {
        for bad in [
            "",
            "a",
            "/{a}-{b}",
            "/{a}{b}",
            "/x{a}y{b}",
            "/**/*",
            "/*a/b",
            "/{a=**}/{b}",
            "/x{a=b/*}y",
            "/a//b",
            "/{a=*.b}",
            "/{_a}",
            "/{a=x/}",
            "/{a=**}/{b=**}",
            "/{aaaaaaaaaaaaaaaaa}",
            "/{a}/{b}/{c}/{d}/{e}/{f}",
            "/{a}/{a}",
            "/*{a}",
            "/{a",
            "/a}",
            "/é",
            "/a b",
            "/{}",
            "/{a=}",
        ] {
            assert!(Template::new(bad).is_err(), "{bad}");
        }
        assert!(Template::new(&"/a".repeat(129)).is_err());
    }

    #[test]
    fn rewrites_put_variables_into_a_new_path() {
        assert_eq!(rewritten("/{one}/{two}", "/{two}/{one}", "/cat/dog"), "/dog/cat");
        assert_eq!(rewritten("/videos/{language=lang/*}/*", "/{language}", "/videos/lang/en/video.m4s"), "/lang/en");
        let template = "/content/{format}/{lang}/{id}/{file}.vtt";
        assert_eq!(
            rewritten(template, "/{lang}/{format}/{file}.vtt", "/content/hls/en-us/12345/en_193913.vtt"),
            "/en-us/hls/en_193913.vtt"
        );
        let template = Template::new("/{a}").unwrap();
        for bad in ["", "x", "//", "/{b}", "/{a", "/\\1", "/é", "/{a}}"] {
            assert!(template.substitution(bad).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_template_or_refused(text in "(/|[a-c*{}=.]|\\PC){0,24}") {
            if let Ok(template) = Template::new(&text) {
                let _ = template.substitution(&text);
            }
        }

        #[test]
        fn a_template_matches_what_its_variables_are_filled_with(
            segments in proptest::collection::vec("[a-z0-9.~%!]{1,8}", 1..5)
        ) {
            let names: Vec<String> = (0..segments.len()).map(|i| format!("{{v{i}}}")).collect();
            let path = format!("/x/{}", segments.join("/"));
            let there = format!("/x/{}", names.join("/"));
            proptest::prop_assert_eq!(matched(&there, &[&path]).len(), 1);
            // Written down again, the variables are the path.
            proptest::prop_assert_eq!(rewritten(&there, &there, &path), path);
        }
    }
}
