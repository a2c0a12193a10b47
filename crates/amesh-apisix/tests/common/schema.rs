//! What APISIX accepts, as far as the objects made here go: a small checker of the schemas in `tests/schemas`. They are
//! narrower than APISIX's own, so that a field of another name is an error.

use super::apisix::{compiles, finds};
use amesh_apisix::{Directory, Object};
use serde_json::Value;
use std::sync::OnceLock;

fn schema(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

struct Schemas {
    common: Value,
    upstream: Value,
    route: Value,
    stream_route: Value,
    plugin_config: Value,
    plugins: Value,
}

fn schemas() -> &'static Schemas {
    static SCHEMAS: OnceLock<Schemas> = OnceLock::new();
    SCHEMAS.get_or_init(|| Schemas {
        common: schema(include_str!("../schemas/common.json")),
        upstream: schema(include_str!("../schemas/upstream.json")),
        route: schema(include_str!("../schemas/route.json")),
        stream_route: schema(include_str!("../schemas/stream_route.json")),
        plugin_config: schema(include_str!("../schemas/plugin_config.json")),
        plugins: schema(include_str!("../schemas/plugins.json")),
    })
}

/// Fails by name on an object that APISIX would refuse.
pub fn assert_valid(object: &Object) {
    let json: Value = serde_json::from_str(&object.json).unwrap();
    if let Err(why) = valid(object.key.directory, &object.key.id, &json) {
        panic!("{}: {why}\n{}", object.key, object.json);
    }
}

/// Why APISIX would refuse an object.
pub fn valid(directory: Directory, id: &str, json: &Value) -> Result<(), String> {
    let all = schemas();
    let schema = match directory {
        Directory::Upstreams => &all.upstream,
        Directory::Routes => &all.route,
        Directory::StreamRoutes => &all.stream_route,
        Directory::PluginConfigs => &all.plugin_config,
        other => return Err(format!("there are no {other:?}")),
    };
    check(schema, json, "")?;
    if json["id"] != id {
        return Err("its id is not that of its key".to_owned());
    }
    if directory == Directory::PluginConfigs {
        return Ok(());
    }
    for (name, conf) in json["plugins"].as_object().into_iter().flatten() {
        let schema = all.plugins.get(name).ok_or_else(|| format!("no plugin is called {name}"))?;
        check(schema, conf, name)?;
        let no_star = ["allow_origins", "allow_methods", "allow_headers", "expose_headers"];
        if name == "cors" && conf["allow_credential"] == true && no_star.iter().any(|field| conf[field] == "*") {
            return Err("cors: with credentials nothing may be \"*\"".to_owned());
        }
        for fault in ["abort", "delay"].iter().filter_map(|kind| conf[*kind]["vars"].as_array()) {
            fault.iter().try_for_each(expression)?;
        }
    }
    if json["type"] == "chash" && json.get("key").is_none() && json["hash_on"] != "consumer" {
        return Err("chash needs a key".to_owned());
    }
    match json.get("vars") {
        Some(vars) => expression(vars),
        None => Ok(()),
    }
}

/// Whether lua-resty-expr would compile it.
fn expression(rules: &Value) -> Result<(), String> {
    let Some(rules) = rules.as_array() else { return Err(format!("{rules} is no rule")) };
    match rules.first() {
        None => Err("rule too short".to_owned()),
        Some(Value::Array(_)) => rules.iter().try_for_each(expression),
        Some(Value::String(op)) if ["OR", "!OR", "AND", "!AND"].contains(&op.to_uppercase().as_str()) => {
            match rules.len() {
                0..=2 => Err(format!("rule too short: {rules:?}")),
                _ => rules[1..].iter().try_for_each(expression),
            }
        }
        Some(Value::String(_)) => {
            let (op, value) = match rules.len() {
                3 => (&rules[1], &rules[2]),
                4 if rules[1] == "!" => (&rules[2], &rules[3]),
                _ => return Err(format!("invalid expression {rules:?}")),
            };
            let good = match op.as_str().unwrap_or_default() {
                "==" => value.is_string(),
                "~~" => value.as_str().is_some_and(compiles),
                "in" => value.as_array().is_some_and(|all| all.iter().all(Value::is_string)),
                ">" | "<" => value.is_number(),
                _ => false,
            };
            good.then_some(()).ok_or_else(|| format!("invalid operator or value in {rules:?}"))
        }
        Some(other) => Err(format!("{other} is no rule")),
    }
}

fn check(schema: &Value, json: &Value, place: &str) -> Result<(), String> {
    let fail = |what: &str| Err(format!("{place}: {json} {what}"));
    if let Some(name) = schema["$ref"].as_str() {
        return check(&schemas().common[name], json, place);
    }
    let of_type = match schema["type"].as_str() {
        Some("object") => json.is_object(),
        Some("array") => json.is_array(),
        Some("string") => json.is_string(),
        Some("boolean") => json.is_boolean(),
        Some("integer") => json.is_i64() || json.is_u64(),
        Some("number") => json.is_number(),
        Some(other) => panic!("the schema has the type {other}"),
        None => true,
    };
    if !of_type {
        return fail("is of another type");
    }
    if schema["enum"].as_array().is_some_and(|all| !all.contains(json)) {
        return fail("is none of the values");
    }
    let required = |schema: &Value| {
        schema["required"].as_array().into_iter().flatten().all(|name| json.get(name.as_str().unwrap()).is_some())
    };
    if !required(schema) {
        return fail("lacks a field");
    }
    if schema["oneOf"].as_array().is_some_and(|all| all.iter().filter(|one| required(one)).count() != 1) {
        return fail("is not one of several");
    }
    if schema["anyOf"].as_array().is_some_and(|all| !all.iter().any(required)) {
        return fail("is none of several");
    }
    if let Some(object) = json.as_object() {
        if schema["minProperties"].as_u64().is_some_and(|least| (object.len() as u64) < least) {
            return fail("has too few fields");
        }
        for (name, value) in object {
            match (schema["properties"].get(name), schema.get("values")) {
                (Some(schema), _) | (None, Some(schema)) => check(schema, value, &format!("{place}.{name}"))?,
                (None, None) if schema["additionalProperties"] == false => return fail(&format!("has {name}")),
                (None, None) => {}
            }
        }
    }
    if let Some(array) = json.as_array() {
        let length = array.len() as u64;
        if schema["minItems"].as_u64().is_some_and(|n| length < n)
            || schema["maxItems"].as_u64().is_some_and(|n| length > n)
        {
            return fail("has too few elements, or too many");
        }
        if schema["uniqueItems"] == true && (1..array.len()).any(|at| array[..at].contains(&array[at])) {
            return fail("has an element twice");
        }
        if let Some(items) = schema.get("items") {
            array.iter().try_for_each(|item| check(items, item, &format!("{place}[]")))?;
        }
    }
    if let Some(text) = json.as_str() {
        let length = text.chars().count() as u64;
        if schema["minLength"].as_u64().is_some_and(|n| length < n)
            || schema["maxLength"].as_u64().is_some_and(|n| length > n)
        {
            return fail("is too short, or too long");
        }
        if schema["pattern"].as_str().is_some_and(|pattern| !finds(pattern, text)) {
            return fail("has another form");
        }
    }
    if let Some(number) = json.as_f64() {
        let out = schema["minimum"].as_f64().is_some_and(|least| number < least)
            || schema["maximum"].as_f64().is_some_and(|most| number > most)
            || schema["exclusiveMinimum"].as_f64().is_some_and(|least| number <= least);
        if out {
            return fail("is out of range");
        }
    }
    Ok(())
}
