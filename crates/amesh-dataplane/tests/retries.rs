//! What a response says of the pause before the next try.

mod common;

use amesh_dataplane::retry::reset_interval;
use amesh_model::retry::{RateLimitedBackOff, ResetHeader};
use common::{stored, Request};

const NOW: u64 = 1_700_000_000_250;

fn interval(headers: &[(&str, &str)]) -> Option<u64> {
    let header = |name: &str, unix_timestamp| ResetHeader { name: name.into(), unix_timestamp };
    let policy = RateLimitedBackOff {
        reset_headers: vec![header("retry-after", false), header("x-reset", true)],
        max_interval: 5000,
    };
    let mut response = Request::get("", "/");
    response.headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    reset_interval(stored(&policy), &response, NOW)
}

#[test]
fn the_first_header_that_makes_sense_says_how_long() {
    for (headers, want) in [
        (vec![], None),
        (vec![("retry-after", "3")], Some(3000)),
        (vec![("retry-after", "3"), ("retry-after", "4")], Some(3000)),
        (vec![("x-reset", "1700000002"), ("retry-after", "1")], Some(1000)),
        (vec![("x-reset", "1700000002")], Some(1750)),
        (vec![("retry-after", "tomorrow"), ("x-reset", "1700000002")], Some(1750)),
        // Too long, over, or at once: then the policy's own pause is taken.
        (vec![("retry-after", "6"), ("x-reset", "1700000002")], Some(1750)),
        (vec![("retry-after", "18446744073709551615")], None),
        (vec![("x-reset", "1699999999")], None),
        (vec![("x-reset", "1700000000")], None),
        (vec![("retry-after", "0")], None),
    ] {
        assert_eq!(interval(&headers), want, "{headers:?}");
    }
}
