//! The phase handler: which listener, filter chain, route and endpoint take a request.
//!
//! It runs once a request, before content: everything that Envoy answers without an upstream is answered here.

use super::capture::{self, Captured};
use super::edit::{self, request_header, Facts, RequestHeaders, ResponseEdits};
use super::head::Head;
use super::reply::{self, Flags};
use super::{filter, srv_conf, Mode};
use crate::guard::guard;
use crate::lb::{self, Picked, Reason, Upstream};
use crate::nginx::{self, pool_str, AGAIN, DECLINED, EMPTY, ERROR};
use crate::zone::{self, Worker};
use amesh_dataplane::header::Levels;
use amesh_dataplane::listener::{self, Direction};
use amesh_dataplane::path::{self, PathError};
use amesh_dataplane::route::{self, Decision, Forward};
use amesh_model::listener::{
    ArchivedChainAction, ArchivedHttpConnectionManager, ArchivedListener, ArchivedRouteSpecifier,
};
use amesh_model::route::{ArchivedRoute, ArchivedRouteTable, ArchivedVirtualHost, ArchivedWeightedCluster};
use amesh_model::Kind;
use ngx::ffi::{self, ngx_http_request_t, ngx_int_t, ngx_str_t};
use std::ffi::c_void;
use std::net::SocketAddr;

/// What is known of one request, in the request's pool. All texts live there too.
pub struct Ctx {
    /// The listener's name.
    pub listener: ngx_str_t,
    /// The route's name.
    pub route: ngx_str_t,
    /// The virtual host's name.
    pub virtual_host: ngx_str_t,
    /// The cluster's name.
    pub cluster: ngx_str_t,
    /// Its hash in the directory.
    pub cluster_hash: u64,
    /// `ip:port` of the endpoint that was asked last.
    pub endpoint: ngx_str_t,
    /// Envoy's flags.
    pub flags: Flags,
    /// The host that goes upstream; empty: the client's.
    pub host: ngx_str_t,
    /// Path and query as the client sent them, where they were changed.
    pub original_path: ngx_str_t,
    /// The route has rewritten the path.
    pub rewritten: bool,
    /// Original destination.
    pub original_dst: Option<SocketAddr>,
    /// Tries after the first, for a failed connection.
    pub retries: u32,
    /// Tries so far.
    pub attempts: u32,
    /// The endpoint of the first try.
    pub picked: Option<Picked>,
    /// The location's own upstream configuration, null before the first try.
    pub upstream_conf: *mut ffi::ngx_http_upstream_conf_t,
    /// The answer that is given without an upstream; status 0: none.
    pub reply: Reply,
    /// What is done to the response.
    pub response: filter::Response,
    /// nginx's own error page gives way to a body of ours.
    pub replaced: bool,
    /// A client may upgrade to a web socket.
    pub websocket: bool,
    /// `server` and its like were decided: the request met a connection manager.
    pub managed: bool,
}

/// An answer of ours.
#[derive(Clone, Copy)]
pub struct Reply {
    /// The status; 0: none.
    pub status: u16,
    /// Its body.
    pub body: ngx_str_t,
    /// `location`.
    pub location: ngx_str_t,
}

impl Ctx {
    /// The upstream that the request goes to.
    pub fn upstream(&self) -> Upstream<'_> {
        // SAFETY: the name lives in the request's pool, as this does.
        let cluster = unsafe { nginx::text(self.cluster) };
        Upstream { cluster, hash: self.cluster_hash, original_dst: self.original_dst }
    }

    /// Names the cluster.
    pub fn set_cluster(&mut self, name: ngx_str_t) {
        self.cluster = name;
        // SAFETY: as above.
        self.cluster_hash = zone::hash(Kind::Cluster, unsafe { nginx::bytes(name) });
    }
}

/// The context of a request, `None` when it has none.
///
/// # Safety
/// `r` must be a live request.
pub unsafe fn ctx<'a>(r: *mut ngx_http_request_t) -> Option<&'a mut Ctx> {
    // SAFETY: only ctx_or_new puts something there.
    unsafe { nginx::slot_of::<Ctx>((*r).ctx, &raw const super::ngx_http_amesh_module).as_mut() }
}

/// The context of a request, a new one when it has none; `None` when memory is out.
///
/// # Safety
/// `r` must be a live request.
pub unsafe fn ctx_or_new(r: *mut ngx_http_request_t) -> Option<*mut Ctx> {
    const { assert!(!std::mem::needs_drop::<Ctx>()) };
    // SAFETY: promised by the caller; the entry of this module in the array of contexts is ours.
    unsafe {
        if let Some(ctx) = ctx(r) {
            return Some(ctx);
        }
        let place = ffi::ngx_palloc((*r).pool, size_of::<Ctx>()).cast::<Ctx>();
        if place.is_null() {
            return None;
        }
        place.write(Ctx {
            listener: EMPTY,
            route: EMPTY,
            virtual_host: EMPTY,
            cluster: EMPTY,
            cluster_hash: 0,
            endpoint: EMPTY,
            flags: Flags::default(),
            host: EMPTY,
            original_path: EMPTY,
            rewritten: false,
            original_dst: None,
            retries: 0,
            attempts: 0,
            picked: None,
            upstream_conf: std::ptr::null_mut(),
            reply: Reply { status: 0, body: EMPTY, location: EMPTY },
            response: filter::Response::new(),
            replaced: false,
            websocket: false,
            managed: false,
        });
        let cleanup = ffi::ngx_pool_cleanup_add((*r).pool, 0);
        if cleanup.is_null() {
            return None;
        }
        (*cleanup).data = place.cast();
        (*cleanup).handler = Some(give_back);
        *(*r).ctx.add((&raw const super::ngx_http_amesh_module).read().ctx_index) = place.cast();
        Some(place)
    }
}

/// A request that ended before it went upstream gives its endpoint back.
extern "C" fn give_back(data: *mut c_void) {
    guard("the end of a request", (), || {
        // SAFETY: the pool hands in the context that ctx_or_new made in it.
        let ctx = unsafe { &mut *data.cast::<Ctx>() };
        if let Some(mut picked) = ctx.picked.take() {
            lb::end(&mut picked, false, false);
        }
    });
}

/// The phase handler.
pub extern "C" fn handler(r: *mut ngx_http_request_t) -> ngx_int_t {
    guard("the route decision", ffi::NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t, || {
        // SAFETY: nginx hands in a live request.
        unsafe {
            let direction = match srv_conf(r).mode {
                m if m == Mode::Outbound as u8 => Some(Direction::Outbound),
                m if m == Mode::Inbound as u8 => Some(Direction::Inbound),
                m if m == Mode::Internal as u8 => None,
                _ => return DECLINED,
            };
            if r != (*r).main || ctx(r).is_some() {
                return DECLINED;
            }
            if zone::wait_for_ready((*r).start_sec) {
                return wait(r);
            }
            let Some(ctx) = ctx_or_new(r) else { return ERROR };
            let ctx = &mut *ctx;
            let Some(captured) = captured(r, direction) else { return ffi::NGX_HTTP_CLOSE as ngx_int_t };
            let decided = zone::with_worker(|worker| decide(worker, r, ctx, &mut *captured));
            match decided.flatten() {
                Some(()) => {}
                None => return ffi::NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t,
            }
            if ctx.reply.status != 0 {
                (*r).content_handler = Some(content);
            }
            DECLINED
        }
    })
}

/// Has nginx run this phase again in a while, as its limit_req module does.
unsafe fn wait(r: *mut ngx_http_request_t) -> ngx_int_t {
    // SAFETY: the connection of a live request.
    unsafe {
        (*r).read_event_handler = Some(ffi::ngx_http_test_reading);
        (*r).write_event_handler = Some(ffi::ngx_http_core_run_phases);
        let write = (*(*r).connection).write;
        (*write).set_delayed(1);
        ffi::ngx_add_timer(write, zone::READY_POLL);
    }
    AGAIN
}

/// What is known of the request's connection.
unsafe fn captured(r: *mut ngx_http_request_t, direction: Option<Direction>) -> Option<*mut Captured> {
    // SAFETY: the connection of a live request.
    unsafe {
        let c = (*r).connection;
        match capture::find(c) {
            Some(captured) => Some(captured),
            // An internal listener is reached through the front door alone.
            None => capture::attach(c, capture::observe(c, direction?)?),
        }
    }
}

/// The content handler of an answer of ours.
extern "C" fn content(r: *mut ngx_http_request_t) -> ngx_int_t {
    guard("a local reply", ERROR, || {
        // SAFETY: nginx hands in a live request; the phase handler gave it a context.
        unsafe {
            let Some(ctx) = ctx(r) else { return ERROR };
            reply::send(r, ctx.reply.status, ctx.reply.body, ctx.reply.location)
        }
    })
}

/// The listener of a connection, matched anew where the zone has changed.
fn find_listener<'p>(
    pin: &'p zone::Pin<'_>,
    c: *mut ffi::ngx_connection_t,
    captured: &mut Captured,
) -> Option<&'p ArchivedListener> {
    let version = pin.zone_version();
    if captured.matched_at != version {
        let index = pin.listener_index()?;
        let name = listener::find_listener(index, captured.direction, captured.destination)?;
        let found = pin.listener(name)?;
        captured.chain = captured.with_info(|info| listener::find_filter_chain(found, info))?.0;
        // SAFETY: the connection outlives the request.
        if unsafe { nginx::text(captured.listener) } != name {
            // SAFETY: as above.
            captured.listener = pool_str(unsafe { (*c).pool }, name.as_bytes())?;
        }
        captured.matched_at = version;
        return Some(found);
    }
    // SAFETY: as above.
    pin.listener(unsafe { nginx::text(captured.listener) })
}

/// Decides a request. `None` when memory is out.
unsafe fn decide(
    worker: &mut Worker,
    r: *mut ngx_http_request_t,
    ctx: &mut Ctx,
    captured: &mut Captured,
) -> Option<()> {
    // SAFETY: the request and its connection are live.
    unsafe {
        let (pin, tools) = worker.pin();
        ctx.original_dst = Some(captured.destination);
        if !pin.is_ready() {
            zone::complain("every request", "no source has said anything yet");
            return refuse(ctx, 503, Flags::NO_ROUTE, b"");
        }
        let Some(found) = find_listener(&pin, (*r).connection, captured) else {
            ctx.listener = captured.listener;
            return refuse(ctx, 404, Flags::NO_ROUTE, b"");
        };
        ctx.listener = captured.listener;
        let Some(chain) = listener::filter_chain_at(found, captured.chain) else {
            return refuse(ctx, 404, Flags::NO_ROUTE, b"");
        };
        let hcm = match &chain.action {
            ArchivedChainAction::Http(hcm) => hcm,
            ArchivedChainAction::Refuse(reason) => {
                zone::complain(&captured_name(captured), reason);
                return refuse(ctx, 503, Flags::REFUSED, b"");
            }
            // The connection was HTTP when it came; the listener has changed since.
            ArchivedChainAction::Tcp(_) => return refuse(ctx, 421, Flags::NO_ROUTE, b""),
        };
        ctx.managed = true;
        ctx.response.manage(hcm, (*r).pool)?;
        if let Some(reason) = hcm.refuse.as_ref() {
            zone::complain(&captured_name(captured), reason);
            return refuse(ctx, 500, Flags::REFUSED, b"");
        }
        let table: &ArchivedRouteTable = match &hcm.routes {
            ArchivedRouteSpecifier::Inline(table) => table,
            ArchivedRouteSpecifier::Rds(name) => match pin.route_table(name) {
                Some(table) => table,
                None => return refuse(ctx, 404, Flags::NO_ROUTE, b""),
            },
        };
        let raw = nginx::text((*r).unparsed_uri);
        let path = match path::normalize(raw, hcm) {
            Ok(path) => path,
            Err(PathError::Reject400) => return refuse(ctx, 400, Flags::default(), b""),
            Err(PathError::Redirect307(to)) => {
                ctx.reply.location = pool_str((*r).pool, to.as_bytes())?;
                return refuse(ctx, 307, Flags::default(), b"");
            }
        };
        let host_header = super::head::host(r);
        let host = path::normalize_host(host_header, hcm, captured.destination.port());
        let head = Head::new(r, &path, &host, captured.tls, tools.random());
        let decision = route::decide(table, &head, tools.regexes());
        let seen = Seen { request: r, captured, pin: &pin, hcm, table, path: &path, raw };
        act(&seen, tools, ctx, decision)
    }
}

/// What a decision is carried out with.
struct Seen<'a> {
    request: *mut ngx_http_request_t,
    captured: &'a Captured,
    pin: &'a zone::Pin<'a>,
    hcm: &'a ArchivedHttpConnectionManager,
    table: &'a ArchivedRouteTable,
    /// The normalised path.
    path: &'a str,
    /// The path as it came.
    raw: &'a str,
}

/// Carries out what the router said. `None` when memory is out.
unsafe fn act(seen: &Seen<'_>, tools: &mut zone::Tools, ctx: &mut Ctx, decision: Decision<'_>) -> Option<()> {
    // SAFETY: the request is live.
    let pool = unsafe { (*seen.request).pool };
    match decision {
        Decision::NotFound => refuse(ctx, 404, Flags::NO_ROUTE, b""),
        Decision::Refuse { reason } => {
            zone::complain(&seen.table.name, reason);
            refuse(ctx, 500, Flags::REFUSED, b"")
        }
        Decision::ClusterNotFound { virtual_host, route, code } => {
            ctx.note(pool, virtual_host.1, Some(route.1))?;
            ctx.response.edits = ResponseEdits::keep(pool, &levels(seen.table, None, Some(route.1), virtual_host.1))?;
            refuse(ctx, code, Flags::NO_CLUSTER, b"")
        }
        Decision::Redirect { virtual_host, route, status, location } => {
            let route = route.map(|r| r.1);
            ctx.note(pool, virtual_host.1, route)?;
            ctx.response.edits = ResponseEdits::keep(pool, &levels(seen.table, None, route, virtual_host.1))?;
            ctx.reply.location = pool_str(pool, location.as_bytes())?;
            refuse(ctx, status, Flags::default(), b"")
        }
        Decision::Direct { virtual_host, route, status, body } => {
            ctx.note(pool, virtual_host.1, Some(route.1))?;
            ctx.response.edits = ResponseEdits::keep(pool, &levels(seen.table, None, Some(route.1), virtual_host.1))?;
            ctx.reply.body = pool_str(pool, body)?;
            refuse(ctx, status, Flags::default(), b"")
        }
        Decision::Forward(forward) => {
            ctx.note(pool, forward.virtual_host.1, Some(forward.route.1))?;
            ctx.set_cluster(pool_str(pool, forward.cluster.as_bytes())?);
            let levels = levels(seen.table, forward.arm, Some(forward.route.1), forward.virtual_host.1);
            ctx.response.edits = ResponseEdits::keep(pool, &levels)?;
            ctx.response.attempt_count = forward.virtual_host.1.include_attempt_count_in_response;
            ctx.websocket = seen.hcm.websocket;
            let retry = &forward.action.retry;
            ctx.retries = if retry.connect_failure { retry.num_retries.to_native() } else { 0 };
            match lb::pick_pinned(seen.pin, tools, &ctx.upstream(), &[]) {
                Ok(picked) => ctx.picked = Some(picked),
                Err(reason) => {
                    let (code, body): (u16, &[u8]) = match reason {
                        Reason::NoCluster => (forward.action.cluster_not_found_response_code.to_native(), b""),
                        _ => (503, b"no healthy upstream"),
                    };
                    return refuse(ctx, code, reason.flags(), body);
                }
            }
            // SAFETY: the request has not gone upstream yet.
            unsafe { upstream_request(seen, ctx, &forward, &levels)? };
            if forward.auto_host && !tools.hostname.is_empty() {
                ctx.host = pool_str(pool, tools.hostname.as_bytes())?;
            }
            Some(())
        }
    }
}

/// The levels of header edits that apply.
fn levels<'a>(
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
unsafe fn upstream_request(seen: &Seen<'_>, ctx: &mut Ctx, forward: &Forward<'_>, levels: &Levels<'_>) -> Option<()> {
    let r = seen.request;
    // SAFETY: the request is live and has not gone upstream; all that is put into it lives in its pool.
    unsafe {
        let pool = (*r).pool;
        manager_headers(seen, ctx)?;
        if forward.virtual_host.1.include_request_attempt_count {
            set_header(r, "x-envoy-attempt-count", b"1")?;
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
                set_header(r, "x-envoy-original-path", seen.path.as_bytes())?;
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
            set_header(r, "x-forwarded-proto", scheme.as_bytes())?;
            if !hcm.skip_xff_append {
                let client = seen.captured.source.ip().to_string();
                let before = request_header(r, b"x-forwarded-for").map(|v| [v, b","].concat()).unwrap_or_default();
                set_header(r, "x-forwarded-for", &[before.as_slice(), client.as_bytes()].concat())?;
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
            set_header(r, "x-request-id", id.hyphenated().encode_lower(&mut buffer).as_bytes())?;
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

/// Sets a request header to one value. `None` when memory is out.
unsafe fn set_header(r: *mut ngx_http_request_t, name: &'static str, value: &[u8]) -> Option<()> {
    // SAFETY: see upstream_request.
    unsafe {
        edit::remove_request_header(r, name.as_bytes())?;
        edit::add_request_header(r, nginx::str_of(name), pool_str((*r).pool, value)?)
    }
}

impl Ctx {
    /// Remembers which virtual host and route took the request. `None` when memory is out.
    fn note(
        &mut self,
        pool: *mut ffi::ngx_pool_t,
        virtual_host: &ArchivedVirtualHost,
        route: Option<&ArchivedRoute>,
    ) -> Option<()> {
        self.virtual_host = pool_str(pool, virtual_host.name.as_bytes())?;
        self.route = pool_str(pool, route.map_or(&[], |r| r.name.as_bytes()))?;
        Some(())
    }
}

/// The answer is given here.
fn refuse(ctx: &mut Ctx, status: u16, flags: Flags, body: &'static [u8]) -> Option<()> {
    ctx.flags = ctx.flags.with(flags);
    ctx.reply.status = status;
    if !body.is_empty() {
        ctx.reply.body = ngx_str_t { len: body.len(), data: body.as_ptr().cast_mut() };
    }
    Some(())
}

fn captured_name(captured: &Captured) -> String {
    // SAFETY: the name lives in the connection's pool.
    unsafe { nginx::text(captured.listener) }.to_owned()
}
