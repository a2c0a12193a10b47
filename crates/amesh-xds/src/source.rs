//! A directory, or one file, of xDS resources: the control plane that needs no server.
//!
//! Files end in `.yaml`, `.yml` or `.json`; others, hidden ones and sub-directories are left alone. What a file says
//! holds until the file says something else that can be read, or is gone.

mod watch;

use crate::ads::{Rejected, Resource};
use crate::descriptor;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

pub use watch::Watch;

/// What cannot be read or used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// The directory or file that the configuration names.
    #[error("{}: {reason}; what was read before stays", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// The system's word.
        reason: String,
    },
    /// A file's content; the text names the file and the place.
    #[error("{reason}; what the file said before stays")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// Two files claim one resource.
    #[error(
        "{kind} \"{name}\" is in {} and in {}; the first holds, remove it from one of them",
        first.display(), second.display()
    )]
    Twice {
        /// Short name of its type, `cds`.
        kind: String,
        /// Its name.
        name: String,
        /// Where it holds.
        first: PathBuf,
        /// Where it does not.
        second: PathBuf,
    },
}

/// All that a source says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loaded {
    /// The resources, files in the order of their names.
    pub resources: Vec<Resource>,
    /// What could not be read.
    pub errors: Vec<FileError>,
}

/// Reads all of a source at once.
pub fn read_all(path: &Path) -> Loaded {
    let mut files = Files::new(path);
    let errors = files.scan().errors;
    Loaded { resources: files.resources.into_values().map(|r| r.resource).collect(), errors }
}

/// What a scan found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// New or different.
    pub added: Vec<Resource>,
    /// Type and name of what is gone.
    pub removed: Vec<(String, String)>,
    /// Errors that are new since the last scan.
    pub errors: Vec<FileError>,
    /// Errors of the last scan that are not there any more.
    pub mended: usize,
}

impl Changes {
    /// Nothing to do and nothing to say.
    pub fn is_empty(&self) -> bool {
        *self == Changes::default()
    }
}

struct File {
    hash: u64,
    good: Vec<Resource>,
    error: Option<FileError>,
}

#[derive(Clone, PartialEq)]
struct Held {
    resource: Resource,
    path: PathBuf,
}

type Key = (String, String);

/// A source, and what it said last.
pub struct Files {
    path: PathBuf,
    files: BTreeMap<PathBuf, File>,
    resources: BTreeMap<Key, Held>,
    errors: Vec<FileError>,
}

impl Files {
    /// A source that was not read yet.
    pub fn new(path: &Path) -> Files {
        Files { path: path.to_owned(), files: BTreeMap::new(), resources: BTreeMap::new(), errors: Vec::new() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many files there are.
    pub fn count(&self) -> usize {
        self.files.len()
    }

    /// What is wrong now.
    pub fn errors(&self) -> &[FileError] {
        &self.errors
    }

    /// A resource that it holds.
    pub fn get(&self, type_url: &str, name: &str) -> Option<&Resource> {
        self.resources.get(&(type_url.to_owned(), name.to_owned())).map(|h| &h.resource)
    }

    /// Where a resource stands.
    pub fn place(&self, type_url: &str, rejected: &Rejected) -> Option<&Path> {
        self.resources.get(&(type_url.to_owned(), rejected.name.clone())).map(|h| h.path.as_path())
    }

    /// Reads what changed.
    pub fn scan(&mut self) -> Changes {
        let mut errors = Vec::new();
        match list(&self.path) {
            Ok(paths) => {
                self.files.retain(|path, _| paths.contains(path));
                for path in paths {
                    self.read(path);
                }
            }
            Err(e) => {
                let reason = e.to_string();
                errors.push(FileError::Path { path: self.path.clone(), reason });
            }
        }
        errors.extend(self.files.values().filter_map(|f| f.error.clone()));
        let now = self.merge(&mut errors);

        let mut changes = Changes::default();
        for (key, held) in &now {
            if self.resources.get(key).is_none_or(|h| h.resource != held.resource) {
                changes.added.push(held.resource.clone());
            }
        }
        changes.removed = self.resources.keys().filter(|k| !now.contains_key(*k)).cloned().collect();
        changes.errors = errors.iter().filter(|e| !self.errors.contains(e)).cloned().collect();
        changes.mended = self.errors.iter().filter(|e| !errors.contains(e)).count();
        self.resources = now;
        self.errors = errors;
        changes
    }

    fn read(&mut self, path: PathBuf) {
        let result = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()));
        let hash = result.as_ref().map(|bytes| xxh3_64(bytes)).unwrap_or_default();
        let before = self.files.get(&path);
        if result.is_ok() && before.is_some_and(|f| f.hash == hash && !matches!(&f.error, Some(FileError::Path { .. })))
        {
            return;
        }
        let parsed = result.and_then(|bytes| parse(&path, &bytes));
        let (good, error) = match parsed {
            Ok(good) => (good, None),
            Err(reason) => {
                let good = self.files.remove(&path).map(|f| f.good).unwrap_or_default();
                (good, Some(FileError::File { path: path.clone(), reason }))
            }
        };
        self.files.insert(path, File { hash, good, error });
    }

    /// Every resource once. Who held a name before goes on holding it, else the first file by name.
    fn merge(&self, errors: &mut Vec<FileError>) -> BTreeMap<Key, Held> {
        let mut claims: BTreeMap<Key, Vec<Held>> = BTreeMap::new();
        for (path, file) in &self.files {
            for r in &file.good {
                let held = Held { resource: r.clone(), path: path.clone() };
                claims.entry((r.body.type_url.clone(), r.name.clone())).or_default().push(held);
            }
        }
        let mut out = BTreeMap::new();
        for (key, mut claims) in claims {
            let before = self.resources.get(&key);
            let first = before.and_then(|b| claims.iter().position(|c| c.path == b.path)).unwrap_or_default();
            let held = claims.remove(first);
            for other in claims {
                errors.push(FileError::Twice {
                    kind: crate::ads::short_name(&key.0).to_owned(),
                    name: key.1.clone(),
                    first: held.path.clone(),
                    second: other.path,
                });
            }
            out.insert(key, held);
        }
        out
    }
}

fn is_ours(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|n| n.as_encoded_bytes().starts_with(b"."));
    !hidden && matches!(path.extension().and_then(|e| e.to_str()), Some("yaml" | "yml" | "json"))
}

/// The files of a source.
fn list(path: &Path) -> std::io::Result<BTreeSet<PathBuf>> {
    if !std::fs::metadata(path)?.is_dir() {
        return Ok(BTreeSet::from([path.to_owned()]));
    }
    let mut out = BTreeSet::new();
    for entry in std::fs::read_dir(path)? {
        let path = entry?.path();
        // Through symbolic links; a pipe or a device would never end.
        if is_ours(&path) && std::fs::metadata(&path).is_ok_and(|m| m.is_file()) {
            out.insert(path);
        }
    }
    Ok(out)
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<Resource>, String> {
    let file = path.display().to_string();
    let text = std::str::from_utf8(bytes).map_err(|e| format!("{file}: it is not UTF-8: {e}"))?;
    let read = match path.extension().and_then(|e| e.to_str()) {
        Some("json") => descriptor::from_json(&file, text),
        _ => descriptor::from_yaml(&file, text),
    };
    let all = read.map_err(|e| e.to_string())?;
    let mut seen = HashMap::new();
    for (i, r) in all.iter().enumerate() {
        if let Some(before) = seen.insert((&r.any.type_url, &r.name), i + 1) {
            let kind = crate::ads::short_name(&r.any.type_url);
            let now = i + 1;
            return Err(format!("{file}: {kind} \"{}\" is there twice, as resource {before} and {now}", r.name));
        }
    }
    Ok(all.into_iter().map(|r| Resource { name: r.name, version: r.version, body: r.any }).collect())
}

#[cfg(test)]
mod tests;
