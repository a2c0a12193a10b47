//! Socket addresses and prefix ranges in a form that archives well.

use rkyv::{Archive, Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// An IP address: 4 or 16 octets in network order.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[rkyv(derive(Debug, PartialEq, Eq, Hash))]
pub enum Ip {
    /// IPv4.
    V4([u8; 4]),
    /// IPv6.
    V6([u8; 16]),
}

/// Where a connection goes (`config.core.v3.Address`).
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash)]
#[rkyv(derive(Debug, PartialEq, Eq, Hash))]
pub enum Address {
    /// `socket_address` with a literal IP.
    Socket {
        /// The IP address.
        ip: Ip,
        /// The port, host byte order.
        port: u16,
    },
    /// `pipe`: the path of a Unix socket; a leading `@` is the abstract name space.
    Pipe(String),
}

/// An IP prefix (`config.core.v3.CidrRange`).
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct CidrRange {
    /// Network address; host bits are zero.
    pub ip: Ip,
    /// Prefix length in bits.
    pub prefix_len: u8,
}

/// As text.
#[cfg(feature = "serde")]
impl serde::Serialize for Ip {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&IpAddr::from(*self))
    }
}

/// As text.
#[cfg(feature = "serde")]
impl serde::Serialize for Address {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl From<IpAddr> for Ip {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(a) => Ip::V4(a.octets()),
            IpAddr::V6(a) => Ip::V6(a.octets()),
        }
    }
}

impl From<Ip> for IpAddr {
    fn from(ip: Ip) -> Self {
        match ip {
            Ip::V4(a) => IpAddr::from(a),
            Ip::V6(a) => IpAddr::from(a),
        }
    }
}

impl From<&ArchivedIp> for IpAddr {
    fn from(ip: &ArchivedIp) -> Self {
        match ip {
            ArchivedIp::V4(a) => IpAddr::from(*a),
            ArchivedIp::V6(a) => IpAddr::from(*a),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(a: SocketAddr) -> Self {
        Address::Socket { ip: a.ip().into(), port: a.port() }
    }
}

impl Address {
    /// The socket address, `None` for a pipe.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        match self {
            Address::Socket { ip, port } => Some(SocketAddr::new((*ip).into(), *port)),
            Address::Pipe(_) => None,
        }
    }
}

impl ArchivedAddress {
    /// The socket address, `None` for a pipe.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        match self {
            ArchivedAddress::Socket { ip, port } => Some(SocketAddr::new(ip.into(), port.to_native())),
            ArchivedAddress::Pipe(_) => None,
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Socket { ip, port } => SocketAddr::new((*ip).into(), *port).fmt(f),
            Address::Pipe(p) => f.write_str(p),
        }
    }
}
