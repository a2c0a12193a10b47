//! The endpoint of a try, for balancers in Lua.

use super::decide::live;
use super::{answer, header, place, text, Failure};
use crate::http::balanced::{self, NoPeer};
use crate::http::peer::Begin;
use crate::lb::Reason;
use std::os::raw::{c_char, c_int, c_void};

/// See the header.
///
/// # Safety
/// As the header says.
#[no_mangle]
pub unsafe extern "C" fn amesh_balancer_pick(
    r: *mut c_void,
    cluster: *const c_char,
    cluster_len: usize,
    peer: *mut header::amesh_peer_t,
) -> c_int {
    answer("amesh_balancer_pick", || {
        // SAFETY: promised by the caller.
        unsafe {
            let (r, cluster, out) = (live(r)?, text(cluster, cluster_len)?, place(peer)?);
            let (peer, ctx) = balanced::pick(r, cluster).map_err(failure)?;
            let picked = &peer.picked;
            let (_, mut address) = picked.names();
            if picked.port() != 0 && address.contains(':') {
                address = ["[", &address, "]"].concat();
            }
            let (text, rest) = out.address.split_at_mut_checked(address.len()).ok_or(Failure::NoRoom)?;
            text.iter_mut().zip(address.bytes()).for_each(|(to, from)| *to = from as c_char);
            rest.fill(0);
            out.address_len = address.len() as u32;
            out.port = u32::from(picked.port());
            out.attempt = ctx.attempts;
            out.connect_timeout = picked.connect_timeout;
            out.idle_timeout = match ctx.per_try_idle_timeout {
                0 => ctx.idle_timeout,
                ms => ms,
            };
            Ok(())
        }
    })
}

fn failure(why: NoPeer) -> Failure {
    match why {
        NoPeer::NoUpstream => Failure::NoRequest,
        NoPeer::NoRoute => Failure::NoPeer(header::AMESH_NO_ROUTE),
        NoPeer::Begin(Begin::Memory) => Failure::Memory,
        NoPeer::Begin(Begin::Reason(reason)) => match reason {
            Reason::NoCluster => Failure::NoPeer(header::AMESH_NO_CLUSTER),
            Reason::NoHealthyUpstream => Failure::NoPeer(header::AMESH_NO_HEALTHY_UPSTREAM),
            Reason::Overflow | Reason::NothingPending => Failure::NoPeer(header::AMESH_OVERFLOW),
            Reason::Refused => Failure::NoPeer(header::AMESH_REFUSED),
            Reason::NoZone => Failure::NoZone,
        },
    }
}
