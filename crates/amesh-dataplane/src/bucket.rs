//! Token buckets without a lock (`AtomicTokenBucketImpl`).
//!
//! How full a bucket is follows from one number: the time at which it would have been empty, had it been filled ever
//! since. Taking a token moves that time on by as long as a token takes to come.

use amesh_model::bucket::ArchivedTokenBucket;
use std::sync::atomic::{AtomicU64, Ordering};

/// Envoy's slowest bucket: a token a year, in ns.
const SLOWEST: f64 = 365.0 * 86_400.0 * 1e9;

/// Added to the clock, which may have begun a moment ago: a bucket that takes a day to fill was empty a day before.
const BEFORE: u64 = 1 << 63;

/// What a bucket is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    max: f64,
    /// How long a token takes to come, in ns.
    token: f64,
}

/// How full a bucket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// `x-ratelimit-limit`.
    pub limit: u32,
    /// `x-ratelimit-remaining`.
    pub remaining: u32,
    /// `x-ratelimit-reset`, in seconds.
    pub reset: u64,
}

impl From<&ArchivedTokenBucket> for Bucket {
    fn from(bucket: &ArchivedTokenBucket) -> Bucket {
        let interval = bucket.fill_interval.to_native() as f64 * 1e6;
        let token = (interval / f64::from(bucket.tokens_per_fill.to_native().max(1))).clamp(1.0, SLOWEST);
        Bucket { max: f64::from(bucket.max_tokens.to_native()), token }
    }
}

impl Bucket {
    /// Tokens that are there. `empty_at` is 0 for a bucket that was never used; clocks of two processors may differ.
    fn tokens(self, empty_at: u64, now: u64) -> f64 {
        if empty_at == 0 {
            return self.max;
        }
        (now.saturating_sub(empty_at) as f64 / self.token).min(self.max)
    }

    /// Takes a token, if there is one. `now` is a time in ns that never goes back, the same for all who take.
    pub fn take(self, state: &AtomicU64, now: u64) -> bool {
        let now = now.saturating_add(BEFORE);
        let taken = state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |empty_at| {
            let left = self.tokens(empty_at, now) - 1.0;
            // 0 is a bucket that was never used.
            (left >= 0.0).then(|| now.saturating_sub((left * self.token) as u64).max(1))
        });
        taken.is_ok()
    }

    /// How full it is.
    pub fn level(self, state: &AtomicU64, now: u64) -> Level {
        let tokens = self.tokens(state.load(Ordering::Relaxed), now.saturating_add(BEFORE));
        let wait = if tokens >= 1.0 { 0.0 } else { (1.0 - tokens) * self.token };
        Level { limit: self.max as u32, remaining: tokens as u32, reset: (wait / 1e9).ceil() as u64 }
    }
}
