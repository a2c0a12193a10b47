//! Route tables and what becomes of requests under them, in the format of Envoy's `router_check_tool`: each `NAME.yaml`
//! below `tests/` with its `NAME.tests.yaml` (or `NAME.golden.proto.json` and `.yaml`, as Envoy names its own).

use amesh_ctl::route_check::{check, Cases, Table};
use amesh_dataplane::regex::RegexCache;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The files of tests below a directory, each with its route table.
fn suites(directory: &Path) -> Vec<(PathBuf, PathBuf)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            found.extend(suites(&entry));
            continue;
        }
        let name = entry.file_name().unwrap().to_str().unwrap();
        if let Some((stem, ".tests.yaml" | ".golden.proto.json" | ".golden.proto.yaml")) =
            name.find('.').map(|dot| name.split_at(dot))
        {
            found.push((entry.with_file_name(format!("{stem}.yaml")), entry.clone()));
        }
    }
    found.sort();
    found
}

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

#[test]
fn every_request_goes_where_its_test_says() {
    let mut failures = Vec::new();
    let mut count = 0;
    for (table_file, cases_file) in suites(&tests().join("routes")) {
        let table = Table::read(&table_file).unwrap_or_else(|e| panic!("{e}"));
        let cases = Cases::read(&cases_file).unwrap_or_else(|e| panic!("{e}"));
        let mut regexes = RegexCache::new();
        for case in &cases.tests {
            count += 1;
            for failure in check(&table, case, &mut regexes).unwrap().failures {
                failures.push(format!("{}: {}: {failure}", cases_file.display(), case.test_name));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(count > 10, "the tests were found: {count}");
}

/// Runs the program on a table and tests that are given as texts.
fn ameshctl(table: &str, tests: &str, options: &[&str]) -> (Output, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("table.yaml"), table).unwrap();
    std::fs::write(directory.path().join("tests.yaml"), tests).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_ameshctl"))
        .current_dir(directory.path())
        .args(["route-check", "-c", "table.yaml", "-t", "tests.yaml"])
        .args(options)
        .output()
        .unwrap();
    (output, directory)
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

const TABLE: &str = r#"
virtual_hosts:
- name: site
  domains: ["*"]
  routes:
  - name: first
    match: {prefix: /a}
    route: {cluster: a, timeout: 0s}
  - match: {prefix: /b}
    redirect: {host_redirect: elsewhere.example}
"#;

const PASSES: &str = r#"
tests:
- test_name: it goes to a
  input: {authority: x, path: /a, method: GET}
  validate: {cluster_name: a, path_rewrite: /a}
"#;

const FAILS: &str = r#"
tests:
- test_name: it goes to a
  input: {authority: x, path: /a, method: GET}
  validate: {cluster_name: a}
- test_name: it goes to b
  input: {authority: x, path: /b, method: GET}
  validate:
    cluster_name: b
    path_redirect: http://elsewhere.example/b
    code_redirect: 302
    response_header_matches:
    - {name: location, string_match: {exact: there}}
    - {name: location, present_match: true, invert_match: true}
"#;

#[test]
fn a_run_that_passes_says_what_is_covered() {
    let (output, _) = ameshctl(TABLE, PASSES, &["--details"]);
    assert!(output.status.success(), "{}", err(&output));
    assert_eq!(out(&output), "it goes to a\nCurrent route coverage: 50%\n");
    let (output, _) = ameshctl(TABLE, PASSES, &["--covall"]);
    assert_eq!(
        out(&output),
        "Missing test for host: site, route: prefix: \"/b\"\nCurrent route coverage: 20%\n",
        "2 of the 5 fields of one route, and none of the other"
    );
}

#[test]
fn too_little_coverage_fails() {
    let (output, _) = ameshctl(TABLE, PASSES, &["-f", "50"]);
    assert!(output.status.success());
    let (output, _) = ameshctl(TABLE, PASSES, &["--fail-under", "50.5"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(err(&output), "Failed to meet coverage requirement: 50.5%\n");
}

#[test]
fn what_differs_is_said_field_by_field() {
    let (output, directory) = ameshctl(TABLE, FAILS, &["--only-show-failures", "-o", "results.json"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(out(&output), "");
    assert_eq!(
        err(&output),
        "it goes to b\n\
         expected: [b], actual: [], test type: cluster_name\n\
         expected: [302], actual: [301], test type: code_redirect\n\
         expected: [location: there], actual: [location: http://elsewhere.example/b], \
         test type: response_header_matches.string_match.exact\n\
         expected: [has(location):false], actual: [has(location):true], \
         test type: response_header_matches.present_match\n\
         1 of 2 tests failed\n"
    );
    let results = std::fs::read_to_string(directory.path().join("results.json")).unwrap();
    let results: serde_json::Value = serde_json::from_str(&results).unwrap();
    assert_eq!(results["test_results"][0], serde_json::json!({"test_name": "it goes to a", "test_passed": true}));
    assert_eq!(results["test_results"][1]["failures"].as_array().unwrap().len(), 4);
}

#[test]
fn what_the_table_asks_in_vain_is_said() {
    let table = TABLE.replace("cluster: a", "cluster: a, flush_timeout: 1s");
    let (output, _) = ameshctl(&table, PASSES, &[]);
    assert!(output.status.success());
    assert!(err(&output).starts_with("ignored: virtual_hosts[].routes[].route.flush_timeout: "), "{}", err(&output));
}

#[test]
fn deprecated_fields_are_named_unless_nobody_wants_to_know() {
    let table = TABLE.replace("prefix: /b", "prefix: /b, headers: [{name: x, exact_match: y}]");
    let (output, _) = ameshctl(&table, PASSES, &[]);
    assert!(output.status.success());
    assert_eq!(err(&output), "deprecated: virtual_hosts[0].routes[1].match.headers[0].exact_match\n");
    let (output, _) = ameshctl(&table, PASSES, &["--disable-deprecation-check"]);
    assert_eq!(err(&output), "");
}

#[test]
fn a_routes_own_metadata_can_be_asked_for() {
    let table = TABLE.replace("- name: first", "- name: first\n    metadata: {filter_metadata: {ns: {k: v, n: 1}}}");
    let ask = |key: &str, value: &str| {
        let wanted = format!("cluster_name: a, route_metadata: [{{namespace: ns, key: {key}, value: {value}}}]");
        ameshctl(&table, &PASSES.replace("cluster_name: a", &wanted), &["--only-show-failures"]).0
    };
    assert!(ask("k", "v").status.success());
    let output = ask("k", "w");
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("expected: [w], actual: [v], test type: route_metadata.ns.k"), "{}", err(&output));
    assert!(!ask("none", "v").status.success());
}

#[test]
fn a_table_that_is_rejected_is_named_with_its_field() {
    let (output, _) = ameshctl(&TABLE.replace("cluster: a", "cluster: ''"), PASSES, &[]);
    assert_eq!(output.status.code(), Some(1));
    let said = err(&output);
    assert!(said.contains("table.yaml: rejected: virtual_hosts[0].routes[0].route.cluster: is empty"), "{said}");
    let (output, _) = ameshctl(&TABLE.replace("prefix: /a", "prefixx: /a"), PASSES, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("virtual_hosts[0].routes[0].match.prefixx"), "{}", err(&output));
}

#[test]
fn a_test_that_makes_no_sense_is_named() {
    for (from, to, said) in [
        ("cluster_name: a", "cluster_nam: a", "tests[0].validate.cluster_nam"),
        ("method: GET", "method: G", "tests[0] \"it goes to a\": method: is shorter than 3"),
        ("path: /a, ", "", "missing field `path`"),
        ("cluster_name: a", "request_header_matches: [{name: 'a b'}]", "is no name of a header"),
    ] {
        let (output, _) = ameshctl(TABLE, &PASSES.replace(from, to), &[]);
        assert_eq!(output.status.code(), Some(1), "{to}");
        assert!(err(&output).contains(said), "{to}: {}", err(&output));
    }
    let (output, _) = ameshctl(TABLE, "tests: []", &[]);
    assert_eq!(output.status.code(), Some(1));
}
