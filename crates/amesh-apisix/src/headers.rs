//! Header edits of all levels as one: what becomes of each header in the end.

use crate::matchers::header_variable;
use amesh_model::header::{AppendAction, Format, HeaderEdits, HeaderValueOption};
use serde_json::{json, Map, Value};
use std::collections::BTreeMap;

/// What becomes of a header.
#[derive(Clone, Debug, PartialEq)]
enum Edit {
    Remove,
    Set(Vec<String>),
    Append(Vec<String>),
}

/// Facts of a route that its header edits may name.
pub(crate) struct Names<'a> {
    /// `%ROUTE_NAME%`.
    pub route: &'a str,
    /// `%UPSTREAM_CLUSTER%`, where there is one only.
    pub cluster: Option<&'a str>,
}

/// Which message is edited.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Message {
    /// The request.
    Request,
    /// The response.
    Response,
}

/// `headers` of `proxy-rewrite` or `response-rewrite`; `None`: nothing is edited. `levels` are in the order in which Envoy
/// goes through them.
pub(crate) fn edits(levels: &[&HeaderEdits], message: Message, names: &Names<'_>) -> Result<Option<Value>, String> {
    let mut edits: BTreeMap<String, Edit> = BTreeMap::new();
    for level in levels {
        let (remove, add) = match message {
            Message::Request => (&level.request_remove, &level.request_add),
            Message::Response => (&level.response_remove, &level.response_add),
        };
        edits.extend(remove.iter().map(|name| (name.clone(), Edit::Remove)));
        for option in add {
            let value = value(option, message, names)?;
            let edit = apply(edits.remove(&option.key), option, value)?;
            edits.insert(option.key.clone(), edit);
        }
    }
    let (mut set, mut add, mut remove) = (Map::new(), Map::new(), Vec::new());
    for (name, edit) in edits {
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) {
            return Err(format!("the header \"{name}\" cannot be edited"));
        }
        match edit {
            Edit::Remove => remove.push(json!(name)),
            Edit::Set(values) if values.len() > 1 && name == "set-cookie" => {
                return Err("several lines of set-cookie cannot be set".to_owned())
            }
            Edit::Set(values) => drop(set.insert(name, json!(values.join(",")))),
            Edit::Append(values) => drop(add.insert(name, json!(values.join(",")))),
        }
    }
    let mut out = Map::new();
    if !set.is_empty() {
        out.insert("set".into(), Value::Object(set));
    }
    if !add.is_empty() {
        let add = match message {
            Message::Request => Value::Object(add),
            Message::Response => lines(add)?,
        };
        out.insert("add".into(), add);
    }
    if !remove.is_empty() {
        out.insert("remove".into(), Value::Array(remove));
    }
    Ok((!out.is_empty()).then_some(Value::Object(out)))
}

/// `add` of `response-rewrite` is a list of lines. It takes no value with a colon.
fn lines(add: Map<String, Value>) -> Result<Value, String> {
    let line = |(name, value): (String, Value)| match value.as_str() {
        Some(value) if !value.is_empty() && !value.contains(':') && !value.ends_with('/') => {
            Ok(json!(format!("{name}: {value}")))
        }
        _ => Err(format!("response-rewrite cannot add this value of \"{name}\"")),
    };
    add.into_iter().map(line).collect()
}

fn apply(now: Option<Edit>, option: &HeaderValueOption, value: String) -> Result<Edit, String> {
    let too = |mut values: Vec<String>, value| {
        values.push(value);
        values
    };
    let unknown = |action| Err(format!("whether to {action} \"{}\" depends on whether it is there", option.key));
    match (option.append_action, now) {
        (AppendAction::OverwriteIfExistsOrAdd, _) => Ok(Edit::Set(vec![value])),
        (AppendAction::AppendIfExistsOrAdd, None) => Ok(Edit::Append(vec![value])),
        (AppendAction::AppendIfExistsOrAdd, Some(Edit::Append(values))) => Ok(Edit::Append(too(values, value))),
        (AppendAction::AppendIfExistsOrAdd, Some(Edit::Set(values))) => Ok(Edit::Set(too(values, value))),
        (AppendAction::AppendIfExistsOrAdd | AppendAction::AddIfAbsent, Some(Edit::Remove)) => {
            Ok(Edit::Set(vec![value]))
        }
        (AppendAction::AddIfAbsent, Some(there)) => Ok(there),
        (AppendAction::AddIfAbsent, None) => unknown("add"),
        (AppendAction::OverwriteIfExists, Some(Edit::Remove)) => Ok(Edit::Remove),
        (AppendAction::OverwriteIfExists, Some(_)) => Ok(Edit::Set(vec![value])),
        (AppendAction::OverwriteIfExists, None) => unknown("overwrite"),
    }
}

/// A value, with variables of nginx for Envoy's commands.
fn value(option: &HeaderValueOption, message: Message, names: &Names<'_>) -> Result<String, String> {
    let mut out = String::new();
    for part in &option.value {
        match part {
            Format::Text(text) => out.push_str(plain(text)?),
            Format::Req { name, alternative, max: 0 } if alternative.is_empty() => {
                out.push_str(&format!("${{{}}}", header_variable(name)?));
            }
            Format::DownstreamRemoteAddressWithoutPort => out.push_str("${remote_addr}"),
            Format::DownstreamRemotePort => out.push_str("${remote_port}"),
            Format::DownstreamLocalPort => out.push_str("${server_port}"),
            Format::RequestedServerName => out.push_str("${ssl_server_name}"),
            Format::Protocol => out.push_str("${server_protocol}"),
            Format::ResponseCode if message == Message::Response => out.push_str("${status}"),
            Format::RouteName => out.push_str(plain(names.route)?),
            Format::UpstreamCluster if names.cluster.is_some() => out.push_str(plain(names.cluster.unwrap_or(""))?),
            other => return Err(format!("the value of the header \"{}\" has {other:?} in it", option.key)),
        }
    }
    if out.contains(['\r', '\n']) {
        return Err(format!("the value of the header \"{}\" has a line break in it", option.key));
    }
    Ok(out)
}

/// A text that APISIX takes as it is. It replaces variables in many texts, and knows no way to write a dollar before a word.
pub(crate) fn plain(text: &str) -> Result<&str, String> {
    let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'{');
    match text.as_bytes().windows(2).any(|pair| matches!(pair, [b'$', next] if word(*next))) || text.ends_with('$') {
        true => Err(format!("APISIX would take a part of \"{text}\" for a variable")),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(key: &str, value: &str, append_action: AppendAction) -> HeaderValueOption {
        HeaderValueOption {
            key: key.into(),
            value: vec![Format::Text(value.into())],
            append_action,
            keep_empty_value: false,
        }
    }

    fn of(levels: &[&HeaderEdits], message: Message) -> Result<Value, String> {
        edits(levels, message, &Names { route: "r", cluster: Some("c") }).map(Option::unwrap_or_default)
    }

    #[test]
    fn later_levels_go_on_where_earlier_ones_left_off() {
        use AppendAction::*;
        let route = HeaderEdits {
            request_add: vec![option("a", "1", AppendIfExistsOrAdd), option("b", "1", OverwriteIfExistsOrAdd)],
            request_remove: vec!["c".into(), "d".into()],
            ..HeaderEdits::default()
        };
        let host = HeaderEdits {
            request_add: vec![
                option("a", "2", AppendIfExistsOrAdd),
                option("b", "2", AppendIfExistsOrAdd),
                option("c", "2", AddIfAbsent),
            ],
            ..HeaderEdits::default()
        };
        let wanted = json!({"set": {"b": "1,2", "c": "2"}, "add": {"a": "1,2"}, "remove": ["d"]});
        assert_eq!(of(&[&route, &host], Message::Request).unwrap(), wanted);
        assert_eq!(of(&[&route], Message::Response).unwrap(), Value::Null);
    }

    #[test]
    fn what_depends_on_the_message_is_an_error() {
        for action in [AppendAction::AddIfAbsent, AppendAction::OverwriteIfExists] {
            let edits = HeaderEdits { response_add: vec![option("a", "1", action)], ..HeaderEdits::default() };
            assert!(of(&[&edits], Message::Response).unwrap_err().contains("\"a\""));
        }
        let colon = option("a", "x:y", AppendAction::AppendIfExistsOrAdd);
        let edits = HeaderEdits { response_add: vec![colon], ..HeaderEdits::default() };
        assert!(of(&[&edits], Message::Response).is_err());
    }

    #[test]
    fn commands_are_variables_and_text_is_none() {
        let mut header = option("a", "is ", AppendAction::OverwriteIfExistsOrAdd);
        header.value.push(Format::Req { name: "x-b".into(), alternative: String::new(), max: 0 });
        header.value.push(Format::UpstreamCluster);
        let edits = |header| HeaderEdits { request_add: vec![header], ..HeaderEdits::default() };
        assert_eq!(of(&[&edits(header)], Message::Request).unwrap(), json!({"set": {"a": "is ${http_x_b}c"}}));
        let dollar = option("a", "$host", AppendAction::OverwriteIfExistsOrAdd);
        assert!(of(&[&edits(dollar)], Message::Request).unwrap_err().contains("variable"));
    }
}
