//! The request of a test, and the response to it, as the router sees them.

use super::cases::Input;
use amesh_dataplane::header::{Command, FormatContext, HeaderMap};
use amesh_dataplane::route::{MetadataValue, RequestHead};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Lines of a message's head. Names are lower case.
#[derive(Clone, Debug, Default)]
pub struct Lines(Vec<(String, Vec<u8>)>);

impl Lines {
    /// The first value of a header.
    pub fn first(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_slice())
    }

    fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_slice())
    }
}

impl HeaderMap for Lines {
    fn get(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        self.first(name).map(Cow::Borrowed)
    }

    fn set(&mut self, name: &str, value: &[u8]) {
        self.remove(name);
        self.append(name, value);
    }

    fn append(&mut self, name: &str, value: &[u8]) {
        self.0.push((name.to_owned(), value.to_owned()));
    }

    fn remove(&mut self, name: &str) {
        self.0.retain(|(n, _)| n != name);
    }
}

/// A request.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// What the test says of it.
    input: &'a Input,
    /// The dynamic metadata by their namespace.
    metadata: BTreeMap<&'a str, &'a Map<String, Value>>,
    /// The method.
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// The host.
    pub host: String,
    /// All other headers.
    pub headers: Lines,
}

impl<'a> Request<'a> {
    /// The request of a test.
    pub fn new(input: &'a Input) -> Request<'a> {
        let mut headers = Lines::default();
        headers.append("x-forwarded-proto", if input.ssl { b"https" } else { b"http" });
        if input.internal {
            headers.append("x-envoy-internal", b"true");
        }
        for header in &input.additional_request_headers {
            headers.append(&header.key.to_ascii_lowercase(), header.value.as_bytes());
        }
        let mut metadata: BTreeMap<&str, &Map<String, Value>> = BTreeMap::new();
        for entry in &input.dynamic_metadata {
            let name = entry.metadata_namespace.as_str();
            if entry.allow_overwrite || !metadata.contains_key(name) {
                metadata.insert(name, &entry.value);
            }
        }
        Request {
            input,
            metadata,
            method: input.method.clone(),
            path: input.path.clone(),
            host: input.authority.clone(),
            headers,
        }
    }
}

impl RequestHead for Request<'_> {
    fn method(&self) -> &str {
        &self.method
    }

    fn path(&self) -> &str {
        &self.path
    }

    fn host(&self) -> &str {
        &self.host
    }

    fn scheme(&self) -> &str {
        if self.input.ssl {
            "https"
        } else {
            "http"
        }
    }

    fn header_values<'b>(&'b self, name: &'b str) -> impl Iterator<Item = &'b [u8]> + 'b {
        self.headers.values(name)
    }

    fn random(&self) -> u64 {
        self.input.random_value
    }

    fn is_internal(&self) -> bool {
        self.input.internal
    }

    fn write(&self, command: Command, out: &mut Vec<u8>) {
        Known::default().write(command, out);
    }

    /// As in Envoy's tool: one key is on, with the share that the route gives, and every other is off.
    fn runtime_fraction(&self, key: &str) -> Option<(u32, u32)> {
        let on = !key.is_empty() && key == self.input.runtime;
        (!on).then_some((0, 100))
    }

    fn dynamic_metadata(&self, filter: &str, path: &[&str]) -> Option<MetadataValue<'_>> {
        let (first, rest) = path.split_first()?;
        let outer = self.metadata.get(filter)?.get(*first)?;
        rest.iter().try_fold(outer, |value, key| value.as_object()?.get(*key)).map(metadata_value)
    }
}

impl HeaderMap for Request<'_> {
    fn get(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let pseudo = match name {
            ":method" => self.method(),
            ":path" => self.path(),
            ":authority" | "host" => self.host(),
            ":scheme" => self.scheme(),
            name => return self.headers.get(name),
        };
        Some(Cow::Borrowed(pseudo.as_bytes()))
    }

    fn set(&mut self, name: &str, value: &[u8]) {
        self.headers.set(name, value);
    }

    fn append(&mut self, name: &str, value: &[u8]) {
        self.headers.append(name, value);
    }

    fn remove(&mut self, name: &str) {
        self.headers.remove(name);
    }
}

fn metadata_value(value: &Value) -> MetadataValue<'_> {
    match value {
        Value::Null => MetadataValue::Null,
        Value::Bool(b) => MetadataValue::Bool(*b),
        // A `double` it is in protobuf.
        Value::Number(n) => MetadataValue::Number(n.as_f64().unwrap_or(f64::NAN)),
        Value::String(s) => MetadataValue::String(s),
        Value::Array(list) => MetadataValue::List(list.iter().map(metadata_value).collect()),
        Value::Object(_) => MetadataValue::Struct,
    }
}

/// A response, as matchers of headers see it: a head without a request line.
pub struct Response<'a>(pub &'a Lines);

impl RequestHead for Response<'_> {
    fn method(&self) -> &str {
        ""
    }

    fn path(&self) -> &str {
        ""
    }

    fn host(&self) -> &str {
        ""
    }

    fn scheme(&self) -> &str {
        ""
    }

    fn header_values<'b>(&'b self, name: &'b str) -> impl Iterator<Item = &'b [u8]> + 'b {
        self.0.values(name)
    }

    fn random(&self) -> u64 {
        0
    }
}

/// What is known of a request besides its head.
#[derive(Clone, Copy, Default)]
pub struct Known<'a> {
    /// The route's name.
    pub route: &'a str,
    /// The cluster.
    pub cluster: &'a str,
    /// The virtual cluster.
    pub virtual_cluster: &'a str,
}

impl Known<'_> {
    /// The client of Envoy's tool is 127.0.0.1 and speaks HTTP/1.1; there is no endpoint and no clock.
    fn write(&self, command: Command, out: &mut Vec<u8>) {
        let text: Cow<'_, str> = match command {
            Command::DownstreamRemoteAddress | Command::DownstreamDirectRemoteAddress => "127.0.0.1:0".into(),
            Command::DownstreamRemoteAddressWithoutPort | Command::DownstreamDirectRemoteAddressWithoutPort => {
                "127.0.0.1".into()
            }
            Command::DownstreamRemotePort | Command::DownstreamDirectRemotePort => "0".into(),
            Command::Protocol => "HTTP/1.1".into(),
            Command::UpstreamCluster => self.cluster.into(),
            Command::RouteName => self.route.into(),
            Command::VirtualClusterName => self.virtual_cluster.into(),
            // There is no endpoint that has answered, and to Envoy a local reply has no status yet.
            Command::ResponseCode => "0".into(),
            Command::DownstreamLocalAddress
            | Command::DownstreamLocalAddressWithoutPort
            | Command::DownstreamLocalPort
            | Command::UpstreamHost
            | Command::RequestedServerName
            | Command::StartTime => "".into(),
        };
        out.extend_from_slice(text.as_bytes());
    }
}

/// What substitution commands stand for in a test.
pub struct Facts<'a> {
    /// The request as it is at the time.
    pub request: &'a Request<'a>,
    /// What else is known.
    pub known: Known<'a>,
}

impl FormatContext for Facts<'_> {
    fn request_header(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        HeaderMap::get(self.request, name)
    }

    fn write(&self, command: Command, out: &mut Vec<u8>) {
        self.known.write(command, out);
    }
}
