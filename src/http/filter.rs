//! The response filters: what the connection manager and the route say of a response, and Envoy's words where nginx
//! would send its own error page.

use super::body;
use super::capture;
use super::chain::Rate;
use super::ctx::{self, Ctx};
use super::edit::{self, Facts, ResponseEdits};
use super::head::headers;
use super::reply::{self, Flags};
use super::timer::{Expired, REQUEST_TIMEOUT};
use crate::guard::guard;
use crate::nginx::{self, pool_str, str_of, EMPTY, ERROR, OK};
use amesh_dataplane::bucket::Level;
use amesh_model::listener::{ArchivedHttpConnectionManager, ArchivedServerHeader};
use ngx::ffi::{self, ngx_chain_t, ngx_http_request_t, ngx_int_t, ngx_pool_t, ngx_str_t, ngx_table_elt_t};
use std::sync::OnceLock;

/// Envoy's body where there is no response, up to the reason.
const NO_RESPONSE: &str = "upstream connect error or disconnect/reset before headers. ";
/// The reason where no connection could be made.
const CONNECT_ERROR: &str = "remote connection failure";
/// The reason where a connection ended before the response.
const RESET_ERROR: &str = "connection termination";
/// Envoy's body where the cluster has no room for the request.
pub const OVERFLOW: &str = "upstream connect error or disconnect/reset before headers. reset reason: overflow";
/// The reason where no connection came about in time.
const CONNECT_TIMEOUT: &str = "connection timeout";
/// The reason where what came is no HTTP.
const PROTOCOL_ERROR: &str = "protocol error";

/// What happens to the `server` header.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Server {
    Untouched,
    Overwrite,
    IfAbsent,
}

/// A header that is set or added.
struct Added {
    name: &'static str,
    value: ngx_str_t,
    /// In place of others of its name.
    set: bool,
    next: *mut Added,
}

/// What is done to a response; all of it lives in the request's pool.
#[derive(Clone, Copy)]
pub struct Response {
    server: Server,
    server_name: ngx_str_t,
    /// Edits of the route.
    pub edits: ResponseEdits,
    /// Edits of a filter that answers, after those.
    pub local_edits: ResponseEdits,
    /// The bucket whose level is told.
    pub rate: Option<Rate>,
    /// `x-request-id` of the response; empty: none.
    pub request_id: ngx_str_t,
    /// `via`; empty: none.
    pub via: ngx_str_t,
    /// `x-envoy-upstream-service-time` is added.
    pub service_time: bool,
    /// `x-envoy-attempt-count` is added.
    pub attempt_count: bool,
    /// Headers that filters add; null: none.
    added: *mut Added,
    /// Goes in place of the body that nginx made.
    body: ngx_str_t,
    body_sent: bool,
}

impl Response {
    /// Nothing is done.
    pub const fn new() -> Response {
        Response {
            server: Server::Untouched,
            server_name: EMPTY,
            edits: ResponseEdits::NONE,
            local_edits: ResponseEdits::NONE,
            rate: None,
            request_id: EMPTY,
            via: EMPTY,
            service_time: false,
            attempt_count: false,
            added: std::ptr::null_mut(),
            body: EMPTY,
            body_sent: false,
        }
    }

    /// Has a header of the response set. `None` when memory is out.
    pub fn set(&mut self, pool: *mut ngx_pool_t, name: &'static str, value: &str) -> Option<()> {
        self.change(pool, name, value, true)
    }

    /// Has a header added to the response. `None` when memory is out.
    pub fn add(&mut self, pool: *mut ngx_pool_t, name: &'static str, value: &str) -> Option<()> {
        self.change(pool, name, value, false)
    }

    /// Calls `f` with the headers that filters set (`true`) or add.
    pub fn each_added(&self, mut f: impl FnMut(&'static str, ngx_str_t, bool)) {
        let mut added = self.added;
        // SAFETY: the list lives in the request's pool, as this does.
        while let Some(header) = unsafe { added.as_ref() } {
            f(header.name, header.value, header.set);
            added = header.next;
        }
    }

    fn change(&mut self, pool: *mut ngx_pool_t, name: &'static str, value: &str, set: bool) -> Option<()> {
        let added = Added { name, value: pool_str(pool, value.as_bytes())?, set, next: std::ptr::null_mut() };
        let place: *mut Added = nginx::pool_zeroed(pool);
        if place.is_null() {
            return None;
        }
        // SAFETY: freshly allocated in the request's pool, as the rest of the list was.
        unsafe {
            place.write(added);
            let mut end = &mut self.added;
            while let Some(header) = end.as_mut() {
                end = &mut header.next;
            }
            *end = place;
        }
        Some(())
    }

    /// What the connection manager says. `None` when memory is out.
    pub fn manage(&mut self, hcm: &ArchivedHttpConnectionManager, pool: *mut ngx_pool_t) -> Option<()> {
        self.server = match hcm.server_header_transformation {
            ArchivedServerHeader::Overwrite => Server::Overwrite,
            ArchivedServerHeader::AppendIfAbsent => Server::IfAbsent,
            ArchivedServerHeader::PassThrough => Server::Untouched,
        };
        self.server_name = pool_str(pool, hcm.server_name.as_bytes())?;
        self.service_time = !hcm.suppress_envoy_headers;
        Some(())
    }
}

type HeaderFilter = unsafe extern "C" fn(*mut ngx_http_request_t) -> ngx_int_t;
type BodyFilter = unsafe extern "C" fn(*mut ngx_http_request_t, *mut ngx_chain_t) -> ngx_int_t;

static NEXT_HEADER: OnceLock<Option<HeaderFilter>> = OnceLock::new();
static NEXT_BODY: OnceLock<Option<BodyFilter>> = OnceLock::new();

/// Puts the filters on top of nginx's (`postconfiguration`).
///
/// # Safety
/// To be called while nginx configures its http modules.
pub unsafe fn install() {
    // SAFETY: nginx's chains are plain variables, changed by modules while they are configured. The chain below this
    // module is the same for every configuration of a process: modules are added in one order.
    unsafe {
        NEXT_HEADER.get_or_init(|| ffi::ngx_http_top_header_filter);
        ffi::ngx_http_top_header_filter = Some(header_filter);
        NEXT_BODY.get_or_init(|| ffi::ngx_http_top_body_filter);
        ffi::ngx_http_top_body_filter = Some(body_filter);
    }
}

unsafe fn next_header(r: *mut ngx_http_request_t) -> ngx_int_t {
    match NEXT_HEADER.get() {
        // SAFETY: nginx's own filter, for a live request.
        Some(Some(next)) => unsafe { next(r) },
        _ => ERROR,
    }
}

extern "C" fn header_filter(r: *mut ngx_http_request_t) -> ngx_int_t {
    guard("the header filter", ERROR, || {
        // SAFETY: nginx hands in a live request whose header is about to be sent.
        unsafe {
            if r == (*r).main {
                if let Some(ctx) = ctx::ctx(r) {
                    if ctx.managed && headers_of(r, ctx).is_none() {
                        return ERROR;
                    }
                }
            }
            next_header(r)
        }
    })
}

/// Edits the response's headers. `None` when memory is out.
unsafe fn headers_of(r: *mut ngx_http_request_t, ctx: &mut Ctx) -> Option<()> {
    // SAFETY: the request is live and its header not sent.
    unsafe {
        let u = (*r).upstream;
        // nginx keeps the status of a head that has only begun.
        let answered = !u.is_null() && ctx.answered;
        if !u.is_null() && !answered && ctx.reply.status == 0 {
            local_error(r, ctx)?;
        }
        let too_large = (*r).headers_out.status as u32 == ffi::NGX_HTTP_REQUEST_ENTITY_TOO_LARGE;
        if u.is_null() && too_large && ctx.max_request_bytes > 0 && ctx.reply.status == 0 {
            replace(r, ctx, 413, str_of(body::TOO_LARGE))?;
        }
        // A retry that was not allowed is no overload: then it is the former failure that is told of.
        let failed = [Flags::UPSTREAM_FAILURE, Flags::UPSTREAM_TERMINATION, Flags::UPSTREAM_TIMEOUT];
        let overloaded = ctx.flags.has(Flags::UPSTREAM_OVERFLOW) && !failed.iter().any(|f| ctx.flags.has(*f));
        if !answered && overloaded && ctx.response.service_time {
            reply::push_header(r, str_of("x-envoy-overloaded"), str_of("true"))?;
        }
        let switched = (*r).headers_out.status as u32 == ffi::NGX_HTTP_SWITCHING_PROTOCOLS;
        if answered && ctx.response.service_time && !switched && !(*u).state.is_null() {
            let ms = (*(*u).state).header_time;
            let ms = if ms == ffi::ngx_msec_t::MAX { 0 } else { ms };
            edit::set_response_header(r, "x-envoy-upstream-service-time", ms.to_string().as_bytes())?;
        }
        if ctx.response.attempt_count && ctx.attempts > 0 {
            let text = pool_str((*r).pool, ctx.attempts.to_string().as_bytes())?;
            reply::push_header(r, str_of("x-envoy-attempt-count"), text)?;
        }
        if ctx.response.request_id.len > 0 {
            edit::set_response_header(r, "x-request-id", nginx::bytes(ctx.response.request_id))?;
        }
        let captured = capture::find((*r).connection).map(|c| &*c);
        ctx.response.edits.apply(&Facts { request: r, ctx, captured })?;
        ctx.response.local_edits.apply(&Facts { request: r, ctx, captured })?;
        if ctx.response.via.len > 0 {
            reply::push_header(r, str_of("via"), ctx.response.via)?;
        }
        if ctx.reply.status != 0 || ctx.replaced {
            local_content_type(r, ctx);
        }
        let mut done = Some(());
        ctx.response.each_added(|name, value, set| {
            let added = match set {
                true => edit::set_response_header(r, name, nginx::bytes(value)),
                false => reply::push_header(r, str_of(name), value).map(|_| ()),
            };
            done = done.and(added);
        });
        done?;
        if let Some(level) = ctx.response.rate.and_then(|rate| rate.level()) {
            let Level { limit, remaining, reset } = level;
            for (name, value) in [
                ("x-ratelimit-limit", limit.into()),
                ("x-ratelimit-remaining", remaining.into()),
                ("x-ratelimit-reset", reset),
            ] {
                reply::push_header(r, str_of(name), pool_str((*r).pool, value.to_string().as_bytes())?)?;
            }
        }
        // After the route's edits: the connection manager has the last word, as Envoy's encodeHeaders.
        let date = (*r).headers_out.date;
        if !date.is_null() && (*date).hash == 0 {
            // The response has none: nginx writes one where this is null.
            (*r).headers_out.date = std::ptr::null_mut();
        }
        server_header(r, &ctx.response)
    }
}

/// nginx answers by itself where an upstream failed: Envoy's status and words instead. `None` when memory is out.
unsafe fn local_error(r: *mut ngx_http_request_t, ctx: &mut Ctx) -> Option<()> {
    // SAFETY: as above.
    unsafe {
        let timed_out = (*r).headers_out.status as u32 == ffi::NGX_HTTP_GATEWAY_TIME_OUT;
        if !timed_out && (*r).headers_out.status as u32 != ffi::NGX_HTTP_BAD_GATEWAY {
            return Some(());
        }
        let reason = |why: &str| {
            let again = if ctx.attempts > 1 { "retried and the latest " } else { "" };
            pool_str((*r).pool, [NO_RESPONSE, again, "reset reason: ", why].concat().as_bytes())
        };
        let (status, text) = match ctx.expired {
            Expired::Global | Expired::PerTry => (504, str_of("upstream request timeout")),
            Expired::Stream => (504, str_of("downstream duration timeout")),
            Expired::Idle => (504, str_of("stream timeout")),
            Expired::Request => (408, str_of(REQUEST_TIMEOUT)),
            Expired::No if ctx.flags.has(Flags::UPSTREAM_PROTOCOL_ERROR) => (502, reason(PROTOCOL_ERROR)?),
            Expired::No if ctx.flags.has(Flags::UPSTREAM_TERMINATION) => (503, reason(RESET_ERROR)?),
            Expired::No if ctx.flags.has(Flags::UPSTREAM_FAILURE) && timed_out => (503, reason(CONNECT_TIMEOUT)?),
            Expired::No if ctx.flags.has(Flags::UPSTREAM_FAILURE) => (503, reason(CONNECT_ERROR)?),
            Expired::No if ctx.flags.has(Flags::UPSTREAM_OVERFLOW) => (503, reason("overflow")?),
            Expired::No if ctx.flags.has(Flags::NO_CLUSTER) => (ctx.cluster_not_found, EMPTY),
            Expired::No => (503, str_of("no healthy upstream")),
        };
        let timed_out = matches!(ctx.expired, Expired::Global | Expired::PerTry);
        let (status, text) = match ctx.alt_response && timed_out && !ctx.grpc {
            true => (204, EMPTY),
            false => (status, text),
        };
        replace(r, ctx, status, text)
    }
}

/// Puts an answer of Envoy's in the place of nginx's own. `None` when memory is out.
unsafe fn replace(r: *mut ngx_http_request_t, ctx: &mut Ctx, status: u16, text: ngx_str_t) -> Option<()> {
    // SAFETY: as above.
    unsafe {
        if ctx.grpc {
            (*r).err_status = 200;
            let out = &mut (*r).headers_out;
            out.status = 200;
            out.status_line = EMPTY;
            out.charset = EMPTY;
            out.content_length_n = 0;
            if !out.content_length.is_null() {
                (*out.content_length).hash = 0;
                out.content_length = std::ptr::null_mut();
            }
            ctx.response.body = EMPTY;
            ctx.replaced = true;
            // DEADLINE_EXCEEDED
            let status = if ctx.expired == Expired::Stream { 4 } else { reply::grpc_status(status) };
            return reply::grpc_head(r, status, text);
        }
        let status = ffi::ngx_uint_t::from(status);
        // $status reads this first.
        (*r).err_status = status;
        let out = &mut (*r).headers_out;
        out.status = status;
        out.status_line = EMPTY;
        out.content_length_n = text.len as ffi::off_t;
        if !out.content_length.is_null() {
            (*out.content_length).hash = 0;
            out.content_length = std::ptr::null_mut();
        }
        out.charset = EMPTY;
        out.content_type = EMPTY;
        ctx.response.body = text;
        ctx.replaced = true;
        Some(())
    }
}

/// A local reply with a body has a type, one without has none, whatever a route says of headers.
unsafe fn local_content_type(r: *mut ngx_http_request_t, ctx: &Ctx) {
    // SAFETY: as above.
    unsafe {
        let body = if ctx.replaced { ctx.response.body } else { ctx.reply.body };
        let out = &mut (*r).headers_out;
        let kind = match body.len {
            _ if ctx.grpc && !ctx.reply.headers_only => str_of("application/grpc"),
            0 => EMPTY,
            _ if out.content_type.len > 0 => return,
            _ => str_of("text/plain"),
        };
        out.content_type = kind;
        out.content_type_len = kind.len;
        out.content_type_lowcase = std::ptr::null_mut();
    }
}

unsafe fn server_header(r: *mut ngx_http_request_t, response: &Response) -> Option<()> {
    // SAFETY: as above.
    unsafe {
        let present: *mut ngx_table_elt_t = (*r).headers_out.server;
        let present = if present.is_null() || (*present).hash == 0 {
            headers(&raw mut (*r).headers_out.headers)
                .find(|h| h.hash != 0 && nginx::bytes(h.key).eq_ignore_ascii_case(b"server"))
                .map_or(std::ptr::null_mut(), std::ptr::from_mut)
        } else {
            present
        };
        match response.server {
            Server::Untouched if present.is_null() => {
                // nginx writes its own where there is none: this one is not sent.
                let none = reply::push_header(r, str_of("server"), EMPTY)?;
                (*none).hash = 0;
                (*r).headers_out.server = none;
                return Some(());
            }
            Server::Untouched => {}
            Server::IfAbsent if !present.is_null() => {}
            Server::Overwrite | Server::IfAbsent if present.is_null() => {
                (*r).headers_out.server = reply::push_header(r, str_of("server"), response.server_name)?;
                return Some(());
            }
            _ => {
                (*present).hash = 1;
                (*present).value = response.server_name;
            }
        }
        // nginx puts its own where this is null.
        (*r).headers_out.server = present;
        Some(())
    }
}

extern "C" fn body_filter(r: *mut ngx_http_request_t, chain: *mut ngx_chain_t) -> ngx_int_t {
    guard("the body filter", ERROR, || {
        let Some(Some(next)) = NEXT_BODY.get() else { return ERROR };
        // SAFETY: nginx hands in a live request and its chain; the next filter is nginx's own.
        unsafe {
            if r != (*r).main || chain.is_null() {
                return next(r, chain);
            }
            let Some(ctx) = ctx::ctx(r).filter(|ctx| ctx.replaced) else { return next(r, chain) };
            // nginx's own page is dropped, and said to be sent.
            let mut link = chain;
            while !link.is_null() {
                (*(*link).buf).pos = (*(*link).buf).last;
                link = (*link).next;
            }
            if std::mem::replace(&mut ctx.response.body_sent, true) {
                return OK;
            }
            let mut ours: ffi::ngx_chain_t = std::mem::zeroed();
            ours.buf = reply::memory_buf(r, ctx.response.body);
            if ours.buf.is_null() {
                return ERROR;
            }
            next(r, &mut ours)
        }
    })
}
