//! New endpoints get their share little by little (`EdfLoadBalancerBase::applySlowStartFactor`).

use amesh_model::cluster::{ArchivedCluster, ArchivedLbPolicy};
use amesh_model::endpoint::{ArchivedEndpoint, ArchivedEndpointSet};

/// Times that a pick passes over endpoints in slow start, at most. With all of them at the least share of a tenth, which
/// Envoy begins with, one pick in 10,000 would need more.
const DRAWS: u32 = 90;

pub(super) struct SlowStart {
    now: u64,
    window: u64,
    aggression: f64,
    least: f64,
}

impl SlowStart {
    /// `None` when no endpoint is in slow start.
    pub(super) fn of(cluster: &ArchivedCluster, set: &ArchivedEndpointSet, now: u64) -> Option<SlowStart> {
        let slow = cluster.slow_start.as_ref()?;
        let window = slow.window.to_native();
        let weighs = matches!(cluster.lb_policy, ArchivedLbPolicy::RoundRobin | ArchivedLbPolicy::LeastRequest { .. });
        if !weighs || now.saturating_sub(window) >= set.plan.newest.to_native() {
            return None;
        }
        let (aggression, least) = (slow.aggression.to_native(), slow.least.to_native());
        Some(SlowStart { now, window, aggression, least })
    }

    /// How often a pick may pass somebody over.
    pub(super) fn draws(&self) -> u32 {
        DRAWS
    }

    /// What an endpoint has of its share by now, as a part of 1.
    fn part(&self, endpoint: &ArchivedEndpoint) -> f64 {
        let since = self.now.saturating_sub(endpoint.added.to_native()).max(1);
        if since >= self.window {
            return 1.0;
        }
        let time = since as f64 / self.window as f64;
        let part = if self.aggression == 1.0 { time } else { time.powf(1.0 / self.aggression) };
        part.max(self.least)
    }

    /// Whether an endpoint that was drawn by its full share is passed over this time.
    pub(super) fn passes_over(&self, endpoint: &ArchivedEndpoint, random: &mut dyn FnMut() -> u64) -> bool {
        let part = self.part(endpoint);
        // 53 bits are what a float of 64 holds.
        part < 1.0 && (random() >> 11) as f64 / (1u64 << 53) as f64 >= part
    }
}
