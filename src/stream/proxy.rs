//! The TCP proxy: bytes between a captured connection and an endpoint, each direction for itself, half-close kept.

use crate::guard::guard;
use crate::http::capture::Captured;
use crate::http::reply::Flags;
use crate::lb::{self, Choice, MetadataMatch, Outcome, Picked, Reason, Unit, Upstream};
use crate::nginx::{self, pool_str, AGAIN, EMPTY, ERROR, OK};
use crate::original_dst;
use crate::stream::udp;
use crate::zone;
use amesh_dataplane::hash::source_hash;
use amesh_dataplane::lb::weighted_pick;
use amesh_model::listener::ArchivedTcpProxy;
use amesh_model::Kind;
use ngx::ffi::{
    self, ngx_connection_t, ngx_event_t, ngx_int_t, ngx_msec_t, ngx_peer_connection_t, ngx_str_t, ngx_stream_session_t,
    ngx_uint_t,
};
use std::ffi::c_void;

/// Bytes that one direction holds.
const BUFFER: usize = 16 * 1024;
/// Endpoints that one connection remembers to have tried.
const MAX_TRIED: usize = 8;

/// Where a connection goes.
#[derive(Clone, Copy)]
pub struct Destination {
    /// The cluster's name, in the connection's pool.
    pub cluster: ngx_str_t,
    /// Hash of its slot's key.
    pub hash: u64,
    /// Idle time-out, ms; 0: none.
    pub idle_timeout: u64,
    /// Longest life, ms; 0: any.
    pub max_duration: u64,
    /// Endpoints tried.
    pub attempts: u32,
    /// The hash of the client, where one is wanted.
    pub source_hash: Option<u64>,
    /// What is asked of the metadata of endpoints.
    pub metadata_match: MetadataMatch,
}

/// One direction.
struct Pipe {
    buffer: *mut u8,
    pos: usize,
    last: usize,
    /// The source has said all.
    eof: bool,
    /// The other side knows.
    shut: bool,
}

impl Pipe {
    /// Has these bytes sent before all that comes from the source, of which nothing was read yet. False: no room.
    ///
    /// # Safety
    /// The buffer must have [`BUFFER`] bytes.
    unsafe fn begin_with(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() > BUFFER {
            return false;
        }
        // SAFETY: promised by the caller; there is room.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.buffer, bytes.len()) };
        (self.pos, self.last) = (0, bytes.len());
        true
    }
}

/// What is known of a session, in its connection's pool.
pub struct Ctx {
    session: *mut ngx_stream_session_t,
    /// The connection; null before the front door saw it.
    pub captured: *mut Captured,
    /// The listener's name.
    pub listener: ngx_str_t,
    /// Envoy's flags.
    pub flags: Flags,
    /// Where it goes; `None`: not to be proxied.
    pub destination: Option<Destination>,
    /// `ip:port` of the endpoint.
    pub endpoint: ngx_str_t,
    picked: Option<Picked>,
    peer: ngx_peer_connection_t,
    local: ffi::ngx_addr_t,
    local_sockaddr: libc::sockaddr_storage,
    tried: [u32; MAX_TRIED],
    tries: u32,
    connected: bool,
    /// When a byte came last, by nginx's clock.
    active_at: ngx_msec_t,
    life: ngx_event_t,
    /// Client to upstream.
    up: Pipe,
    /// Upstream to client.
    down: Pipe,
}

impl Ctx {
    /// The client's connection and the endpoint's.
    ///
    /// # Safety
    /// The session must be live; the endpoint's is null before there is one.
    pub(super) unsafe fn connections(&self) -> (*mut ngx_connection_t, *mut ngx_connection_t) {
        // SAFETY: promised by the caller.
        unsafe { ((*self.session).connection, self.peer.connection) }
    }

    /// So many bytes came from the client.
    ///
    /// # Safety
    /// As [`Ctx::connections`].
    pub(super) unsafe fn count_received(&mut self, bytes: usize) {
        // SAFETY: promised by the caller.
        unsafe { (*self.session).received += bytes as ffi::off_t };
    }

    /// Something came just now.
    pub(super) fn is_active(&mut self) {
        // SAFETY: nginx keeps its clock for as long as it runs.
        self.active_at = unsafe { ffi::ngx_current_msec };
    }

    /// How much longer nothing may come, in ms.
    pub(super) fn idle_left(&self) -> ngx_msec_t {
        let idle = self.destination.map_or(0, |d| d.idle_timeout) as ngx_msec_t;
        // SAFETY: as above.
        idle.saturating_sub(unsafe { ffi::ngx_current_msec }.wrapping_sub(self.active_at))
    }

    /// Ends the session with a status of nginx's stream.
    ///
    /// # Safety
    /// As [`Ctx::connections`]; nothing of the session may be used afterwards.
    pub(super) unsafe fn end(&mut self, code: u32) {
        // SAFETY: promised by the caller.
        unsafe { end(self, code) };
    }
}

/// The context of a session, `None` when it has none.
///
/// # Safety
/// `s` must be a live session.
pub unsafe fn ctx<'a>(s: *mut ngx_stream_session_t) -> Option<&'a mut Ctx> {
    // SAFETY: only ctx_or_new puts something there.
    unsafe { nginx::slot_of::<Ctx>((*s).ctx, &raw const super::ngx_stream_amesh_module).as_mut() }
}

/// The context of a session, a new one when it has none; `None` when memory is out.
///
/// # Safety
/// `s` must be a live session.
pub unsafe fn ctx_or_new(s: *mut ngx_stream_session_t) -> Option<*mut Ctx> {
    const { assert!(!std::mem::needs_drop::<Ctx>()) };
    // SAFETY: promised by the caller; the entry of this module in the array of contexts is ours; all zeroes is a
    // value of nginx's own structures.
    unsafe {
        if let Some(ctx) = ctx(s) {
            return Some(ctx);
        }
        let place = ffi::ngx_palloc((*(*s).connection).pool, size_of::<Ctx>()).cast::<Ctx>();
        if place.is_null() {
            return None;
        }
        let pipe = || Pipe { buffer: std::ptr::null_mut(), pos: 0, last: 0, eof: false, shut: false };
        place.write(Ctx {
            session: s,
            captured: std::ptr::null_mut(),
            listener: EMPTY,
            flags: Flags::NONE,
            destination: None,
            endpoint: EMPTY,
            picked: None,
            peer: std::mem::zeroed(),
            local: std::mem::zeroed(),
            local_sockaddr: std::mem::zeroed(),
            tried: [u32::MAX; MAX_TRIED],
            tries: 0,
            connected: false,
            active_at: 0,
            life: std::mem::zeroed(),
            up: pipe(),
            down: pipe(),
        });
        *(*s).ctx.add((&raw const super::ngx_stream_amesh_module).read().ctx_index) = place.cast();
        Some(place)
    }
}

/// Where a TCP proxy of the mesh sends a connection; one of several clusters is picked by weight.
///
/// # Safety
/// `c` must be an open connection with a pool.
pub unsafe fn destination(tcp: &ArchivedTcpProxy, c: *mut ngx_connection_t) -> Option<Destination> {
    let arms = tcp.clusters.iter().map(|arm| arm.weight.to_native());
    let arm = tcp.clusters.get(weighted_pick(arms, fastrand::u64(..)).unwrap_or(0))?;
    // SAFETY: promised by the caller.
    let (pool, source) = unsafe { ((*c).pool, tcp.hash_source_ip.then(|| original_dst::peer_addr(c)).flatten()) };
    let cluster = pool_str(pool, arm.name.as_bytes())?;
    let longest = tcp.max_downstream_connection_duration.to_native();
    let jitter = tcp.max_downstream_connection_duration_jitter.to_native() / 100.0 * fastrand::f64();
    Some(Destination {
        cluster,
        hash: zone::hash(Kind::Cluster, arm.name.as_bytes()),
        idle_timeout: tcp.idle_timeout.to_native(),
        max_duration: (longest as f64 * (1.0 + jitter)) as u64,
        attempts: tcp.max_connect_attempts.to_native().max(1),
        source_hash: source.map(|source| source_hash(source.ip())),
        metadata_match: MetadataMatch::keep(pool, &arm.metadata_match)?,
    })
}

/// The content handler of a stream server with `amesh`.
pub extern "C" fn handler(s: *mut ngx_stream_session_t) {
    guard("the TCP proxy", (), || {
        // SAFETY: nginx hands in a live session.
        unsafe {
            let Some(ctx) = ctx(s) else { return super::finalize(s, status(ffi::NGX_STREAM_INTERNAL_SERVER_ERROR)) };
            let Some(destination) = ctx.destination else { return end(ctx, ffi::NGX_STREAM_OK) };
            let c = (*s).connection;
            if (*c).type_ == libc::SOCK_DGRAM {
                return connect(ctx);
            }
            let pool = (*c).pool;
            ctx.up.buffer = ffi::ngx_pnalloc(pool, BUFFER).cast();
            ctx.down.buffer = ffi::ngx_pnalloc(pool, BUFFER).cast();
            if ctx.up.buffer.is_null() || ctx.down.buffer.is_null() {
                return end(ctx, ffi::NGX_STREAM_INTERNAL_SERVER_ERROR);
            }
            (*(*c).read).handler = Some(on_client);
            (*(*c).write).handler = Some(on_client);
            if destination.max_duration > 0 {
                ctx.life.handler = Some(on_life_end);
                ctx.life.data = std::ptr::from_mut(ctx).cast();
                ctx.life.log = (*c).log;
                ctx.life.set_cancelable(1);
                ffi::ngx_add_timer(&mut ctx.life, destination.max_duration as ngx_msec_t);
            }
            connect(ctx);
        }
    });
}

fn status(code: u32) -> ngx_uint_t {
    code as ngx_uint_t
}

extern "C" fn picked_already(_: *mut ngx_peer_connection_t, _: *mut c_void) -> ngx_int_t {
    OK
}

/// Connects to an endpoint, to another one when that fails at once.
unsafe fn connect(ctx: &mut Ctx) {
    // SAFETY: the session is live as long as its context is used; see end().
    unsafe {
        let Some(destination) = ctx.destination else { return end(ctx, ffi::NGX_STREAM_OK) };
        let c = (*ctx.session).connection;
        let original_dst = ctx.captured.as_ref().map(|captured| captured.destination);
        while ctx.tries < destination.attempts {
            let upstream = Upstream {
                cluster: nginx::text(destination.cluster),
                hash: destination.hash,
                original_dst,
                unit: Unit::Connection,
                high_priority: false,
            };
            let tried = ctx.tried;
            let choice = Choice {
                tried: &tried[..(ctx.tries as usize).min(MAX_TRIED)],
                hash: destination.source_hash,
                host_selection_attempts: 1,
                metadata_match: destination.metadata_match.view(),
            };
            let picked = match lb::pick(&upstream, choice) {
                Ok(picked) => picked,
                Err(reason) => {
                    ctx.flags = ctx.flags.with(reason.flags());
                    if let (Reason::NoCluster, Some(destination)) = (reason, &mut ctx.destination) {
                        destination.cluster = EMPTY;
                    }
                    return end(ctx, ffi::NGX_STREAM_BAD_GATEWAY);
                }
            };
            if (ctx.tries as usize) < MAX_TRIED {
                ctx.tried[ctx.tries as usize] = picked.cell;
            }
            ctx.tries += 1;
            let picked = ctx.picked.insert(picked);
            let Some(name) = picked.text((*c).pool) else { return end(ctx, ffi::NGX_STREAM_INTERNAL_SERVER_ERROR) };
            ctx.endpoint = name;
            ctx.peer = std::mem::zeroed();
            let peer = &mut ctx.peer;
            peer.sockaddr = std::ptr::from_mut(&mut picked.sockaddr).cast();
            peer.socklen = picked.socklen;
            peer.name = &mut ctx.endpoint;
            peer.get = Some(picked_already);
            peer.type_ = (*c).type_;
            peer.log = (*c).log;
            peer.set_log_error(ffi::ngx_connection_log_error_e_NGX_ERROR_ERR);
            peer.local = picked.bind_addr(&mut ctx.local, &mut ctx.local_sockaddr);
            let timeout = picked.connect_timeout;
            let of_udp = (*c).type_ == libc::SOCK_DGRAM;
            if let Some(captured) = ctx.captured.as_ref().filter(|_| picked.proxy_protocol && !of_udp) {
                let header = lb::proxy_header(&upstream, captured.source, captured.destination).unwrap_or_default();
                if !ctx.up.begin_with(&header) {
                    return end(ctx, ffi::NGX_STREAM_INTERNAL_SERVER_ERROR);
                }
            }
            match ffi::ngx_event_connect_peer(peer) {
                rc @ (OK | AGAIN) => {
                    let u = peer.connection;
                    if !of_udp {
                        picked.keep_alive((*u).fd);
                    }
                    (*u).data = ctx.session.cast();
                    (*u).log = (*c).log;
                    (*(*u).read).log = (*c).log;
                    (*(*u).write).log = (*c).log;
                    (*(*u).read).handler = Some(on_connect);
                    (*(*u).write).handler = Some(on_connect);
                    if rc == OK {
                        return connected(ctx);
                    }
                    if timeout > 0 {
                        ffi::ngx_add_timer((*u).write, timeout as ngx_msec_t);
                    }
                    return;
                }
                ERROR => return end(ctx, ffi::NGX_STREAM_INTERNAL_SERVER_ERROR),
                _ => failed(ctx, Outcome::ConnectFailure),
            }
        }
        ctx.flags = ctx.flags.with(Flags::UPSTREAM_FAILURE).with(Flags::RETRY_LIMIT);
        end(ctx, ffi::NGX_STREAM_BAD_GATEWAY);
    }
}

/// A try to connect has failed.
unsafe fn failed(ctx: &mut Ctx, outcome: Outcome) {
    // SAFETY: see connect.
    unsafe {
        if let Some(picked) = ctx.picked.as_mut() {
            lb::end(picked, outcome);
        }
        ctx.picked = None;
        close_upstream(ctx);
    }
}

unsafe fn close_upstream(ctx: &mut Ctx) {
    let u = ctx.peer.connection;
    if !u.is_null() {
        ctx.peer.connection = std::ptr::null_mut();
        // SAFETY: an open connection of this session; it has no pool of its own.
        unsafe { ffi::ngx_close_connection(u) };
    }
}

extern "C" fn on_connect(ev: *mut ngx_event_t) {
    // SAFETY: nginx hands in an event of the upstream connection, whose data is a live session.
    guard("the TCP proxy", (), || unsafe {
        let u = (*ev).data.cast::<ngx_connection_t>();
        let Some(ctx) = ctx((*u).data.cast()) else { return };
        if (*ev).timedout() == 0 && socket_error((*u).fd) == 0 {
            return connected(ctx);
        }
        let timed_out = (*ev).timedout() != 0;
        failed(ctx, if timed_out { Outcome::Timeout { connected: false } } else { Outcome::ConnectFailure });
        connect(ctx);
    });
}

/// `SO_ERROR` of a socket.
fn socket_error(fd: libc::c_int) -> libc::c_int {
    let mut error: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: error has room for what is asked for.
    if unsafe {
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ERROR, std::ptr::from_mut(&mut error).cast(), &mut len)
    } != 0
    {
        return ffi::ngx_socket_errno();
    }
    error
}

unsafe fn connected(ctx: &mut Ctx) {
    // SAFETY: both connections are open.
    unsafe {
        let u = ctx.peer.connection;
        ctx.connected = true;
        ctx.active_at = ffi::ngx_current_msec;
        if (*u).type_ == libc::SOCK_DGRAM {
            return udp::begin(ctx);
        }
        if let Some(picked) = &ctx.picked {
            lb::report(picked, Outcome::Connected);
        }
        if (*(*u).write).timer_set() != 0 {
            ffi::ngx_del_timer((*u).write);
        }
        (*(*u).read).handler = Some(on_upstream);
        (*(*u).write).handler = Some(on_upstream);
        for side in [u, (*ctx.session).connection] {
            // Latency, as nginx's own proxy: a failure is logged by nginx and costs nothing else.
            ffi::ngx_tcp_nodelay(side);
        }
        process(ctx);
    }
}

extern "C" fn on_client(ev: *mut ngx_event_t) {
    // SAFETY: nginx hands in an event of the client's connection, whose data is a live session.
    guard("the TCP proxy", (), || unsafe {
        let c = (*ev).data.cast::<ngx_connection_t>();
        let Some(ctx) = ctx((*c).data.cast()) else { return };
        if (*ev).timedout() != 0 {
            (*ev).set_timedout(0);
            match ctx.idle_left() {
                0 => return end(ctx, ffi::NGX_STREAM_OK),
                left => ffi::ngx_add_timer(ev, left),
            }
        }
        if ctx.connected {
            process(ctx);
        }
    });
}

extern "C" fn on_upstream(ev: *mut ngx_event_t) {
    // SAFETY: as in on_connect.
    guard("the TCP proxy", (), || unsafe {
        let u = (*ev).data.cast::<ngx_connection_t>();
        if let Some(ctx) = ctx((*u).data.cast()) {
            process(ctx);
        }
    });
}

extern "C" fn on_life_end(ev: *mut ngx_event_t) {
    // SAFETY: the event's data is the context that it stands in; end() takes the timer away.
    guard("the TCP proxy", (), || unsafe {
        let ctx = &mut *(*ev).data.cast::<Ctx>();
        ctx.flags = ctx.flags.with(Flags::DURATION_TIMEOUT);
        end(ctx, ffi::NGX_STREAM_OK);
    });
}

/// Moves what can be moved, both ways.
unsafe fn process(ctx: &mut Ctx) {
    // SAFETY: both connections are open until end().
    unsafe {
        let s = ctx.session;
        let c = (*s).connection;
        let u = ctx.peer.connection;
        let up = pump(&mut ctx.up, c, u);
        let down = pump(&mut ctx.down, u, c);
        if let Ok(n) = up {
            (*s).received += n as ffi::off_t;
        }
        let (sent, received) = match (up, down) {
            (Ok(sent), Ok(received)) => (sent, received),
            (up, down) => {
                let of_client = up == Err(Broken::Source) || down == Err(Broken::Target);
                reset(if of_client { u } else { c });
                if !of_client {
                    ctx.flags = ctx.flags.with(Flags::UPSTREAM_REMOTE_RESET);
                }
                return end(ctx, ffi::NGX_STREAM_OK);
            }
        };
        if ctx.up.shut && ctx.down.shut {
            return end(ctx, ffi::NGX_STREAM_OK);
        }
        for side in [c, u] {
            if !nginx::handle_read_event((*side).read) || ffi::ngx_handle_write_event((*side).write, 0) != OK {
                return end(ctx, ffi::NGX_STREAM_INTERNAL_SERVER_ERROR);
            }
        }
        let idle = ctx.destination.map_or(0, |d| d.idle_timeout);
        if idle > 0 {
            if sent + received > 0 {
                ctx.is_active();
            }
            // It is not moved with each byte, and nginx would not move it by less than 300 ms: when it is over, a look is
            // taken at how long ago the last byte was.
            if (*(*c).write).timer_set() == 0 {
                ffi::ngx_add_timer((*c).write, idle as ngx_msec_t);
            }
        }
    }
}

/// Which side has reset its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Broken {
    /// The one that bytes come from.
    Source,
    /// The one that they go to.
    Target,
}

/// Has the connection to the other side end as this one did: by a reset, not as if all had been said.
unsafe fn reset(c: *mut ngx_connection_t) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let len = size_of::<libc::linger>() as libc::socklen_t;
    // SAFETY: promised by the caller: the connection is open; the option's value outlives the call.
    unsafe { libc::setsockopt((*c).fd, libc::SOL_SOCKET, libc::SO_LINGER, std::ptr::from_ref(&linger).cast(), len) };
}

/// Moves bytes one way; how many were read.
unsafe fn pump(pipe: &mut Pipe, from: *mut ngx_connection_t, to: *mut ngx_connection_t) -> Result<usize, Broken> {
    let mut total = 0;
    // SAFETY: both connections are open, the buffer has BUFFER bytes.
    unsafe {
        let (recv, send) = ((*from).recv.ok_or(Broken::Source)?, (*to).send.ok_or(Broken::Target)?);
        loop {
            while pipe.pos < pipe.last && (*(*to).write).ready() != 0 {
                match send(to, pipe.buffer.add(pipe.pos), pipe.last - pipe.pos) {
                    n if n > 0 => pipe.pos += n as usize,
                    n if n == AGAIN => break,
                    _ => return Err(Broken::Target),
                }
            }
            if pipe.pos == pipe.last {
                pipe.pos = 0;
                pipe.last = 0;
            }
            if pipe.eof || pipe.last == BUFFER || (*(*from).read).ready() == 0 {
                break;
            }
            match recv(from, pipe.buffer.add(pipe.last), BUFFER - pipe.last) {
                0 => pipe.eof = true,
                n if n > 0 => {
                    pipe.last += n as usize;
                    total += n as usize;
                }
                n if n == AGAIN => break,
                _ => return Err(Broken::Source),
            }
        }
        if pipe.eof && pipe.pos == pipe.last && !pipe.shut {
            pipe.shut = true;
            // The other side may have closed already; then its read event says so.
            libc::shutdown((*to).fd, libc::SHUT_WR);
        }
    }
    Ok(total)
}

/// Ends the session: upstream first, then nginx's own end.
unsafe fn end(ctx: &mut Ctx, code: u32) {
    // SAFETY: the session is live; nothing of it is used after finalize.
    unsafe {
        if ctx.life.timer_set() != 0 {
            ffi::ngx_del_timer(&mut ctx.life);
        }
        if let Some(mut picked) = ctx.picked.take() {
            lb::end(&mut picked, Outcome::Unknown);
        }
        close_upstream(ctx);
        super::finalize(ctx.session, status(code));
    }
}
