//! Small bridges to nginx's C: strings, pools, logs, contexts. What nginx has as a macro stands here as a function.

use ngx::ffi::{self, ngx_log_t, ngx_pool_t, ngx_str_t, ngx_uint_t};
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::os::raw::c_char;

pub use ffi::{ngx_int_t, NGX_AGAIN, NGX_BUSY, NGX_DECLINED, NGX_DONE, NGX_ERROR, NGX_OK};

/// `NGX_OK` and its like as the type that callbacks return.
pub const OK: ngx_int_t = NGX_OK as ngx_int_t;
/// See [`OK`].
pub const ERROR: ngx_int_t = NGX_ERROR as ngx_int_t;
/// See [`OK`].
pub const AGAIN: ngx_int_t = NGX_AGAIN as ngx_int_t;
/// See [`OK`].
pub const DONE: ngx_int_t = NGX_DONE as ngx_int_t;
/// See [`OK`].
pub const DECLINED: ngx_int_t = NGX_DECLINED as ngx_int_t;
/// See [`OK`].
pub const BUSY: ngx_int_t = NGX_BUSY as ngx_int_t;

/// `NGX_CONF_OK`.
pub const CONF_OK: *mut c_char = std::ptr::null_mut();
/// `NGX_CONF_ERROR`.
pub const CONF_ERROR: *mut c_char = usize::MAX as *mut c_char;

/// An `ngx_str_t` of static text.
pub const fn str_of(s: &'static str) -> ngx_str_t {
    ngx_str_t { len: s.len(), data: s.as_ptr() as *mut u8 }
}

/// The empty `ngx_str_t`.
pub const EMPTY: ngx_str_t = ngx_str_t { len: 0, data: std::ptr::null_mut() };

/// The bytes of an `ngx_str_t`.
///
/// # Safety
/// `s` must point to `len` readable bytes that outlive `'a`.
pub unsafe fn bytes<'a>(s: ngx_str_t) -> &'a [u8] {
    if s.len == 0 || s.data.is_null() {
        return &[];
    }
    // SAFETY: promised by the caller.
    unsafe { std::slice::from_raw_parts(s.data, s.len) }
}

/// The text of an `ngx_str_t`; what is not UTF-8 reads as empty.
///
/// # Safety
/// As [`bytes`].
pub unsafe fn text<'a>(s: ngx_str_t) -> &'a str {
    // SAFETY: promised by the caller.
    let bytes = unsafe { bytes(s) };
    if bytes.is_ascii() {
        // Nearly always, and found out in words, not in bytes.
        // SAFETY: ASCII is UTF-8.
        return unsafe { std::str::from_utf8_unchecked(bytes) };
    }
    std::str::from_utf8(bytes).unwrap_or("")
}

/// Copies bytes into a pool; `None` when memory is out.
pub fn pool_str(pool: *mut ngx_pool_t, s: &[u8]) -> Option<ngx_str_t> {
    if s.is_empty() {
        return Some(EMPTY);
    }
    // SAFETY: the pool is alive: it belongs to the request, connection or cycle that is being served.
    let data = unsafe { ffi::ngx_pnalloc(pool, s.len()) }.cast::<u8>();
    if data.is_null() {
        return None;
    }
    // SAFETY: freshly allocated, of this length.
    unsafe { std::ptr::copy_nonoverlapping(s.as_ptr(), data, s.len()) };
    Some(ngx_str_t { len: s.len(), data })
}

/// Copies what rkyv wrote into a pool, aligned for any archived type; `None` when memory is out.
pub fn pool_aligned(pool: *mut ngx_pool_t, bytes: &[u8]) -> Option<ngx_str_t> {
    // SAFETY: the pool is alive, see pool_str; the room is as large as what is copied.
    unsafe {
        let place = ffi::ngx_pmemalign(pool, bytes.len(), 16).cast::<u8>();
        if place.is_null() {
            return None;
        }
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len());
        Some(ngx_str_t { len: bytes.len(), data: place })
    }
}

/// A zeroed `T` from a pool, null when memory is out. `T` is dropped by nobody: it must not own anything,
/// and all zeroes must be a value of it.
pub fn pool_zeroed<T>(pool: *mut ngx_pool_t) -> *mut T {
    const { assert!(!std::mem::needs_drop::<T>()) };
    // SAFETY: the pool is alive, see pool_str.
    unsafe { ffi::ngx_pcalloc(pool, size_of::<T>()) }.cast()
}

/// Moves `value` into a pool; it is dropped with the pool. `None` when memory is out.
pub fn pool_value<T>(pool: *mut ngx_pool_t, value: T) -> Option<*mut T> {
    extern "C" fn drop_value<T>(data: *mut c_void) {
        crate::guard::guard("a pool cleanup", (), || {
            // SAFETY: written below, dropped once, by the pool.
            unsafe { std::ptr::drop_in_place(data.cast::<T>()) }
        });
    }
    // SAFETY: the pool is alive; the cleanup's data has room for a T.
    unsafe {
        let place = ffi::ngx_palloc(pool, size_of::<T>()).cast::<T>();
        let cleanup = ffi::ngx_pool_cleanup_add(pool, 0);
        if place.is_null() || cleanup.is_null() {
            return None;
        }
        place.write(value);
        (*cleanup).data = place.cast();
        (*cleanup).handler = Some(drop_value::<T>);
        Some(place)
    }
}

/// Writes a line to an nginx log, if its level lets it through.
pub fn log(log: *mut ngx_log_t, level: ngx_uint_t, message: std::fmt::Arguments<'_>) {
    // SAFETY: callers hand in the log of a live cycle, connection or configuration.
    unsafe {
        if log.is_null() || level > (*log).log_level {
            return;
        }
        let mut buffer = [const { MaybeUninit::<u8>::uninit() }; ngx::log::LOG_BUFFER_SIZE];
        ngx::log::log_error(level, log, 0, ngx::log::write_fmt(&mut buffer, message));
    }
}

/// A configuration error: logged with file and line, as nginx does for its own.
pub fn conf_error(cf: *mut ffi::ngx_conf_t, message: std::fmt::Arguments<'_>) -> *mut c_char {
    ngx::ngx_conf_log_error!(ffi::NGX_LOG_EMERG, cf, "{message}");
    CONF_ERROR
}

/// A warning, with file and line.
pub fn conf_warn(cf: *mut ffi::ngx_conf_t, message: std::fmt::Arguments<'_>) {
    ngx::ngx_conf_log_error!(ffi::NGX_LOG_WARN, cf, "{message}");
}

/// The words of the directive that is being parsed, its name first.
///
/// # Safety
/// `cf` must be the configuration that nginx handed to a directive's handler.
pub unsafe fn conf_args<'a>(cf: *mut ffi::ngx_conf_t) -> &'a [ngx_str_t] {
    // SAFETY: nginx fills args with ngx_str_t.
    unsafe { (*(*cf).args).as_slice::<ngx_str_t>() }
}

/// A module's configuration or context out of nginx's array of them.
///
/// # Safety
/// `array` must be such an array with an entry of type `T` (or null) at the module's `ctx_index`.
pub unsafe fn slot_of<T>(array: *mut *mut c_void, module: *const ffi::ngx_module_t) -> *mut T {
    // SAFETY: promised by the caller.
    unsafe { (*array.add((*module).ctx_index)).cast() }
}

/// `ngx_handle_read_event` and [`ERROR`] as a bool.
///
/// # Safety
/// `ev` must be the event of an open connection.
pub unsafe fn handle_read_event(ev: *mut ffi::ngx_event_t) -> bool {
    // SAFETY: promised by the caller.
    unsafe { ffi::ngx_handle_read_event(ev, 0) == OK }
}

/// Unix time in ms, as nginx knows it: of this turn of the event loop.
pub fn unix_ms() -> u64 {
    // SAFETY: nginx sets its cached time before anything else, and swaps it in one store.
    let now = unsafe { *ffi::ngx_cached_time };
    u64::try_from(now.sec).unwrap_or(0) * 1000 + now.msec as u64
}
