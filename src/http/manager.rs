//! What the connection manager does to every request before it is routed
//! (`ConnectionManagerUtility::mutateRequestHeaders`).

use super::capture::Captured;
use super::ctx::Ctx;
use super::edit::{self, request_header, Name};
use super::head::{headers, ENVOY};
use super::reply::Flags;
use crate::nginx::{self, pool_str};
use amesh_dataplane::forwarded::{self, Client};
use amesh_model::listener::{ArchivedHttpConnectionManager, ArchivedUnderscores};
use ngx::ffi::ngx_http_request_t;
use std::borrow::Cow;
use std::net::IpAddr;

const FORWARDED_PROTO: Name = Name::new("x-forwarded-proto");
const REQUEST_ID: Name = Name::new("x-request-id");
const VIA: Name = Name::new("via");
const FORWARDED_FOR: Name = Name::new("x-forwarded-for");
const INTERNAL: Name = Name::new("x-envoy-internal");
const EXTERNAL_ADDRESS: Name = Name::new("x-envoy-external-address");

/// Taken off every request: they are between two neighbours, or say what only this proxy may say.
const NEIGHBOURS: [&[u8]; 3] = [b"keep-alive", b"proxy-connection", b"x-envoy-internal"];
/// Taken off requests that are not internal.
const FROM_INSIDE: [&[u8]; 13] = [
    b"x-envoy-retriable-status-codes",
    b"x-envoy-retriable-header-names",
    b"x-envoy-retry-on",
    b"x-envoy-retry-grpc-on",
    b"x-envoy-max-retries",
    b"x-envoy-upstream-alt-stat-name",
    b"x-envoy-upstream-rq-timeout-ms",
    b"x-envoy-upstream-rq-per-try-timeout-ms",
    b"x-envoy-upstream-rq-timeout-alt-response",
    b"x-envoy-expected-rq-timeout-ms",
    b"x-envoy-force-trace",
    b"x-envoy-ip-tags",
    b"x-envoy-hedge-on-per-try-timeout",
];
/// Taken off requests at the edge.
const BEHIND_THE_EDGE: [&[u8]; 4] = [
    b"x-envoy-decorator-operation",
    b"x-envoy-downstream-service-cluster",
    b"x-envoy-downstream-service-node",
    b"x-envoy-original-path",
];
/// A client that has these taken off by naming them in `connection` would say who it is not.
const NOT_TO_BE_NAMED: [&str; 3] = ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];

/// What is known after it.
#[derive(Clone, Copy)]
pub struct Managed {
    /// `http` or `https`, as the client, or whoever is trusted in front, says.
    pub scheme: &'static str,
    /// The address that counts as the client's.
    pub client: IpAddr,
    /// There are headers of Envoy's own, from the client or for the endpoint.
    pub has_envoy_headers: bool,
}

/// Changes the request's headers. The answer may be there afterwards, in `ctx`. `None` when memory is out.
///
/// # Safety
/// `r` must be live and not yet be on its way upstream.
pub unsafe fn manage(
    r: *mut ngx_http_request_t,
    ctx: &mut Ctx,
    hcm: &ArchivedHttpConnectionManager,
    captured: &Captured,
) -> Option<Managed> {
    // SAFETY: promised by the caller; all that is put into the request lives in its pool.
    unsafe {
        let scheme = if captured.tls { "https" } else { "http" };
        let refused = Managed { scheme, client: captured.source.ip(), has_envoy_headers: false };
        let connection = edit::joined_request_header(r, b"connection").unwrap_or_default().to_ascii_lowercase();
        let named: Vec<&str> = connection.split(',').map(str::trim).filter(|t| !t.is_empty() && *t != "te").collect();
        if named.iter().any(|name| NOT_TO_BE_NAMED.contains(name)) {
            ctx.refuse(400, Flags::NONE, "Bad Request");
            return Some(refused);
        }
        if named.contains(&"host") {
            ctx.refuse(400, Flags::NONE, "");
            return Some(refused);
        }
        // HTTP/2 by upgrade is not taken, and the request goes on without.
        let upgrade = (*r)
            .headers_in
            .upgrade
            .as_ref()
            .filter(|h| named.contains(&"upgrade") && !nginx::bytes(h.value).eq_ignore_ascii_case(b"h2c"));
        ctx.websocket =
            upgrade.is_some_and(|h| hcm.websocket && nginx::bytes(h.value).eq_ignore_ascii_case(b"websocket"));
        ctx.upgrade_refused = upgrade.is_some() && !ctx.websocket;
        let xff = edit::joined_request_header(r, b"x-forwarded-for");
        let client = forwarded::client(hcm, xff.as_deref(), captured.source.ip());
        let dropped = matches!(hcm.headers_with_underscores_action, ArchivedUnderscores::DropHeader);
        if matches!(hcm.headers_with_underscores_action, ArchivedUnderscores::RejectRequest)
            && headers(&raw mut (*r).headers_in.headers).any(|h| nginx::bytes(h.key).contains(&b'_'))
        {
            ctx.refuse(400, Flags::NONE, "Bad Request");
            return Some(refused);
        }
        let untrusted_proto = hcm.use_remote_address && hcm.xff_num_trusted_hops == 0;
        edit::remove_request_headers(r, |name| {
            named.iter().any(|named| named.as_bytes() == name && !matches!(*named, "upgrade" | "close"))
                || (dropped && name.contains(&b'_'))
                || (name.first() == Some(&b'x') && leaves(name, client, untrusted_proto))
                || NEIGHBOURS.contains(&name)
        })?;
        client_headers(r, hcm, captured, client, xff)?;
        if request_header(r, b"x-forwarded-proto").is_none() {
            edit::add_request_header(r, FORWARDED_PROTO, nginx::str_of(scheme))?;
        }
        let scheme = match request_header(r, b"x-forwarded-proto") {
            Some(b"https") => "https",
            Some(b"http") => "http",
            _ => scheme,
        };
        let id = request_header(r, b"x-request-id").filter(|id| !id.is_empty());
        if hcm.generate_request_id && (id.is_none() || (client.edge && !hcm.preserve_external_request_id)) {
            let mut buffer = uuid::Uuid::encode_buffer();
            let id = uuid::Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes()).into_uuid();
            edit::set_request_header(r, REQUEST_ID, id.hyphenated().encode_lower(&mut buffer).as_bytes())?;
        }
        if hcm.always_set_request_id_in_response {
            ctx.response.request_id = pool_str((*r).pool, request_header(r, b"x-request-id").unwrap_or_default())?;
        }
        if !hcm.via.is_empty() {
            let via = pool_str((*r).pool, hcm.via.as_bytes())?;
            edit::add_request_header(r, VIA, via)?;
            ctx.response.via = via;
        }
        let has_envoy_headers = headers(&raw mut (*r).headers_in.headers)
            .any(|h| std::slice::from_raw_parts(h.lowcase_key, h.key.len).starts_with(ENVOY));
        Some(Managed { scheme, client: client.address, has_envoy_headers })
    }
}

/// Whether a header whose name begins with `x` is taken off.
fn leaves(name: &[u8], client: Client, untrusted_proto: bool) -> bool {
    match name {
        // What the client says of its own certificate is worth nothing (forward_client_cert_details SANITIZE).
        b"x-forwarded-client-cert" => true,
        b"x-forwarded-proto" => untrusted_proto,
        _ => (!client.internal && FROM_INSIDE.contains(&name)) || (client.edge && BEHIND_THE_EDGE.contains(&name)),
    }
}

/// Who the client is, for the endpoint.
unsafe fn client_headers(
    r: *mut ngx_http_request_t,
    hcm: &ArchivedHttpConnectionManager,
    captured: &Captured,
    client: Client,
    xff: Option<Cow<'_, str>>,
) -> Option<()> {
    // SAFETY: see manage.
    unsafe {
        if hcm.use_remote_address && !hcm.skip_xff_append {
            let own = captured.source.ip().to_string();
            let whole = match xff {
                Some(before) => [&before, ",", &own].concat(),
                None => own,
            };
            edit::set_request_header(r, FORWARDED_FOR, whole.as_bytes())?;
        }
        if client.internal {
            edit::add_request_header(r, INTERNAL, nginx::str_of("true"))?;
        }
        if client.edge {
            edit::set_request_header(r, EXTERNAL_ADDRESS, client.address.to_string().as_bytes())?;
        }
        Some(())
    }
}
