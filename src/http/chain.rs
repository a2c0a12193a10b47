//! The HTTP filters in front of the router, in the order of the connection manager.

use super::ctx::Ctx;
use super::edit::{self, Facts, RequestHeaders, ResponseEdits};
use super::forward::Seen;
use super::head::Head;
use super::reply::Flags;
use crate::nginx::{pool_str, str_of};
use crate::zone;
use amesh_dataplane::bucket::{Bucket, Level};
use amesh_dataplane::header::Levels;
use amesh_dataplane::route::Decision;
use amesh_dataplane::{cors, fault};
use amesh_model::filter::{ArchivedCors, ArchivedFault, ArchivedHttpFilter, ArchivedLocalRateLimit};
use amesh_model::matcher::ArchivedFraction;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the filters work with.
pub struct Chain<'a, 'p> {
    /// The request.
    pub seen: &'a Seen<'a>,
    /// Its head.
    pub head: &'a Head<'a>,
    /// The zone.
    pub pin: &'a zone::Pin<'p>,
    /// Random numbers and regular expressions.
    pub tools: &'a mut zone::Tools,
    /// What the router says.
    pub decision: &'a Decision<'a>,
}

impl Chain<'_, '_> {
    /// Runs them; the first that answers ends it. `None` when memory is out.
    ///
    /// # Safety
    /// The request must be live and not yet be on its way upstream.
    pub unsafe fn run(&mut self, ctx: &mut Ctx) -> Option<()> {
        let route = self.decision.route();
        for filter in self.seen.hcm.filters.iter() {
            // SAFETY: promised by the caller.
            unsafe {
                match filter {
                    ArchivedHttpFilter::Fault(of_filter) => {
                        self.fault(ctx, route.and_then(|route| route.fault.as_deref()).unwrap_or(of_filter))?;
                    }
                    ArchivedHttpFilter::Cors => {
                        // Answers of the router itself are none of its business.
                        let Decision::Forward(forward) = self.decision else { continue };
                        if let Some(cors) = forward.route.1.cors.as_deref() {
                            self.cors(ctx, cors)?;
                        }
                    }
                    ArchivedHttpFilter::LocalRateLimit(of_filter) => {
                        let limit = route.and_then(|route| route.rate_limit.as_deref()).unwrap_or(of_filter);
                        self.local_rate_limit(ctx, limit)?;
                    }
                    ArchivedHttpFilter::Buffer(of_filter) => {
                        let own = route.and_then(|route| route.max_request_bytes.as_ref());
                        ctx.max_request_bytes = own.unwrap_or(of_filter).to_native();
                    }
                }
            }
            if ctx.reply.status != 0 {
                break;
            }
        }
        Some(())
    }

    unsafe fn fault(&mut self, ctx: &mut Ctx, fault: &ArchivedFault) -> Option<()> {
        if fault.delay.is_none() && fault.abort.is_none() {
            return Some(());
        }
        let cluster = match self.decision {
            Decision::Forward(forward) => Some(forward.cluster.as_ref()),
            _ => None,
        };
        if !fault::applies(fault, cluster, self.head, self.tools.regexes()) {
            return Some(());
        }
        let ms = fault::delay(fault, self.head, self.tools.random());
        if ms > 0 {
            ctx.delay += ms;
            ctx.flags = ctx.flags.with(Flags::DELAY_INJECTED);
        }
        if let Some(abort) = fault::abort(fault, self.head, self.tools.random()) {
            ctx.refuse(abort.status, Flags::FAULT_INJECTED, "");
            ctx.reply.grpc_status = abort.grpc_status;
            // SAFETY: promised by the caller.
            ctx.reply.body = pool_str(unsafe { (*self.seen.request).pool }, abort.body.as_bytes())?;
        }
        Some(())
    }

    unsafe fn cors(&mut self, ctx: &mut Ctx, cors: &ArchivedCors) -> Option<()> {
        // SAFETY: promised by the caller; the value lives as long as the request.
        let (pool, origin) = unsafe {
            let r = self.seen.request;
            ((*r).pool, edit::request_header(r, b"origin").unwrap_or_default())
        };
        let verdict = cors::verdict(cors, self.head, self.tools.regexes());
        let origin = std::str::from_utf8(origin).unwrap_or_default();
        match verdict {
            cors::Verdict::Pass => {}
            cors::Verdict::Answered => {
                for (name, value) in cors::response_headers(cors, origin) {
                    ctx.response.set(pool, name, value)?;
                }
            }
            cors::Verdict::Preflight | cors::Verdict::Denied => {
                let denied = verdict == cors::Verdict::Denied;
                for (name, value) in cors::preflight_headers(cors, origin, denied, self.head) {
                    ctx.response.set(pool, name, value)?;
                }
                ctx.response.edits = ResponseEdits::NONE;
                ctx.refuse(200, Flags::NONE, "");
                ctx.reply.headers_only = true;
            }
        }
        Some(())
    }

    unsafe fn local_rate_limit(&mut self, ctx: &mut Ctx, limit: &ArchivedLocalRateLimit) -> Option<()> {
        let Some(bucket) = limit.bucket.as_ref() else { return Some(()) };
        if !self.draws(&limit.enabled) {
            return Some(());
        }
        let tokens = match limit.per_connection {
            true => Tokens::Connection(&raw const self.seen.captured.tokens),
            false => Tokens::Cell(bucket.cell.to_native()),
        };
        let rate = Rate { bucket: bucket.into(), tokens };
        // As Envoy: what is always empty has no level.
        if limit.tell && bucket.max_tokens > 0 {
            ctx.response.rate = Some(rate);
        }
        let now = zone::clock_ns();
        let state = match tokens {
            Tokens::Connection(_) => Some(&self.seen.captured.tokens),
            Tokens::Cell(cell) => self.pin.cell(cell).map(|cell| cell.bucket()),
        };
        // Who only asks takes no token.
        let copy = AtomicU64::new(state.map_or(0, |state| state.load(Ordering::Relaxed)));
        let state = if ctx.asked { state.map(|_| &copy) } else { state };
        // A cell that is not there says nothing.
        let Some(state) = state.filter(|state| !rate.bucket.take(state, now)) else { return Some(()) };
        // SAFETY: promised by the caller.
        unsafe {
            let r = self.seen.request;
            let levels = Levels { route: Some(&limit.headers), ..Levels::default() };
            if !self.draws(&limit.enforced) {
                let facts = || Facts { request: r, ctx, captured: Some(self.seen.captured) };
                let mut headers = RequestHeaders { facts: facts(), host: None, failed: false };
                levels.edit_request(&mut headers, &facts());
                return (!headers.failed).then_some(());
            }
            ctx.response.local_edits = ResponseEdits::keep((*r).pool, &levels)?;
            ctx.refuse(limit.status.to_native(), Flags::RATE_LIMITED, "");
            ctx.reply.body = str_of("local_rate_limited");
            let own = limit.headers.response_add.iter().any(|h| h.key == "retry-after");
            if limit.retry_after && limit.status == 429 && !own {
                let seconds = rate.bucket.level(state, now).reset.max(1);
                ctx.response.set((*r).pool, "retry-after", &seconds.to_string())?;
            }
            if limit.resource_exhausted {
                ctx.reply.grpc_status = Some(8);
            }
        }
        Some(())
    }

    /// Whether a request is among the share.
    fn draws(&mut self, share: &ArchivedFraction) -> bool {
        self.tools.random() % u64::from(share.denominator.to_native().max(1)) < share.numerator.to_native().into()
    }
}

/// Where it stands how full a bucket is.
#[derive(Clone, Copy)]
enum Tokens {
    /// A cell of the zone.
    Cell(u32),
    /// In the connection's pool.
    Connection(*const AtomicU64),
}

/// The bucket of a response that tells how full it is.
#[derive(Clone, Copy)]
pub struct Rate {
    bucket: Bucket,
    tokens: Tokens,
}

impl Rate {
    /// How full it is now; `None` where the zone cannot be read.
    ///
    /// # Safety
    /// The connection whose request it was taken for must be open.
    pub unsafe fn level(self) -> Option<Level> {
        let now = zone::clock_ns();
        match self.tokens {
            // SAFETY: promised by the caller.
            Tokens::Connection(tokens) => Some(self.bucket.level(unsafe { &*tokens }, now)),
            Tokens::Cell(cell) => {
                zone::with_worker(|worker| Some(self.bucket.level(worker.cell(cell)?.bucket(), now))).flatten()
            }
        }
    }
}
