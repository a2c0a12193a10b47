//! What this library is told: by a file, and by the environment, which goes before it.
//!
//! nginx hands no variable on that `env` (in APISIX `nginx_config.envs`) does not name.

use amesh_apisix::Destination;
use amesh_xds::engine::Level;
use amesh_xds::settings::Settings as Mesh;
use serde::de::{Deserializer, Error as _};
use serde::Deserialize;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Names the file.
const FILE: &str = "AMESH_CONFIG";

/// What was said.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where the mesh comes from.
    pub mesh: Mesh,
    /// A file or directory of APISIX's own objects.
    pub objects: Option<PathBuf>,
    /// A directory of documents of plugins.
    pub plugins: Option<PathBuf>,
    /// How APISIX tells where a request was going.
    pub destination: Destination,
    /// Listeners of the inbound direction are translated, too.
    pub inbound: bool,
    /// The least that is logged.
    pub log_level: Level,
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("{}: {reason}; {FILE} names it", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's word.
        reason: std::io::Error,
    },
    /// The file makes no sense.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Place and reason.
        reason: String,
    },
    /// A variable makes no sense.
    #[error("environment variable {name}: {reason}")]
    Variable {
        /// Its name.
        name: String,
        /// The reason.
        reason: String,
    },
}

/// The file: directives of the `amesh` block, in YAML.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Said {
    #[serde(deserialize_with = "list")]
    server: Vec<String>,
    protocol: Option<Protocol>,
    #[serde(deserialize_with = "switch")]
    ssl: Option<bool>,
    ssl_trusted_certificate: Option<PathBuf>,
    ssl_certificate: Option<PathBuf>,
    ssl_certificate_key: Option<PathBuf>,
    ssl_name: Option<String>,
    token: Option<PathBuf>,
    node: Option<String>,
    node_cluster: Option<String>,
    #[serde(deserialize_with = "list")]
    node_locality: Vec<String>,
    node_metadata: BTreeMap<String, Json>,
    snapshot: Option<PathBuf>,
    mark: Option<u32>,
    objects: Option<PathBuf>,
    plugins: Option<PathBuf>,
    destination: Option<To>,
    #[serde(deserialize_with = "switch")]
    inbound: Option<bool>,
    log_level: Option<LogLevel>,
}

/// [`Destination`].
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum To {
    Original,
    Server,
    Ignored,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Protocol {
    Delta,
    Sotw,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum LogLevel {
    Error,
    Warn,
    Notice,
    Info,
}

/// One word, several with commas between them, or a list.
fn list<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    match Json::deserialize(from)? {
        Json::Null => Ok(Vec::new()),
        Json::String(text) => Ok(words(&text)),
        Json::Array(all) => {
            let text = |word: Json| {
                word.as_str().map(str::to_owned).ok_or_else(|| D::Error::custom("a list of words is wanted"))
            };
            all.into_iter().map(text).collect()
        }
        _ => Err(D::Error::custom("a word or a list of words is wanted")),
    }
}

fn words(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// `on`, `off`, or what YAML has for it.
fn switch<'de, D: Deserializer<'de>>(from: D) -> Result<Option<bool>, D::Error> {
    match Json::deserialize(from)? {
        Json::Null => Ok(None),
        Json::Bool(on) => Ok(Some(on)),
        Json::String(text) if text == "on" => Ok(Some(true)),
        Json::String(text) if text == "off" => Ok(Some(false)),
        other => Err(D::Error::custom(format!("it is \"on\" or \"off\", not {other}"))),
    }
}

impl Settings {
    /// What the file and the environment say.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Settings, SettingsError> {
        let mut said = match variable(FILE) {
            None => Said::default(),
            Some(path) => {
                let path = PathBuf::from(path);
                match std::fs::read_to_string(&path) {
                    Ok(text) if text.trim().is_empty() => Said::default(),
                    Ok(text) => serde_path_to_error::deserialize(serde_yaml_ng::Deserializer::from_str(&text))
                        .map_err(|e| SettingsError::File { path, reason: e.to_string() })?,
                    Err(reason) => return Err(SettingsError::Unreadable { path, reason }),
                }
            }
        };
        said.hear(&variable)?;
        Ok(said.settings())
    }
}

impl Said {
    /// Takes over what the environment says. A variable is the directive's name in upper case after `AMESH_`, but servers.
    fn hear(&mut self, variable: &impl Fn(&str) -> Option<String>) -> Result<(), SettingsError> {
        let said = |name: &str| variable(name).filter(|text| !text.is_empty());
        if let Some(text) = said("AMESH_XDS_ADDRESS") {
            self.server = words(&text);
        }
        if let Some(text) = said("AMESH_NODE_LOCALITY") {
            self.node_locality = text.split('/').map(str::to_owned).collect();
        }
        for (name, place) in [
            ("AMESH_SSL_TRUSTED_CERTIFICATE", &mut self.ssl_trusted_certificate),
            ("AMESH_SSL_CERTIFICATE", &mut self.ssl_certificate),
            ("AMESH_SSL_CERTIFICATE_KEY", &mut self.ssl_certificate_key),
            ("AMESH_TOKEN", &mut self.token),
            ("AMESH_SNAPSHOT", &mut self.snapshot),
            ("AMESH_OBJECTS", &mut self.objects),
            ("AMESH_PLUGINS", &mut self.plugins),
        ] {
            *place = said(name).map(PathBuf::from).or(place.take());
        }
        for (name, place) in [
            ("AMESH_SSL_NAME", &mut self.ssl_name),
            ("AMESH_NODE", &mut self.node),
            ("AMESH_NODE_CLUSTER", &mut self.node_cluster),
        ] {
            *place = said(name).or(place.take());
        }
        parsed("AMESH_PROTOCOL", said, &mut self.protocol, word)?;
        parsed("AMESH_LOG_LEVEL", said, &mut self.log_level, word)?;
        parsed("AMESH_DESTINATION", said, &mut self.destination, word)?;
        for (name, place) in [("AMESH_SSL", &mut self.ssl), ("AMESH_INBOUND", &mut self.inbound)] {
            parsed(name, said, place, |text| switch(Json::from(text)).map(Option::unwrap_or_default))?;
        }
        parsed("AMESH_MARK", said, &mut self.mark, |text| {
            text.parse().map_err(|_| serde_json::Error::custom("it is a number"))
        })?;
        let mut metadata = None;
        parsed("AMESH_NODE_METADATA", said, &mut metadata, |text| serde_json::from_str::<BTreeMap<_, _>>(text))?;
        self.node_metadata.extend(metadata.into_iter().flatten());
        Ok(())
    }

    fn settings(self) -> Settings {
        let mut locality = self.node_locality.into_iter();
        let region = locality.next();
        let mut part = || locality.next().unwrap_or_default();
        let metadata = self.node_metadata.into_iter().map(|(name, value)| match value {
            Json::String(text) => (name, text),
            other => (name, other.to_string()),
        });
        Settings {
            objects: self.objects,
            plugins: self.plugins,
            destination: match self.destination {
                Some(To::Server) => Destination::Server,
                Some(To::Ignored) => Destination::Ignored,
                Some(To::Original) | None => Destination::Original,
            },
            inbound: self.inbound.unwrap_or_default(),
            log_level: match self.log_level {
                Some(LogLevel::Error) => Level::Error,
                Some(LogLevel::Warn) => Level::Warn,
                Some(LogLevel::Notice) | None => Level::Notice,
                Some(LogLevel::Info) => Level::Info,
            },
            mesh: Mesh {
                servers: self.server,
                sotw: matches!(self.protocol, Some(Protocol::Sotw)),
                ssl: self.ssl,
                ssl_trusted_certificate: self.ssl_trusted_certificate,
                ssl_certificate: self.ssl_certificate,
                ssl_certificate_key: self.ssl_certificate_key,
                ssl_name: self.ssl_name,
                token: self.token,
                node: self.node,
                node_cluster: self.node_cluster,
                node_locality: region.map(|region| (region, part(), part())),
                node_metadata: metadata.collect(),
                snapshot: self.snapshot,
                mark: self.mark,
            },
        }
    }
}

fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, serde_json::Error> {
    serde_json::from_value(Json::from(text))
}

fn parsed<T>(
    name: &str,
    said: impl Fn(&str) -> Option<String>,
    place: &mut Option<T>,
    parse: impl Fn(&str) -> Result<T, serde_json::Error>,
) -> Result<(), SettingsError> {
    if let Some(text) = said(name) {
        *place =
            Some(parse(&text).map_err(|e| SettingsError::Variable { name: name.to_owned(), reason: e.to_string() })?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        Settings::read(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn the_environment_goes_before_the_file() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(
            b"server: [istiod:15012, 'unix:/run/xds']\nprotocol: sotw\nssl: off\nnode_locality: [here, a]\n\
              node_metadata: {A: {b: 1}, C: d}\nobjects: /o\n",
        )
        .unwrap();
        let path = file.path().to_str().unwrap();
        let settings = read(&[("AMESH_CONFIG", path)]).unwrap();
        assert_eq!(settings.mesh.servers, ["istiod:15012", "unix:/run/xds"]);
        assert_eq!((settings.mesh.sotw, settings.mesh.ssl), (true, Some(false)));
        assert_eq!(settings.mesh.node_locality, Some(("here".into(), "a".into(), String::new())));
        assert_eq!(settings.mesh.node_metadata, [("A".into(), r#"{"b":1}"#.into()), ("C".into(), "d".into())]);
        assert_eq!(settings.objects, Some("/o".into()));

        let settings = read(&[
            ("AMESH_CONFIG", path),
            ("AMESH_XDS_ADDRESS", "file:/xds"),
            ("AMESH_PROTOCOL", "delta"),
            ("AMESH_SSL", "on"),
            ("AMESH_NODE_LOCALITY", "there/b/c"),
            ("AMESH_NODE_METADATA", r#"{"C":"e"}"#),
            ("AMESH_MARK", "1337"),
            ("AMESH_OBJECTS", ""),
            ("AMESH_DESTINATION", "server"),
            ("AMESH_INBOUND", "on"),
            ("AMESH_PLUGINS", "/p"),
        ])
        .unwrap();
        assert_eq!(settings.mesh.servers, ["file:/xds"]);
        assert_eq!((settings.mesh.sotw, settings.mesh.ssl, settings.mesh.mark), (false, Some(true), Some(1337)));
        assert_eq!(settings.mesh.node_locality, Some(("there".into(), "b".into(), "c".into())));
        assert_eq!(settings.mesh.node_metadata.last(), Some(&("C".into(), "e".into())));
        assert_eq!((settings.destination, settings.inbound), (Destination::Server, true));
        assert_eq!((settings.objects, settings.plugins), (Some("/o".into()), Some("/p".into())));
    }

    #[test]
    fn nonsense_is_named() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"servers: a:1\n").unwrap();
        for (variables, names) in [
            (vec![("AMESH_CONFIG", file.path().to_str().unwrap())], "servers"),
            (vec![("AMESH_CONFIG", "/nonexistent/amesh.yaml")], "/nonexistent/amesh.yaml"),
            (vec![("AMESH_PROTOCOL", "grpc")], "AMESH_PROTOCOL"),
            (vec![("AMESH_SSL", "maybe")], "AMESH_SSL"),
            (vec![("AMESH_DESTINATION", "nowhere")], "AMESH_DESTINATION"),
            (vec![("AMESH_MARK", "-1")], "AMESH_MARK"),
            (vec![("AMESH_NODE_METADATA", "[]")], "AMESH_NODE_METADATA"),
        ] {
            let e = read(&variables).unwrap_err().to_string();
            assert!(e.contains(names), "{e}");
        }
    }

    #[test]
    fn nothing_said_is_no_error() {
        assert_eq!(read(&[]).unwrap().mesh, Mesh::default());
    }
}
