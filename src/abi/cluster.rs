//! The health of a cluster's endpoints, and what was counted.

use super::room::Room;
use super::{header, place, read, room, text, Failure};
use crate::zone::{self, Pin};
use amesh_model::address::ArchivedAddress;
use amesh_model::cluster::ArchivedCluster;
use amesh_model::endpoint::{ArchivedEndpoint, ArchivedHealthStatus};
use amesh_model::vitals::{
    ClusterVitals, EndpointVitals, RuntimeHealth, CHECKED, DEGRADED_ACTIVE_HC, FAILED_ACTIVE_HC, FAILED_OUTLIER_CHECK,
};
use amesh_model::Kind;
use std::os::raw::{c_char, c_int, c_void};
use std::sync::atomic::Ordering;

/// See the header.
///
/// # Safety
/// As the header says.
#[no_mangle]
pub unsafe extern "C" fn amesh_cluster_state(
    name: *const c_char,
    name_len: usize,
    buffer: *mut c_void,
    capacity: usize,
    size: *mut usize,
    state: *mut header::amesh_cluster_t,
) -> c_int {
    read("amesh_cluster_state", |worker| {
        // SAFETY: promised by the caller.
        let (name, buffer, size, state) =
            unsafe { (text(name, name_len)?, room(buffer.cast(), capacity)?, place(size)?, place(state)?) };
        let (pin, _) = worker.pin();
        let found = pin.cluster(zone::hash(Kind::Cluster, name.as_bytes()), name).ok_or(Failure::NotFound)?;
        let mut out = Room::new(buffer);
        let mut endpoints = Vec::new();
        for locality in pin.endpoint_set(name).iter().flat_map(|set| set.localities.iter()) {
            for e in locality.endpoints.iter() {
                endpoints.push(endpoint(&pin, found, e, locality.priority.to_native(), &mut out));
            }
        }
        let cell = pin.cell(found.cell.to_native());
        *state = header::amesh_cluster_t {
            endpoints: out.list(&endpoints),
            endpoints_count: endpoints.len(),
            rq_total: cell.map_or(0, |c| c.rq_total.load(Ordering::Relaxed)),
            rq_active: cell.map_or(0, |c| c.rq_active.load(Ordering::Relaxed).into()),
            cx_active: cell.map_or(0, |c| c.cx_active.load(Ordering::Relaxed).into()),
            rq_retry_active: cell.map_or(0, |c| c.rq_retry_active.load(Ordering::Relaxed).into()),
            unhealthy: cell.map_or(0, |c| ClusterVitals(&c.words).unhealthy().into()),
            ejected: cell.map_or(0, |c| ClusterVitals(&c.words).ejected().into()),
        };
        out.end(size)
    })
}

fn endpoint(
    pin: &Pin<'_>,
    cluster: &ArchivedCluster,
    e: &ArchivedEndpoint,
    priority: u32,
    out: &mut Room<'_>,
) -> header::amesh_endpoint_t {
    let said = match e.health {
        ArchivedHealthStatus::Healthy => RuntimeHealth::Healthy,
        ArchivedHealthStatus::Degraded => RuntimeHealth::Degraded,
        ArchivedHealthStatus::Unhealthy => RuntimeHealth::Unhealthy,
    };
    let address = match &e.address {
        ArchivedAddress::Pipe(path) => out.text(path.as_bytes()),
        socket => out.text(socket.socket_addr().map(|a| a.to_string()).unwrap_or_default().as_bytes()),
    };
    let cell = pin.cell(e.cell.to_native());
    let (flags, found) = cell.map_or((0, RuntimeHealth::Healthy), |c| {
        let vitals = EndpointVitals(&c.words);
        (vitals.flags(), vitals.health())
    });
    header::amesh_endpoint_t {
        address,
        hostname: out.text(e.hostname.as_bytes()),
        weight: e.weight.to_native(),
        priority,
        health: match said.max(found) {
            RuntimeHealth::Healthy => 0,
            RuntimeHealth::Degraded => 1,
            RuntimeHealth::Unhealthy => 2,
        },
        checked: match flags {
            _ if cluster.health_check.is_none() => 0,
            f if f & CHECKED == 0 => 1,
            f if f & FAILED_ACTIVE_HC != 0 => 4,
            f if f & DEGRADED_ACTIVE_HC != 0 => 3,
            _ => 2,
        },
        ejected: u32::from(cluster.outlier_detection.is_some() && flags & FAILED_OUTLIER_CHECK != 0),
        refused: u32::from(e.refuse.is_some()),
        rq_active: cell.map_or(0, |c| c.rq_active.load(Ordering::Relaxed).into()),
        rq_total: cell.map_or(0, |c| c.rq_total.load(Ordering::Relaxed)),
        rq_error: cell.map_or(0, |c| c.rq_error.load(Ordering::Relaxed)),
        cx_connect_fail: cell.map_or(0, |c| c.cx_connect_fail.load(Ordering::Relaxed)),
    }
}
