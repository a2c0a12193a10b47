//! What goes upstream: the policies of a request's tries, its path, host and headers.

use super::capture::Captured;
use super::ctx::Ctx;
use super::edit::{self, request_header, Facts, RequestHeaders};
use super::head::{headers, Head};
use super::retry::Wanted;
use super::shadow;
use crate::nginx::{self, pool_str, EMPTY};
use crate::zone;
use amesh_dataplane::header::Levels;
use amesh_dataplane::retry::Retries;
use amesh_dataplane::route::Forward;
use amesh_dataplane::timeout;
use amesh_model::listener::ArchivedHttpConnectionManager;
use amesh_model::retry::retry_on;
use amesh_model::route::{ArchivedRoute, ArchivedRouteTable, ArchivedVirtualHost, ArchivedWeightedCluster};
use ngx::ffi::ngx_http_request_t;

/// How often the endpoint, or another, was tried.
pub const ATTEMPT_COUNT: &str = "x-envoy-attempt-count";
/// How long the endpoint may take, in ms.
pub const EXPECTED_TIMEOUT: &str = "x-envoy-expected-rq-timeout-ms";

/// Request headers that set a policy, and end here (`Filter::decodeHeaders`, `RetryStateImpl::create`).
const POLICY_HEADERS: [&str; 8] = [
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
    /// The connection manager.
    pub hcm: &'a ArchivedHttpConnectionManager,
    /// The route table.
    pub table: &'a ArchivedRouteTable,
    /// The normalised path.
    pub path: &'a str,
    /// The path as it came.
    pub raw: &'a str,
}

/// When and how long a request is tried. `None` when memory is out.
///
/// # Safety
/// The request must be live and not yet be on its way upstream.
pub unsafe fn policies(
    seen: &Seen<'_>,
    head: &Head<'_>,
    tools: &mut zone::Tools,
    ctx: &mut Ctx,
    forward: &Forward<'_>,
) -> Option<()> {
    let r = seen.request;
    let policy = &forward.action.retry;
    ctx.retries = Retries::new(policy, head, tools.regexes());
    ctx.timeouts = timeout::timeouts(forward.action, seen.hcm.respect_expected_rq_timeout, head);
    ctx.max_stream_duration =
        timeout::max_stream_duration(forward.action, seen.hcm.max_stream_duration.to_native(), head);
    ctx.idle_timeout = match forward.action.idle_timeout.as_ref() {
        Some(ms) => ms.to_native(),
        None => seen.hcm.stream_idle_timeout.to_native(),
    };
    // SAFETY: promised by the caller.
    unsafe {
        if ctx.retries.on & retry_on::RESPONSE != 0 {
            ctx.wanted = Wanted::keep((*r).pool, ctx.retries.on, policy, head)?;
        }
        shadow::keep(seen, head, ctx, forward)?;
        let asks = |name: &[u8]| name.get(..8).is_some_and(|start| start.eq_ignore_ascii_case(b"x-envoy-"));
        if headers(&raw mut (*r).headers_in.headers).any(|h| asks(nginx::bytes(h.key))) {
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
        manager_headers(seen, ctx)?;
        let expected = ctx.timeouts.expected();
        if !seen.hcm.suppress_envoy_headers && expected > 0 {
            ctx.tell_timeout = true;
            edit::set_request_header(r, EXPECTED_TIMEOUT, expected.to_string().as_bytes())?;
        }
        if forward.virtual_host.1.include_request_attempt_count {
            ctx.tell_attempts = true;
            edit::set_request_header(r, ATTEMPT_COUNT, b"1")?;
        }
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
                edit::set_request_header(r, "x-envoy-original-path", seen.path.as_bytes())?;
            }
            ctx.original_path = pool_str(pool, seen.path.as_bytes())?;
            ctx.rewritten = true;
            (*r).unparsed_uri = pool_str(pool, path.as_bytes())?;
        }
        // nginx's proxy sends this line as it stands while it is marked as valid.
        (*r).set_valid_unparsed_uri(1);
        let host = match (&forward.host, edited_host) {
            (Some(host), _) => pool_str(pool, host.as_bytes())?,
            (None, Some(host)) => host,
            (None, None) => EMPTY,
        };
        if host.len > 0 && forward.action.append_x_forwarded_host {
            let before = pool_str(pool, super::head::host(r).as_bytes())?;
            edit::add_request_header(r, nginx::str_of("x-forwarded-host"), before)?;
        }
        ctx.host = host;
        Some(())
    }
}

/// What the connection manager adds to every request. `None` when memory is out.
unsafe fn manager_headers(seen: &Seen<'_>, ctx: &mut Ctx) -> Option<()> {
    let (r, hcm) = (seen.request, seen.hcm);
    let scheme = if seen.captured.tls { "https" } else { "http" };
    // SAFETY: see upstream_request.
    unsafe {
        let pool = (*r).pool;
        if hcm.use_remote_address {
            edit::set_request_header(r, "x-forwarded-proto", scheme.as_bytes())?;
            if !hcm.skip_xff_append {
                let client = seen.captured.source.ip().to_string();
                let before = request_header(r, b"x-forwarded-for").map(|v| [v, b","].concat()).unwrap_or_default();
                edit::set_request_header(r, "x-forwarded-for", &[before.as_slice(), client.as_bytes()].concat())?;
            }
        } else if request_header(r, b"x-forwarded-proto").is_none() {
            edit::add_request_header(r, nginx::str_of("x-forwarded-proto"), nginx::str_of(scheme))?;
        }
        // What the client says of its own certificate is worth nothing (forward_client_cert_details SANITIZE).
        edit::remove_request_header(r, b"x-forwarded-client-cert")?;
        let id = request_header(r, b"x-request-id");
        if hcm.generate_request_id && (id.is_none() || (hcm.use_remote_address && !hcm.preserve_external_request_id)) {
            let mut buffer = uuid::Uuid::encode_buffer();
            let id = uuid::Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes()).into_uuid();
            edit::set_request_header(r, "x-request-id", id.hyphenated().encode_lower(&mut buffer).as_bytes())?;
        }
        if hcm.always_set_request_id_in_response {
            ctx.response.request_id = pool_str(pool, request_header(r, b"x-request-id").unwrap_or_default())?;
        }
        if !hcm.via.is_empty() {
            edit::add_request_header(r, nginx::str_of("via"), pool_str(pool, hcm.via.as_bytes())?)?;
        }
        Some(())
    }
}
