//! `LocalRateLimit` and `TokenBucket`.

use super::notes::ignored;
use super::value::{enumeration, millis, u32_or};
use super::{format, matcher, Invalid, Notes};
use amesh_model::bucket::TokenBucket;
use amesh_model::filter::LocalRateLimit;
use amesh_model::matcher::Fraction;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3 as common;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3 as pb;
use envoy_types::pb::envoy::r#type::v3 as kind;

/// Envoy's shortest interval, in ms.
const SHORTEST: u64 = 50;

/// A rate limit, of a filter or (`of_route`) of a route; or why the place must be refused.
pub(super) fn local(
    limit: &pb::LocalRateLimit,
    of_route: bool,
    notes: &mut Notes,
) -> Result<Result<LocalRateLimit, String>, Invalid> {
    let pb::LocalRateLimit {
        stat_prefix,
        status,
        token_bucket,
        filter_enabled,
        filter_enforced,
        request_headers_to_add_when_not_enforced,
        response_headers_to_add,
        descriptors,
        stage: _,
        local_rate_limit_per_downstream_connection,
        local_cluster_rate_limit,
        enable_x_ratelimit_headers,
        vh_rate_limits: _,
        always_consume_default_token_bucket: _,
        rate_limited_as_resource_exhausted,
        rate_limits,
        max_dynamic_descriptors: _,
        enable_retry_after_header,
    } = limit;
    if stat_prefix.is_empty() {
        return Err(notes.invalid("stat_prefix", "is empty"));
    }
    let bucket = token_bucket.as_ref().map(|b| notes.within("token_bucket", |n| self::bucket(b, n))).transpose()?;
    if of_route && bucket.is_none() {
        return Err(notes.invalid("token_bucket", "is not set, and a route has none from elsewhere"));
    }
    if !descriptors.is_empty() {
        let why = "buckets by descriptor are not supported, and without them more would be let through";
        return Ok(Err(notes.refused("descriptors", why)));
    }
    if local_cluster_rate_limit.is_some() {
        let why = "there is no local cluster whose members share a limit: each would let through the whole of it";
        return Ok(Err(notes.refused("local_cluster_rate_limit", why)));
    }
    ignored!(notes, "there are no descriptors that they would be compared with"; rate_limits);
    let version = enumeration::<common::XRateLimitHeadersRfcVersion>(
        *enable_x_ratelimit_headers,
        "enable_x_ratelimit_headers",
        notes,
    )?;
    let mut headers = format::edits(&[], &[], response_headers_to_add, &[], notes)?;
    let field = "request_headers_to_add_when_not_enforced";
    headers.request_add = format::adds(field, request_headers_to_add_when_not_enforced, notes)?;
    Ok(Ok(LocalRateLimit {
        bucket,
        per_connection: *local_rate_limit_per_downstream_connection,
        enabled: share(filter_enabled, "filter_enabled", notes)?,
        enforced: share(filter_enforced, "filter_enforced", notes)?,
        status: match status.as_ref().map(|s| u16::try_from(s.code)) {
            // As Envoy: no answer that says all is well.
            Some(Ok(code @ 400..)) => code,
            _ => 429,
        },
        resource_exhausted: *rate_limited_as_resource_exhausted,
        headers,
        retry_after: *enable_retry_after_header,
        tell: version == common::XRateLimitHeadersRfcVersion::DraftVersion03,
    }))
}

/// Of nothing, when it is not set.
fn share(
    fraction: &Option<core::RuntimeFractionalPercent>,
    field: &'static str,
    notes: &mut Notes,
) -> Result<Fraction, Invalid> {
    match fraction {
        None => Ok(Fraction::default()),
        Some(f) => notes.within(field, |n| matcher::fraction(f, n)),
    }
}

fn bucket(bucket: &kind::TokenBucket, notes: &mut Notes) -> Result<TokenBucket, Invalid> {
    let kind::TokenBucket { max_tokens, tokens_per_fill, fill_interval } = bucket;
    let tokens_per_fill = u32_or(tokens_per_fill, 1);
    if tokens_per_fill == 0 {
        return Err(notes.invalid("tokens_per_fill", "must be above 0"));
    }
    match millis(fill_interval, "fill_interval", notes)? {
        None => Err(notes.invalid("fill_interval", "is not set")),
        Some(ms) if ms < SHORTEST => {
            Err(notes.invalid("fill_interval", format!("is {ms} ms, shorter than {SHORTEST} ms")))
        }
        Some(fill_interval) => {
            Ok(TokenBucket { max_tokens: *max_tokens, tokens_per_fill, fill_interval, place: notes.here(""), cell: 0 })
        }
    }
}
