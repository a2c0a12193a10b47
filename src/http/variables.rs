//! The http variables.

use super::ctx::{self, Ctx};
use crate::guard::guard;
use crate::nginx::{self, pool_str, ERROR, OK};
use crate::original_dst;
use ngx::ffi::{
    self, ngx_conf_t, ngx_http_request_t, ngx_http_variable_t, ngx_http_variable_value_t, ngx_int_t, ngx_str_t,
    ngx_uint_t,
};
use std::net::SocketAddr;

type Getter = unsafe extern "C" fn(*mut ngx_http_request_t, *mut ngx_http_variable_value_t, usize) -> ngx_int_t;

/// Name, getter, and what it is asked for.
const VARIABLES: [(&str, Getter, usize); 15] = [
    ("connection_original_dst", connection_original_dst, 0),
    ("connection_original_dst_addr", connection_original_dst, 1),
    ("connection_original_dst_port", connection_original_dst, 2),
    ("amesh_listener", of_context, 0),
    ("amesh_virtual_host", of_context, 1),
    ("amesh_route", of_context, 2),
    ("amesh_cluster", of_context, 3),
    ("amesh_endpoint", of_context, 4),
    ("amesh_response_flags", of_context, 5),
    ("amesh_original_path", of_context, 6),
    ("amesh_upstream_host", upstream_host, 0),
    ("amesh_virtual_cluster", of_context, 7),
    ("amesh_attempts", of_context, 8),
    ("amesh_connection_upgrade", connection_upgrade, 0),
    ("amesh_upgrade", connection_upgrade, 1),
];

/// Adds the variables (`preconfiguration`).
pub fn add_http(cf: *mut ngx_conf_t) -> ngx_int_t {
    for (name, getter, data) in VARIABLES {
        let mut name = nginx::str_of(name);
        // SAFETY: nginx copies the name and hands back a variable of its own.
        unsafe {
            let v: *mut ngx_http_variable_t =
                ffi::ngx_http_add_variable(cf, &mut name, ffi::NGX_HTTP_VAR_NOCACHEABLE as ngx_uint_t);
            if v.is_null() {
                return ERROR;
            }
            (*v).get_handler = Some(getter);
            (*v).data = data;
        }
    }
    OK
}

/// Sets a variable's value; an empty one is found and empty.
///
/// # Safety
/// `v` must be the value that nginx handed to a getter; `s` must live as long as it.
pub unsafe fn found(v: *mut ngx_http_variable_value_t, s: ngx_str_t) -> ngx_int_t {
    // SAFETY: promised by the caller. The bit fields are the first word of the value; compilers for little-endian
    // machines lay them out from its lowest bit: 28 of the length, then `valid`.
    unsafe {
        (*v).data = s.data;
        if cfg!(target_endian = "little") {
            // bindgen's setter goes bit by bit.
            v.cast::<u32>().write(s.len as u32 & 0x0fff_ffff | 1 << 28);
        } else {
            (*v).set_len(s.len as u32);
            (*v).set_valid(1);
            (*v).set_no_cacheable(0);
            (*v).set_not_found(0);
        }
    }
    OK
}

/// Sets a variable to not found.
///
/// # Safety
/// As [`found`].
pub unsafe fn not_found(v: *mut ngx_http_variable_value_t) -> ngx_int_t {
    // SAFETY: promised by the caller.
    unsafe { (*v).set_not_found(1) };
    OK
}

/// `$connection_original_dst` and its parts as text: `ip:port` or `[ip]:port`, address, port.
pub fn format_dst(addr: SocketAddr, part: usize) -> String {
    match part {
        0 => addr.to_string(),
        1 => addr.ip().to_string(),
        _ => addr.port().to_string(),
    }
}

extern "C" fn connection_original_dst(
    r: *mut ngx_http_request_t,
    v: *mut ngx_http_variable_value_t,
    part: usize,
) -> ngx_int_t {
    guard("$connection_original_dst", ERROR, || {
        // SAFETY: nginx hands in a live request and its value.
        unsafe {
            match original_dst::original_dst((*r).connection) {
                None => not_found(v),
                Some(addr) => match pool_str((*r).pool, format_dst(addr, part).as_bytes()) {
                    Some(text) => found(v, text),
                    None => ERROR,
                },
            }
        }
    })
}

extern "C" fn of_context(r: *mut ngx_http_request_t, v: *mut ngx_http_variable_value_t, what: usize) -> ngx_int_t {
    guard("an amesh variable", ERROR, || {
        // SAFETY: nginx hands in a live request and its value.
        unsafe {
            let Some(ctx) = ctx::ctx(r) else { return not_found(v) };
            let ctx: &Ctx = ctx;
            let text = match what {
                0 => ctx.listener,
                1 => ctx.virtual_host,
                2 => ctx.route,
                3 => ctx.cluster,
                4 => ctx.endpoint,
                5 => match pool_str((*r).pool, ctx.flags.text().as_bytes()) {
                    Some(text) => text,
                    None => return ERROR,
                },
                6 => ctx.original_path,
                7 => ctx.virtual_cluster,
                _ => match pool_str((*r).pool, ctx.attempts.to_string().as_bytes()) {
                    Some(text) => text,
                    None => return ERROR,
                },
            };
            if text.len == 0 {
                not_found(v)
            } else {
                found(v, text)
            }
        }
    })
}

/// The host that goes upstream: the rewritten one, or the client's.
extern "C" fn upstream_host(r: *mut ngx_http_request_t, v: *mut ngx_http_variable_value_t, _: usize) -> ngx_int_t {
    guard("$amesh_upstream_host", ERROR, || {
        // SAFETY: nginx hands in a live request and its value.
        unsafe {
            let rewritten = ctx::ctx(r).map_or(nginx::EMPTY, |ctx| ctx.host);
            if rewritten.len > 0 {
                return found(v, rewritten);
            }
            let host = super::head::host(r);
            found(v, ngx_str_t { len: host.len(), data: host.as_ptr().cast_mut() })
        }
    })
}

/// `Connection` and `Upgrade` for the upstream: set where the client asked for an upgrade that the listener allows.
extern "C" fn connection_upgrade(
    r: *mut ngx_http_request_t,
    v: *mut ngx_http_variable_value_t,
    what: usize,
) -> ngx_int_t {
    guard("$amesh_upgrade", ERROR, || {
        // SAFETY: nginx hands in a live request and its value.
        unsafe {
            let upgrade = (*r).headers_in.upgrade;
            let allowed = ctx::ctx(r).is_none_or(|ctx| ctx.websocket);
            if upgrade.is_null() || !allowed {
                return found(v, nginx::EMPTY);
            }
            found(v, if what == 0 { nginx::str_of("upgrade") } else { (*upgrade).value })
        }
    })
}
