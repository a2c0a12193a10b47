//! The PROXY protocol to endpoints: who the client is, said before anything else (haproxy's `proxy-protocol.txt`).

use rkyv::{Archive, Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// What begins a header of version 2.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, and that the connection is on behalf of a client.
const V2_PROXY: u8 = 0x21;
/// Version 2, and that it is on behalf of nobody.
const V2_LOCAL: u8 = 0x20;
/// TCP over IPv4.
const V2_TCP4: u8 = 0x11;
/// TCP over IPv6.
const V2_TCP6: u8 = 0x21;

/// What an endpoint is told of the client (`ProxyProtocolUpstreamTransport`).
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ProxyProtocol {
    /// Which version.
    pub version: ProxyProtocolVersion,
    /// What version 2 says besides (`added_tlvs`), as it goes over the wire: type, length of two bytes, value, and so on.
    pub tlvs: Vec<u8>,
}

/// `ProxyProtocolConfig.Version`.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum ProxyProtocolVersion {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

impl ProxyProtocol {
    /// The header for a connection of `source` to `destination`.
    pub fn header(&self, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
        header(self.version, &self.tlvs, source, destination)
    }

    /// The header of a connection that has no client: a health check on the connection from `source` to `destination`.
    pub fn local(&self, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
        match self.version {
            ProxyProtocolVersion::V1 => header(self.version, &[], source, destination),
            ProxyProtocolVersion::V2 => [&SIGNATURE[..], &[V2_LOCAL, 0, 0, 0]].concat(),
        }
    }
}

impl ArchivedProxyProtocol {
    /// As [`ProxyProtocol::header`].
    pub fn header(&self, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
        let version = match self.version {
            ArchivedProxyProtocolVersion::V1 => ProxyProtocolVersion::V1,
            ArchivedProxyProtocolVersion::V2 => ProxyProtocolVersion::V2,
        };
        header(version, &self.tlvs, source, destination)
    }
}

fn header(version: ProxyProtocolVersion, tlvs: &[u8], source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let (from, to) = match (source.ip(), destination.ip()) {
        (from @ IpAddr::V4(_), to @ IpAddr::V4(_)) => (from, to),
        // One family for both.
        (from, to) => (IpAddr::V6(to_v6(from)), IpAddr::V6(to_v6(to))),
    };
    let (from_port, to_port) = (source.port(), destination.port());
    if version == ProxyProtocolVersion::V1 {
        let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
        return format!("PROXY {family} {from} {to} {from_port} {to_port}\r\n").into_bytes();
    }
    let (family, addresses) = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => (V2_TCP4, [from.octets(), to.octets()].concat()),
        (from, to) => (V2_TCP6, [to_v6(from).octets(), to_v6(to).octets()].concat()),
    };
    // What does not fit into the length was not accepted.
    let len = (addresses.len() + 4 + tlvs.len()) as u16;
    let parts: [&[u8]; 7] = [
        &SIGNATURE,
        &[V2_PROXY, family],
        &len.to_be_bytes(),
        &addresses,
        &from_port.to_be_bytes(),
        &to_port.to_be_bytes(),
        tlvs,
    ];
    parts.concat()
}

fn to_v6(ip: IpAddr) -> std::net::Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(version: ProxyProtocolVersion, tlvs: &[u8], source: &str, destination: &str) -> Vec<u8> {
        ProxyProtocol { version, tlvs: tlvs.into() }.header(source.parse().unwrap(), destination.parse().unwrap())
    }

    #[test]
    fn version_1_is_a_line() {
        let line = |from, to| String::from_utf8(said(ProxyProtocolVersion::V1, &[], from, to)).unwrap();
        assert_eq!(line("10.0.0.1:5000", "10.0.0.2:80"), "PROXY TCP4 10.0.0.1 10.0.0.2 5000 80\r\n");
        assert_eq!(line("[::1]:5000", "[fd00::2]:80"), "PROXY TCP6 ::1 fd00::2 5000 80\r\n");
        assert_eq!(line("10.0.0.1:5000", "[fd00::2]:80"), "PROXY TCP6 ::ffff:10.0.0.1 fd00::2 5000 80\r\n");
    }

    #[test]
    fn version_2_has_addresses_ports_and_what_was_added() {
        let header = said(ProxyProtocolVersion::V2, &[0xea, 0, 1, 7], "10.0.0.1:258", "10.0.0.2:80");
        let rest = [0x21, 0x11, 0, 16, 10, 0, 0, 1, 10, 0, 0, 2, 1, 2, 0, 80, 0xea, 0, 1, 7];
        assert_eq!(header, [&b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a"[..], &rest].concat());
        let six = said(ProxyProtocolVersion::V2, &[], "[::1]:1", "[::2]:2");
        assert_eq!((six.len(), &six[12..16]), (16 + 36, &[0x21, 0x21, 0, 36][..]));
    }

    #[test]
    fn a_check_is_of_nobody() {
        let local = |version| {
            let (from, to) = ("10.0.0.1:5000".parse().unwrap(), "10.0.0.2:80".parse().unwrap());
            ProxyProtocol { version, tlvs: vec![1, 0, 0] }.local(from, to)
        };
        assert_eq!(local(ProxyProtocolVersion::V1), b"PROXY TCP4 10.0.0.1 10.0.0.2 5000 80\r\n");
        assert_eq!(local(ProxyProtocolVersion::V2)[12..], [0x20, 0, 0, 0]);
    }
}
