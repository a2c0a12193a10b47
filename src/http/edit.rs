//! Header edits of routes on nginx's lists of headers.

use super::capture::Captured;
use super::ctx::Ctx;
use super::head::{self, headers};
use super::reply;
use crate::nginx::{self, pool_str, EMPTY};
use amesh_dataplane::header::{Command, FormatContext, HeaderMap, Levels};
use amesh_model::header::{ArchivedHeaderEdits, HeaderEdits, HeaderValueOption};
use ngx::ffi::{self, ngx_http_request_t, ngx_pool_t, ngx_str_t, ngx_table_elt_t, ngx_uint_t};
use std::borrow::Cow;

/// The response edits of a route, copied out of the zone into the request's pool: `Vec<HeaderEdits>` as rkyv wrote it,
/// in the order in which the levels are applied. Empty: none.
#[derive(Clone, Copy)]
pub struct ResponseEdits(ngx_str_t);

impl ResponseEdits {
    /// No edits.
    pub const NONE: ResponseEdits = ResponseEdits(EMPTY);

    /// Keeps what `levels` say of responses. `None` when memory is out.
    pub fn keep(pool: *mut ngx_pool_t, levels: &Levels<'_>) -> Option<ResponseEdits> {
        let mut order = [levels.route, levels.virtual_host, levels.table];
        if levels.most_specific_wins {
            order.reverse();
        }
        let order: Vec<&ArchivedHeaderEdits> = std::iter::once(levels.weighted_cluster)
            .chain(order)
            .flatten()
            .filter(|l| !l.response_add.is_empty() || !l.response_remove.is_empty())
            .collect();
        if order.is_empty() {
            return Some(Self::NONE);
        }
        let owned: Vec<HeaderEdits> = order
            .into_iter()
            .map(|l| HeaderEdits {
                response_add: l.response_add.iter().filter_map(owned_option).collect(),
                response_remove: l.response_remove.iter().map(|n| n.as_str().to_owned()).collect(),
                ..HeaderEdits::default()
            })
            .collect();
        nginx::pool_aligned(pool, &rkyv::to_bytes::<rkyv::rancor::Error>(&owned).ok()?).map(ResponseEdits)
    }

    /// Applies them. `None` when memory is out.
    ///
    /// # Safety
    /// The request of `facts` must be live and its header not sent.
    pub unsafe fn apply(self, facts: &Facts<'_>) -> Option<()> {
        let mut map = ResponseHeaders { request: facts.request, failed: false };
        // SAFETY: promised by the caller.
        unsafe { self.apply_to(&mut map, facts) };
        (!map.failed).then_some(())
    }

    /// Applies them to headers that are none of a live response's.
    ///
    /// # Safety
    /// The request of `facts` must be live.
    pub unsafe fn apply_to(self, map: &mut impl HeaderMap, facts: &Facts<'_>) {
        if self.0.len == 0 {
            return;
        }
        // SAFETY: written by keep() into the pool of this very request.
        let levels =
            unsafe { rkyv::access_unchecked::<rkyv::vec::ArchivedVec<ArchivedHeaderEdits>>(nginx::bytes(self.0)) };
        for level in levels.iter() {
            Levels { route: Some(level), ..Levels::default() }.edit_response(map, facts);
        }
    }
}

/// Sets a response header to one value. `None` when memory is out.
///
/// # Safety
/// `r` must be live, its header not sent.
pub unsafe fn set_response_header(r: *mut ngx_http_request_t, name: &str, value: &[u8]) -> Option<()> {
    let mut map = ResponseHeaders { request: r, failed: false };
    map.set(name, value);
    (!map.failed).then_some(())
}

/// The name of a header that we send ourselves, in lower case, with its `ngx_hash_key`: best a constant.
#[derive(Clone, Copy)]
pub struct Name {
    text: &'static str,
    hash: ngx_uint_t,
}

impl Name {
    /// A name in lower case.
    pub const fn new(text: &'static str) -> Name {
        let (bytes, mut hash, mut i) = (text.as_bytes(), 0, 0);
        while i < bytes.len() {
            hash = (hash as ngx_uint_t).wrapping_mul(31).wrapping_add(bytes[i] as ngx_uint_t);
            i += 1;
        }
        Name { text, hash }
    }
}

/// Sets a request header to one value. `None` when memory is out.
///
/// # Safety
/// `r` must be live and not yet be on its way upstream.
pub unsafe fn set_request_header(r: *mut ngx_http_request_t, name: Name, value: &[u8]) -> Option<()> {
    // SAFETY: promised by the caller.
    unsafe {
        remove_request_header(r, name.text.as_bytes())?;
        add_request_header(r, name, pool_str((*r).pool, value)?)
    }
}

fn owned_option(option: &amesh_model::header::ArchivedHeaderValueOption) -> Option<HeaderValueOption> {
    rkyv::deserialize::<HeaderValueOption, rkyv::rancor::Error>(option).ok()
}

/// What substitution commands are answered from.
pub struct Facts<'a> {
    /// The request.
    pub request: *mut ngx_http_request_t,
    /// What is known of it.
    pub ctx: &'a Ctx,
    /// Its connection.
    pub captured: Option<&'a Captured>,
}

impl FormatContext for Facts<'_> {
    fn request_header(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        // SAFETY: the request is live as long as these facts are used.
        unsafe {
            match name {
                ":path" => Some(Cow::Borrowed(nginx::bytes((*self.request).unparsed_uri))),
                ":method" => Some(Cow::Borrowed(nginx::bytes((*self.request).method_name))),
                // A rewrite counts, as that of the path does.
                ":authority" | "host" if self.ctx.host.len > 0 => Some(Cow::Borrowed(nginx::bytes(self.ctx.host))),
                ":authority" | "host" => Some(Cow::Borrowed(head::host(self.request).as_bytes())),
                ":scheme" => Some(Cow::Borrowed(match self.captured {
                    Some(c) if c.tls => b"https".as_slice(),
                    _ => b"http",
                })),
                name => request_header(self.request, name.as_bytes()).map(Cow::Borrowed),
            }
        }
    }

    fn write(&self, command: Command, out: &mut Vec<u8>) {
        // SAFETY: as above; the texts of the context live in the request's pool.
        unsafe {
            let text = match (command, self.captured) {
                (Command::DownstreamRemoteAddress | Command::DownstreamDirectRemoteAddress, Some(c)) => {
                    c.source.to_string()
                }
                (
                    Command::DownstreamRemoteAddressWithoutPort | Command::DownstreamDirectRemoteAddressWithoutPort,
                    Some(c),
                ) => c.source.ip().to_string(),
                (Command::DownstreamRemotePort | Command::DownstreamDirectRemotePort, Some(c)) => {
                    c.source.port().to_string()
                }
                (Command::DownstreamLocalAddress, Some(c)) => c.destination.to_string(),
                (Command::DownstreamLocalAddressWithoutPort, Some(c)) => c.destination.ip().to_string(),
                (Command::DownstreamLocalPort, Some(c)) => c.destination.port().to_string(),
                (Command::RequestedServerName, Some(c)) => nginx::text(c.server_name).to_owned(),
                (Command::Protocol, _) => nginx::text((*self.request).http_protocol).to_owned(),
                (Command::UpstreamHost, _) => nginx::text(self.ctx.endpoint).to_owned(),
                (Command::UpstreamCluster, _) => nginx::text(self.ctx.cluster).to_owned(),
                (Command::RouteName, _) => nginx::text(self.ctx.route).to_owned(),
                (Command::VirtualClusterName, _) => nginx::text(self.ctx.virtual_cluster).to_owned(),
                // Envoy does not know it yet where the answer is its own.
                (Command::ResponseCode, _) if self.ctx.reply.status != 0 || self.ctx.replaced => "0".to_owned(),
                (Command::ResponseCode, _) => (*self.request).headers_out.status.to_string(),
                (Command::StartTime, _) => start_time(self.request),
                (_, None) => return,
            };
            out.extend_from_slice(text.as_bytes());
        }
    }
}

/// `%START_TIME%`: ISO 8601 with milliseconds, UTC.
fn start_time(r: *mut ngx_http_request_t) -> String {
    // SAFETY: the request is live; gmtime_r only writes to tm.
    unsafe {
        let seconds = (*r).start_sec as libc::time_t;
        let mut tm: libc::tm = std::mem::zeroed();
        libc::gmtime_r(&seconds, &mut tm);
        format!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
            tm.tm_year + 1900,
            tm.tm_mon + 1,
            tm.tm_mday,
            tm.tm_hour,
            tm.tm_min,
            tm.tm_sec,
            (*r).start_msec
        )
    }
}

/// The headers of a request that has not gone upstream yet.
pub struct RequestHeaders<'a> {
    /// The request, and what is known of it.
    pub facts: Facts<'a>,
    /// The host that goes upstream, where an edit names one.
    pub host: Option<ngx_str_t>,
    /// Memory ran out.
    pub failed: bool,
}

impl HeaderMap for RequestHeaders<'_> {
    fn get(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        self.facts.request_header(name)
    }

    fn set(&mut self, name: &str, value: &[u8]) {
        if !matches!(name, "host" | ":authority") {
            self.remove(name);
        }
        self.append(name, value);
    }

    fn append(&mut self, name: &str, value: &[u8]) {
        let r = self.facts.request;
        // SAFETY: the request is live as long as this is used.
        let pool = unsafe { (*r).pool };
        let added = pool_str(pool, value).and_then(|value| {
            if matches!(name, "host" | ":authority") {
                self.host = Some(value);
                return Some(());
            }
            // SAFETY: as above; both texts are in the request's pool.
            unsafe {
                let key = pool_str(pool, name.as_bytes())?;
                push_request_header(r, key, ffi::ngx_hash_key(key.data, key.len), value)
            }
        });
        self.failed |= added.is_none();
    }

    fn remove(&mut self, name: &str) {
        // SAFETY: as above.
        self.failed |= unsafe { remove_request_header(self.facts.request, name.as_bytes()) }.is_none();
    }
}

/// The headers of a response that is not sent yet.
struct ResponseHeaders {
    request: *mut ngx_http_request_t,
    failed: bool,
}

impl HeaderMap for ResponseHeaders {
    fn get(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        // SAFETY: the request is live as long as this is used.
        unsafe {
            let out = &raw mut (*self.request).headers_out;
            if name == "content-type" && (*out).content_type.len > 0 {
                return Some(Cow::Borrowed(nginx::bytes((*out).content_type)));
            }
            if name == ":status" {
                return Some(Cow::Owned((*out).status.to_string().into_bytes()));
            }
            headers(&raw mut (*out).headers)
                .find(|h| h.hash != 0 && nginx::bytes(h.key).eq_ignore_ascii_case(name.as_bytes()))
                .map(|h| Cow::Borrowed(nginx::bytes(h.value)))
        }
    }

    fn set(&mut self, name: &str, value: &[u8]) {
        self.remove(name);
        self.append(name, value);
    }

    fn append(&mut self, name: &str, value: &[u8]) {
        // SAFETY: as above; texts are put into the request's pool.
        let added = unsafe {
            let pool = (*self.request).pool;
            pool_str(pool, value).and_then(|value| {
                let out = &raw mut (*self.request).headers_out;
                if name == "content-type" {
                    (*out).content_type = value;
                    (*out).content_type_len = value.len;
                    (*out).content_type_lowcase = std::ptr::null_mut();
                    (*out).charset = EMPTY;
                    return Some(());
                }
                let pushed = reply::push_header(self.request, pool_str(pool, name.as_bytes())?, value)?;
                // nginx writes these itself where it does not know that they are there.
                match name {
                    "server" => (*out).server = pushed,
                    "date" => (*out).date = pushed,
                    "last-modified" => (*out).last_modified = pushed,
                    _ => {}
                }
                Some(())
            })
        };
        self.failed |= added.is_none();
    }

    fn remove(&mut self, name: &str) {
        // SAFETY: as above.
        unsafe {
            let out = &raw mut (*self.request).headers_out;
            if name == "content-type" {
                (*out).content_type = EMPTY;
                (*out).content_type_len = 0;
            }
            for h in headers(&raw mut (*out).headers) {
                if nginx::bytes(h.key).eq_ignore_ascii_case(name.as_bytes()) {
                    h.hash = 0;
                }
            }
        }
    }
}

/// The first value of a request header, by its lower case name.
///
/// # Safety
/// `r` must be live.
pub unsafe fn request_header<'a>(r: *mut ngx_http_request_t, name: &[u8]) -> Option<&'a [u8]> {
    // SAFETY: promised by the caller.
    unsafe {
        headers(&raw mut (*r).headers_in.headers)
            .find(|h| h.key.len == name.len() && nginx::bytes(h.key).eq_ignore_ascii_case(name))
            .map(|h| nginx::bytes(h.value))
    }
}

/// The lines of a request header, joined by commas; the name is lower case.
///
/// # Safety
/// `r` must be live.
pub unsafe fn joined_request_header<'a>(r: *mut ngx_http_request_t, name: &'a [u8]) -> Option<Cow<'a, str>> {
    // SAFETY: the values live as long as the request, which outlives this phase.
    unsafe {
        let mut values = headers(&raw mut (*r).headers_in.headers)
            .filter(|h| h.key.len == name.len() && nginx::bytes(h.key).eq_ignore_ascii_case(name))
            .map(|h| String::from_utf8_lossy(nginx::bytes(h.value)));
        let first = values.next()?;
        Some(values.fold(first, |all, next| Cow::Owned([&all, ",", &next].concat())))
    }
}

/// Adds a request header. `None` when memory is out.
///
/// # Safety
/// `r` must be live; the value must live as long as the request.
pub unsafe fn add_request_header(r: *mut ngx_http_request_t, name: Name, value: ngx_str_t) -> Option<()> {
    // SAFETY: promised by the caller.
    unsafe { push_request_header(r, nginx::str_of(name.text), name.hash, value) }
}

unsafe fn push_request_header(
    r: *mut ngx_http_request_t,
    key: ngx_str_t,
    hash: ngx_uint_t,
    value: ngx_str_t,
) -> Option<()> {
    // SAFETY: promised by the caller.
    unsafe {
        let h = ffi::ngx_list_push(&mut (*r).headers_in.headers).cast::<ngx_table_elt_t>();
        if h.is_null() {
            return None;
        }
        std::ptr::write_bytes(h, 0, 1);
        (*h).hash = hash;
        (*h).key = key;
        (*h).value = value;
        (*h).lowcase_key = key.data;
        Some(())
    }
}

/// Takes a request header away; the name is lower case. `None` when memory is out.
///
/// # Safety
/// `r` must be live.
pub unsafe fn remove_request_header(r: *mut ngx_http_request_t, name: &[u8]) -> Option<()> {
    // SAFETY: promised by the caller.
    unsafe { remove_request_headers(r, |it| it == name) }
}

/// Takes request headers away, by their names in lower case. nginx's proxy does not look at `hash`, so the list is made
/// anew without them. `None` when memory is out.
///
/// # Safety
/// `r` must be live.
pub unsafe fn remove_request_headers(r: *mut ngx_http_request_t, is_it: impl Fn(&[u8]) -> bool) -> Option<()> {
    // SAFETY: promised by the caller; lowcase_key has the length of the key. The elements are copied, so pointers of
    // headers_in to them stay good: the old list lives on in the pool.
    unsafe {
        let list = &raw mut (*r).headers_in.headers;
        let is_it = |h: &ngx_table_elt_t| is_it(std::slice::from_raw_parts(h.lowcase_key, h.key.len));
        if !headers(list).any(|h| is_it(h)) {
            return Some(());
        }
        let kept: Vec<ngx_table_elt_t> = headers(list).filter(|h| !is_it(h)).map(|h| *h).collect();
        let mut new: ffi::ngx_list_t = std::mem::zeroed();
        if !list_init(&mut new, (*r).pool, kept.len() + 8) {
            return None;
        }
        for h in kept {
            let place = ffi::ngx_list_push(&mut new).cast::<ngx_table_elt_t>();
            if place.is_null() {
                return None;
            }
            *place = h;
        }
        // The last part may be the one within the list itself.
        *list = new;
        if (*list).last == &raw mut new.part {
            (*list).last = &raw mut (*list).part;
        }
        Some(())
    }
}

/// `ngx_list_init`, a macro-like inline of nginx.
pub(super) unsafe fn list_init(list: &mut ffi::ngx_list_t, pool: *mut ngx_pool_t, n: usize) -> bool {
    // SAFETY: the pool is the request's.
    unsafe {
        list.part.elts = ffi::ngx_palloc(pool, n * size_of::<ngx_table_elt_t>());
        if list.part.elts.is_null() {
            return false;
        }
        list.part.nelts = 0;
        list.part.next = std::ptr::null_mut();
        list.last = &mut list.part;
        list.size = size_of::<ngx_table_elt_t>();
        list.nalloc = n;
        list.pool = pool;
        true
    }
}
