//! The upstream peer: `upstream x { amesh; }` and `upstream x { amesh cluster=NAME; }`.

use super::pool::{self, Key};
use super::{srv_conf_of, SrvConf};
use crate::guard::guard;
use crate::http::decide::{self, Ctx};
use crate::http::reply::Flags;
use crate::lb::{self, Picked};
use crate::nginx::{self, CONF_ERROR, CONF_OK, DONE, ERROR, OK};
use ngx::ffi::{
    self, ngx_conf_t, ngx_http_request_t, ngx_http_upstream_srv_conf_t, ngx_int_t, ngx_peer_connection_t, ngx_str_t,
    ngx_uint_t,
};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::os::raw::c_char;

/// Endpoints that one request remembers to have tried.
const MAX_TRIED: usize = 8;

/// What one request's upstream holds, in the request's pool.
struct Peer {
    request: *mut ngx_http_request_t,
    ctx: *mut Ctx,
    /// The endpoint of this try.
    picked: Picked,
    /// Cells of endpoints that were tried.
    tried: [u32; MAX_TRIED],
    tries: u32,
    /// The pool's key of this try's connection.
    key: Key,
    /// The endpoint's text, for logs and `$upstream_addr`.
    name: ngx_str_t,
    /// Between get and free.
    busy: bool,
    local: ffi::ngx_addr_t,
    local_sockaddr: libc::sockaddr_storage,
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
        let Some(ctx) = decide::ctx_or_new(r) else { return ERROR };
        if conf.cluster.len > 0 {
            // Plain nginx: no route was asked, the upstream names the cluster.
            (*ctx).set_cluster(conf.cluster);
            if let Some(mut picked) = (*ctx).picked.take() {
                lb::end(&mut picked, false, false);
            }
        }
        let peer: *mut Peer = nginx::pool_zeroed((*r).pool);
        if peer.is_null() {
            return ERROR;
        }
        (*peer).request = r;
        (*peer).ctx = ctx;
        (*ctx).attempts = 0;
        let u = (*r).upstream;
        let pc = &mut (*u).peer;
        pc.data = peer.cast();
        pc.get = Some(get_peer);
        pc.free = Some(free_peer);
        pc.set_session = Some(set_session);
        pc.save_session = Some(save_session);
        pc.tries = 1 + (*ctx).retries as ngx_uint_t;
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
        let r = peer.request;
        let ctx = &mut *peer.ctx;
        let picked = match ctx.picked.take() {
            // The first try was picked with the route, so that "none" could be answered as Envoy does.
            Some(picked) => picked,
            None => {
                let tried = &peer.tried[..(peer.tries as usize).min(MAX_TRIED)];
                match lb::pick(&ctx.upstream(), tried) {
                    Ok(picked) => picked,
                    Err(reason) => {
                        ctx.flags = ctx.flags.with(reason.flags());
                        return nginx::BUSY;
                    }
                }
            }
        };
        if (peer.tries as usize) < MAX_TRIED {
            peer.tried[peer.tries as usize] = picked.cell;
        }
        peer.tries += 1;
        ctx.attempts += 1;
        peer.picked = picked;
        let Some(name) = peer.picked.text((*r).pool) else {
            lb::end(&mut peer.picked, true, false);
            return ERROR;
        };
        peer.name = name;
        ctx.endpoint = name;
        pc.sockaddr = std::ptr::from_mut(&mut peer.picked.sockaddr).cast();
        pc.socklen = peer.picked.socklen;
        pc.name = &mut peer.name;
        pc.set_cached(0);
        pc.connection = std::ptr::null_mut();
        pc.local = peer.picked.bind_addr(&mut peer.local, &mut peer.local_sockaddr);
        peer.busy = true;
        tuned((*r).upstream, ctx, peer.picked.connect_timeout, true);
        peer.key = Key { cluster: ctx.cluster_hash, address: peer.picked.address_hash() };
        match pool::take(peer.key, pc.log) {
            Some(c) => {
                pc.connection = c;
                pc.set_cached(1);
                DONE
            }
            None => OK,
        }
    }
}

extern "C" fn free_peer(pc: *mut ngx_peer_connection_t, data: *mut c_void, state: ngx_uint_t) {
    // SAFETY: nginx hands in what init put there.
    guard("the upstream peer", (), || unsafe { free(&mut *pc, &mut *data.cast::<Peer>(), state) });
}

unsafe fn free(pc: &mut ngx_peer_connection_t, peer: &mut Peer, state: ngx_uint_t) {
    // SAFETY: the request and its context outlive the peer.
    unsafe {
        let u = (*peer.request).upstream;
        let ctx = &mut *peer.ctx;
        let failed = state & ffi::NGX_PEER_FAILED as ngx_uint_t != 0;
        if peer.busy {
            peer.busy = false;
            let connected = !pc.connection.is_null() && ((*u).request_sent() != 0 || pc.cached() != 0);
            lb::end(&mut peer.picked, failed, connected);
            if failed && connected && pc.cached() == 0 {
                // What was sent is not sent again: only a failed connection is tried elsewhere. nginx calls both
                // "error", so the mask says no here. A kept connection that had ended meanwhile is tried anew.
                tuned(u, ctx, peer.picked.connect_timeout, false);
            }
            if failed {
                ctx.flags =
                    ctx.flags.with(if connected { Flags::UPSTREAM_TERMINATION } else { Flags::UPSTREAM_FAILURE });
            }
        }
        let c = pc.connection;
        if !c.is_null() && pool::reusable(u, c, failed) {
            let limit = peer.picked.max_requests_per_connection;
            if limit == 0 || (*c).requests < limit as ngx_uint_t {
                pool::put(peer.key, c, peer.picked.idle_timeout);
                pc.connection = std::ptr::null_mut();
            }
        }
        if failed && pc.tries > 0 {
            pc.tries -= 1;
        }
    }
}

/// What differs between two clones of one location's upstream configuration.
#[derive(PartialEq, Eq, Hash)]
struct Tuning {
    conf: usize,
    connect_timeout: u64,
    retry: bool,
}

thread_local! {
    /// Upstream configurations of nginx with the time-outs of clusters and retry masks of ours: a few for each
    /// location, made once a worker, so that a request costs a look-up and no copy.
    static TUNED: RefCell<HashMap<Tuning, Box<ffi::ngx_http_upstream_conf_t>>> = RefCell::default();
}

/// The clone of the location's configuration with this connect time-out, that tries again or does not.
unsafe fn tuned(u: *mut ffi::ngx_http_upstream_t, ctx: &mut Ctx, connect_timeout: u64, retry: bool) {
    // SAFETY: promised by the caller.
    unsafe {
        if ctx.upstream_conf.is_null() {
            ctx.upstream_conf = (*u).conf;
        }
        let original = ctx.upstream_conf;
        (*u).conf = TUNED.with_borrow_mut(|tuned| {
            let clone = tuned.entry(Tuning { conf: original as usize, connect_timeout, retry }).or_insert_with(|| {
                let mut clone = Box::new(*original);
                if connect_timeout > 0 {
                    clone.connect_timeout = connect_timeout as ffi::ngx_msec_t;
                }
                clone.next_upstream = if retry {
                    (ffi::NGX_HTTP_UPSTREAM_FT_ERROR | ffi::NGX_HTTP_UPSTREAM_FT_TIMEOUT) as ngx_uint_t
                } else {
                    0
                };
                clone
            });
            std::ptr::from_mut(&mut **clone)
        });
    }
}
