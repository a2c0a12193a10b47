//! Answers that the data plane gives itself: redirects, direct responses, and what Envoy says where there is no upstream.

use crate::nginx::{self, str_of, ERROR, OK};
use ngx::ffi::{self, ngx_http_request_t, ngx_int_t, ngx_str_t};

/// Envoy's response flags (`%RESPONSE_FLAGS%`), as bits of a word.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Flags(u16);

impl Flags {
    /// `NR`: no route, or no filter chain.
    pub const NO_ROUTE: Flags = Flags(1);
    /// `UH`: no healthy upstream.
    pub const NO_HEALTHY_UPSTREAM: Flags = Flags(2);
    /// `NC`: the cluster does not exist.
    pub const NO_CLUSTER: Flags = Flags(4);
    /// `UF`: the connection to the upstream failed.
    pub const UPSTREAM_FAILURE: Flags = Flags(8);
    /// `UC`: the upstream ended the connection.
    pub const UPSTREAM_TERMINATION: Flags = Flags(16);
    /// `UT`: the upstream took too long.
    pub const UPSTREAM_TIMEOUT: Flags = Flags(32);
    /// `URX`: tries were used up.
    pub const RETRY_LIMIT: Flags = Flags(64);
    /// `DC`: the client went away.
    pub const DOWNSTREAM_TERMINATION: Flags = Flags(128);
    /// Not a flag of Envoy's, hence a word: configuration that is not supported and cannot be left out.
    pub const REFUSED: Flags = Flags(256);

    const NAMES: [(Flags, &'static str); 9] = [
        (Flags::NO_HEALTHY_UPSTREAM, "UH"),
        (Flags::UPSTREAM_FAILURE, "UF"),
        (Flags::NO_ROUTE, "NR"),
        (Flags::RETRY_LIMIT, "URX"),
        (Flags::NO_CLUSTER, "NC"),
        (Flags::UPSTREAM_TIMEOUT, "UT"),
        (Flags::UPSTREAM_TERMINATION, "UC"),
        (Flags::DOWNSTREAM_TERMINATION, "DC"),
        (Flags::REFUSED, "REFUSED"),
    ];

    /// These flags and others.
    pub fn with(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }

    /// Whether all of `other` are set.
    pub fn has(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Envoy's text: names joined by commas, `-` for none.
    pub fn text(self) -> String {
        let names: Vec<_> = Self::NAMES.iter().filter(|(f, _)| self.has(*f)).map(|(_, n)| *n).collect();
        if names.is_empty() {
            "-".to_owned()
        } else {
            names.join(",")
        }
    }
}

/// Adds a response header; `None` when memory is out.
///
/// # Safety
/// `r` must be a live request whose header is not sent; `value` must live as long as the request.
pub unsafe fn push_header(
    r: *mut ngx_http_request_t,
    key: ngx_str_t,
    value: ngx_str_t,
) -> Option<*mut ffi::ngx_table_elt_t> {
    // SAFETY: promised by the caller.
    unsafe {
        let h = ffi::ngx_list_push(&mut (*r).headers_out.headers).cast::<ffi::ngx_table_elt_t>();
        if h.is_null() {
            return None;
        }
        std::ptr::write_bytes(h, 0, 1);
        (*h).hash = 1;
        (*h).key = key;
        (*h).value = value;
        (*h).lowcase_key = key.data;
        Some(h)
    }
}

/// Sends a complete answer of ours. Headers other than `location` are the header filter's.
///
/// # Safety
/// `r` must be a live request whose header is not sent; the texts must live as long as it does.
pub unsafe fn send(r: *mut ngx_http_request_t, status: u16, body: ngx_str_t, location: ngx_str_t) -> ngx_int_t {
    // SAFETY: promised by the caller.
    unsafe { send_typed(r, status, body, location, "text/plain") }
}

/// [`send`] with another content type than `text/plain`.
///
/// # Safety
/// As [`send`].
pub unsafe fn send_typed(
    r: *mut ngx_http_request_t,
    status: u16,
    body: ngx_str_t,
    location: ngx_str_t,
    content_type: &'static str,
) -> ngx_int_t {
    // SAFETY: promised by the caller; nginx's own functions are called as ngx_http_send_response calls them.
    unsafe {
        let rc = ffi::ngx_http_discard_request_body(r);
        if rc != OK {
            return rc;
        }
        (*r).headers_out.status = ffi::ngx_uint_t::from(status);
        (*r).headers_out.content_length_n = body.len as ffi::off_t;
        if location.len > 0 {
            // nginx makes a relative location absolute only where `headers_out.location` is set; ours is complete.
            if push_header(r, str_of("location"), location).is_none() {
                return ERROR;
            }
        }
        if body.len == 0 {
            (*r).set_header_only(1);
        } else {
            (*r).headers_out.content_type = str_of(content_type);
            (*r).headers_out.content_type_len = content_type.len();
        }
        let rc = ffi::ngx_http_send_header(r);
        if rc == ERROR || rc > OK || (*r).header_only() != 0 {
            return rc;
        }
        let mut chain: ffi::ngx_chain_t = std::mem::zeroed();
        chain.buf = memory_buf(r, body);
        if chain.buf.is_null() {
            return ERROR;
        }
        ffi::ngx_http_output_filter(r, &mut chain)
    }
}

/// A last buffer over `body`, null when memory is out.
///
/// # Safety
/// `r` must be a live request; `body` must live as long.
pub unsafe fn memory_buf(r: *mut ngx_http_request_t, body: ngx_str_t) -> *mut ffi::ngx_buf_t {
    // SAFETY: promised by the caller.
    let pool = unsafe { (*r).pool };
    let b: *mut ffi::ngx_buf_t = nginx::pool_zeroed(pool);
    if !b.is_null() {
        // SAFETY: freshly made; nginx only reads through pos and last of a buffer marked as memory.
        unsafe {
            (*b).pos = body.data;
            (*b).last = body.data.add(body.len);
            (*b).start = body.data;
            (*b).end = (*b).last;
            (*b).set_memory(u32::from(body.len > 0));
            (*b).set_last_buf(u32::from(r == (*r).main));
            (*b).set_last_in_chain(1);
        }
    }
    b
}
