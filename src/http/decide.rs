//! The phase handler: which listener, filter chain, route and endpoint take a request.
//!
//! It runs before content: everything that Envoy answers without an upstream is answered here. A request goes through
//! its stages ([`Stage`]) and may have to wait in two of them; nginx then runs the phase again.

use super::body;
use super::capture::{self, Captured};
use super::chain::Chain;
use super::ctx::{ctx, ctx_or_new, Ctx, Stage};
use super::edit::{self, Facts, ResponseEdits};
use super::filter;
use super::forward::{self, levels, Seen};
use super::head::Head;
use super::manager;
use super::redirect;
use super::reply::{self, Flags};
use super::timer;
use super::{srv_conf, Mode};
use crate::guard::guard;
use crate::lb::{self, Protocol, Reason};
use crate::nginx::{self, pool_str, AGAIN, DECLINED, EMPTY, ERROR, OK};
use crate::zone;
use amesh_dataplane::header::Levels;
use amesh_dataplane::listener::{self, Direction};
use amesh_dataplane::path::{self, PathError};
use amesh_dataplane::route::{self, Decision, RequestHead};
use amesh_dataplane::scope;
use amesh_model::listener::{
    ArchivedChainAction, ArchivedHttpConnectionManager, ArchivedListener, ArchivedRouteSpecifier, ArchivedScopeRoutes,
};
use amesh_model::route::ArchivedRouteTable;
use ngx::ffi::{self, ngx_http_request_t, ngx_int_t, ngx_uint_t};

/// Largest body that is held to be sent more than once, in bytes (Envoy's `per_connection_buffer_limit_bytes`).
const BUFFER_LIMIT: ffi::off_t = 1 << 20;

/// The location whose content handler speaks HTTP/2 to endpoints.
const HTTP2_LOCATION: &[u8] = b"@amesh_http2";

const INTERNAL_SERVER_ERROR: ngx_int_t = ffi::NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t;

/// The phase handler.
pub extern "C" fn handler(r: *mut ngx_http_request_t) -> ngx_int_t {
    guard("the route decision", INTERNAL_SERVER_ERROR, || {
        // SAFETY: nginx hands in a live request.
        unsafe {
            if r != (*r).main {
                return DECLINED;
            }
            let decided = ctx(r);
            let direction = match srv_conf(r).mode {
                m if m == Mode::Outbound as u8 => Some(Direction::Outbound),
                m if m == Mode::Inbound as u8 => Some(Direction::Inbound),
                m if m == Mode::Internal as u8 => None,
                // Lua may have had it decided in an earlier phase.
                _ => return decided.filter(|ctx| ctx.is_decided()).map_or(DECLINED, |ctx| advance(r, ctx)),
            };
            if let Some(ctx) = decided {
                return advance(r, ctx);
            }
            if (*r).http_version < ffi::NGX_HTTP_VERSION_10 as ngx_uint_t {
                // It has no headers, and nginx made no list for any.
                return ffi::NGX_HTTP_VERSION_NOT_SUPPORTED as ngx_int_t;
            }
            if zone::wait_for_ready((*r).start_sec) {
                return wait(r);
            }
            match enter(r, direction) {
                Ok(ctx) => advance(r, ctx),
                Err(status) => status,
            }
        }
    })
}

/// Decides a live request, which then goes through its stages when it comes to this phase. `direction`: where the front
/// door has not seen the connection; `None`: such a connection is refused. An error is what a phase handler returns.
///
/// # Safety
/// `r` must be a live request that is not yet on its way upstream, and has not been decided.
pub unsafe fn enter<'a>(r: *mut ngx_http_request_t, direction: Option<Direction>) -> Result<&'a mut Ctx, ngx_int_t> {
    // SAFETY: promised by the caller; context and connection live as long as the request.
    unsafe {
        let ctx = &mut *ctx_or_new(r).ok_or(ERROR)?;
        if (*r).internal() != 0 {
            redirect::resume(r, ctx);
        }
        let captured = captured(r, direction).ok_or(ffi::NGX_HTTP_CLOSE as ngx_int_t)?;
        let decided = zone::with_worker(|worker| {
            let (pin, tools) = worker.pin();
            decide(&pin, tools, r, ctx, &mut *captured)
        });
        decided.flatten().map(|()| ctx).ok_or(INTERNAL_SERVER_ERROR)
    }
}

/// Takes a decided request through its stages.
unsafe fn advance(r: *mut ngx_http_request_t, ctx: &mut Ctx) -> ngx_int_t {
    // SAFETY: the request is live, and in this phase.
    unsafe {
        if ctx.stage == Stage::Delay {
            let ms = std::mem::take(&mut ctx.delay);
            if ms > 0 {
                return delay(r, ms).map_or(INTERNAL_SERVER_ERROR, |()| AGAIN);
            }
            ctx.stage = Stage::Pick;
        }
        if ctx.stage == Stage::Pick {
            if ctx.reply.status == 0 {
                let picked = zone::with_worker(|worker| {
                    let (pin, tools) = worker.pin();
                    pick(&pin, tools, r, ctx)
                });
                if picked.flatten().is_none() {
                    return INTERNAL_SERVER_ERROR;
                }
            }
            ctx.stage = Stage::Body;
        }
        if ctx.stage == Stage::Body && ctx.http2 && !http2_location(r) {
            zone::complain(
                nginx::text(ctx.cluster),
                "its endpoints speak HTTP/2, and the server has no \"location @amesh_http2\": include amesh/server.conf",
            );
            ctx.refuse(503, Flags::REFUSED, "");
        }
        if ctx.stage == Stage::Body {
            ctx.stage = Stage::Done;
            if ctx.request_timeout > 0 && ctx.reply.status == 0 && timer::begin_request(r, ctx).is_none() {
                return INTERNAL_SERVER_ERROR;
            }
            let sent_again = ctx.retries.remaining > 0 || !ctx.shadows.is_null() || !ctx.redirects.is_null();
            let length = (*r).headers_in.content_length_n;
            if ctx.reply.status == 0 && ctx.max_request_bytes > 0 && body::is_there(r) {
                if length <= ctx.max_request_bytes.into() {
                    body::limit(r, ctx.max_request_bytes);
                    return body::hold(r);
                }
                ctx.refuse(413, Flags::NONE, body::TOO_LARGE);
            } else if ctx.reply.status == 0 && sent_again && (1..=BUFFER_LIMIT).contains(&length) {
                return body::hold(r);
            }
        }
        if ctx.reply.status != 0 {
            (*r).content_handler = Some(content);
        }
        DECLINED
    }
}

/// Puts a request into the location that forwards in HTTP/2, as if its path had led there. False: there is none.
unsafe fn http2_location(r: *mut ngx_http_request_t) -> bool {
    // SAFETY: the request is live; the list of named locations ends with null.
    unsafe {
        let server: *mut ffi::ngx_http_core_srv_conf_t =
            nginx::slot_of((*r).srv_conf, &raw const ffi::ngx_http_core_module);
        let mut named = (*server).named_locations;
        while let Some(location) = named.as_ref().and_then(|location| location.as_ref()) {
            if nginx::bytes(location.name) == HTTP2_LOCATION {
                (*r).loc_conf = location.loc_conf;
                ffi::ngx_http_update_location_config(r);
                return true;
            }
            named = named.add(1);
        }
        false
    }
}

/// Has the request wait, as nginx's limit_req module does.
unsafe fn delay(r: *mut ngx_http_request_t, ms: u64) -> Option<()> {
    // SAFETY: the connection of a live request.
    unsafe {
        let c = (*r).connection;
        if !nginx::handle_read_event((*c).read) {
            return None;
        }
        (*r).read_event_handler = Some(ffi::ngx_http_test_reading);
        (*r).write_event_handler = Some(after_delay);
        (*(*c).write).set_delayed(1);
        ffi::ngx_add_timer((*c).write, ms as ffi::ngx_msec_t);
        Some(())
    }
}

extern "C" fn after_delay(r: *mut ngx_http_request_t) {
    // SAFETY: nginx hands in a live request; the connection is its own.
    guard("the end of a delay", (), || unsafe {
        let c = (*r).connection;
        if (*(*c).write).delayed() != 0 {
            // Something else has happened: the delay goes on.
            if ffi::ngx_handle_write_event((*c).write, 0) != OK {
                ffi::ngx_http_finalize_request(r, INTERNAL_SERVER_ERROR);
            }
            return;
        }
        if !nginx::handle_read_event((*c).read) {
            return ffi::ngx_http_finalize_request(r, INTERNAL_SERVER_ERROR);
        }
        (*r).read_event_handler = Some(ffi::ngx_http_block_reading);
        (*r).write_event_handler = Some(ffi::ngx_http_core_run_phases);
        ffi::ngx_http_core_run_phases(r);
    });
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
            reply::local(r, &ctx.reply, ctx.grpc)
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

/// The connection manager and the route table of a connection, `None` where there are none.
///
/// # Safety
/// `r` must be live.
pub unsafe fn tables<'p>(
    pin: &'p zone::Pin<'_>,
    r: *mut ngx_http_request_t,
    captured: &mut Captured,
) -> Option<(&'p ArchivedHttpConnectionManager, &'p ArchivedRouteTable)> {
    // SAFETY: promised by the caller.
    unsafe {
        let found = find_listener(pin, (*r).connection, captured)?;
        match &listener::filter_chain_at(found, captured.chain)?.action {
            ArchivedChainAction::Http(hcm) => Some((hcm, route_table(pin, r, hcm)?)),
            _ => None,
        }
    }
}

unsafe fn route_table<'p>(
    pin: &'p zone::Pin<'_>,
    r: *mut ngx_http_request_t,
    hcm: &'p ArchivedHttpConnectionManager,
) -> Option<&'p ArchivedRouteTable> {
    match &hcm.routes {
        ArchivedRouteSpecifier::Inline(table) => Some(table),
        ArchivedRouteSpecifier::Rds(name) => pin.route_table(name),
        ArchivedRouteSpecifier::Scoped(scoped) => {
            // SAFETY: promised by the caller.
            let header = |name: &str| unsafe { edit::request_header(r, name.as_bytes()) };
            match &scope::find(scoped, header)?.routes {
                ArchivedScopeRoutes::Inline(table) => Some(table),
                ArchivedScopeRoutes::Rds(name) => pin.route_table(name),
            }
        }
    }
}

/// Decides a request: finds its listener, and what that does with it. `None` when memory is out.
///
/// # Safety
/// `r` must be a request with a connection, live or made to be asked about; `ctx` and `captured` are its own.
pub unsafe fn decide(
    pin: &zone::Pin<'_>,
    tools: &mut zone::Tools,
    r: *mut ngx_http_request_t,
    ctx: &mut Ctx,
    captured: &mut Captured,
) -> Option<()> {
    // SAFETY: the request and its connection are live.
    unsafe {
        ctx.original_dst = Some(captured.destination);
        if !pin.is_ready() {
            zone::complain("every request", "no source has said anything yet");
            ctx.refuse(503, Flags::NO_ROUTE, "");
            return Some(());
        }
        let found = find_listener(pin, (*r).connection, captured);
        ctx.listener = captured.listener;
        let chain = found.and_then(|found| listener::filter_chain_at(found, captured.chain));
        let hcm = match chain.map(|chain| &chain.action) {
            Some(ArchivedChainAction::Http(hcm)) => hcm,
            Some(ArchivedChainAction::Refuse(reason)) => {
                zone::complain(&captured_name(captured), reason);
                ctx.refuse(503, Flags::REFUSED, "");
                return Some(());
            }
            // The connection was HTTP when it came; the listener has changed since.
            Some(ArchivedChainAction::Tcp(_)) => {
                ctx.refuse(421, Flags::NO_ROUTE, "");
                return Some(());
            }
            None => {
                ctx.refuse(404, Flags::NO_ROUTE, "");
                return Some(());
            }
        };
        ctx.managed = true;
        ctx.request_timeout = hcm.request_timeout.to_native();
        ctx.response.manage(hcm, (*r).pool)?;
        if let Some(reason) = hcm.refuse.as_ref() {
            zone::complain(&captured_name(captured), reason);
            ctx.refuse(500, Flags::REFUSED, "");
            return Some(());
        }
        let Some(table) = route_table(pin, r, hcm) else {
            ctx.refuse(404, Flags::NO_ROUTE, "");
            return Some(());
        };
        decide_by(pin, tools, r, ctx, captured, (hcm, table))
    }
}

/// Decides a request that a connection manager with this route table takes. `None` when memory is out.
///
/// # Safety
/// As [`decide`].
pub unsafe fn decide_by(
    pin: &zone::Pin<'_>,
    tools: &mut zone::Tools,
    r: *mut ngx_http_request_t,
    ctx: &mut Ctx,
    captured: &Captured,
    (hcm, table): (&ArchivedHttpConnectionManager, &ArchivedRouteTable),
) -> Option<()> {
    // SAFETY: as above.
    unsafe {
        let managed = match redirect::managed(ctx) {
            Some(managed) => managed,
            None => manager::manage(r, ctx, hcm, captured)?,
        };
        if ctx.reply.status != 0 {
            return Some(());
        }
        let raw = nginx::text((*r).unparsed_uri);
        ctx.grpc = route::is_grpc(&Head::new(r, raw, "", managed, 0));
        let path = match path::normalize(raw, hcm) {
            Ok(path) => path,
            Err(PathError::Reject400) => {
                ctx.refuse(400, Flags::NONE, "");
                return Some(());
            }
            // Calls of gRPC do not follow redirects.
            Err(PathError::Redirect307(_)) if ctx.grpc => {
                ctx.refuse(400, Flags::NONE, "");
                return Some(());
            }
            Err(PathError::Redirect307(to)) => {
                ctx.reply.location = pool_str((*r).pool, to.as_bytes())?;
                ctx.refuse(307, Flags::NONE, "");
                return Some(());
            }
        };
        let host_header = super::head::host(r);
        let host = path::normalize_host(host_header, hcm, captured.destination.port());
        if host != host_header || !(*r).host_start.is_null() {
            ctx.host = pool_str((*r).pool, host.as_bytes())?;
        }
        let head = Head::new(r, &path, &host, managed, tools.random());
        let facts = Facts { request: r, ctx: &*ctx, captured: Some(captured) };
        let decision = route::decide(table, &head.with_facts(facts), tools.regexes());
        let group = decision.virtual_host().and_then(|host| route::virtual_cluster(host, &head, tools.regexes()));
        ctx.virtual_cluster = pool_str((*r).pool, group.unwrap_or_default().as_bytes())?;
        let seen = Seen { request: r, captured, managed, hcm, table, path: &path, raw };
        prepare(&seen, ctx, &decision)?;
        match &decision {
            Decision::Forward(forward) => {
                if let Some(policy) = forward.action.internal_redirect.as_deref() {
                    redirect::keep((*r).pool, ctx, policy, managed)?;
                }
            }
            _ => ctx.redirects = std::ptr::null_mut(),
        }
        if !hcm.filters.is_empty() {
            Chain { seen: &seen, head: &head, pin, tools, decision: &decision }.run(ctx)?;
        }
        if ctx.reply.status == 0 {
            // A request to a cluster that is not there stays as it is: its headers may be quoted in the response.
            match &decision {
                Decision::Forward(forward)
                    if !ctx.upgrade_refused && pin.cluster(ctx.cluster_hash, &forward.cluster).is_none() =>
                {
                    ctx.cluster = EMPTY;
                    ctx.refuse(forward.action.cluster_not_found_response_code.to_native(), Flags::NO_CLUSTER, "");
                }
                _ => act(&seen, &head, pin, tools, ctx, decision)?,
            }
        }
        if ctx.delay > 0 {
            ctx.stage = Stage::Delay;
        } else if ctx.reply.status == 0 {
            pick(pin, tools, r, ctx)?;
            ctx.stage = Stage::Body;
        }
        Some(())
    }
}

/// Remembers where a request belongs, and what is done to its response. `None` when memory is out.
unsafe fn prepare(seen: &Seen<'_>, ctx: &mut Ctx, decision: &Decision<'_>) -> Option<()> {
    // SAFETY: the request is live.
    let pool = unsafe { (*seen.request).pool };
    let Some(virtual_host) = decision.virtual_host() else { return Some(()) };
    let route = decision.route();
    ctx.note(pool, virtual_host, route)?;
    let mut arm = None;
    if let Decision::Forward(forward) = decision {
        arm = forward.arm;
        ctx.set_cluster(pool_str(pool, forward.cluster.as_bytes())?);
    }
    // Nobody edits the answer to a plaintext request that must be TLS (`SslRedirectRoute`).
    if route.is_some() {
        ctx.response.edits = ResponseEdits::keep(pool, &levels(seen.table, arm, route, virtual_host))?;
    }
    Some(())
}

/// Carries out what the router said. `None` when memory is out.
unsafe fn act(
    seen: &Seen<'_>,
    head: &Head<'_>,
    pin: &zone::Pin<'_>,
    tools: &mut zone::Tools,
    ctx: &mut Ctx,
    decision: Decision<'_>,
) -> Option<()> {
    // SAFETY: the request is live.
    let pool = unsafe { (*seen.request).pool };
    match decision {
        Decision::NotFound => ctx.refuse(404, Flags::NO_ROUTE, ""),
        Decision::Refuse { reason } => {
            zone::complain(&seen.table.name, reason);
            ctx.refuse(500, Flags::REFUSED, "");
        }
        Decision::ClusterNotFound { code, .. } => ctx.refuse(code, Flags::NO_CLUSTER, ""),
        Decision::Redirect { status, location, .. } => {
            ctx.refuse(status, Flags::NONE, "");
            ctx.reply.location = pool_str(pool, location.as_bytes())?;
        }
        Decision::Direct { status, body, content_type, location, .. } => {
            ctx.refuse(status, Flags::NONE, "");
            ctx.reply.body = pool_str(pool, &body)?;
            ctx.reply.content_type = pool_str(pool, content_type.as_bytes())?;
            ctx.reply.location = pool_str(pool, location.unwrap_or_default().as_bytes())?;
        }
        Decision::Forward(forward) => {
            if ctx.upgrade_refused {
                ctx.refuse(403, Flags::NONE, "");
                return Some(());
            }
            ctx.cluster_not_found = forward.action.cluster_not_found_response_code.to_native();
            ctx.high_priority = forward.action.high_priority;
            ctx.auto_host = forward.auto_host;
            ctx.response.attempt_count = forward.virtual_host.1.include_attempt_count_in_response;
            let levels = Levels {
                internal_only: if head.is_internal() { &[] } else { &seen.table.internal_only_headers },
                ..levels(seen.table, forward.arm, Some(forward.route.1), forward.virtual_host.1)
            };
            // A cluster's own policy goes before the route's.
            let cluster = pin.cluster(ctx.cluster_hash, &forward.cluster);
            let hash_policy = match cluster.map(|cluster| cluster.hashing.policy.as_slice()) {
                Some(own @ [_, ..]) => own,
                _ => forward.action.hash_policy.as_slice(),
            };
            // SAFETY: the request has not gone upstream yet.
            unsafe {
                forward::policies(seen, head, tools, ctx, &forward, hash_policy)?;
                forward::upstream_request(seen, ctx, &forward, &levels)?;
            }
        }
    }
    Some(())
}

/// Picks the endpoint of the first try, or answers as Envoy does where there is none. `None` when memory is out.
unsafe fn pick(pin: &zone::Pin<'_>, tools: &mut zone::Tools, r: *mut ngx_http_request_t, ctx: &mut Ctx) -> Option<()> {
    match lb::pick_pinned(pin, tools, &ctx.upstream(), ctx.choice(&[])) {
        Ok(picked) => {
            ctx.picked = Some(picked);
            ctx.http2 = match picked.protocol {
                Protocol::Http1 => false,
                Protocol::Http2 => true,
                // SAFETY: the request is live.
                Protocol::AsTheClient => unsafe { (*r).http_version >= ffi::NGX_HTTP_VERSION_20 as ngx_uint_t },
            };
            if ctx.auto_host && !tools.hostname.is_empty() {
                // SAFETY: the request is live.
                ctx.host = pool_str(unsafe { (*r).pool }, tools.hostname.as_bytes())?;
            }
        }
        Err(reason @ Reason::NoCluster) => {
            ctx.cluster = EMPTY;
            ctx.refuse(ctx.cluster_not_found, reason.flags(), "");
        }
        Err(reason @ Reason::Overflow) => {
            ctx.attempts = 1;
            ctx.refuse(503, reason.flags(), filter::OVERFLOW);
        }
        Err(reason) => {
            // As if it had been tried.
            ctx.attempts = 1;
            ctx.refuse(503, reason.flags(), "no healthy upstream");
        }
    }
    Some(())
}

fn captured_name(captured: &Captured) -> String {
    // SAFETY: the name lives in the connection's pool.
    unsafe { nginx::text(captured.listener) }.to_owned()
}
