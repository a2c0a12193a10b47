//! Transport sockets: plain TCP, with the PROXY protocol before it. TLS is not spoken yet, so what asks for it is refused.

use super::notes::ignored;
use super::value::{enumeration, type_name, unpack};
use super::{Invalid, Notes};
use amesh_model::proxy_protocol::{ProxyProtocol, ProxyProtocolVersion};
use envoy_types::pb::envoy::config::cluster::v3 as cluster;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::proxy_protocol::v3 as pb;
use envoy_types::pb::google::protobuf::{Struct, Value};
use std::collections::HashMap;

const RAW_BUFFER: &str = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
const PROXY_PROTOCOL: &str = "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport";
/// The most that may be added to a header: endpoints take no more.
const MAX_TLVS: usize = 8192;
/// Where the metadata of an endpoint say which transport socket it wants.
pub(super) const MATCH_METADATA: &str = "envoy.transport_socket_match";

/// What a cluster's own socket says: the PROXY protocol or nothing over plain TCP, or why it must be refused.
pub(super) fn transport(
    socket: &core::TransportSocket,
    notes: &mut Notes,
) -> Result<Result<Option<ProxyProtocol>, String>, Invalid> {
    let any = match &socket.config_type {
        Some(core::transport_socket::ConfigType::TypedConfig(any)) if type_name(any) == PROXY_PROTOCOL => any,
        _ => return Ok(refusal(socket).map_or(Ok(None), Err)),
    };
    notes.within("typed_config", |notes| {
        let pb::ProxyProtocolUpstreamTransport { config, transport_socket, allow_unspecified_address, tlv_as_pool_key } =
            unpack(any, "", notes)?;
        if allow_unspecified_address {
            notes.ignored("allow_unspecified_address", "a client always has an address");
        }
        if tlv_as_pool_key {
            notes.ignored("tlv_as_pool_key", "what is added is the same for all connections");
        }
        let Some(inner) = transport_socket else { return Err(notes.invalid("transport_socket", "is not set")) };
        if let Some(reason) = refusal(&inner) {
            return Ok(Err(reason));
        }
        notes.within("config", |notes| proxy_protocol(&config.unwrap_or_default(), notes)).map(|p| Ok(Some(p)))
    })
}

fn proxy_protocol(config: &core::ProxyProtocolConfig, notes: &mut Notes) -> Result<ProxyProtocol, Invalid> {
    use core::proxy_protocol_config::Version;
    let core::ProxyProtocolConfig { version, pass_through_tlvs, added_tlvs } = config;
    ignored!(notes, "nothing comes with a client's own PROXY protocol"; pass_through_tlvs);
    let version = match enumeration::<Version>(*version, "version", notes)? {
        Version::V1 => ProxyProtocolVersion::V1,
        Version::V2 => ProxyProtocolVersion::V2,
    };
    let mut tlvs = Vec::new();
    for (i, tlv) in added_tlvs.iter().enumerate() {
        let core::TlvEntry { r#type, value, format_string } = tlv;
        notes.each("added_tlvs", i, |notes| {
            if format_string.is_some() {
                notes.ignored("format_string", "is not supported: it is left out");
                return Ok(());
            }
            let (Ok(kind), Ok(len)) = (u8::try_from(*r#type), u16::try_from(value.len())) else {
                return Err(notes.invalid("", "has a type above 255, or a value of more than 65535 bytes"));
            };
            tlvs.push(kind);
            tlvs.extend_from_slice(&len.to_be_bytes());
            tlvs.extend_from_slice(value);
            Ok(())
        })?;
    }
    if tlvs.len() > MAX_TLVS {
        return Err(notes.invalid("added_tlvs", format!("are {} bytes, {MAX_TLVS} is the most", tlvs.len())));
    }
    Ok(ProxyProtocol { version, tlvs })
}

/// Why what uses this socket must be refused; `None`: it is plain TCP.
pub(super) fn refusal(socket: &core::TransportSocket) -> Option<String> {
    let kind = match &socket.config_type {
        Some(core::transport_socket::ConfigType::TypedConfig(any)) => type_name(any),
        None if matches!(socket.name.as_str(), "envoy.transport_sockets.raw_buffer" | "raw_buffer") => return None,
        None => String::from("no configuration"),
    };
    if kind == PROXY_PROTOCOL {
        return Some(format!("transport socket \"{}\" ({kind}) is supported for a whole cluster alone", socket.name));
    }
    (kind != RAW_BUFFER).then(|| format!("transport socket \"{}\" ({kind}) is not supported yet", socket.name))
}

/// The transport sockets of a cluster, as far as it matters: which endpoints must not be spoken to.
#[derive(Clone, Debug, Default)]
pub struct Sockets {
    matches: Vec<(HashMap<String, Value>, Option<String>)>,
    default: Option<String>,
}

impl Sockets {
    pub(super) fn new(matches: &[cluster::cluster::TransportSocketMatch], default: Option<String>) -> Sockets {
        let one = |m: &cluster::cluster::TransportSocketMatch| {
            let labels = m.r#match.as_ref().map(|s| s.fields.clone()).unwrap_or_default();
            let refuse = m.transport_socket.as_ref().and_then(refusal);
            (labels, refuse.map(|r| format!("transport_socket_matches \"{}\": {r}", m.name)))
        };
        Sockets { matches: matches.iter().map(one).collect(), default }
    }

    /// Why an endpoint with these metadata must not be spoken to. What the endpoint says goes before what its
    /// locality says; the first match of the list is taken, without one the cluster's own socket.
    pub fn refusal(&self, endpoint: Option<&Struct>, locality: Option<&Struct>) -> Option<&str> {
        let find = |metadata: Option<&Struct>| {
            self.matches.iter().find(|(labels, _)| {
                labels.iter().all(|(k, v)| metadata.and_then(|m| m.fields.get(k)).is_some_and(|have| have == v))
            })
        };
        let found = find(endpoint).or_else(|| locality.and_then(|l| find(Some(l))));
        match found {
            Some((_, refuse)) => refuse.as_deref(),
            None => self.default.as_deref(),
        }
    }
}

/// The labels of an endpoint or locality that pick its transport socket.
pub(super) fn labels(metadata: &Option<core::Metadata>) -> Option<&Struct> {
    metadata.as_ref().and_then(|m| m.filter_metadata.get(MATCH_METADATA))
}
