//! A request's head as the router sees it.

use super::edit::Facts;
use super::manager::Managed;
use crate::nginx;
use amesh_dataplane::header::{Command, FormatContext};
use amesh_dataplane::route::RequestHead;
use ngx::ffi::{self, ngx_http_request_t, ngx_list_part_t, ngx_str_t, ngx_table_elt_t};

/// The beginning of the names of Envoy's own headers.
pub const ENVOY: &[u8; 8] = b"x-envoy-";

/// A view of a live request.
pub struct Head<'a> {
    request: *mut ngx_http_request_t,
    path: &'a str,
    host: &'a str,
    managed: Managed,
    random: u64,
    facts: Option<Facts<'a>>,
}

impl<'a> Head<'a> {
    /// The head of `r` with its normalised path and host.
    ///
    /// # Safety
    /// `r` must stay live as long as the view.
    pub unsafe fn new(
        r: *mut ngx_http_request_t,
        path: &'a str,
        host: &'a str,
        managed: Managed,
        random: u64,
    ) -> Head<'a> {
        Head { request: r, path, host, managed, random, facts: None }
    }

    /// The same view with what substitution commands are answered from.
    pub fn with_facts<'b>(&self, facts: Facts<'b>) -> Head<'b>
    where
        'a: 'b,
    {
        let Head { request, path, host, managed, random, .. } = *self;
        Head { request, path, host, managed, random, facts: Some(facts) }
    }
}

impl RequestHead for Head<'_> {
    fn method(&self) -> &str {
        // SAFETY: the request is live, see new.
        unsafe { nginx::text((*self.request).method_name) }
    }

    fn path(&self) -> &str {
        self.path
    }

    fn host(&self) -> &str {
        self.host
    }

    fn scheme(&self) -> &str {
        self.managed.scheme
    }

    #[inline]
    fn header_values<'b>(&'b self, name: &'b str) -> impl Iterator<Item = &'b [u8]> + 'b {
        // Most of what is asked for is Envoy's own, which most requests have none of.
        let any = self.managed.has_envoy_headers || name.as_bytes().first_chunk() != Some(ENVOY);
        // SAFETY: as above; lowcase_key has the length of the key.
        unsafe {
            headers(&raw mut (*self.request).headers_in.headers)
                .take_while(move |_| any)
                .filter(move |h| {
                    h.key.len == name.len() && std::slice::from_raw_parts(h.lowcase_key, h.key.len) == name.as_bytes()
                })
                .map(|h| nginx::bytes(h.value))
        }
    }

    fn random(&self) -> u64 {
        self.random
    }

    fn is_internal(&self) -> bool {
        // Ours: what a client says of itself is taken off before (`manager`).
        self.first_value("x-envoy-internal") == Some(b"true")
    }

    fn write(&self, command: Command, out: &mut Vec<u8>) {
        if let Some(facts) = &self.facts {
            FormatContext::write(facts, command, out);
        }
    }
}

/// The elements of an nginx list of headers.
///
/// # Safety
/// `list` must be a list of `ngx_table_elt_t` that is not changed while the iterator lives.
pub unsafe fn headers<'a>(list: *mut ffi::ngx_list_t) -> impl Iterator<Item = &'a mut ngx_table_elt_t> {
    // SAFETY: promised by the caller.
    let mut part: *mut ngx_list_part_t = unsafe { &raw mut (*list).part };
    let mut i = 0;
    std::iter::from_fn(move || {
        // SAFETY: parts are linked and hold nelts elements each.
        unsafe {
            while i >= (*part).nelts {
                part = (*part).next;
                i = 0;
                if part.is_null() {
                    return None;
                }
            }
            let h = (*part).elts.cast::<ngx_table_elt_t>().add(i);
            i += 1;
            Some(&mut *h)
        }
    })
}

/// The host as the client sent it, port and all; empty when there is none.
///
/// # Safety
/// `r` must be a live request.
pub unsafe fn host<'a>(r: *mut ngx_http_request_t) -> &'a str {
    // SAFETY: promised by the caller.
    unsafe {
        let h = (*r).headers_in.host;
        if !(*r).host_start.is_null() {
            // The request line has a whole address.
            let mut end = (*r).host_end;
            if *end == b':' {
                // The line goes on behind the port, and ends in a line break.
                end = end.add(1);
                while (*end).is_ascii_digit() {
                    end = end.add(1);
                }
            }
            let len = end.offset_from((*r).host_start);
            return nginx::text(ngx_str_t { len: usize::try_from(len).unwrap_or(0), data: (*r).host_start });
        }
        if h.is_null() {
            nginx::text((*r).headers_in.server)
        } else {
            nginx::text((*h).value)
        }
    }
}
