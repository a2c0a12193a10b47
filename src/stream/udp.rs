//! The UDP proxy: datagrams between a client and an endpoint. nginx's sessions are Envoy's: all datagrams of one client
//! to one address of this node are one session, which has one endpoint until it has been idle.

use super::proxy::{self, Ctx, Destination};
use crate::guard::guard;
use crate::http::capture::Captured;
use crate::lb::MetadataMatch;
use crate::nginx::{self, pool_str, AGAIN, EMPTY, ERROR, OK};
use crate::original_dst;
use crate::zone;
use amesh_dataplane::hash::{key_hash, source_hash};
use amesh_dataplane::listener::{find_udp_listener, Direction};
use amesh_model::listener::ArchivedUdpHash;
use amesh_model::Kind;
use ngx::ffi::{self, ngx_connection_t, ngx_event_t, ngx_msec_t};
use std::sync::atomic::AtomicU64;

/// The largest datagram.
const DATAGRAM: usize = 65_535;

/// Where a UDP socket gets its datagrams, and where they go. A UDP socket has no original destination: the listener is
/// found by the address that was sent to. `None`: nobody listens there, or memory is out.
///
/// # Safety
/// `c` must be the connection of a live session of UDP.
pub unsafe fn look(c: *mut ngx_connection_t, direction: Direction) -> Option<(Captured, Destination)> {
    // SAFETY: promised by the caller.
    unsafe {
        let source = original_dst::peer_addr(c)?;
        let destination = original_dst::addr((*c).local_sockaddr.cast(), (*c).local_socklen)?;
        zone::with_worker(|worker| {
            let (pin, _) = worker.pin();
            let name = find_udp_listener(pin.listener_index()?, direction, destination)?;
            let found = pin.listener(name)?;
            if let Some(reason) = found.refuse.as_ref() {
                zone::complain(name, reason);
                return None;
            }
            let udp = found.udp.as_ref()?;
            let captured = Captured {
                direction,
                destination,
                source,
                server_name: EMPTY,
                tls: false,
                application_protocols: EMPTY,
                matched_at: 0,
                listener: pool_str((*c).pool, name.as_bytes())?,
                chain: 0,
                tokens: AtomicU64::new(0),
            };
            let to = Destination {
                cluster: pool_str((*c).pool, udp.cluster.as_bytes())?,
                hash: zone::hash(Kind::Cluster, udp.cluster.as_bytes()),
                idle_timeout: udp.idle_timeout.to_native(),
                max_duration: 0,
                attempts: 1,
                source_hash: match &udp.hash {
                    ArchivedUdpHash::None => None,
                    ArchivedUdpHash::SourceIp => Some(source_hash(source.ip())),
                    ArchivedUdpHash::Key(key) => Some(key_hash(key)),
                },
                metadata_match: MetadataMatch::NONE,
            };
            Some((captured, to))
        })
        .flatten()
    }
}

/// The endpoint's socket is there: sends what came first, and waits for more.
///
/// # Safety
/// `ctx` must be that of a live session of UDP with an upstream connection.
pub unsafe fn begin(ctx: &mut Ctx) {
    // SAFETY: promised by the caller. The first datagram is in the connection's buffer.
    unsafe {
        let (c, u) = ctx.connections();
        (*(*u).read).handler = Some(on_upstream);
        (*(*u).write).handler = Some(on_nothing);
        (*(*c).read).handler = Some(on_client);
        (*(*c).write).handler = Some(on_idle);
        (*c).set_idle(1);
        let first = (*c).buffer.as_ref().map_or(&[][..], |b| {
            std::slice::from_raw_parts(b.pos, usize::try_from(b.last.offset_from(b.pos)).unwrap_or(0))
        });
        ctx.count_received(first.len());
        send(u, first);
        let idle = ctx.destination.map_or(0, |d| d.idle_timeout);
        ffi::ngx_add_timer((*c).write, idle as ngx_msec_t);
        if !nginx::handle_read_event((*u).read) {
            ctx.end(ffi::NGX_STREAM_INTERNAL_SERVER_ERROR);
        }
    }
}

extern "C" fn on_nothing(_: *mut ngx_event_t) {}

/// A datagram that finds no room, or nobody, is lost, as datagrams are.
unsafe fn send(to: *mut ngx_connection_t, bytes: &[u8]) {
    // SAFETY: promised by the caller: the connection is open; nginx only reads the bytes.
    unsafe {
        if let Some(send) = (*to).send {
            send(to, bytes.as_ptr().cast_mut(), bytes.len());
        }
        // An error of one datagram is not one of the next.
        (*(*to).write).set_error(0);
        (*(*to).write).set_ready(1);
    }
}

/// Sends to the client, from the address that it sent to.
unsafe fn send_to_client(c: *mut ngx_connection_t, bytes: &[u8]) {
    // SAFETY: promised by the caller: the connection of a live session; the buffer outlives the call, and nginx only
    // reads it. All zeroes is an empty buffer.
    unsafe {
        if bytes.is_empty() || (*(*c).listening).wildcard() == 0 {
            return send(c, bytes);
        }
        let mut buffer: ffi::ngx_buf_t = std::mem::zeroed();
        let range = bytes.as_ptr_range();
        (buffer.pos, buffer.last) = (range.start.cast_mut(), range.end.cast_mut());
        (buffer.start, buffer.end) = (buffer.pos, buffer.last);
        buffer.set_memory(1);
        buffer.set_flush(1);
        buffer.set_last_buf(1);
        let mut chain = ffi::ngx_chain_t { buf: &mut buffer, next: std::ptr::null_mut() };
        if let Some(send_chain) = (*c).send_chain {
            send_chain(c, &mut chain, 0);
        }
        (*(*c).write).set_error(0);
        (*(*c).write).set_ready(1);
    }
}

/// Takes datagrams from one side until there is none: how many bytes, and how many of them.
unsafe fn pass(from: *mut ngx_connection_t, deliver: impl Fn(&[u8])) -> (usize, usize) {
    let mut buffer = [0u8; DATAGRAM];
    let (mut bytes, mut datagrams) = (0, 0);
    // SAFETY: promised by the caller: the connection is open; the buffer has room for what is asked for.
    unsafe {
        let Some(recv) = (*from).recv else { return (0, 0) };
        loop {
            match recv(from, buffer.as_mut_ptr(), buffer.len()) {
                n if n == AGAIN => break,
                n if n == ERROR => {
                    // Nobody was there for one of ours; the session goes on.
                    (*(*from).read).set_error(0);
                    break;
                }
                n => {
                    let n = usize::try_from(n).unwrap_or(0);
                    (bytes, datagrams) = (bytes + n, datagrams + 1);
                    deliver(buffer.get(..n).unwrap_or_default());
                }
            }
        }
    }
    (bytes, datagrams)
}

extern "C" fn on_client(ev: *mut ngx_event_t) {
    // SAFETY: nginx hands in an event of the client's connection, whose data is a live session.
    guard("the UDP proxy", (), || unsafe {
        let c = (*ev).data.cast::<ngx_connection_t>();
        let Some(ctx) = proxy::ctx((*c).data.cast()) else { return };
        if (*c).close() != 0 {
            // A worker that ends does not wait for sessions to be idle.
            return ctx.end(ffi::NGX_STREAM_OK);
        }
        let (c, u) = ctx.connections();
        let (bytes, datagrams) = pass(c, |datagram| send(u, datagram));
        ctx.count_received(bytes);
        if datagrams > 0 {
            ctx.is_active();
        }
    });
}

extern "C" fn on_upstream(ev: *mut ngx_event_t) {
    // SAFETY: nginx hands in an event of the upstream connection, whose data is a live session.
    guard("the UDP proxy", (), || unsafe {
        let u = (*ev).data.cast::<ngx_connection_t>();
        let Some(ctx) = proxy::ctx((*u).data.cast()) else { return };
        let (c, u) = ctx.connections();
        let (_, datagrams) = pass(u, |datagram| send_to_client(c, datagram));
        if datagrams > 0 {
            ctx.is_active();
        }
        let rc = ffi::ngx_handle_read_event((*u).read, 0);
        if rc != OK {
            ctx.end(ffi::NGX_STREAM_INTERNAL_SERVER_ERROR);
        }
    });
}

extern "C" fn on_idle(ev: *mut ngx_event_t) {
    // SAFETY: as in on_client.
    guard("the UDP proxy", (), || unsafe {
        let c = (*ev).data.cast::<ngx_connection_t>();
        let Some(ctx) = proxy::ctx((*c).data.cast()) else { return };
        if (*ev).timedout() != 0 {
            (*ev).set_timedout(0);
            match ctx.idle_left() {
                0 => ctx.end(ffi::NGX_STREAM_OK),
                left => ffi::ngx_add_timer(ev, left),
            }
        }
    });
}
