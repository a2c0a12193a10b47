//! How long a request may take (`FilterUtility::finalTimeout`, `FilterManager`'s stream duration).

use crate::route::{is_grpc, RequestHead};
use amesh_model::route::ArchivedForwardAction;

/// How long things may take, in ms; 0: as long as they want.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the end of the request to the end of the response, over all tries.
    pub global: u64,
    /// One try.
    pub per_try: u64,
    /// The endpoint is told in `grpc-timeout`, too.
    pub grpc: bool,
}

impl Timeouts {
    /// What the endpoint is told in `x-envoy-expected-rq-timeout-ms`; 0: nothing.
    pub fn expected(&self) -> u64 {
        match self.per_try {
            0 => self.global,
            per_try => per_try,
        }
    }
}

/// The time-outs of a request: the route's, with what the request's own headers say.
pub fn timeouts(action: &ArchivedForwardAction, respect_expected: bool, head: &impl RequestHead) -> Timeouts {
    let number = |name| -> Option<u64> { std::str::from_utf8(head.first_value(name)?).ok()?.trim().parse().ok() };
    let mut out =
        Timeouts { global: action.timeout.to_native(), per_try: action.retry.per_try_timeout.to_native(), grpc: false };
    if let Some(max) = action.max_grpc_timeout.as_ref().filter(|_| is_grpc(head)) {
        let own = head.first_value("grpc-timeout").and_then(grpc_timeout).unwrap_or(0);
        out.global = match (max.to_native(), own.saturating_sub(action.grpc_timeout_offset.to_native())) {
            (max, 0) => max,
            (0, own) => own,
            (max, own) => own.min(max),
        };
        out.grpc = true;
    }
    let expected = respect_expected.then(|| number("x-envoy-expected-rq-timeout-ms")).flatten();
    if let Some(ms) = expected.or_else(|| number("x-envoy-upstream-rq-timeout-ms")) {
        out.global = ms;
    }
    if let Some(ms) = number("x-envoy-upstream-rq-per-try-timeout-ms") {
        out.per_try = ms;
    }
    if out.global != 0 && out.per_try >= out.global {
        out.per_try = 0;
    }
    out
}

/// How long a stream may last in ms; 0: for ever (`FilterManager`'s `max_stream_duration`, `grpc-timeout`).
/// `of_manager` is what the connection manager says.
pub fn max_stream_duration(action: &ArchivedForwardAction, of_manager: u64, head: &impl RequestHead) -> u64 {
    let of_route = &action.max_stream_duration;
    let grpc_max = of_route.grpc_timeout_header_max.as_ref().map(|max| max.to_native());
    if let (Some(max), Some(own)) = (grpc_max, head.first_value("grpc-timeout").and_then(grpc_timeout)) {
        let own = own.saturating_sub(of_route.grpc_timeout_header_offset.to_native());
        return if max == 0 { own } else { own.min(max) };
    }
    of_route.max_stream_duration.as_ref().map_or(of_manager, |ms| ms.to_native())
}

/// `grpc-timeout` in ms, rounded up: at most eight digits and a unit.
fn grpc_timeout(value: &[u8]) -> Option<u64> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let n: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => n * 3_600_000,
        b'M' => n * 60_000,
        b'S' => n * 1000,
        b'm' => n,
        b'u' => n.div_ceil(1000),
        b'n' => n.div_ceil(1_000_000),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_have_a_unit_and_eight_digits() {
        let cases: [(&[u8], Option<u64>); 8] = [
            (b"1S", Some(1000)),
            (b"20m", Some(20)),
            (b"1500u", Some(2)),
            (b"99999999H", Some(359_999_996_400_000)),
            (b"100000000S", None),
            (b"S", None),
            (b"1", None),
            (b"-1S", None),
        ];
        for (text, want) in cases {
            assert_eq!(grpc_timeout(text), want, "{}", String::from_utf8_lossy(text));
        }
    }
}
