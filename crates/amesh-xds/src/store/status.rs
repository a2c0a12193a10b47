//! What the store can tell people.

use super::{Store, Type};
use crate::translate::NoteKind;
use std::collections::BTreeMap;

/// The state of the store. Sizes do not grow with the mesh, but for what waits and what was rejected.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Status {
    /// By type.
    pub resources: BTreeMap<&'static str, TypeStatus>,
    /// What was rejected and has not been mended since.
    pub rejected: Vec<RejectedStatus>,
    /// Fields that are refused or ignored.
    pub notes: Vec<NoteStatus>,
    /// What was accepted and is not published yet.
    pub waiting: Vec<WaitingStatus>,
}

/// The resources of one type.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct TypeStatus {
    /// How many there are.
    pub count: usize,
    /// How many there are of each version, of at most [`TypeStatus::VERSIONS`] versions.
    pub versions: BTreeMap<String, usize>,
}

impl TypeStatus {
    /// Most versions that are listed.
    pub const VERSIONS: usize = 16;
}

/// A resource that was rejected.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct RejectedStatus {
    /// Its type.
    #[serde(rename = "type")]
    pub resource: &'static str,
    /// Its name.
    pub name: String,
    /// The version that was rejected.
    pub version: String,
    /// The field.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
    /// When, in Unix time in ms.
    pub at: u64,
    /// The version that serves instead, if any.
    pub last_good: Option<String>,
}

/// A field that is not acted on.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct NoteStatus {
    /// What became of it.
    pub kind: NoteKind,
    /// The type of its resources.
    #[serde(rename = "type")]
    pub resource: &'static str,
    /// Its path, without indexes.
    pub field: String,
    /// Why it is not acted on.
    pub why: String,
    /// In how many resources it is.
    pub resources: usize,
    /// In how many places of them.
    pub places: u64,
    /// A resource where it was found.
    pub example: String,
}

/// A resource that is not published yet.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct WaitingStatus {
    /// Its type.
    #[serde(rename = "type")]
    pub resource: &'static str,
    /// Its name.
    pub name: String,
    /// What it waits for.
    pub wants: Vec<String>,
}

impl Store {
    /// The state of the store, for people.
    pub fn status(&self) -> Status {
        let of_type = |t: Type| {
            let mut out = TypeStatus::default();
            for good in self.goods(t).values() {
                out.count += 1;
                if out.versions.len() < TypeStatus::VERSIONS || out.versions.contains_key(&good.version) {
                    *out.versions.entry(good.version.clone()).or_default() += 1;
                }
            }
            (t.name(), out)
        };
        let rejected = self.rejections.iter().map(|((t, name), r)| RejectedStatus {
            resource: t.name(),
            name: name.clone(),
            version: r.version.clone(),
            field: r.field.clone(),
            reason: r.reason.clone(),
            at: r.at,
            last_good: self.good(*t, name).map(|g| g.version.clone()),
        });
        let cold_clusters = self.clusters.iter().filter(|(_, r)| r.next.is_some());
        let cold_listeners = self.listeners.iter().filter(|(_, r)| r.next.is_some());
        let mut waiting: Vec<_> = cold_clusters
            .map(|(n, r)| (Type::Cluster, n, self.cluster_waits_for(r)))
            .chain(cold_listeners.map(|(n, r)| (Type::Listener, n, self.listener_waits_for(r))))
            .map(|(t, name, wants)| WaitingStatus { resource: t.name(), name: name.clone(), wants })
            .collect();
        waiting.sort_by(|a, b| (a.resource, &a.name).cmp(&(b.resource, &b.name)));
        Status {
            resources: Type::ALL.into_iter().map(of_type).collect(),
            rejected: rejected.collect(),
            notes: self.ledger.status(),
            waiting,
        }
    }
}
