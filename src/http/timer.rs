//! Time-outs that nginx has no directive for: they end what the upstream is doing as nginx's own time-outs do.

use super::ctx::{self, Ctx};
use super::reply::{self, Flags};
use crate::guard::guard;
use crate::nginx;
use ngx::ffi::{self, ngx_event_t, ngx_http_request_t, ngx_msec_t};

/// Envoy's body where the rest of a request did not come.
pub const REQUEST_TIMEOUT: &str = "request timeout";

/// What ended a try, or the request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expired {
    /// Nothing yet.
    No,
    /// The route's time-out.
    Global,
    /// That of one try.
    PerTry,
    /// The longest duration of a stream.
    Stream,
    /// Nothing came for too long.
    Idle,
    /// The rest of the request did not come in time.
    Request,
}

/// The timers of a request, in its pool.
pub struct Timers {
    global: ngx_event_t,
    per_try: ngx_event_t,
    stream: ngx_event_t,
    pause: ngx_event_t,
    request: ngx_event_t,
}

impl Timers {
    /// Stops what runs.
    ///
    /// # Safety
    /// `timers` must be null, or the timers of a live request.
    pub unsafe fn stop_all(timers: *mut Timers) {
        // SAFETY: promised by the caller.
        unsafe {
            if let Some(t) = timers.as_mut() {
                let all = [&mut t.global, &mut t.per_try, &mut t.stream, &mut t.pause, &mut t.request];
                all.into_iter().for_each(|ev| stop(ev));
            }
        }
    }
}

/// The request's timers, made when they are first needed. `None` when memory is out.
unsafe fn timers<'a>(r: *mut ngx_http_request_t, ctx: &mut Ctx) -> Option<&'a mut Timers> {
    // SAFETY: the request is live; all zeroes is a timer that is not set.
    unsafe {
        if ctx.timers.is_null() {
            ctx.timers = nginx::pool_zeroed((*r).pool);
        }
        ctx.timers.as_mut()
    }
}

unsafe fn start(r: *mut ngx_http_request_t, ev: &mut ngx_event_t, handler: extern "C" fn(*mut ngx_event_t), ms: u64) {
    // SAFETY: the event lives in the request's pool and is stopped before that goes.
    unsafe {
        ev.handler = Some(handler);
        ev.data = r.cast();
        ev.log = (*(*r).connection).log;
        ffi::ngx_add_timer(ev, ms as ngx_msec_t);
    }
}

unsafe fn stop(ev: &mut ngx_event_t) {
    if ev.timer_set() != 0 {
        // SAFETY: the event is in nginx's tree of timers.
        unsafe { ffi::ngx_del_timer(ev) };
    }
}

/// Has a request whose body is still to come end when its time is over. `None` when memory is out.
///
/// # Safety
/// `r` must be live, with the context `ctx`.
pub unsafe fn begin_request(r: *mut ngx_http_request_t, ctx: &mut Ctx) -> Option<()> {
    // SAFETY: promised by the caller.
    unsafe {
        if (*r).headers_in.content_length_n > 0 || (*r).headers_in.chunked() != 0 {
            let left = ctx.request_timeout.saturating_sub(age(r)).max(1);
            start(r, &mut timers(r, ctx)?.request, on_request, left);
        }
        Some(())
    }
}

/// Starts the timers of a try; those of the request with the first one. `None` when memory is out.
///
/// # Safety
/// `r` must be live, with the context `ctx`.
pub unsafe fn begin_try(r: *mut ngx_http_request_t, ctx: &mut Ctx, first: bool) -> Option<()> {
    let (global, per_try, stream) = (ctx.timeouts.global, ctx.timeouts.per_try, ctx.max_stream_duration);
    if global == 0 && per_try == 0 && stream == 0 {
        return Some(());
    }
    // SAFETY: promised by the caller.
    unsafe {
        let timers = timers(r, ctx)?;
        if first && global > 0 {
            start(r, &mut timers.global, on_global, global);
        }
        if first && stream > 0 {
            start(r, &mut timers.stream, on_stream, stream.saturating_sub(age(r)).max(1));
        }
        if per_try > 0 {
            stop(&mut timers.per_try);
            start(r, &mut timers.per_try, on_per_try, per_try);
        }
        Some(())
    }
}

/// A try is over.
///
/// # Safety
/// `ctx` must be that of a live request.
pub unsafe fn end_try(ctx: &mut Ctx) {
    // SAFETY: promised by the caller.
    unsafe {
        if let Some(timers) = ctx.timers.as_mut() {
            stop(&mut timers.per_try);
            stop(&mut timers.pause);
        }
    }
}

/// Has `handler` called in `ms`. `None` when memory is out.
///
/// # Safety
/// As [`begin_try`].
pub unsafe fn pause(
    r: *mut ngx_http_request_t,
    ctx: &mut Ctx,
    handler: extern "C" fn(*mut ngx_event_t),
    ms: u64,
) -> Option<()> {
    // SAFETY: promised by the caller.
    unsafe {
        let timers = timers(r, ctx)?;
        start(r, &mut timers.pause, handler, ms);
        Some(())
    }
}

/// How old a request is, in ms.
///
/// # Safety
/// `r` must be live.
pub unsafe fn age(r: *mut ngx_http_request_t) -> u64 {
    // SAFETY: promised by the caller; nginx keeps its clock for as long as it runs.
    unsafe {
        let now = &*ffi::ngx_cached_time;
        let ms = (now.sec - (*r).start_sec) * 1000 + now.msec as libc::time_t - (*r).start_msec as libc::time_t;
        u64::try_from(ms).unwrap_or(0)
    }
}

extern "C" fn on_global(ev: *mut ngx_event_t) {
    expire(ev, Expired::Global);
}

extern "C" fn on_per_try(ev: *mut ngx_event_t) {
    expire(ev, Expired::PerTry);
}

extern "C" fn on_stream(ev: *mut ngx_event_t) {
    expire(ev, Expired::Stream);
}

extern "C" fn on_request(ev: *mut ngx_event_t) {
    guard("the time-out of a request", (), || {
        // SAFETY: as in `expire`; a request that still reads its body has taken nobody else's place.
        unsafe {
            let r = (*ev).data.cast::<ngx_http_request_t>();
            let body = (*r).request_body;
            if body.is_null() || (*body).rest == 0 || (*r).header_sent() != 0 {
                return;
            }
            if !(*r).upstream.is_null() {
                return expire(ev, Expired::Request);
            }
            // It is held until it is complete, see `decide::read_body`.
            if let Some(ctx) = ctx::ctx(r) {
                ctx.refuse(408, Flags::NONE, REQUEST_TIMEOUT);
                (*r).read_event_handler = Some(ffi::ngx_http_block_reading);
                ffi::ngx_http_finalize_request(r, reply::local(r, &ctx.reply, ctx.grpc));
            }
        }
    });
}

fn expire(ev: *mut ngx_event_t, which: Expired) {
    guard("a time-out", (), || {
        // SAFETY: nginx hands in a timer that `start` set, whose request is live: its end stops the timer.
        unsafe {
            let r = (*ev).data.cast::<ngx_http_request_t>();
            let u = (*r).upstream;
            let Some(ctx) = ctx::ctx(r) else { return };
            if u.is_null() || (*u).peer.connection.is_null() {
                // The upstream is through, only the client is still reading.
                return;
            }
            if !matches!(which, Expired::Stream | Expired::Request) {
                if (*u).upgrade() != 0 {
                    return;
                }
                if which == Expired::Global && (*u).request_body_sent() == 0 && (*r).request_body_no_buffering() != 0 {
                    // The time begins when the request has ended, and this one is still being sent.
                    start(r, &mut *ev, on_global, ctx.timeouts.global);
                    return;
                }
                // Headers are here: the time of this one try is over.
                if which == Expired::PerTry && (*r).header_sent() != 0 {
                    return;
                }
            }
            ctx.expired = which;
            let read = (*(*u).peer.connection).read;
            (*read).set_timedout(1);
            // As when nginx's own time-out ends: the request may be gone afterwards.
            if let Some(handler) = (*read).handler {
                handler(read);
            }
        }
    });
}
