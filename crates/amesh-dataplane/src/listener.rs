//! Which listener and which filter chain take a connection.

use amesh_model::address::{ArchivedCidrRange, ArchivedIp};
use amesh_model::listener::{
    ArchivedFilterChain, ArchivedFilterChainMatch, ArchivedListener, ArchivedListenerIndex, ArchivedPortPredicate,
    ArchivedSourceType, UDP_KEY,
};
use rkyv::collections::swiss_table::ArchivedHashMap;
use rkyv::string::ArchivedString;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The index that stands for the default filter chain, see [`find_filter_chain`].
pub const DEFAULT_FILTER_CHAIN: usize = usize::MAX;

/// On which side of the workload a connection was captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From outside to the workload.
    Inbound,
    /// From the workload to outside.
    Outbound,
}

/// What the TLS inspector says of the transport.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// Plaintext, or not looked at.
    #[default]
    Raw,
    /// TLS.
    Tls,
}

impl Transport {
    /// The name in `FilterChainMatch.transport_protocol`.
    pub fn as_str(self) -> &'static str {
        match self {
            Transport::Raw => "raw_buffer",
            Transport::Tls => "tls",
        }
    }
}

/// What is known of a connection when its filter chain is chosen.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionInfo<'a> {
    /// Where it was going: the original destination of a captured connection.
    pub destination: SocketAddr,
    /// The client.
    pub source: SocketAddr,
    /// The peer of the socket; other than `source` only behind the PROXY protocol.
    pub direct_source: SocketAddr,
    /// SNI, lower case.
    pub server_name: Option<&'a str>,
    /// TLS or not.
    pub transport_protocol: Transport,
    /// ALPN of a TLS client, or what the HTTP inspector found.
    pub application_protocols: &'a [&'a str],
}

/// Which inspectors look at a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inspectors {
    /// The TLS inspector.
    pub tls: bool,
    /// The HTTP inspector.
    pub http: bool,
}

/// A direction's listeners by address.
type ByAddress = ArchivedHashMap<ArchivedString, ArchivedString>;

/// The name of the listener that takes a connection to `destination`, `None` when there is none.
///
/// The listener of that very address, then that of the port on the unspecified address of the same family (a v4-mapped
/// address is IPv4; IPv6 does not ask `0.0.0.0`, `ConnectionHandlerImpl::getBalancedHandlerByAddress`), then the one
/// that takes what is captured in that direction.
pub fn find_listener(index: &ArchivedListenerIndex, direction: Direction, destination: SocketAddr) -> Option<&str> {
    let (listeners, fallback) = match direction {
        Direction::Inbound => (&index.inbound_by_address, &index.virtual_inbound),
        Direction::Outbound => (&index.by_address, &index.virtual_outbound),
    };
    // Inbound there are none, mostly.
    if !listeners.is_empty() {
        let ip = destination.ip().to_canonical();
        let any = match ip {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let port = destination.port();
        if let Some(name) = by_address(listeners, ip, port).or_else(|| by_address(listeners, any, port)) {
            return Some(name);
        }
    }
    (!fallback.is_empty()).then_some(fallback.as_str())
}

/// The listener of UDP at an address: by that address, else by its port on all addresses.
pub fn find_udp_listener(index: &ArchivedListenerIndex, direction: Direction, destination: SocketAddr) -> Option<&str> {
    let listeners = match direction {
        Direction::Inbound => &index.inbound_by_address,
        Direction::Outbound => &index.by_address,
    };
    let ip = destination.ip().to_canonical();
    let any = match ip {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let find = |ip| by_key(listeners, UDP_KEY, ip, destination.port());
    find(ip).or_else(|| find(any))
}

fn by_address(listeners: &ByAddress, ip: IpAddr, port: u16) -> Option<&str> {
    by_key(listeners, "", ip, port)
}

fn by_key<'a>(listeners: &'a ByAddress, prefix: &str, ip: IpAddr, port: u16) -> Option<&'a str> {
    // Longest: a prefix, an IPv6 address in brackets, a colon, five digits.
    let mut text = [0u8; 64];
    let mut rest = &mut text[..];
    write!(rest, "{prefix}{}", SocketAddr::new(ip, port)).ok()?;
    let length = 64 - rest.len();
    let key = std::str::from_utf8(&text[..length]).ok()?;
    listeners.get(key).map(|name| name.as_str())
}

/// Which inspectors look at connections to `port`.
pub fn inspectors(listener: &ArchivedListener, port: u16) -> Inspectors {
    let runs = |filter: Option<&ArchivedPortPredicate>| {
        filter.is_some_and(|f| !f.disabled.iter().any(|r| (r.0.to_native()..r.1.to_native()).contains(&port)))
    };
    Inspectors { tls: runs(listener.tls_inspector.as_ref()), http: runs(listener.http_inspector.as_ref()) }
}

/// The filter chain of an index that [`find_filter_chain`] gave.
pub fn filter_chain_at(listener: &ArchivedListener, index: usize) -> Option<&ArchivedFilterChain> {
    if index == DEFAULT_FILTER_CHAIN {
        return listener.default_filter_chain.as_ref();
    }
    listener.filter_chains.get(index)
}

/// The filter chain that takes a connection, with its index ([`DEFAULT_FILTER_CHAIN`] for the default one).
///
/// Criterion by criterion, in Envoy's order, only the chains with the most specific match stay
/// (`FilterChainManagerImpl::findFilterChain`). There is no way back: where none is left the default takes it.
pub fn find_filter_chain<'a>(
    listener: &'a ArchivedListener,
    connection: &ConnectionInfo<'_>,
) -> Option<(usize, &'a ArchivedFilterChain)> {
    let destination = connection.destination.ip().to_canonical();
    let source = connection.source.ip().to_canonical();
    let direct_source = connection.direct_source.ip().to_canonical();
    let port = connection.destination.port();
    let source_port = connection.source.port();
    let local = is_same_or_loopback(source, destination);
    let criteria: [Rank<'_>; 9] = [
        &|m| match m.destination_port.as_ref() {
            None => Some(0),
            Some(p) => (p.to_native() == port).then_some(1),
        },
        &|m| longest_prefix(&m.prefix_ranges, destination),
        &|m| server_name(m, connection.server_name),
        &|m| match m.transport_protocol.as_str() {
            "" => Some(0),
            name => (name == connection.transport_protocol.as_str()).then_some(1),
        },
        &|m| application_protocol(m, connection.application_protocols),
        &|m| longest_prefix(&m.direct_source_prefix_ranges, direct_source),
        &|m| match m.source_type {
            ArchivedSourceType::Any => Some(0),
            ArchivedSourceType::SameIpOrLoopback => local.then_some(1),
            ArchivedSourceType::External => (!local).then_some(1),
        },
        &|m| longest_prefix(&m.source_prefix_ranges, source),
        &|m| match m.source_ports.is_empty() {
            true => Some(0),
            false => m.source_ports.iter().any(|p| p.to_native() == source_port).then_some(1),
        },
    ];
    let chains = listener.filter_chains.as_slice();
    let mut left = Set::all(chains.len());
    for rank in criteria {
        let best = left.iter().filter_map(|i| rank(&chains[i].filter_chain_match)).max();
        left.retain(|i| best.is_some() && rank(&chains[i].filter_chain_match) == best);
    }
    let found = left.iter().next().map(|i| (i, &chains[i]));
    found.or_else(|| listener.default_filter_chain.as_ref().map(|chain| (DEFAULT_FILTER_CHAIN, chain)))
}

/// How specifically a chain matches by one criterion: 0 where it has none, more for a better match, `None` for no match.
type Rank<'a> = &'a dyn Fn(&ArchivedFilterChainMatch) -> Option<usize>;

/// Chains that are still candidates, one bit each. Only listeners with more than 256 chains allocate.
enum Set {
    Few([u64; 4]),
    Many(Vec<u64>),
}

impl Set {
    fn all(n: usize) -> Set {
        let word = |w: usize| match n.saturating_sub(w * 64) {
            0 => 0,
            bits @ 1..64 => (1 << bits) - 1,
            _ => u64::MAX,
        };
        match n {
            0..=256 => Set::Few([word(0), word(1), word(2), word(3)]),
            _ => Set::Many((0..n.div_ceil(64)).map(word).collect()),
        }
    }

    fn words(&self) -> &[u64] {
        match self {
            Set::Few(words) => words,
            Set::Many(words) => words,
        }
    }

    fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.words().iter().enumerate().flat_map(|(w, bits)| {
            let mut bits = *bits;
            std::iter::from_fn(move || {
                let bit = bits.trailing_zeros() as usize;
                bits &= bits.wrapping_sub(1);
                (bit < 64).then_some(w * 64 + bit)
            })
        })
    }

    fn retain(&mut self, keep: impl Fn(usize) -> bool) {
        let words = match self {
            Set::Few(words) => &mut words[..],
            Set::Many(words) => &mut words[..],
        };
        for (w, bits) in words.iter_mut().enumerate() {
            let mut left = *bits;
            while left != 0 {
                let bit = left.trailing_zeros() as usize;
                left &= left - 1;
                if !keep(w * 64 + bit) {
                    *bits &= !(1 << bit);
                }
            }
        }
    }
}

/// Rank of the longest range that holds `ip`; 0 for no ranges at all.
fn longest_prefix(ranges: &[ArchivedCidrRange], ip: IpAddr) -> Option<usize> {
    if ranges.is_empty() {
        return Some(0);
    }
    ranges.iter().filter(|r| contains(r, ip)).map(|r| usize::from(r.prefix_len) + 1).max()
}

/// Whether an address is within a range.
pub fn contains(range: &ArchivedCidrRange, ip: IpAddr) -> bool {
    let same = |network: u128, address: u128, width: u32| {
        let shift = width.saturating_sub(range.prefix_len.into());
        shift == width || network >> shift == address >> shift
    };
    match (&range.ip, ip) {
        (ArchivedIp::V4(network), IpAddr::V4(ip)) => {
            same(u32::from_be_bytes(*network).into(), u32::from(ip).into(), 32)
        }
        (ArchivedIp::V6(network), IpAddr::V6(ip)) => same(u128::from_be_bytes(*network), u128::from(ip), 128),
        _ => false,
    }
}

/// Exact before the longest `*.suffix`, that before chains without names. `*.b` takes `a.b`, not `b`
/// (and `.b`, which no client sends: Envoy keeps both in one map).
fn server_name(m: &ArchivedFilterChainMatch, name: Option<&str>) -> Option<usize> {
    if m.server_names.is_empty() {
        return Some(0);
    }
    let name = name.unwrap_or("");
    let rank = |wanted: &str| match wanted.strip_prefix('*') {
        Some(suffix) => (suffix.len() > 1 && name.ends_with(suffix)).then_some(suffix.len()),
        None => (wanted == name).then_some(usize::MAX),
    };
    m.server_names.iter().filter_map(|wanted| rank(wanted)).max()
}

/// The client's order counts, not the chain's.
fn application_protocol(m: &ArchivedFilterChainMatch, offered: &[&str]) -> Option<usize> {
    if m.application_protocols.is_empty() {
        return Some(0);
    }
    let first =
        offered.iter().position(|name| m.application_protocols.iter().any(|wanted| wanted.as_str() == *name))?;
    Some(offered.len() - first)
}

/// `Network::Utility::isSameIpOrLoopback`: of 127.0.0.0/8 only 127.0.0.1 counts.
fn is_same_or_loopback(source: IpAddr, destination: IpAddr) -> bool {
    source == destination || source == IpAddr::V4(Ipv4Addr::LOCALHOST) || source == IpAddr::V6(Ipv6Addr::LOCALHOST)
}
