//! What becomes of a request: decided by the code that decides live ones, on a request that is made for it.

use super::room::Room;
use super::{answer, bytes, header, place, read, room, text, zone, Failure};
use crate::http::capture::{self, Captured};
use crate::http::ctx::{ctx, Ctx};
use crate::http::decide;
use crate::http::edit::Facts;
use crate::http::question::{self, Asked, Question};
use crate::http::{srv_conf, Mode};
use crate::lb::{Picked, Protocol};
use crate::nginx::{self, EMPTY};
use crate::zone::{Pin, Tools};
use amesh_dataplane::header::HeaderMap;
use amesh_dataplane::listener::{self, Direction};
use amesh_model::retry::retry_on;
use ngx::ffi::{self, ngx_http_request_t, ngx_str_t};
use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::raw::{c_int, c_void};
use std::sync::atomic::AtomicU64;

type Request = header::amesh_request_t;
type Decision = header::amesh_decision_t;
type Edit = header::amesh_header_edit_t;

/// Where nothing is known of an address.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// A text of the caller.
unsafe fn arg<'a>(s: header::amesh_str_t) -> Result<&'a str, Failure> {
    // SAFETY: promised by the caller of the interface.
    unsafe { text(s.data, s.len) }
}

fn socket_addr(text: &str, otherwise: SocketAddr) -> Result<SocketAddr, Failure> {
    match text {
        "" => Ok(otherwise),
        text => text.parse().map_err(|_| Failure::BadArgument),
    }
}

/// A live request. Timers have one that came from nobody; one of HTTP/0.9 has no headers, and nginx made no list for any.
///
/// # Safety
/// `r` must be null or what nginx's Lua module calls its request.
pub(super) unsafe fn live(r: *mut c_void) -> Result<*mut ngx_http_request_t, Failure> {
    let r = r.cast::<ngx_http_request_t>();
    let has_headers = |r: &ngx_http_request_t| r.http_version >= ffi::NGX_HTTP_VERSION_10 as ffi::ngx_uint_t;
    // SAFETY: promised by the caller; a request has a connection.
    match !r.is_null() && unsafe { (*(*r).connection).fd != -1 && has_headers(&*r) } {
        true => Ok(r),
        false => Err(Failure::NoRequest),
    }
}

/// See the header.
///
/// # Safety
/// As the header says.
#[no_mangle]
pub unsafe extern "C" fn amesh_decide(
    r: *mut c_void,
    asked: *const Request,
    buffer: *mut c_void,
    capacity: usize,
    size: *mut usize,
    decision: *mut Decision,
) -> c_int {
    read("amesh_decide", |worker| {
        // SAFETY: promised by the caller.
        let (buffer, size, decision, asked) =
            unsafe { (room(buffer.cast(), capacity)?, place(size)?, place(decision)?, asked.as_ref()) };
        let (pin, tools) = worker.pin();
        if r.is_null() {
            // SAFETY: as above.
            return unsafe { of_nobody(&pin, tools, asked.ok_or(Failure::NoRequest)?, buffer, size, decision) };
        }
        // SAFETY: as above.
        unsafe {
            let r = live(r)?;
            match ctx(r).filter(|ctx| ctx.is_decided() && asked.is_none()) {
                Some(ctx) => {
                    let captured = capture::find((*r).connection).map(|captured| &*captured);
                    let told = Told { request: r, ctx, captured, before: None };
                    tell(&pin, &told, buffer, size, decision)
                }
                None => of_request(&pin, tools, r, asked, buffer, size, decision),
            }
        }
    })
}

/// A request that nobody has sent.
unsafe fn of_nobody(
    pin: &Pin<'_>,
    tools: &mut Tools,
    asked: &Request,
    buffer: &mut [u8],
    size: &mut usize,
    decision: &mut Decision,
) -> Result<(), Failure> {
    // SAFETY: promised by the caller.
    unsafe {
        let lines = match asked.headers_count {
            0 => &[],
            _ if asked.headers.is_null() => return Err(Failure::BadArgument),
            n => std::slice::from_raw_parts(asked.headers, n),
        };
        let mut headers = Vec::with_capacity(lines.len());
        for line in lines {
            headers.push((arg(line.name)?, bytes(line.value.data, line.value.len)?));
        }
        let (method, path) = (arg(asked.method)?, arg(asked.path)?);
        if path.is_empty() {
            return Err(Failure::BadArgument);
        }
        let question = Question::about(Asked {
            method: if method.is_empty() { "GET" } else { method },
            authority: arg(asked.authority)?,
            path,
            headers: &mut headers.into_iter(),
            http2: asked.http2 != 0,
        })
        .ok_or(Failure::Memory)?;
        let captured = Captured {
            direction: if asked.inbound != 0 { Direction::Inbound } else { Direction::Outbound },
            destination: socket_addr(arg(asked.destination)?, NOWHERE)?,
            source: socket_addr(arg(asked.source)?, SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0))?,
            server_name: str_of(arg(asked.server_name)?),
            tls: asked.tls != 0,
            application_protocols: match arg(asked.application_protocols)? {
                "" => nginx::str_of(if asked.http2 != 0 { "h2c" } else { "http/1.1" }),
                protocols => str_of(protocols),
            },
            matched_at: 0,
            listener: EMPTY,
            chain: 0,
            tokens: AtomicU64::new(0),
        };
        put(pin, tools, &question, captured, asked, buffer, size, decision)
    }
}

fn str_of(text: &str) -> ngx_str_t {
    ngx_str_t { len: text.len(), data: text.as_ptr().cast_mut() }
}

/// A live request that was not decided yet, or is asked about otherwise.
unsafe fn of_request(
    pin: &Pin<'_>,
    tools: &mut Tools,
    r: *mut ngx_http_request_t,
    asked: Option<&Request>,
    buffer: &mut [u8],
    size: &mut usize,
    decision: &mut Decision,
) -> Result<(), Failure> {
    // SAFETY: promised by the caller: the request is live.
    unsafe {
        let question = Question::of(r).ok_or(Failure::Memory)?;
        let inbound = srv_conf(r).mode == Mode::Inbound as u8 || asked.is_some_and(|asked| asked.inbound != 0);
        let direction = if inbound { Direction::Inbound } else { Direction::Outbound };
        let mut captured = match capture::find((*r).connection) {
            Some(found) => (*found).again(),
            None => capture::observe((*r).connection, direction).ok_or(Failure::NoRequest)?,
        };
        let Some(asked) = asked else { return put(pin, tools, &question, captured, &NOTHING, buffer, size, decision) };
        let destination = socket_addr(arg(asked.destination)?, captured.destination)?;
        if destination != captured.destination || direction != captured.direction {
            (captured.destination, captured.direction, captured.matched_at) = (destination, direction, 0);
        }
        put(pin, tools, &question, captured, asked, buffer, size, decision)
    }
}

const NONE: header::amesh_str_t = header::amesh_str_t { data: std::ptr::null(), len: 0 };

/// Neither table nor listener.
const NOTHING: Request = Request {
    method: NONE,
    authority: NONE,
    path: NONE,
    headers: std::ptr::null(),
    headers_count: 0,
    table: NONE,
    listener: NONE,
    destination: NONE,
    source: NONE,
    server_name: NONE,
    application_protocols: NONE,
    tls: 0,
    inbound: 0,
    http2: 0,
};

/// Has it decided, and tells of that.
#[allow(clippy::too_many_arguments)]
unsafe fn put(
    pin: &Pin<'_>,
    tools: &mut Tools,
    question: &Question,
    mut captured: Captured,
    asked: &Request,
    buffer: &mut [u8],
    size: &mut usize,
    decision: &mut Decision,
) -> Result<(), Failure> {
    // SAFETY: the question lives longer than what is made of it; texts of the caller as long as the call.
    unsafe {
        let r = question.request;
        let before = question::listed(r);
        let mut ctx = Ctx::of_question();
        let (table, name) = (arg(asked.table)?, arg(asked.listener)?);
        let decided = if table.is_empty() {
            if !name.is_empty() {
                by_name(pin, name, &mut captured)?;
            }
            decide::decide(pin, tools, r, &mut ctx, &mut captured)
        } else {
            let table = pin.route_table(table).ok_or(Failure::NotFound)?;
            ctx.original_dst = Some(captured.destination);
            question::with_default_manager(|hcm| decide::decide_by(pin, tools, r, &mut ctx, &captured, (hcm, table)))
                .flatten()
        };
        decided.ok_or(Failure::Memory)?;
        let told = Told { request: r, ctx: &ctx, captured: Some(&captured), before: Some(before) };
        tell(pin, &told, buffer, size, decision)
    }
}

/// Has a listener take the connection that its addresses would not bring to it.
fn by_name(pin: &Pin<'_>, name: &str, captured: &mut Captured) -> Result<(), Failure> {
    let found = pin.listener(name).ok_or(Failure::NotFound)?;
    if captured.destination == NOWHERE {
        captured.destination = found.addresses.iter().find_map(|a| a.socket_addr()).unwrap_or(NOWHERE);
    }
    captured.listener = str_of(name);
    captured.matched_at = pin.zone_version();
    let chain = captured.with_info(|info| listener::find_filter_chain(found, info));
    // None is where a listener has no chain of this number: no route.
    captured.chain = chain.map_or(found.filter_chains.len(), |(number, _)| number);
    Ok(())
}

/// What is told of.
struct Told<'a> {
    request: *mut ngx_http_request_t,
    ctx: &'a Ctx,
    captured: Option<&'a Captured>,
    /// The headers before the decision, where it has changed them just now.
    before: Option<Vec<(&'a [u8], ngx_str_t)>>,
}

/// Writes a decision.
unsafe fn tell(
    pin: &Pin<'_>,
    told: &Told<'_>,
    buffer: &mut [u8],
    size: &mut usize,
    decision: &mut Decision,
) -> Result<(), Failure> {
    // SAFETY: the request is live, and all texts of its context live in its pool.
    unsafe {
        let (r, ctx) = (told.request, told.ctx);
        let mut out = Room::new(buffer);
        let request_headers = request_edits(told);
        let response_headers = response_edits(told);
        let (request_list, response_list) =
            (put_edits(&mut out, &request_headers), put_edits(&mut out, &response_headers));
        let mut text = |s: ngx_str_t| out.text(nginx::bytes(s));
        *decision = Decision {
            version: pin.zone_version(),
            listener: text(ctx.listener),
            virtual_host: text(ctx.virtual_host),
            route: text(ctx.route),
            virtual_cluster: text(ctx.virtual_cluster),
            cluster: text(ctx.cluster),
            endpoint: NONE,
            address: NONE,
            port: 0,
            http: if ctx.http2 { 2 } else { 1 },
            authority: text(question::authority(r, ctx.host)),
            path: text((*r).unparsed_uri),
            flags: NONE,
            body: text(ctx.reply.body),
            content_type: text(ctx.reply.content_type),
            location: text(ctx.reply.location),
            status: u32::from(ctx.reply.status),
            grpc_status: ctx.reply.grpc_status.unwrap_or(u32::MAX),
            grpc: u32::from(ctx.grpc),
            retries: ctx.retries.remaining,
            retry_on: NONE,
            delay: ctx.delay,
            connect_timeout: 0,
            timeout: ctx.timeouts.global,
            per_try_timeout: ctx.timeouts.per_try,
            per_try_idle_timeout: ctx.per_try_idle_timeout,
            idle_timeout: ctx.idle_timeout,
            max_stream_duration: ctx.max_stream_duration,
            request_headers: request_list,
            request_headers_count: request_headers.len(),
            response_headers: response_list,
            response_headers_count: response_headers.len(),
        };
        match &ctx.picked {
            Some(picked) => endpoint(picked, &mut out, decision),
            // What was asked last.
            None => decision.endpoint = out.text(nginx::bytes(ctx.endpoint)),
        }
        decision.flags = match ctx.flags == crate::http::reply::Flags::NONE {
            true => out.text(b"-"),
            false => out.text(ctx.flags.text().as_bytes()),
        };
        if ctx.retries.on != 0 {
            decision.retry_on = out.text(retry_on::words(ctx.retries.on).collect::<Vec<_>>().join(",").as_bytes());
        }
        if ctx.reply.status != 0 {
            (decision.endpoint, decision.address, decision.port) = (NONE, NONE, 0);
        }
        out.end(size)
    }
}

/// Writes where a try goes.
pub(super) fn endpoint(picked: &Picked, out: &mut Room<'_>, decision: &mut Decision) {
    let (endpoint, address) = picked.names();
    decision.endpoint = out.text(endpoint.as_bytes());
    decision.address = out.text(address.as_bytes());
    decision.port = u32::from(picked.port());
    decision.connect_timeout = picked.connect_timeout;
    if picked.protocol == Protocol::Http2 {
        decision.http = 2;
    }
}

/// One edit: operation, name, value.
type OneEdit<'a> = (u32, Cow<'a, str>, Cow<'a, [u8]>);

/// What was done to the request's headers.
unsafe fn request_edits<'a>(told: &Told<'a>) -> Vec<OneEdit<'a>> {
    let Some(before) = &told.before else { return Vec::new() };
    let mut edits: Vec<OneEdit<'a>> = Vec::new();
    // SAFETY: the request is live as long as what is told of it.
    let after = unsafe { question::listed(told.request) };
    question::changes(before, &after, |change| {
        let op = match (change.value, edits.last()) {
            (None, _) => header::AMESH_REMOVE,
            (Some(_), Some((_, name, _))) if name == change.name => header::AMESH_APPEND,
            _ => header::AMESH_SET,
        };
        edits.push((op, change.name.into(), change.value.unwrap_or_default().into()));
    });
    edits
}

/// What is done to the response's headers, as far as it can be told.
unsafe fn response_edits<'a>(told: &Told<'a>) -> Vec<OneEdit<'a>> {
    let mut map = Recorded(Vec::new());
    let facts = Facts { request: told.request, ctx: told.ctx, captured: told.captured };
    // SAFETY: the request is live.
    unsafe { told.ctx.response.edits.apply_to(&mut map, &facts) };
    told.ctx.response.each_added(|name, value, set| {
        let op = if set { header::AMESH_SET } else { header::AMESH_APPEND };
        // SAFETY: the value lives in the request's pool.
        map.0.push((op, name.into(), unsafe { nginx::bytes(value) }.into()));
    });
    map.0
}

/// Headers that are not there yet: what is done to them is written down.
struct Recorded<'a>(Vec<OneEdit<'a>>);

impl HeaderMap for Recorded<'_> {
    fn get(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let found = self.0.iter().rev().find(|(_, known, _)| known == name)?;
        (found.0 != header::AMESH_REMOVE).then(|| Cow::Borrowed(found.2.as_ref()))
    }

    fn set(&mut self, name: &str, value: &[u8]) {
        self.0.push((header::AMESH_SET, name.to_owned().into(), value.to_owned().into()));
    }

    fn append(&mut self, name: &str, value: &[u8]) {
        self.0.push((header::AMESH_APPEND, name.to_owned().into(), value.to_owned().into()));
    }

    fn remove(&mut self, name: &str) {
        self.0.push((header::AMESH_REMOVE, name.to_owned().into(), Vec::new().into()));
    }
}

fn put_edits(out: &mut Room<'_>, edits: &[OneEdit<'_>]) -> *const Edit {
    if edits.is_empty() {
        return std::ptr::null();
    }
    let list: Vec<Edit> = edits
        .iter()
        .map(|(op, name, value)| Edit { name: out.text(name.as_bytes()), value: out.text(value), op: *op, unused: 0 })
        .collect();
    out.list(&list)
}

/// See the header.
///
/// # Safety
/// As the header says.
#[no_mangle]
pub unsafe extern "C" fn amesh_route(
    r: *mut c_void,
    inbound: u32,
    buffer: *mut c_void,
    capacity: usize,
    size: *mut usize,
    decision: *mut Decision,
) -> c_int {
    answer("amesh_route", || {
        // SAFETY: promised by the caller.
        unsafe {
            let (buffer, size, decision) = (room(buffer.cast(), capacity)?, place(size)?, place(decision)?);
            let r = live(r)?;
            if zone::with_worker(|_| ()).is_none() {
                return Err(Failure::NoZone);
            }
            if r != (*r).main || srv_conf(r).mode != Mode::Off as u8 {
                return Err(Failure::BadArgument);
            }
            let direction = if inbound != 0 { Direction::Inbound } else { Direction::Outbound };
            let ctx = match ctx(r).filter(|ctx| ctx.is_decided()) {
                // There was no room to tell of it.
                Some(ctx) => ctx,
                None => decide::enter(r, Some(direction)).map_err(|_| Failure::Memory)?,
            };
            zone::with_worker(|worker| {
                let (pin, _) = worker.pin();
                let captured = capture::find((*r).connection).map(|captured| &*captured);
                tell(&pin, &Told { request: r, ctx, captured, before: None }, buffer, size, decision)
            })
            .unwrap_or(Err(Failure::NoZone))
        }
    })
}
