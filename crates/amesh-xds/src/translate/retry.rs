//! `RetryPolicy`.

use super::notes::ignored;
use super::value::{enumeration, millis, positive_millis, type_name, u32_or};
use super::{format, matcher, Invalid, Notes};
use amesh_model::retry::{retry_on, RateLimitedBackOff, ResetHeader, RetryPolicy};
use envoy_types::pb::envoy::config::route::v3 as pb;

const PREVIOUS_HOSTS: &str = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate";

/// A retry policy, of a route or of a virtual host.
pub(super) fn policy(policy: &pb::RetryPolicy, notes: &mut Notes) -> Result<RetryPolicy, Invalid> {
    let pb::RetryPolicy {
        retry_on,
        num_retries,
        per_try_timeout,
        per_try_idle_timeout,
        retry_priority,
        retry_host_predicate,
        retry_options_predicates,
        host_selection_retry_max_attempts,
        retriable_status_codes,
        retry_back_off,
        rate_limited_retry_back_off,
        retriable_headers,
        retriable_request_headers,
        refresh_cluster_on_retry,
    } = policy;
    ignored!(notes, "a retry goes to the priority that a first try would go to"; retry_priority);
    ignored!(notes, "a retry goes to the route's cluster"; retry_options_predicates, refresh_cluster_on_retry);
    let (base_interval, max_interval) = match retry_back_off {
        None => (25, 250),
        Some(b) => notes.within("retry_back_off", |n| back_off(b, n))?,
    };
    Ok(RetryPolicy {
        retry_on: conditions(retry_on, notes),
        num_retries: u32_or(num_retries, 1),
        per_try_timeout: millis(per_try_timeout, "per_try_timeout", notes)?.unwrap_or(0),
        per_try_idle_timeout: millis(per_try_idle_timeout, "per_try_idle_timeout", notes)?.unwrap_or(0),
        base_interval,
        max_interval,
        retriable_status_codes: notes.list("retriable_status_codes", retriable_status_codes, |code, n| {
            u16::try_from(*code).map_err(|_| n.invalid("", format!("{code} is no status")))
        })?,
        retriable_headers: notes.list("retriable_headers", retriable_headers, matcher::header)?,
        retriable_request_headers: notes.list(
            "retriable_request_headers",
            retriable_request_headers,
            matcher::header,
        )?,
        previous_hosts: host_predicates(retry_host_predicate, notes),
        host_selection_retry_max_attempts: match host_selection_retry_max_attempts {
            0 => 1,
            n => u32::try_from(*n).unwrap_or(u32::MAX),
        },
        rate_limited: rate_limited_retry_back_off
            .as_ref()
            .map(|b| notes.within("rate_limited_retry_back_off", |n| rate_limited(b, n)))
            .transpose()?,
    })
}

/// Which headers of a response say how long the pause is.
fn rate_limited(
    b: &pb::retry_policy::RateLimitedRetryBackOff,
    notes: &mut Notes,
) -> Result<RateLimitedBackOff, Invalid> {
    use pb::retry_policy::{ResetHeader as Header, ResetHeaderFormat as Format};
    let pb::retry_policy::RateLimitedRetryBackOff { reset_headers, max_interval } = b;
    if reset_headers.is_empty() {
        return Err(notes.invalid("reset_headers", "is empty"));
    }
    Ok(RateLimitedBackOff {
        reset_headers: notes.list("reset_headers", reset_headers, |Header { name, format }, n| {
            Ok(ResetHeader {
                name: format::name(name, "name", n)?,
                unix_timestamp: enumeration::<Format>(*format, "format", n)? == Format::UnixTimestamp,
            })
        })?,
        max_interval: positive_millis(max_interval, "max_interval", notes)?.unwrap_or(300_000),
    })
}

/// A second try beside the first, which nginx cannot make.
pub(super) fn hedging(policy: &Option<pb::HedgePolicy>, notes: &mut Notes) -> Result<(), Invalid> {
    const WHY: &str = "is not supported: a try ends before the next one begins";
    let Some(pb::HedgePolicy { initial_requests, additional_request_chance, hedge_on_per_try_timeout }) = policy else {
        return Ok(());
    };
    notes.within("hedge_policy", |notes| {
        if *hedge_on_per_try_timeout {
            return Err(notes.invalid("hedge_on_per_try_timeout", WHY));
        }
        // Envoy itself does nothing with these.
        ignored!(notes, WHY; initial_requests, additional_request_chance);
        Ok(())
    })
}

fn conditions(words: &str, notes: &mut Notes) -> u32 {
    words.split(',').map(str::trim).filter(|w| !w.is_empty()).fold(0, |bits, word| {
        match retry_on::http(word).or_else(|| retry_on::grpc(word)) {
            Some(bit) => bits | bit,
            // Envoy passes over words that it does not know.
            None => {
                notes.ignored("retry_on", format!("\"{}\" is no condition that is known here", word.escape_debug()));
                bits
            }
        }
    })
}

/// Base and longest interval in ms.
fn back_off(b: &pb::retry_policy::RetryBackOff, notes: &mut Notes) -> Result<(u64, u64), Invalid> {
    let pb::retry_policy::RetryBackOff { base_interval, max_interval } = b;
    let Some(base) = positive_millis(base_interval, "base_interval", notes)? else {
        return Err(notes.invalid("base_interval", "is not set"));
    };
    match positive_millis(max_interval, "max_interval", notes)? {
        None => Ok((base, base.saturating_mul(10))),
        Some(max) if max < base => {
            Err(notes.invalid("max_interval", format!("is {max} ms, shorter than base_interval, {base} ms")))
        }
        Some(max) => Ok((base, max)),
    }
}

/// Whether endpoints that were tried are passed over.
fn host_predicates(predicates: &[pb::retry_policy::RetryHostPredicate], notes: &mut Notes) -> bool {
    use pb::retry_policy::retry_host_predicate::ConfigType;
    let mut previous_hosts = false;
    for (i, p) in predicates.iter().enumerate() {
        notes.each("retry_host_predicate", i, |notes| {
            let kind = match &p.config_type {
                Some(ConfigType::TypedConfig(any)) => type_name(any),
                None => String::new(),
            };
            if kind == PREVIOUS_HOSTS || (kind.is_empty() && p.name == "envoy.retry_host_predicates.previous_hosts") {
                previous_hosts = true;
            } else {
                notes.ignored("", format!("\"{}\" ({kind}) is not supported", p.name));
            }
        });
    }
    previous_hosts
}
