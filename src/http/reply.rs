//! Answers that the data plane gives itself: redirects, direct responses, and what Envoy says where there is no upstream.

use super::ctx::Reply;
use crate::nginx::{self, pool_str, str_of, EMPTY, ERROR, OK};
use ngx::ffi::{self, ngx_http_request_t, ngx_int_t, ngx_str_t};

/// Envoy's response flags (`%RESPONSE_FLAGS%`), in the order in which they were set: a byte each, 0 for none.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Flags([u8; 8]);

impl Flags {
    /// None: `-`.
    pub const NONE: Flags = Flags([0; 8]);
    /// `UH`: no healthy upstream.
    pub const NO_HEALTHY_UPSTREAM: Flags = Flags::one(1);
    /// `UT`: the upstream took too long.
    pub const UPSTREAM_TIMEOUT: Flags = Flags::one(2);
    /// `UF`: the connection to the upstream failed.
    pub const UPSTREAM_FAILURE: Flags = Flags::one(3);
    /// `UC`: the upstream ended the connection.
    pub const UPSTREAM_TERMINATION: Flags = Flags::one(4);
    /// `NR`: no route, or no filter chain.
    pub const NO_ROUTE: Flags = Flags::one(5);
    /// `DI`: a fault made it wait.
    pub const DELAY_INJECTED: Flags = Flags::one(6);
    /// `FI`: a fault answered it.
    pub const FAULT_INJECTED: Flags = Flags::one(7);
    /// `DC`: the client went away.
    pub const DOWNSTREAM_TERMINATION: Flags = Flags::one(8);
    /// `URX`: tries were used up.
    pub const RETRY_LIMIT: Flags = Flags::one(9);
    /// `SI`: nothing came for too long.
    pub const STREAM_IDLE: Flags = Flags::one(10);
    /// `UPE`: the upstream's answer is no HTTP.
    pub const UPSTREAM_PROTOCOL_ERROR: Flags = Flags::one(11);
    /// `NC`: the cluster does not exist.
    pub const NO_CLUSTER: Flags = Flags::one(12);
    /// Not a flag of Envoy's, hence a word: configuration that is not supported and cannot be left out.
    pub const REFUSED: Flags = Flags::one(13);
    /// `UO`: the cluster has no room for more.
    pub const UPSTREAM_OVERFLOW: Flags = Self::one(14);

    /// `RL`: there was no token for it.
    pub const RATE_LIMITED: Flags = Self::one(15);
    /// `UR`: the upstream reset the connection.
    pub const UPSTREAM_REMOTE_RESET: Flags = Self::one(16);
    /// `DT`: the connection lasted too long.
    pub const DURATION_TIMEOUT: Flags = Self::one(17);

    const NAMES: [&'static str; 17] =
        ["UH", "UT", "UF", "UC", "NR", "DI", "FI", "DC", "URX", "SI", "UPE", "NC", "REFUSED", "UO", "RL", "UR", "DT"];

    const fn one(number: u8) -> Flags {
        Flags([number, 0, 0, 0, 0, 0, 0, 0])
    }

    /// These flags and, after them, others. More than eight are never set for one request.
    pub fn with(mut self, other: Flags) -> Flags {
        for number in other.0.into_iter().filter(|n| *n != 0) {
            if let Some(place) = self.0.iter_mut().find(|n| **n == number || **n == 0) {
                *place = number;
            }
        }
        self
    }

    /// Whether all of `other` are set.
    pub fn has(self, other: Flags) -> bool {
        other.0.into_iter().all(|number| number == 0 || self.0.contains(&number))
    }

    /// Envoy's text: names joined by commas, `-` for none.
    pub fn text(self) -> String {
        let names = self.0.into_iter().filter_map(|n| Self::NAMES.get(usize::from(n).checked_sub(1)?).copied());
        match names.collect::<Vec<_>>().join(",") {
            none if none.is_empty() => "-".to_owned(),
            some => some,
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

/// Gives a local reply (`Http::Utility::sendLocalReply`): calls of gRPC get a status of gRPC in the head.
///
/// # Safety
/// As [`send_typed`].
pub unsafe fn local(r: *mut ngx_http_request_t, reply: &Reply, grpc: bool) -> ngx_int_t {
    // SAFETY: promised by the caller.
    unsafe {
        if !grpc || reply.headers_only {
            let content_type = if reply.content_type.len > 0 { reply.content_type } else { str_of("text/plain") };
            return send_typed(r, reply.status, reply.body, reply.location, content_type);
        }
        if reply.location.len > 0 && push_header(r, str_of("location"), reply.location).is_none() {
            return ERROR;
        }
        if grpc_head(r, reply.grpc_status.unwrap_or_else(|| grpc_status(reply.status)), reply.body).is_none() {
            return ERROR;
        }
        send_typed(r, 200, EMPTY, EMPTY, EMPTY)
    }
}

/// Puts a status of gRPC into the head of a response. `None` when memory is out.
///
/// # Safety
/// `r` must be a live request whose header is not sent.
pub unsafe fn grpc_head(r: *mut ngx_http_request_t, status: u32, message: ngx_str_t) -> Option<()> {
    // SAFETY: promised by the caller.
    unsafe {
        let pool = (*r).pool;
        (*r).headers_out.content_type = str_of("application/grpc");
        (*r).headers_out.content_type_len = (*r).headers_out.content_type.len;
        (*r).headers_out.content_type_lowcase = std::ptr::null_mut();
        push_header(r, str_of("grpc-status"), pool_str(pool, status.to_string().as_bytes())?)?;
        if message.len > 0 {
            push_header(r, str_of("grpc-message"), pool_str(pool, &percent_encoded(nginx::bytes(message)))?)?;
        }
        Some(())
    }
}

/// `grpc-message`: everything but visible ASCII is `%` and two digits (gRPC over HTTP/2, "Responses").
fn percent_encoded(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for &b in text {
        match b {
            b' '..=b'}' if b != b'%' => out.push(b),
            _ => out.extend_from_slice(format!("%{b:02X}").as_bytes()),
        }
    }
    out
}

/// The status of gRPC for a status of HTTP (`Grpc::Utility::httpToGrpcStatus`).
pub fn grpc_status(status: u16) -> u32 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// Sends a complete answer of ours. Headers other than `location` are the header filter's.
///
/// # Safety
/// `r` must be a live request whose header is not sent; the texts must live as long as it does.
pub unsafe fn send_typed(
    r: *mut ngx_http_request_t,
    status: u16,
    body: ngx_str_t,
    location: ngx_str_t,
    content_type: ngx_str_t,
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
            if (*r).method == ffi::NGX_HTTP_HEAD as ffi::ngx_uint_t || status == 304 {
                (*r).headers_out.content_length_n = -1;
            }
        } else if content_type.len > 0 {
            (*r).headers_out.content_type = content_type;
            (*r).headers_out.content_type_len = content_type.len;
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
