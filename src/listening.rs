//! Which listeners of the mesh want a socket that no `listen` of nginx opens.
//!
//! Stock nginx opens no sockets at run time, so a listener with `bind_to_port` is served only where the configuration
//! listens on its address. Who misses one is told which line to add, once.

use crate::original_dst::from_sockaddr;
use amesh_model::address::Address;
use amesh_model::listener::{Listener, TrafficDirection};
use ngx::ffi::{self, ngx_cycle_t};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};

/// TCP addresses on which nginx listens.
static LISTENING: Mutex<Vec<SocketAddr>> = Mutex::new(Vec::new());
/// What was told already.
static TOLD: Mutex<Option<HashSet<(String, SocketAddr)>>> = Mutex::new(None);

/// Remembers on which addresses a configuration listens.
pub fn note(cycle: *mut ngx_cycle_t) {
    // SAFETY: the configuration of the cycle has been read; its listeners are complete.
    let addresses = unsafe {
        let Some(cycle) = cycle.as_ref() else { return };
        if cycle.listening.elts.is_null() {
            return;
        }
        std::slice::from_raw_parts(cycle.listening.elts.cast::<ffi::ngx_listening_t>(), cycle.listening.nelts)
            .iter()
            .filter(|ls| ls.type_ == libc::SOCK_STREAM && (ls.socklen as usize) <= size_of::<libc::sockaddr_storage>())
            .filter_map(|ls| {
                let mut storage = MaybeUninit::<libc::sockaddr_storage>::zeroed();
                std::ptr::copy_nonoverlapping(
                    ls.sockaddr.cast::<u8>(),
                    storage.as_mut_ptr().cast(),
                    ls.socklen as usize,
                );
                from_sockaddr(&storage.assume_init())
            })
            .collect()
    };
    *LISTENING.lock() = addresses;
}

/// Warns where a listener's address is not listened on.
pub fn check(listener: &Listener) {
    if !listener.bind_to_port {
        return;
    }
    for address in &listener.addresses {
        let Address::Socket { ip, port } = address else { continue };
        let wanted = SocketAddr::new((*ip).into(), *port);
        let served = LISTENING.lock().iter().any(|have| serves(*have, wanted));
        if served || !TOLD.lock().get_or_insert_default().insert((listener.name.clone(), wanted)) {
            continue;
        }
        let side = if listener.traffic_direction == TrafficDirection::Inbound { "inbound" } else { "outbound" };
        crate::master::warn(&format!(
            "listener \"{}\" wants a socket on {wanted} and no \"listen\" serves it: add \"server {{ listen {wanted}; \
             amesh {side}; }}\" to stream {{}}",
            listener.name
        ));
    }
}

/// Whether a socket on `have` takes what comes to `wanted`.
fn serves(have: SocketAddr, wanted: SocketAddr) -> bool {
    let any = |ip: IpAddr| ip.is_unspecified();
    have.port() == wanted.port() && (have.ip() == wanted.ip() || any(have.ip()) || any(wanted.ip()))
}
