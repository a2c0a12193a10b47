//! Request bodies that are held before they go on: to be sent more than once, or because a filter says so.

use crate::guard::guard;
use crate::nginx::{self, DONE};
use ngx::ffi::{self, ngx_http_request_t, ngx_int_t, ngx_uint_t};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;

/// Envoy's body where that of the request is too long.
pub const TOO_LARGE: &str = "Payload Too Large";

/// Whether a request has a body, or may have one.
///
/// # Safety
/// `r` must be live.
pub unsafe fn is_there(r: *mut ngx_http_request_t) -> bool {
    // SAFETY: promised by the caller.
    unsafe {
        let head = &(*r).headers_in;
        // HTTP/2 says nothing of a body whose length is not known.
        let unknown = head.content_length_n < 0 && (*r).http_version >= ffi::NGX_HTTP_VERSION_20 as ngx_uint_t;
        head.content_length_n > 0 || head.chunked() != 0 || unknown
    }
}

/// Reads the body, as nginx's mirror module does, and comes back to [`super::decide::handler`].
///
/// # Safety
/// `r` must be live, in the phase of that handler.
pub unsafe fn hold(r: *mut ngx_http_request_t) -> ngx_int_t {
    // SAFETY: promised by the caller.
    unsafe {
        let rc = ffi::ngx_http_read_client_request_body(r, Some(is_read));
        if rc >= ffi::NGX_HTTP_SPECIAL_RESPONSE as ngx_int_t {
            return rc;
        }
        ffi::ngx_http_finalize_request(r, DONE);
        DONE
    }
}

extern "C" fn is_read(r: *mut ngx_http_request_t) {
    // SAFETY: nginx hands in a live request, whose phases it ran up to here.
    guard("the body of a request", (), || unsafe {
        (*r).set_preserve_body(1);
        (*r).write_event_handler = Some(ffi::ngx_http_core_run_phases);
        ffi::ngx_http_core_run_phases(r);
    });
}

/// A location's configuration with another limit.
struct Limited {
    /// All modules' parts of the location; that of the core is the next.
    parts: Vec<*mut c_void>,
    /// Where `parts` points to.
    _core: Box<ffi::ngx_http_core_loc_conf_t>,
}

thread_local! {
    /// Locations whose bodies are shorter than the configuration says: one for each limit, made once a worker.
    static LIMITED: RefCell<HashMap<(usize, u32), Limited>> = RefCell::default();
}

/// Has nginx answer 413 to a body of more than `max` bytes while it is read, whether its length was said or not.
///
/// # Safety
/// `r` must be live, its body not yet read.
pub unsafe fn limit(r: *mut ngx_http_request_t, max: u32) {
    // SAFETY: promised by the caller. The configuration lives as long as the worker, and so do the clones; an array of
    // it has a place for each http module.
    unsafe {
        let original = (*r).loc_conf;
        let core: *mut ffi::ngx_http_core_loc_conf_t = nginx::slot_of(original, &raw const ffi::ngx_http_core_module);
        (*r).loc_conf = LIMITED.with_borrow_mut(|limited| {
            let clone = limited.entry((original as usize, max)).or_insert_with(|| {
                let mut core = Box::new(*core);
                core.client_max_body_size = max.into();
                let mut parts = std::slice::from_raw_parts(original, ffi::ngx_http_max_module).to_vec();
                let index = (&raw const ffi::ngx_http_core_module).read().ctx_index;
                if let Some(part) = parts.get_mut(index) {
                    *part = std::ptr::from_mut(&mut *core).cast();
                }
                Limited { parts, _core: core }
            });
            clone.parts.as_mut_ptr()
        });
    }
}
