//! Directories of documents, looked at now and then.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Time of a file's last change, and its length.
pub type Stamp = (SystemTime, u64);

/// The stamp of a file; `None` where it cannot be had.
pub fn stamp(path: &Path) -> Option<Stamp> {
    std::fs::metadata(path).and_then(|m| Ok((m.modified()?, m.len()))).ok()
}

/// The file of a path, or the files of a directory in the order of their names: YAML and JSON, no hidden ones.
///
/// # Errors
/// It is not there, or cannot be read.
pub fn paths(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return std::fs::metadata(path).map(|_| vec![path.to_owned()]);
    }
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let path = entry?.path();
        let known = |e: &std::ffi::OsStr| e == "yaml" || e == "yml" || e == "json";
        if path.extension().is_some_and(known) && !hidden(&path) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}
