//! The one guard: every function that nginx calls runs its body in here, so that a panic never unwinds into nginx.

use ngx::ffi::{self, ngx_uint_t};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};

/// Panics that were caught in this process since it started.
static CAUGHT: AtomicU64 = AtomicU64::new(0);

/// How many panics this process has caught.
pub fn caught() -> u64 {
    CAUGHT.load(Ordering::Relaxed)
}

/// Runs `body`; a panic is logged at `crit`, counted, and answered with `otherwise`.
pub fn guard<T>(what: &'static str, otherwise: T, body: impl FnOnce() -> T) -> T {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(value) => value,
        Err(payload) => {
            CAUGHT.fetch_add(1, Ordering::Relaxed);
            let text = message(&payload);
            // SAFETY: nginx sets ngx_cycle before it calls any module, and it stays valid while one runs.
            let log = unsafe { (*ffi::ngx_cycle).log };
            crate::nginx::log(log, ffi::NGX_LOG_CRIT as ngx_uint_t, format_args!("amesh: {what} panicked: {text}"));
            otherwise
        }
    }
}

/// The text of a panic's payload.
pub fn message(payload: &Box<dyn std::any::Any + Send>) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
