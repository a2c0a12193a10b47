//! The stream variables.

use super::{proxy, Symbols};
use crate::guard::guard;
use crate::http::variables::format_dst;
use crate::nginx::{self, pool_str, ERROR, OK};
use crate::original_dst;
use ngx::ffi::{self, ngx_conf_t, ngx_int_t, ngx_str_t, ngx_stream_session_t, ngx_stream_variable_value_t, ngx_uint_t};

type Getter = unsafe extern "C" fn(*mut ngx_stream_session_t, *mut ngx_stream_variable_value_t, usize) -> ngx_int_t;

/// Name, getter, and what it is asked for.
const VARIABLES: [(&str, Getter, usize); 7] = [
    ("connection_original_dst", connection_original_dst, 0),
    ("connection_original_dst_addr", connection_original_dst, 1),
    ("connection_original_dst_port", connection_original_dst, 2),
    ("amesh_listener", of_context, 0),
    ("amesh_cluster", of_context, 1),
    ("amesh_endpoint", of_context, 2),
    ("amesh_response_flags", of_context, 3),
];

/// Adds the variables (`preconfiguration`).
pub fn add(cf: *mut ngx_conf_t, symbols: &Symbols) -> ngx_int_t {
    for (name, getter, data) in VARIABLES {
        let mut name = nginx::str_of(name);
        // SAFETY: nginx copies the name and hands back a variable of its own.
        unsafe {
            let v = (symbols.add_variable)(cf, &mut name, ffi::NGX_STREAM_VAR_NOCACHEABLE as ngx_uint_t);
            if v.is_null() {
                return ERROR;
            }
            (*v).get_handler = Some(getter);
            (*v).data = data;
        }
    }
    OK
}

unsafe fn set(v: *mut ngx_stream_variable_value_t, s: Option<ngx_str_t>) -> ngx_int_t {
    // SAFETY: nginx handed the value to a getter.
    unsafe {
        match s.filter(|s| s.len > 0) {
            None => (*v).set_not_found(1),
            Some(s) => {
                (*v).set_len(s.len as u32);
                (*v).data = s.data;
                (*v).set_valid(1);
                (*v).set_no_cacheable(0);
                (*v).set_not_found(0);
            }
        }
    }
    OK
}

extern "C" fn connection_original_dst(
    s: *mut ngx_stream_session_t,
    v: *mut ngx_stream_variable_value_t,
    part: usize,
) -> ngx_int_t {
    guard("$connection_original_dst", ERROR, || {
        // SAFETY: nginx hands in a live session and its value.
        unsafe {
            let c = (*s).connection;
            match original_dst::original_dst(c) {
                None => set(v, None),
                Some(addr) => match pool_str((*c).pool, format_dst(addr, part).as_bytes()) {
                    Some(text) => set(v, Some(text)),
                    None => ERROR,
                },
            }
        }
    })
}

extern "C" fn of_context(s: *mut ngx_stream_session_t, v: *mut ngx_stream_variable_value_t, what: usize) -> ngx_int_t {
    guard("an amesh variable", ERROR, || {
        // SAFETY: nginx hands in a live session and its value.
        unsafe {
            let Some(ctx) = proxy::ctx(s) else { return set(v, None) };
            let text = match what {
                0 => Some(ctx.listener),
                1 => ctx.destination.map(|d| d.cluster),
                2 => Some(ctx.endpoint),
                _ => pool_str((*(*s).connection).pool, ctx.flags.text().as_bytes()),
            };
            set(v, text)
        }
    })
}
