//! The xDS protocol over one aggregated stream, without a socket: what to say when a stream opens, and what to answer to
//! a response.
//!
//! Both variants follow <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol>: [`delta::Client`] (a
//! response carries what changed) and [`sotw::Client`] ("state of the world"). What a response brings goes to
//! [`Apply`], which says resource by resource what it rejects. The good resources of a response apply, the rejected ones
//! keep their last good version and are named in the NACK.
//!
//! Listeners and clusters are wildcards. Route tables and endpoint sets are asked for by the names that the accepted
//! listeners and clusters refer to.

use crate::store::{Names, NamesChange};
use crate::translate;
use envoy_types::pb::google::{protobuf::Any, rpc};
use std::collections::BTreeSet;

pub use crate::store::Rejected;

pub mod delta;
pub mod sotw;

#[cfg(test)]
mod delta_tests;
#[cfg(test)]
mod sotw_tests;
#[cfg(test)]
mod testing;

/// The types that are subscribed to, in the order in which they are asked for: make before break.
pub const TYPES: [&str; 4] =
    [translate::CLUSTER, translate::CLUSTER_LOAD_ASSIGNMENT, translate::LISTENER, translate::ROUTE_CONFIGURATION];

/// Whether all resources of a type are wanted, whatever their names.
pub fn is_wildcard(type_url: &str) -> bool {
    type_url == translate::CLUSTER || type_url == translate::LISTENER
}

/// The field's short name of a type: `cds`, `eds`, `lds`, `rds`; the type itself when it is none of these.
pub fn short_name(type_url: &str) -> &str {
    match type_url {
        translate::CLUSTER => "cds",
        translate::CLUSTER_LOAD_ASSIGNMENT => "eds",
        translate::LISTENER => "lds",
        translate::ROUTE_CONFIGURATION => "rds",
        other => other,
    }
}

/// A resource as a source sent it.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// Its name, unique within its type.
    pub name: String,
    /// The source's version of it; says nothing but "equal" or "not equal".
    pub version: String,
    /// Type and bytes.
    pub body: Any,
}

/// Where resources go, and who knows what is needed next.
pub trait Apply {
    /// Takes over resources of one type and drops the removed ones. `whole`: what is not among `added` is gone as well.
    /// Returns what was rejected; a rejected resource is not gone, its last good version stays.
    fn apply(&mut self, type_url: &str, added: Vec<Resource>, removed: Vec<String>, whole: bool) -> Vec<Rejected>;

    /// All names that are wanted of the types that are no wildcards.
    fn wanted(&self) -> Names;

    /// How the wanted names changed since this was called last.
    fn take_change(&mut self) -> NamesChange;

    /// Names and versions that are held of a type, for `initial_resource_versions`.
    fn held(&self, type_url: &str) -> Vec<(String, String)>;
}

/// What a client makes of one response.
#[derive(Debug)]
pub struct Reaction<R> {
    /// To be sent, in this order.
    pub requests: Vec<R>,
    /// What the NACK says; empty when the response was acknowledged.
    pub rejected: Vec<Rejected>,
    /// The response was left aside altogether, and why.
    pub ignored: Option<String>,
}

impl<R> Reaction<R> {
    fn ignored(why: String) -> Self {
        Reaction { requests: Vec::new(), rejected: Vec::new(), ignored: Some(why) }
    }
}

/// One side of an aggregated stream. A client outlives its streams.
pub trait Client {
    /// What is sent.
    type Request: Send + 'static;
    /// What is received.
    type Response: Send + 'static;

    /// The first requests of a new stream.
    fn on_connected(&mut self, apply: &mut dyn Apply) -> Vec<Self::Request>;

    /// Takes a response in; the requests begin with its ACK or NACK, and go on with what it makes necessary to ask for.
    fn on_response(&mut self, response: Self::Response, apply: &mut dyn Apply) -> Reaction<Self::Request>;

    /// What to send when the wanted names changed for a reason of their own.
    fn on_names_changed(&mut self, apply: &mut dyn Apply) -> Vec<Self::Request>;
}

/// Lines of a NACK at most: a control plane logs them.
const REPORTED: usize = 50;

fn error_detail(rejected: &[Rejected]) -> rpc::Status {
    let mut lines: Vec<String> = rejected.iter().take(REPORTED).map(Rejected::to_string).collect();
    if rejected.len() > REPORTED {
        lines.push(format!("and {} more", rejected.len() - REPORTED));
    }
    // 3 is INVALID_ARGUMENT of google.rpc.Code.
    rpc::Status { code: 3, message: lines.join("\n"), details: Vec::new() }
}

/// The names of one type; wildcards have none.
fn of_type(names: &mut Names, type_url: &str) -> BTreeSet<String> {
    match type_url {
        translate::CLUSTER_LOAD_ASSIGNMENT => std::mem::take(&mut names.eds),
        translate::ROUTE_CONFIGURATION => std::mem::take(&mut names.rds),
        _ => BTreeSet::new(),
    }
}

/// A resource whose body is of another type than its response says.
fn wrong_type(name: &str, is: &str, expected: &str) -> Rejected {
    Rejected { name: name.to_owned(), field: String::new(), reason: format!("is a {is}, not a {expected}") }
}
