//! What the thread works out once for all picks: who may be picked, with which share. It stands beside the endpoints in
//! their slot, so that a worker picks without looking at each of them.
//!
//! A plan holds as long as no endpoint's health at run time differs from what the control plane says of it; how many may
//! differ before anything but the endpoint itself changes is [`View::spare`].

mod build;
mod hashing;
mod loads;
mod wheel;

pub use build::build;
pub use loads::{effective_locality_weight, loads, scaled_locality_weight, Census, Load, Source};

use rkyv::{Archive, Deserialize, Serialize};

/// See the module. Endpoints go by their number: their place in the set, in order.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Where the endpoint of a number stands.
    pub places: Vec<Place>,
    /// All endpoints.
    pub view: View,
    /// Subsets of them, where the cluster has subsets.
    pub subsets: Option<Box<SubsetPlan>>,
    /// When the last endpoint came that starts slowly, in Unix time in ms.
    pub newest: u64,
}

/// Subsets of the endpoints.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct SubsetPlan {
    /// Their numbers ([`crate::subset::subset_id`]), ascending.
    pub ids: Vec<u64>,
    /// The endpoints of each.
    pub views: Vec<View>,
    /// The default subset.
    pub default: View,
}

/// Where an endpoint stands in its set.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of its locality.
    pub locality: u32,
    /// Its index there.
    pub endpoint: u32,
}

/// Endpoints that are balanced together: all of a set, or a subset.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct View {
    /// Their numbers, ascending; they are in the order of priorities, too.
    pub members: Vec<u32>,
    /// How requests are shared out over priorities; empty: there is nobody.
    pub shares: Vec<Share>,
    /// What shares point to.
    pub pools: Vec<Pool>,
    /// So many endpoints may fall ill at run time and still get no request, the others keeping their shares among
    /// themselves: neither priorities nor localities nor panic would change.
    pub spare: u32,
}

/// A share of the requests.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Share {
    /// Where it ends, in per cent; it begins where the one before ends.
    pub end: u32,
    /// The first of its pools, one after the other.
    pub pool: u32,
    /// How its pools (localities) share; of one pool only: nothing is drawn.
    pub localities: Wheel,
}

/// Endpoints to pick from.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Pool {
    /// Their numbers.
    pub members: Vec<u32>,
    /// Their weights.
    pub wheel: Wheel,
    /// Who takes which hash, where the policy hashes.
    pub table: Table,
    /// Their weights as parts of 1, where the load of each is bounded (`hash_balance_factor`); else empty.
    pub parts: Vec<f64>,
}

/// Who takes which hash.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub enum Table {
    /// Nobody: hashes do not decide, or there is nobody.
    #[default]
    None,
    /// Whose hash follows.
    Ring {
        /// Ascending.
        hashes: Vec<u64>,
        /// Whose they are.
        owners: Owners,
    },
    /// By the remainder.
    Maglev(Owners),
}

/// Indexes of [`Pool::members`], in the smallest form that holds them all.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum Owners {
    /// Up to 256 members.
    U8(Vec<u8>),
    /// Up to 65,536 members.
    U16(Vec<u16>),
    /// More.
    U32(Vec<u32>),
}

/// A round of turns by weight: every unit of weight is one turn of the round.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Wheel {
    /// Turns in a round: the sum of the weights over their greatest common divisor.
    pub units: u64,
    /// The walk through the units has steps of this length; prime to `units`, near its golden section.
    pub step: u64,
    /// Where the units of each end; empty: everyone has one.
    pub ends: Vec<u64>,
}
