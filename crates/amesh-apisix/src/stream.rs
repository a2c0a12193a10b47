//! TCP listeners as `/stream_routes`.

use crate::id;
use crate::listeners::{is_wanted, Listeners};
use crate::look::{Look, NOWHERE};
use crate::object::Refusal;
use crate::options::Options;
use crate::usage::Usage;
use amesh_model::address::Address;
use amesh_model::listener::{ChainAction, FilterChain, Listener, SourceType, TcpCluster, TcpProxy};
use serde_json::{json, Map, Value};
use std::net::IpAddr;
use std::sync::Arc;

/// What is made of a TCP listener; with `stream_routes` off only what is to be said of it.
pub(crate) fn routes(
    name: &str,
    listeners: &Listeners,
    options: &Options,
    look: &mut Look<'_>,
    refusals: &mut Vec<Refusal>,
) -> Vec<(Arc<str>, Map<String, Value>)> {
    let Some(listener) = listeners.get(name).filter(|l| is_wanted(l, options) && !l.use_original_dst) else {
        return Vec::new();
    };
    if listener.udp.is_some() {
        let reason = "it is for UDP; not served".to_owned();
        refusals.push(Refusal { what: format!("listener \"{name}\""), reason });
        return Vec::new();
    }
    let has_http = listener.filter_chains.iter().any(|chain| matches!(chain.action, ChainAction::Http(_)));
    let chains: Vec<&FilterChain> = listener
        .filter_chains
        .iter()
        // What is not HTTP on a port for HTTP goes to where it was going: there is no route for that.
        .chain(listener.default_filter_chain.iter().filter(|_| !has_http))
        .filter(|chain| matches!(chain.action, ChainAction::Tcp(_)))
        .collect();
    if chains.is_empty() {
        return Vec::new();
    }
    if !options.stream_routes {
        refusals.push(Refusal {
            what: format!("listener \"{name}\""),
            reason: "it is for TCP, and no stream routes are asked for; not served".to_owned(),
        });
        return Vec::new();
    }
    let mut out = Vec::new();
    for chain in chains {
        let what = format!("listener \"{name}\", filter chain \"{}\"", chain.name);
        let target = target(listener, chain, look);
        let upstream = target.unwrap_or_else(|why| {
            refusals.push(Refusal { what: what.clone(), reason: format!("{why}; connections are closed") });
            look.nowhere()
        });
        let names: Vec<Option<&str>> = match chain.filter_chain_match.server_names.as_slice() {
            [] => vec![None],
            names => names.iter().map(|name| Some(name.as_str())).collect(),
        };
        for address in &listener.addresses {
            let Address::Socket { ip, port } = address else { continue };
            for sni in &names {
                let mut json = Map::new();
                json.insert("desc".into(), json!(id::desc(&what)));
                json.extend(id::name(name).map(|name| ("name".to_owned(), json!(name))));
                let ip = IpAddr::from(*ip);
                if !ip.is_unspecified() {
                    json.insert("server_addr".into(), json!(ip.to_string()));
                }
                json.insert("server_port".into(), json!(port));
                json.extend(sni.map(|sni| ("sni".to_owned(), json!(sni))));
                json.insert("upstream_id".into(), json!(*upstream));
                out.push((id::id("s", &[name, &address.to_string(), sni.unwrap_or("")]), json));
            }
        }
    }
    // Two chains of the same address and name are told apart by what APISIX does not look at.
    out.sort_by(|(a, _), (b, _)| a.cmp(b));
    out.dedup_by(|(a, _), (b, _)| a == b);
    out
}

fn target(listener: &Listener, chain: &FilterChain, look: &mut Look<'_>) -> Result<Arc<str>, String> {
    if let Some(why) = &listener.refuse {
        return Err(why.clone());
    }
    let ChainAction::Tcp(TcpProxy { clusters, max_connect_attempts, .. }) = &chain.action else {
        return Err(NOWHERE.to_owned());
    };
    let wanted = &chain.filter_chain_match;
    if !wanted.source_prefix_ranges.is_empty()
        || !wanted.direct_source_prefix_ranges.is_empty()
        || !wanted.source_ports.is_empty()
        || wanted.source_type != SourceType::Any
        || !wanted.prefix_ranges.is_empty()
        || wanted.destination_port.is_some()
    {
        return Err("it asks for more than address, port and server name".to_owned());
    }
    let [TcpCluster { name: cluster, .. }] = clusters.as_slice() else {
        return Err("it has several clusters, and stream routes have no traffic-split".to_owned());
    };
    match look.cluster(cluster) {
        None => Err(format!("the cluster \"{cluster}\" does not exist")),
        Some(facts) => match facts.unusable {
            Some(why) => Err(format!("of the cluster \"{cluster}\": {why}")),
            None => {
                let usage = Usage { retries: max_connect_attempts.saturating_sub(1), ..Usage::default() };
                Ok(look.upstream(cluster, &usage))
            }
        },
    }
}
