//! Tries whose balancer is not of this module: nginx's Lua module has its peer set by a script, which asks here for the
//! endpoint. What the policy says of tries, pauses and time-outs holds all the same, and outcomes are counted.

use super::ctx::{ctx_or_new, Ctx};
use super::peer::{Begin, Outer, Peer};
use crate::guard::guard;
use crate::lb::{self, Outcome};
use crate::nginx::{self, pool_str, ERROR};
use crate::zone;
use ngx::ffi::{self, ngx_http_request_t, ngx_int_t, ngx_peer_connection_t, ngx_uint_t};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;

thread_local! {
    /// Peers by the address of nginx's connection to them: nothing in that leads to the request.
    static PEERS: RefCell<HashMap<usize, *mut Peer>> = RefCell::default();
}

/// Why there is no endpoint.
pub enum NoPeer {
    /// The request has no upstream: this is no balancer.
    NoUpstream,
    /// It was not routed, and no cluster is named.
    NoRoute,
    /// As the module's own balancer would say.
    Begin(Begin),
}

/// Picks the endpoint of a try of a request. `cluster`: the one to ask, in place of its route's.
///
/// # Safety
/// `r` must be live, and its balancer be asked for a peer just now.
pub unsafe fn pick<'a>(r: *mut ngx_http_request_t, cluster: &str) -> Result<(&'a Peer, &'a Ctx), NoPeer> {
    const MEMORY: NoPeer = NoPeer::Begin(Begin::Memory);
    // SAFETY: promised by the caller; context and peer live in the request's pool.
    unsafe {
        if (*r).upstream.is_null() {
            return Err(NoPeer::NoUpstream);
        }
        let ctx = &mut *ctx_or_new(r).ok_or(MEMORY)?;
        let pc = &mut (*(*r).upstream).peer;
        if !cluster.is_empty() && nginx::text(ctx.cluster) != cluster {
            ctx.set_cluster(pool_str((*r).pool, cluster.as_bytes()).ok_or(MEMORY)?);
            if let Some(mut picked) = ctx.picked.take() {
                lb::end(&mut picked, Outcome::Unknown);
            }
        }
        if ctx.cluster.len == 0 {
            return Err(NoPeer::NoRoute);
        }
        let peer = match known(pc) {
            Some(peer) => peer,
            None => attach(r, ctx, pc).ok_or(MEMORY)?,
        };
        let peer = &mut *peer;
        // A script that asks twice gets another one.
        peer.give_back();
        peer.begin(pc).map_err(NoPeer::Begin)?;
        if peer.picked.proxy_protocol {
            // nginx connects for other balancers, and says nothing of its own then.
            zone::complain(nginx::text(ctx.cluster), "the PROXY protocol is not spoken for a balancer in Lua");
            peer.give_back();
            return Err(NoPeer::Begin(Begin::Reason(lb::Reason::Refused)));
        }
        Ok((peer, ctx))
    }
}

fn known(pc: *const ngx_peer_connection_t) -> Option<*mut Peer> {
    PEERS.with_borrow(|peers| peers.get(&(pc as usize)).copied())
}

/// Puts a peer of ours behind the balancer's.
unsafe fn attach(r: *mut ngx_http_request_t, ctx: &mut Ctx, pc: &mut ngx_peer_connection_t) -> Option<*mut Peer> {
    // SAFETY: see pick.
    unsafe {
        let peer = Peer::attach(r, ctx);
        let cleanup = ffi::ngx_pool_cleanup_add((*r).pool, size_of::<usize>());
        if peer.is_null() || cleanup.is_null() {
            return None;
        }
        (*peer).outer = Some(Outer { get: pc.get, free: pc.free });
        pc.get = Some(get_peer);
        pc.free = Some(free_peer);
        pc.tries = 1;
        PEERS.with_borrow_mut(|peers| peers.insert(std::ptr::from_mut(pc) as usize, peer));
        (*cleanup).data.cast::<usize>().write(std::ptr::from_mut(pc) as usize);
        (*cleanup).handler = Some(forget);
        Some(peer)
    }
}

/// The request ends.
extern "C" fn forget(data: *mut c_void) {
    guard("the end of a balanced request", (), || {
        // SAFETY: attach has written it; the peer lives in the pool that ends.
        let peer = PEERS.with_borrow_mut(|peers| peers.remove(unsafe { &*data.cast::<usize>() }));
        if let Some(peer) = peer {
            // SAFETY: as above.
            unsafe { (*peer).give_back() };
        }
    });
}

extern "C" fn get_peer(pc: *mut ngx_peer_connection_t, data: *mut c_void) -> ngx_int_t {
    guard("a balanced peer", ERROR, || {
        // SAFETY: nginx hands in the connection that attach saw, and the other balancer's data.
        unsafe {
            let Some(peer) = known(pc) else { return ERROR };
            if let Some(rc) = (*peer).pause(&mut *pc) {
                return rc;
            }
            let Some(get) = (*peer).outer.and_then(|outer| outer.get) else { return ERROR };
            let rc = get(pc, data);
            if rc != nginx::OK {
                // It was told of an endpoint, and took none.
                (*peer).give_back();
            }
            rc
        }
    })
}

extern "C" fn free_peer(pc: *mut ngx_peer_connection_t, data: *mut c_void, state: ngx_uint_t) {
    guard("a balanced peer", (), || {
        // SAFETY: as above.
        unsafe {
            let Some(peer) = known(pc) else { return };
            if !(*peer).end(&mut *pc, state) {
                return;
            }
            if let Some(free) = (*peer).outer.and_then(|outer| outer.free) {
                free(pc, data, state);
            }
            // The mask of causes alone says whether there is another.
            (*pc).tries = 1;
        }
    });
}
