//! The endpoints of which one is drawn.

use amesh_model::endpoint::{ArchivedEndpoint, ArchivedEndpointSet};
use amesh_model::plan::{ArchivedPool, Wheel};

pub(super) enum Candidates<'a> {
    /// As the thread worked it out.
    Planned {
        set: &'a ArchivedEndpointSet,
        pool: &'a ArchivedPool,
        /// They are those of one of several localities.
        several: bool,
    },
    /// As they were found by looking at every endpoint.
    Walked { endpoints: Vec<&'a ArchivedEndpoint>, wheel: Wheel, several: bool },
}

impl<'a> Candidates<'a> {
    pub(super) fn is_planned(&self) -> bool {
        matches!(self, Candidates::Planned { .. })
    }

    /// Whether a locality was drawn before.
    pub(super) fn are_of_a_locality(&self) -> bool {
        let (Candidates::Planned { several, .. } | Candidates::Walked { several, .. }) = self;
        *several
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Candidates::Planned { pool, .. } => pool.members.len(),
            Candidates::Walked { endpoints, .. } => endpoints.len(),
        }
    }

    pub(super) fn nth(&self, n: usize) -> Option<&'a ArchivedEndpoint> {
        match self {
            Candidates::Planned { set, pool, .. } => set.endpoint(pool.members.get(n)?.to_native()),
            Candidates::Walked { endpoints, .. } => endpoints.get(n).copied(),
        }
    }

    /// Whether all weights are equal.
    pub(super) fn are_alike(&self) -> bool {
        match self {
            Candidates::Planned { pool, .. } => pool.wheel.ends.is_empty(),
            Candidates::Walked { wheel, .. } => wheel.ends.is_empty(),
        }
    }

    /// Whether an endpoint is one of those that were found by looking.
    pub(super) fn has(&self, endpoint: &ArchivedEndpoint) -> bool {
        matches!(self, Candidates::Walked { endpoints, .. } if endpoints.iter().any(|e| std::ptr::eq(*e, endpoint)))
    }

    /// Units of weight in all; above 0 as soon as there is anybody.
    pub(super) fn units(&self) -> u64 {
        match self {
            Candidates::Planned { pool, .. } => pool.wheel.units.to_native(),
            Candidates::Walked { wheel, .. } => wheel.units,
        }
        .max(1)
    }

    /// Whose a unit of weight is.
    pub(super) fn by_weight(&self, unit: u64) -> Option<&'a ArchivedEndpoint> {
        self.nth(match self {
            Candidates::Planned { pool, .. } => pool.wheel.at(unit),
            Candidates::Walked { wheel, .. } => wheel.at(unit),
        })
    }

    /// The unit of weight whose turn it is.
    pub(super) fn turn(&self, n: u64) -> u64 {
        match self {
            Candidates::Planned { pool, .. } => pool.wheel.turn(n),
            Candidates::Walked { wheel, .. } => wheel.turn(n),
        }
    }
}
