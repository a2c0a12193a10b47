//! Redirects of an endpoint that are followed in place of the client.
//!
//! A response that is not passed on sends the request through nginx's phases anew, as `X-Accel-Redirect` does: it is
//! decided like any other, but what the connection manager has done to it stays as it is.

use super::body;
use super::capture;
use super::ctx::{self, Ctx};
use super::decide;
use super::edit::{self, Facts, Name, RequestHeaders};
use super::head::{self, headers, Head};
use super::manager::Managed;
use super::timer::Timers;
use crate::nginx::{self, pool_str, EMPTY};
use crate::zone;
use amesh_dataplane::header::HeaderMap;
use amesh_dataplane::internal_redirect::{self as rules, Step};
use amesh_dataplane::route;
use amesh_model::internal_redirect::{ArchivedInternalRedirectPolicy, InternalRedirectPolicy};
use ngx::ffi::{self, ngx_http_request_t, ngx_pool_t, ngx_str_t, ngx_table_elt_t, ngx_uint_t};

/// The location that the request goes through again.
const ROOT: &str = "/";

/// Where a request was going before it was redirected.
const ORIGINAL_URL: Name = Name::new("x-envoy-original-url");

/// What a request on a route that follows redirects knows of them, in its pool.
pub struct Redirects {
    /// The route's policy as rkyv wrote it.
    policy: ngx_str_t,
    managed: Managed,
    /// Names of the routes that redirects led from and to, each ended by a NUL.
    made: ngx_str_t,
    /// The request goes through the phases again.
    again: bool,
    method: ngx_uint_t,
    method_name: ngx_str_t,
}

impl Redirects {
    fn made(&self) -> impl Iterator<Item = (&str, &str)> + Clone {
        // SAFETY: the text lives in the request's pool, as this does.
        let mut names = unsafe { nginx::text(self.made) }.split_terminator('\0');
        std::iter::from_fn(move || Some((names.next()?, names.next()?)))
    }
}

/// Keeps the policy of a request's route. `None` when memory is out.
///
/// # Safety
/// `pool` must be that of the request of `ctx`.
pub unsafe fn keep(
    pool: *mut ngx_pool_t,
    ctx: &mut Ctx,
    policy: &ArchivedInternalRedirectPolicy,
    managed: Managed,
) -> Option<()> {
    let owned = rkyv::deserialize::<InternalRedirectPolicy, rkyv::rancor::Error>(policy).ok()?;
    let policy = nginx::pool_aligned(pool, &rkyv::to_bytes::<rkyv::rancor::Error>(&owned).ok()?)?;
    let place: *mut Redirects = nginx::pool_zeroed(pool);
    if place.is_null() {
        return None;
    }
    // SAFETY: freshly made; what was there before lives in the same pool.
    unsafe {
        let made = ctx.redirects.as_ref().map_or(EMPTY, |before| before.made);
        place.write(Redirects { policy, managed, made, again: false, method: 0, method_name: EMPTY });
    }
    ctx.redirects = place;
    Some(())
}

/// A request that comes through the phases again takes over what was known of it. What its connection manager has done
/// is done.
///
/// # Safety
/// `r` must be live, in the phase of [`decide::handler`], `ctx` new.
pub unsafe fn resume(r: *mut ngx_http_request_t, ctx: &mut Ctx) {
    // SAFETY: promised by the caller; the former contexts live in the request's pool.
    unsafe {
        let Some(before) = ctx::former(r, ctx) else { return };
        let Some(redirects) = before.redirects.as_mut().filter(|redirects| redirects.again) else { return };
        redirects.again = false;
        // nginx has made it GET.
        (*r).method = redirects.method;
        (*r).method_name = redirects.method_name;
        ctx.redirects = redirects;
        ctx.managed_before = true;
        ctx.response.request_id = before.response.request_id;
        ctx.response.via = before.response.via;
    }
}

/// What the connection manager said of a request that comes through the phases again.
///
/// # Safety
/// The request of `ctx` must be live.
pub unsafe fn managed(ctx: &Ctx) -> Option<Managed> {
    // SAFETY: promised by the caller.
    let redirects = unsafe { ctx.redirects.as_ref() }.filter(|_| ctx.managed_before)?;
    // There is `x-envoy-original-url` now.
    Some(Managed { has_envoy_headers: true, ..redirects.managed })
}

/// Whether a response is a redirect that is followed: then nginx goes through the phases again as soon as it has taken
/// the head, with the configuration that [`Ctx::redirected`] has it use.
///
/// # Safety
/// `r` must be live, the head of its upstream's response parsed.
pub unsafe fn follow(r: *mut ngx_http_request_t, ctx: &mut Ctx) -> bool {
    // SAFETY: promised by the caller.
    unsafe {
        let Some(redirects) = ctx.redirects.as_mut() else { return false };
        let policy = rkyv::access_unchecked::<ArchivedInternalRedirectPolicy>(nginx::bytes(redirects.policy));
        let u = (*r).upstream;
        let status = (*u).headers_in.status_n as u16;
        let held = !body::is_there(r) || (*r).request_body_no_buffering() == 0;
        if !held || !rules::takes(policy, status) {
            return false;
        }
        let location = headers(&raw mut (*u).headers_in.headers)
            .find(|h| nginx::bytes(h.key).eq_ignore_ascii_case(b"location"))
            .map(|h| nginx::text(h.value));
        let Some(target) = location.and_then(rules::target) else { return false };
        let found = zone::with_worker(|worker| {
            let (pin, tools) = worker.pin();
            let captured = &mut *capture::find((*r).connection)?;
            let (hcm, table) = decide::tables(&pin, r, captured)?;
            let host = amesh_dataplane::path::normalize_host(target.host, hcm, captured.destination.port());
            let managed = Managed { scheme: target.scheme, ..redirects.managed };
            let head = Head::new(r, &target.path, &host, managed, tools.random());
            let decision = route::decide(table, &head, tools.regexes());
            Some(decision.route()?.name.as_str().to_owned())
        });
        let Some(Some(to)) = found else { return false };
        let from = nginx::text(ctx.route);
        let step = Step { from, to: &to, scheme: redirects.managed.scheme, target_scheme: target.scheme };
        if !rules::allows(policy, step, redirects.made()) {
            return false;
        }
        let made = [nginx::text(redirects.made), from, "\0", &to, "\0"].concat();
        let Some(made) = pool_str((*r).pool, made.as_bytes()) else { return false };
        if turn(r, ctx, redirects.managed.scheme, policy, &target, status).is_none() {
            return false;
        }
        redirects.made = made;
        redirects.managed.scheme = target.scheme;
        redirects.again = true;
        redirects.method = (*r).method;
        redirects.method_name = (*r).method_name;
        Timers::stop_all(ctx.timers);
        true
    }
}

/// Makes the request that of the target. `None` when memory is out.
unsafe fn turn(
    r: *mut ngx_http_request_t,
    ctx: &Ctx,
    old_scheme: &str,
    policy: &ArchivedInternalRedirectPolicy,
    target: &rules::Target<'_>,
    status: u16,
) -> Option<()> {
    // SAFETY: as in `follow`; all that is put into the request lives in its pool.
    unsafe {
        let pool = (*r).pool;
        let u = (*r).upstream;
        let (host, path) = (pool_str(pool, target.host.as_bytes())?, pool_str(pool, target.path.as_bytes())?);
        let old_host = if ctx.host.len > 0 { nginx::text(ctx.host) } else { head::host(r) };
        let old = [old_scheme, "://", old_host, nginx::text((*r).unparsed_uri)].concat();
        let redirect: *mut ngx_table_elt_t = nginx::pool_zeroed(pool);
        if redirect.is_null() {
            return None;
        }
        for name in policy.response_headers_to_copy.iter() {
            let facts = Facts { request: r, ctx, captured: None };
            let mut copied = RequestHeaders { facts, host: None, failed: false };
            copied.remove(name);
            let values: Vec<ngx_str_t> = headers(&raw mut (*u).headers_in.headers)
                .filter(|h| nginx::bytes(h.key).eq_ignore_ascii_case(name.as_bytes()))
                .map(|h| h.value)
                .collect();
            values.into_iter().for_each(|value| copied.append(name, nginx::bytes(value)));
            if copied.failed {
                return None;
            }
        }
        edit::set_request_header(r, ORIGINAL_URL, old.as_bytes())?;
        if status == 303 && (*r).method & (ffi::NGX_HTTP_GET | ffi::NGX_HTTP_HEAD) as ngx_uint_t == 0 {
            without_body(r)?;
        }
        (*r).host_start = std::ptr::null_mut();
        (*r).host_end = std::ptr::null_mut();
        (*r).headers_in.server = host;
        if let Some(header) = (*r).headers_in.host.as_mut() {
            header.value = host;
        }
        (*r).unparsed_uri = path;
        // Nothing of the redirect goes to the client.
        let list = &mut (*u).headers_in.headers;
        list.part.nelts = 0;
        list.part.next = std::ptr::null_mut();
        list.last = &raw mut list.part;
        (*redirect).hash = 1;
        (*redirect).value = nginx::str_of(ROOT);
        (*u).headers_in.x_accel_redirect = redirect;
        Some(())
    }
}

/// See other: a GET, whatever it was before. `None` when memory is out.
unsafe fn without_body(r: *mut ngx_http_request_t) -> Option<()> {
    // SAFETY: as in `follow`; the body was read as a whole.
    unsafe {
        (*r).method = ffi::NGX_HTTP_GET as ngx_uint_t;
        (*r).method_name = nginx::str_of("GET");
        edit::remove_request_header(r, b"content-length")?;
        edit::remove_request_header(r, b"transfer-encoding")?;
        (*r).headers_in.content_length_n = -1;
        (*r).headers_in.set_chunked(0);
        if let Some(body) = (*r).request_body.as_mut() {
            body.bufs = std::ptr::null_mut();
            body.buf = std::ptr::null_mut();
        }
        Some(())
    }
}
