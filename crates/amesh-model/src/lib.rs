//! The mesh model: what the data plane needs to know of a mesh, in plain Rust and in an archived form.
//!
//! Every type has an `Archived…` twin made by [`rkyv`], position independent and read in place from
//! shared memory. Names are Envoy's. Nothing here knows of Envoy's protobufs or of nginx.
//!
//! Units: durations are milliseconds (`u64`, `0` is what the field's documentation says), ports are
//! host byte order, addresses are octets in network order.
//!
//! Four kinds of resource are published, each a slot of its own, see [`Kind`]: [`listener::Listener`],
//! [`route::RouteTable`], [`cluster::Cluster`] and [`endpoint::EndpointSet`].

#![forbid(unsafe_code)]
// The archived twins that rkyv derives carry no documentation of their own.
#![allow(missing_docs)]

use std::hash::{Hash, Hasher};

pub mod address;
pub mod batch;
pub mod bucket;
pub mod cluster;
pub mod endpoint;
pub mod filter;
pub mod hash_policy;
pub mod header;
pub mod health;
pub mod internal_redirect;
pub mod listener;
pub mod matcher;
pub mod metadata;
pub mod plan;
pub mod proxy_protocol;
pub mod retry;
pub mod route;
pub mod route_index;
pub mod subset;
pub mod vitals;

/// What a slot holds. The number is the slot's kind in shared memory and in snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// A [`listener::Listener`], keyed by its name (`LDS`).
    Listener = 1,
    /// A [`route::RouteTable`], keyed by its name (`RDS`).
    RouteTable = 2,
    /// A [`cluster::Cluster`], keyed by its name (`CDS`).
    Cluster = 3,
    /// An [`endpoint::EndpointSet`], keyed by the name of the cluster that it belongs to.
    EndpointSet = 4,
    /// A [`listener::ListenerIndex`], keyed by the empty name: which listener takes which address.
    ListenerIndex = 5,
}

impl Kind {
    /// Every kind, in the order in which a batch is published: make before break.
    pub const ALL: [Kind; 5] =
        [Kind::EndpointSet, Kind::Cluster, Kind::RouteTable, Kind::Listener, Kind::ListenerIndex];

    /// The kind of a number that [`Kind`] was turned into, `None` for any other.
    pub fn from_u8(n: u8) -> Option<Kind> {
        Self::ALL.into_iter().find(|k| *k as u8 == n)
    }
}

/// Goes up when an archived type changes in a way that its size does not show: zones and snapshots of another layout are
/// not read.
pub const LAYOUT: u32 = 5;

/// What archived data can be read by: this very build of the types. Two that say the same read the same.
pub fn layout_hash() -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    (env!("CARGO_PKG_VERSION"), LAYOUT).hash(&mut hasher);
    for size in [
        size_of::<listener::ArchivedListener>(),
        size_of::<route::ArchivedRouteTable>(),
        size_of::<cluster::ArchivedCluster>(),
        size_of::<endpoint::ArchivedEndpointSet>(),
        size_of::<listener::ArchivedListenerIndex>(),
    ] {
        size.hash(&mut hasher);
    }
    hasher.finish()
}
