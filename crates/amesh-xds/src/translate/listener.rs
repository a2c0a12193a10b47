//! `config.listener.v3.Listener` → [`Listener`], and which listener takes which address.

use super::chain::{filter_chain, no_two_match_alike};
use super::notes::ignored;
use super::value::{address, bool_or, enumeration, millis, type_name, Place};
use super::{udp, Invalid, Notes};
use amesh_model::address::{Address, Ip};
use amesh_model::listener::{Listener, ListenerIndex, PortPredicate, TrafficDirection, UDP_KEY};
use envoy_types::pb::envoy::config::{core::v3 as core, listener::v3 as pb};
use std::collections::BTreeMap;

/// A listener and what it waits for.
#[derive(Clone, Debug)]
pub struct TranslatedListener {
    /// The listener.
    pub listener: Listener,
    /// The route tables that it names, and how long to wait for each, in ms (`initial_fetch_timeout`); 0: for ever.
    pub tables: BTreeMap<String, u64>,
}

/// A listener.
///
/// # Errors
/// [`Invalid`] names the field that makes no sense or is refused by name.
pub fn listener(l: &pb::Listener, notes: &mut Notes) -> Result<TranslatedListener, Invalid> {
    let pb::Listener {
        name,
        address: main_address,
        additional_addresses,
        stat_prefix: _,
        stats_matcher: _,
        filter_chains,
        fcds_config,
        filter_chain_matcher,
        use_original_dst,
        default_filter_chain,
        per_connection_buffer_limit_bytes,
        per_connection_buffer_high_watermark_timeout,
        metadata: _,
        deprecated_v1,
        drain_type: _,
        listener_filters,
        listener_filters_timeout,
        continue_on_listener_filters_timeout,
        transparent,
        freebind,
        socket_options,
        tcp_fast_open_queue_length,
        traffic_direction,
        udp_listener_config,
        api_listener,
        connection_balance_config,
        reuse_port: _,
        enable_reuse_port,
        access_log,
        tcp_backlog_size,
        max_connections_to_accept_per_socket_event,
        bind_to_port,
        enable_mptcp,
        ignore_global_conn_limit,
        bypass_overload_manager,
        tcp_keepalive,
        listener_specifier,
    } = l;
    ignored!(notes, "sockets are opened as nginx's `listen` says";
        transparent, freebind, socket_options, tcp_fast_open_queue_length, connection_balance_config, enable_reuse_port,
        tcp_backlog_size, max_connections_to_accept_per_socket_event, enable_mptcp, tcp_keepalive);
    ignored!(notes, "nginx buffers as its own directives say";
        per_connection_buffer_limit_bytes, per_connection_buffer_high_watermark_timeout);
    ignored!(notes, "nginx has limits of its own"; ignore_global_conn_limit, bypass_overload_manager);
    ignored!(notes, "nginx writes its own access logs"; access_log);
    if name.is_empty() {
        return Err(notes.invalid("name", "is empty"));
    }

    let of_udp = udp::is_udp(main_address);
    // A listener whose connections cannot be told apart, or that is no TCP listener, takes none.
    let mut refuse = None;
    let mut no = |notes: &mut Notes, set: bool, field: &str| {
        if set {
            refuse = Some(notes.refused(field, "is not supported: every connection is refused"));
        }
    };
    no(notes, fcds_config.is_some(), "fcds_config");
    no(notes, filter_chain_matcher.is_some(), "filter_chain_matcher");
    no(notes, udp_listener_config.as_ref().is_some_and(|u| !of_udp || u.quic_options.is_some()), "udp_listener_config");
    no(notes, api_listener.is_some(), "api_listener");
    no(notes, listener_specifier.is_some(), "internal_listener");

    let mut addresses = Vec::new();
    if main_address.is_some() || refuse.is_none() {
        let plain = of_udp.then(|| udp::without_protocol(main_address));
        addresses.extend(listener_address(plain.as_ref().unwrap_or(main_address), &mut refuse, notes)?);
    }
    for (i, a) in additional_addresses.iter().enumerate() {
        let pb::AdditionalAddress { address, socket_options, tcp_keepalive } = a;
        notes.each("additional_addresses", i, |notes| {
            ignored!(notes, "sockets are opened as nginx's `listen` says"; socket_options, tcp_keepalive);
            let plain = of_udp.then(|| udp::without_protocol(address));
            addresses.extend(listener_address(plain.as_ref().unwrap_or(address), &mut refuse, notes)?);
            Ok(())
        })?;
    }
    let mut of_udp_proxy = None;
    let sniff = match of_udp {
        false => sniffers(listener_filters, &mut refuse, notes)?,
        true => {
            match udp::proxy(listener_filters, notes)? {
                Ok(proxy) => of_udp_proxy = Some(proxy),
                Err(reason) => refuse = refuse.or(Some(reason)),
            }
            if !filter_chains.is_empty() || default_filter_chain.is_some() {
                refuse = Some(notes.refused("filter_chains", "are not supported for UDP"));
            }
            Sniffers::default()
        }
    };
    if filter_chains.is_empty() && default_filter_chain.is_none() && refuse.is_none() && !of_udp {
        return Err(notes.invalid("filter_chains", "is empty, and there is no default_filter_chain"));
    }
    let mut tables = BTreeMap::new();
    let chains = notes.list("filter_chains", filter_chains, |c, n| filter_chain(c, &mut tables, n))?;
    no_two_match_alike(&chains, notes)?;
    let default = default_filter_chain.as_ref();
    let default =
        default.map(|c| notes.within("default_filter_chain", |n| filter_chain(c, &mut tables, n))).transpose()?;
    let old_bind = deprecated_v1.as_ref().is_none_or(|d| bool_or(&d.bind_to_port, true));
    let listener = Listener {
        name: name.clone(),
        addresses,
        traffic_direction: match enumeration::<core::TrafficDirection>(*traffic_direction, "traffic_direction", notes)?
        {
            core::TrafficDirection::Unspecified => TrafficDirection::Unspecified,
            core::TrafficDirection::Inbound => TrafficDirection::Inbound,
            core::TrafficDirection::Outbound => TrafficDirection::Outbound,
        },
        bind_to_port: bool_or(bind_to_port, old_bind),
        use_original_dst: bool_or(use_original_dst, false),
        tls_inspector: sniff.tls,
        http_inspector: sniff.http,
        listener_filters_timeout: millis(listener_filters_timeout, "listener_filters_timeout", notes)?
            .unwrap_or(15_000),
        continue_on_listener_filters_timeout: *continue_on_listener_filters_timeout,
        filter_chains: chains,
        default_filter_chain: default,
        udp: of_udp_proxy,
        refuse,
    };
    Ok(TranslatedListener { listener, tables })
}

fn listener_address(
    a: &Option<core::Address>,
    refuse: &mut Option<String>,
    notes: &mut Notes,
) -> Result<Option<Address>, Invalid> {
    match address(a, notes)? {
        Place::Known(a) => Ok(Some(a)),
        Place::Name(name, _) => {
            Err(notes.invalid("address.socket_address.address", format!("malformed IP address: \"{name}\"")))
        }
        Place::Other(what, why) => {
            *refuse = Some(notes.refused("address", format!("{what}: {why}")));
            Ok(None)
        }
    }
}

#[derive(Default)]
struct Sniffers {
    tls: Option<PortPredicate>,
    http: Option<PortPredicate>,
}

fn sniffers(
    filters: &[pb::ListenerFilter],
    refuse: &mut Option<String>,
    notes: &mut Notes,
) -> Result<Sniffers, Invalid> {
    use pb::listener_filter::ConfigType;
    let mut out = Sniffers::default();
    for (i, f) in filters.iter().enumerate() {
        notes.each("listener_filters", i, |notes| {
            let pb::ListenerFilter { name, filter_disabled, config_type } = f;
            let kind = match config_type {
                Some(ConfigType::TypedConfig(any)) => type_name(any),
                Some(ConfigType::ConfigDiscovery(_)) => "discovered by name".to_owned(),
                None => name.clone(),
            };
            let disabled = match filter_disabled {
                None => Ports::default(),
                Some(p) => notes.within("filter_disabled", |n| Ports::of(p, 0, n))?,
            };
            // A filter that is off on every port is no filter.
            let on = (!disabled.is_everything()).then(|| disabled.predicate());
            match kind.rsplit('.').next().unwrap_or_default() {
                // The original destination of a captured connection is always looked at.
                "OriginalDst" | "original_dst" => {}
                "TlsInspector" | "tls_inspector" => out.tls = on,
                "HttpInspector" | "http_inspector" => out.http = on,
                _ if on.is_none() => {}
                _ => *refuse = Some(notes.refused("", format!("listener filter \"{name}\" ({kind}) is not supported"))),
            }
            Ok(())
        })?;
    }
    Ok(out)
}

/// A set of ports as sorted ranges `[start, end)` that do not touch.
#[derive(Clone, Debug, Default, PartialEq)]
struct Ports(Vec<(u32, u32)>);

/// One more than the last port.
const END: u32 = 65_536;
/// Deepest nesting of predicates.
const MAX_DEPTH: u32 = 32;

impl Ports {
    fn of(p: &pb::ListenerFilterChainMatchPredicate, depth: u32, notes: &mut Notes) -> Result<Ports, Invalid> {
        use pb::listener_filter_chain_match_predicate::Rule;
        if depth > MAX_DEPTH {
            return Err(notes.invalid("", format!("is nested deeper than {MAX_DEPTH} levels")));
        }
        match &p.rule {
            None => Err(notes.invalid("rule", "is not set")),
            Some(Rule::AnyMatch(_)) => Ok(Ports(vec![(0, END)])),
            Some(Rule::DestinationPortRange(r)) => {
                // Clamped to ports first, so both fit.
                let port = |n: i32| n.clamp(0, END as i32) as u32;
                Ok(Ports::merged(vec![(port(r.start), port(r.end))]))
            }
            Some(Rule::OrMatch(set)) => {
                let all = notes.list("or_match.rules", &set.rules, |r, n| Ports::of(r, depth + 1, n))?;
                Ok(Ports::merged(all.into_iter().flat_map(|p| p.0).collect()))
            }
            Some(Rule::AndMatch(set)) => {
                // All of them: not one of those that are not.
                let all = notes.list("and_match.rules", &set.rules, |r, n| Ports::of(r, depth + 1, n))?;
                Ok(Ports::merged(all.into_iter().flat_map(|p| p.inverse().0).collect()).inverse())
            }
            Some(Rule::NotMatch(r)) => Ok(notes.within("not_match", |n| Ports::of(r, depth + 1, n))?.inverse()),
        }
    }

    fn merged(mut ranges: Vec<(u32, u32)>) -> Ports {
        ranges.retain(|(start, end)| start < end);
        ranges.sort_unstable();
        let mut out: Vec<(u32, u32)> = Vec::new();
        for (start, end) in ranges {
            match out.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => out.push((start, end)),
            }
        }
        Ports(out)
    }

    fn inverse(&self) -> Ports {
        let starts = std::iter::once(0).chain(self.0.iter().map(|r| r.1));
        let ends = self.0.iter().map(|r| r.0).chain(std::iter::once(END));
        Ports::merged(starts.zip(ends).collect())
    }

    /// Port 0 is no port, and the model's ranges cannot speak of the last one by itself.
    fn is_everything(&self) -> bool {
        self.0.first().is_some_and(|(start, end)| *start <= 1 && *end >= END - 1)
    }

    fn predicate(&self) -> PortPredicate {
        let port = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        PortPredicate { disabled: self.0.iter().map(|(start, end)| (port(*start), port(*end))).collect() }
    }
}

/// A listener that wants a socket of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundListener {
    /// Its name.
    pub name: String,
    /// Where it would listen.
    pub addresses: Vec<Address>,
    /// Which side of the sidecar it is on.
    pub inbound: bool,
}

/// What the index needs to know of a listener.
#[derive(Clone, Debug, PartialEq)]
pub struct ListenerAddresses {
    name: String,
    addresses: Vec<Address>,
    direction: TrafficDirection,
    bind_to_port: bool,
    use_original_dst: bool,
    udp: bool,
}

impl From<&Listener> for ListenerAddresses {
    fn from(l: &Listener) -> Self {
        ListenerAddresses {
            name: l.name.clone(),
            addresses: l.addresses.clone(),
            direction: l.traffic_direction,
            bind_to_port: l.bind_to_port,
            use_original_dst: l.use_original_dst,
            udp: l.udp.is_some(),
        }
    }
}

/// Port to which Istio redirects what comes in.
const ISTIO_INBOUND: u16 = 15006;

/// Which listener takes what was captured, and which want a socket of their own. Of two that claim the same, the one
/// whose name sorts first has it.
pub fn listener_index<'a>(
    listeners: impl IntoIterator<Item = &'a ListenerAddresses>,
) -> (ListenerIndex, Vec<BoundListener>) {
    let mut all: Vec<_> = listeners.into_iter().collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    let mut index = ListenerIndex::default();
    let mut bound = Vec::new();
    for l in all {
        let inbound = l.direction == TrafficDirection::Inbound;
        if l.bind_to_port {
            bound.push(BoundListener { name: l.name.clone(), addresses: l.addresses.clone(), inbound });
        }
        let captures = l.use_original_dst || (inbound && l.addresses.iter().any(|a| port_of(a) == Some(ISTIO_INBOUND)));
        if captures {
            let slot = if inbound { &mut index.virtual_inbound } else { &mut index.virtual_outbound };
            if slot.is_empty() {
                slot.clone_from(&l.name);
            }
        } else {
            // Bound ones too: nginx's own `listen` may serve them, and Envoy hands captured connections to them.
            let listeners = if inbound { &mut index.inbound_by_address } else { &mut index.by_address };
            for a in &l.addresses {
                let prefix = if l.udp { UDP_KEY } else { "" };
                listeners.entry(format!("{prefix}{}", key(a))).or_insert_with(|| l.name.clone());
            }
        }
    }
    (index, bound)
}

fn port_of(a: &Address) -> Option<u16> {
    match a {
        Address::Socket { port, .. } => Some(*port),
        Address::Pipe(_) => None,
    }
}

/// `ip:port` or `[ip]:port`; an IPv4 address that is mapped into IPv6 is the IPv4 address.
fn key(a: &Address) -> String {
    match a {
        Address::Socket { ip: Ip::V6(octets), port } => match std::net::Ipv6Addr::from(*octets).to_ipv4_mapped() {
            Some(v4) => Address::Socket { ip: Ip::V4(v4.octets()), port: *port }.to_string(),
            None => a.to_string(),
        },
        _ => a.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn listeners_are_found_in_their_own_direction() {
        let one = |name: &str, port: u16, direction, bind_to_port, use_original_dst| ListenerAddresses {
            name: name.to_owned(),
            addresses: vec![Address::Socket { ip: Ip::V4([10, 0, 0, 1]), port }],
            direction,
            bind_to_port,
            use_original_dst,
            udp: name == "udp",
        };
        use TrafficDirection::{Inbound, Outbound, Unspecified};
        let all = [
            one("virtualOutbound", 15001, Outbound, true, true),
            one("virtualInbound", 15006, Inbound, true, false),
            one("out", 80, Outbound, false, false),
            one("udp", 80, Outbound, false, false),
            one("in", 80, Inbound, true, false),
            one("in2", 80, Inbound, true, false),
            one("any", 81, Unspecified, true, false),
        ];
        let (index, bound) = listener_index(&all);
        let entries =
            |list: &[(&str, &str)]| list.iter().map(|(a, n)| (a.to_string(), n.to_string())).collect::<HashMap<_, _>>();
        assert_eq!(
            index.by_address,
            entries(&[("10.0.0.1:80", "out"), ("udp/10.0.0.1:80", "udp"), ("10.0.0.1:81", "any")])
        );
        assert_eq!(index.inbound_by_address, entries(&[("10.0.0.1:80", "in")]));
        assert_eq!((&*index.virtual_outbound, &*index.virtual_inbound), ("virtualOutbound", "virtualInbound"));
        assert_eq!(bound.iter().map(|b| (&*b.name, b.inbound)).collect::<Vec<_>>().len(), 5);
    }

    #[test]
    fn sets_of_ports() {
        let p = Ports::merged(vec![(80, 90), (10, 20), (15, 30), (30, 31), (5, 5)]);
        assert_eq!(p.0, [(10, 31), (80, 90)]);
        assert_eq!(p.inverse().0, [(0, 10), (31, 80), (90, END)]);
        assert_eq!(p.inverse().inverse(), p);
        assert!(Ports::default().inverse().is_everything());
        assert!(!p.is_everything() && !Ports::default().is_everything());
        assert_eq!(p.predicate().disabled, [(10, 31), (80, 90)]);
    }
}
