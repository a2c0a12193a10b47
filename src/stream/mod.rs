//! The stream module: the front door (`amesh outbound|inbound;`), the TCP proxy behind it, and the variables.
//!
//! nginx may have stream built in, loaded as a module of its own, or not at all: its symbols are looked up at
//! configuration time, so that this module loads in each case.

pub mod door;
pub mod proxy;
pub mod udp;
pub mod variables;

use crate::conf;
use crate::guard::guard;
use crate::http::Mode;
use crate::nginx::{self, conf_error, CONF_ERROR, CONF_OK, ERROR, OK};
use ngx::ffi::{
    self, ngx_command_t, ngx_conf_t, ngx_int_t, ngx_module_t, ngx_str_t, ngx_stream_module_t, ngx_stream_session_t,
    ngx_stream_variable_t, ngx_uint_t,
};
use std::ffi::{c_void, CStr};
use std::os::raw::c_char;
use std::sync::OnceLock;

/// What is used of nginx's stream.
#[derive(Clone, Copy)]
pub struct Symbols {
    core: *mut ngx_module_t,
    add_variable: unsafe extern "C" fn(*mut ngx_conf_t, *mut ngx_str_t, ngx_uint_t) -> *mut ngx_stream_variable_t,
    finalize: unsafe extern "C" fn(*mut ngx_stream_session_t, ngx_uint_t),
}
// SAFETY: addresses of code and of a module's table, which never move.
unsafe impl Send for Symbols {}
// SAFETY: as above.
unsafe impl Sync for Symbols {}

static SYMBOLS: OnceLock<Symbols> = OnceLock::new();

/// Looks up nginx's stream; `None` where it is not loaded.
pub fn symbols() -> Option<Symbols> {
    if let Some(found) = SYMBOLS.get() {
        return Some(*found);
    }
    fn find(name: &CStr) -> Option<*mut c_void> {
        // SAFETY: dlsym only reads the name.
        let p = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
        (!p.is_null()).then_some(p)
    }
    // SAFETY: nginx declares these symbols with these types (ngx_stream.h, ngx_stream_variables.h).
    let found = unsafe {
        Symbols {
            core: find(c"ngx_stream_core_module")?.cast(),
            add_variable: std::mem::transmute::<
                *mut c_void,
                unsafe extern "C" fn(*mut ngx_conf_t, *mut ngx_str_t, ngx_uint_t) -> *mut ngx_stream_variable_t,
            >(find(c"ngx_stream_add_variable")?),
            finalize: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut ngx_stream_session_t, ngx_uint_t)>(
                find(c"ngx_stream_finalize_session")?,
            ),
        }
    };
    Some(*SYMBOLS.get_or_init(|| found))
}

/// `srv_conf` of a stream server.
#[repr(C)]
pub struct SrvConf {
    /// [`Mode`], 0 when not set.
    pub mode: u8,
}

static mut COMMANDS: [ngx_command_t; 2] = [
    ngx_command_t {
        name: ngx::ngx_string!("amesh"),
        type_: (ffi::NGX_STREAM_SRV_CONF | ffi::NGX_CONF_TAKE1) as ngx_uint_t,
        set: Some(amesh_server),
        conf: ffi::NGX_STREAM_SRV_CONF_OFFSET,
        offset: 0,
        post: std::ptr::null_mut(),
    },
    ngx_command_t::empty(),
];

struct StreamContext(ngx_stream_module_t);
// SAFETY: constant; the pointers in it are to functions.
unsafe impl Sync for StreamContext {}

static CONTEXT: StreamContext = StreamContext(ngx_stream_module_t {
    preconfiguration: Some(preconfiguration),
    postconfiguration: Some(postconfiguration),
    create_main_conf: None,
    init_main_conf: None,
    create_srv_conf: Some(create_srv_conf),
    merge_srv_conf: Some(merge_srv_conf),
});

/// The stream module. Without stream nginx never looks at it.
#[no_mangle]
#[allow(non_upper_case_globals)]
pub static mut ngx_stream_amesh_module: ngx_module_t = ngx_module_t {
    ctx: (&raw const CONTEXT.0) as *mut c_void,
    commands: (&raw mut COMMANDS).cast(),
    type_: ffi::NGX_STREAM_MODULE as ngx_uint_t,
    ..ngx_module_t::default()
};

/// The `srv_conf` of a session's server.
///
/// # Safety
/// `s` must be a live session.
pub unsafe fn srv_conf<'a>(s: *mut ngx_stream_session_t) -> &'a SrvConf {
    // SAFETY: create_srv_conf made one for every server.
    unsafe { &*nginx::slot_of((*s).srv_conf, &raw const ngx_stream_amesh_module) }
}

/// Ends a session with a stream status, as `ngx_stream_finalize_session`.
///
/// # Safety
/// `s` must be a live session; it is gone afterwards.
pub unsafe fn finalize(s: *mut ngx_stream_session_t, status: ngx_uint_t) {
    if let Some(symbols) = symbols() {
        // SAFETY: promised by the caller.
        unsafe { (symbols.finalize)(s, status) };
    }
}

extern "C" fn create_srv_conf(cf: *mut ngx_conf_t) -> *mut c_void {
    guard("amesh", std::ptr::null_mut(), || {
        // SAFETY: cf is live; all zeroes is Mode::Off.
        unsafe { nginx::pool_zeroed::<SrvConf>((*cf).pool).cast() }
    })
}

extern "C" fn merge_srv_conf(_: *mut ngx_conf_t, _: *mut c_void, _: *mut c_void) -> *mut c_char {
    CONF_OK
}

extern "C" fn preconfiguration(cf: *mut ngx_conf_t) -> ngx_int_t {
    guard("amesh", ERROR, || symbols().map_or(OK, |symbols| variables::add(cf, &symbols)))
}

extern "C" fn postconfiguration(cf: *mut ngx_conf_t) -> ngx_int_t {
    guard("amesh", ERROR, || {
        let Some(symbols) = symbols() else { return OK };
        // SAFETY: within stream {}, cf.ctx is its ngx_stream_conf_ctx_t; its core's configuration is complete.
        unsafe {
            let ctx = (*cf).ctx.cast::<ffi::ngx_stream_conf_ctx_t>();
            let core: *mut ffi::ngx_stream_core_main_conf_t = nginx::slot_of((*ctx).main_conf, symbols.core);
            for server in (*core).servers.as_slice::<*mut ffi::ngx_stream_core_srv_conf_t>() {
                let conf: *const SrvConf =
                    nginx::slot_of((*(**server).ctx).srv_conf, &raw const ngx_stream_amesh_module);
                let ours = (**server).handler.is_some_and(|h| {
                    std::ptr::fn_addr_eq(h, proxy::handler as unsafe extern "C" fn(*mut ngx_stream_session_t))
                });
                if (*conf).mode != Mode::Off as u8 && !ours {
                    let file = CStr::from_ptr((**server).file_name.cast()).to_string_lossy();
                    nginx::log(
                        (*cf).log,
                        ffi::NGX_LOG_EMERG as ngx_uint_t,
                        format_args!(
                            "\"amesh\" is not together with \"proxy_pass\" or \"return\" in the server at {file}:{}",
                            (**server).line
                        ),
                    );
                    return ERROR;
                }
            }
            let phase = &mut (*core).phases[ffi::ngx_stream_phases_NGX_STREAM_PREACCESS_PHASE as usize];
            let handler = ffi::ngx_array_push(&mut phase.handlers).cast::<ffi::ngx_stream_handler_pt>();
            if handler.is_null() {
                return ERROR;
            }
            *handler = Some(door::handler);
        }
        OK
    })
}

extern "C" fn amesh_server(cf: *mut ngx_conf_t, _: *mut ngx_command_t, data: *mut c_void) -> *mut c_char {
    guard("amesh", CONF_ERROR, || {
        // SAFETY: nginx hands in what create_srv_conf made, words, and the context of the server.
        unsafe {
            let conf = &mut *data.cast::<SrvConf>();
            if conf.mode != Mode::Off as u8 {
                return c"is duplicate".as_ptr().cast_mut();
            }
            conf.mode = match nginx::bytes(nginx::conf_args(cf)[1]) {
                b"outbound" => Mode::Outbound,
                b"inbound" => Mode::Inbound,
                other => {
                    return conf_error(
                        cf,
                        format_args!(
                            "invalid parameter \"{}\" of \"amesh\": in stream it is \"outbound\" or \"inbound\"",
                            String::from_utf8_lossy(other)
                        ),
                    )
                }
            } as u8;
            if !conf::main_conf((*cf).cycle).is_some_and(|c| c.present) {
                return conf_error(
                    cf,
                    format_args!("\"amesh\" in a server needs an \"amesh {{ … }}\" block above, in the main context"),
                );
            }
            let Some(symbols) = symbols() else {
                return conf_error(cf, format_args!("nginx's stream module is not loaded"));
            };
            let ctx = (*cf).ctx.cast::<ffi::ngx_stream_conf_ctx_t>();
            let core: *mut ffi::ngx_stream_core_srv_conf_t = nginx::slot_of((*ctx).srv_conf, symbols.core);
            if (*core).handler.is_some() {
                return conf_error(cf, format_args!("\"amesh\" is not together with \"proxy_pass\" or \"return\""));
            }
            (*core).handler = Some(proxy::handler);
            CONF_OK
        }
    })
}
