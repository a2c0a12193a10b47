//! What goes upstream: the policies of a request's tries, its path, host and headers.

use super::capture::Captured;
use super::ctx::Ctx;
use super::edit::{self, Facts, Name, RequestHeaders};
use super::head::Head;
use super::manager::Managed;
use super::retry::Wanted;
use super::shadow;
use crate::lb::MetadataMatch;
use crate::nginx::{self, pool_str};
use crate::zone;
use amesh_dataplane::hash::{self, Ends};
use amesh_dataplane::header::Levels;
use amesh_dataplane::retry::Retries;
use amesh_dataplane::route::{Forward, RequestHead};
use amesh_dataplane::timeout;
use amesh_model::hash_policy::ArchivedHashPolicy;
use amesh_model::listener::ArchivedHttpConnectionManager;
use amesh_model::retry::retry_on;
use amesh_model::route::{ArchivedRoute, ArchivedRouteTable, ArchivedVirtualHost, ArchivedWeightedCluster};
use ngx::ffi::ngx_http_request_t;
use std::net::SocketAddr;

/// How often the endpoint, or another, was tried.
pub const ATTEMPT_COUNT: Name = Name::new("x-envoy-attempt-count");
/// Whether the try before took too long.
pub const IS_TIMEOUT_RETRY: Name = Name::new("x-envoy-is-timeout-retry");
/// How long the endpoint may take, in ms.
pub const EXPECTED_TIMEOUT: Name = Name::new("x-envoy-expected-rq-timeout-ms");

const GRPC_TIMEOUT: Name = Name::new("grpc-timeout");
const ORIGINAL_PATH: Name = Name::new("x-envoy-original-path");
const ORIGINAL_HOST: Name = Name::new("x-envoy-original-host");
const FORWARDED_HOST: Name = Name::new("x-forwarded-host");

/// Request headers that set a policy, and end here (`Filter::decodeHeaders`, `RetryStateImpl::create`).
const POLICY_HEADERS: [&str; 9] = [
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-retry-on",
    "x-envoy-retry-grpc-on",
    "x-envoy-max-retries",
    "x-envoy-retriable-status-codes",
    "x-envoy-retriable-header-names",
    "x-envoy-hedge-on-per-try-timeout",
];

/// What a decision is carried out with.
pub struct Seen<'a> {
    /// The request.
    pub request: *mut ngx_http_request_t,
    /// Its connection.
    pub captured: &'a Captured,
    /// What the connection manager has found out.
    pub managed: Managed,
    /// The connection manager.
    pub hcm: &'a ArchivedHttpConnectionManager,
    /// The route table.
    pub table: &'a ArchivedRouteTable,
    /// The normalised path.
    pub path: &'a str,
    /// The path as it came.
    pub raw: &'a str,
}

/// When and how long a request is tried, and by which hash. `None` when memory is out.
///
/// # Safety
/// The request must be live and not yet be on its way upstream.
pub unsafe fn policies(
    seen: &Seen<'_>,
    head: &Head<'_>,
    tools: &mut zone::Tools,
    ctx: &mut Ctx,
    forward: &Forward<'_>,
    hash_policy: &[ArchivedHashPolicy],
) -> Option<()> {
    let r = seen.request;
    let policy = &forward.action.retry;
    ctx.retries = Retries::new(policy, head, tools.regexes());
    ctx.timeouts = timeout::timeouts(forward.action, seen.hcm.respect_expected_rq_timeout, head);
    ctx.max_stream_duration =
        timeout::max_stream_duration(forward.action, seen.hcm.max_stream_duration.to_native(), head);
    if forward.action.max_stream_duration.grpc_timeout_header_max.is_some()
        && head.first_value("grpc-timeout").is_some()
    {
        ctx.grpc_timeout = ctx.max_stream_duration;
    }
    ctx.per_try_idle_timeout = policy.per_try_idle_timeout.to_native();
    ctx.alt_response = head.first_value("x-envoy-upstream-rq-timeout-alt-response").is_some();
    ctx.idle_timeout = match forward.action.idle_timeout.as_ref() {
        Some(ms) => ms.to_native(),
        None => seen.hcm.stream_idle_timeout.to_native(),
    };
    if !hash_policy.is_empty() {
        let remote = SocketAddr::new(seen.managed.client, seen.captured.source.port());
        let ends = Ends { remote: Some(remote), local: Some(seen.captured.destination) };
        let hashed = hash::request_hash(hash_policy, head, ends, tools.regexes());
        ctx.hash = hashed.hash;
        for cookie in hashed.cookies {
            // SAFETY: promised by the caller.
            ctx.response.add(unsafe { (*r).pool }, "set-cookie", &cookie.set_cookie())?;
        }
    }
    // SAFETY: promised by the caller.
    ctx.metadata_match = MetadataMatch::keep(unsafe { (*r).pool }, forward.metadata_match())?;
    // SAFETY: promised by the caller.
    unsafe {
        if ctx.retries.on & retry_on::RESPONSE != 0 {
            ctx.wanted = Wanted::keep((*r).pool, ctx.retries.on, policy, head)?;
        }
        shadow::keep(seen, head, ctx, forward)?;
        if seen.managed.has_envoy_headers {
            for name in POLICY_HEADERS {
                edit::remove_request_header(r, name.as_bytes())?;
            }
        }
        Some(())
    }
}

/// The levels of header edits that apply.
pub fn levels<'a>(
    table: &'a ArchivedRouteTable,
    arm: Option<&'a ArchivedWeightedCluster>,
    route: Option<&'a ArchivedRoute>,
    virtual_host: &'a ArchivedVirtualHost,
) -> Levels<'a> {
    Levels {
        weighted_cluster: arm.map(|w| &w.headers),
        route: route.map(|r| &r.headers),
        virtual_host: Some(&virtual_host.headers),
        table: Some(&table.headers),
        most_specific_wins: table.most_specific_header_mutations_wins,
        ..Levels::default()
    }
}

/// Makes the request what goes upstream: path, host, headers. `None` when memory is out.
///
/// # Safety
/// The request must be live and not yet be on its way upstream.
pub unsafe fn upstream_request(
    seen: &Seen<'_>,
    ctx: &mut Ctx,
    forward: &Forward<'_>,
    levels: &Levels<'_>,
) -> Option<()> {
    let r = seen.request;
    // SAFETY: the request is live and has not gone upstream; all that is put into it lives in its pool.
    unsafe {
        let pool = (*r).pool;
        let expected = ctx.timeouts.expected();
        if !seen.hcm.suppress_envoy_headers && expected > 0 {
            ctx.tell_timeout = true;
            edit::set_request_header(r, EXPECTED_TIMEOUT, expected.to_string().as_bytes())?;
        }
        let grpc_timeout = if ctx.timeouts.grpc { expected } else { ctx.grpc_timeout };
        if grpc_timeout > 0 {
            edit::set_request_header(r, GRPC_TIMEOUT, format!("{grpc_timeout}m").as_bytes())?;
        }
        if forward.virtual_host.1.include_request_attempt_count {
            ctx.tell_attempts = true;
            edit::set_request_header(r, ATTEMPT_COUNT, b"1")?;
        }
        ctx.tell_timeout_retry = forward.virtual_host.1.include_is_timeout_retry_header;
        if seen.path != seen.raw {
            ctx.original_path = pool_str(pool, seen.raw.as_bytes())?;
            (*r).unparsed_uri = pool_str(pool, seen.path.as_bytes())?;
        }
        let facts = || Facts { request: r, ctx, captured: Some(seen.captured) };
        let mut headers = RequestHeaders { facts: facts(), host: None, failed: false };
        levels.edit_request(&mut headers, &facts());
        let (edited_host, failed) = (headers.host, headers.failed);
        if failed {
            return None;
        }
        if let Some(path) = &forward.path {
            if !seen.hcm.suppress_envoy_headers {
                edit::set_request_header(r, ORIGINAL_PATH, seen.path.as_bytes())?;
            }
            ctx.original_path = pool_str(pool, seen.path.as_bytes())?;
            (*r).unparsed_uri = pool_str(pool, path.as_bytes())?;
        }
        // nginx's proxy sends this line as it stands while it is marked as valid.
        (*r).set_valid_unparsed_uri(1);
        if let Some(host) = edited_host {
            ctx.host = host;
        }
        let now = if ctx.host.len > 0 { nginx::text(ctx.host) } else { super::head::host(r) };
        let header = |name: &str| {
            edit::request_header(r, name.as_bytes()).map(|value| String::from_utf8_lossy(value).into_owned())
        };
        if let Some(new) = forward.new_host(now, header) {
            if let Some(old) = new.old.as_deref().filter(|_| !seen.hcm.suppress_envoy_headers) {
                edit::set_request_header(r, ORIGINAL_HOST, old.as_bytes())?;
            }
            if forward.action.append_x_forwarded_host {
                let others = edit::joined_request_header(r, b"x-forwarded-host").unwrap_or_default();
                if let Some(all) = new.forwarded(&others) {
                    edit::set_request_header(r, FORWARDED_HOST, all.as_bytes())?;
                }
            }
            ctx.host = pool_str(pool, new.host.as_bytes())?;
        }
        Some(())
    }
}
