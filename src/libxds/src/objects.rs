//! APISIX's own objects from files: beside the mesh, or in place of it.
//!
//! The form is that of APISIX's `apisix.yaml`: a list of objects under each directory's name, in YAML or JSON.

use amesh_apisix::files::{paths, stamp, Stamp};
use serde_json::{Map, Value as Json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Directories that APISIX watches in its http subsystem; it cannot use others with `config_provider: xds`.
const DIRECTORIES: [&str; 11] = [
    "routes",
    "services",
    "upstreams",
    "consumers",
    "consumer_groups",
    "ssls",
    "global_rules",
    "plugin_configs",
    "plugin_metadata",
    "protos",
    "secrets",
];

/// A file that makes no sense. What it said before stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}; what it said before stays", path.display())]
pub struct ObjectsError {
    /// The file, or the directory of files.
    pub path: PathBuf,
    /// Place and reason.
    pub reason: String,
}

/// Keys and objects.
type Said = BTreeMap<Arc<str>, Arc<str>>;

/// What a look at the files has found.
#[derive(Debug, Default, PartialEq)]
pub struct Found {
    /// New or changed.
    pub put: Vec<(Arc<str>, Arc<str>)>,
    /// Not there any more.
    pub gone: Vec<Arc<str>>,
    /// New since the last look.
    pub errors: Vec<ObjectsError>,
}

/// One file as it was last read.
#[derive(Default)]
struct File {
    stamp: Option<Stamp>,
    said: Said,
    /// It made sense when it was last read.
    good: bool,
}

/// A file or directory of objects.
pub struct Objects {
    path: PathBuf,
    files: BTreeMap<PathBuf, File>,
    said: Said,
    unreadable: bool,
}

impl Objects {
    /// Nothing is read yet.
    pub fn new(path: PathBuf) -> Objects {
        Objects { path, files: BTreeMap::new(), said: Said::new(), unreadable: false }
    }

    /// Whether every file says what it is to say.
    pub fn is_read(&self) -> bool {
        !self.unreadable && self.files.values().all(|f| f.good)
    }

    /// Looks at the files that have changed since the last time.
    pub fn look(&mut self) -> Found {
        let mut found = Found::default();
        let paths = match paths(&self.path) {
            Ok(paths) => {
                self.unreadable = false;
                paths
            }
            Err(e) => {
                if !std::mem::replace(&mut self.unreadable, true) {
                    found.errors.push(ObjectsError { path: self.path.clone(), reason: e.to_string() });
                }
                return found;
            }
        };
        self.files.retain(|path, _| paths.contains(path));
        for path in paths {
            let stamp = stamp(&path);
            let file = self.files.entry(path.clone()).or_default();
            if stamp.is_some() && file.stamp == stamp {
                continue;
            }
            file.stamp = stamp;
            let read = std::fs::read_to_string(&path).map_err(|e| e.to_string()).and_then(|text| parse(&text));
            file.good = read.is_ok();
            match read {
                Ok(said) => file.said = said,
                Err(reason) => found.errors.push(ObjectsError { path, reason }),
            }
        }
        // Of two files that say the same key the last one is right, by name.
        let now: Said = self.files.values().flat_map(|f| &f.said).map(|(k, v)| (k.clone(), v.clone())).collect();
        found.put =
            now.iter().filter(|(k, v)| self.said.get(*k) != Some(v)).map(|(k, v)| (k.clone(), v.clone())).collect();
        found.gone = self.said.keys().filter(|k| !now.contains_key(*k)).cloned().collect();
        self.said = now;
        found
    }
}

fn parse(text: &str) -> Result<Said, String> {
    // APISIX's own files end in this line.
    let documents: Option<BTreeMap<String, Vec<Map<String, Json>>>> =
        serde_path_to_error::deserialize(serde_yaml_ng::Deserializer::from_str(text)).map_err(|e| e.to_string())?;
    let mut said = Said::new();
    for (directory, objects) in documents.into_iter().flatten() {
        if directory == "stream_routes" {
            return Err(
                "stream_routes: APISIX cannot use them with \"config_provider: xds\"; take etcd's face".to_owned()
            );
        }
        if !DIRECTORIES.contains(&directory.as_str()) {
            return Err(format!("{directory}: no such directory; there are {}", DIRECTORIES.join(", ")));
        }
        for (i, mut object) in objects.into_iter().enumerate() {
            let id = id(&directory, &mut object).map_err(|reason| format!("{directory}[{i}]: {reason}"))?;
            let key: Arc<str> = format!("/{directory}/{id}").into();
            if said.insert(key.clone(), Json::Object(object).to_string().into()).is_some() {
                return Err(format!("{directory}[{i}]: {key} stands there twice"));
            }
        }
    }
    Ok(said)
}

/// The id of an object. APISIX answers 500 where it is not a string, and the last part of the key.
fn id(directory: &str, object: &mut Map<String, Json>) -> Result<String, String> {
    let id = match object.get("id") {
        Some(Json::String(id)) => id.clone(),
        Some(Json::Number(id)) => id.to_string(),
        Some(_) => return Err("its \"id\" is no text".to_owned()),
        None if directory == "consumers" => {
            return match object.get("username") {
                Some(Json::String(name)) => Ok(name.clone()),
                _ => Err("it has no \"username\"".to_owned()),
            }
        }
        None => return Err("it has no \"id\"".to_owned()),
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '/');
    // Only secrets have a manager's name before the id.
    let slashes = usize::from(directory == "secrets");
    if id.is_empty() || id.len() > 64 || !id.chars().all(allowed) || id.matches('/').count() > slashes {
        return Err(format!("its id \"{id}\" is not 1 to 64 of A-Z, a-z, 0-9, \"_\", \".\" and \"-\""));
    }
    object.insert("id".to_owned(), Json::from(id.clone()));
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn write(dir: &Path, name: &str, text: &str) {
        std::fs::write(dir.join(name), text).unwrap();
    }

    fn texts(found: &Found) -> Vec<(&str, &str)> {
        found.put.iter().map(|(k, v)| (&**k, &**v)).collect()
    }

    #[test]
    fn what_changes_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            "a.yaml",
            "routes:\n- {id: 1, uri: /hello, upstream_id: '1'}\nupstreams:\n- {id: '1', nodes: {'a:1': 1}}\n",
        );
        write(dir.path(), "ignored.txt", "nonsense: [");
        let mut objects = Objects::new(dir.path().to_owned());
        let found = objects.look();
        assert_eq!(
            texts(&found),
            [
                ("/routes/1", r#"{"id":"1","upstream_id":"1","uri":"/hello"}"#),
                ("/upstreams/1", r#"{"id":"1","nodes":{"a:1":1}}"#),
            ]
        );
        assert_eq!(objects.look(), Found::default());
        write(
            dir.path(),
            "b.json",
            r#"{"consumers": [{"username": "jack"}], "routes": [{"id": "1", "uri": "/other"}]}"#,
        );
        let found = objects.look();
        assert_eq!(
            texts(&found),
            [("/consumers/jack", r#"{"username":"jack"}"#), ("/routes/1", r#"{"id":"1","uri":"/other"}"#)]
        );
        std::fs::remove_file(dir.path().join("a.yaml")).unwrap();
        assert_eq!(objects.look().gone, [Arc::from("/upstreams/1")]);
    }

    #[test]
    fn nonsense_is_named_once_and_what_was_said_before_stays() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "a.yaml", "routes: [{id: good, uri: /a}]");
        let mut objects = Objects::new(dir.path().to_owned());
        assert_eq!(objects.look().put.len(), 1);
        for (nonsense, names) in [
            ("routes: [{uri: /longer}]", "routes[0]: it has no \"id\""),
            ("routes: [{id: a b}]", "\"a b\""),
            ("routes: [{id: a/b}]", "\"a/b\""),
            ("stream_routes: []", "stream_routes"),
            ("routess: []", "routess"),
            ("routes: [{id: x}, {id: x}]", "twice"),
            ("routes: {", "routes"),
        ] {
            write(dir.path(), "a.yaml", nonsense);
            let found = objects.look();
            assert!(found.errors[0].to_string().contains(names), "{}", found.errors[0]);
            assert_eq!((found.put, found.gone), (vec![], vec![]));
            assert_eq!(objects.look(), Found::default());
        }
    }

    #[test]
    fn a_path_that_is_not_there_is_named_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("objects.yaml");
        let mut objects = Objects::new(path.clone());
        assert_eq!(objects.look().errors.len(), 1);
        assert_eq!(objects.look(), Found::default());
        write(dir.path(), "objects.yaml", "#END\n");
        assert_eq!(objects.look(), Found::default());
        write(dir.path(), "objects.yaml", "routes: [{id: r, uri: /}]\n#END\n");
        assert_eq!(objects.look().put.len(), 1);
    }
}
