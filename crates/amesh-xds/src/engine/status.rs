//! The engine's state as JSON.

use crate::store;
use serde::Serialize;
use std::collections::BTreeMap;

/// A source as people see it. Times are Unix time in ms.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct SourceStatus {
    /// `grpc` or `file`.
    pub(super) kind: &'static str,
    /// Where.
    pub(super) target: String,
    /// `connecting`, `connected`, `waiting` (to be tried), `idle` (another one serves), `watching`, `polling`.
    pub(super) state: &'static str,
    /// Since when it is in this state.
    pub(super) since: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_error: Option<ErrorStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) protocol: Option<crate::transport::Protocol>,
    /// What the control plane says it is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) control_plane: String,
    /// By type: `cds`, `eds`, `lds`, `rds`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) types: BTreeMap<String, TypeStatus>,
    /// Files that are read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) files: Option<usize>,
    /// What is wrong with them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) file_errors: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct ErrorStatus {
    pub(super) at: u64,
    pub(super) text: String,
}

/// What came of one type.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct TypeStatus {
    pub(super) responses: u64,
    pub(super) nacks: u64,
    /// When the last response came.
    pub(super) at: u64,
    /// The version that it had, where the protocol has one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) version: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct SnapshotStatus {
    pub(super) path: String,
    /// When the one on disk was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) written: Option<u64>,
    /// Age of the one that was loaded at start, at that time, in ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) loaded_age: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct BoundStatus {
    pub(super) name: String,
    pub(super) addresses: Vec<String>,
    pub(super) inbound: bool,
}

#[derive(Serialize)]
pub(super) struct EngineStatus<'a> {
    /// Something is published.
    pub(super) ready: bool,
    pub(super) node: &'a str,
    pub(super) sources: &'a [SourceStatus],
    /// Why the zone does not hold all that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) publish_error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) snapshot: Option<&'a SnapshotStatus>,
    /// Names that have no address, and why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) unresolved: &'a BTreeMap<String, String>,
    /// Listeners that want a socket of their own.
    pub(super) bound_listeners: Vec<BoundStatus>,
    #[serde(flatten)]
    pub(super) store: store::Status,
}
