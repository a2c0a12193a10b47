//! nginx's configuration of an upstream, as clusters and policies want it for one try.

use super::ctx::Ctx;
use ngx::ffi::{self, ngx_uint_t};
use rustc_hash::FxHashMap;
use std::cell::RefCell;

/// Causes after which nginx tries again where the policy has said so. Envoy does not ask whether a method is idempotent.
const RETRIED: ngx_uint_t = (ffi::NGX_HTTP_UPSTREAM_FT_ERROR
    | ffi::NGX_HTTP_UPSTREAM_FT_TIMEOUT
    | ffi::NGX_HTTP_UPSTREAM_FT_INVALID_HEADER
    | ffi::NGX_HTTP_UPSTREAM_FT_NON_IDEMPOTENT) as ngx_uint_t;

/// What differs between two clones of one location's upstream configuration.
#[derive(PartialEq, Eq, Hash)]
struct Tuning {
    conf: usize,
    redirected: bool,
    connect_timeout: u64,
    idle_timeout: u64,
    retry: bool,
}

thread_local! {
    /// Upstream configurations of nginx with the time-outs of clusters and retry masks of ours: a few for each
    /// location, made once a worker, so that a request costs a look-up and no copy.
    static TUNED: RefCell<FxHashMap<Tuning, Box<ffi::ngx_http_upstream_conf_t>>> = RefCell::default();
}

/// The clone of the location's configuration with this connect time-out, that tries again or does not.
///
/// # Safety
/// `u` must be the upstream of the live request whose context `ctx` is.
pub unsafe fn tuned(u: *mut ffi::ngx_http_upstream_t, ctx: &mut Ctx, connect_timeout: u64, retry: bool) {
    // SAFETY: promised by the caller.
    unsafe {
        if ctx.upstream_conf.is_null() {
            ctx.upstream_conf = (*u).conf;
        }
        let original = ctx.upstream_conf;
        (*u).conf = TUNED.with_borrow_mut(|tuned| {
            let idle_timeout = match ctx.per_try_idle_timeout {
                0 => ctx.idle_timeout,
                ms => ms,
            };
            let tuning =
                Tuning { conf: original as usize, redirected: ctx.redirected, connect_timeout, idle_timeout, retry };
            let clone = tuned.entry(tuning).or_insert_with(|| {
                let mut clone = Box::new(*original);
                if connect_timeout > 0 {
                    clone.connect_timeout = connect_timeout as ffi::ngx_msec_t;
                }
                if idle_timeout > 0 {
                    clone.read_timeout = idle_timeout as ffi::ngx_msec_t;
                }
                clone.next_upstream = if retry { RETRIED } else { 0 };
                if ctx.redirected {
                    clone.ignore_headers &= !(ffi::NGX_HTTP_UPSTREAM_IGN_XA_REDIRECT as ngx_uint_t);
                }
                clone
            });
            std::ptr::from_mut(&mut **clone)
        });
    }
}
