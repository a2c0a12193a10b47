//! New paths, hosts and locations.

use crate::headers::plain;
use crate::pcre;
use amesh_model::matcher::Regex;
use amesh_model::route::{PathRewrite, PathSpecifier, RedirectAction, RouteMatch};
use serde_json::{json, Map, Value};

/// What becomes of the path, as fields of `proxy-rewrite`.
pub(crate) fn path(rewrite: &PathRewrite, matched: &RouteMatch, proxy: &mut Map<String, Value>) -> Result<(), String> {
    let pair = match rewrite {
        PathRewrite::None => return Ok(()),
        PathRewrite::Prefix(text) if text.is_empty() => return Ok(()),
        PathRewrite::Prefix(text) => (head(matched), template(text)?),
        PathRewrite::Regex { pattern, substitution } => replaced(pattern, substitution)?,
        PathRewrite::Full(text) => (whole_path(), template(text)?),
        PathRewrite::Format(parts) if parts.is_empty() => return Ok(()),
        PathRewrite::Format(_) => return Err("its new path depends on the request".to_owned()),
    };
    proxy.insert("regex_uri".into(), json!([pair.0, pair.1]));
    Ok(())
}

fn whole_path() -> String {
    "(?s)\\A.*\\z".to_owned()
}

/// What a route has matched of the path, and a prefix takes the place of.
fn head(matched: &RouteMatch) -> String {
    match &matched.path {
        PathSpecifier::Prefix(text) | PathSpecifier::Path(text) | PathSpecifier::PathSeparatedPrefix(text) => {
            let case = if matched.case_sensitive { "" } else { "(?i)" };
            format!("{case}\\A{}", pcre::quote(text))
        }
        PathSpecifier::SafeRegex(_) | PathSpecifier::Connect => whole_path(),
    }
}

/// A text as a replacement.
fn template(text: &str) -> Result<String, String> {
    Ok(plain(text)?.replace('$', "$$"))
}

/// Expression and replacement. APISIX replaces the first match, Envoy replaces all.
fn replaced(pattern: &Regex, substitution: &str) -> Result<(String, String), String> {
    if !pcre::matches_once(&pattern.pattern) {
        return Err(format!("\"{}\" may match several times, APISIX replaces the first match only", pattern.pattern));
    }
    let mut out = String::new();
    let mut text = String::new();
    let mut escaped = false;
    for c in substitution.chars() {
        match (escaped, c) {
            (false, '\\') => {
                escaped = true;
                continue;
            }
            (true, '0'..='9') => {
                out.push_str(&template(&std::mem::take(&mut text))?);
                out.push_str(&format!("${{{c}}}"));
            }
            (_, c) => text.push(c),
        }
        escaped = false;
    }
    out.push_str(&template(&text)?);
    Ok((pcre::search(&pattern.pattern)?, out))
}

/// A new host as `proxy-rewrite` takes it.
pub(crate) fn host(host: &str) -> Result<&str, String> {
    let (name, port) = host.split_once(':').map_or((host, "0"), |(name, port)| (name, port));
    let good = !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
        && (1..=5).contains(&port.len())
        && port.bytes().all(|b| b.is_ascii_digit());
    good.then_some(host).ok_or_else(|| format!("proxy-rewrite does not take the host \"{host}\""))
}

/// `redirect`.
pub(crate) fn redirect(redirect: &RedirectAction, matched: &RouteMatch) -> Result<Value, String> {
    let scheme = match (redirect.scheme.as_str(), redirect.https_redirect) {
        ("", true) => Some("https"),
        ("", false) => None,
        (scheme, _) => Some(scheme),
    };
    let origin = Origin { scheme, host: &redirect.host, port: redirect.port };
    let mut conf = match &redirect.path {
        PathRewrite::None => {
            let path = if redirect.strip_query { "$uri" } else { "$real_request_uri" };
            json!({"uri": format!("{}{path}", origin.with_variables()?)})
        }
        PathRewrite::Full(text) => {
            let query = if text.contains('?') || redirect.strip_query { "" } else { "$is_args$args" };
            let slash = if text.starts_with('/') { "" } else { "/" };
            json!({"uri": format!("{}{slash}{}{query}", origin.with_variables()?, plain(text)?)})
        }
        PathRewrite::Prefix(text) if text.is_empty() => {
            json!({"uri": format!("{}$real_request_uri", origin.with_variables()?)})
        }
        PathRewrite::Prefix(text) => {
            let rest = if matches!(matched.path, PathSpecifier::SafeRegex(_)) { "" } else { "(?s)(.*)" };
            let new = format!("{}{}{}", origin.literal()?, template(text)?, if rest.is_empty() { "" } else { "${1}" });
            json!({"regex_uri": [format!("{}{rest}", head(matched)), new], "append_query_string": !redirect.strip_query})
        }
        // A path that does not match would not be redirected at all.
        PathRewrite::Regex { .. } => return Err("its location is made by a regular expression".to_owned()),
        PathRewrite::Format(_) => return Err("its location depends on the request".to_owned()),
    };
    conf["ret_code"] = json!(redirect.status);
    Ok(conf)
}

/// The part of a location before the path.
struct Origin<'a> {
    scheme: Option<&'a str>,
    host: &'a str,
    port: u16,
}

impl Origin<'_> {
    fn port(&self) -> String {
        if self.port == 0 {
            String::new()
        } else {
            format!(":{}", self.port)
        }
    }

    /// With variables for what is as it was asked.
    fn with_variables(&self) -> Result<String, String> {
        let host = match (self.host, self.port) {
            ("", 0) => "$http_host",
            ("", _) => "$host",
            (host, _) => plain(host)?,
        };
        Ok(format!("{}://{host}{}", self.scheme.unwrap_or("$scheme"), self.port()))
    }

    /// Without variables: `regex_uri` of `redirect` knows none. Nothing, where all is as it was asked.
    fn literal(&self) -> Result<String, String> {
        match (self.scheme, self.host, self.port) {
            (None, "", 0) => Ok(String::new()),
            (Some(scheme), host, _) if !host.is_empty() => Ok(format!("{scheme}://{}{}", template(host)?, self.port())),
            _ => Err("its location keeps a part of the host, and changes the beginning of the path".to_owned()),
        }
    }
}
