//! `extensions.filters.udp.udp_proxy.v3.UdpProxyConfig` → [`UdpProxy`]: the one listener filter of a UDP listener.

use super::notes::ignored;
use super::value::{positive_millis, type_name, unpack};
use super::{Invalid, Notes};
use amesh_model::listener::{UdpHash, UdpProxy};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::udp::udp_proxy::v3 as udp;
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::xds::r#type::matcher::v3::{self as matcher, matcher::on_match::OnMatch};

const UDP_PROXY: &str = "envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig";
const ROUTE: &str = "envoy.extensions.filters.udp.udp_proxy.v3.Route";

/// Whether an address is one of UDP.
pub(super) fn is_udp(a: &Option<core::Address>) -> bool {
    use core::address::Address;
    use core::socket_address::Protocol;
    matches!(a.as_ref().and_then(|a| a.address.as_ref()), Some(Address::SocketAddress(s)) if s.protocol() == Protocol::Udp)
}

/// The same address without its protocol.
pub(super) fn without_protocol(a: &Option<core::Address>) -> Option<core::Address> {
    let mut a = a.clone()?;
    if let Some(core::address::Address::SocketAddress(s)) = &mut a.address {
        s.set_protocol(core::socket_address::Protocol::Tcp);
    }
    Some(a)
}

/// What the filters of a UDP listener say; why it must be refused.
pub(super) fn proxy(
    filters: &[pb::ListenerFilter],
    notes: &mut Notes,
) -> Result<Result<Box<UdpProxy>, String>, Invalid> {
    let [filter] = filters else {
        return Ok(Err(notes.refused("listener_filters", "a UDP listener needs one filter, udp_proxy, and no other")));
    };
    notes.each("listener_filters", 0, |notes| {
        let any = match &filter.config_type {
            Some(pb::listener_filter::ConfigType::TypedConfig(any)) if type_name(any) == UDP_PROXY => any,
            _ => return Ok(Err(notes.refused("", format!("\"{}\" is not supported for UDP", filter.name)))),
        };
        notes.within("typed_config", |n| config(&unpack(any, "", n)?, n))
    })
}

fn config(c: &udp::UdpProxyConfig, notes: &mut Notes) -> Result<Result<Box<UdpProxy>, String>, Invalid> {
    use udp::udp_proxy_config::hash_policy::PolicySpecifier as Hash;
    use udp::udp_proxy_config::RouteSpecifier as Route;
    let udp::UdpProxyConfig {
        stat_prefix,
        idle_timeout,
        use_original_src_ip,
        hash_policies,
        upstream_socket_config,
        use_per_packet_load_balancing,
        access_log,
        proxy_access_log,
        session_filters,
        tunneling_config,
        access_log_options,
        route_specifier,
    } = c;
    ignored!(notes, "nginx writes its own access logs"; access_log, proxy_access_log, access_log_options);
    ignored!(notes, "sockets are as the system makes them"; upstream_socket_config);
    ignored!(notes, "the endpoint sees this node's address"; use_original_src_ip);
    ignored!(notes, "all datagrams of a session go to one endpoint"; use_per_packet_load_balancing);
    if stat_prefix.is_empty() {
        return Err(notes.invalid("stat_prefix", "is empty"));
    }
    if !session_filters.is_empty() {
        return Ok(Err(notes.refused("session_filters", "are not supported")));
    }
    if tunneling_config.is_some() {
        return Ok(Err(notes.refused("tunneling_config", "datagrams would leave without the tunnel")));
    }
    let hash = match hash_policies.as_slice() {
        [] => UdpHash::None,
        [one] => match &one.policy_specifier {
            Some(Hash::SourceIp(true)) => UdpHash::SourceIp,
            Some(Hash::Key(key)) if !key.is_empty() => UdpHash::Key(key.clone()),
            _ => return Err(notes.invalid("hash_policies[0]", "is neither source_ip: true nor a key")),
        },
        _ => return Err(notes.invalid("hash_policies", "has more than one policy")),
    };
    let cluster = match route_specifier {
        None => return Err(notes.invalid("route_specifier", "is not set: cluster or matcher")),
        Some(Route::Cluster(cluster)) => cluster.clone(),
        Some(Route::Matcher(m)) => match notes.within("matcher", |n| matched(m, n))? {
            Ok(cluster) => cluster,
            Err(reason) => return Ok(Err(reason)),
        },
    };
    if cluster.is_empty() {
        return Err(notes.invalid("cluster", "is empty: the name of a cluster is needed"));
    }
    let idle_timeout = positive_millis(idle_timeout, "idle_timeout", notes)?.unwrap_or(60_000);
    Ok(Ok(Box::new(UdpProxy { cluster, idle_timeout, hash })))
}

/// The cluster of a matcher that matches everything.
fn matched(m: &matcher::Matcher, notes: &mut Notes) -> Result<Result<String, String>, Invalid> {
    let matcher::Matcher { on_no_match, matcher_type } = m;
    if matcher_type.is_some() {
        return Ok(Err(notes.refused("matcher_type", "is not supported: on_no_match alone is")));
    }
    let action: Option<&Any> = match on_no_match.as_ref().and_then(|m| m.on_match.as_ref()) {
        Some(OnMatch::Action(action)) => action.typed_config.as_ref(),
        _ => None,
    };
    let Some(any) = action.filter(|any| type_name(any) == ROUTE) else {
        return Err(notes.invalid("on_no_match.action", format!("is no {ROUTE}")));
    };
    let udp::Route { cluster } = unpack(any, "on_no_match.action.typed_config", notes)?;
    Ok(Ok(cluster))
}
