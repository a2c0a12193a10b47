//! Copies of requests for other clusters (`request_mirror_policies`): sent, and their answers thrown away.
//!
//! A copy has a connection of its own and nothing to do with the client's request once it is sent: that one may end, or
//! wait for its own endpoint, as it likes. A copy is what nginx's proxy made for the endpoint, with another host.

use super::capture;
use super::ctx::Ctx;
use super::forward::Seen;
use super::head::Head;
use crate::guard::guard;
use crate::lb::{self, Outcome, Picked, Unit, Upstream};
use crate::nginx::{self, pool_str, AGAIN, EMPTY, ERROR, OK};
use crate::zone;
use amesh_dataplane::route::{Forward, RequestHead};
use amesh_model::Kind;
use ngx::ffi::{
    self, ngx_chain_t, ngx_connection_t, ngx_event_t, ngx_http_request_t, ngx_int_t, ngx_msec_t, ngx_peer_connection_t,
    ngx_str_t,
};
use std::ffi::c_void;

/// Longest time for a copy whose route has no time-out, in ms.
const LONGEST: u64 = 60_000;

/// A copy that is to be made, in the request's pool.
pub struct Shadow {
    cluster: ngx_str_t,
    /// Its host; empty: the request's.
    host: ngx_str_t,
    /// The request's host gets `-shadow`.
    suffix: bool,
    next: *mut Shadow,
}

/// Keeps what the route says of copies. `None` when memory is out.
pub fn keep(seen: &Seen<'_>, head: &Head<'_>, ctx: &mut Ctx, forward: &Forward<'_>) -> Option<()> {
    // SAFETY: the request is live.
    let pool = unsafe { (*seen.request).pool };
    for policy in forward.action.mirrors.iter() {
        let drawn = policy.runtime_fraction.as_ref().is_none_or(|f| {
            head.random() % u64::from(f.denominator.to_native().max(1)) < u64::from(f.numerator.to_native())
        });
        let cluster = match policy.cluster_header.as_str() {
            "" => policy.cluster.as_bytes(),
            name => head.first_value(name).unwrap_or_default(),
        };
        if !drawn || cluster.is_empty() {
            continue;
        }
        let shadow: *mut Shadow = nginx::pool_zeroed(pool);
        if shadow.is_null() {
            return None;
        }
        let host = policy.host_rewrite_literal.as_str();
        let kept = Shadow {
            cluster: pool_str(pool, cluster)?,
            host: pool_str(pool, host.as_bytes())?,
            suffix: host.is_empty() && !policy.disable_shadow_host_suffix_append,
            next: ctx.shadows,
        };
        // SAFETY: freshly allocated in the request's pool.
        unsafe { shadow.write(kept) };
        ctx.shadows = shadow;
    }
    Some(())
}

/// Sends the copies of a request that nginx's proxy has made ready to be sent.
///
/// # Safety
/// `r` must be live, with the context `ctx` and its `request_bufs`.
pub unsafe fn send(r: *mut ngx_http_request_t, ctx: &mut Ctx) {
    // SAFETY: promised by the caller; the list lives in the request's pool.
    unsafe {
        let mut next = std::mem::replace(&mut ctx.shadows, std::ptr::null_mut());
        if next.is_null() {
            return;
        }
        let name = nginx::text(ctx.cluster);
        if (*r).request_body_no_buffering() != 0 {
            return zone::complain(
                name,
                "a copy of a body that is larger than 1 MiB, or of unknown length, is not made",
            );
        }
        let Some(request) = Http1::read((*(*r).upstream).request_bufs) else {
            return zone::complain(name, "a copy of a request of HTTP/2 is not made");
        };
        let timeout = match ctx.timeouts.global {
            0 => LONGEST,
            ms => ms,
        };
        while let Some(shadow) = next.as_ref() {
            next = shadow.next;
            let mut bytes = request.with_host(nginx::text(shadow.host), shadow.suffix);
            let cluster = nginx::text(shadow.cluster);
            let hash = zone::hash(Kind::Cluster, cluster.as_bytes());
            // An endpoint that is not there, or does not take it, is nobody's business.
            let upstream = Upstream {
                cluster,
                hash,
                original_dst: ctx.original_dst,
                unit: Unit::Request,
                high_priority: ctx.high_priority,
            };
            if let Ok(picked) = lb::pick(&upstream, &[]) {
                let captured = capture::find((*r).connection).and_then(|captured| captured.as_ref());
                if let Some(captured) = captured.filter(|_| picked.proxy_protocol) {
                    let header = lb::proxy_header(&upstream, captured.source, captured.destination);
                    bytes.splice(..0, header.unwrap_or_default());
                }
                Flight::start(picked, bytes, timeout);
            }
        }
    }
}

/// A request of HTTP/1, as it goes to the endpoint.
struct Http1 {
    head: String,
    body: Vec<u8>,
}

impl Http1 {
    /// Reads it from nginx's buffers. `None`: it is none of HTTP/1, or its body cannot be read.
    unsafe fn read(mut chain: *mut ngx_chain_t) -> Option<Http1> {
        let mut all = Vec::new();
        // SAFETY: the chain and its buffers live in the request's pool, the file as long as the request.
        unsafe {
            while let Some(link) = chain.as_ref() {
                let b = &*link.buf;
                if b.in_file() != 0 && b.memory() == 0 && b.temporary() == 0 {
                    let at = all.len();
                    let len = usize::try_from(b.file_last - b.file_pos).ok()?;
                    all.resize(at + len, 0);
                    let n = libc::pread((*b.file).fd, all[at..].as_mut_ptr().cast(), len, b.file_pos);
                    if usize::try_from(n) != Ok(len) {
                        return None;
                    }
                } else if !b.pos.is_null() {
                    all.extend_from_slice(std::slice::from_raw_parts(b.pos, b.last.offset_from(b.pos) as usize));
                }
                chain = link.next;
            }
        }
        let end = all.windows(4).position(|w| w == b"\r\n\r\n")? + 2;
        let head = String::from_utf8(all[..end].to_vec()).ok().filter(|head| head.contains(" HTTP/1."))?;
        Some(Http1 { head, body: all[end + 2..].to_vec() })
    }

    /// The copy: another host, and a connection that ends with it.
    fn with_host(&self, host: &str, suffix: bool) -> Vec<u8> {
        let mut out = String::with_capacity(self.head.len() + 64);
        for line in self.head.split_inclusive("\r\n") {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            match name.to_ascii_lowercase().as_str() {
                "connection" | "x-envoy-internal" => {}
                "host" => {
                    let own = value.trim();
                    let new = match (host, suffix) {
                        ("", true) => with_suffix(own),
                        ("", false) => own.to_owned(),
                        (host, _) => host.to_owned(),
                    };
                    out.push_str(&format!("Host: {new}\r\nConnection: close\r\nx-envoy-internal: true\r\n"));
                }
                _ => out.push_str(line),
            }
        }
        let mut out = out.into_bytes();
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(&self.body);
        out
    }
}

/// `a` is `a-shadow`, `a:80` is `a-shadow:80` (`Http::Utility::appendShadowSuffix`).
fn with_suffix(host: &str) -> String {
    match host.split_once(':') {
        Some((name, port)) if !port.contains(':') => format!("{name}-shadow:{port}"),
        _ => format!("{host}-shadow"),
    }
}

/// A copy on its way. It owns itself until its connection ends.
struct Flight {
    peer: ngx_peer_connection_t,
    name: ngx_str_t,
    picked: Picked,
    local: ffi::ngx_addr_t,
    local_sockaddr: libc::sockaddr_storage,
    bytes: Vec<u8>,
    sent: usize,
    timeout: u64,
}

impl Flight {
    fn start(picked: Picked, bytes: Vec<u8>, timeout: u64) {
        // SAFETY: all zeroes are values of these plain C structs.
        let (peer, local, local_sockaddr) = unsafe { std::mem::zeroed() };
        let name = EMPTY;
        let mut flight = Box::new(Flight { peer, name, picked, local, local_sockaddr, bytes, sent: 0, timeout });
        flight.peer.sockaddr = std::ptr::from_mut(&mut flight.picked.sockaddr).cast();
        flight.peer.socklen = flight.picked.socklen;
        flight.name = nginx::str_of("a mirrored request");
        flight.peer.name = &mut flight.name;
        flight.peer.get = Some(get);
        flight.peer.local = flight.picked.bind_addr(&mut flight.local, &mut flight.local_sockaddr);
        // SAFETY: nginx has a cycle, and it a log, as long as it runs; the flight stays where it is on the heap.
        unsafe {
            flight.peer.log = (*ffi::ngx_cycle).log;
            flight.peer.set_log_error(ffi::ngx_connection_log_error_e_NGX_ERROR_INFO);
            let rc = ffi::ngx_event_connect_peer(&mut flight.peer);
            if rc != OK && rc != AGAIN {
                return flight.end(true);
            }
            let c = flight.peer.connection;
            let connect_timeout = flight.picked.connect_timeout.max(1);
            (*c).data = Box::into_raw(flight).cast();
            (*(*c).write).handler = Some(on_write);
            (*(*c).read).handler = Some(on_read);
            ffi::ngx_add_timer((*c).write, connect_timeout as ngx_msec_t);
            if rc == OK {
                write(c);
            }
        }
    }

    /// Closes its connection, and gives the endpoint back.
    unsafe fn end(mut self: Box<Self>, failed: bool) {
        // SAFETY: the connection is open, or there is none.
        unsafe {
            if !self.peer.connection.is_null() {
                ffi::ngx_close_connection(self.peer.connection);
            }
        }
        let outcome = match (failed, self.sent > 0) {
            (false, _) => Outcome::Unknown,
            (true, true) => Outcome::Reset,
            (true, false) => Outcome::ConnectFailure,
        };
        lb::end(&mut self.picked, outcome);
    }
}

extern "C" fn get(_: *mut ngx_peer_connection_t, _: *mut c_void) -> ngx_int_t {
    OK
}

extern "C" fn on_write(ev: *mut ngx_event_t) {
    // SAFETY: nginx hands in the event of a connection that `start` made.
    guard("a mirrored request", (), || unsafe { write((*ev).data.cast()) });
}

extern "C" fn on_read(ev: *mut ngx_event_t) {
    // SAFETY: as above.
    guard("the answer to a mirrored request", (), || unsafe { read((*ev).data.cast()) });
}

unsafe fn write(c: *mut ngx_connection_t) {
    // SAFETY: the connection's data is the flight until it ends.
    unsafe {
        let mut flight = Box::from_raw((*c).data.cast::<Flight>());
        if (*(*c).write).timedout() != 0 {
            return flight.end(true);
        }
        while let Some(rest) = flight.bytes.get(flight.sent..).filter(|rest| !rest.is_empty()) {
            let Some(send) = (*c).send else { return flight.end(true) };
            match send(c, rest.as_ptr().cast_mut(), rest.len()) {
                n if n > 0 => flight.sent += n as usize,
                n if n == AGAIN => {
                    let rc = ffi::ngx_handle_write_event((*c).write, 0);
                    if rc != OK {
                        return flight.end(true);
                    }
                    (*c).data = Box::into_raw(flight).cast();
                    return;
                }
                _ => return flight.end(true),
            }
        }
        if (*(*c).write).timer_set() != 0 {
            ffi::ngx_del_timer((*c).write);
            ffi::ngx_add_timer((*c).read, flight.timeout as ngx_msec_t);
        }
        flight.bytes = Vec::new();
        flight.sent = flight.sent.max(1);
        let rc = ffi::ngx_handle_read_event((*c).read, 0);
        if rc != OK {
            return flight.end(true);
        }
        (*c).data = Box::into_raw(flight).cast();
    }
}

unsafe fn read(c: *mut ngx_connection_t) {
    // SAFETY: as above.
    unsafe {
        let flight = Box::from_raw((*c).data.cast::<Flight>());
        if (*(*c).read).timedout() != 0 {
            return flight.end(true);
        }
        let mut thrown_away = [0u8; 4096];
        loop {
            let Some(recv) = (*c).recv else { return flight.end(true) };
            match recv(c, thrown_away.as_mut_ptr(), thrown_away.len()) {
                n if n > 0 => {}
                n if n == AGAIN => break,
                n => return flight.end(n == ERROR),
            }
        }
        if ffi::ngx_handle_read_event((*c).read, 0) != OK {
            return flight.end(true);
        }
        (*c).data = Box::into_raw(flight).cast();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_another_host_and_ends_its_connection() {
        let head = "POST /a?b HTTP/1.1\r\nHost: web:80\r\nconnection: upgrade\r\nx: y\r\n".to_owned();
        let request = Http1 { head, body: b"body".to_vec() };
        let copy = |host, suffix| String::from_utf8(request.with_host(host, suffix)).unwrap();
        let want = |host| {
            format!(
                "POST /a?b HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nx-envoy-internal: true\r\nx: y\r\n\r\nbody"
            )
        };
        assert_eq!(copy("", true), want("web-shadow:80"));
        assert_eq!(copy("", false), want("web:80"));
        assert_eq!(copy("other", false), want("other"));
        assert_eq!((with_suffix("a"), with_suffix("[::1]:80")), ("a-shadow".into(), "[::1]:80-shadow".into()));
    }
}
