//! Which route tables the listeners serve, and to which requests.

use crate::action::Manager;
use crate::cond::Cond;
use crate::id;
use crate::object::Refusal;
use crate::options::{Destination, Options};
use amesh_model::address::{Address, Ip};
use amesh_model::filter::HttpFilter;
use amesh_model::listener::{
    ChainAction, FilterChain, FilterChainMatch, HttpConnectionManager, Listener, RouteSpecifier, SourceType,
    TrafficDirection,
};
use amesh_model::route::RouteTable;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// All listeners, by name.
pub(crate) type Listeners = BTreeMap<String, Arc<Listener>>;

/// Routes that are served.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Served {
    /// Where they come from.
    pub source: Source,
    /// To which requests.
    pub when: Cond,
    /// What the connection manager says.
    pub manager: Manager,
    /// A port in the host is not looked at, whatever the table says.
    pub strips_port: bool,
    /// Some addresses count as internal: who is external cannot be told.
    pub has_internal: bool,
}

/// Where routes come from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Source {
    /// A route table of this name.
    Table(String),
    /// A table within a listener of this name.
    Inline(String, Arc<RouteTable>),
    /// Nowhere: requests to this listener are refused for this reason.
    Refused(String, String),
}

impl Source {
    /// What names it.
    fn name(&self) -> &str {
        match self {
            Source::Table(name) | Source::Inline(name, _) | Source::Refused(name, _) => name,
        }
    }
}

/// What the listeners serve.
#[derive(Default)]
pub(crate) struct Serving {
    /// By the name of a unit: one for each route table and connection manager that serves it.
    pub units: BTreeMap<String, Served>,
    /// What is captured by no listener went elsewhere in the mesh: the listener that took it.
    pub elsewhere: Option<String>,
    /// What is not served.
    pub refusals: Vec<Refusal>,
}

/// Whether a listener is translated.
pub(crate) fn is_wanted(listener: &Listener, options: &Options) -> bool {
    options.inbound || listener.traffic_direction != TrafficDirection::Inbound
}

/// What the listeners serve.
pub(crate) fn serving(listeners: &Listeners, options: &Options) -> Serving {
    let mut out = Serving::default();
    let wanted: Vec<&Listener> = listeners.values().map(|l| &**l).filter(|l| is_wanted(l, options)).collect();
    for listener in &wanted {
        if listener.use_original_dst {
            if listener.traffic_direction != TrafficDirection::Inbound {
                out.elsewhere = Some(listener.name.clone());
            }
            continue;
        }
        let when = addresses(listener, &wanted, options.destination);
        for served in of_listener(listener, &when) {
            out.add(served);
        }
    }
    if options.destination == Destination::Ignored {
        out.elsewhere = None;
    }
    out
}

impl Serving {
    fn add(&mut self, served: Served) {
        let about = format!("{:?}{}{}", served.manager, served.strips_port, served.has_internal);
        let kind = match served.source {
            Source::Table(_) => "rds",
            Source::Inline(..) => "inline",
            Source::Refused(..) => "refused",
        };
        let name = format!("{}\n{}", served.source.name(), id::id(kind, &[&about]));
        match self.units.get_mut(&name) {
            None => drop(self.units.insert(name, served)),
            Some(there) => {
                let before = std::mem::replace(&mut there.when, Cond::False);
                there.when = Cond::any([before, served.when]);
            }
        }
    }
}

/// Requests that reach a listener.
fn addresses(listener: &Listener, all: &[&Listener], destination: Destination) -> Cond {
    if destination == Destination::Ignored {
        return Cond::True;
    }
    Cond::any(listener.addresses.iter().map(|address| match address {
        Address::Pipe(_) => Cond::False,
        Address::Socket { ip, port } if is_any(*ip) => {
            let others = all.iter().filter(|l| l.name != listener.name && !l.use_original_dst && l.udp.is_none());
            let exact: BTreeSet<String> = others
                .filter(|other| (other.traffic_direction == TrafficDirection::Inbound) == is_inbound(listener))
                .flat_map(|other| &other.addresses)
                .filter_map(|other| match other {
                    Address::Socket { ip, port: of_other } if of_other == port && !is_any(*ip) => {
                        Some(address_text(*ip, *port))
                    }
                    _ => None,
                })
                .collect();
            let exact: Vec<String> = exact.into_iter().collect();
            Cond::all([at_port(*port, destination), at_one_of(&exact, destination).not()])
        }
        Address::Socket { ip, port } => at_one_of(&[address_text(*ip, *port)], destination),
    }))
}

fn is_inbound(listener: &Listener) -> bool {
    listener.traffic_direction == TrafficDirection::Inbound
}

fn is_any(ip: Ip) -> bool {
    IpAddr::from(ip).is_unspecified()
}

fn address_text(ip: Ip, port: u16) -> String {
    std::net::SocketAddr::new(ip.into(), port).to_string()
}

/// Requests to this port, of any address.
fn at_port(port: u16, destination: Destination) -> Cond {
    match destination {
        Destination::Original => {
            Cond::finds("connection_original_dst", &format!("\\A[^:]+:{port}\\z|\\A\\[[^\\]]+\\]:{port}\\z"))
        }
        Destination::Server => Cond::is("server_port", &port.to_string()),
        Destination::Ignored => Cond::True,
    }
}

/// Requests to one of these addresses.
fn at_one_of(addresses: &[String], destination: Destination) -> Cond {
    match destination {
        Destination::Original => Cond::one_of("connection_original_dst", addresses),
        Destination::Server => Cond::any(addresses.iter().map(|address| {
            let (ip, port) = address.rsplit_once(':').unwrap_or((address, ""));
            let ip = ip.trim_start_matches('[').trim_end_matches(']');
            Cond::all([Cond::is("server_addr", ip), Cond::is("server_port", port)])
        })),
        Destination::Ignored => Cond::True,
    }
}

/// What a listener serves, to requests that reach it.
fn of_listener(listener: &Listener, when: &Cond) -> Vec<Served> {
    let refused = |why: &str| Served {
        source: Source::Refused(listener.name.clone(), why.to_owned()),
        when: when.clone(),
        manager: Manager::default(),
        strips_port: false,
        has_internal: false,
    };
    if let Some(why) = &listener.refuse {
        return vec![refused(why)];
    }
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    let plain: Vec<&FilterChain> = chains.filter(|chain| takes_plaintext(&chain.filter_chain_match)).collect();
    let http: Vec<(&FilterChain, &HttpConnectionManager)> = plain
        .iter()
        .filter_map(|chain| match &chain.action {
            ChainAction::Http(manager) => Some((*chain, &**manager)),
            _ => None,
        })
        .collect();
    if http.is_empty() {
        let refusals = plain.iter().filter_map(|chain| match &chain.action {
            ChainAction::Refuse(why) => Some(refused(why)),
            _ => None,
        });
        return refusals.take(1).collect();
    }
    let mut out = Vec::new();
    let mut before = Vec::new();
    // Chains that ask for more go first; Envoy narrows the same way.
    let mut http = http;
    http.sort_by_key(|(chain, _)| chain.filter_chain_match.destination_port.is_none());
    for (chain, manager) in http {
        let here = match narrowed(&chain.filter_chain_match) {
            Ok(here) => here,
            Err(why) => {
                out.push(refused(&format!("filter chain \"{}\": {why}", chain.name)));
                break;
            }
        };
        let excluded = Cond::any(before.iter().cloned()).not();
        let when = Cond::all([when.clone(), here.clone(), excluded]);
        before.push(here);
        out.push(match &manager.refuse {
            Some(why) => Served { when, ..refused(why) },
            None => served(listener, manager, when),
        });
    }
    out
}

/// APISIX has one port for requests, without TLS of the mesh.
fn takes_plaintext(wanted: &FilterChainMatch) -> bool {
    let protocols = &wanted.application_protocols;
    wanted.transport_protocol != "tls"
        && wanted.server_names.is_empty()
        && (protocols.is_empty() || protocols.iter().any(|p| matches!(p.as_str(), "http/1.0" | "http/1.1" | "h2c")))
}

/// What a filter chain asks beyond its listener.
fn narrowed(wanted: &FilterChainMatch) -> Result<Cond, String> {
    if !wanted.direct_source_prefix_ranges.is_empty()
        || !wanted.source_prefix_ranges.is_empty()
        || !wanted.source_ports.is_empty()
        || wanted.source_type != SourceType::Any
    {
        return Err("it asks who the client is".to_owned());
    }
    if !wanted.prefix_ranges.is_empty() {
        return Err("it asks for a range of destinations".to_owned());
    }
    Ok(match wanted.destination_port {
        Some(port) => at_port(port, Destination::Original),
        None => Cond::True,
    })
}

fn served(listener: &Listener, manager: &HttpConnectionManager, when: Cond) -> Served {
    let source = match &manager.routes {
        RouteSpecifier::Rds(name) => Source::Table(name.clone()),
        RouteSpecifier::Inline(table) => {
            Source::Inline(format!("{} of {}", table.name, listener.name), Arc::new((**table).clone()))
        }
        RouteSpecifier::Scoped(_) => {
            Source::Refused(listener.name.clone(), "its route table depends on a header (scoped routes)".to_owned())
        }
    };
    let mut says =
        Manager { websocket: manager.websocket, idle_timeout: manager.stream_idle_timeout, ..Manager::default() };
    for filter in &manager.filters {
        match filter {
            // Without delay and abort it waits for routes that say something.
            HttpFilter::Fault(fault) if fault.delay.is_none() && fault.abort.is_none() => {}
            HttpFilter::Fault(fault) => says.fault = Some(fault.clone()),
            HttpFilter::Cors => says.cors = true,
            HttpFilter::LocalRateLimit(limit) => says.rate_limit = Some(limit.clone()),
            HttpFilter::Buffer(longest) => says.max_request_bytes = Some(*longest),
        }
    }
    Served {
        source,
        when,
        manager: says,
        strips_port: manager.strip_any_host_port || manager.strip_matching_host_port,
        has_internal: !manager.internal_addresses.is_empty(),
    }
}
