//! Tries after the first: for which responses, and after which pause.
//!
//! nginx tries again where its mask of causes says so, at once. Here each cause is decided by the route's policy: the
//! response's head is looked at as soon as nginx has parsed it, and a pause is a try on a connection that leads nowhere.

use super::ctx::{self, Ctx};
use super::head::headers;
use super::peer::Peer;
use super::redirect;
use super::reply::Flags;
use super::timer;
use crate::guard::guard;
use crate::lb;
use crate::nginx::{self, pool_str, AGAIN, EMPTY, ERROR, OK};
use crate::zone;
use amesh_dataplane::retry;
use amesh_dataplane::route::RequestHead;
use amesh_model::matcher::{ArchivedHeaderMatcher, HeaderMatcher};
use amesh_model::retry::{retry_on, ArchivedRateLimitedBackOff, ArchivedRetryPolicy, RateLimitedBackOff};
use ngx::ffi::{self, ngx_event_t, ngx_http_request_t, ngx_int_t, ngx_peer_connection_t, ngx_pool_t, ngx_str_t};

/// Parses the head of a response: `u->process_header`.
pub type ProcessHeader = unsafe extern "C" fn(*mut ngx_http_request_t) -> ngx_int_t;

/// For which responses a request is tried again, in the request's pool.
#[derive(Clone, Copy)]
pub struct Wanted {
    codes: *const u16,
    codes_len: usize,
    /// `Vec<HeaderMatcher>` as rkyv wrote it; empty: none.
    headers: ngx_str_t,
    own_codes: ngx_str_t,
    own_headers: ngx_str_t,
    /// `RateLimitedBackOff` as rkyv wrote it; empty: none.
    rate_limited: ngx_str_t,
}

impl Wanted {
    /// None.
    pub const NONE: Wanted = Wanted {
        codes: std::ptr::null(),
        codes_len: 0,
        headers: EMPTY,
        own_codes: EMPTY,
        own_headers: EMPTY,
        rate_limited: EMPTY,
    };

    /// Keeps what a policy and the request's headers say. `None` when memory is out.
    pub fn keep(
        pool: *mut ngx_pool_t,
        on: u32,
        policy: &ArchivedRetryPolicy,
        head: &impl RequestHead,
    ) -> Option<Wanted> {
        let mut wanted = Wanted::NONE;
        let text = |name| pool_str(pool, head.first_value(name).unwrap_or_default());
        if on & retry_on::RETRIABLE_STATUS_CODES != 0 {
            wanted.own_codes = text("x-envoy-retriable-status-codes")?;
            let codes = &policy.retriable_status_codes;
            if !codes.is_empty() {
                // SAFETY: the pool is the request's; room for as many numbers is asked for.
                unsafe {
                    let place = ffi::ngx_palloc(pool, codes.len() * size_of::<u16>()).cast::<u16>();
                    if place.is_null() {
                        return None;
                    }
                    codes.iter().enumerate().for_each(|(i, code)| place.add(i).write(code.to_native()));
                    (wanted.codes, wanted.codes_len) = (place, codes.len());
                }
            }
        }
        if on & retry_on::RETRIABLE_HEADERS != 0 {
            wanted.own_headers = text("x-envoy-retriable-header-names")?;
            if !policy.retriable_headers.is_empty() {
                let owned: Vec<HeaderMatcher> = policy
                    .retriable_headers
                    .iter()
                    .filter_map(|m| rkyv::deserialize::<HeaderMatcher, rkyv::rancor::Error>(m).ok())
                    .collect();
                let bytes = rkyv::to_bytes::<rkyv::rancor::Error>(&owned).ok()?;
                wanted.headers = nginx::pool_aligned(pool, &bytes)?;
            }
        }
        if let Some(limited) = policy.rate_limited.as_ref() {
            let owned = rkyv::deserialize::<RateLimitedBackOff, rkyv::rancor::Error>(limited).ok()?;
            wanted.rate_limited = nginx::pool_aligned(pool, &rkyv::to_bytes::<rkyv::rancor::Error>(&owned).ok()?)?;
        }
        Some(wanted)
    }

    /// The pause that a response asks for, in ms.
    ///
    /// # Safety
    /// The request's pool must be live.
    unsafe fn reset_interval(&self, response: &ResponseHead) -> Option<u64> {
        if self.rate_limited.len == 0 {
            return None;
        }
        // SAFETY: written by keep() into the request's pool; nginx keeps its clock for as long as it runs.
        unsafe {
            let limited = rkyv::access_unchecked::<ArchivedRateLimitedBackOff>(nginx::bytes(self.rate_limited));
            let now = &*ffi::ngx_cached_time;
            retry::reset_interval(limited, response, now.sec as u64 * 1000 + now.msec as u64)
        }
    }

    /// As the data plane takes it.
    ///
    /// # Safety
    /// The request's pool must be live.
    unsafe fn view(&self) -> retry::Wanted<'_> {
        // SAFETY: written by keep() into the request's pool.
        unsafe {
            let headers: &[ArchivedHeaderMatcher] = if self.headers.len == 0 {
                &[]
            } else {
                rkyv::access_unchecked::<rkyv::vec::ArchivedVec<ArchivedHeaderMatcher>>(nginx::bytes(self.headers))
            };
            let codes = if self.codes_len == 0 { &[] } else { std::slice::from_raw_parts(self.codes, self.codes_len) };
            retry::Wanted {
                codes,
                headers,
                own_codes: nginx::text(self.own_codes),
                own_headers: nginx::text(self.own_headers),
            }
        }
    }
}

/// A response's head.
struct ResponseHead {
    upstream: *mut ffi::ngx_http_upstream_t,
    status: String,
}

impl RequestHead for ResponseHead {
    fn method(&self) -> &str {
        ""
    }

    fn path(&self) -> &str {
        ""
    }

    fn host(&self) -> &str {
        ""
    }

    fn scheme(&self) -> &str {
        ""
    }

    fn header_values<'b>(&'b self, name: &'b str) -> impl Iterator<Item = &'b [u8]> + 'b {
        // SAFETY: the upstream is live while its head is looked at.
        let list = unsafe {
            headers(&raw mut (*self.upstream).headers_in.headers)
                .filter(move |h| nginx::bytes(h.key).eq_ignore_ascii_case(name.as_bytes()))
                .map(|h| nginx::bytes(h.value))
        };
        let status = (name == ":status").then_some(self.status.as_bytes());
        status.into_iter().chain(list)
    }

    fn random(&self) -> u64 {
        0
    }
}

/// Puts [`process_header`] in front of nginx's parser.
///
/// # Safety
/// `peer` must be that of the live request `r`, whose upstream is being set up.
pub unsafe fn watch(r: *mut ngx_http_request_t, peer: &mut Peer) {
    // SAFETY: promised by the caller.
    unsafe {
        let u = (*r).upstream;
        peer.process_header = (*u).process_header;
        peer.reinit_request = (*u).reinit_request;
        peer.http_version = (*r).http_version;
        (*u).process_header = Some(process_header);
        (*u).reinit_request = Some(reinit_request);
    }
}

/// Sets the parser back for another try, and stays in front of it.
extern "C" fn reinit_request(r: *mut ngx_http_request_t) -> ngx_int_t {
    guard("another try", ERROR, || {
        // SAFETY: nginx hands in a live request whose peer `watch` saw.
        unsafe {
            let u = (*r).upstream;
            let Some(peer) = ctx::ctx(r).and_then(|ctx| ctx.peer.as_mut()) else { return ERROR };
            let rc = peer.reinit_request.map_or(OK, |inner| inner(r));
            peer.process_header = (*u).process_header;
            (*u).process_header = Some(process_header);
            rc
        }
    })
}

/// Has nginx parse, and then looks at the head.
extern "C" fn process_header(r: *mut ngx_http_request_t) -> ngx_int_t {
    guard("the head of a response", ERROR, || {
        // SAFETY: as above. nginx's parser sets itself on while it goes from the status line to the headers.
        unsafe {
            let u = (*r).upstream;
            let Some(peer) = ctx::ctx(r).and_then(|ctx| ctx.peer.as_mut()) else { return ERROR };
            (*u).process_header = peer.process_header;
            let rc = peer.process_header.map_or(ERROR, |inner| inner(r));
            peer.process_header = (*u).process_header;
            (*u).process_header = Some(process_header);
            if rc == OK && (*r).http_version != peer.http_version {
                // nginx takes what it does not understand for HTTP/0.9, and would pass it on as it is.
                (*r).http_version = peer.http_version;
                return ffi::NGX_HTTP_UPSTREAM_INVALID_HEADER as ngx_int_t;
            }
            if rc == OK && refused(r, peer) {
                return ffi::NGX_HTTP_UPSTREAM_INVALID_HEADER as ngx_int_t;
            }
            if let Some(ctx) = ctx::ctx(r).filter(|_| rc == OK) {
                if redirect::follow(r, ctx) {
                    peer.redirected(r, ctx);
                } else {
                    ctx.answered = true;
                }
            }
            rc
        }
    })
}

/// Whether a response is not taken, because the request is tried again.
unsafe fn refused(r: *mut ngx_http_request_t, peer: &mut Peer) -> bool {
    // SAFETY: as above.
    unsafe {
        let u = (*r).upstream;
        let Some(ctx) = ctx::ctx(r) else { return false };
        if ctx.retries.on & retry_on::RESPONSE == 0 {
            return false;
        }
        let status = (*u).headers_in.status_n as u16;
        let head = ResponseHead { upstream: u, status: status.to_string() };
        let would = zone::with_worker(|worker| {
            let (_, tools) = worker.pin();
            ctx.retries.would_retry_response(&head, status, &ctx.wanted.view(), tools.regexes())
        });
        would == Some(true) && {
            let reset = ctx.wanted.reset_interval(&head);
            peer.again(r, ctx, reset)
        }
    }
}

/// A pause: a connection that leads nowhere, until the timer ends it. nginx then takes it for one that failed.
///
/// # Safety
/// `pc` and `ctx` must be those of the live request `r`.
pub unsafe fn pause(r: *mut ngx_http_request_t, pc: &mut ngx_peer_connection_t, ctx: &mut Ctx, ms: u64) -> ngx_int_t {
    // SAFETY: promised by the caller. nginx closes the connection as any other.
    unsafe {
        let fd = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return ERROR;
        }
        let c = ffi::ngx_get_connection(fd, pc.log);
        if c.is_null() {
            libc::close(fd);
            return ERROR;
        }
        (*c).type_ = libc::SOCK_STREAM;
        (*c).log = pc.log;
        (*(*c).read).log = pc.log;
        (*(*c).write).log = pc.log;
        (*c).recv = Some(nothing_to_read);
        (*c).send_chain = Some(nowhere_to_send);
        pc.connection = c;
        pc.set_cached(0);
        if timer::pause(r, ctx, on_pause_over, ms).is_none() {
            return ERROR;
        }
        AGAIN
    }
}

extern "C" fn nothing_to_read(_: *mut ffi::ngx_connection_t, _: *mut u8, _: usize) -> isize {
    AGAIN
}

extern "C" fn nowhere_to_send(
    _: *mut ffi::ngx_connection_t,
    _: *mut ffi::ngx_chain_t,
    _: ffi::off_t,
) -> *mut ffi::ngx_chain_t {
    // NGX_CHAIN_ERROR
    usize::MAX as *mut ffi::ngx_chain_t
}

extern "C" fn on_pause_over(ev: *mut ngx_event_t) {
    guard("the end of a pause", (), || {
        // SAFETY: the timer's request is live: its end stops the timer.
        unsafe {
            let u = (*(*ev).data.cast::<ngx_http_request_t>()).upstream;
            if u.is_null() || (*u).peer.connection.is_null() {
                return;
            }
            let write = (*(*u).peer.connection).write;
            if let Some(handler) = (*write).handler {
                handler(write);
            }
        }
    });
}

impl Peer {
    /// Counts a retry, if there is one left and the request can be sent once more. `reset` is the pause that the
    /// response asks for.
    ///
    /// # Safety
    /// As [`watch`].
    pub unsafe fn again(&mut self, r: *mut ngx_http_request_t, ctx: &mut Ctx, reset: Option<u64>) -> bool {
        // SAFETY: promised by the caller.
        unsafe {
            if (*(*r).upstream).request_sent() != 0 && (*r).request_body_no_buffering() != 0 {
                // What was sent of the body is gone.
                return false;
            }
            let random = zone::with_worker(|worker| worker.pin().1.random()).unwrap_or(0);
            // This try is one of those under way no more.
            lb::end_retry(&mut ctx.retry);
            match ctx.retries.next(random, reset) {
                Some(ms) => match lb::begin_retry(&ctx.upstream()) {
                    Ok(retry) => {
                        (ctx.retry, self.retry) = (retry, Some(ms));
                        true
                    }
                    Err(reason) => {
                        ctx.flags = ctx.flags.with(reason.flags());
                        false
                    }
                },
                None => {
                    ctx.flags = ctx.flags.with(Flags::RETRY_LIMIT);
                    false
                }
            }
        }
    }
}
