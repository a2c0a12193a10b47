//! Idle connections to endpoints, kept by each worker for itself.
//!
//! nginx's `keepalive` compares the socket address alone and has one set of limits for an upstream block. Here a
//! connection is found again under its [`Key`]: cluster, address and transport identity. The limits are its cluster's.

use crate::guard::guard;
use crate::nginx::{self, OK};
use ngx::ffi::{self, ngx_connection_t, ngx_event_t, ngx_msec_t};
use rustc_hash::FxHashMap;
use std::cell::RefCell;

/// Idle connections that one worker keeps in all; the one that has been idle longest makes room.
const MAX_IDLE: usize = 1024;
/// Idle connections to one endpoint.
const MAX_IDLE_PER_ENDPOINT: usize = 256;
/// Lists of idle connections, of which more than half are empty then, and go.
const MAX_LISTS: usize = 2 * MAX_IDLE;

/// What two requests must agree on to use one connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Key {
    /// Hash of the cluster's name: limits, source address and transport are the cluster's.
    pub cluster: u64,
    /// Hash of the endpoint's address.
    pub address: u64,
    /// It speaks HTTP/2.
    pub http2: bool,
}

struct Idle {
    connection: *mut ngx_connection_t,
    /// Order of becoming idle.
    turn: u64,
}

#[derive(Default)]
struct Pool {
    /// By key. A list that is empty stays for the next connection, see [`MAX_LISTS`].
    idle: FxHashMap<Key, Vec<Idle>>,
    keys: FxHashMap<usize, Key>,
    turn: u64,
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::default();
}

/// An idle connection, the one used last first. It is open, and out of the pool.
pub fn take(key: Key, log: *mut ffi::ngx_log_t) -> Option<*mut ngx_connection_t> {
    let c = POOL.with_borrow_mut(|pool| {
        let idle = pool.idle.get_mut(&key)?.pop()?;
        pool.keys.remove(&(idle.connection as usize));
        Some(idle.connection)
    })?;
    // SAFETY: the pool holds open connections alone: on_event takes out the ones that end.
    unsafe {
        (*c).set_idle(0);
        (*c).sent = 0;
        (*c).data = std::ptr::null_mut();
        (*c).log = log;
        (*(*c).read).log = log;
        (*(*c).write).log = log;
        (*(*c).pool).log = log;
        if (*(*c).read).timer_set() != 0 {
            ffi::ngx_del_timer((*c).read);
        }
    }
    Some(c)
}

/// Keeps a connection that has nothing more to say, for `idle_timeout` ms (0: for as long as the peer does).
///
/// # Safety
/// `c` must be open, with no event pending that somebody else waits for; it belongs to the pool afterwards.
pub unsafe fn put(key: Key, c: *mut ngx_connection_t, idle_timeout: u64) {
    let evicted = POOL.with_borrow_mut(|pool| {
        let evicted = match pool.idle.get_mut(&key) {
            Some(list) if list.len() >= MAX_IDLE_PER_ENDPOINT => Some(list.remove(0).connection),
            _ if pool.keys.len() >= MAX_IDLE => pool.oldest(),
            _ => None,
        };
        if let Some(old) = evicted {
            pool.forget(old);
        }
        if pool.idle.len() >= MAX_LISTS {
            pool.idle.retain(|_, list| !list.is_empty());
        }
        pool.turn += 1;
        let turn = pool.turn;
        pool.idle.entry(key).or_default().push(Idle { connection: c, turn });
        pool.keys.insert(c as usize, key);
        evicted
    });
    // SAFETY: both are open connections; the caller gave `c` away, the pool owned `evicted`.
    unsafe {
        if let Some(old) = evicted {
            close(old);
        }
        let read = (*c).read;
        let write = (*c).write;
        if (*read).timer_set() != 0 {
            ffi::ngx_del_timer(read);
        }
        if (*write).timer_set() != 0 {
            ffi::ngx_del_timer(write);
        }
        if idle_timeout > 0 {
            ffi::ngx_add_timer(read, idle_timeout as ngx_msec_t);
        }
        (*write).handler = Some(on_write);
        (*read).handler = Some(on_event);
        let log = (*ffi::ngx_cycle).log;
        (*c).data = std::ptr::null_mut();
        (*c).set_idle(1);
        (*c).log = log;
        (*read).log = log;
        (*write).log = log;
        (*(*c).pool).log = log;
        if (*read).ready() != 0 {
            check(read);
        }
    }
}

impl Pool {
    fn oldest(&self) -> Option<*mut ngx_connection_t> {
        self.idle.values().flatten().min_by_key(|i| i.turn).map(|i| i.connection)
    }

    fn forget(&mut self, c: *mut ngx_connection_t) -> bool {
        let Some(key) = self.keys.remove(&(c as usize)) else { return false };
        if let Some(list) = self.idle.get_mut(&key) {
            list.retain(|i| i.connection != c);
        }
        true
    }
}

extern "C" fn on_write(_: *mut ngx_event_t) {}

extern "C" fn on_event(ev: *mut ngx_event_t) {
    // SAFETY: nginx calls this for the read event of a connection that `put` took.
    guard("an idle upstream connection", (), || unsafe { check(ev) });
}

/// Closes an idle connection that ended, timed out, or said something that nobody asked for.
unsafe fn check(ev: *mut ngx_event_t) {
    // SAFETY: the event of a connection in the pool, see the callers.
    unsafe {
        let c = (*ev).data.cast::<ngx_connection_t>();
        if (*c).close() == 0 && (*ev).timedout() == 0 {
            let mut byte = 0u8;
            let n = libc::recv((*c).fd, std::ptr::from_mut(&mut byte).cast(), 1, libc::MSG_PEEK);
            if n == -1 && ngx::ffi::ngx_socket_errno() == libc::EAGAIN {
                (*ev).set_ready(0);
                if ffi::ngx_handle_read_event(ev, 0) == OK {
                    return;
                }
            }
        }
        if POOL.with_borrow_mut(|pool| pool.forget(c)) {
            close(c);
        }
    }
}

/// Closes an upstream connection and its pool.
///
/// # Safety
/// `c` must be open and owned by the caller.
pub unsafe fn close(c: *mut ngx_connection_t) {
    // SAFETY: promised by the caller.
    unsafe {
        let pool = (*c).pool;
        ffi::ngx_close_connection(c);
        if !pool.is_null() {
            ffi::ngx_destroy_pool(pool);
        }
    }
}

/// How many connections this worker keeps idle.
pub fn len() -> usize {
    POOL.with_borrow(|pool| pool.keys.len())
}

/// Whether a connection may be kept after a request: the conditions of `ngx_http_upstream_free_keepalive_peer`.
///
/// # Safety
/// `u` must be the upstream of a request that has just let go of `c`.
pub unsafe fn reusable(u: *const ffi::ngx_http_upstream_t, c: *mut ngx_connection_t, failed: bool) -> bool {
    // SAFETY: promised by the caller.
    unsafe {
        let (read, write) = ((*c).read, (*c).write);
        !failed
            && (*read).eof() == 0
            && (*read).error() == 0
            && (*read).timedout() == 0
            && (*write).error() == 0
            && (*write).timedout() == 0
            && (*u).keepalive() != 0
            && (*u).request_body_sent() != 0
            && ffi::ngx_terminate == 0
            && ffi::ngx_exiting == 0
            && nginx::handle_read_event(read)
    }
}
