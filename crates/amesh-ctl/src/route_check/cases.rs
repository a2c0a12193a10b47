//! The file of tests (`test/tools/router_check/validation.proto` of Envoy).

use super::{read, Error};
use amesh_model::matcher::HeaderMatcher;
use amesh_xds::descriptor;
use amesh_xds::translate::{self, Notes};
use envoy_types::pb::envoy::config::route::v3 as pb;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use std::path::Path;

const HEADER_MATCHER: &str = "type.googleapis.com/envoy.config.route.v3.HeaderMatcher";

/// A file of tests (`Validation`).
pub struct Cases {
    /// The tests, in their order.
    pub tests: Vec<Case>,
    notes: Vec<String>,
}

/// One test (`ValidationItem`).
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Its name; not empty, not unique.
    #[serde(alias = "testName")]
    pub test_name: String,
    /// The request.
    pub input: Input,
    /// What is expected.
    pub validate: Validate,
}

/// A request (`ValidationInput`).
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// `:authority`.
    pub authority: String,
    /// `:path`.
    pub path: String,
    /// `:method`.
    pub method: String,
    /// The number that chooses between weighted clusters and within runtime fractions.
    #[serde(default, alias = "randomValue", deserialize_with = "number")]
    pub random_value: u64,
    /// It came by TLS.
    #[serde(default)]
    pub ssl: bool,
    /// It came from inside the mesh: `x-envoy-internal` is `true`.
    #[serde(default)]
    pub internal: bool,
    /// The one runtime key that is on.
    #[serde(default)]
    pub runtime: String,
    /// Further headers of the request.
    #[serde(default, alias = "additionalRequestHeaders")]
    pub additional_request_headers: Vec<HeaderValue>,
    /// Headers of the response.
    #[serde(default, alias = "additionalResponseHeaders")]
    pub additional_response_headers: Vec<HeaderValue>,
    /// What filters have set.
    #[serde(default, alias = "dynamicMetadata")]
    pub dynamic_metadata: Vec<Metadata>,
}

/// A header (`config.core.v3.HeaderValue`).
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderValue {
    /// Its name.
    pub key: String,
    /// Its value.
    #[serde(default)]
    pub value: String,
}

/// Metadata of one namespace (`extensions.filters.http.set_metadata.v3.Metadata`).
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// The namespace.
    #[serde(alias = "metadataNamespace")]
    pub metadata_namespace: String,
    /// What is in it.
    #[serde(default)]
    pub value: Map<String, Value>,
    /// It takes the place of what was in the namespace.
    #[serde(default, alias = "allowOverwrite")]
    pub allow_overwrite: bool,
}

/// What is expected (`ValidationAssert`); what is not given is not compared. An empty text: there is none.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Validate {
    /// The cluster.
    #[serde(alias = "clusterName")]
    pub cluster_name: Option<String>,
    /// The virtual cluster.
    #[serde(alias = "virtualClusterName")]
    pub virtual_cluster_name: Option<String>,
    /// The virtual host.
    #[serde(alias = "virtualHostName")]
    pub virtual_host_name: Option<String>,
    /// The host that goes upstream.
    #[serde(alias = "hostRewrite")]
    pub host_rewrite: Option<String>,
    /// The path that goes upstream.
    #[serde(alias = "pathRewrite")]
    pub path_rewrite: Option<String>,
    /// Where it is redirected to.
    #[serde(alias = "pathRedirect")]
    pub path_redirect: Option<String>,
    /// The status of a redirect or of a direct response.
    #[serde(alias = "codeRedirect")]
    pub code_redirect: Option<u16>,
    /// The time for the response, as protobuf's JSON writes it: `1.5s`.
    pub timeout: Option<String>,
    /// Values in the route's own metadata.
    #[serde(default, alias = "routeMetadata")]
    pub route_metadata: Vec<RouteMetadata>,
    /// Values of request headers.
    #[serde(default, alias = "requestHeaderFields")]
    pub request_header_fields: Vec<HeaderValue>,
    /// Values of response headers.
    #[serde(default, alias = "responseHeaderFields")]
    pub response_header_fields: Vec<HeaderValue>,
    /// What request headers must look like.
    #[serde(default, alias = "requestHeaderMatches")]
    pub request_header_matches: Vec<Expected>,
    /// What response headers must look like.
    #[serde(default, alias = "responseHeaderMatches")]
    pub response_header_matches: Vec<Expected>,
}

/// A text in the route's own metadata (`Route.metadata`).
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteMetadata {
    /// The namespace within `filter_metadata`.
    pub namespace: String,
    /// The key.
    pub key: String,
    /// The text.
    pub value: String,
}

/// A matcher of a header: as it is written until [`Cases::read`] has made a matcher of it.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct Expected {
    written: Value,
    /// As the model has it; always there in tests that were read.
    #[serde(skip)]
    pub matcher: Option<HeaderMatcher>,
}

/// A `uint64` may be a number or a text in protobuf's JSON.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    use serde::de::Error as _;
    match Value::deserialize(deserializer)? {
        Value::Number(n) => n.as_u64(),
        Value::String(s) => s.parse().ok(),
        _ => None,
    }
    .ok_or_else(|| D::Error::custom("is no number from 0 to 18446744073709551615"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    tests: Vec<Case>,
    #[serde(default)]
    runtime: Map<String, Value>,
}

impl Cases {
    /// Reads a file of tests.
    ///
    /// # Errors
    /// [`Error`] names the file, the test and the field.
    pub fn read(path: &Path) -> Result<Cases, Error> {
        let file = path.display().to_string();
        let value = descriptor::document(&file, &read(path)?)?;
        let wrong = |at: String, reason: String| Error::Cases { path: path.to_owned(), at, reason };
        let File { mut tests, runtime } =
            serde_path_to_error::deserialize(value).map_err(|e| wrong(e.path().to_string(), e.inner().to_string()))?;
        if tests.is_empty() {
            return Err(wrong("tests".into(), "is empty".into()));
        }
        let mut notes = Vec::new();
        if let Some(key) = runtime.keys().next() {
            notes.push(format!("ignored: runtime: {key}: the limits of this router are its own"));
        }
        for (index, case) in tests.iter_mut().enumerate() {
            let at = |field: &str| format!("tests[{index}] \"{}\": {field}", case.test_name);
            let Input { authority, path, method, .. } = &case.input;
            let short = [("test_name", &case.test_name, 1), ("authority", authority, 1), ("path", path, 1)];
            for (field, text, least) in short.into_iter().chain([("method", method, 3)]) {
                if text.len() < least {
                    return Err(wrong(at(field), format!("is shorter than {least} characters")));
                }
            }
            let at = at("validate");
            let lists = [&mut case.validate.request_header_matches, &mut case.validate.response_header_matches];
            for expected in lists.into_iter().flatten() {
                expected.matcher = Some(header_matcher(&file, &expected.written, |e| wrong(at.clone(), e))?);
            }
        }
        Ok(Cases { tests, notes })
    }

    /// What of the file is not acted on, a line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

fn header_matcher(file: &str, written: &Value, wrong: impl Fn(String) -> Error) -> Result<HeaderMatcher, Error> {
    let matcher: pb::HeaderMatcher = descriptor::message_of(file, written.clone(), HEADER_MATCHER)?;
    translate::header_matcher(&matcher, &mut Notes::new()).map_err(|e| wrong(e.to_string()))
}
