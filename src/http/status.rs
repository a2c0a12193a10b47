//! `amesh_status;`: what the thread and the workers know, as JSON, as Prometheus text, and as a readiness probe.

use super::reply;
use crate::guard::{self, guard};
use crate::nginx::{self, pool_str, CONF_ERROR, CONF_OK, EMPTY, ERROR};
use crate::zone;
use amesh_model::address::ArchivedAddress;
use amesh_model::endpoint::ArchivedHealthStatus;
use amesh_model::vitals::{
    ClusterVitals, EndpointVitals, RuntimeHealth, CHECKED, DEGRADED_ACTIVE_HC, FAILED_ACTIVE_HC, FAILED_OUTLIER_CHECK,
};
use amesh_model::Kind;
use ngx::ffi::{self, ngx_command_t, ngx_conf_t, ngx_http_request_t, ngx_int_t};
use serde_json::{json, Value};
use std::ffi::c_void;
use std::fmt::Write;
use std::os::raw::c_char;
use std::sync::atomic::Ordering;

/// `amesh_status;` in a location.
pub extern "C" fn directive(cf: *mut ngx_conf_t, _: *mut ngx_command_t, _: *mut c_void) -> *mut c_char {
    guard("amesh_status", CONF_ERROR, || {
        // SAFETY: within a location, cf.ctx is its ngx_http_conf_ctx_t.
        unsafe {
            let ctx = (*cf).ctx.cast::<ffi::ngx_http_conf_ctx_t>();
            let core: *mut ffi::ngx_http_core_loc_conf_t =
                nginx::slot_of((*ctx).loc_conf, &raw const ffi::ngx_http_core_module);
            (*core).handler = Some(handler);
        }
        CONF_OK
    })
}

extern "C" fn handler(r: *mut ngx_http_request_t) -> ngx_int_t {
    guard("amesh_status", ERROR, || {
        // SAFETY: nginx hands in a live request.
        unsafe {
            if (*r).method & (ffi::NGX_HTTP_GET | ffi::NGX_HTTP_HEAD) as usize == 0 {
                return ffi::NGX_HTTP_NOT_ALLOWED as ngx_int_t;
            }
            let uri = nginx::text((*r).uri);
            let (status, kind, body) = match uri.rsplit('/').next() {
                Some("metrics") => (200, "text/plain; version=0.0.4", metrics()),
                Some("ready") => match ready() {
                    Ok(()) => (200, "text/plain", "ready\n".to_owned()),
                    Err(why) => (503, "text/plain", format!("not ready: {why}\n")),
                },
                Some("live") => (200, "text/plain", "live\n".to_owned()),
                _ => (200, "application/json", json()),
            };
            let Some(body) = pool_str((*r).pool, body.as_bytes()) else { return ERROR };
            reply::send_typed(r, status, body, EMPTY, nginx::str_of(kind))
        }
    })
}

/// The version of a kind's slots and what they hold, for people: every name with its version, clusters with their
/// endpoints and counts. What the thread knows stands under `xds`, as it wrote it.
fn json() -> String {
    zone::with_worker(|worker| {
        let (pin, _) = worker.pin();
        let xds = pin.status().and_then(|text| serde_json::from_str(text).ok()).unwrap_or(Value::Null);
        let mut clusters = serde_json::Map::new();
        pin.for_each(Kind::Cluster, |name, _| {
            clusters.insert(name.to_owned(), cluster(&pin, name));
        });
        let listed = |kind| {
            let mut names = serde_json::Map::new();
            pin.for_each(kind, |name, version| {
                names.insert(name.to_owned(), Value::from(version));
            });
            Value::Object(names)
        };
        let status = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "zone": zone_status(&pin),
            "listeners": listed(Kind::Listener),
            "route_tables": listed(Kind::RouteTable),
            "clusters": clusters,
            "xds": xds,
            "worker": { "pid": std::process::id(), "idle_upstream_connections": super::pool::len(), "panics": guard::caught() },
        });
        serde_json::to_string_pretty(&status).unwrap_or_default() + "\n"
    })
    .unwrap_or_else(|| "{}\n".to_owned())
}

/// Sizes and counts of the zone, see [`amesh_shm::Stats`].
fn zone_status(pin: &zone::Pin<'_>) -> Value {
    let s = pin.stats();
    json!({
        "version": s.version,
        "size_bytes": s.size,
        "capacity_bytes": s.capacity,
        "used_bytes": s.used,
        "retired_bytes": s.retired,
        "slots": s.slots,
        "slots_max": s.slots_max,
        "cells": s.cells,
        "cells_max": s.cells_max,
        "workers": s.workers,
        "full_rejections": s.full_rejections,
        "unledgered": s.unledgered,
        "reaped": s.reaped,
    })
}

/// One cluster with its endpoints and counts.
fn cluster(pin: &zone::Pin<'_>, name: &str) -> Value {
    let Some(found) = pin.cluster(zone::hash(Kind::Cluster, name.as_bytes()), name) else { return Value::Null };
    let mut endpoints = Vec::new();
    for locality in pin.endpoint_set(name).iter().flat_map(|set| set.localities.iter()) {
        for endpoint in locality.endpoints.iter() {
            let said = match endpoint.health {
                ArchivedHealthStatus::Healthy => RuntimeHealth::Healthy,
                ArchivedHealthStatus::Degraded => RuntimeHealth::Degraded,
                ArchivedHealthStatus::Unhealthy => RuntimeHealth::Unhealthy,
            };
            let mut entry = json!({
                "address": address(&endpoint.address),
                "weight": endpoint.weight.to_native(),
                "priority": locality.priority.to_native(),
                "health": health_name(said),
            });
            if let Some(reason) = endpoint.refuse.as_ref() {
                entry["refused"] = Value::from(reason.as_str());
            }
            if let Some(cell) = pin.cell(endpoint.cell.to_native()) {
                let vitals = EndpointVitals(&cell.words);
                let flags = vitals.flags();
                if found.health_check.is_some() {
                    entry["active_health_check"] = Value::from(checked(flags));
                }
                if found.outlier_detection.is_some() {
                    entry["ejected"] = Value::from(flags & FAILED_OUTLIER_CHECK != 0);
                    entry["ejections"] = Value::from(vitals.ejections());
                }
                entry["health"] = Value::from(health_name(said.max(vitals.health())));
                entry["rq_active"] = Value::from(cell.rq_active.load(Ordering::Relaxed));
                entry["rq_total"] = Value::from(cell.rq_total.load(Ordering::Relaxed));
                entry["rq_error"] = Value::from(cell.rq_error.load(Ordering::Relaxed));
                entry["cx_connect_fail"] = Value::from(cell.cx_connect_fail.load(Ordering::Relaxed));
            }
            endpoints.push(entry);
        }
    }
    let mut entry = json!({ "endpoints": endpoints });
    if let Some(reason) = found.refuse.as_ref() {
        entry["refused"] = Value::from(reason.as_str());
    }
    if let Some(cell) = pin.cell(found.cell.to_native()) {
        let vitals = ClusterVitals(&cell.words);
        entry["rq_total"] = Value::from(cell.rq_total.load(Ordering::Relaxed));
        // Counted where the cluster has limits.
        entry["rq_active"] = Value::from(cell.rq_active.load(Ordering::Relaxed));
        entry["cx_active"] = Value::from(cell.cx_active.load(Ordering::Relaxed));
        entry["rq_retry_active"] = Value::from(cell.rq_retry_active.load(Ordering::Relaxed));
        entry["runtime_unhealthy"] = Value::from(vitals.unhealthy());
        entry["ejected"] = Value::from(vitals.ejected());
    }
    entry
}

fn health_name(health: RuntimeHealth) -> &'static str {
    match health {
        RuntimeHealth::Healthy => "healthy",
        RuntimeHealth::Degraded => "degraded",
        RuntimeHealth::Unhealthy => "unhealthy",
    }
}

/// What active checks found.
fn checked(flags: u32) -> &'static str {
    match flags {
        f if f & CHECKED == 0 => "pending",
        f if f & FAILED_ACTIVE_HC != 0 => "failed",
        f if f & DEGRADED_ACTIVE_HC != 0 => "degraded",
        _ => "passed",
    }
}

fn address(address: &ArchivedAddress) -> String {
    match (address.socket_addr(), address) {
        (Some(addr), _) => addr.to_string(),
        (None, ArchivedAddress::Pipe(path)) => path.as_str().to_owned(),
        (None, _) => String::new(),
    }
}

/// Whether requests can be routed: the zone has been filled once.
fn ready() -> Result<(), String> {
    match zone::with_worker(|worker| worker.pin().0.is_ready()) {
        None => Err("this worker has no zone".to_owned()),
        Some(false) => Err("nothing was received yet from any source".to_owned()),
        Some(true) => Ok(()),
    }
}

/// Prometheus text.
fn metrics() -> String {
    zone::with_worker(|worker| {
        let (pin, _) = worker.pin();
        let mut out = String::new();
        // Writing to a String cannot fail.
        let mut line = |name: &str, labels: &str, value: u64| {
            let _ = writeln!(out, "amesh_{name}{labels} {value}");
        };
        if let Value::Object(zone) = zone_status(&pin) {
            for (key, value) in zone {
                if let Some(n) = value.as_u64() {
                    line(&format!("zone_{key}"), "", n);
                }
            }
        }
        let xds: Value = pin.status().and_then(|text| serde_json::from_str(text).ok()).unwrap_or(Value::Null);
        line("xds_rejected_resources", "", xds["rejected"].as_array().map_or(0, |r| r.len() as u64));
        for source in xds["sources"].as_array().into_iter().flatten() {
            let target = source["target"].as_str().unwrap_or("").replace(['"', '\\', '\n'], "_");
            let connected = u64::from(source["state"] == "connected");
            line("xds_source_connected", &format!("{{target=\"{target}\"}}"), connected);
        }
        pin.for_each(Kind::Cluster, |name, _| {
            let status = cluster(&pin, name);
            let label = |extra: &str| format!("{{cluster=\"{}\"{extra}}}", name.replace(['"', '\\', '\n'], "_"));
            line("cluster_upstream_rq_total", &label(""), status["rq_total"].as_u64().unwrap_or(0));
            for key in ["runtime_unhealthy", "ejected"] {
                line(&format!("cluster_{key}"), &label(""), status[key].as_u64().unwrap_or(0));
            }
            for endpoint in status["endpoints"].as_array().into_iter().flatten() {
                let labels = label(&format!(",endpoint=\"{}\"", endpoint["address"].as_str().unwrap_or("")));
                for key in ["rq_active", "rq_total", "rq_error", "cx_connect_fail"] {
                    line(&format!("endpoint_{key}"), &labels, endpoint[key].as_u64().unwrap_or(0));
                }
            }
        });
        out
    })
    .unwrap_or_default()
}
