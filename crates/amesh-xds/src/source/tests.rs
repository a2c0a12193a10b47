//! Real files, real inotify.

use super::*;
use crate::translate;
use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

fn cluster(name: &str, timeout: u32) -> String {
    format!("\"@type\": {}\nname: {name}\ntype: STATIC\nconnect_timeout: {timeout}s\n", translate::CLUSTER)
}

fn names(resources: &[Resource]) -> Vec<&str> {
    resources.iter().map(|r| r.name.as_str()).collect()
}

fn errors(changes: &Changes) -> String {
    changes.errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_directory_is_read_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let p = dir.path();
    fs::write(p.join("b.yaml"), format!("{}---\n{}", cluster("b1", 1), cluster("b2", 1))).unwrap();
    fs::write(p.join("a.json"), format!(r#"{{"@type": "{}", "name": "a"}}"#, translate::CLUSTER)).unwrap();
    fs::write(p.join("bad.yml"), "name: [").unwrap();
    fs::write(p.join(".hidden.yaml"), "name: [").unwrap();
    fs::write(p.join("notes.txt"), "name: [").unwrap();
    fs::create_dir(p.join("dir.yaml")).unwrap();
    let loaded = read_all(p);
    assert_eq!(names(&loaded.resources), ["a", "b1", "b2"]);
    assert_eq!(loaded.errors.len(), 1);
    let text = loaded.errors[0].to_string();
    assert!(text.contains("bad.yml") && text.contains("document 1") && text.contains("line 2"), "{text}");
    assert_eq!(names(&read_all(&p.join("b.yaml")).resources), ["b1", "b2"]);
    let gone = read_all(&p.join("nowhere"));
    assert!(gone.errors[0].to_string().contains("nowhere: No such file"));
}

#[test]
fn a_bad_file_keeps_what_it_said_and_is_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    let mut files = Files::new(dir.path());
    fs::write(&path, cluster("a", 1)).unwrap();
    assert_eq!(names(&files.scan().added), ["a"]);
    assert!(files.scan().is_empty());
    fs::write(&path, "name: {").unwrap();
    let changes = files.scan();
    assert!(changes.added.is_empty() && changes.removed.is_empty());
    assert!(errors(&changes).contains("a.yaml"), "{changes:?}");
    assert!(files.scan().is_empty(), "told once");
    // Another mistake is told again, with its place.
    fs::write(&path, format!("{}no_such_field: 1\n", cluster("a", 1))).unwrap();
    let changes = files.scan();
    assert!(errors(&changes).contains("no_such_field"), "{}", errors(&changes));
    assert!(files.get(translate::CLUSTER, "a").is_some());
    fs::write(&path, cluster("a", 2)).unwrap();
    let changes = files.scan();
    assert_eq!((names(&changes.added), changes.mended), (vec!["a"], 1));
    fs::remove_file(&path).unwrap();
    assert_eq!(files.scan().removed, [(translate::CLUSTER.to_owned(), "a".to_owned())]);
}

#[test]
fn one_resource_in_two_files_is_an_error_that_names_both() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a.yaml"), dir.path().join("b.yaml"));
    let mut files = Files::new(dir.path());
    fs::write(&b, cluster("x", 1)).unwrap();
    files.scan();
    fs::write(&a, cluster("x", 2)).unwrap();
    let changes = files.scan();
    // Who had it first goes on having it, whatever the names of the files.
    assert!(changes.added.is_empty());
    let text = errors(&changes);
    assert!(text.contains("a.yaml") && text.contains("b.yaml") && text.contains("cds \"x\""), "{text}");
    fs::remove_file(&b).unwrap();
    let changes = files.scan();
    assert_eq!((names(&changes.added), changes.removed.len(), changes.mended), (vec!["x"], 0, 1));
    fs::write(&a, format!("{}---\n{}", cluster("y", 1), cluster("y", 2))).unwrap();
    assert!(errors(&files.scan()).contains("is there twice, as resource 1 and 2"));
}

#[test]
fn a_directory_that_is_gone_takes_nothing_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("xds");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("a.yaml"), cluster("a", 1)).unwrap();
    let mut files = Files::new(&path);
    files.scan();
    fs::remove_dir_all(&path).unwrap();
    let changes = files.scan();
    assert!(changes.removed.is_empty() && errors(&changes).contains("what was read before stays"));
}

/// Waits for the watch, then scans, until `name` is there. The wait is interrupted all the time, as the engine's is.
async fn until(watch: &mut Watch, files: &mut Files, name: &str) {
    let soon = async {
        loop {
            while tokio::time::timeout(Duration::from_millis(20), watch.changed()).await.is_err() {}
            if files.scan().added.iter().any(|r| r.name == name) {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), soon).await.unwrap_or_else(|_| panic!("{name} was never seen"));
}

#[tokio::test]
async fn every_way_to_change_a_file_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let p = dir.path();
    let (mut watch, mut files) = (Watch::new(p), Files::new(p));
    assert_eq!(watch.error(), None);
    // Written in place.
    fs::write(p.join("a.yaml"), cluster("written", 1)).unwrap();
    until(&mut watch, &mut files, "written").await;
    // Beside it, then renamed over it, as editors and careful programs do.
    fs::write(p.join(".tmp"), cluster("renamed", 1)).unwrap();
    fs::rename(p.join(".tmp"), p.join("a.yaml")).unwrap();
    until(&mut watch, &mut files, "renamed").await;
    // Moved in from elsewhere.
    let other = tempfile::tempdir_in(p.parent().unwrap()).unwrap();
    fs::write(other.path().join("m.yaml"), cluster("moved", 1)).unwrap();
    fs::rename(other.path().join("m.yaml"), p.join("m.yaml")).unwrap();
    until(&mut watch, &mut files, "moved").await;
    // Gone.
    fs::remove_file(p.join("m.yaml")).unwrap();
    tokio::time::timeout(Duration::from_secs(10), watch.changed()).await.unwrap();
    assert_eq!(files.scan().removed.len(), 1);
}

#[tokio::test]
async fn the_swapped_link_of_a_pods_volume_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let p = dir.path();
    for (version, name) in [("..v1", "one"), ("..v2", "two")] {
        fs::create_dir(p.join(version)).unwrap();
        fs::write(p.join(version).join("a.yaml"), cluster(name, 1)).unwrap();
    }
    symlink("..v1", p.join("..data")).unwrap();
    symlink("..data/a.yaml", p.join("a.yaml")).unwrap();
    let (mut watch, mut files) = (Watch::new(p), Files::new(p));
    assert_eq!(names(&files.scan().added), ["one"]);
    symlink("..v2", p.join("..data_tmp")).unwrap();
    fs::rename(p.join("..data_tmp"), p.join("..data")).unwrap();
    until(&mut watch, &mut files, "two").await;
}

#[tokio::test]
async fn a_link_to_a_directory_that_is_swapped_is_seen_and_followed() {
    let dir = tempfile::tempdir().unwrap();
    let current = dir.path().join("current");
    for (version, name) in [("v1", "one"), ("v2", "two")] {
        fs::create_dir(dir.path().join(version)).unwrap();
        fs::write(dir.path().join(version).join("a.yaml"), cluster(name, 1)).unwrap();
    }
    symlink("v1", &current).unwrap();
    let (mut watch, mut files) = (Watch::new(&current), Files::new(&current));
    files.scan();
    symlink("v2", dir.path().join("next")).unwrap();
    fs::rename(dir.path().join("next"), &current).unwrap();
    until(&mut watch, &mut files, "two").await;
    fs::write(dir.path().join("v2/b.yaml"), cluster("three", 1)).unwrap();
    until(&mut watch, &mut files, "three").await;
}

#[tokio::test]
async fn a_directory_that_comes_later_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("later/xds");
    let (mut watch, mut files) = (Watch::new(&path), Files::new(&path));
    assert!(watch.error().is_some());
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("a.yaml"), cluster("late", 1)).unwrap();
    until(&mut watch, &mut files, "late").await;
    assert_eq!(watch.error(), None);
    fs::write(path.join("a.yaml"), cluster("later", 1)).unwrap();
    until(&mut watch, &mut files, "later").await;
}

#[tokio::test]
async fn a_single_file_is_watched_over_its_replacement() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("all.yaml");
    fs::write(&path, cluster("one", 1)).unwrap();
    let (mut watch, mut files) = (Watch::new(&path), Files::new(&path));
    files.scan();
    for name in ["two", "three"] {
        fs::write(dir.path().join("tmp"), cluster(name, 1)).unwrap();
        fs::rename(dir.path().join("tmp"), &path).unwrap();
        until(&mut watch, &mut files, name).await;
    }
    fs::write(&path, cluster("four", 1)).unwrap();
    until(&mut watch, &mut files, "four").await;
}
