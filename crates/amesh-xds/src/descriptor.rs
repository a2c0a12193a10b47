//! Resources as people write them: YAML or JSON in Envoy's own shape (protobuf's JSON mapping, field names as in the
//! `.proto` files or in camel case).
//!
//! A document is one of
//!
//! * a resource: an object with `"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster` and its fields,
//! * a list of resources,
//! * an object with `resources` (a `DiscoveryResponse`),
//! * an object with `static_resources` (a bootstrap): its `listeners` and `clusters`.
//!
//! Nothing is skipped: a field that does not exist is an error that names it.

use crate::translate;
use envoy_types::pb::google::protobuf::Any;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, Kind, MessageDescriptor, ReflectMessage};
use serde::Deserialize;
use serde_json::Value;
use std::sync::OnceLock;

/// Why a text cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The descriptors that this program carries cannot be read: a defect of the build.
    #[error("the descriptors of Envoy's types cannot be read: {0}")]
    Descriptors(String),
    /// It is no YAML, no JSON, or cut short.
    #[error("{file}: document {document}: {reason}")]
    Syntax {
        /// What was read.
        file: String,
        /// Which document, from 1.
        document: usize,
        /// What is wrong, with line and column.
        reason: String,
    },
    /// A resource is not what its type says.
    #[error("{file}: document {document}: resource \"{resource}\": {field}: {reason}")]
    Resource {
        /// What was read.
        file: String,
        /// Which document, from 1.
        document: usize,
        /// Its name, or its place when it has none.
        resource: String,
        /// Path of the field.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// A resource that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// Its name; empty when its type is not one that is translated.
    pub name: String,
    /// A hash of what was written: the same text, but for its layout, has the same version.
    pub version: String,
    /// The resource.
    pub any: Any,
}

/// The descriptors of all of Envoy's messages. They are unpacked when they are wanted first.
///
/// # Errors
/// [`Error::Descriptors`].
pub fn pool() -> Result<DescriptorPool, Error> {
    static POOL: OnceLock<Result<DescriptorPool, Error>> = OnceLock::new();
    POOL.get_or_init(|| {
        let bytes: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/envoy.bin"));
        DescriptorPool::decode(bytes).map_err(|e| Error::Descriptors(e.to_string()))
    })
    .clone()
}

/// The resources of a JSON text; `file` is for errors.
///
/// # Errors
/// [`Error`] names the place of what cannot be read.
pub fn from_json(file: &str, text: &str) -> Result<Vec<Resource>, Error> {
    let value = serde_json::from_str(text).map_err(|e| syntax(file, 1, &e))?;
    let mut out = Vec::new();
    Place { file, document: 1 }.document(value, &mut out)?;
    Ok(out)
}

/// The resources of a YAML text of any number of documents; `file` is for errors.
///
/// # Errors
/// [`Error`] names the place of what cannot be read.
pub fn from_yaml(file: &str, text: &str) -> Result<Vec<Resource>, Error> {
    let mut out = Vec::new();
    yaml(file, text, |document, value| Place { file, document }.document(value, &mut out))?;
    Ok(out)
}

/// Hands on each document of a text with its number, from 1.
fn yaml(file: &str, text: &str, mut each: impl FnMut(usize, Value) -> Result<(), Error>) -> Result<(), Error> {
    for (i, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let number = i + 1;
        // By YAML's own value, which finds keys that are there twice.
        let mut yaml = serde_yaml_ng::Value::deserialize(document).map_err(|e| syntax(file, number, &e))?;
        yaml.apply_merge().map_err(|e| syntax(file, number, &e))?;
        each(number, serde_json::to_value(yaml).map_err(|e| syntax(file, number, &e))?)?;
    }
    Ok(())
}

/// The one document of a text in YAML or JSON; `file` is for errors.
///
/// # Errors
/// [`Error::Syntax`], also when there is no document or more than one.
pub fn document(file: &str, text: &str) -> Result<Value, Error> {
    // YAML's flow style is JSON, but that it takes no tabs; and as Envoy's reader it takes a comma before a bracket.
    if let Ok(value) = serde_json::from_str(text) {
        return Ok(value);
    }
    let mut documents = Vec::new();
    yaml(file, text, |_, value| {
        documents.push(value);
        Ok(())
    })?;
    let count = documents.len();
    match documents.pop() {
        Some(value) if count == 1 => Ok(value),
        _ => Err(syntax(file, 1, &format!("has {count} documents, one is needed"))),
    }
}

/// The message that a text in YAML or JSON is, with or without its `@type`; `type_url` says which.
///
/// # Errors
/// [`Error`] names the place of what cannot be read.
pub fn message<M: Message + Default>(file: &str, text: &str, type_url: &str) -> Result<M, Error> {
    message_of(file, document(file, text)?, type_url)
}

/// As [`message`], of a document that was read.
///
/// # Errors
/// As [`message`].
pub fn message_of<M: Message + Default>(file: &str, value: Value, type_url: &str) -> Result<M, Error> {
    let place = Place { file, document: 1 };
    let mut out = Vec::new();
    place.resource("", value, Some(type_url), &mut out)?;
    let bytes = out.first().map_or(&[][..], |resource| &resource.any.value);
    M::decode(bytes).map_err(|e| place.error("", "", e.to_string()))
}

/// Paths of the deprecated fields that a message uses, as it is known by its `type_url`; also within [`Any`]s.
///
/// # Errors
/// [`Error::Descriptors`], also when the type is not known.
pub fn deprecated<M: Message>(message: &M, type_url: &str) -> Result<Vec<String>, Error> {
    let name = type_url.rsplit('/').next().unwrap_or_default();
    let broken = |reason: &dyn std::fmt::Display| Error::Descriptors(format!("{name}: {reason}"));
    let descriptor = pool()?.get_message_by_name(name).ok_or_else(|| broken(&"is no type of Envoy's"))?;
    let dynamic = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice()).map_err(|e| broken(&e))?;
    let mut found = Vec::new();
    find_deprecated(&dynamic, "", &mut found);
    Ok(found)
}

fn find_deprecated(message: &DynamicMessage, at: &str, found: &mut Vec<String>) {
    if message.descriptor().full_name() == "google.protobuf.Any" {
        let inner = message.transcode_to::<Any>().ok().and_then(|any| {
            let name = any.type_url.rsplit('/').next()?;
            let known = message.descriptor().parent_pool().get_message_by_name(name)?;
            DynamicMessage::decode(known, any.value.as_slice()).ok()
        });
        if let Some(inner) = inner {
            find_deprecated(&inner, at, found);
        }
        return;
    }
    for (field, value) in message.fields() {
        let dot = if at.is_empty() { "" } else { "." };
        let path = format!("{at}{dot}{}", field.name());
        if field.field_descriptor_proto().options.as_ref().is_some_and(|o| o.deprecated()) {
            found.push(path);
            continue;
        }
        match value {
            prost_reflect::Value::Message(inner) => find_deprecated(inner, &path, found),
            prost_reflect::Value::List(list) => {
                for (i, inner) in list.iter().enumerate().filter_map(|(i, v)| Some((i, v.as_message()?))) {
                    find_deprecated(inner, &format!("{path}[{i}]"), found);
                }
            }
            prost_reflect::Value::Map(map) => {
                for (key, inner) in map.iter().filter_map(|(key, v)| Some((key.as_str()?, v.as_message()?))) {
                    find_deprecated(inner, &format!("{path}[\"{key}\"]"), found);
                }
            }
            _ => {}
        }
    }
}

fn syntax(file: &str, document: usize, e: &dyn std::fmt::Display) -> Error {
    Error::Syntax { file: file.to_owned(), document, reason: e.to_string() }
}

#[derive(Clone, Copy)]
struct Place<'a> {
    file: &'a str,
    document: usize,
}

impl Place<'_> {
    fn error(self, resource: &str, field: &str, reason: impl Into<String>) -> Error {
        Error::Resource {
            file: self.file.to_owned(),
            document: self.document,
            resource: resource.to_owned(),
            field: field.to_owned(),
            reason: reason.into(),
        }
    }

    fn document(self, value: Value, out: &mut Vec<Resource>) -> Result<(), Error> {
        const BOOTSTRAP: &str = "type.googleapis.com/envoy.config.bootstrap.v3.Bootstrap";
        const RESPONSE: &str = "type.googleapis.com/envoy.service.discovery.v3.DiscoveryResponse";
        match value {
            Value::Null => Ok(()),
            Value::Array(list) => self.list("", list, None, out),
            Value::Object(mut fields) => {
                let kind = fields.get("@type").and_then(Value::as_str).unwrap_or_default();
                if !kind.is_empty() && kind != BOOTSTRAP && kind != RESPONSE {
                    return self.resource("", Value::Object(fields), None, out);
                }
                fields.remove("@type");
                match (fields.remove("resources"), fields.remove("static_resources")) {
                    (Some(resources), None) => {
                        for ours in ["version_info", "type_url", "nonce", "canary", "control_plane"] {
                            fields.remove(ours);
                        }
                        self.nothing_else(&fields, "a list of resources")?;
                        self.list("resources", as_list(resources), None, out)
                    }
                    (None, Some(Value::Object(mut bootstrap))) => {
                        self.nothing_else(&fields, "of a bootstrap only static_resources is read")?;
                        let listeners = bootstrap.remove("listeners").map(as_list).unwrap_or_default();
                        let clusters = bootstrap.remove("clusters").map(as_list).unwrap_or_default();
                        self.nothing_else(&bootstrap, "of static_resources only listeners and clusters are read")?;
                        self.list("static_resources.clusters", clusters, Some(translate::CLUSTER), out)?;
                        self.list("static_resources.listeners", listeners, Some(translate::LISTENER), out)
                    }
                    _ => Err(self.error(
                        "",
                        "@type",
                        "is not set: write \"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster, or what it is",
                    )),
                }
            }
            other => Err(self.error("", "", format!("is {}, not a resource or a list of resources", kind_of(&other)))),
        }
    }

    fn nothing_else(self, fields: &serde_json::Map<String, Value>, why: &str) -> Result<(), Error> {
        match fields.keys().next() {
            None => Ok(()),
            Some(key) => Err(self.error("", key, format!("has no place here: {why}"))),
        }
    }

    fn list(self, at: &str, list: Vec<Value>, kind: Option<&str>, out: &mut Vec<Resource>) -> Result<(), Error> {
        for (i, value) in list.into_iter().enumerate() {
            self.resource(&format!("{at}[{i}]"), value, kind, out)?;
        }
        Ok(())
    }

    fn resource(self, at: &str, value: Value, kind: Option<&str>, out: &mut Vec<Resource>) -> Result<(), Error> {
        let Value::Object(mut fields) = value else {
            return Err(self.error(at, "", format!("is {}, not an object", kind_of(&value))));
        };
        let named = ["name", "cluster_name", "clusterName"].iter().find_map(|k| fields.get(*k)?.as_str());
        let label = named.unwrap_or(at).to_owned();
        // A `Resource` of delta discovery around a resource.
        if fields.get("@type").and_then(Value::as_str)
            == Some("type.googleapis.com/envoy.service.discovery.v3.Resource")
        {
            let inner = fields.remove("resource").unwrap_or(Value::Null);
            return self.resource(&format!("{label}.resource"), inner, None, out);
        }
        let version = format!("{:016x}", xxhash_rust::xxh3::xxh3_64(canonical(&fields).as_bytes()));
        let type_url = match (fields.remove("@type"), kind) {
            (Some(Value::String(t)), None) => t,
            (Some(Value::String(t)), Some(k)) if t == k => t,
            (None, Some(k)) => k.to_owned(),
            (None, None) => return Err(self.error(&label, "@type", "is not set: nothing says what it is")),
            (Some(other), _) => return Err(self.error(&label, "@type", format!("{other} has no place here"))),
        };
        let message = type_url.rsplit('/').next().unwrap_or_default();
        let Some(descriptor) = pool()?.get_message_by_name(message) else {
            return Err(self.error(&label, "@type", format!("\"{type_url}\" is no type of Envoy's")));
        };
        spell_durations(&mut fields, &descriptor);
        let mut track = serde_path_to_error::Track::new();
        let deserializer = serde_path_to_error::Deserializer::new(Value::Object(fields), &mut track);
        let dynamic = DynamicMessage::deserialize(descriptor, deserializer)
            .map_err(|e| self.error(&label, &field(&track.path().to_string(), &e.to_string()), e.to_string()))?;
        let any = Any { type_url, value: dynamic.encode_to_vec() };
        out.push(Resource { name: translate::resource_name(&any).unwrap_or_default(), version, any });
        Ok(())
    }
}

/// Writes durations as texts (`1.5s`), which is their only form in protobuf's JSON: Envoy also takes them as the message
/// that they are, `{seconds: 1, nanos: 500000000}`.
fn spell_durations(fields: &mut serde_json::Map<String, Value>, message: &MessageDescriptor) {
    for (name, value) in fields {
        let field = message.get_field_by_name(name).or_else(|| message.get_field_by_json_name(name));
        // The values of maps are left as they are: Envoy has no map of durations, nor of what has some inside.
        let Some(Kind::Message(inner)) = field.filter(|f| !f.is_map()).map(|f| f.kind()) else { continue };
        let values = match value {
            Value::Array(list) => list.as_mut_slice(),
            one => std::slice::from_mut(one),
        };
        for value in values {
            let Value::Object(fields) = value else { continue };
            match inner.full_name() {
                "google.protobuf.Duration" => {
                    if let Some(text) = duration(fields) {
                        *value = Value::String(text);
                    }
                }
                "google.protobuf.Any" => {
                    let kind = fields.get("@type").and_then(Value::as_str).and_then(|t| t.rsplit('/').next());
                    let known = kind.and_then(|name| inner.parent_pool().get_message_by_name(name));
                    if let Some(known) = known {
                        spell_durations(fields, &known);
                    }
                }
                _ => spell_durations(fields, &inner),
            }
        }
    }
}

/// The text of a duration with these fields, and no others.
fn duration(fields: &serde_json::Map<String, Value>) -> Option<String> {
    let number = |name: &str| fields.get(name).map_or(Some(0), Value::as_i64);
    let (seconds, nanos) = (number("seconds")?, number("nanos")?);
    let known = fields.keys().all(|name| name == "seconds" || name == "nanos");
    let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
    (known && seconds.signum() * nanos.signum() >= 0 && nanos.unsigned_abs() < 1_000_000_000)
        .then(|| format!("{sign}{}.{:09}s", seconds.unsigned_abs(), nanos.unsigned_abs()))
}

/// The field that an error is about: a field that does not exist is not part of the path where it was found.
fn field(path: &str, reason: &str) -> String {
    let path = if path == "." { "" } else { path };
    let unknown = reason.strip_prefix("unrecognized field name '").and_then(|r| r.split('\'').next());
    match unknown {
        None => path.to_owned(),
        Some(name) if path.is_empty() => name.to_owned(),
        Some(name) => format!("{path}.{name}"),
    }
}

fn as_list(value: Value) -> Vec<Value> {
    match value {
        Value::Array(list) => list,
        Value::Null => Vec::new(),
        other => vec![other],
    }
}

/// The text of an object with its keys in order, at every depth.
fn canonical(fields: &serde_json::Map<String, Value>) -> String {
    fn write(value: &Value, out: &mut String) {
        match value {
            Value::Object(fields) => {
                out.push('{');
                let mut keys: Vec<_> = fields.iter().collect();
                keys.sort_by_key(|(k, _)| *k);
                for (key, value) in keys {
                    out.push_str(&Value::String(key.clone()).to_string());
                    out.push(':');
                    write(value, out);
                    out.push(',');
                }
                out.push('}');
            }
            Value::Array(list) => {
                out.push('[');
                for value in list {
                    write(value, out);
                    out.push(',');
                }
                out.push(']');
            }
            other => out.push_str(&other.to_string()),
        }
    }
    let mut out = String::new();
    write(&Value::Object(fields.clone()), &mut out);
    out
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
