//! Token buckets: how many get one, and when.

mod common;

use amesh_dataplane::bucket::{Bucket, Level};
use amesh_model::bucket::TokenBucket;
use common::stored;
use proptest::prelude::*;
use std::sync::atomic::AtomicU64;

const SECOND: u64 = 1_000_000_000;
/// A machine that was started a moment ago.
const START: u64 = 5 * SECOND;

fn bucket(max_tokens: u32, tokens_per_fill: u32, fill_interval: u64) -> Bucket {
    stored(&TokenBucket { max_tokens, tokens_per_fill, fill_interval, ..TokenBucket::default() }).into()
}

#[test]
fn it_is_full_at_first_and_filled_all_the_time() {
    let (bucket, state) = (bucket(3, 2, 1000), AtomicU64::new(0));
    assert_eq!(bucket.level(&state, START), Level { limit: 3, remaining: 3, reset: 0 });
    let taken = |at| (0..5).filter(|_| bucket.take(&state, at)).count();
    assert_eq!(taken(START), 3);
    assert_eq!(bucket.level(&state, START), Level { limit: 3, remaining: 0, reset: 1 });
    assert_eq!(taken(START + SECOND / 2 - 1), 0);
    assert_eq!(taken(START + SECOND / 2), 1);
    assert_eq!(taken(START + 3 * SECOND / 2), 2, "two a second");
    assert_eq!(taken(START + 3600 * SECOND), 3, "and no more than it holds");
}

#[test]
fn a_bucket_that_holds_nothing_gives_nothing() {
    let state = AtomicU64::new(0);
    assert!(!bucket(0, 1, 1000).take(&state, START));
    assert!(!bucket(0, 1, 1000).take(&state, START + 3600 * SECOND));
}

#[test]
fn takers_of_all_sides_get_no_more_than_there_is() {
    let (bucket, state) = (bucket(1000, 1, 3_600_000), AtomicU64::new(0));
    let got: usize = std::thread::scope(|s| {
        let take = || s.spawn(|| (0..1000).filter(|n| bucket.take(&state, START + n)).count());
        [take(), take(), take(), take()].into_iter().map(|t| t.join().unwrap()).sum()
    });
    assert_eq!(got, 1000);
}

proptest! {
    /// However requests come: at most what it held and what came since, and, being asked all the time, no less.
    #[test]
    fn over_any_time_it_gives_what_came(
        max in 1u32..50,
        per_fill in 1u32..50,
        interval in 50u64..5000,
        steps in proptest::collection::vec(0u64..SECOND, 1..200),
    ) {
        let (bucket, state) = (bucket(max, per_fill, interval), AtomicU64::new(0));
        let (mut now, mut got) = (START, 0u64);
        for step in steps {
            now += step;
            while bucket.take(&state, now) {
                got += 1;
            }
            prop_assert_eq!(bucket.level(&state, now).remaining, 0);
        }
        let came = (now - START) as f64 / (interval as f64 * 1e6) * f64::from(per_fill);
        // A ns is lost or won for each that is taken.
        prop_assert!(got as f64 <= f64::from(max) + came + 0.01, "{got} of {came}");
    }
}
