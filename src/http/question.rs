//! A request that is only asked about: what nginx would have made of it, so that the code that decides requests decides on
//! it, too. It changes nothing but itself.

use super::head::headers;
use crate::nginx::{self, pool_str, EMPTY};
use amesh_model::listener::{
    ArchivedHttpConnectionManager, EscapedSlashes, HttpConnectionManager, RouteSpecifier, ServerHeader, Underscores,
};
use ngx::ffi::{self, ngx_connection_t, ngx_http_request_t, ngx_pool_t, ngx_str_t, ngx_table_elt_t};
use rkyv::util::AlignedVec;
use std::cell::OnceCell;

/// Bytes of the pool of a question: what most need.
const POOL: usize = 8192;

/// What is asked.
pub struct Asked<'a> {
    /// The method.
    pub method: &'a str,
    /// The host, with the port if there is one.
    pub authority: &'a str,
    /// Path and query.
    pub path: &'a str,
    /// Names, lower case, and values.
    pub headers: &'a mut dyn Iterator<Item = (&'a str, &'a [u8])>,
    /// It came in HTTP/2.
    pub http2: bool,
}

/// A request with a pool of its own.
pub struct Question {
    pool: *mut ngx_pool_t,
    /// The request; it is gone with this.
    pub request: *mut ngx_http_request_t,
}

impl Drop for Question {
    fn drop(&mut self) {
        // SAFETY: made by new, used by nobody any more.
        unsafe { ffi::ngx_destroy_pool(self.pool) };
    }
}

impl Question {
    /// One without anything. `None` when memory is out.
    fn new() -> Option<Question> {
        // SAFETY: nginx has a cycle as long as it runs; the pool is this question's own. All zeroes is a value of nginx's
        // structures.
        unsafe {
            let log = (*ffi::ngx_cycle).log;
            let pool = ffi::ngx_create_pool(POOL, log);
            if pool.is_null() {
                return None;
            }
            let question = Question { pool, request: nginx::pool_zeroed(pool) };
            let c: *mut ngx_connection_t = nginx::pool_zeroed(pool);
            if question.request.is_null() || c.is_null() {
                return None;
            }
            (*c).fd = -1;
            (*c).pool = pool;
            (*c).log = log;
            question.adopt(c);
            Some(question)
        }
    }

    /// Makes request and connection use the pool.
    unsafe fn adopt(&self, c: *mut ngx_connection_t) {
        // SAFETY: both live in the pool.
        unsafe {
            let r = &mut *self.request;
            r.connection = c;
            r.pool = self.pool;
            r.main = self.request;
        }
    }

    /// A request that nobody has sent. `None` when memory is out.
    pub fn about(asked: Asked<'_>) -> Option<Question> {
        let question = Question::new()?;
        let pool = question.pool;
        // SAFETY: the request and all that is put into it live in its pool.
        unsafe {
            let r = &mut *question.request;
            let now = &*ffi::ngx_cached_time;
            (r.start_sec, r.start_msec) = (now.sec, now.msec);
            r.method_name = pool_str(pool, asked.method.as_bytes())?;
            r.unparsed_uri = pool_str(pool, asked.path.as_bytes())?;
            let (version, protocol) = match asked.http2 {
                true => (ffi::NGX_HTTP_VERSION_20, "HTTP/2.0"),
                false => (ffi::NGX_HTTP_VERSION_11, "HTTP/1.1"),
            };
            (r.http_version, r.http_protocol) = (version as ffi::ngx_uint_t, nginx::str_of(protocol));
            r.headers_in.content_length_n = -1;
            question.begin_headers(8)?;
            if !asked.authority.is_empty() {
                r.headers_in.host = question.add("host", asked.authority.as_bytes())?;
            }
            for (name, value) in asked.headers {
                let h = question.add(name, value)?;
                if name == "upgrade" {
                    r.headers_in.upgrade = h;
                }
            }
            Some(question)
        }
    }

    /// A live request as it is now. `None` when memory is out.
    ///
    /// # Safety
    /// `r` must be live, and stay as it is as long as this lives.
    pub unsafe fn of(r: *mut ngx_http_request_t) -> Option<Question> {
        // SAFETY: promised by the caller. What is copied is plain data; what it points to is read, never written: header
        // edits change the list, which is made anew.
        unsafe {
            let question = Question::new()?;
            let c = (*question.request).connection;
            std::ptr::copy_nonoverlapping((*r).connection, c, 1);
            std::ptr::copy_nonoverlapping(r, question.request, 1);
            (*c).pool = question.pool;
            question.adopt(c);
            question.begin_headers(headers(&raw mut (*r).headers_in.headers).count() + 8)?;
            for h in headers(&raw mut (*r).headers_in.headers) {
                *question.push()? = *h;
            }
            Some(question)
        }
    }

    unsafe fn begin_headers(&self, n: usize) -> Option<()> {
        // SAFETY: the list stands in the request, which does not move.
        unsafe {
            let list = &raw mut (*self.request).headers_in.headers;
            super::edit::list_init(&mut *list, self.pool, n).then_some(())
        }
    }

    unsafe fn push(&self) -> Option<*mut ngx_table_elt_t> {
        // SAFETY: begin_headers has made the list.
        let h = unsafe { ffi::ngx_list_push(&raw mut (*self.request).headers_in.headers) }.cast::<ngx_table_elt_t>();
        (!h.is_null()).then_some(h)
    }

    unsafe fn add(&self, name: &str, value: &[u8]) -> Option<*mut ngx_table_elt_t> {
        let key = pool_str(self.pool, name.as_bytes())?;
        let value = pool_str(self.pool, value)?;
        // SAFETY: as above; all of an element is written.
        unsafe {
            let h = self.push()?;
            std::ptr::write_bytes(h, 0, 1);
            (*h).hash = 1;
            (*h).key = key;
            (*h).value = value;
            (*h).lowcase_key = key.data;
            Some(h)
        }
    }
}

/// A header before and after a decision.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Changed<'a> {
    /// The name, lower case.
    pub name: &'a str,
    /// A value that it has; `None`: it is taken away. The lines of one name follow one another.
    pub value: Option<&'a [u8]>,
}

/// What a decision changed of a request's headers, given by the lists before and after: of each name whose lines are others
/// now, the lines that there are.
pub fn changes<'a>(before: &[(&'a [u8], ngx_str_t)], after: &[(&'a [u8], ngx_str_t)], mut f: impl FnMut(Changed<'a>)) {
    // SAFETY: the texts live in the pool of the request that the lists were made of.
    let value = |s: ngx_str_t| -> &'a [u8] { unsafe { nginx::bytes(s) } };
    let text = |name: &'a [u8]| std::str::from_utf8(name).unwrap_or_default();
    let lines = |list: &[(&'a [u8], ngx_str_t)], name: &[u8]| -> Vec<&'a [u8]> {
        list.iter().filter(|(n, _)| *n == name).map(|(_, v)| value(*v)).collect()
    };
    let is_first = |list: &[(&'a [u8], ngx_str_t)], at: usize| !list[..at].iter().any(|(n, _)| *n == list[at].0);
    // What a decision leaves alone stays the same element.
    let untouched = |(name, v): &(&[u8], ngx_str_t)| before.iter().any(|(n, w)| n == name && w.data == v.data);
    if before.len() == after.len() && after.iter().all(untouched) {
        return;
    }
    for (at, (name, _)) in before.iter().enumerate() {
        if is_first(before, at) && !after.iter().any(|(n, _)| n == name) {
            f(Changed { name: text(name), value: None });
        }
    }
    for (at, (name, _)) in after.iter().enumerate() {
        if is_first(after, at) {
            let new = lines(after, name);
            if new != lines(before, name) {
                new.into_iter().for_each(|line| f(Changed { name: text(name), value: Some(line) }));
            }
        }
    }
}

/// The headers of a request: names in lower case, and values.
///
/// # Safety
/// `r` must be live as long as what comes back is used.
pub unsafe fn listed<'a>(r: *mut ngx_http_request_t) -> Vec<(&'a [u8], ngx_str_t)> {
    // SAFETY: promised by the caller; lowcase_key has the length of the key.
    unsafe {
        headers(&raw mut (*r).headers_in.headers)
            .map(|h| (std::slice::from_raw_parts(h.lowcase_key, h.key.len), h.value))
            .collect()
    }
}

thread_local! {
    static DEFAULTS: OnceCell<AlignedVec> = const { OnceCell::new() };
}

/// Calls `f` with a connection manager of Envoy's defaults, which makes no request ids: for route tables that are asked
/// without a listener. `None` when memory is out.
pub fn with_default_manager<T>(f: impl FnOnce(&ArchivedHttpConnectionManager) -> T) -> Option<T> {
    DEFAULTS.with(|kept| {
        if kept.get().is_none() {
            let bytes = rkyv::to_bytes::<rkyv::rancor::Error>(&default_manager()).ok()?;
            // Nothing was there, see above.
            let _ = kept.set(bytes);
        }
        // SAFETY: written above from this type.
        Some(f(unsafe { rkyv::access_unchecked::<ArchivedHttpConnectionManager>(kept.get()?) }))
    })
}

fn default_manager() -> HttpConnectionManager {
    HttpConnectionManager {
        stat_prefix: String::new(),
        routes: RouteSpecifier::Rds(String::new()),
        server_name: "envoy".to_owned(),
        server_header_transformation: ServerHeader::Overwrite,
        use_remote_address: false,
        internal_addresses: Vec::new(),
        xff_num_trusted_hops: 0,
        skip_xff_append: false,
        via: String::new(),
        generate_request_id: false,
        preserve_external_request_id: false,
        always_set_request_id_in_response: false,
        normalize_path: false,
        merge_slashes: false,
        path_with_escaped_slashes_action: EscapedSlashes::KeepUnchanged,
        strip_matching_host_port: false,
        strip_any_host_port: false,
        strip_trailing_host_dot: false,
        headers_with_underscores_action: Underscores::Allow,
        websocket: true,
        stream_idle_timeout: 300_000,
        request_timeout: 0,
        max_stream_duration: 0,
        filters: Vec::new(),
        respect_expected_rq_timeout: false,
        refuse: None,
        suppress_envoy_headers: false,
    }
}

/// The host that goes upstream.
///
/// # Safety
/// `r` must be the live request of that rewritten host.
pub unsafe fn authority(r: *mut ngx_http_request_t, rewritten: ngx_str_t) -> ngx_str_t {
    if rewritten.len > 0 {
        return rewritten;
    }
    // SAFETY: promised by the caller.
    let host = unsafe { super::head::host(r) };
    if host.is_empty() {
        return EMPTY;
    }
    ngx_str_t { len: host.len(), data: host.as_ptr().cast_mut() }
}
