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
use prost_reflect::{DescriptorPool, DynamicMessage};
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
    for (i, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let document_number = i + 1;
        // By YAML's own value, which finds keys that are there twice.
        let mut yaml = serde_yaml_ng::Value::deserialize(document).map_err(|e| syntax(file, document_number, &e))?;
        yaml.apply_merge().map_err(|e| syntax(file, document_number, &e))?;
        let value = serde_json::to_value(yaml).map_err(|e| syntax(file, document_number, &e))?;
        Place { file, document: document_number }.document(value, &mut out)?;
    }
    Ok(out)
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
        let mut track = serde_path_to_error::Track::new();
        let deserializer = serde_path_to_error::Deserializer::new(Value::Object(fields), &mut track);
        let dynamic = DynamicMessage::deserialize(descriptor, deserializer)
            .map_err(|e| self.error(&label, &field(&track.path().to_string(), &e.to_string()), e.to_string()))?;
        let any = Any { type_url, value: dynamic.encode_to_vec() };
        out.push(Resource { name: translate::resource_name(&any).unwrap_or_default(), version, any });
        Ok(())
    }
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
