//! The upstream peer: `upstream x { amesh; }` and `upstream x { amesh cluster=NAME; }`.

use super::connect::{self, Preface};
use super::ctx::{self, Ctx};
use super::edit;
use super::forward::{ATTEMPT_COUNT, EXPECTED_TIMEOUT, IS_TIMEOUT_RETRY};
use super::head::headers;
use super::pool::{self, Key};
use super::reply::Flags;
use super::retry::{self, ProcessHeader};
use super::timer::{self, Expired};
use super::tuning::tuned;
use super::{shadow, srv_conf_of, SrvConf};
use crate::guard::guard;
use crate::lb::{self, Outcome, Picked};
use crate::nginx::{self, pool_str, CONF_ERROR, CONF_OK, DONE, ERROR, OK};
use crate::zone;
use amesh_dataplane::retry::Reset;
use ngx::ffi::{
    self, ngx_conf_t, ngx_http_request_t, ngx_http_upstream_srv_conf_t, ngx_int_t, ngx_peer_connection_t, ngx_str_t,
    ngx_uint_t,
};
use std::ffi::c_void;
use std::os::raw::c_char;

/// Endpoints that one request remembers to have tried.
const MAX_TRIED: usize = 8;

/// A response with this header says that its endpoint is healthy no more.
const IMMEDIATE_FAIL: &[u8] = b"x-envoy-immediate-health-check-fail";

/// Time to connect of a pause: the pause's own timer ends it.
const PAUSE: u64 = 86_400_000;

/// What one request's upstream holds, in the request's pool.
pub struct Peer {
    request: *mut ngx_http_request_t,
    ctx: *mut Ctx,
    /// The endpoint of this try.
    pub picked: Picked,
    /// Cells of endpoints that were tried.
    tried: [u32; MAX_TRIED],
    tries: u32,
    /// The pool's key of this try's connection.
    key: Key,
    /// The endpoint's text, for logs and `$upstream_addr`.
    name: ngx_str_t,
    /// Between get and free.
    busy: bool,
    /// It was sent once more since a kept connection had ended: not again.
    repeated: bool,
    /// There is another try, after so many ms.
    pub retry: Option<u64>,
    /// The connection leads nowhere: a pause.
    pausing: bool,
    /// What this try's connection says before the request.
    pub preface: Preface,
    /// nginx's parser, where a look is taken at its result.
    pub process_header: Option<ProcessHeader>,
    /// The client's version of HTTP, which nginx overwrites where an answer is none of HTTP/1.
    pub http_version: ngx_uint_t,
    /// What sets it back.
    pub reinit_request: Option<ProcessHeader>,
    local: ffi::ngx_addr_t,
    local_sockaddr: libc::sockaddr_storage,
    /// The balancer whose peer this is behind, where it is not of this module (`balanced`).
    pub outer: Option<Outer>,
}

/// The functions of another balancer.
#[derive(Clone, Copy)]
pub struct Outer {
    /// Its `peer.get`.
    pub get: ffi::ngx_event_get_peer_pt,
    /// Its `peer.free`.
    pub free: ffi::ngx_event_free_peer_pt,
}

/// The `amesh` directive of an upstream: takes over its balancing.
///
/// # Safety
/// `cf` must be the configuration within `upstream {}`.
pub unsafe fn set_up(cf: *mut ngx_conf_t) -> *mut c_char {
    // SAFETY: within upstream {} the upstream module's srv_conf is this upstream, and cf.pool is live.
    unsafe {
        let ctx = (*cf).ctx.cast::<ffi::ngx_http_conf_ctx_t>();
        let upstream: *mut ngx_http_upstream_srv_conf_t =
            nginx::slot_of((*ctx).srv_conf, &raw const ffi::ngx_http_upstream_module);
        if (*upstream).peer.init_upstream.is_some() {
            return c"is not together with another balancer".as_ptr().cast_mut();
        }
        // nginx refuses an upstream without servers; this one is never asked.
        let server = ffi::ngx_array_push((*upstream).servers).cast::<ffi::ngx_http_upstream_server_t>();
        if server.is_null() {
            return CONF_ERROR;
        }
        std::ptr::write_bytes(server, 0, 1);
        (*server).name = nginx::str_of("amesh");
        (*server).down = 1;
        (*upstream).peer.init_upstream = Some(init_upstream);
    }
    CONF_OK
}

extern "C" fn init_upstream(cf: *mut ngx_conf_t, us: *mut ngx_http_upstream_srv_conf_t) -> ngx_int_t {
    guard("the upstream", ERROR, || {
        // SAFETY: nginx hands in the upstream whose directive was `amesh`, complete.
        unsafe {
            if (*(*us).servers).nelts != 1 {
                let file = std::ffi::CStr::from_ptr((*us).file_name.cast()).to_string_lossy();
                nginx::log(
                    (*cf).log,
                    ffi::NGX_LOG_EMERG as ngx_uint_t,
                    format_args!(
                        "upstream \"{}\" has \"amesh\" and \"server\": endpoints come from the mesh, remove the \
                         \"server\" lines in {file}:{}",
                        nginx::text((*us).host),
                        (*us).line
                    ),
                );
                return ERROR;
            }
            (*us).peer.init = Some(init_peer);
        }
        OK
    })
}

extern "C" fn init_peer(r: *mut ngx_http_request_t, us: *mut ngx_http_upstream_srv_conf_t) -> ngx_int_t {
    // SAFETY: nginx hands in a live request and its upstream.
    guard("the upstream peer", ERROR, || unsafe { init(r, us) })
}

unsafe fn init(r: *mut ngx_http_request_t, us: *mut ngx_http_upstream_srv_conf_t) -> ngx_int_t {
    // SAFETY: see the caller.
    unsafe {
        let conf: &SrvConf = srv_conf_of(us);
        let Some(ctx) = ctx::ctx_or_new(r) else { return ERROR };
        if conf.cluster.len > 0 {
            // Plain nginx: no route was asked, the upstream names the cluster.
            (*ctx).set_cluster(conf.cluster);
            if let Some(mut picked) = (*ctx).picked.take() {
                lb::end(&mut picked, Outcome::Unknown);
            }
        }
        let peer = Peer::attach(r, &mut *ctx);
        if peer.is_null() {
            return ERROR;
        }
        let pc = &mut (*(*r).upstream).peer;
        pc.data = peer.cast();
        pc.get = Some(get_peer);
        pc.free = Some(free_peer);
        pc.set_session = Some(set_session);
        pc.save_session = Some(save_session);
        // The mask of causes alone says whether there is another.
        pc.tries = 1;
        OK
    }
}

extern "C" fn set_session(_: *mut ngx_peer_connection_t, _: *mut c_void) -> ngx_int_t {
    OK
}

extern "C" fn save_session(_: *mut ngx_peer_connection_t, _: *mut c_void) {}

extern "C" fn get_peer(pc: *mut ngx_peer_connection_t, data: *mut c_void) -> ngx_int_t {
    // SAFETY: nginx hands in what init put there.
    guard("the upstream peer", ERROR, || unsafe { get(&mut *pc, &mut *data.cast::<Peer>()) })
}

unsafe fn get(pc: &mut ngx_peer_connection_t, peer: &mut Peer) -> ngx_int_t {
    // SAFETY: the request and its context outlive the peer.
    unsafe {
        if let Some(rc) = peer.pause(pc) {
            return rc;
        }
        match peer.begin(pc) {
            Ok(()) => {}
            Err(Begin::Reason(_)) => return nginx::BUSY,
            Err(Begin::Memory) => return ERROR,
        }
        let (r, ctx) = (peer.request, &mut *peer.ctx);
        pc.sockaddr = std::ptr::from_mut(&mut peer.picked.sockaddr).cast();
        pc.socklen = peer.picked.socklen;
        pc.name = &mut peer.name;
        pc.set_cached(0);
        pc.connection = std::ptr::null_mut();
        peer.key = Key { cluster: ctx.cluster_hash, address: peer.picked.address_hash(), http2: ctx.http2 };
        // What was lost with a kept connection is not put on another one.
        let mut preface = nginx::EMPTY;
        if peer.picked.proxy_protocol {
            // Who it is on behalf of is said of a whole connection.
            let Some((header, hash)) = connect::preface(r, ctx) else { return ERROR };
            preface = header;
            peer.key.address ^= hash;
        }
        let kept = if peer.repeated { None } else { pool::take(peer.key, pc.log) };
        match kept {
            Some(c) => {
                pc.connection = c;
                pc.set_cached(1);
                DONE
            }
            None if peer.picked.is_plain() => OK,
            None => connect::connect(pc, peer, preface),
        }
    }
}

impl Peer {
    /// Has nginx act on the `X-Accel-Redirect` that [`super::redirect::follow`] has put into the response.
    ///
    /// # Safety
    /// The peer and `ctx` must be those of the live request `r`.
    pub unsafe fn redirected(&self, r: *mut ngx_http_request_t, ctx: &mut Ctx) {
        ctx.redirected = true;
        // SAFETY: promised by the caller.
        unsafe { tuned((*r).upstream, ctx, self.picked.connect_timeout, false) };
    }
}

/// Why no try begins.
pub enum Begin {
    /// There is no endpoint for it; the request's flags say so, too.
    Reason(lb::Reason),
    /// Memory is out.
    Memory,
}

impl Peer {
    /// A peer of a request whose upstream is being set up; null when memory is out.
    ///
    /// # Safety
    /// `r` must be live and have an upstream; `ctx` must be its context.
    pub unsafe fn attach(r: *mut ngx_http_request_t, ctx: &mut Ctx) -> *mut Peer {
        // SAFETY: promised by the caller; all zeroes is a peer that has not tried anything.
        unsafe {
            let peer: *mut Peer = nginx::pool_zeroed((*r).pool);
            if !peer.is_null() {
                (*peer).request = r;
                (*peer).ctx = ctx;
                ctx.attempts = 0;
                ctx.peer = peer;
                retry::watch(r, &mut *peer);
                shadow::send(r, ctx);
            }
            peer
        }
    }

    /// Makes the pause before another try, if there is to be one.
    ///
    /// # Safety
    /// `pc` must be that of the peer's request.
    pub unsafe fn pause(&mut self, pc: &mut ngx_peer_connection_t) -> Option<ngx_int_t> {
        // SAFETY: the request and its context outlive the peer.
        unsafe {
            let ctx = &mut *self.ctx;
            timer::end_try(ctx);
            let ms = self.retry.take().filter(|ms| *ms > 0)?;
            self.pausing = true;
            // nginx calls free for what has an address alone.
            pc.sockaddr = std::ptr::from_mut(&mut self.picked.sockaddr).cast();
            tuned((*self.request).upstream, ctx, PAUSE, true);
            Some(retry::pause(self.request, pc, ctx, ms))
        }
    }

    /// Begins a try: its endpoint is picked, counted, and named.
    ///
    /// # Safety
    /// `pc` must be that of the peer's request.
    pub unsafe fn begin(&mut self, pc: &mut ngx_peer_connection_t) -> Result<(), Begin> {
        // SAFETY: the request and its context outlive the peer.
        unsafe {
            let (r, peer) = (self.request, self);
            let ctx = &mut *peer.ctx;
            let picked = pick(r, ctx, peer)?;
            if (peer.tries as usize) < MAX_TRIED {
                peer.tried[peer.tries as usize] = picked.cell;
            }
            peer.tries += 1;
            ctx.attempts += 1;
            peer.picked = picked;
            let begun =
                timer::begin_try(r, ctx, ctx.attempts == 1).is_some() && (ctx.attempts == 1 || again(r, ctx).is_some());
            let name = peer.picked.text((*r).pool).filter(|_| begun);
            let Some(name) = name else {
                lb::end(&mut peer.picked, Outcome::Unknown);
                return Err(Begin::Memory);
            };
            peer.name = name;
            ctx.endpoint = name;
            pc.local = peer.picked.bind_addr(&mut peer.local, &mut peer.local_sockaddr);
            peer.busy = true;
            tuned((*r).upstream, ctx, peer.picked.connect_timeout, true);
            Ok(())
        }
    }
}

/// The endpoint of the next try.
unsafe fn pick(r: *mut ngx_http_request_t, ctx: &mut Ctx, peer: &Peer) -> Result<Picked, Begin> {
    // The first try was picked with the route, so that "none" could be answered as Envoy does.
    if let Some(picked) = ctx.picked.take() {
        return Ok(picked);
    }
    // SAFETY: promised by the caller: the request is live.
    unsafe { another(r, ctx, peer) }.map_err(|reason| {
        ctx.flags = ctx.flags.with(reason.flags());
        Begin::Reason(reason)
    })
}
extern "C" fn free_peer(pc: *mut ngx_peer_connection_t, data: *mut c_void, state: ngx_uint_t) {
    // SAFETY: nginx hands in what init put there.
    guard("the upstream peer", (), || unsafe { free(&mut *pc, &mut *data.cast::<Peer>(), state) });
}

unsafe fn free(pc: &mut ngx_peer_connection_t, peer: &mut Peer, state: ngx_uint_t) {
    // SAFETY: the request and its context outlive the peer.
    unsafe {
        if !peer.end(pc, state) {
            return;
        }
        let u = (*peer.request).upstream;
        let c = pc.connection;
        if !c.is_null() && pool::reusable(u, c, has_failed(state)) {
            let limit = peer.picked.max_requests_per_connection;
            let used_up = limit > 0 && (*c).requests >= limit as ngx_uint_t;
            let left = peer.picked.time_left(c);
            if !used_up && left != Some(0) {
                let idle = match (peer.picked.idle_timeout, left) {
                    (idle, None) => idle,
                    (0, Some(left)) => left,
                    (idle, Some(left)) => idle.min(left),
                };
                pool::put(peer.key, c, idle);
                pc.connection = std::ptr::null_mut();
            }
        }
    }
}

fn has_failed(state: ngx_uint_t) -> bool {
    state & ffi::NGX_PEER_FAILED as ngx_uint_t != 0
}

impl Peer {
    /// Ends a try, or a pause, which is none (`false`).
    ///
    /// # Safety
    /// `pc` must be that of the peer's request, `state` what nginx says of the try.
    pub unsafe fn end(&mut self, pc: &mut ngx_peer_connection_t, state: ngx_uint_t) -> bool {
        // SAFETY: the request and its context outlive the peer.
        unsafe {
            let (r, peer) = (self.request, self);
            let u = (*r).upstream;
            let ctx = &mut *peer.ctx;
            timer::end_try(ctx);
            if std::mem::take(&mut peer.pausing) {
                // No try: it is not to be seen in $upstream_addr and its like.
                (*(*r).upstream_states).nelts -= 1;
                if ctx.expired != Expired::No {
                    tuned(u, ctx, peer.picked.connect_timeout, false);
                }
                return false;
            }
            if !std::mem::take(&mut peer.busy) {
                return true;
            }
            let failed = has_failed(state);
            let c = pc.connection;
            let connected = !c.is_null() && ((*u).request_sent() != 0 || pc.cached() != 0);
            if peer.picked.checked && header(u, IMMEDIATE_FAIL).is_some() {
                lb::fail_health_check(&peer.picked);
            }
            let outcome = outcome(u, pc, peer, ctx, failed.then_some(connected));
            lb::end(&mut peer.picked, outcome);
            if failed {
                let retried = tries_again(pc, peer, ctx, connected);
                tuned(u, ctx, peer.picked.connect_timeout, retried);
            } else if !c.is_null() {
                cut_short(u, ctx, c);
            }
            if peer.retry.is_none() {
                lb::end_retry(&mut ctx.retry);
            }
            true
        }
    }

    /// Gives back what a try holds that nginx has not ended.
    pub fn give_back(&mut self) {
        if std::mem::take(&mut self.busy) {
            lb::end(&mut self.picked, Outcome::Unknown);
        }
    }
}

/// Says so where a response ended before its end.
unsafe fn cut_short(u: *mut ffi::ngx_http_upstream_t, ctx: &mut Ctx, c: *mut ffi::ngx_connection_t) {
    // SAFETY: the upstream is live, the connection open.
    unsafe {
        if (*u).header_sent() == 0 || (*u).upgrade() != 0 || (*u).buffering() != 0 {
            return;
        }
        if ctx.expired == Expired::No && (*(*c).read).timedout() != 0 {
            ctx.expired = Expired::Idle;
        }
        let flag = match ctx.expired {
            Expired::Global => Flags::UPSTREAM_TIMEOUT,
            Expired::Idle => Flags::STREAM_IDLE,
            // The rest of the body, -1: until the connection ends.
            Expired::No if (*(*c).read).eof() != 0 && !matches!((*u).length, 0 | -1) => Flags::UPSTREAM_PROTOCOL_ERROR,
            _ => return,
        };
        ctx.flags = ctx.flags.with(flag);
    }
}

/// How a try ended, for outlier detection. `failed`: nginx takes it for failed, and whether there was a connection.
unsafe fn outcome(
    u: *mut ffi::ngx_http_upstream_t,
    pc: &ngx_peer_connection_t,
    peer: &Peer,
    ctx: &Ctx,
    failed: Option<bool>,
) -> Outcome {
    // SAFETY: promised by the caller: the upstream of a try that ends.
    unsafe {
        let status = (*u).headers_in.status_n as u16;
        let connected = match failed {
            // A response that came, also one that is not taken since there is another try.
            _ if status != 0 && (failed.is_none() || peer.retry.is_some()) => return answered(u, ctx, status),
            None => return Outcome::Unknown,
            Some(connected) => connected,
        };
        let c = pc.connection.as_ref();
        let timed_out = c.is_some_and(|c| (*c.read).timedout() != 0 || (*c.write).timedout() != 0);
        match ctx.expired {
            // A kept connection that had ended meanwhile.
            Expired::No if connected && pc.cached() != 0 && !timed_out => Outcome::Unknown,
            Expired::No if timed_out => Outcome::Timeout { connected },
            Expired::No if connected => Outcome::Reset,
            Expired::No => Outcome::ConnectFailure,
            Expired::PerTry | Expired::Global => Outcome::Timeout { connected },
            Expired::Stream | Expired::Idle | Expired::Request => Outcome::Unknown,
        }
    }
}

/// The outcome of a response: of gRPC its own status counts, where it stands in the head.
unsafe fn answered(u: *mut ffi::ngx_http_upstream_t, ctx: &Ctx, status: u16) -> Outcome {
    if !ctx.grpc {
        return Outcome::Status(status);
    }
    // SAFETY: as above.
    let own = unsafe { header(u, b"grpc-status").and_then(|value| nginx::text(value).parse().ok()) };
    own.map_or(Outcome::Status(status), Outcome::grpc)
}

/// A header of the upstream's response.
unsafe fn header(u: *mut ffi::ngx_http_upstream_t, name: &[u8]) -> Option<ngx_str_t> {
    // SAFETY: promised by the caller: a live upstream.
    unsafe {
        headers(&raw mut (*u).headers_in.headers)
            .find(|h| nginx::bytes(h.key).eq_ignore_ascii_case(name))
            .map(|h| h.value)
    }
}

/// Whether a try that failed is made again; the flags say how it ended.
unsafe fn tries_again(pc: &mut ngx_peer_connection_t, peer: &mut Peer, ctx: &mut Ctx, connected: bool) -> bool {
    if peer.retry.is_some() {
        // Its response was not taken.
        return true;
    }
    // SAFETY: the request and its context outlive the peer; the connection, if there is one, is open.
    unsafe {
        let c = pc.connection;
        let timed_out = !c.is_null() && ((*(*c).read).timedout() != 0 || (*(*c).write).timedout() != 0);
        if ctx.expired == Expired::No && connected && timed_out {
            ctx.expired = if ctx.per_try_idle_timeout > 0 { Expired::PerTry } else { Expired::Idle };
        }
        let (flag, reset) = match ctx.expired {
            Expired::No if !connected => (Flags::UPSTREAM_FAILURE, Reset::ConnectFailure),
            // Nothing is wrong with the connection, so it was what came over it.
            Expired::No if is_sound(c) => (Flags::UPSTREAM_PROTOCOL_ERROR, Reset::Reset),
            Expired::No => (Flags::UPSTREAM_TERMINATION, Reset::Reset),
            Expired::PerTry | Expired::Global => (Flags::UPSTREAM_TIMEOUT, Reset::Reset),
            Expired::Stream | Expired::Request => (Flags::NONE, Reset::Reset),
            Expired::Idle => (Flags::STREAM_IDLE, Reset::Reset),
        };
        if ctx.expired == Expired::No && connected && pc.cached() != 0 && !peer.repeated && repeatable(peer.request) {
            // A kept connection that had ended meanwhile: the request is sent once more, as RFC 9110, 9.2.2 allows.
            peer.repeated = true;
            return true;
        }
        let final_end = matches!(ctx.expired, Expired::Global | Expired::Stream | Expired::Idle | Expired::Request);
        if final_end || !ctx.retries.would_retry_reset(reset) || !peer.again(peer.request, ctx, None) {
            ctx.flags = ctx.flags.with(flag);
            return false;
        }
        ctx.timed_out_before = ctx.expired == Expired::PerTry;
        ctx.expired = Expired::No;
        true
    }
}

/// Whether a request may be sent again although nobody knows what became of it: not a byte of an answer has come, its
/// method is idempotent, and its body, if there is one, still here.
unsafe fn repeatable(r: *mut ngx_http_request_t) -> bool {
    // SAFETY: the request and its upstream are live.
    unsafe {
        let buffer = &(*(*r).upstream).buffer;
        let idempotent =
            ffi::NGX_HTTP_GET | ffi::NGX_HTTP_HEAD | ffi::NGX_HTTP_OPTIONS | ffi::NGX_HTTP_PUT | ffi::NGX_HTTP_DELETE;
        buffer.last == buffer.start
            && (*r).method & idempotent as ngx_uint_t != 0
            && (*r).request_body_no_buffering() == 0
    }
}

/// Whether a connection has neither ended nor failed.
unsafe fn is_sound(c: *mut ffi::ngx_connection_t) -> bool {
    // SAFETY: the connection is open.
    unsafe {
        let (read, write) = ((*c).read, (*c).write);
        (*read).eof() == 0 && (*read).error() == 0 && (*write).error() == 0 && (*c).error() == 0
    }
}

/// Picks the endpoint of another try.
unsafe fn another(r: *mut ngx_http_request_t, ctx: &mut Ctx, peer: &Peer) -> Result<Picked, lb::Reason> {
    let tried = match ctx.retries.previous_hosts {
        true => &peer.tried[..(peer.tries as usize).min(MAX_TRIED)],
        false => &[],
    };
    let (picked, host) = zone::with_worker(|worker| {
        let (pin, tools) = worker.pin();
        let picked = lb::pick_pinned(&pin, tools, &ctx.upstream(), ctx.choice(tried))?;
        // SAFETY: the request is live.
        Ok((picked, pool_str(unsafe { (*r).pool }, tools.hostname.as_bytes())))
    })
    .unwrap_or(Err(lb::Reason::NoZone))?;
    if let Some(host) = host.filter(|host| ctx.auto_host && host.len > 0) {
        ctx.host = host;
    }
    Ok(picked)
}

/// Makes the request anew where another try differs from the one before. `None` when memory is out.
unsafe fn again(r: *mut ngx_http_request_t, ctx: &mut Ctx) -> Option<()> {
    if !ctx.tell_attempts && !ctx.tell_timeout && !ctx.tell_timeout_retry && !ctx.auto_host {
        return Some(());
    }
    // SAFETY: the request is live; nginx is about to set its chain of buffers back to the beginning.
    unsafe {
        if ctx.tell_attempts {
            edit::set_request_header(r, ATTEMPT_COUNT, ctx.attempts.to_string().as_bytes())?;
        }
        if ctx.tell_timeout_retry {
            let before = if std::mem::take(&mut ctx.timed_out_before) { b"true".as_slice() } else { b"false" };
            edit::set_request_header(r, IS_TIMEOUT_RETRY, before)?;
        }
        if ctx.tell_timeout {
            let left = match ctx.timeouts.global {
                0 => u64::MAX,
                global => global.saturating_sub(timer::age(r)).max(1),
            };
            let expected = ctx.timeouts.expected().min(left);
            edit::set_request_header(r, EXPECTED_TIMEOUT, expected.to_string().as_bytes())?;
        }
        let u = (*r).upstream;
        (*u).request_bufs = if (*r).request_body.is_null() { std::ptr::null_mut() } else { (*(*r).request_body).bufs };
        let create = (*u).create_request?;
        (create(r) == OK).then_some(())
    }
}
