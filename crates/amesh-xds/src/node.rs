//! Who we are to a control plane: Envoy's `Node`, as Istio's agent fills it.
//!
//! The sources are the environment variables and files that Istio's injection gives a sidecar container: `POD_NAME`,
//! `POD_NAMESPACE`, `SERVICE_ACCOUNT`, `INSTANCE_IP`, `ISTIO_META_*` (text), `ISTIO_METAJSON_*` (JSON) and the downward
//! API's `/etc/istio/pod/labels` and `annotations`. What the configuration says explicitly goes before all of them.

use envoy_types::pb::envoy::config::core::v3::{self as core, Locality};
use envoy_types::pb::google::protobuf::{value::Kind, ListValue, Struct, Value};
use serde_json::{Map, Value as Json};
use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};

/// Where Istio's injection mounts the pod's labels and annotations.
pub const POD_INFO: &str = "/etc/istio/pod";

/// A node, as plain data.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeConfig {
    /// `sidecar~10.0.0.1~pod.namespace~namespace.svc.cluster.local` to Istio.
    pub id: String,
    /// `app.namespace` by convention.
    pub cluster: String,
    /// Region, zone and sub-zone; empty: unknown.
    pub locality: (String, String, String),
    /// Whatever the control plane knows to read.
    pub metadata: Map<String, Json>,
}

/// What the configuration says of the node; it goes before what the environment says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides {
    /// The whole id.
    pub id: Option<String>,
    /// The cluster.
    pub cluster: Option<String>,
    /// Region, zone and sub-zone.
    pub locality: Option<(String, String, String)>,
    /// Names and values; a value that is JSON (`{"a":"b"}`, `true`) is taken as such where it is an object or a list.
    pub metadata: Vec<(String, String)>,
}

/// A variable or file that does not say what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// An `ISTIO_METAJSON_*` variable that is no JSON.
    #[error("environment variable {name} is not JSON: {reason}; correct or unset it")]
    Json {
        /// The variable.
        name: String,
        /// The parser's word.
        reason: String,
    },
    /// A file that is there and cannot be read.
    #[error("cannot read {}: {reason}; make it readable for the nginx master", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's word.
        reason: String,
    },
}

/// The node of this process: its environment and [`POD_INFO`].
pub fn from_environment(overrides: &Overrides) -> Result<NodeConfig, NodeError> {
    from_parts(
        overrides,
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))),
        Path::new(POD_INFO),
    )
}

/// As [`from_environment`], with the environment and the directory handed in.
pub fn from_parts(
    overrides: &Overrides,
    environment: impl IntoIterator<Item = (String, String)>,
    pod_info: &Path,
) -> Result<NodeConfig, NodeError> {
    let env: std::collections::BTreeMap<String, String> =
        environment.into_iter().filter(|(_, v)| !v.is_empty()).collect();
    let var = |name: &str| env.get(name).cloned();
    let mut metadata = Map::new();

    for (name, file) in [("LABELS", "labels"), ("ANNOTATIONS", "annotations")] {
        let pairs = downward_api(&pod_info.join(file))?;
        if !pairs.is_empty() {
            metadata.insert(name.to_owned(), Json::Object(pairs));
        }
    }
    for (name, value) in &env {
        if let Some(key) = name.strip_prefix("ISTIO_META_") {
            metadata.insert(key.to_owned(), Json::String(value.clone()));
        } else if name.starts_with("ISTIO_METAJSON_") {
            // The agent merges the objects' fields, whatever the rest of the variable's name; LABELS are merged too.
            let json: Json = serde_json::from_str(value)
                .map_err(|e| NodeError::Json { name: name.clone(), reason: e.to_string() })?;
            match (json, name.strip_prefix("ISTIO_METAJSON_")) {
                (Json::Object(fields), Some("LABELS" | "ANNOTATIONS")) => {
                    let key = name.trim_start_matches("ISTIO_METAJSON_");
                    merge(&mut metadata, key, fields);
                }
                (Json::Object(fields), _) => metadata.extend(fields),
                (other, key) => {
                    metadata.insert(key.unwrap_or_default().to_owned(), other);
                }
            }
        }
    }
    let ip = var("INSTANCE_IP").or_else(|| own_address().map(|ip| ip.to_string()));
    let plain = [
        ("NAME", var("POD_NAME")),
        ("NAMESPACE", var("POD_NAMESPACE")),
        ("SERVICE_ACCOUNT", var("SERVICE_ACCOUNT")),
        ("INSTANCE_IPS", ip.clone()),
        ("CLUSTER_ID", Some("Kubernetes".to_owned())),
    ];
    for (key, value) in plain {
        if let (Some(value), false) = (value, metadata.contains_key(key)) {
            metadata.insert(key.to_owned(), Json::String(value));
        }
    }
    for (key, value) in &overrides.metadata {
        let json = serde_json::from_str(value).ok().filter(|j: &Json| j.is_object() || j.is_array());
        metadata.insert(key.clone(), json.unwrap_or_else(|| Json::String(value.clone())));
    }

    let text = |key: &str| metadata.get(key).and_then(Json::as_str).map(str::to_owned);
    let label = |key: &str| metadata.get("LABELS").and_then(|l| l.get(key)).and_then(Json::as_str).map(str::to_owned);
    let namespace = text("NAMESPACE").unwrap_or_else(|| "default".to_owned());
    let name = text("NAME").or_else(|| var("HOSTNAME")).unwrap_or_else(|| "nginx".to_owned());
    // The first address of INSTANCE_IPS: an override of the metadata is heard here too.
    let ips = text("INSTANCE_IPS").unwrap_or_default();
    let ip = ips.split(',').map(str::trim).find(|ip| !ip.is_empty()).unwrap_or("127.0.0.1").to_owned();
    let id = overrides
        .id
        .clone()
        .unwrap_or_else(|| format!("sidecar~{ip}~{name}.{namespace}~{namespace}.svc.cluster.local"));
    let cluster = overrides.cluster.clone().unwrap_or_else(|| {
        let app = label("app").or_else(|| text("WORKLOAD_NAME")).unwrap_or_else(|| "istio-proxy".to_owned());
        format!("{app}.{namespace}")
    });
    let locality = overrides.locality.clone().unwrap_or_else(|| {
        // Istio's label joins the three with dots, as slashes are not allowed in labels.
        let all = label("istio-locality").map(|l| l.replace('.', "/")).unwrap_or_default();
        let mut parts = all.splitn(3, '/').map(str::to_owned);
        (parts.next().unwrap_or_default(), parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
    });
    Ok(NodeConfig { id, cluster, locality, metadata })
}

fn merge(metadata: &mut Map<String, Json>, key: &str, fields: Map<String, Json>) {
    match metadata.get_mut(key) {
        Some(Json::Object(there)) => there.extend(fields),
        _ => {
            metadata.insert(key.to_owned(), Json::Object(fields));
        }
    }
}

/// `key="value"` lines, the value quoted as Go quotes it. A file that is not there has none.
fn downward_api(path: &Path) -> Result<Map<String, Json>, NodeError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(e) => return Err(NodeError::File { path: path.to_owned(), reason: e.to_string() }),
    };
    let pairs = text.lines().filter_map(|line| line.split_once('=')).map(|(key, value)| {
        // Go's escapes that can stand in a label or annotation are JSON's.
        let value = serde_json::from_str(value).unwrap_or_else(|_| value.trim_matches('"').to_owned());
        (key.trim().to_owned(), Json::String(value))
    });
    Ok(pairs.collect())
}

/// The address that the system would call out from; nothing is sent.
fn own_address() -> Option<IpAddr> {
    let route = |bind: &str, to: &str| -> Option<IpAddr> {
        let socket = UdpSocket::bind(bind).ok()?;
        socket.connect(to).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    // 192.0.2.0/24 and 2001:db8::/32 are for documentation (RFC 5737, RFC 3849).
    route("0.0.0.0:0", "192.0.2.1:9").or_else(|| route("[::]:0", "[2001:db8::1]:9"))
}

impl NodeConfig {
    /// A metadata field that is text.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).and_then(Json::as_str)
    }

    /// The message.
    pub fn to_proto(&self) -> core::Node {
        let (region, zone, sub_zone) = self.locality.clone();
        let known = !(region.is_empty() && zone.is_empty() && sub_zone.is_empty());
        core::Node {
            id: self.id.clone(),
            cluster: self.cluster.clone(),
            metadata: (!self.metadata.is_empty()).then(|| to_struct(&self.metadata)),
            locality: known.then_some(Locality { region, zone, sub_zone }),
            user_agent_name: "ngx_amesh_module".to_owned(),
            user_agent_version_type: Some(core::node::UserAgentVersionType::UserAgentVersion(
                env!("CARGO_PKG_VERSION").to_owned(),
            )),
            // A state-of-the-world response may carry resources in their envelope.
            client_features: vec!["xds.config.resource-in-sotw".to_owned()],
            ..core::Node::default()
        }
    }
}

fn to_struct(map: &Map<String, Json>) -> Struct {
    Struct { fields: map.iter().map(|(k, v)| (k.clone(), to_value(v))).collect() }
}

fn to_value(json: &Json) -> Value {
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(b) => Kind::BoolValue(*b),
        // A number that no f64 holds cannot come from JSON text.
        Json::Number(n) => Kind::NumberValue(n.as_f64().unwrap_or_default()),
        Json::String(s) => Kind::StringValue(s.clone()),
        Json::Array(list) => Kind::ListValue(ListValue { values: list.iter().map(to_value).collect() }),
        Json::Object(map) => Kind::StructValue(to_struct(map)),
    };
    Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    #[test]
    fn what_istio_injects_makes_a_sidecar() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("labels"), "app=\"reviews\"\nversion=\"v\\\"2\"\nistio-locality=\"r1.z1.s1\"\n")
            .unwrap();
        let env = env(&[
            ("POD_NAME", "reviews-1"),
            ("POD_NAMESPACE", "shop"),
            ("SERVICE_ACCOUNT", "reviews-sa"),
            ("INSTANCE_IP", "10.1.2.3"),
            ("ISTIO_META_CLUSTER_ID", "east"),
            ("ISTIO_META_INTERCEPTION_MODE", "REDIRECT"),
            ("ISTIO_METAJSON_LABELS", r#"{"team":"a"}"#),
            ("ISTIO_METAJSON_METRICS_INCLUSIONS", r#"{"sidecar.istio.io/x":"y"}"#),
            ("ISTIO_META_EMPTY", ""),
            ("PATH", "/bin"),
        ]);
        let node = from_parts(&Overrides::default(), env, dir.path()).unwrap();
        assert_eq!(node.id, "sidecar~10.1.2.3~reviews-1.shop~shop.svc.cluster.local");
        assert_eq!(node.cluster, "reviews.shop");
        assert_eq!(node.locality, ("r1".into(), "z1".into(), "s1".into()));
        assert_eq!(
            Json::Object(node.metadata.clone()),
            json!({
                "CLUSTER_ID": "east", "INTERCEPTION_MODE": "REDIRECT", "NAME": "reviews-1", "NAMESPACE": "shop",
                "SERVICE_ACCOUNT": "reviews-sa", "INSTANCE_IPS": "10.1.2.3", "sidecar.istio.io/x": "y",
                "LABELS": {"app": "reviews", "version": "v\"2", "istio-locality": "r1.z1.s1", "team": "a"},
            })
        );
        let proto = node.to_proto();
        assert_eq!(proto.locality.unwrap().zone, "z1");
        let Some(Kind::StructValue(labels)) = &proto.metadata.unwrap().fields["LABELS"].kind else { panic!() };
        assert_eq!(labels.fields["app"].kind, Some(Kind::StringValue("reviews".into())));
    }

    #[test]
    fn the_configuration_goes_before_the_environment() {
        let overrides = Overrides {
            id: None,
            cluster: Some("edge".into()),
            locality: Some(("r".into(), "z".into(), String::new())),
            metadata: vec![
                ("NAMESPACE".into(), "mine".into()),
                ("LABELS".into(), r#"{"app":"a"}"#.into()),
                ("INSTANCE_IPS".into(), "10.0.0.9,fd00::9".into()),
                ("HTTP10".into(), "1".into()),
            ],
        };
        let env = env(&[("POD_NAME", "p"), ("POD_NAMESPACE", "theirs"), ("INSTANCE_IP", "10.0.0.1")]);
        let node = from_parts(&overrides, env.clone(), Path::new("/nonexistent")).unwrap();
        assert_eq!(node.id, "sidecar~10.0.0.9~p.mine~mine.svc.cluster.local");
        assert_eq!((node.cluster.as_str(), node.text("HTTP10")), ("edge", Some("1")));
        assert_eq!(node.metadata["LABELS"], json!({"app": "a"}));
        let whole = Overrides { id: Some("anything".into()), ..Overrides::default() };
        assert_eq!(from_parts(&whole, env, Path::new("/nonexistent")).unwrap().id, "anything");
    }

    #[test]
    fn outside_a_pod_the_node_is_still_one_that_istiod_takes() {
        let node = from_parts(&Overrides::default(), [], Path::new("/nonexistent")).unwrap();
        let parts: Vec<&str> = node.id.split('~').collect();
        assert_eq!((parts.len(), parts[0]), (4, "sidecar"));
        assert!(parts[1].parse::<IpAddr>().is_ok(), "{}", node.id);
    }

    #[test]
    fn broken_json_is_named() {
        let e = from_parts(&Overrides::default(), env(&[("ISTIO_METAJSON_X", "{")]), Path::new("/nonexistent"));
        assert!(e.unwrap_err().to_string().contains("ISTIO_METAJSON_X"));
    }
}
