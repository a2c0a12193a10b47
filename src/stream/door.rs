//! The front door: one captured port for HTTP/1, h2c, TLS and raw TCP of every destination.
//!
//! In a stream phase before content the first bytes are looked at and not consumed (`MSG_PEEK`). With the original
//! destination, SNI, ALPN and "HTTP or not" the filter chain is known. HTTP is handed to an http listener of the same
//! worker, as nginx's own `pass` does since 1.25.5; anything else goes on to the TCP proxy. That is Envoy's listener
//! model on stock nginx.

use crate::guard::guard;
use crate::http::capture::{self, Captured};
use crate::http::reply::Flags;
use crate::http::Mode;
use crate::nginx::{self, pool_str, AGAIN, DECLINED, DONE, EMPTY, ERROR};
use crate::stream::proxy::{self, Destination};
use crate::stream::udp;
use crate::zone;
use amesh_dataplane::inspect::{self, Peek, MAX_PEEK};
use amesh_dataplane::listener::{self, Direction};
use amesh_model::listener::{ArchivedChainAction, ArchivedListener};
use ngx::ffi::{self, ngx_connection_t, ngx_int_t, ngx_msec_t, ngx_stream_session_t, ngx_uint_t};

/// What the listener filters found, as far as they got.
enum Sniffed {
    /// More bytes are needed.
    Wait,
    /// All is known.
    Done,
    /// The client went away.
    Gone,
}

/// What is to be done with a connection.
enum Verdict {
    Http { http2: bool },
    Tcp(Destination),
    Close(Flags),
}

/// The phase handler.
pub extern "C" fn handler(s: *mut ngx_stream_session_t) -> ngx_int_t {
    guard("the front door", ERROR, || {
        // SAFETY: nginx hands in a live session.
        unsafe {
            let direction = match super::srv_conf(s).mode {
                m if m == Mode::Outbound as u8 => Direction::Outbound,
                m if m == Mode::Inbound as u8 => Direction::Inbound,
                _ => return DECLINED,
            };
            let c = (*s).connection;
            let Some(ctx) = proxy::ctx_or_new(s) else { return ERROR };
            let ctx = &mut *ctx;
            if (*c).type_ == libc::SOCK_DGRAM {
                // A client sends again what is lost before there are resources.
                let Some((captured, to)) = udp::look(c, direction) else { return finish(s, Flags::NO_ROUTE) };
                let Some(place) = capture::attach(c, captured) else { return ERROR };
                ctx.listener = (*place).listener;
                (ctx.captured, ctx.destination) = (place, Some(to));
                return DECLINED;
            }
            if ctx.captured.is_null() {
                // No address of the internet families: nothing to route by.
                let Some(captured) = capture::observe(c, direction) else { return ERROR };
                let Some(place) = capture::attach(c, captured) else { return ERROR };
                (*place).tls = false;
                (*place).application_protocols = EMPTY;
                ctx.captured = place;
            }
            let timed_out = (*(*c).read).timedout() != 0;
            if (*c).close() != 0 {
                // An old worker that ends does not wait for a client that has said nothing yet.
                return finish(s, Flags::NONE);
            }
            if zone::wait_for_ready((*s).start_sec) {
                let read = (*c).read;
                (*read).set_timedout(0);
                (*c).set_idle(1);
                ffi::ngx_add_timer(read, zone::READY_POLL);
                return if nginx::handle_read_event(read) { AGAIN } else { ERROR };
            }
            let captured = &mut *ctx.captured;
            let Some(step) = zone::with_worker(|worker| {
                let (pin, _) = worker.pin();
                look(&pin, c, captured, timed_out)
            }) else {
                return ERROR;
            };
            match step {
                Step::Wait(timeout) => wait(c, timeout),
                Step::Out(verdict) => {
                    settle(c);
                    ctx.listener = captured.listener;
                    match verdict {
                        Verdict::Close(flags) => finish(s, flags),
                        Verdict::Tcp(destination) => {
                            ctx.destination = Some(destination);
                            DECLINED
                        }
                        Verdict::Http { http2 } => hand_over(s, http2),
                    }
                }
            }
        }
    })
}

enum Step {
    Wait(u64),
    Out(Verdict),
}

/// Waits for more bytes; nothing of what was seen is consumed.
unsafe fn wait(c: *mut ngx_connection_t, timeout: u64) -> ngx_int_t {
    // SAFETY: the connection of a live session.
    unsafe {
        let read = (*c).read;
        (*read).set_ready(0);
        (*c).set_idle(1);
        if timeout > 0 && (*read).timer_set() == 0 {
            ffi::ngx_add_timer(read, timeout as ngx_msec_t);
        }
        if nginx::handle_read_event(read) {
            AGAIN
        } else {
            ERROR
        }
    }
}

/// Ends the waiting.
unsafe fn settle(c: *mut ngx_connection_t) {
    // SAFETY: the connection of a live session.
    unsafe {
        let read = (*c).read;
        (*c).set_idle(0);
        (*read).set_timedout(0);
        if (*read).timer_set() != 0 {
            ffi::ngx_del_timer(read);
        }
    }
}

unsafe fn finish(s: *mut ngx_stream_session_t, flags: Flags) -> ngx_int_t {
    // SAFETY: the session is live; nginx expects DONE where a handler has ended it.
    unsafe {
        if let Some(ctx) = proxy::ctx(s) {
            ctx.flags = ctx.flags.with(flags);
        }
        super::finalize(s, ffi::NGX_STREAM_OK as ngx_uint_t);
    }
    DONE
}

/// Finds the listener, sniffs as it says, and finds its filter chain.
unsafe fn look(pin: &zone::Pin<'_>, c: *mut ngx_connection_t, captured: &mut Captured, timed_out: bool) -> Step {
    let none = Step::Out(Verdict::Close(Flags::NO_ROUTE));
    let Some(index) = pin.listener_index() else { return none };
    let Some(name) = listener::find_listener(index, captured.direction, captured.destination) else { return none };
    let Some(found) = pin.listener(name) else { return none };
    // SAFETY: the connection outlives its session.
    if unsafe { nginx::text(captured.listener) } != name {
        // SAFETY: as above.
        match pool_str(unsafe { (*c).pool }, name.as_bytes()) {
            Some(name) => captured.listener = name,
            None => return none,
        }
    }
    if let Some(reason) = found.refuse.as_ref() {
        zone::complain(name, reason);
        return Step::Out(Verdict::Close(Flags::REFUSED));
    }
    // SAFETY: as above.
    match unsafe { sniff(c, found, captured) } {
        Sniffed::Gone => return Step::Out(Verdict::Close(Flags::DOWNSTREAM_TERMINATION)),
        Sniffed::Wait if !timed_out => return Step::Wait(found.listener_filters_timeout.to_native()),
        Sniffed::Wait if !found.continue_on_listener_filters_timeout => {
            return Step::Out(Verdict::Close(Flags::NONE));
        }
        _ => {}
    }
    let Some((chain, matched)) = captured.with_info(|info| listener::find_filter_chain(found, info)) else {
        return none;
    };
    captured.chain = chain;
    captured.matched_at = pin.zone_version();
    Step::Out(match &matched.action {
        ArchivedChainAction::Http(_) => Verdict::Http {
            // SAFETY: as above.
            http2: unsafe { nginx::bytes(captured.application_protocols) } == b"h2c",
        },
        // SAFETY: as above.
        ArchivedChainAction::Tcp(tcp) => match unsafe { proxy::destination(tcp, c) } {
            Some(destination) => Verdict::Tcp(destination),
            None => Verdict::Close(Flags::NO_CLUSTER),
        },
        ArchivedChainAction::Refuse(reason) => {
            zone::complain(name, reason);
            Verdict::Close(Flags::REFUSED)
        }
    })
}

/// The TLS and the HTTP inspector of a listener, over what the client has sent so far.
unsafe fn sniff(c: *mut ngx_connection_t, found: &ArchivedListener, captured: &mut Captured) -> Sniffed {
    let wanted = listener::inspectors(found, captured.destination.port());
    if !wanted.tls && !wanted.http {
        return Sniffed::Done;
    }
    let mut buffer = [0u8; MAX_PEEK];
    // SAFETY: the buffer has room for what is asked for.
    let n = unsafe { libc::recv((*c).fd, buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_PEEK) };
    let seen = match n {
        0 => return Sniffed::Gone,
        n if n > 0 => &buffer[..n as usize],
        _ if ffi::ngx_socket_errno() == libc::EAGAIN => return Sniffed::Wait,
        _ => return Sniffed::Gone,
    };
    // SAFETY: the connection's pool lives as long as what is put there.
    let pool = unsafe { (*c).pool };
    if wanted.tls {
        match inspect::tls(seen) {
            Peek::NeedMore => return Sniffed::Wait,
            Peek::Yes(hello) => {
                captured.tls = true;
                let name = hello.server_name.unwrap_or_default();
                let protocols = hello.application_protocols.join(",");
                let (Some(name), Some(protocols)) =
                    (pool_str(pool, name.as_bytes()), pool_str(pool, protocols.as_bytes()))
                else {
                    return Sniffed::Gone;
                };
                captured.server_name = name;
                captured.application_protocols = protocols;
                return Sniffed::Done;
            }
            Peek::No => {}
        }
    }
    if wanted.http {
        captured.application_protocols = match inspect::http(seen) {
            Peek::NeedMore => return Sniffed::Wait,
            Peek::Yes(kind) => nginx::str_of(kind.alpn()),
            Peek::No => EMPTY,
        };
    }
    Sniffed::Done
}

/// Takes the connection out of the stream session and gives it to an http listener of this worker.
unsafe fn hand_over(s: *mut ngx_stream_session_t, http2: bool) -> ngx_int_t {
    // SAFETY: the session and its connection are live; the steps are those of ngx_stream_pass_module.
    unsafe {
        let c = (*s).connection;
        let Some(ls) = capture::internal_listener(ffi::ngx_cycle, http2) else {
            zone::complain(
                "the front door",
                if http2 {
                    "HTTP/2 came, and no server with \"amesh internal http2\" is there: include amesh/http.conf in http {}"
                } else {
                    "HTTP came, and no server with \"amesh internal\" is there: include amesh/http.conf in http {}"
                },
            );
            return finish(s, Flags::REFUSED);
        };
        (*c).data = std::ptr::null_mut();
        (*c).buffer = std::ptr::null_mut();
        *(*c).log = (*ls).log;
        (*(*c).log).handler = None;
        (*(*c).log).data = std::ptr::null_mut();
        (*(*c).log).connection = (*c).number;
        (*c).listening = ls;
        // ngx_http_init_connection casts the listener's addresses by this family.
        (*c).local_sockaddr = (*ls).sockaddr;
        (*c).local_socklen = (*ls).socklen;
        (*(*c).read).handler = None;
        (*(*c).write).handler = None;
        (*(*c).read).set_ready(1);
        ffi::ngx_http_init_connection(c);
        DONE
    }
}
