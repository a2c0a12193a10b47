//! What is known of a client's connection: where it was going, and which listener and filter chain take it.

use crate::guard::guard;
use crate::nginx;
use crate::original_dst;
use amesh_dataplane::listener::{ConnectionInfo, Direction, Transport};
use ngx::ffi::{self, ngx_connection_t, ngx_listening_t, ngx_pool_t, ngx_str_t};
use std::ffi::c_void;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

/// A captured connection. Lives in its connection's pool; the front door makes it, or the first request.
pub struct Captured {
    /// Which side it came from.
    pub direction: Direction,
    /// Original destination; the local address where nothing was redirected.
    pub destination: SocketAddr,
    /// The client.
    pub source: SocketAddr,
    /// SNI, lower case; empty: none.
    pub server_name: ngx_str_t,
    /// TLS or not.
    pub tls: bool,
    /// ALPN, or what the HTTP inspector found, joined by commas.
    pub application_protocols: ngx_str_t,
    /// Zone version of the match below; 0: not matched yet.
    pub matched_at: u64,
    /// The listener.
    pub listener: ngx_str_t,
    /// Index of the filter chain, `usize::MAX` for the default one.
    pub chain: usize,
    /// How full its token bucket is, where a rate limit is one of connections.
    pub tokens: AtomicU64,
}

impl Captured {
    /// The same again, for a question: what becomes of it changes nothing here.
    pub fn again(&self) -> Captured {
        let tokens = AtomicU64::new(self.tokens.load(Ordering::Relaxed));
        Captured { tokens, ..*self }
    }

    /// What the match of a filter chain looks at.
    pub fn with_info<T>(&self, f: impl FnOnce(&ConnectionInfo<'_>) -> T) -> T {
        // SAFETY: both texts live in the connection's pool, as this does.
        let (name, protocols) = unsafe { (nginx::text(self.server_name), nginx::text(self.application_protocols)) };
        let mut list = [""; 8];
        let mut n = 0;
        for p in protocols.split(',').filter(|p| !p.is_empty()).take(list.len()) {
            list[n] = p;
            n += 1;
        }
        f(&ConnectionInfo {
            destination: self.destination,
            source: self.source,
            direct_source: self.source,
            server_name: (!name.is_empty()).then_some(name),
            transport_protocol: if self.tls { Transport::Tls } else { Transport::Raw },
            application_protocols: &list[..n],
        })
    }
}

extern "C" fn marker(_: *mut c_void) {}

/// Ties a captured connection to its pool, where [`find`] finds it again. `None` when memory is out.
///
/// # Safety
/// `c` must be an open connection with a pool.
pub unsafe fn attach(c: *mut ngx_connection_t, captured: Captured) -> Option<*mut Captured> {
    const { assert!(!std::mem::needs_drop::<Captured>()) };
    // SAFETY: promised by the caller; the cleanup's data is as large as asked for, and its drop does nothing.
    unsafe {
        let cleanup = ffi::ngx_pool_cleanup_add((*c).pool, size_of::<Captured>());
        if cleanup.is_null() {
            return None;
        }
        let place = (*cleanup).data.cast::<Captured>();
        place.write(captured);
        (*cleanup).handler = Some(marker);
        Some(place)
    }
}

/// What [`attach`] tied to a connection.
///
/// # Safety
/// `c` must be an open connection with a pool.
pub unsafe fn find(c: *mut ngx_connection_t) -> Option<*mut Captured> {
    // SAFETY: nginx keeps the list; a cleanup with our handler has our data.
    unsafe {
        let pool: *mut ngx_pool_t = (*c).pool;
        let mut cleanup = (*pool).cleanup;
        while !cleanup.is_null() {
            if (*cleanup).handler.is_some_and(|h| std::ptr::fn_addr_eq(h, marker as extern "C" fn(*mut c_void))) {
                return Some((*cleanup).data.cast());
            }
            cleanup = (*cleanup).next;
        }
        None
    }
}

/// A connection that no front door has seen: HTTP on a listener of nginx's own.
///
/// # Safety
/// `c` must be an open connection with a pool.
pub unsafe fn observe(c: *mut ngx_connection_t, direction: Direction) -> Option<Captured> {
    // SAFETY: promised by the caller.
    unsafe {
        let local = original_dst::local_addr((*c).fd)?;
        let source = original_dst::peer_addr(c)?;
        Some(Captured {
            direction,
            destination: original_dst::original_dst(c).unwrap_or(local),
            source,
            server_name: nginx::EMPTY,
            tls: !(*c).ssl.is_null(),
            application_protocols: nginx::str_of("http/1.1"),
            matched_at: 0,
            listener: nginx::EMPTY,
            chain: 0,
            tokens: AtomicU64::new(0),
        })
    }
}

/// Puts [`refuse`] before the listeners of `internal` servers: only the front door, which calls nginx's own handler, gets in.
pub fn guard_internal_listeners(cycle: *mut ffi::ngx_cycle_t) {
    // SAFETY: nginx hands in the cycle of this worker; its listeners stay as long.
    unsafe {
        let Some(internal) = super::main_conf(cycle).map(|m| &m.internal) else { return };
        let listening =
            std::slice::from_raw_parts_mut((*cycle).listening.elts.cast::<ngx_listening_t>(), (*cycle).listening.nelts);
        for ls in listening {
            let addr = std::slice::from_raw_parts(ls.sockaddr.cast::<u8>(), ls.socklen as usize);
            let ours = ls.type_ == libc::SOCK_STREAM && internal.iter().any(|i| i.sockaddr == addr);
            if ours && ls.handler.is_some_and(is_http) {
                ls.handler = Some(refuse);
            }
        }
    }
}

fn is_http(handler: unsafe extern "C" fn(*mut ngx_connection_t)) -> bool {
    std::ptr::fn_addr_eq(handler, ffi::ngx_http_init_connection as unsafe extern "C" fn(*mut ngx_connection_t))
}

/// Closes a connection that somebody made to an `internal` listener: it is no way round the mesh.
extern "C" fn refuse(c: *mut ngx_connection_t) {
    guard("an internal listener", (), || {
        // SAFETY: nginx hands in the connection that it accepted.
        unsafe {
            let pool = (*c).pool;
            ffi::ngx_close_connection(c);
            if !pool.is_null() {
                ffi::ngx_destroy_pool(pool);
            }
        }
    });
}

/// The listening socket of an `internal` server that this worker serves, for HTTP/1 or for HTTP/2.
///
/// # Safety
/// `cycle` must be the worker's.
pub unsafe fn internal_listener(cycle: *mut ffi::ngx_cycle_t, http2: bool) -> Option<*mut ngx_listening_t> {
    // SAFETY: promised by the caller.
    unsafe {
        let internal = &super::main_conf(cycle)?.internal;
        let listening =
            std::slice::from_raw_parts_mut((*cycle).listening.elts.cast::<ngx_listening_t>(), (*cycle).listening.nelts);
        listening
            .iter_mut()
            .find(|ls| {
                let addr = std::slice::from_raw_parts(ls.sockaddr.cast::<u8>(), ls.socklen as usize);
                // With reuseport each worker has a clone of its own; the others' are not ours to use.
                (ls.reuseport() == 0 || ls.worker == ffi::ngx_worker)
                    && internal.iter().any(|i| i.sockaddr == addr && i.http2 == http2)
            })
            .map(std::ptr::from_mut)
    }
}
