//! From a cluster's name to an endpoint and the counters that go with it; for http and stream alike.

use crate::http::reply::Flags;
use crate::nginx::{self, pool_str};
use crate::original_dst::to_sockaddr;
use crate::zone::{self, Worker};
use amesh_dataplane::lb::{self, NoEndpoint, PickContext};
use amesh_model::address::{ArchivedAddress, ArchivedIp};
use amesh_model::cluster::{ArchivedCluster, ArchivedDiscovery, ArchivedUpstreamProtocol};
use amesh_model::subset::ArchivedCriterion;
use ngx::ffi::{self, ngx_pool_t, ngx_str_t};
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;

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
    /// This worker has no zone.
    NoZone,
}

impl Reason {
    /// The flags that Envoy logs for it.
    pub fn flags(self) -> Flags {
        match self {
            Reason::NoCluster => Flags::NO_CLUSTER,
            Reason::NoHealthyUpstream | Reason::NoZone => Flags::NO_HEALTHY_UPSTREAM,
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
    /// Protocol to the endpoint.
    pub protocol: Protocol,
    bind: Option<IpAddr>,
    held: Option<zone::Held>,
}

impl Picked {
    /// `ip:port`, or the path of a socket. `None` when memory is out.
    pub fn text(&self, pool: *mut ngx_pool_t) -> Option<ngx_str_t> {
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

    /// Hash of the address.
    pub fn address_hash(&self) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        self.bytes().hash(&mut hasher);
        self.bind.hash(&mut hasher);
        hasher.finish()
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
    if matches!(cluster.discovery, ArchivedDiscovery::OriginalDst) {
        tools.hostname.clear();
        let to = upstream.original_dst.ok_or(Reason::NoHealthyUpstream)?;
        let (sockaddr, socklen) = to_sockaddr(to);
        return Ok(picked(pin, cluster, sockaddr, socklen, u32::MAX, to.is_ipv4()));
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
    Ok(picked(pin, cluster, sockaddr, socklen, endpoint.cell.to_native(), v4))
}

fn picked(
    pin: &zone::Pin<'_>,
    c: &ArchivedCluster,
    sockaddr: libc::sockaddr_storage,
    socklen: libc::socklen_t,
    cell: u32,
    v4: bool,
) -> Picked {
    if let Some(cell) = pin.cell(c.cell.to_native()) {
        cell.rq_total.fetch_add(1, Ordering::Relaxed);
    }
    Picked {
        sockaddr,
        socklen,
        cell,
        cluster_cell: c.cell.to_native(),
        connect_timeout: c.connect_timeout.to_native(),
        idle_timeout: c.idle_timeout.to_native(),
        max_requests_per_connection: c.max_requests_per_connection.to_native(),
        protocol: match c.protocol {
            ArchivedUpstreamProtocol::Http1 => Protocol::Http1,
            ArchivedUpstreamProtocol::Http2 => Protocol::Http2,
            ArchivedUpstreamProtocol::UseDownstream => Protocol::AsTheClient,
        },
        bind: c.bind.iter().map(IpAddr::from).find(|ip| ip.is_ipv4() == v4),
        held: pin.acquire(cell),
    }
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

/// A try ends. `connected`: it got as far as a connection.
pub fn end(picked: &mut Picked, failed: bool, connected: bool) {
    zone::with_worker(|worker: &mut Worker| {
        // A cell may be another's as soon as nothing is held on it.
        for cell in [picked.cell, picked.cluster_cell] {
            if let Some(cell) = worker.cell(cell).filter(|_| failed) {
                let counter = if connected { &cell.rq_error } else { &cell.cx_connect_fail };
                counter.fetch_add(1, Ordering::Relaxed);
            }
        }
        if let Some(held) = picked.held.take() {
            worker.release(held);
        }
    });
}
