//! `ameshctl route-check`: Envoy's route table check tool (`router_check_tool`) over the router of this data plane.
//!
//! A `RouteConfiguration` is translated and archived as for workers, each test's request goes through
//! [`amesh_dataplane::route::decide`] and the header edits, and what came out is compared with what the test expects.

mod cases;
mod check;
mod coverage;
mod request;
mod table;

pub use cases::{Case, Cases};
pub use check::{check, Outcome, Place};
pub use coverage::Coverage;
pub use table::Table;

use amesh_dataplane::regex::RegexCache;
use serde::Serialize;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Checks which route takes a request and what it does with it: Envoy's router_check_tool over this router.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// A RouteConfiguration in YAML or JSON.
    #[arg(short, long, value_name = "FILE")]
    pub config_path: PathBuf,
    /// The tests for it in YAML or JSON, as for Envoy's router_check_tool.
    #[arg(short, long, value_name = "FILE")]
    pub test_path: PathBuf,
    /// Name every test, not only the failed ones' number.
    #[arg(short, long)]
    pub details: bool,
    /// Name the tests that fail, and say how.
    #[arg(long)]
    pub only_show_failures: bool,
    /// Fail when less than this share of the routes is tested, in per cent.
    #[arg(short, long, value_name = "PERCENT", default_value_t = 0.0)]
    pub fail_under: f64,
    /// Count a route by the share of its fields that are tested, and list the routes without a test.
    #[arg(long)]
    pub covall: bool,
    /// List the routes without a test.
    #[arg(long)]
    pub detailed_coverage: bool,
    /// Say nothing of deprecated fields.
    #[arg(long)]
    pub disable_deprecation_check: bool,
    /// Write the results as JSON.
    #[arg(short, long, value_name = "FILE")]
    pub output_path: Option<PathBuf>,
}

/// Why nothing could be checked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is no YAML, no JSON, or has a field that does not exist.
    #[error("{0}")]
    Descriptor(#[from] amesh_xds::descriptor::Error),
    /// The route table is rejected, as it would be when a control plane sent it.
    #[error("{path}: rejected: {invalid}")]
    Rejected {
        /// The file.
        path: PathBuf,
        /// Field and reason.
        invalid: amesh_xds::translate::Invalid,
    },
    /// A file of tests is not what it should be.
    #[error("{path}: {at}: {reason}")]
    Cases {
        /// The file.
        path: PathBuf,
        /// The test and the field.
        at: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The model cannot be archived: a defect of this program.
    #[error("the route table cannot be archived: {0}")]
    Archive(String),
    /// The results cannot be printed.
    #[error("the results cannot be printed: {0}")]
    Print(#[from] io::Error),
}

/// A text file.
fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::File { path: path.to_owned(), source })
}

#[derive(Serialize)]
struct Results<'a> {
    test_results: Vec<TestResult<'a>>,
}

#[derive(Serialize)]
struct TestResult<'a> {
    test_name: &'a str,
    test_passed: bool,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    failures: &'a [String],
}

/// Runs the tests. `false`: one failed, or too little is covered.
///
/// # Errors
/// [`Error`] when there is nothing to check: a file that cannot be read, a route table that is rejected.
pub fn run(options: &Options, out: &mut impl Write, err: &mut impl Write) -> Result<bool, Error> {
    let table = Table::read(&options.config_path)?;
    let cases = Cases::read(&options.test_path)?;
    let hush = options.disable_deprecation_check;
    for note in table.notes().iter().chain(cases.notes()).filter(|note| !(hush && note.starts_with("deprecated"))) {
        writeln!(err, "{note}")?;
    }
    let mut regexes = RegexCache::new();
    let mut coverage = Coverage::new(table.routes()?);
    let mut outcomes = Vec::with_capacity(cases.tests.len());
    for case in &cases.tests {
        let outcome = check(&table, case, &mut regexes)?;
        coverage.mark(&outcome);
        outcomes.push((case, outcome));
    }
    for (case, Outcome { failures, .. }) in &outcomes {
        match failures.is_empty() {
            true if options.details && !options.only_show_failures => writeln!(out, "{}", case.test_name)?,
            true => {}
            false if options.details || options.only_show_failures => {
                writeln!(err, "{}", case.test_name)?;
                failures.iter().try_for_each(|failure| writeln!(err, "{failure}"))?;
            }
            false => {}
        }
    }
    if let Some(path) = &options.output_path {
        write_results(path, &outcomes)?;
    }
    let failed = outcomes.iter().filter(|(_, outcome)| !outcome.failures.is_empty()).count();
    if failed > 0 {
        writeln!(err, "{failed} of {} tests failed", outcomes.len())?;
        return Ok(false);
    }
    if options.covall || options.detailed_coverage {
        coverage.missing().iter().try_for_each(|missing| writeln!(out, "{missing}"))?;
    }
    let percent = if options.covall { coverage.of_fields() } else { coverage.of_routes() };
    writeln!(out, "Current route coverage: {}%", significant(percent))?;
    if percent < options.fail_under {
        writeln!(err, "Failed to meet coverage requirement: {}%", significant(options.fail_under))?;
        return Ok(false);
    }
    Ok(true)
}

fn write_results(path: &Path, outcomes: &[(&Case, Outcome)]) -> Result<(), Error> {
    let test_results = outcomes
        .iter()
        .map(|(case, outcome)| TestResult {
            test_name: &case.test_name,
            test_passed: outcome.failures.is_empty(),
            failures: &outcome.failures,
        })
        .collect();
    let file = |source| Error::File { path: path.to_owned(), source };
    let text = serde_json::to_vec_pretty(&Results { test_results }).map_err(|e| file(e.into()))?;
    std::fs::write(path, text).map_err(file)
}

/// A number with six significant digits, as C++ prints it.
fn significant(number: f64) -> String {
    let before_point = if number < 1.0 { 1 } else { number.log10().floor() as usize + 1 };
    let text = format!("{number:.*}", 6usize.saturating_sub(before_point));
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::significant;

    #[test]
    fn shares_are_printed_as_envoys_tool_prints_them() {
        assert_eq!(significant(100.0), "100");
        assert_eq!(significant(7.448_634_9), "7.44863");
        assert_eq!(significant(66.666_666_6), "66.6667");
        assert_eq!(significant(0.0), "0");
    }
}
