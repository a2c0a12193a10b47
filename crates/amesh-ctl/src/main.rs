//! The program; see [`amesh_ctl`].

#![forbid(unsafe_code)]

use amesh_ctl::route_check;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Asks the code that workers run what a configuration does, without an nginx.
#[derive(Parser)]
#[command(name = "ameshctl", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    RouteCheck(route_check::Options),
}

fn main() -> ExitCode {
    let Command::RouteCheck(options) = Arguments::parse().command;
    match route_check::run(&options, &mut std::io::stdout().lock(), &mut std::io::stderr().lock()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("ameshctl: {e}");
            ExitCode::FAILURE
        }
    }
}
