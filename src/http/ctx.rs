//! What is known of one request.

use super::filter;
use super::peer::Peer;
use super::redirect::Redirects;
use super::reply::Flags;
use super::retry::Wanted;
use super::shadow::Shadow;
use super::timer::{Expired, Timers};
use crate::guard::guard;
use crate::lb::{self, Choice, MetadataMatch, Outcome, Picked, Retry, Unit, Upstream};
use crate::nginx::{self, pool_str, EMPTY};
use crate::zone;
use amesh_dataplane::retry::Retries;
use amesh_dataplane::timeout::Timeouts;
use amesh_model::route::{ArchivedRoute, ArchivedVirtualHost};
use amesh_model::Kind;
use ngx::ffi::{self, ngx_http_request_t, ngx_str_t};
use std::ffi::c_void;
use std::net::SocketAddr;

/// How far a request has come on its way to the content phase.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// A fault makes it wait.
    Delay,
    /// An endpoint is to be picked.
    Pick,
    /// Its body is read, to be sent more than once.
    Body,
    /// The content phase may answer or forward it.
    Done,
}

/// What is known of one request, in the request's pool. All texts live there too.
pub struct Ctx {
    /// The listener's name.
    pub listener: ngx_str_t,
    /// The route's name.
    pub route: ngx_str_t,
    /// The virtual host's name.
    pub virtual_host: ngx_str_t,
    /// The virtual cluster's name; empty: the request is part of none.
    pub virtual_cluster: ngx_str_t,
    /// The cluster's name.
    pub cluster: ngx_str_t,
    /// Its hash in the directory.
    pub cluster_hash: u64,
    /// The answer when there is no such cluster.
    pub cluster_not_found: u16,
    /// `ip:port` of the endpoint that was asked last.
    pub endpoint: ngx_str_t,
    /// Envoy's flags.
    pub flags: Flags,
    /// The host that goes upstream; empty: the client's.
    pub host: ngx_str_t,
    /// The host is the endpoint's, where that has one.
    pub auto_host: bool,
    /// Path and query as the client sent them, where they were changed.
    pub original_path: ngx_str_t,
    /// Its hash, where the route has a policy for one.
    pub hash: Option<u64>,
    /// What the route asks of the metadata of endpoints.
    pub metadata_match: MetadataMatch,
    /// The cluster's limits for high priority count.
    pub high_priority: bool,
    /// Original destination.
    pub original_dst: Option<SocketAddr>,
    /// A call of gRPC: local replies are those of gRPC.
    pub grpc: bool,
    /// How far it has come.
    pub stage: Stage,
    /// A fault makes it wait so long, in ms.
    pub delay: u64,
    /// When it is tried again.
    pub retries: Retries,
    /// For which responses it is tried again.
    pub wanted: Wanted,
    /// How long it may take.
    pub timeouts: Timeouts,
    /// How long it may take in all, in ms; 0: for ever.
    pub max_stream_duration: u64,
    /// How long the whole of it may take to come, in ms; 0: for ever.
    pub request_timeout: u64,
    /// The endpoint is told so in `grpc-timeout`, in ms; 0: it is not.
    pub grpc_timeout: u64,
    /// How long nothing may come from the endpoint, in ms; 0: for ever.
    pub idle_timeout: u64,
    /// The timers of those, null before there is one.
    pub timers: *mut Timers,
    /// Which of them ended it.
    pub expired: Expired,
    /// What is known of redirects that are followed, null: none are.
    pub redirects: *mut Redirects,
    /// It goes through the phases again: the connection manager has seen it.
    pub managed_before: bool,
    /// Its response is a redirect that is followed.
    pub redirected: bool,
    /// Copies for other clusters, null: none.
    pub shadows: *mut Shadow,
    /// The endpoint is told how often it was tried.
    pub tell_attempts: bool,
    /// The endpoint is told how long it may take.
    pub tell_timeout: bool,
    /// The endpoint has answered: a whole head has come, and is taken.
    pub answered: bool,
    /// Tries so far.
    pub attempts: u32,
    /// The endpoint of the first try.
    pub picked: Option<Picked>,
    /// What the present try counts against the cluster's limit of retries.
    pub retry: Retry,
    /// The location's own upstream configuration, null before the first try.
    pub upstream_conf: *mut ffi::ngx_http_upstream_conf_t,
    /// Longest body in bytes, which is held until it is complete; 0: it is not held.
    pub max_request_bytes: u32,
    /// The answer that is given without an upstream; status 0: none.
    pub reply: Reply,
    /// What is done to the response.
    pub response: filter::Response,
    /// nginx's own error page gives way to a body of ours.
    pub replaced: bool,
    /// The endpoint is spoken to in HTTP/2.
    pub http2: bool,
    /// The client asks for a web socket, and may.
    pub websocket: bool,
    /// The client asks for another protocol, and may not.
    pub upgrade_refused: bool,
    /// A time-out is answered by 204.
    pub alt_response: bool,
    /// The endpoint is told whether the try before took too long.
    pub tell_timeout_retry: bool,
    /// The try before took too long.
    pub timed_out_before: bool,
    /// How long nothing may come from the endpoint in one try, in ms; 0: as long as `idle_timeout` says.
    pub per_try_idle_timeout: u64,
    /// `server` and its like were decided: the request met a connection manager.
    pub managed: bool,
    /// What its upstream holds, null before there is one.
    pub peer: *mut Peer,
    /// The request is only asked about: nothing counts it.
    pub asked: bool,
}

/// An answer of ours.
#[derive(Clone, Copy)]
pub struct Reply {
    /// The status; 0: none.
    pub status: u16,
    /// Its body.
    pub body: ngx_str_t,
    /// Its type; empty: `text/plain`.
    pub content_type: ngx_str_t,
    /// `location`.
    pub location: ngx_str_t,
    /// The status of gRPC, where it is not that of the status of HTTP.
    pub grpc_status: Option<u32>,
    /// Headers and nothing else, also for gRPC: a redirect, or the answer to a preflight request.
    pub headers_only: bool,
}

impl Reply {
    /// No answer.
    pub const NONE: Reply =
        Reply { status: 0, body: EMPTY, content_type: EMPTY, location: EMPTY, grpc_status: None, headers_only: false };
}

impl Ctx {
    /// The upstream that the request goes to.
    pub fn upstream(&self) -> Upstream<'_> {
        // SAFETY: the name lives in the request's pool, as this does.
        let cluster = unsafe { nginx::text(self.cluster) };
        Upstream {
            cluster,
            hash: self.cluster_hash,
            original_dst: self.original_dst,
            unit: if self.asked { Unit::Question } else { Unit::Request },
            high_priority: self.high_priority,
        }
    }

    /// What an endpoint is picked by, not one of those that were tried.
    pub fn choice<'a>(&'a self, tried: &'a [u32]) -> Choice<'a> {
        // SAFETY: it lives in the request's pool, as this does.
        let metadata_match = unsafe { self.metadata_match.view() };
        let host_selection_attempts = if tried.is_empty() { 1 } else { self.retries.host_selection_attempts };
        Choice { tried, hash: self.hash, host_selection_attempts, metadata_match }
    }

    /// Names the cluster.
    pub fn set_cluster(&mut self, name: ngx_str_t) {
        self.cluster = name;
        // SAFETY: as above.
        self.cluster_hash = zone::hash(Kind::Cluster, unsafe { nginx::bytes(name) });
    }

    /// Remembers which virtual host and route took the request. `None` when memory is out.
    pub fn note(
        &mut self,
        pool: *mut ffi::ngx_pool_t,
        virtual_host: &ArchivedVirtualHost,
        route: Option<&ArchivedRoute>,
    ) -> Option<()> {
        self.virtual_host = pool_str(pool, virtual_host.name.as_bytes())?;
        self.route = pool_str(pool, route.map_or(&[], |r| r.name.as_bytes()))?;
        Some(())
    }

    /// The answer is given here.
    pub fn refuse(&mut self, status: u16, flags: Flags, body: &'static str) {
        self.flags = self.flags.with(flags);
        self.reply.status = status;
        self.reply.body = nginx::str_of(body);
    }

    /// Whether it was decided what becomes of the request.
    pub fn is_decided(&self) -> bool {
        self.stage != Stage::Done || self.reply.status != 0 || self.managed
    }

    /// That of a request that is only asked about.
    pub const fn of_question() -> Ctx {
        Ctx { asked: true, ..Ctx::new() }
    }

    const fn new() -> Ctx {
        Ctx {
            listener: EMPTY,
            route: EMPTY,
            virtual_host: EMPTY,
            virtual_cluster: EMPTY,
            cluster: EMPTY,
            cluster_hash: 0,
            cluster_not_found: 503,
            endpoint: EMPTY,
            flags: Flags::NONE,
            host: EMPTY,
            auto_host: false,
            original_path: EMPTY,
            hash: None,
            metadata_match: MetadataMatch::NONE,
            high_priority: false,
            original_dst: None,
            grpc: false,
            stage: Stage::Done,
            delay: 0,
            retries: Retries::NONE,
            wanted: Wanted::NONE,
            timeouts: Timeouts { global: 0, per_try: 0, grpc: false },
            max_stream_duration: 0,
            request_timeout: 0,
            grpc_timeout: 0,
            idle_timeout: 0,
            timers: std::ptr::null_mut(),
            expired: Expired::No,
            redirects: std::ptr::null_mut(),
            managed_before: false,
            redirected: false,
            shadows: std::ptr::null_mut(),
            tell_attempts: false,
            tell_timeout: false,
            answered: false,
            attempts: 0,
            picked: None,
            retry: Retry::NONE,
            upstream_conf: std::ptr::null_mut(),
            max_request_bytes: 0,
            reply: Reply::NONE,
            response: filter::Response::new(),
            replaced: false,
            http2: false,
            websocket: false,
            upgrade_refused: false,
            alt_response: false,
            tell_timeout_retry: false,
            timed_out_before: false,
            per_try_idle_timeout: 0,
            managed: false,
            peer: std::ptr::null_mut(),
            asked: false,
        }
    }
}

/// The context of a request, `None` when it has none.
///
/// # Safety
/// `r` must be a live request.
pub unsafe fn ctx<'a>(r: *mut ngx_http_request_t) -> Option<&'a mut Ctx> {
    // SAFETY: only ctx_or_new puts something there.
    unsafe { nginx::slot_of::<Ctx>((*r).ctx, &raw const super::ngx_http_amesh_module).as_mut() }
}

/// The context of a request, a new one when it has none; `None` when memory is out.
///
/// # Safety
/// `r` must be a live request.
pub unsafe fn ctx_or_new(r: *mut ngx_http_request_t) -> Option<*mut Ctx> {
    const { assert!(!std::mem::needs_drop::<Ctx>()) };
    // SAFETY: promised by the caller; the entry of this module in the array of contexts is ours.
    unsafe {
        if let Some(ctx) = ctx(r) {
            return Some(ctx);
        }
        let place = ffi::ngx_palloc((*r).pool, size_of::<Ctx>()).cast::<Ctx>();
        if place.is_null() {
            return None;
        }
        place.write(Ctx::new());
        let cleanup = ffi::ngx_pool_cleanup_add((*r).pool, 0);
        if cleanup.is_null() {
            return None;
        }
        (*cleanup).data = place.cast();
        (*cleanup).handler = Some(give_back);
        *(*r).ctx.add((&raw const super::ngx_http_amesh_module).read().ctx_index) = place.cast();
        Some(place)
    }
}

/// The context that a request had before nginx took it through its phases again, other than its present one.
///
/// # Safety
/// `r` must be a live request.
pub unsafe fn former<'a>(r: *mut ngx_http_request_t, present: *const Ctx) -> Option<&'a mut Ctx> {
    // SAFETY: nginx keeps the list, the latest first; a cleanup with our handler has a context of ours.
    unsafe {
        let mut cleanup = (*(*r).pool).cleanup;
        while !cleanup.is_null() {
            let ours =
                (*cleanup).handler.is_some_and(|h| std::ptr::fn_addr_eq(h, give_back as extern "C" fn(*mut c_void)));
            if ours && !std::ptr::eq((*cleanup).data.cast(), present) {
                return (*cleanup).data.cast::<Ctx>().as_mut();
            }
            cleanup = (*cleanup).next;
        }
        None
    }
}

/// A request ends: its timers, and an endpoint that was never asked, are given back.
extern "C" fn give_back(data: *mut c_void) {
    guard("the end of a request", (), || {
        // SAFETY: the pool hands in the context that ctx_or_new made in it.
        let ctx = unsafe { &mut *data.cast::<Ctx>() };
        // SAFETY: the timers live in the same pool.
        unsafe { Timers::stop_all(ctx.timers) };
        if let Some(mut picked) = ctx.picked.take() {
            lb::end(&mut picked, Outcome::Unknown);
        }
        lb::end_retry(&mut ctx.retry);
    });
}
