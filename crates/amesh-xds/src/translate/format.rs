//! Header edits and the substitution commands in their values.

use super::{Invalid, Notes};
use amesh_model::header::{AppendAction, Format, HeaderEdits, HeaderValueOption, PathSource};
use envoy_types::pb::envoy::config::core::v3 as core;
use std::sync::OnceLock;

/// Commands that Envoy knows and that are not expanded here, besides those of [`KNOWN_FAMILIES`].
const KNOWN: [&str; 21] = [
    "TRAILER",
    "REQ_WITHOUT_QUERY",
    "LOCAL_REPLY_BODY",
    "GRPC_STATUS",
    "GRPC_STATUS_NUMBER",
    "TRACE_ID",
    "SPAN_ID",
    "ACCESS_LOG_TYPE",
    "QUERY_PARAMS",
    "CONNECTION_ID",
    "DYNAMIC_METADATA",
    "CLUSTER_METADATA",
    "FILTER_STATE",
    "PER_REQUEST_STATE",
    "METADATA",
    "DURATION",
    "CUSTOM_FLAGS",
    "UNIQUE_ID",
    "STREAM_ID",
    "FILTER_CHAIN_NAME",
    "CEL",
];
const KNOWN_FAMILIES: [&str; 12] = [
    "DOWNSTREAM_",
    "UPSTREAM_",
    "BYTES_",
    "PACKETS_",
    "REQUEST_",
    "RESPONSE_",
    "START_TIME",
    "EMIT_TIME",
    "CONNECTION_",
    "COMMON_DURATION",
    "ROUNDTRIP_DURATION",
    "TLS_JA",
];

/// The four lists of edits that route tables, virtual hosts, routes and weighted clusters have.
pub(super) fn edits(
    request_add: &[core::HeaderValueOption],
    request_remove: &[String],
    response_add: &[core::HeaderValueOption],
    response_remove: &[String],
    notes: &mut Notes,
) -> Result<HeaderEdits, Invalid> {
    Ok(HeaderEdits {
        request_add: adds("request_headers_to_add", request_add, notes)?,
        request_remove: notes.list("request_headers_to_remove", request_remove, |h, n| modifiable(h, "", n))?,
        response_add: adds("response_headers_to_add", response_add, notes)?,
        response_remove: notes.list("response_headers_to_remove", response_remove, |h, n| modifiable(h, "", n))?,
    })
}

pub(super) fn adds(
    field: &'static str,
    list: &[core::HeaderValueOption],
    notes: &mut Notes,
) -> Result<Vec<HeaderValueOption>, Invalid> {
    Ok(notes.list(field, list, option)?.into_iter().flatten().collect())
}

/// A header's name in lower case.
pub(super) fn name(text: &str, field: &str, notes: &Notes) -> Result<String, Invalid> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let rest = text.strip_prefix(':').unwrap_or(text);
    if rest.is_empty() || !rest.bytes().all(token) {
        return Err(notes.invalid(field, format!("\"{}\" is no name of a header", text.escape_debug())));
    }
    Ok(text.to_ascii_lowercase())
}

/// The name of a header that may be changed.
fn modifiable(text: &str, field: &str, notes: &Notes) -> Result<String, Invalid> {
    let name = name(text, field, notes)?;
    if name.starts_with(':') || name == "host" {
        return Err(notes.invalid(field, ":-prefixed or host headers may not be modified"));
    }
    Ok(name)
}

fn option(o: &core::HeaderValueOption, notes: &mut Notes) -> Result<Option<HeaderValueOption>, Invalid> {
    use core::header_value_option::HeaderAppendAction as H;
    let core::HeaderValueOption { header, append, append_action, keep_empty_value } = o;
    let Some(core::HeaderValue { key, value, raw_value }) = header else {
        return Err(notes.invalid("header", "is not set"));
    };
    let key = modifiable(key, "header.key", notes)?;
    let text = match (value.is_empty(), std::str::from_utf8(raw_value)) {
        (false, _) if !raw_value.is_empty() => {
            return Err(notes.invalid("header", "has both value and raw_value"));
        }
        (false, _) => value.as_str(),
        (true, Ok(raw)) => raw,
        (true, Err(_)) => {
            notes.ignored("header.raw_value", "is no UTF-8: the header is left out");
            return Ok(None);
        }
    };
    let action = super::value::enumeration::<H>(*append_action, "append_action", notes)?;
    let append_action = match (append, action) {
        (Some(_), a) if a != H::AppendIfExistsOrAdd => {
            return Err(notes.invalid("append", "is set beside append_action"));
        }
        (Some(a), _) if !a.value => AppendAction::OverwriteIfExistsOrAdd,
        (_, H::AppendIfExistsOrAdd) => AppendAction::AppendIfExistsOrAdd,
        (_, H::AddIfAbsent) => AppendAction::AddIfAbsent,
        (_, H::OverwriteIfExistsOrAdd) => AppendAction::OverwriteIfExistsOrAdd,
        (_, H::OverwriteIfExists) => AppendAction::OverwriteIfExists,
    };
    let Some(value) = parse(text, "header.value", None, notes)? else { return Ok(None) };
    Ok(Some(HeaderValueOption { key, value, append_action, keep_empty_value: *keep_empty_value }))
}

/// The parts of a value; `None` when it has a command that Envoy knows and that is not expanded here (noted). A value
/// for a body may have line breaks; `body` is what `%LOCAL_REPLY_BODY%` is then.
pub(super) fn parse(
    text: &str,
    field: &str,
    body: Option<&str>,
    notes: &mut Notes,
) -> Result<Option<Vec<Format>>, Invalid> {
    if body.is_none() && text.bytes().any(|b| matches!(b, 0 | b'\r' | b'\n')) {
        return Err(notes.invalid(field, "has a line break or a NUL in it"));
    }
    let (mut out, mut literal, mut rest) = (Vec::new(), String::new(), text);
    let mut known = true;
    while let Some(at) = rest.find('%') {
        literal.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            literal.push('%');
            rest = after;
            continue;
        }
        let Some((command, after)) = Command::cut(rest) else {
            let start: String = rest.chars().take(40).collect();
            return Err(notes.invalid(field, format!("no valid command at \"%{}\"", start.escape_debug())));
        };
        rest = after;
        let part = match (command.name, body) {
            ("LOCAL_REPLY_BODY", Some(body)) => Some(Format::Text(body.to_owned())),
            _ => command.format(field, notes)?,
        };
        match part {
            Some(Format::Text(t)) => literal.push_str(&t),
            Some(part) => {
                if !literal.is_empty() {
                    out.push(Format::Text(std::mem::take(&mut literal)));
                }
                out.push(part);
            }
            None => known = false,
        }
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        out.push(Format::Text(literal));
    }
    Ok(known.then_some(out))
}

struct Command<'a> {
    name: &'a str,
    argument: Option<&'a str>,
    max: Option<u32>,
}

impl<'a> Command<'a> {
    /// Cuts `NAME(argument):max%` off; an argument may have percent signs and brackets in it.
    fn cut(text: &'a str) -> Option<(Command<'a>, &'a str)> {
        let end = text.find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))?;
        let (name, rest) = text.split_at(end);
        if name.is_empty() {
            return None;
        }
        let close = |rest: &'a str| -> Option<(Option<u32>, &'a str)> {
            match rest.strip_prefix(':') {
                None => Some((None, rest.strip_prefix('%')?)),
                Some(rest) => {
                    let (digits, after) = rest.split_once('%')?;
                    Some((Some(digits.parse().ok()?), after))
                }
            }
        };
        let Some(inner) = rest.strip_prefix('(') else {
            let (max, after) = close(rest)?;
            return Some((Command { name, argument: None, max }, after));
        };
        inner.match_indices(')').find_map(|(at, _)| {
            let (max, after) = close(&inner[at + 1..])?;
            Some((Command { name, argument: Some(&inner[..at]), max }, after))
        })
    }

    /// The model's form; `None` when there is none (noted).
    fn format(&self, field: &str, notes: &mut Notes) -> Result<Option<Format>, Invalid> {
        let plain = match self.name {
            "REQ" | "RESP" => return self.header(field, notes).map(Some),
            "PATH" => return self.path(field, notes).map(Some),
            "QUERY_PARAM" => {
                return match self.argument.unwrap_or_default() {
                    "" => Err(notes.invalid(field, "%QUERY_PARAM()% names no parameter")),
                    name => Ok(Some(Format::QueryParam { name: name.to_owned(), max: self.max.unwrap_or(0) })),
                };
            }
            "ENVIRONMENT" => {
                let variable = self.argument.unwrap_or_default();
                let value = std::env::var(variable).unwrap_or_else(|_| "-".to_owned());
                return Ok(Some(Format::Text(self.cut_to_max(value))));
            }
            "HOSTNAME" => Format::Text(hostname().to_owned()),
            "DOWNSTREAM_REMOTE_ADDRESS" => Format::DownstreamRemoteAddress,
            "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Format::DownstreamRemoteAddressWithoutPort,
            "DOWNSTREAM_REMOTE_PORT" => Format::DownstreamRemotePort,
            "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => Format::DownstreamDirectRemoteAddress,
            "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => Format::DownstreamDirectRemoteAddressWithoutPort,
            "DOWNSTREAM_DIRECT_REMOTE_PORT" => Format::DownstreamDirectRemotePort,
            "DOWNSTREAM_LOCAL_ADDRESS" => Format::DownstreamLocalAddress,
            "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => Format::DownstreamLocalAddressWithoutPort,
            "DOWNSTREAM_LOCAL_PORT" => Format::DownstreamLocalPort,
            "PROTOCOL" => Format::Protocol,
            "UPSTREAM_HOST" => Format::UpstreamHost,
            // They differ by `alt_stat_name`, which is for statistics only.
            "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => Format::UpstreamCluster,
            "VIRTUAL_CLUSTER_NAME" => Format::VirtualClusterName,
            "ROUTE_NAME" => Format::RouteName,
            "RESPONSE_CODE" => Format::ResponseCode,
            "REQUESTED_SERVER_NAME" => Format::RequestedServerName,
            "START_TIME" if self.argument.is_none_or(str::is_empty) => return Ok(Some(Format::StartTime)),
            n if KNOWN.contains(&n) || KNOWN_FAMILIES.iter().any(|f| n.starts_with(f)) => {
                notes.ignored(field, format!("%{n}% is not expanded: the header is left out"));
                return Ok(None);
            }
            n => return Err(notes.invalid(field, format!("%{n}% is no command that Envoy knows"))),
        };
        if self.argument.is_some() || self.max.is_some() {
            return Err(notes.invalid(field, format!("%{}% takes no argument and no length", self.name)));
        }
        Ok(Some(plain))
    }

    fn header(&self, field: &str, notes: &Notes) -> Result<Format, Invalid> {
        let mut names = self.argument.unwrap_or_default().split('?');
        let first = name(names.next().unwrap_or_default(), field, notes)?;
        let alternative = match names.next() {
            None | Some("") => String::new(),
            Some(a) => name(a, field, notes)?,
        };
        if names.next().is_some() {
            return Err(notes.invalid(field, format!("more than one alternative header in %{}%", self.name)));
        }
        let max = self.max.unwrap_or(0);
        Ok(match self.name {
            "REQ" => Format::Req { name: first, alternative, max },
            _ => Format::Resp { name: first, alternative, max },
        })
    }

    fn path(&self, field: &str, notes: &Notes) -> Result<Format, Invalid> {
        let (query, source) = self.argument.map(|a| a.split_once(':').unwrap_or((a, ""))).unwrap_or_default();
        let wrong = |text: &str| notes.invalid(field, format!("\"{text}\" in %PATH% is none of Envoy's words"));
        Ok(Format::Path {
            query: match query {
                "" | "WQ" => true,
                "NQ" => false,
                other => return Err(wrong(other)),
            },
            source: match source {
                "" | "ORIG_OR_PATH" => PathSource::OriginalOrPath,
                "ORIG" => PathSource::Original,
                "PATH" => PathSource::Path,
                other => return Err(wrong(other)),
            },
            max: self.max.unwrap_or(0),
        })
    }

    fn cut_to_max(&self, mut text: String) -> String {
        if let Some(max) = self.max {
            let max = (max as usize).min(text.len());
            let end = (0..=max).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
            text.truncate(end);
        }
        text
    }
}

/// The name of this machine, as the kernel has it.
fn hostname() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| match std::fs::read_to_string("/proc/sys/kernel/hostname") {
        Ok(s) => s.trim().to_owned(),
        Err(_) => "-".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(text: &str) -> Vec<Format> {
        parse(text, "v", None, &mut Notes::new()).unwrap().unwrap()
    }

    #[test]
    fn text_and_commands() {
        let text = |s: &str| Format::Text(s.into());
        assert_eq!(ok("a%%b"), [text("a%b")]);
        assert_eq!(ok(""), []);
        let req = Format::Req { name: ":path".into(), alternative: "x-old".into(), max: 12 };
        assert_eq!(ok("<%REQ(:PATH?X-Old):12%>"), [text("<"), req, text(">")]);
        assert_eq!(ok("%PROTOCOL%%RESPONSE_CODE%"), [Format::Protocol, Format::ResponseCode]);
        assert_eq!(ok("%START_TIME%"), [Format::StartTime]);
        assert!(matches!(&ok("%HOSTNAME%")[..], [Format::Text(h)] if !h.is_empty()));
    }

    #[test]
    fn paths_parameters_and_bodies() {
        let path = |query, source, max| Format::Path { query, source, max };
        assert_eq!(ok("%PATH%"), [path(true, PathSource::OriginalOrPath, 0)]);
        assert_eq!(ok("%PATH(NQ)%"), [path(false, PathSource::OriginalOrPath, 0)]);
        assert_eq!(ok("%PATH(WQ:ORIG):9%"), [path(true, PathSource::Original, 9)]);
        assert_eq!(ok("%PATH(NQ:PATH)%"), [path(false, PathSource::Path, 0)]);
        assert_eq!(ok("%QUERY_PARAM(a-b):2%"), [Format::QueryParam { name: "a-b".into(), max: 2 }]);
        let body = |text: &str| parse(text, "v", Some("it"), &mut Notes::new()).unwrap();
        assert_eq!(body("<%LOCAL_REPLY_BODY%>\n"), Some(vec![Format::Text("<it>\n".into())]));
        assert_eq!(parse("%LOCAL_REPLY_BODY%", "v", None, &mut Notes::new()).unwrap(), None, "only in a body");
    }

    #[test]
    fn what_envoy_knows_and_we_do_not_is_noted() {
        let mut n = Notes::new();
        assert_eq!(parse("a %START_TIME(%Y-%m-%dT%H:%M)% b", "v", None, &mut n).unwrap(), None);
        assert_eq!(parse("%DYNAMIC_METADATA([\"a\", \"b\"])%", "v", None, &mut n).unwrap(), None);
        assert_eq!(n.into_counts().len(), 2);
    }

    #[test]
    fn what_nobody_knows_is_refused() {
        for bad in [
            "%",
            "50% off",
            "%NO_SUCH_THING%",
            "%PROTOCOL(x)%",
            "%REQ()%",
            "%REQ(a?b?c)%",
            "%PATH(X)%",
            "%PATH(NQ:X)%",
            "%QUERY_PARAM()%",
            "a\r\nb",
            "%req(a)%",
        ] {
            assert!(parse(bad, "v", None, &mut Notes::new()).is_err(), "{bad}");
        }
    }
}
