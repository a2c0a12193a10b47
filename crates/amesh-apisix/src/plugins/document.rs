//! Reading of `AmeshPluginConfig` documents.

use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// `apiVersion` of the documents.
const API_VERSION: &str = "apisix.apache.org/v1alpha1";
/// `kind` of the documents.
const KIND: &str = "AmeshPluginConfig";

/// An `AmeshPluginConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Its file, and its namespace and name: `limits.yaml: default/limits`.
    pub name: String,
    /// `spec.selector`: all must hold.
    selector: Vec<Requirement>,
    /// `spec.plugins`: the configuration of each, by its name.
    pub plugins: Map<String, Value>,
}

/// Why a file is not taken. The last good one stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}, document {number}{place}: {reason}; the file keeps what it said before")]
pub struct DocumentError {
    /// The file.
    pub file: String,
    /// Which document of it, from 1.
    pub number: usize,
    /// Where in it, after a comma; empty: as a whole.
    place: String,
    /// What is wrong with it.
    pub reason: String,
}

/// What is asked of a label (`LabelSelectorRequirement`).
#[derive(Clone, Debug, PartialEq)]
struct Requirement {
    key: String,
    rule: Rule,
}

#[derive(Clone, Debug, PartialEq)]
enum Rule {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

impl Document {
    /// Whether it is meant for a workload with these labels. Without a selector it is meant for all.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.selector.iter().all(|wanted| {
            let value = labels.get(&wanted.key);
            match &wanted.rule {
                Rule::In(values) => value.is_some_and(|value| values.contains(value)),
                Rule::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
                Rule::Exists => value.is_some(),
                Rule::DoesNotExist => value.is_none(),
            }
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Outer {
    api_version: String,
    kind: String,
    #[serde(default)]
    metadata: Metadata,
    spec: Spec,
    /// Written by the controller; of no interest.
    #[serde(default, rename = "status")]
    _status: Value,
}

/// Kubernetes has many more fields here.
#[derive(Deserialize, Default)]
struct Metadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Spec {
    #[serde(default)]
    selector: Option<Selector>,
    plugins: Vec<Plugin>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Selector {
    #[serde(default)]
    match_labels: BTreeMap<String, String>,
    #[serde(default)]
    match_expressions: Vec<Expression>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expression {
    key: String,
    operator: String,
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plugin {
    name: String,
    config: Value,
    /// `pre-req` or `post-req`. APISIX runs plugins in the order of their own priorities.
    #[serde(default, rename = "type")]
    kind: String,
}

/// The documents of a file.
///
/// # Errors
/// [`DocumentError`] for the first thing that makes no sense: then no document of the file is taken.
pub fn parse(file: &str, text: &str) -> Result<Vec<Document>, DocumentError> {
    let mut out = Vec::new();
    for (number, yaml) in (1..).zip(serde_yaml_ng::Deserializer::from_str(text)) {
        let fail = |(place, reason): (String, String)| DocumentError { file: file.to_owned(), number, place, reason };
        let whole = |reason: serde_yaml_ng::Error| fail((String::new(), reason.to_string()));
        let value = serde_yaml_ng::Value::deserialize(yaml).map_err(whole)?;
        if value.is_null() {
            continue;
        }
        let outer: Outer = serde_yaml_ng::from_value(value).map_err(whole)?;
        out.push(document(file, outer).map_err(fail)?);
    }
    Ok(out)
}

fn document(file: &str, outer: Outer) -> Result<Document, (String, String)> {
    let whole = |reason: String| Err((String::new(), reason));
    if outer.api_version != API_VERSION || outer.kind != KIND {
        return whole(format!("{} of {} is no {KIND} of {API_VERSION}", outer.kind, outer.api_version));
    }
    let selector = outer.spec.selector.unwrap_or_default();
    let mut wanted: Vec<Requirement> = selector
        .match_labels
        .into_iter()
        .map(|(key, value)| Requirement { key, rule: Rule::In(vec![value]) })
        .collect();
    for Expression { key, operator, values } in selector.match_expressions {
        let rule = match (operator.as_str(), values.is_empty()) {
            ("In", false) => Rule::In(values),
            ("NotIn", false) => Rule::NotIn(values),
            ("Exists", true) => Rule::Exists,
            ("DoesNotExist", true) => Rule::DoesNotExist,
            ("In" | "NotIn", true) => return whole(format!("selector: {operator} of \"{key}\" needs values")),
            ("Exists" | "DoesNotExist", false) => {
                return whole(format!("selector: {operator} of \"{key}\" takes no values"))
            }
            _ => return whole(format!("selector: \"{operator}\" is none of In, NotIn, Exists, DoesNotExist")),
        };
        wanted.push(Requirement { key, rule });
    }
    let mut plugins = Map::new();
    for Plugin { name, config, kind } in outer.spec.plugins {
        let fail = |reason: String| Err((format!(", plugin \"{name}\""), reason));
        if name.is_empty() {
            return fail("it has no name".to_owned());
        }
        if !matches!(kind.as_str(), "" | "pre-req" | "post-req") {
            return fail(format!("its type \"{kind}\" is neither pre-req nor post-req"));
        }
        let config = match config {
            Value::String(text) => match serde_json::from_str(&text) {
                Ok(value) => value,
                Err(error) => return fail(format!("its config is no JSON: {error}")),
            },
            config => config,
        };
        if !config.is_object() {
            return fail("its config is no object".to_owned());
        }
        if plugins.insert(name.clone(), config).is_some() {
            return fail("it is there twice".to_owned());
        }
    }
    let Metadata { name, namespace } = outer.metadata;
    let full = if namespace.is_empty() { name } else { format!("{namespace}/{name}") };
    Ok(Document { name: format!("{file}: {full}"), selector: wanted, plugins })
}
