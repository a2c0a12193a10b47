//! Small values that many resources share.

use super::{Invalid, Notes};
use amesh_model::address::{Address, CidrRange, Ip};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::r#type::v3 as kind;
use envoy_types::pb::google::protobuf::{Any, BoolValue, Duration, UInt32Value};
use std::net::IpAddr;

/// A duration in ms, rounded up (0 has a meaning of its own); `None` when it is not set.
pub(super) fn millis(d: &Option<Duration>, field: &str, notes: &Notes) -> Result<Option<u64>, Invalid> {
    let Some(d) = d else { return Ok(None) };
    let (Ok(seconds), Ok(nanos @ 0..=999_999_999)) = (u64::try_from(d.seconds), u64::try_from(d.nanos)) else {
        return Err(notes.invalid(field, format!("{}s {}ns is no duration from 0 up", d.seconds, d.nanos)));
    };
    if seconds > 315_576_000_000 {
        return Err(notes.invalid(field, format!("{seconds}s is longer than the 10,000 years that a duration may be")));
    }
    Ok(Some(seconds * 1000 + nanos.div_ceil(1_000_000)))
}

/// A duration that must be above 0 when it is set.
pub(super) fn positive_millis(d: &Option<Duration>, field: &str, notes: &Notes) -> Result<Option<u64>, Invalid> {
    match millis(d, field, notes)? {
        Some(0) => Err(notes.invalid(field, "must be above 0")),
        other => Ok(other),
    }
}

pub(super) fn bool_or(b: &Option<BoolValue>, default: bool) -> bool {
    b.as_ref().map_or(default, |b| b.value)
}

pub(super) fn u32_or(n: &Option<UInt32Value>, default: u32) -> u32 {
    n.as_ref().map_or(default, |n| n.value)
}

/// A `UInt32Value` with a lower bound.
pub(super) fn at_least(
    n: &Option<UInt32Value>,
    least: u32,
    default: u32,
    field: &str,
    notes: &Notes,
) -> Result<u32, Invalid> {
    match u32_or(n, default) {
        n if n < least => Err(notes.invalid(field, format!("is {n}, must be {least} or more"))),
        n => Ok(n),
    }
}

/// A number of an enumeration.
pub(super) fn enumeration<E: TryFrom<i32>>(n: i32, field: &str, notes: &Notes) -> Result<E, Invalid> {
    E::try_from(n).map_err(|_| notes.invalid(field, format!("{n} is no value of this enumeration")))
}

/// A port from 1 to 65535.
pub(super) fn port(n: u32, field: &str, notes: &Notes) -> Result<u16, Invalid> {
    match u16::try_from(n) {
        Ok(p) if p > 0 => Ok(p),
        _ => Err(notes.invalid(field, format!("{n} is no port: 1 to 65535"))),
    }
}

/// A share in per cent, 0 to 100, rounded.
pub(super) fn percent(p: &Option<kind::Percent>, default: u8, field: &str, notes: &Notes) -> Result<u8, Invalid> {
    match p {
        None => Ok(default),
        // A float casts to an integer without wrapping, and the range is checked.
        Some(p) if (0.0..=100.0).contains(&p.value) => Ok(p.value.round() as u8),
        Some(p) => Err(notes.invalid(field, format!("{} is not within 0 to 100", p.value))),
    }
}

/// A `DataSource` that stands in the resource itself.
pub(super) fn inline(source: &core::DataSource, notes: &mut Notes) -> Result<Vec<u8>, Invalid> {
    use core::data_source::Specifier;
    let core::DataSource { watched_directory, specifier } = source;
    super::notes::ignored!(notes, "files are not read"; watched_directory);
    match specifier {
        Some(Specifier::InlineString(s)) => Ok(s.clone().into_bytes()),
        Some(Specifier::InlineBytes(b)) => Ok(b.clone()),
        Some(Specifier::Filename(_)) => Err(notes.invalid("filename", "is not supported: give inline_string")),
        Some(Specifier::EnvironmentVariable(_)) => {
            Err(notes.invalid("environment_variable", "is not supported: give inline_string"))
        }
        None => Err(notes.invalid("", "is empty: inline_string or inline_bytes must be set")),
    }
}

/// What a `core.v3.Address` says.
pub(super) enum Place {
    /// Somewhere that can be spoken to.
    Known(Address),
    /// A name that must be resolved first.
    Name(String, u16),
    /// Something else, by its name and with the reason why it cannot be spoken to.
    Other(String, &'static str),
}

/// The port of a socket address; 0 is for the caller to judge.
pub(super) fn socket_port(a: &core::SocketAddress, notes: &Notes) -> Result<u16, Invalid> {
    use core::socket_address::PortSpecifier;
    match &a.port_specifier {
        Some(PortSpecifier::PortValue(p)) => {
            u16::try_from(*p).map_err(|_| notes.invalid("port_value", format!("{p} is no port: 0 to 65535")))
        }
        Some(PortSpecifier::NamedPort(p)) => {
            Err(notes.invalid("named_port", format!("\"{p}\" needs a resolver of its own: give port_value")))
        }
        None => Err(notes.invalid("port_value", "is not set")),
    }
}

pub(super) fn address(a: &Option<core::Address>, notes: &mut Notes) -> Result<Place, Invalid> {
    notes.within("address", |notes| {
        use core::address::Address as A;
        match a.as_ref().and_then(|a| a.address.as_ref()) {
            None => Err(notes.invalid("", "is not set")),
            Some(A::Pipe(p)) if p.path.is_empty() => Err(notes.invalid("pipe.path", "is empty")),
            Some(A::Pipe(p)) => Ok(Place::Known(Address::Pipe(p.path.clone()))),
            Some(A::EnvoyInternalAddress(i)) => {
                let core::envoy_internal_address::AddressNameSpecifier::ServerListenerName(name) = i
                    .address_name_specifier
                    .as_ref()
                    .ok_or_else(|| notes.invalid("envoy_internal_address.server_listener_name", "is not set"))?;
                Ok(Place::Other(format!("envoy://{name}/{}", i.endpoint_id), "envoy_internal_address is not supported"))
            }
            Some(A::SocketAddress(s)) => notes.within("socket_address", |notes| socket_address(s, notes)),
        }
    })
}

fn socket_address(s: &core::SocketAddress, notes: &mut Notes) -> Result<Place, Invalid> {
    let core::SocketAddress {
        protocol,
        address,
        resolver_name,
        ipv4_compat,
        network_namespace_filepath,
        port_specifier: _,
    } = s;
    super::notes::ignored!(notes, "sockets are opened as nginx's `listen` says"; ipv4_compat, network_namespace_filepath);
    let port = socket_port(s, notes)?;
    if address.is_empty() {
        return Err(notes.invalid("address", "is empty"));
    }
    if !resolver_name.is_empty() {
        return Err(notes.invalid("resolver_name", format!("\"{resolver_name}\" is not a resolver that is known here")));
    }
    if enumeration::<core::socket_address::Protocol>(*protocol, "protocol", notes)?
        == core::socket_address::Protocol::Udp
    {
        return Ok(Place::Other(format!("udp://{address}:{port}"), "UDP is not supported"));
    }
    Ok(match address.parse::<IpAddr>() {
        Ok(ip) => Place::Known(Address::Socket { ip: ip.into(), port }),
        Err(_) => Place::Name(address.clone(), port),
    })
}

/// An IP address and nothing else.
pub(super) fn ip(text: &str, field: &str, notes: &Notes) -> Result<Ip, Invalid> {
    match text.parse::<IpAddr>() {
        Ok(ip) => Ok(ip.into()),
        Err(_) => Err(notes.invalid(field, format!("malformed IP address: \"{text}\""))),
    }
}

/// A range with its host bits cleared. No length is length 0, as in Envoy.
pub(super) fn cidr(r: &core::CidrRange, notes: &mut Notes) -> Result<CidrRange, Invalid> {
    let ip = ip(&r.address_prefix, "address_prefix", notes)?;
    let len = u32_or(&r.prefix_len, 0);
    if len > 128 {
        return Err(notes.invalid("prefix_len", format!("{len} is longer than 128 bits")));
    }
    let (ip, prefix_len) = match ip {
        Ip::V4(a) => {
            let len = len.min(32);
            let mask = u32::MAX.checked_shl(32 - len).unwrap_or(0);
            (Ip::V4((u32::from_be_bytes(a) & mask).to_be_bytes()), len)
        }
        Ip::V6(a) => {
            let mask = u128::MAX.checked_shl(128 - len).unwrap_or(0);
            (Ip::V6((u128::from_be_bytes(a) & mask).to_be_bytes()), len)
        }
    };
    // 128 at most.
    Ok(CidrRange { ip, prefix_len: prefix_len as u8 })
}

/// The name of the message within an `Any`; of a `TypedStruct` the one that it stands for.
pub(super) fn type_name(any: &Any) -> String {
    #[derive(Clone, PartialEq, prost::Message)]
    struct TypedStruct {
        #[prost(string, tag = "1")]
        type_url: String,
    }
    let last = |url: &str| url.rsplit('/').next().unwrap_or_default().to_owned();
    let name = last(&any.type_url);
    if matches!(name.as_str(), "udpa.type.v1.TypedStruct" | "xds.type.v3.TypedStruct") {
        if let Ok(s) = <TypedStruct as prost::Message>::decode(any.value.as_slice()) {
            return last(&s.type_url);
        }
    }
    name
}

/// The message within an `Any`, whose type was looked at before.
pub(super) fn unpack<M: prost::Message + Default>(any: &Any, field: &str, notes: &Notes) -> Result<M, Invalid> {
    M::decode(any.value.as_slice()).map_err(|e| notes.invalid(field, format!("is no {}: {e}", any.type_url)))
}
