//! When a try is made again (`RetryStateImpl`).

use crate::regex::RegexCache;
use crate::route::{any_header_matches, RequestHead};
use amesh_model::matcher::ArchivedHeaderMatcher;
use amesh_model::retry::{retry_on, ArchivedRateLimitedBackOff, ArchivedRetryPolicy};

/// Why there is no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// No connection came about.
    ConnectFailure,
    /// The connection ended before the request was on its way.
    BeforeRequest,
    /// The endpoint ended the connection, or the try took too long.
    Reset,
    /// The endpoint refused the stream (HTTP/2 `REFUSED_STREAM`).
    RefusedStream,
    /// A circuit breaker is open: never tried again.
    Overflow,
}

/// What the tries of one request follow: the route's policy with what the request's own headers say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retries {
    /// Bits of [`retry_on`]; 0: never.
    pub on: u32,
    /// Tries that may still be made.
    pub remaining: u32,
    /// Pauses so far.
    pauses: u32,
    /// Base and longest interval in ms.
    intervals: (u64, u64),
    /// Endpoints that were tried are passed over while there are others.
    pub previous_hosts: bool,
    /// See [`crate::lb::PickContext::host_selection_attempts`].
    pub host_selection_attempts: u32,
}

impl Retries {
    /// Never.
    pub const NONE: Retries = Retries {
        on: 0,
        remaining: 0,
        pauses: 0,
        intervals: (0, 0),
        previous_hosts: false,
        host_selection_attempts: 1,
    };

    /// The policy for one request. Names in `retry-on` headers that are not known are passed over.
    pub fn new(policy: &ArchivedRetryPolicy, head: &impl RequestHead, regexes: &mut RegexCache) -> Retries {
        let text = |name| head.first_value(name).and_then(|value| std::str::from_utf8(value).ok());
        let words = |name, bit: fn(&str) -> Option<u32>| {
            text(name).map_or(0, |list| list.split(',').filter_map(|word| bit(word.trim())).fold(0, |a, b| a | b))
        };
        let wanted = &policy.retriable_request_headers;
        let mut on = policy.retry_on.to_native();
        on |= words("x-envoy-retry-on", retry_on::http) | words("x-envoy-retry-grpc-on", retry_on::grpc);
        if !wanted.is_empty() && !any_header_matches(wanted, head, regexes) {
            on = 0;
        }
        let own = text("x-envoy-max-retries").and_then(|n| n.trim().parse().ok());
        // A policy that is not set is all zeroes, and a request that asks for retries gets Envoy's defaults.
        let (base, max) = match (policy.base_interval.to_native(), policy.max_interval.to_native()) {
            (0, _) => (25, 250),
            intervals => intervals,
        };
        let configured = match policy.retry_on.to_native() {
            0 => 1,
            _ => policy.num_retries.to_native(),
        };
        Retries {
            on,
            remaining: if on == 0 { 0 } else { own.unwrap_or(configured) },
            pauses: 0,
            intervals: (base, max),
            previous_hosts: policy.previous_hosts,
            host_selection_attempts: match policy.previous_hosts {
                true => policy.host_selection_retry_max_attempts.to_native().saturating_add(1),
                false => 1,
            },
        }
    }

    /// Whether a try that ended so would be made again.
    pub fn would_retry_reset(&self, reset: Reset) -> bool {
        let any = |bits| self.on & bits != 0;
        match reset {
            Reset::Overflow => false,
            _ if any(retry_on::FIVE_XX | retry_on::GATEWAY_ERROR | retry_on::RESET) => true,
            Reset::ConnectFailure => any(retry_on::CONNECT_FAILURE | retry_on::RESET_BEFORE_REQUEST),
            Reset::BeforeRequest => any(retry_on::RESET_BEFORE_REQUEST),
            Reset::RefusedStream => any(retry_on::REFUSED_STREAM | retry_on::RESET_BEFORE_REQUEST),
            Reset::Reset => false,
        }
    }

    /// Whether a response would not be taken for an answer. `codes` and `headers` are the policy's, `own_codes` the
    /// request's `x-envoy-retriable-status-codes`, `own_headers` its `x-envoy-retriable-header-names`.
    pub fn would_retry_response(
        &self,
        response: &impl RequestHead,
        status: u16,
        wanted: &Wanted<'_>,
        regexes: &mut RegexCache,
    ) -> bool {
        let on = |bit| self.on & bit != 0;
        if response.first_value("x-envoy-ratelimited").is_some() {
            return on(retry_on::ENVOY_RATE_LIMITED);
        }
        on(retry_on::FIVE_XX) && (500..600).contains(&status)
            || on(retry_on::GATEWAY_ERROR) && (502..=504).contains(&status)
            || on(retry_on::RETRIABLE_4XX) && status == 409
            || on(retry_on::RETRIABLE_STATUS_CODES) && wanted.has_status(status)
            || on(retry_on::RETRIABLE_HEADERS) && wanted.has_header(response, regexes)
            || on(retry_on::GRPC) && grpc_status(response).is_some_and(|status| on(grpc_bit(status)))
    }

    /// Counts a retry. The pause before it in ms, drawn from `random`; `None`: all retries are used up. `reset` is
    /// what the response asks for (see [`reset_interval`]); such a pause makes the next one no longer.
    pub fn next(&mut self, random: u64, reset: Option<u64>) -> Option<u64> {
        self.remaining = self.remaining.checked_sub(1)?;
        if let Some(ms) = reset {
            // `JitteredLowerBoundBackOffStrategy`: up to half as much again, and no less.
            return Some(ms.saturating_add(random % (ms / 2).max(1)));
        }
        let (base, max) = self.intervals;
        let interval = base.saturating_mul(1 << self.pauses.min(20)).min(max).max(1);
        self.pauses += 1;
        Some(random % interval)
    }
}

/// The pause that a response asks for, in ms (`ResetHeaderParserImpl::parseInterval`). `now` is the time of the Unix
/// epoch in ms.
pub fn reset_interval(policy: &ArchivedRateLimitedBackOff, response: &impl RequestHead, now: u64) -> Option<u64> {
    let interval = policy.reset_headers.iter().find_map(|header| {
        let value = response.first_value(&header.name)?;
        let seconds: u64 = std::str::from_utf8(value).ok()?.trim().parse().ok()?;
        let ms = match header.unix_timestamp {
            false => seconds.saturating_mul(1000),
            true if seconds < now / 1000 => return None,
            true => seconds.saturating_mul(1000).saturating_sub(now),
        };
        (ms <= policy.max_interval.to_native()).then_some(ms)
    });
    interval.filter(|ms| *ms > 1)
}

/// Statuses and headers for which a response is not taken.
#[derive(Clone, Copy, Default)]
pub struct Wanted<'a> {
    /// The policy's `retriable_status_codes`.
    pub codes: &'a [u16],
    /// The policy's `retriable_headers`.
    pub headers: &'a [ArchivedHeaderMatcher],
    /// The request's `x-envoy-retriable-status-codes`.
    pub own_codes: &'a str,
    /// The request's `x-envoy-retriable-header-names`.
    pub own_headers: &'a str,
}

impl Wanted<'_> {
    fn has_status(&self, status: u16) -> bool {
        self.codes.contains(&status) || self.own_codes.split(',').any(|code| code.trim().parse() == Ok(status))
    }

    fn has_header(&self, response: &impl RequestHead, regexes: &mut RegexCache) -> bool {
        let mut own = self.own_headers.split(',').map(|name| name.trim().to_ascii_lowercase());
        any_header_matches(self.headers, response, regexes)
            || own.any(|name| !name.is_empty() && response.first_value(&name).is_some())
    }
}

/// `grpc-status` of a response's head: that of a call that ended without a message.
fn grpc_status(response: &impl RequestHead) -> Option<u32> {
    std::str::from_utf8(response.first_value("grpc-status")?).ok()?.trim().parse().ok()
}

fn grpc_bit(status: u32) -> u32 {
    match status {
        1 => retry_on::GRPC_CANCELLED,
        4 => retry_on::GRPC_DEADLINE_EXCEEDED,
        8 => retry_on::GRPC_RESOURCE_EXHAUSTED,
        13 => retry_on::GRPC_INTERNAL,
        14 => retry_on::GRPC_UNAVAILABLE,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_their_limit() {
        let mut retries = Retries { remaining: 6, intervals: (25, 250), ..Retries::default() };
        let longest: Vec<_> = std::iter::from_fn(|| {
            // The largest number below each interval.
            let mut copy = retries;
            let max = (0..1000).filter_map(|n| copy.clone().next(n, None)).max();
            copy.next(0, None)?;
            retries = copy;
            max
        })
        .collect();
        assert_eq!(longest, [24, 49, 99, 199, 249, 249]);
    }

    #[test]
    fn a_pause_that_is_asked_for_is_no_shorter_and_counts_for_no_other() {
        let mut retries = Retries { remaining: 3, intervals: (25, 250), ..Retries::default() };
        let drawn: Vec<_> = (0..2000).filter_map(|n| retries.clone().next(n, Some(1000))).collect();
        assert_eq!((drawn.iter().min(), drawn.iter().max()), (Some(&1000), Some(&1499)));
        retries.next(0, Some(1000));
        assert_eq!(retries.next(24, None), Some(24), "the first interval is still to come");
        assert_eq!((retries.next(0, Some(2)), retries.next(0, Some(2))), (Some(2), None));
    }
}
