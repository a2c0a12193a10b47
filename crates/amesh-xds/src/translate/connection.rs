//! How a cluster's connections are made and kept: protocols, time-outs, source addresses, keepalive.

use super::notes::{ignored, Set};
use super::value::{bool_or, enumeration, ip, millis, type_name, u32_or, unpack};
use super::{filter, Invalid, Notes};
use amesh_model::address::Ip;
use amesh_model::cluster::UpstreamProtocol;
use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::upstreams::http::v3 as http;
use envoy_types::pb::google::protobuf::Any;
use std::collections::{BTreeMap, HashMap};

/// How endpoints are spoken to, and how long on one connection.
pub(super) struct HttpOptions {
    pub(super) protocol: UpstreamProtocol,
    pub(super) kept: Kept,
}

/// How long connections are kept.
pub(super) struct Kept {
    /// Idle, ms; 0: for ever.
    pub(super) idle_timeout: u64,
    /// For so many requests; 0: any number.
    pub(super) max_requests: u32,
    /// In all, ms; 0: for ever.
    pub(super) max_duration: u64,
    /// Up to so much longer, in per cent.
    pub(super) jitter: f64,
}

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const HTTP3: &str = "HTTP/3 is not supported";

/// What the cluster says of protocols and connections, in the older or the newer form.
pub(super) fn http_options(
    c: &pb::Cluster,
    extensions: &HashMap<String, Any>,
    refuse: &mut Option<String>,
    notes: &mut Notes,
) -> Result<HttpOptions, Invalid> {
    let field = "typed_extension_protocol_options";
    for (key, any) in extensions.iter().collect::<BTreeMap<_, _>>() {
        if type_name(any) == HTTP_OPTIONS {
            return notes.entry(field, key, |n| explicit_options(&unpack(any, "", n)?, refuse, n));
        }
        notes.entry(field, key, |n| n.ignored("", "is not supported"));
    }
    use pb::cluster::ClusterProtocolSelection as P;
    let downstream = enumeration::<P>(c.protocol_selection, "protocol_selection", notes)? == P::UseDownstreamProtocol;
    let protocol = match (downstream, &c.http2_protocol_options) {
        (true, _) => UpstreamProtocol::UseDownstream,
        (false, Some(_)) => UpstreamProtocol::Http2,
        (false, None) => UpstreamProtocol::Http1,
    };
    let mut kept = common_options(&c.common_http_protocol_options, notes)?;
    kept.max_requests = c.max_requests_per_connection.as_ref().map_or(kept.max_requests, |m| m.value);
    Ok(HttpOptions { protocol, kept })
}

fn explicit_options(
    o: &http::HttpProtocolOptions,
    refuse: &mut Option<String>,
    notes: &mut Notes,
) -> Result<HttpOptions, Invalid> {
    use http::http_protocol_options::explicit_http_config::ProtocolConfig as E;
    use http::http_protocol_options::UpstreamProtocolOptions as U;
    let http::HttpProtocolOptions {
        common_http_protocol_options,
        upstream_http_protocol_options,
        http_filters,
        header_validation_config,
        outlier_detection,
        request_mirror_policies,
        hash_policy,
        retry_policy,
        upstream_protocol_options,
    } = o;
    ignored!(notes, "TLS is not spoken to endpoints"; upstream_http_protocol_options);
    ignored!(notes, "headers are validated as nginx does"; header_validation_config);
    ignored!(notes, "statuses from 500 on count as failures, no others"; outlier_detection);
    ignored!(notes, "requests are not mirrored"; request_mirror_policies);
    ignored!(notes, "a request is hashed as its route or the balancing policy says"; hash_policy);
    ignored!(notes, "retries are those that the route asks for"; retry_policy);
    if let Some(why) = filter::upstream_filters(http_filters, "http_filters", notes) {
        *refuse = Some(why);
    }
    let protocol = match upstream_protocol_options {
        None => return Err(notes.invalid("upstream_protocol_options", "is not set")),
        Some(U::ExplicitHttpConfig(e)) => match &e.protocol_config {
            None => return Err(notes.invalid("explicit_http_config.protocol_config", "is not set")),
            Some(E::HttpProtocolOptions(_)) => UpstreamProtocol::Http1,
            Some(E::Http2ProtocolOptions(_)) => UpstreamProtocol::Http2,
            Some(E::Http3ProtocolOptions(_)) => {
                *refuse = Some(notes.refused("explicit_http_config.http3_protocol_options", HTTP3));
                UpstreamProtocol::Http1
            }
        },
        Some(U::UseDownstreamProtocolConfig(_)) => UpstreamProtocol::UseDownstream,
        Some(U::AutoConfig(_)) => {
            notes.ignored("auto_config", "without TLS there is no ALPN: HTTP/1.1 is spoken");
            UpstreamProtocol::Http1
        }
    };
    Ok(HttpOptions { protocol, kept: common_options(common_http_protocol_options, notes)? })
}

fn common_options(o: &Option<core::HttpProtocolOptions>, notes: &mut Notes) -> Result<Kept, Invalid> {
    const HOUR: u64 = 3_600_000;
    let Some(o) = o else { return Ok(Kept { idle_timeout: HOUR, max_requests: 0, max_duration: 0, jitter: 0.0 }) };
    notes.within("common_http_protocol_options", |notes| {
        let core::HttpProtocolOptions {
            idle_timeout,
            max_connection_duration,
            max_connection_duration_jitter,
            max_headers_count,
            max_response_headers_kb,
            max_stream_duration,
            headers_with_underscores_action: _,
            max_requests_per_connection,
        } = o;
        ignored!(notes, "nginx's own limits and time-outs hold";
            max_headers_count, max_response_headers_kb, max_stream_duration);
        let jitter = max_connection_duration_jitter.as_ref().map_or(0.0, |p| p.value);
        if !(0.0..=100.0).contains(&jitter) {
            return Err(notes.invalid("max_connection_duration_jitter", format!("{jitter} is not within 0 to 100")));
        }
        Ok(Kept {
            idle_timeout: millis(idle_timeout, "idle_timeout", notes)?.unwrap_or(HOUR),
            max_requests: u32_or(max_requests_per_connection, 0),
            max_duration: millis(max_connection_duration, "max_connection_duration", notes)?.unwrap_or(0),
            jitter,
        })
    })
}

/// TCP keepalive of connections to endpoints: seconds, seconds, probes.
pub(super) fn keepalive(o: &pb::UpstreamConnectionOptions, notes: &mut Notes) -> Option<(u32, u32, u32)> {
    let pb::UpstreamConnectionOptions {
        tcp_keepalive,
        set_local_interface_name_on_upstream_connections: _,
        happy_eyeballs_config,
    } = o;
    ignored!(notes, "an endpoint has one address"; happy_eyeballs_config);
    tcp_keepalive
        .as_ref()
        .map(|k| (u32_or(&k.keepalive_time, 0), u32_or(&k.keepalive_interval, 0), u32_or(&k.keepalive_probes, 0)))
}

/// Source addresses of connections to endpoints, one a family.
pub(super) fn bind(b: &core::BindConfig, notes: &mut Notes) -> Result<Vec<Ip>, Invalid> {
    let core::BindConfig {
        source_address,
        freebind,
        socket_options,
        extra_source_addresses,
        additional_source_addresses,
        local_address_selector,
        validate_network_namespaces: _,
    } = b;
    if bool_or(freebind, false) {
        notes.ignored("freebind", "the source address must be one of this machine");
    }
    ignored!(notes, "the system's socket options hold"; socket_options);
    ignored!(notes, "the first address of a family is taken"; local_address_selector);
    let all = source_address
        .iter()
        .chain(extra_source_addresses.iter().filter_map(|e| e.address.as_ref()))
        .chain(additional_source_addresses);
    let mut out: Vec<Ip> = Vec::new();
    for a in all {
        let ip = ip(&a.address, "source_address.address", notes)?;
        if super::value::socket_port(a, notes)? != 0 {
            notes.ignored("source_address.port_value", "the system picks the source port");
        }
        if !out.iter().any(|o| matches!((o, &ip), (Ip::V4(_), Ip::V4(_)) | (Ip::V6(_), Ip::V6(_)))) {
            out.push(ip);
        }
    }
    if out.is_empty() && (extra_source_addresses.is_set() || additional_source_addresses.is_set()) {
        return Err(notes.invalid("source_address", "is not set"));
    }
    Ok(out)
}
