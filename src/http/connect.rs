//! Connections to endpoints for which nginx's own connect does not do: with TCP keepalive of the cluster's, or with the
//! PROXY protocol before the first request.

use super::capture;
use super::ctx::Ctx;
use super::peer::Peer;
use crate::guard::guard;
use crate::lb;
use crate::nginx::{pool_str, AGAIN, DONE, OK};
use ngx::ffi::{self, ngx_chain_t, ngx_connection_t, ngx_http_request_t, ngx_int_t, ngx_peer_connection_t, ngx_str_t};
use std::ffi::c_void;
use std::hash::{Hash, Hasher};

/// What is sent before the first request of a connection, in the request's pool.
pub struct Preface {
    /// What is left of it.
    rest: ngx_str_t,
    /// How the connection sends afterwards.
    send_chain: ffi::ngx_send_chain_pt,
}

/// What goes before the requests of a client where the cluster speaks the PROXY protocol, and its hash: connections are
/// shared by requests of one client connection alone. `None` when memory is out.
///
/// # Safety
/// `r` must be live, with the context `ctx`.
pub unsafe fn preface(r: *mut ngx_http_request_t, ctx: &Ctx) -> Option<(ngx_str_t, u64)> {
    // SAFETY: promised by the caller.
    unsafe {
        let c = (*r).connection;
        let (source, destination) = match capture::find(c).and_then(|captured| captured.as_ref()) {
            Some(captured) => (captured.source, captured.destination),
            // A request that met no listener of the mesh: an upstream that names its cluster.
            None => {
                let seen = capture::observe(c, amesh_dataplane::listener::Direction::Outbound)?;
                (seen.source, seen.destination)
            }
        };
        let header = lb::proxy_header(&ctx.upstream(), source, destination).unwrap_or_default();
        let mut hasher = std::hash::DefaultHasher::new();
        header.hash(&mut hasher);
        Some((pool_str((*r).pool, &header)?, hasher.finish()))
    }
}

extern "C" fn given(_: *mut ngx_peer_connection_t, _: *mut c_void) -> ngx_int_t {
    OK
}

/// Connects as nginx does, from within its question for a peer: AGAIN or DONE, or what failed.
///
/// # Safety
/// `pc` and `peer` must be those of a live request whose endpoint is picked.
pub unsafe fn connect(pc: &mut ngx_peer_connection_t, peer: &mut Peer, preface: ngx_str_t) -> ngx_int_t {
    // SAFETY: promised by the caller; the connection is open where nginx says OK or AGAIN.
    unsafe {
        let get = pc.get.replace(given);
        let rc = ffi::ngx_event_connect_peer(pc);
        pc.get = get;
        if rc != OK && rc != AGAIN {
            return rc;
        }
        let c = pc.connection;
        peer.picked.keep_alive((*c).fd);
        if preface.len > 0 {
            peer.preface = Preface { rest: preface, send_chain: (*c).send_chain };
            (*c).send_chain = Some(send_preface);
        }
        if rc == OK {
            DONE
        } else {
            rc
        }
    }
}

/// `NGX_CHAIN_ERROR`.
const CHAIN_ERROR: *mut ngx_chain_t = usize::MAX as *mut ngx_chain_t;

/// Sends what goes first, and then as the connection always does.
extern "C" fn send_preface(c: *mut ngx_connection_t, chain: *mut ngx_chain_t, limit: ffi::off_t) -> *mut ngx_chain_t {
    guard("the PROXY protocol", CHAIN_ERROR, || {
        // SAFETY: nginx hands in the upstream connection of a live request, whose peer `connect` saw: a connection that
        // is kept has sent a request, and so all of this.
        unsafe {
            let u = (*(*c).data.cast::<ngx_http_request_t>()).upstream;
            let preface = &mut (*(*u).peer.data.cast::<Peer>()).preface;
            let Some(send) = (*c).send else { return CHAIN_ERROR };
            while preface.rest.len > 0 {
                match send(c, preface.rest.data, preface.rest.len) {
                    n if n > 0 => {
                        preface.rest.data = preface.rest.data.add(n as usize);
                        preface.rest.len -= n as usize;
                    }
                    n if n == AGAIN => return chain,
                    _ => return CHAIN_ERROR,
                }
            }
            (*c).send_chain = preface.send_chain;
            match preface.send_chain {
                Some(send_chain) => send_chain(c, chain, limit),
                None => CHAIN_ERROR,
            }
        }
    })
}
