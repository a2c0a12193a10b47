//! A directory of `AmeshPluginConfig` documents: plugins of APISIX for the routes of this workload.

use super::{PluginFiles, PluginSet};
use crate::files::{paths, stamp, Stamp};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The directory, as it was last read.
#[derive(Debug)]
pub struct PluginDirectory {
    path: PathBuf,
    labels: BTreeMap<String, String>,
    stamps: BTreeMap<PathBuf, Option<Stamp>>,
    files: PluginFiles,
    unreadable: bool,
}

/// What a look has found.
#[derive(Debug, Default, PartialEq)]
pub struct Found {
    /// The plugins of this workload, if a file has changed.
    pub plugins: Option<PluginSet>,
    /// New since the last look.
    pub errors: Vec<String>,
}

impl PluginDirectory {
    /// Nothing is read yet. `labels` are those of the workload.
    pub fn new(path: PathBuf, labels: BTreeMap<String, String>) -> PluginDirectory {
        PluginDirectory { path, labels, stamps: BTreeMap::new(), files: PluginFiles::default(), unreadable: false }
    }

    /// Looks whether a file has changed since the last time.
    pub fn look(&mut self) -> Found {
        let mut found = Found::default();
        let paths = match paths(&self.path) {
            Ok(paths) => paths,
            Err(e) => {
                if !std::mem::replace(&mut self.unreadable, true) {
                    found.errors.push(format!("{}: {e}; what it said before stays", self.path.display()));
                }
                return found;
            }
        };
        self.unreadable = false;
        let stamps: BTreeMap<_, _> = paths.into_iter().map(|path| (path.clone(), stamp(&path))).collect();
        if stamps == self.stamps {
            return found;
        }
        let mut texts = Vec::new();
        for path in stamps.keys() {
            match std::fs::read_to_string(path) {
                Ok(text) => texts.push((path.display().to_string(), text)),
                Err(e) => {
                    found.errors.push(format!("{}: {e}", path.display()));
                    // Its text would be missed as if the file were gone.
                    return found;
                }
            }
        }
        self.stamps = stamps;
        let errors = self.files.update(texts.iter().map(|(name, text)| (name.as_str(), text.as_str())));
        found.errors.extend(errors.iter().map(ToString::to_string));
        found.plugins = Some(self.files.select(&self.labels));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: &str = "apiVersion: apisix.apache.org/v1alpha1\nkind: AmeshPluginConfig\nmetadata: {name: limit}\n\
        spec:\n  selector: {matchLabels: {app: reviews}}\n  plugins:\n  - name: limit-count\n    config: '{\"count\": 2}'\n";

    #[test]
    fn plugins_of_this_workload_are_told_when_a_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let labels = |app: &str| BTreeMap::from([("app".to_owned(), app.to_owned())]);
        let mut ours = PluginDirectory::new(dir.path().to_owned(), labels("reviews"));
        let mut others = PluginDirectory::new(dir.path().to_owned(), labels("ratings"));
        assert_eq!(ours.look(), Found::default());
        std::fs::write(dir.path().join("limit.yaml"), LIMIT).unwrap();
        let found = ours.look();
        assert_eq!(found.errors, Vec::<String>::new());
        assert!(!found.plugins.unwrap().is_empty());
        assert!(others.look().plugins.unwrap().is_empty());
        assert_eq!(ours.look(), Found::default());
        std::fs::write(dir.path().join("limit.yaml"), "kind: [").unwrap();
        let found = ours.look();
        assert!(found.errors[0].contains("limit.yaml"), "{:?}", found.errors);
        assert!(!found.plugins.unwrap().is_empty(), "what it said before stays");
        assert_eq!(ours.look(), Found::default());
        std::fs::remove_file(dir.path().join("limit.yaml")).unwrap();
        assert!(ours.look().plugins.unwrap().is_empty());
    }
}
