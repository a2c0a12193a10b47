//! Filter chains, what they match, and the TCP proxy.

use super::notes::ignored;
use super::value::{at_least, cidr, enumeration, millis, port, positive_millis, type_name, unpack};
use super::{filter, hcm, socket, subset, Invalid, Notes};
use amesh_model::address::CidrRange;
use amesh_model::listener::{ChainAction, FilterChain, FilterChainMatch, SourceType, TcpCluster, TcpProxy};
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use std::collections::{BTreeMap, HashMap};

const HCM: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const TCP_PROXY: &str = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";

pub(super) fn filter_chain(
    chain: &pb::FilterChain,
    tables: &mut BTreeMap<String, u64>,
    notes: &mut Notes,
) -> Result<FilterChain, Invalid> {
    let pb::FilterChain {
        filter_chain_match,
        filters,
        use_proxy_proto,
        metadata: _,
        transport_socket,
        transport_socket_connect_timeout,
        name,
    } = chain;
    millis(transport_socket_connect_timeout, "transport_socket_connect_timeout", notes)?;
    let criteria = match filter_chain_match {
        None => FilterChainMatch::default(),
        Some(m) => notes.within("filter_chain_match", |n| chain_match(m, n))?,
    };
    let mut refuse = None;
    if let Some(why) = transport_socket.as_ref().and_then(socket::refusal) {
        refuse = Some(notes.refused("transport_socket", why));
    }
    if super::value::bool_or(use_proxy_proto, false) {
        refuse = Some(notes.refused("use_proxy_proto", "the PROXY protocol is not supported"));
    }
    let mut action = None;
    for (i, f) in filters.iter().enumerate() {
        let why = notes.each("filters", i, |notes| {
            if action.is_some() {
                return Err(notes.invalid("", "comes after a filter that must be the last one"));
            }
            network_filter(f, tables, &mut action, notes)
        })?;
        refuse = refuse.or(why);
    }
    let action = match (refuse, action) {
        (Some(why), _) => ChainAction::Refuse(why),
        (None, Some(action)) => action,
        (None, None) if filters.is_empty() => {
            ChainAction::Refuse(notes.refused("filters", "is empty, so connections are closed"))
        }
        (None, None) => return Err(notes.invalid("filters", "has no filter at its end that takes the connection")),
    };
    Ok(FilterChain { name: name.clone(), filter_chain_match: criteria, action })
}

/// Puts what a terminal filter does into `action`; comes back with why the chain must be refused, if so.
fn network_filter(
    f: &pb::Filter,
    tables: &mut BTreeMap<String, u64>,
    action: &mut Option<ChainAction>,
    notes: &mut Notes,
) -> Result<Option<String>, Invalid> {
    use pb::filter::ConfigType;
    let pb::Filter { name, config_type } = f;
    if name.is_empty() {
        return Err(notes.invalid("name", "is empty"));
    }
    let any = match config_type {
        None => return Err(notes.invalid("typed_config", format!("\"{name}\" has no configuration"))),
        Some(ConfigType::ConfigDiscovery(_)) => {
            return Ok(Some(notes.refused("config_discovery", format!("\"{name}\": filters are not discovered"))));
        }
        Some(ConfigType::TypedConfig(any)) => any,
    };
    match type_name(any).as_str() {
        HCM => {
            let manager = unpack(any, "typed_config", notes)?;
            *action = Some(notes.within("typed_config", |n| hcm::manager(&manager, tables, n))?);
            Ok(None)
        }
        TCP_PROXY => {
            let proxy = unpack(any, "typed_config", notes)?;
            *action = Some(notes.within("typed_config", |n| tcp_proxy(&proxy, n))?);
            Ok(None)
        }
        _ => filter::left_out(name, any, false, "", notes),
    }
}

fn chain_match(m: &pb::FilterChainMatch, notes: &mut Notes) -> Result<FilterChainMatch, Invalid> {
    use pb::filter_chain_match::ConnectionSourceType as S;
    let pb::FilterChainMatch {
        destination_port,
        prefix_ranges,
        address_suffix,
        suffix_len,
        direct_source_prefix_ranges,
        source_type,
        source_prefix_ranges,
        source_ports,
        server_names,
        transport_protocol,
        application_protocols,
    } = m;
    super::notes::unsupported!(notes; address_suffix, suffix_len);
    let names = notes.list("server_names", server_names, |name, n| {
        let name = name.to_ascii_lowercase();
        if name.strip_prefix("*.").unwrap_or(&name).contains('*') {
            return Err(n.invalid("", format!("\"{name}\": partial wildcards are not supported")));
        }
        Ok(name)
    })?;
    Ok(FilterChainMatch {
        destination_port: destination_port.as_ref().map(|p| port(p.value, "destination_port", notes)).transpose()?,
        prefix_ranges: notes.list("prefix_ranges", prefix_ranges, cidr)?,
        server_names: names,
        transport_protocol: transport_protocol.clone(),
        application_protocols: application_protocols.clone(),
        direct_source_prefix_ranges: notes.list("direct_source_prefix_ranges", direct_source_prefix_ranges, cidr)?,
        source_type: match enumeration::<S>(*source_type, "source_type", notes)? {
            S::Any => SourceType::Any,
            S::SameIpOrLoopback => SourceType::SameIpOrLoopback,
            S::External => SourceType::External,
        },
        source_prefix_ranges: notes.list("source_prefix_ranges", source_prefix_ranges, cidr)?,
        source_ports: notes.list("source_ports", source_ports, |p, n| port(*p, "", n))?,
    })
}

/// Two chains that both are the most specific one for some connection make no sense.
pub(super) fn no_two_match_alike(chains: &[FilterChain], notes: &Notes) -> Result<(), Invalid> {
    fn meet<T: PartialEq>(a: &[T], b: &[T]) -> bool {
        (a.is_empty() && b.is_empty()) || a.iter().any(|x| b.contains(x))
    }
    let ranges = |a: &[CidrRange], b: &[CidrRange]| meet(a, b);
    let mut by_port: HashMap<Option<u16>, Vec<(usize, &FilterChain)>> = HashMap::new();
    for (i, c) in chains.iter().enumerate() {
        let m = &c.filter_chain_match;
        let others = by_port.entry(m.destination_port).or_default();
        let same = others.iter().find(|(_, other)| {
            let o = &other.filter_chain_match;
            m.transport_protocol == o.transport_protocol
                && m.source_type == o.source_type
                && meet(&m.application_protocols, &o.application_protocols)
                && meet(&m.server_names, &o.server_names)
                && ranges(&m.prefix_ranges, &o.prefix_ranges)
                && ranges(&m.direct_source_prefix_ranges, &o.direct_source_prefix_ranges)
                && ranges(&m.source_prefix_ranges, &o.source_prefix_ranges)
                && meet(&m.source_ports, &o.source_ports)
        });
        if let Some((j, other)) = same {
            let reason = format!("\"{}\" has the same matching rules as filter_chains[{j}] \"{}\"", c.name, other.name);
            return Err(notes.invalid(&format!("filter_chains[{i}].filter_chain_match"), reason));
        }
        others.push((i, c));
    }
    Ok(())
}

fn tcp_proxy(proxy: &tcp::TcpProxy, notes: &mut Notes) -> Result<ChainAction, Invalid> {
    use envoy_types::pb::envoy::r#type::v3::hash_policy::PolicySpecifier as Hash;
    use tcp::tcp_proxy::ClusterSpecifier as S;
    let tcp::TcpProxy {
        stat_prefix,
        on_demand,
        metadata_match,
        idle_timeout,
        downstream_idle_timeout,
        upstream_idle_timeout,
        access_log,
        max_connect_attempts,
        backoff_options,
        hash_policy,
        tunneling_config,
        max_downstream_connection_duration,
        max_downstream_connection_duration_jitter_percentage,
        access_log_flush_interval,
        flush_access_log_on_connected,
        access_log_options,
        proxy_protocol_tlvs,
        proxy_protocol_tlv_merge_policy: _,
        upstream_connect_mode,
        max_early_data_bytes,
        check_drain_close,
        cluster_specifier,
    } = proxy;
    ignored!(notes, "clusters are not discovered on demand"; on_demand);
    ignored!(notes, "idle_timeout holds for both sides"; downstream_idle_timeout, upstream_idle_timeout);
    ignored!(notes, "nginx writes its own access logs";
        access_log, access_log_flush_interval, flush_access_log_on_connected, access_log_options);
    ignored!(notes, "endpoints are tried without a pause"; backoff_options);
    ignored!(notes, "there is no PROXY protocol to the endpoint"; proxy_protocol_tlvs);
    ignored!(notes, "endpoints are connected at once"; upstream_connect_mode, max_early_data_bytes, check_drain_close);
    if stat_prefix.is_empty() {
        return Err(notes.invalid("stat_prefix", "is empty"));
    }
    let hash_source_ip = hash_policy.iter().any(|p| matches!(p.policy_specifier, Some(Hash::SourceIp(_))));
    if hash_policy.iter().any(|p| matches!(p.policy_specifier, Some(Hash::FilterState(_)))) {
        notes.ignored("hash_policy[].filter_state", "there is no filter state, so it gives no hash");
    }
    let match_all = subset::metadata_match(metadata_match);
    let jitter = max_downstream_connection_duration_jitter_percentage.as_ref().map_or(0.0, |p| p.value);
    if !(0.0..=100.0).contains(&jitter) {
        let field = "max_downstream_connection_duration_jitter_percentage";
        return Err(notes.invalid(field, format!("{jitter} is not within 0 to 100")));
    }
    let no_cluster = "is empty: the name of a cluster is needed";
    let clusters = match cluster_specifier {
        None => return Err(notes.invalid("cluster_specifier", "is not set: cluster or weighted_clusters")),
        Some(S::Cluster(c)) if c.is_empty() => return Err(notes.invalid("cluster", no_cluster)),
        Some(S::Cluster(c)) => vec![TcpCluster { name: c.clone(), weight: 1, metadata_match: match_all }],
        Some(S::WeightedClusters(w)) if w.clusters.is_empty() => {
            return Err(notes.invalid("weighted_clusters.clusters", "is empty"));
        }
        Some(S::WeightedClusters(w)) => notes.within("weighted_clusters", |n| {
            n.list("clusters", &w.clusters, |c, n| {
                let tcp::tcp_proxy::weighted_cluster::ClusterWeight { name, weight, metadata_match } = c;
                match (name.is_empty(), weight) {
                    (true, _) => Err(n.invalid("name", no_cluster)),
                    (_, 0) => Err(n.invalid("weight", "is 0, must be 1 or more")),
                    _ => Ok(TcpCluster {
                        name: name.clone(),
                        weight: *weight,
                        metadata_match: subset::merged(metadata_match, &match_all),
                    }),
                }
            })
        })?,
    };
    let total: u64 = clusters.iter().map(|c| u64::from(c.weight)).sum();
    if total > u64::from(u32::MAX) {
        let reason = format!("the sum of the weights is {total}, the limit is {}", u32::MAX);
        return Err(notes.invalid("weighted_clusters.clusters", reason));
    }
    let out = TcpProxy {
        stat_prefix: stat_prefix.clone(),
        clusters,
        idle_timeout: millis(idle_timeout, "idle_timeout", notes)?.unwrap_or(3_600_000),
        max_downstream_connection_duration: positive_millis(
            max_downstream_connection_duration,
            "max_downstream_connection_duration",
            notes,
        )?
        .unwrap_or(0),
        max_downstream_connection_duration_jitter: jitter,
        max_connect_attempts: at_least(max_connect_attempts, 1, 1, "max_connect_attempts", notes)?,
        hash_source_ip,
    };
    if tunneling_config.is_some() {
        return Ok(ChainAction::Refuse(notes.refused("tunneling_config", "bytes would leave without the tunnel")));
    }
    Ok(ChainAction::Tcp(out))
}
