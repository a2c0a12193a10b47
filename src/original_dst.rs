//! The original destination of a connection that iptables redirected (`SO_ORIGINAL_DST`).

use ngx::ffi::ngx_connection_t;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};

/// `SO_ORIGINAL_DST` of linux/netfilter_ipv4.h.
const SO_ORIGINAL_DST: libc::c_int = 80;
/// `IP6T_SO_ORIGINAL_DST` of linux/netfilter_ipv6/ip6_tables.h.
const IP6T_SO_ORIGINAL_DST: libc::c_int = 80;

/// Where a client's connection was going before it was redirected to this listener.
///
/// `None` when it was not redirected: the kernel has no entry for it, its entry is the local address itself,
/// or it is no TCP connection. IPv4-mapped addresses come out as IPv4.
///
/// # Safety
/// `c` must be an open connection.
pub unsafe fn original_dst(c: *mut ngx_connection_t) -> Option<SocketAddr> {
    // SAFETY: promised by the caller.
    let fd = unsafe { (*c).fd };
    let local = local_addr(fd)?;
    let found = match local.ip() {
        IpAddr::V4(_) => getsockopt(fd, libc::SOL_IP, SO_ORIGINAL_DST),
        IpAddr::V6(_) => getsockopt(fd, libc::SOL_IPV6, IP6T_SO_ORIGINAL_DST),
    }?;
    (found != local).then_some(found)
}

/// The local address of a socket, from the descriptor: nginx's own field is another's after a hand-over.
/// IPv4-mapped addresses come out as IPv4; `None` for a socket that is not of the internet families.
pub fn local_addr(fd: libc::c_int) -> Option<SocketAddr> {
    let mut storage = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY: storage has room for any address, len says so.
    if unsafe { libc::getsockname(fd, storage.as_mut_ptr().cast(), &mut len) } != 0 {
        return None;
    }
    // SAFETY: zeroed, then filled by the kernel.
    from_sockaddr(unsafe { &storage.assume_init() })
}

fn getsockopt(fd: libc::c_int, level: libc::c_int, name: libc::c_int) -> Option<SocketAddr> {
    let mut storage = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY: storage has room for any address, len says so.
    if unsafe { libc::getsockopt(fd, level, name, storage.as_mut_ptr().cast(), &mut len) } != 0 {
        return None;
    }
    // SAFETY: zeroed, then filled by the kernel.
    from_sockaddr(unsafe { &storage.assume_init() })
}

/// A socket address of the internet families, IPv4-mapped ones as IPv4.
pub fn from_sockaddr(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says which type this is, and the storage is large enough.
            let a = unsafe { &*std::ptr::from_ref(storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(a.sin_addr.s_addr));
            Some(SocketAddr::new(ip.into(), u16::from_be(a.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let a = unsafe { &*std::ptr::from_ref(storage).cast::<libc::sockaddr_in6>() };
            let ip = std::net::Ipv6Addr::from(a.sin6_addr.s6_addr);
            let port = u16::from_be(a.sin6_port);
            Some(match ip.to_ipv4_mapped() {
                Some(v4) => SocketAddr::new(v4.into(), port),
                None => SocketAddr::V6(SocketAddrV6::new(ip, port, 0, a.sin6_scope_id)),
            })
        }
        _ => None,
    }
}

/// The address of the peer of a connection, `None` when it is no internet address.
///
/// # Safety
/// `c` must be a connection with a peer.
pub unsafe fn peer_addr(c: *mut ngx_connection_t) -> Option<SocketAddr> {
    // SAFETY: nginx keeps sockaddr and socklen of an accepted connection.
    unsafe { addr((*c).sockaddr.cast(), (*c).socklen) }
}

/// A socket address that nginx keeps, `None` when it is none of the internet families.
///
/// # Safety
/// `sockaddr` must be null, or have `len` bytes.
pub unsafe fn addr(sockaddr: *const libc::sockaddr, len: libc::socklen_t) -> Option<SocketAddr> {
    let len = len as usize;
    if sockaddr.is_null() || len > size_of::<libc::sockaddr_storage>() {
        return None;
    }
    let mut storage = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    // SAFETY: promised by the caller; there is room.
    unsafe {
        std::ptr::copy_nonoverlapping(sockaddr.cast::<u8>(), storage.as_mut_ptr().cast::<u8>(), len);
        from_sockaddr(&storage.assume_init())
    }
}

/// A socket address as the kernel wants it, and its length.
pub fn to_sockaddr(addr: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: all zeroes is a value of this plain C struct.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let len = match addr {
        SocketAddr::V4(a) => {
            // SAFETY: the storage is larger than, and aligned for, any address type.
            let s = unsafe { &mut *std::ptr::from_mut(&mut storage).cast::<libc::sockaddr_in>() };
            s.sin_family = libc::AF_INET as libc::sa_family_t;
            s.sin_port = a.port().to_be();
            s.sin_addr.s_addr = u32::from(*a.ip()).to_be();
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(a) => {
            // SAFETY: as above.
            let s = unsafe { &mut *std::ptr::from_mut(&mut storage).cast::<libc::sockaddr_in6>() };
            s.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            s.sin6_port = a.port().to_be();
            s.sin6_addr.s6_addr = a.ip().octets();
            s.sin6_scope_id = a.scope_id();
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, len as libc::socklen_t)
}
