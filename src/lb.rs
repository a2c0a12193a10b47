//! From a cluster's name to an endpoint and the counters that go with it; for http and stream alike.

use crate::http::reply::Flags;
use crate::nginx::{self, pool_str};
use crate::original_dst::{from_sockaddr, to_sockaddr};
use crate::zone::{self, Worker};
use amesh_dataplane::lb::{self, NoEndpoint, PickContext};
use amesh_dataplane::outlier::Rules;
use amesh_model::address::{ArchivedAddress, ArchivedIp};
use amesh_model::cluster::{ArchivedCluster, ArchivedDiscovery, ArchivedUpstreamProtocol};
use amesh_model::health::{ArchivedCircuitBreakers, ArchivedHealthCheckKind};
use amesh_model::subset::{ArchivedCriterion, Criterion};
use ngx::ffi::{self, ngx_pool_t, ngx_str_t};
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

pub use amesh_dataplane::outlier::Outcome;

/// Room for the text of any address: `unix:` and the longest path.
const ADDRESS_STRLEN: usize = 128;

/// Where a request or connection goes.
#[derive(Clone, Copy)]
pub struct Upstream<'a> {
    /// The cluster.
    pub cluster: &'a str,
    /// Hash of its slot's key.
    pub hash: u64,
    /// The connection's original destination, for clusters that go there.
    pub original_dst: Option<SocketAddr>,
    /// What counts against the cluster's limits.
    pub unit: Unit,
    /// Its limits for high priority count.
    pub high_priority: bool,
}

/// What a cluster is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A request of HTTP.
    Request,
    /// A connection that is proxied as such.
    Connection,
    /// Nothing: it is only asked which endpoint would be next.
    Question,
}

/// Why nothing was picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is no such cluster.
    NoCluster,
    /// It has no endpoint that may be asked.
    NoHealthyUpstream,
    /// It, or its endpoints, want what is not supported.
    Refused,
    /// It has no room for more: its circuit breaker is open.
    Overflow,
    /// Nobody may wait for a connection of it, so that none can be made.
    NothingPending,
    /// This worker has no zone.
    NoZone,
}

impl Reason {
    /// The flags that Envoy logs for it.
    pub fn flags(self) -> Flags {
        match self {
            Reason::NoCluster => Flags::NO_CLUSTER,
            Reason::NoHealthyUpstream | Reason::NoZone => Flags::NO_HEALTHY_UPSTREAM,
            Reason::Overflow => Flags::UPSTREAM_OVERFLOW,
            // As after the last of several tries.
            Reason::NothingPending => Flags::RETRY_LIMIT,
            Reason::Refused => Flags::NO_HEALTHY_UPSTREAM.with(Flags::REFUSED),
        }
    }
}

/// Protocol to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// As the client speaks.
    AsTheClient,
}

/// An endpoint that was picked, with all that is needed of its cluster: nothing in it points into the zone.
#[derive(Clone, Copy)]
pub struct Picked {
    /// Its address.
    pub sockaddr: libc::sockaddr_storage,
    /// Length of that.
    pub socklen: libc::socklen_t,
    /// Its cell of counters; `u32::MAX`: none (original destinations).
    pub cell: u32,
    /// Its cluster's cell.
    pub cluster_cell: u32,
    /// Time to connect, ms.
    pub connect_timeout: u64,
    /// Idle time-out of kept connections, ms; 0: none.
    pub idle_timeout: u64,
    /// Requests that a connection may serve; 0: any number.
    pub max_requests_per_connection: u32,
    /// Longest life of a connection, ms, and by how many per cent of that it may be longer; 0: any.
    max_connection_duration: (u64, f64),
    /// TCP keepalive of its connections.
    tcp_keepalive: Option<(u32, u32, u32)>,
    /// It is told who the client is, see [`proxy_header`].
    pub proxy_protocol: bool,
    /// Protocol to the endpoint.
    pub protocol: Protocol,
    bind: Option<IpAddr>,
    held: Option<zone::Held>,
    /// What is held on the cluster, where it has limits or looks after the health of its endpoints.
    held_cluster: Option<zone::Held>,
    /// The same on the cell of high priority.
    held_high: Option<zone::Held>,
    outlier: Option<Rules>,
    /// Its health is checked by HTTP: a response may say that it is over.
    pub checked: bool,
}

impl Picked {
    /// `ip:port`, or the path of a socket. `None` when memory is out.
    pub fn text(&self, pool: *mut ngx_pool_t) -> Option<ngx_str_t> {
        if self.sockaddr.ss_family == libc::AF_INET as libc::sa_family_t {
            // SAFETY: of this family, in storage that is aligned for any.
            let v4 = unsafe { &*std::ptr::from_ref(&self.sockaddr).cast::<libc::sockaddr_in>() };
            return v4_text(pool, u32::from_be(v4.sin_addr.s_addr).to_be_bytes(), u16::from_be(v4.sin_port));
        }
        let mut buffer = [0u8; ADDRESS_STRLEN];
        let mut storage = self.sockaddr;
        // SAFETY: the buffer is large enough for every family; nginx only reads the address.
        let n = unsafe {
            ffi::ngx_sock_ntop(
                std::ptr::from_mut(&mut storage).cast(),
                self.socklen,
                buffer.as_mut_ptr(),
                buffer.len(),
                1,
            )
        };
        pool_str(pool, &buffer[..n])
    }

    /// As [`Picked::text`], and the address without the port: `ip`, or `unix:` and the path.
    pub fn names(&self) -> (String, String) {
        match from_sockaddr(&self.sockaddr) {
            Some(addr) => (addr.to_string(), addr.ip().to_string()),
            None => {
                let path = self.bytes().get(std::mem::offset_of!(libc::sockaddr_un, sun_path)..).unwrap_or_default();
                let path = path.split(|b| *b == 0).next().unwrap_or_default();
                let name = ["unix:", &String::from_utf8_lossy(path)].concat();
                (name.clone(), name)
            }
        }
    }

    /// Its port; 0 for a socket that has none.
    pub fn port(&self) -> u16 {
        from_sockaddr(&self.sockaddr).map_or(0, |addr| addr.port())
    }

    /// Hash of the address, good enough to stand for it: no two addresses of a mesh share theirs.
    pub fn address_hash(&self) -> u64 {
        let from = match self.bind {
            None => 0,
            Some(IpAddr::V4(ip)) => xxh3_64(&ip.octets()),
            Some(IpAddr::V6(ip)) => xxh3_64(&ip.octets()),
        };
        xxh3_64_with_seed(self.bytes(), from)
    }

    /// Whether its connections are made as nginx makes them.
    pub fn is_plain(&self) -> bool {
        !self.proxy_protocol && self.tcp_keepalive.is_none()
    }

    /// How much longer a connection may live, in ms; `None`: as long as it likes.
    ///
    /// # Safety
    /// `c` must be open, and made by nginx's own connect.
    pub unsafe fn time_left(&self, c: *const ffi::ngx_connection_t) -> Option<u64> {
        let (longest, jitter) = self.max_connection_duration;
        if longest == 0 {
            return None;
        }
        // SAFETY: promised by the caller; nginx keeps its clock for as long as it runs.
        let (age, number) = unsafe { (ffi::ngx_current_msec.wrapping_sub((*c).start_time), (*c).number) };
        // The same for a connection each time it is asked for.
        let more = if jitter > 0.0 { fastrand::Rng::with_seed(number).f64() * jitter / 100.0 } else { 0.0 };
        Some((longest as f64 * (1.0 + more)) as u64).map(|longest| longest.saturating_sub(age as u64))
    }

    /// Sets TCP keepalive where the cluster has it. What the system refuses stays as it is.
    pub fn keep_alive(&self, fd: libc::c_int) {
        let Some((time, interval, probes)) = self.tcp_keepalive else { return };
        let set = |level, name, value: u32| {
            let value = libc::c_int::try_from(value).unwrap_or(libc::c_int::MAX);
            let len = size_of::<libc::c_int>() as libc::socklen_t;
            // SAFETY: the option's value is an int, which outlives the call.
            unsafe { libc::setsockopt(fd, level, name, std::ptr::from_ref(&value).cast(), len) };
        };
        if libc::c_int::from(self.sockaddr.ss_family) == libc::AF_UNIX {
            return;
        }
        set(libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
        for (name, value) in [(libc::TCP_KEEPIDLE, time), (libc::TCP_KEEPINTVL, interval), (libc::TCP_KEEPCNT, probes)]
        {
            if value > 0 {
                set(libc::IPPROTO_TCP, name, value);
            }
        }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the storage holds at least socklen initialised bytes.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(&self.sockaddr).cast(), self.socklen as usize) }
    }

    /// Fills nginx's local address from the cluster's `upstream_bind_config`; null when there is none.
    pub fn bind_addr(&self, addr: &mut ffi::ngx_addr_t, storage: &mut libc::sockaddr_storage) -> *mut ffi::ngx_addr_t {
        let Some(ip) = self.bind else { return std::ptr::null_mut() };
        let (sockaddr, len) = to_sockaddr(SocketAddr::new(ip, 0));
        *storage = sockaddr;
        addr.sockaddr = std::ptr::from_mut(storage).cast();
        addr.socklen = len;
        addr.name = nginx::str_of("upstream_bind_config");
        addr
    }
}

/// `ip:port`, at a tenth of what `ngx_sock_ntop` costs: it is written for every try.
fn v4_text(pool: *mut ngx_pool_t, ip: [u8; 4], port: u16) -> Option<ngx_str_t> {
    let mut text = [0u8; "255.255.255.255:65535".len()];
    let mut room = &mut text[..];
    let mut number = itoa::Buffer::new();
    for (octet, end) in ip.into_iter().zip(b"...:") {
        room.write_all(number.format(octet).as_bytes()).ok()?;
        room.write_all(std::slice::from_ref(end)).ok()?;
    }
    room.write_all(number.format(port).as_bytes()).ok()?;
    let left = room.len();
    pool_str(pool, &text[..text.len() - left])
}

/// What a pick depends on, apart from the cluster.
#[derive(Clone, Copy)]
pub struct Choice<'a> {
    /// Cells of endpoints not to pick again.
    pub tried: &'a [u32],
    /// The hash of the request or connection, where its policy gives one.
    pub hash: Option<u64>,
    /// See [`PickContext::host_selection_attempts`].
    pub host_selection_attempts: u32,
    /// What the route asks of the metadata of endpoints.
    pub metadata_match: &'a [ArchivedCriterion],
}

/// What a route asks of the metadata of endpoints, in a pool: `Vec<Criterion>` as rkyv wrote it; empty: nothing.
#[derive(Clone, Copy)]
pub struct MetadataMatch(ngx_str_t);

impl MetadataMatch {
    /// Nothing.
    pub const NONE: MetadataMatch = MetadataMatch(nginx::EMPTY);

    /// Keeps it. `None` when memory is out.
    pub fn keep(pool: *mut ngx_pool_t, criteria: &[ArchivedCriterion]) -> Option<MetadataMatch> {
        if criteria.is_empty() {
            return Some(Self::NONE);
        }
        let owned: Vec<Criterion> =
            criteria.iter().filter_map(|c| rkyv::deserialize::<Criterion, rkyv::rancor::Error>(c).ok()).collect();
        nginx::pool_aligned(pool, &rkyv::to_bytes::<rkyv::rancor::Error>(&owned).ok()?).map(MetadataMatch)
    }

    /// As a pick takes it.
    ///
    /// # Safety
    /// The pool must be live.
    pub unsafe fn view<'a>(self) -> &'a [ArchivedCriterion] {
        if self.0.len == 0 {
            return &[];
        }
        // SAFETY: written by keep() into the pool that the caller promises to be live.
        unsafe { rkyv::access_unchecked::<rkyv::vec::ArchivedVec<ArchivedCriterion>>(nginx::bytes(self.0)) }
    }
}

impl<'a, T: AsRef<[u32]> + ?Sized> From<&'a T> for Choice<'a> {
    /// Without a hash.
    fn from(tried: &'a T) -> Choice<'a> {
        Choice { tried: tried.as_ref(), hash: None, host_selection_attempts: 1, metadata_match: &[] }
    }
}

/// Picks an endpoint of a cluster, not one of those that were tried. The endpoint and its cluster count
/// a request from now on: the result must come back by [`end`].
pub fn pick<'a>(upstream: &Upstream<'_>, choice: impl Into<Choice<'a>>) -> Result<Picked, Reason> {
    zone::with_worker(|worker| {
        let (pin, tools) = worker.pin();
        pick_pinned(&pin, tools, upstream, choice)
    })
    .unwrap_or(Err(Reason::NoZone))
}

/// [`pick`] under a pin that is held already.
pub fn pick_pinned<'a>(
    pin: &zone::Pin<'_>,
    tools: &mut zone::Tools,
    upstream: &Upstream<'_>,
    choice: impl Into<Choice<'a>>,
) -> Result<Picked, Reason> {
    let cluster = pin.cluster(upstream.hash, upstream.cluster).ok_or(Reason::NoCluster)?;
    if let Some(reason) = cluster.refuse.as_ref() {
        zone::complain(upstream.cluster, reason);
        return Err(Reason::Refused);
    }
    if !has_room(pin, cluster, upstream) {
        return Err(Reason::Overflow);
    }
    if upstream.unit == Unit::Connection && cluster.circuit_breakers.max_pending_requests == 0 {
        return Err(Reason::NothingPending);
    }
    if matches!(cluster.discovery, ArchivedDiscovery::OriginalDst) {
        tools.hostname.clear();
        let to = upstream.original_dst.ok_or(Reason::NoHealthyUpstream)?;
        let (sockaddr, socklen) = to_sockaddr(to);
        return Ok(picked(pin, cluster, upstream, (sockaddr, socklen), u32::MAX, to.is_ipv4()));
    }
    let set = pin.endpoint_set(upstream.cluster).ok_or(Reason::NoHealthyUpstream)?;
    let mut random = || tools.random();
    let Choice { tried: exclude, hash, host_selection_attempts, metadata_match } = choice.into();
    let now = cluster.slow_start.as_ref().map_or(0, |_| nginx::unix_ms());
    let mut context =
        PickContext { now, exclude, hash, host_selection_attempts, metadata_match, ..PickContext::new(&mut random) };
    let endpoint = lb::pick(cluster, set, pin, &mut context).map_err(|NoEndpoint| Reason::NoHealthyUpstream)?;
    tools.hostname.clear();
    tools.hostname.push_str(&endpoint.hostname);
    if let Some(reason) = endpoint.refuse.as_ref() {
        zone::complain(upstream.cluster, reason);
        return Err(Reason::Refused);
    }
    let (sockaddr, socklen, v4) = match &endpoint.address {
        ArchivedAddress::Socket { ip, port } => {
            let (s, l) = to_sockaddr(SocketAddr::new(ip.into(), port.to_native()));
            (s, l, matches!(ip, ArchivedIp::V4(_)))
        }
        ArchivedAddress::Pipe(path) => {
            let (s, l) = unix_sockaddr(path).ok_or(Reason::NoHealthyUpstream)?;
            (s, l, false)
        }
    };
    Ok(picked(pin, cluster, upstream, (sockaddr, socklen), endpoint.cell.to_native(), v4))
}

/// Whether a cluster's limits allow one more (`ResourceLimit::canCreate`). As in Envoy, several at the very same time
/// may all be allowed.
fn has_room(pin: &zone::Pin<'_>, c: &ArchivedCluster, upstream: &Upstream<'_>) -> bool {
    if !is_limited(c) {
        return true;
    }
    let Some(used) = Used::of(pin, c, upstream.high_priority) else { return true };
    match upstream.unit {
        Unit::Request | Unit::Question => used.limits.allows_request(used.requests),
        Unit::Connection => used.limits.allows_connection(used.connections),
    }
}

/// What is active of one priority of a cluster, and its limits.
struct Used<'a> {
    limits: &'a ArchivedCircuitBreakers,
    requests: u32,
    connections: u32,
    retries: u32,
}

impl<'a> Used<'a> {
    /// `None`: the zone has no such cell.
    fn of(pin: &zone::Pin<'_>, c: &'a ArchivedCluster, high: bool) -> Option<Used<'a>> {
        let count = |cell: u32| {
            let cell = pin.cell(cell)?;
            let [requests, connections, retries] =
                [&cell.rq_active, &cell.cx_active, &cell.rq_retry_active].map(|g| g.load(Ordering::Relaxed));
            Some((requests, connections, retries))
        };
        let all = count(c.cell.to_native())?;
        let Some(of_high) = c.high_priority.as_ref() else {
            let (requests, connections, retries) = all;
            return Some(Used { limits: &c.circuit_breakers, requests, connections, retries });
        };
        let (requests, connections, retries) = count(of_high.cell.to_native())?;
        Some(match high {
            true => Used { limits: &of_high.circuit_breakers, requests, connections, retries },
            // The cluster's own cell counts both.
            false => Used {
                limits: &c.circuit_breakers,
                requests: all.0.saturating_sub(requests),
                connections: all.1.saturating_sub(connections),
                retries: all.2.saturating_sub(retries),
            },
        })
    }
}

/// Whether what is active has to be counted by cluster. Istio's clusters have no limits, unless they are asked for.
fn is_limited(c: &ArchivedCluster) -> bool {
    let limits = &c.circuit_breakers;
    c.high_priority.is_some()
        || limits.retry_budget.is_some()
        || [&limits.max_requests, &limits.max_connections, &limits.max_pending_requests]
            .iter()
            .any(|n| n.to_native() != u32::MAX)
}

fn picked(
    pin: &zone::Pin<'_>,
    c: &ArchivedCluster,
    upstream: &Upstream<'_>,
    (sockaddr, socklen): (libc::sockaddr_storage, libc::socklen_t),
    cell: u32,
    v4: bool,
) -> Picked {
    let cluster_cell = c.cell.to_native();
    let unit = upstream.unit;
    let held_cluster = match unit {
        // This counts it, too.
        Unit::Request if is_limited(c) || c.outlier_detection.is_some() || c.health_check.is_some() => {
            pin.acquire(cluster_cell)
        }
        Unit::Question => None,
        Unit::Request | Unit::Connection => {
            if let Some(cell) = pin.cell(cluster_cell) {
                cell.rq_total.fetch_add(1, Ordering::Relaxed);
            }
            (unit == Unit::Connection).then(|| pin.acquire_connection(cluster_cell)).flatten()
        }
    };
    let held_high = c.high_priority.as_ref().filter(|_| upstream.high_priority && unit == Unit::Request);
    Picked {
        sockaddr,
        socklen,
        cell,
        cluster_cell,
        connect_timeout: c.connect_timeout.to_native(),
        idle_timeout: c.idle_timeout.to_native(),
        max_requests_per_connection: c.max_requests_per_connection.to_native(),
        max_connection_duration: (c.max_connection_duration.to_native(), c.max_connection_duration_jitter.to_native()),
        tcp_keepalive: c.tcp_keepalive.as_ref().map(|k| (k.0.to_native(), k.1.to_native(), k.2.to_native())),
        proxy_protocol: c.proxy_protocol.is_some(),
        protocol: match c.protocol {
            ArchivedUpstreamProtocol::Http1 => Protocol::Http1,
            ArchivedUpstreamProtocol::Http2 => Protocol::Http2,
            ArchivedUpstreamProtocol::UseDownstream => Protocol::AsTheClient,
        },
        bind: c.bind.iter().map(IpAddr::from).find(|ip| ip.is_ipv4() == v4),
        held: (unit != Unit::Question).then(|| pin.acquire(cell)).flatten(),
        held_cluster,
        held_high: held_high.and_then(|high| pin.acquire(high.cell.to_native())),
        outlier: c.outlier_detection.as_ref().map(|o| Rules::from(&**o)),
        checked: c.health_check.as_ref().is_some_and(|h| matches!(h.kind, ArchivedHealthCheckKind::Http(_))),
    }
}

/// What an endpoint of the cluster is told first of a client's connection; `None`: nothing.
pub fn proxy_header(upstream: &Upstream<'_>, source: SocketAddr, destination: SocketAddr) -> Option<Vec<u8>> {
    zone::with_worker(|worker| {
        let (pin, _) = worker.pin();
        let cluster = pin.cluster(upstream.hash, upstream.cluster)?;
        Some(cluster.proxy_protocol.as_ref()?.header(source, destination))
    })
    .flatten()
}

/// The address of a Unix socket; `@` begins an abstract name. `None` when the path is too long.
fn unix_sockaddr(path: &str) -> Option<(libc::sockaddr_storage, libc::socklen_t)> {
    // SAFETY: all zeroes is a value of this plain C struct.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    // SAFETY: the storage is larger than, and aligned for, any address type.
    let un = unsafe { &mut *std::ptr::from_mut(&mut storage).cast::<libc::sockaddr_un>() };
    un.sun_family = libc::AF_UNIX as libc::sa_family_t;
    if path.len() >= un.sun_path.len() {
        return None;
    }
    for (to, from) in un.sun_path.iter_mut().zip(path.bytes()) {
        *to = from as libc::c_char;
    }
    let offset = std::mem::offset_of!(libc::sockaddr_un, sun_path);
    let len = if path.starts_with('@') {
        un.sun_path[0] = 0;
        offset + path.len()
    } else {
        offset + path.len() + 1
    };
    Some((storage, len as libc::socklen_t))
}

/// What is known of a try by now, which goes on. Its endpoint may be ejected for it.
pub fn report(picked: &Picked, outcome: Outcome) {
    zone::with_worker(|worker| count(worker, picked, outcome));
}

/// A try ends, thus. Its endpoint may be ejected for it.
pub fn end(picked: &mut Picked, outcome: Outcome) {
    zone::with_worker(|worker| {
        count(worker, picked, outcome);
        for held in [&mut picked.held, &mut picked.held_cluster, &mut picked.held_high] {
            if let Some(held) = held.take() {
                worker.release(held);
            }
        }
    });
}

/// A response says that its endpoint is no longer healthy (`x-envoy-immediate-health-check-fail`). Active checks bring
/// it back. To be called before [`end`].
pub fn fail_health_check(picked: &Picked) {
    zone::with_worker(|worker| {
        worker.fail_health_check(picked.cell, picked.cluster_cell);
    });
}

fn count(worker: &mut Worker, picked: &Picked, outcome: Outcome) {
    // A cell may be another's as soon as nothing is held on it.
    for cell in [picked.cell, picked.cluster_cell] {
        if let Some(cell) = worker.cell(cell).filter(|_| outcome.failed()) {
            let counter = if outcome.connected() { &cell.rq_error } else { &cell.cx_connect_fail };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
    if let Some(rules) = &picked.outlier {
        worker.record(rules, picked.cell, picked.cluster_cell, outcome);
    }
}

/// A retry that counts against its cluster's limit until it comes back by [`end_retry`].
#[derive(Clone, Copy)]
pub struct Retry(Option<zone::Held>, Option<zone::Held>);

impl Retry {
    /// None.
    pub const NONE: Retry = Retry(None, None);
}

/// A request is about to be tried again.
///
/// # Errors
/// [`Reason::Overflow`]: the cluster's limit or budget of retries is used up; the former answer goes to the client, with
/// the flag `UO`.
pub fn begin_retry(upstream: &Upstream<'_>) -> Result<Retry, Reason> {
    zone::with_worker(|worker| {
        let (pin, _) = worker.pin();
        let cluster = pin.cluster(upstream.hash, upstream.cluster).ok_or(Reason::NoCluster)?;
        let index = cluster.cell.to_native();
        let Some(used) = Used::of(&pin, cluster, upstream.high_priority) else { return Ok(Retry::NONE) };
        if !used.limits.allows_retry(used.retries, used.requests) {
            return Err(Reason::Overflow);
        }
        let high = cluster.high_priority.as_ref().filter(|_| upstream.high_priority);
        Ok(Retry(pin.acquire_retry(index), high.and_then(|high| pin.acquire_retry(high.cell.to_native()))))
    })
    .unwrap_or(Err(Reason::NoZone))
}

/// The retry is over, if there is one.
pub fn end_retry(retry: &mut Retry) {
    for held in [&mut retry.0, &mut retry.1] {
        if let Some(held) = held.take() {
            zone::with_worker(|worker| worker.release(held));
        }
    }
}
