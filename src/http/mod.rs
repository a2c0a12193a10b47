//! The http module: `amesh outbound|inbound|internal;` in a server, `amesh;` in an upstream, the phase handler,
//! the filters and the variables.

pub mod balanced;
pub mod body;
pub mod capture;
pub mod chain;
pub mod connect;
pub mod ctx;
pub mod decide;
pub mod edit;
pub mod filter;
pub mod forward;
pub mod head;
pub mod manager;
pub mod peer;
pub mod pool;
pub mod question;
pub mod redirect;
pub mod reply;
pub mod retry;
pub mod shadow;
pub mod status;
pub mod timer;
pub mod tuning;
pub mod variables;

use crate::conf;
use crate::guard::guard;
use crate::nginx::{self, conf_error, CONF_ERROR, CONF_OK, ERROR, OK};
use ngx::ffi::{
    self, ngx_command_t, ngx_conf_t, ngx_http_module_t, ngx_http_request_t, ngx_int_t, ngx_module_t, ngx_str_t,
    ngx_uint_t,
};
use std::ffi::c_void;
use std::os::raw::c_char;

/// What a server of nginx does for the mesh.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Mode {
    /// Nothing.
    Off = 0,
    /// Takes what the workload sends.
    Outbound = 1,
    /// Takes what comes to the workload.
    Inbound = 2,
    /// Takes only what the front door hands over.
    Internal = 3,
}

/// `srv_conf` of a server.
#[repr(C)]
pub struct SrvConf {
    /// [`Mode`], 0 when not set.
    pub mode: u8,
    /// `amesh internal http2;`
    pub http2: bool,
    /// In an `upstream`: what it had to set itself up, see [`peer`].
    pub upstream: bool,
    /// In an `upstream`: the cluster; empty: the one that the request's route says.
    pub cluster: ngx_str_t,
}

/// `main_conf`.
#[derive(Default)]
pub struct MainConf {
    /// Addresses of the `internal` servers, for the front door and for the refusal of whoever connects to them directly.
    pub internal: Vec<Internal>,
}

/// An address on which an `internal` server listens.
#[derive(Clone, Debug, PartialEq)]
pub struct Internal {
    /// The bytes of the socket address.
    pub sockaddr: Vec<u8>,
    /// Takes HTTP/2 with prior knowledge (`amesh internal http2;`, `listen … http2`).
    pub http2: bool,
}

static mut COMMANDS: [ngx_command_t; 4] = [
    ngx_command_t {
        name: ngx::ngx_string!("amesh"),
        type_: (ffi::NGX_HTTP_SRV_CONF | ffi::NGX_CONF_TAKE12) as ngx_uint_t,
        set: Some(amesh_server),
        conf: ffi::NGX_HTTP_SRV_CONF_OFFSET,
        offset: 0,
        post: std::ptr::null_mut(),
    },
    ngx_command_t {
        name: ngx::ngx_string!("amesh"),
        type_: (ffi::NGX_HTTP_UPS_CONF | ffi::NGX_CONF_NOARGS | ffi::NGX_CONF_TAKE1) as ngx_uint_t,
        set: Some(amesh_upstream),
        conf: ffi::NGX_HTTP_SRV_CONF_OFFSET,
        offset: 0,
        post: std::ptr::null_mut(),
    },
    ngx_command_t {
        name: ngx::ngx_string!("amesh_status"),
        type_: (ffi::NGX_HTTP_LOC_CONF | ffi::NGX_CONF_NOARGS) as ngx_uint_t,
        set: Some(status::directive),
        conf: ffi::NGX_HTTP_LOC_CONF_OFFSET,
        offset: 0,
        post: std::ptr::null_mut(),
    },
    ngx_command_t::empty(),
];

struct HttpContext(ngx_http_module_t);
// SAFETY: constant; the pointers in it are to functions.
unsafe impl Sync for HttpContext {}

static CONTEXT: HttpContext = HttpContext(ngx_http_module_t {
    preconfiguration: Some(preconfiguration),
    postconfiguration: Some(postconfiguration),
    create_main_conf: Some(create_main_conf),
    init_main_conf: None,
    create_srv_conf: Some(create_srv_conf),
    merge_srv_conf: Some(merge_srv_conf),
    create_loc_conf: None,
    merge_loc_conf: None,
});

/// The http module.
#[no_mangle]
#[allow(non_upper_case_globals)]
pub static mut ngx_http_amesh_module: ngx_module_t = ngx_module_t {
    ctx: (&raw const CONTEXT.0) as *mut c_void,
    commands: (&raw mut COMMANDS).cast(),
    type_: ffi::NGX_HTTP_MODULE as ngx_uint_t,
    init_process: Some(init_process),
    ..ngx_module_t::default()
};

/// The `srv_conf` of a request's server.
///
/// # Safety
/// `r` must be a live request.
pub unsafe fn srv_conf<'a>(r: *mut ngx_http_request_t) -> &'a SrvConf {
    // SAFETY: create_srv_conf made one for every server.
    unsafe { &*nginx::slot_of((*r).srv_conf, &raw const ngx_http_amesh_module) }
}

/// The `main_conf` of a cycle; `None` without an http block.
///
/// # Safety
/// `cycle` must be live, its configuration complete.
pub unsafe fn main_conf<'a>(cycle: *mut ffi::ngx_cycle_t) -> Option<&'a MainConf> {
    // SAFETY: conf_ctx of ngx_http_module is null, or the context of its block.
    unsafe {
        let ctx =
            (*(*cycle).conf_ctx.add((&raw const ffi::ngx_http_module).read().index)).cast::<ffi::ngx_http_conf_ctx_t>();
        if ctx.is_null() {
            return None;
        }
        nginx::slot_of::<MainConf>((*ctx).main_conf, &raw const ngx_http_amesh_module).as_ref()
    }
}

/// The `srv_conf` of an upstream.
///
/// # Safety
/// `us` must be an upstream of the configuration.
pub unsafe fn srv_conf_of<'a>(us: *mut ffi::ngx_http_upstream_srv_conf_t) -> &'a SrvConf {
    // SAFETY: create_srv_conf made one for every upstream.
    unsafe { &*nginx::slot_of((*us).srv_conf, &raw const ngx_http_amesh_module) }
}

extern "C" fn create_main_conf(cf: *mut ngx_conf_t) -> *mut c_void {
    guard("amesh", std::ptr::null_mut(), || {
        // SAFETY: cf is live.
        nginx::pool_value(unsafe { (*cf).pool }, MainConf::default()).map_or(std::ptr::null_mut(), |p| p.cast())
    })
}

extern "C" fn create_srv_conf(cf: *mut ngx_conf_t) -> *mut c_void {
    guard("amesh", std::ptr::null_mut(), || {
        // SAFETY: cf is live; all zeroes is Mode::Off and an empty name.
        unsafe { nginx::pool_zeroed::<SrvConf>((*cf).pool).cast() }
    })
}

extern "C" fn merge_srv_conf(_: *mut ngx_conf_t, _: *mut c_void, _: *mut c_void) -> *mut c_char {
    CONF_OK
}

extern "C" fn preconfiguration(cf: *mut ngx_conf_t) -> ngx_int_t {
    guard("amesh", ERROR, || variables::add_http(cf))
}

/// Names the missing `amesh { … }` block: the directives of servers and upstreams have no meaning without.
fn need_block(cf: *mut ngx_conf_t) -> bool {
    // SAFETY: cf and its cycle are live while directives are read.
    unsafe { conf::main_conf((*cf).cycle) }.is_some_and(|c| c.present)
}

extern "C" fn amesh_server(cf: *mut ngx_conf_t, _: *mut ngx_command_t, data: *mut c_void) -> *mut c_char {
    guard("amesh", CONF_ERROR, || {
        // SAFETY: nginx hands in what create_srv_conf made, and words.
        let (conf, words) = unsafe { (&mut *data.cast::<SrvConf>(), nginx::conf_args(cf)) };
        if conf.mode != Mode::Off as u8 {
            return c"is duplicate".as_ptr().cast_mut();
        }
        // SAFETY: a word of the configuration.
        conf.mode = match unsafe { nginx::bytes(words[1]) } {
            b"outbound" => Mode::Outbound,
            b"inbound" => Mode::Inbound,
            b"internal" => Mode::Internal,
            other => {
                return conf_error(
                    cf,
                    format_args!(
                        "invalid parameter \"{}\" of \"amesh\": it is \"outbound\", \"inbound\" or \"internal\"",
                        String::from_utf8_lossy(other)
                    ),
                )
            }
        } as u8;
        if let Some(word) = words.get(2) {
            // SAFETY: a word of the configuration.
            if conf.mode != Mode::Internal as u8 || unsafe { nginx::bytes(*word) } != b"http2" {
                return conf_error(
                    cf,
                    format_args!("\"amesh\" of a server takes a second parameter as \"amesh internal http2\" alone"),
                );
            }
            conf.http2 = true;
        }
        if need_block(cf) {
            CONF_OK
        } else {
            conf_error(
                cf,
                format_args!("\"amesh\" in a server needs an \"amesh {{ … }}\" block above, in the main context"),
            )
        }
    })
}

extern "C" fn amesh_upstream(cf: *mut ngx_conf_t, _: *mut ngx_command_t, data: *mut c_void) -> *mut c_char {
    guard("amesh", CONF_ERROR, || {
        // SAFETY: nginx hands in what create_srv_conf made for the upstream, and words.
        let (conf, words) = unsafe { (&mut *data.cast::<SrvConf>(), nginx::conf_args(cf)) };
        if conf.upstream {
            return c"is duplicate".as_ptr().cast_mut();
        }
        conf.upstream = true;
        if let Some(word) = words.get(1) {
            // SAFETY: a word of the configuration.
            match unsafe { nginx::bytes(*word) }.strip_prefix(b"cluster=") {
                Some(name) if !name.is_empty() => {
                    conf.cluster = ngx_str_t { len: name.len(), data: name.as_ptr().cast_mut() };
                }
                _ => return conf_error(cf, format_args!("\"amesh\" of an upstream takes \"cluster=NAME\" alone")),
            }
        }
        if !need_block(cf) {
            return conf_error(
                cf,
                format_args!("\"amesh\" in an upstream needs an \"amesh {{ … }}\" block above, in the main context"),
            );
        }
        // SAFETY: within upstream {} the srv_conf of the upstream module is this upstream.
        unsafe { peer::set_up(cf) }
    })
}

extern "C" fn postconfiguration(cf: *mut ngx_conf_t) -> ngx_int_t {
    guard("amesh", ERROR, || {
        if !need_block(cf) {
            return OK;
        }
        // SAFETY: after all servers were read; the structures are nginx's own and complete.
        unsafe {
            let ctx = (*cf).ctx.cast::<ffi::ngx_http_conf_ctx_t>();
            let core: *mut ffi::ngx_http_core_main_conf_t =
                nginx::slot_of((*ctx).main_conf, &raw const ffi::ngx_http_core_module);
            note_internal(core, &mut *nginx::slot_of((*ctx).main_conf, &raw const ngx_http_amesh_module));
            let phase = &mut (*core).phases[ffi::ngx_http_phases_NGX_HTTP_PRECONTENT_PHASE as usize];
            let handler = ffi::ngx_array_push(&mut phase.handlers).cast::<ffi::ngx_http_handler_pt>();
            if handler.is_null() {
                return ERROR;
            }
            *handler = Some(decide::handler);
            filter::install();
        }
        OK
    })
}

/// Remembers on which addresses `internal` servers listen.
unsafe fn note_internal(core: *mut ffi::ngx_http_core_main_conf_t, conf: &mut MainConf) {
    // SAFETY: nginx filled ports and their addresses while it read the servers.
    unsafe {
        if (*core).ports.is_null() {
            return;
        }
        let mut found = Vec::new();
        for port in (*(*core).ports).as_slice_mut::<ffi::ngx_http_conf_port_t>() {
            for addr in port.addrs.as_slice_mut::<ffi::ngx_http_conf_addr_t>() {
                for server in addr.servers.as_slice::<*mut ffi::ngx_http_core_srv_conf_t>() {
                    let conf: *const SrvConf =
                        nginx::slot_of((*(**server).ctx).srv_conf, &raw const ngx_http_amesh_module);
                    if (*conf).mode == Mode::Internal as u8 {
                        let opt = &mut addr.opt;
                        if (*conf).http2 {
                            // As `listen … http2` did, which nginx warns of since 1.25.
                            opt.set_http2(1);
                        }
                        let sockaddr = std::slice::from_raw_parts(opt.sockaddr.cast::<u8>(), opt.socklen as usize);
                        found.push(Internal { sockaddr: sockaddr.to_vec(), http2: opt.http2() != 0 });
                    }
                }
            }
        }
        conf.internal = found;
    }
}

extern "C" fn init_process(cycle: *mut ffi::ngx_cycle_t) -> ngx_int_t {
    guard("amesh", ERROR, || {
        capture::guard_internal_listeners(cycle);
        OK
    })
}
