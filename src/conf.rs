//! The `amesh { … }` block of the main context: what the xDS thread needs to know.

use crate::etcd::{self, Etcd};
use crate::guard::guard;
use crate::nginx::{self, conf_error, CONF_ERROR, CONF_OK, OK};
use crate::{master, settings, zone};
use ngx::ffi::{self, ngx_command_t, ngx_conf_t, ngx_cycle_t, ngx_int_t, ngx_module_t, ngx_str_t};
use std::ffi::c_void;
use std::os::raw::c_char;

/// Smallest zone that makes sense, in bytes.
const MIN_ZONE: usize = 1 << 20;

/// What the block says. Empty and `None` mean: not set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// Name of the zone.
    pub zone: String,
    /// Its size in bytes.
    pub zone_size: usize,
    /// Where the mesh comes from.
    pub mesh: amesh_xds::settings::Settings,
    /// Where APISIX reads it as from etcd.
    pub etcd: Vec<Etcd>,
}

/// The core module's configuration, one a cycle.
pub struct MainConf {
    /// Whether there is a block at all.
    pub present: bool,
    /// What it says.
    pub settings: Settings,
    /// The zone that nginx made for it; null without a block.
    pub shm_zone: *mut ffi::ngx_shm_zone_t,
    /// The cycle that this is part of; null without a block.
    pub cycle: *mut ngx_cycle_t,
}

static mut COMMANDS: [ngx_command_t; 2] = [
    ngx_command_t {
        name: ngx::ngx_string!("amesh"),
        type_: (ffi::NGX_MAIN_CONF | ffi::NGX_DIRECT_CONF | ffi::NGX_CONF_BLOCK | ffi::NGX_CONF_NOARGS)
            as ffi::ngx_uint_t,
        set: Some(amesh_block),
        conf: 0,
        offset: 0,
        post: std::ptr::null_mut(),
    },
    ngx_command_t::empty(),
];

static CONTEXT: CoreContext = CoreContext(ffi::ngx_core_module_t {
    name: ngx::ngx_string!("amesh"),
    create_conf: Some(create_conf),
    init_conf: Some(init_conf),
});

struct CoreContext(ffi::ngx_core_module_t);
// SAFETY: constant; the pointers in it are to static text and functions.
unsafe impl Sync for CoreContext {}

/// The core module: owns the zone and the thread.
#[no_mangle]
#[allow(non_upper_case_globals)]
pub static mut ngx_amesh_module: ngx_module_t = ngx_module_t {
    ctx: (&raw const CONTEXT.0) as *mut c_void,
    commands: (&raw mut COMMANDS).cast(),
    type_: ffi::NGX_CORE_MODULE as ffi::ngx_uint_t,
    init_module: Some(init_module),
    init_process: Some(init_process),
    exit_process: Some(exit_process),
    exit_master: Some(exit_master),
    ..ngx_module_t::default()
};

/// The configuration of a cycle, null where this module has none.
///
/// # Safety
/// `cycle` must be live and have passed the creation of core configurations.
pub unsafe fn main_conf<'a>(cycle: *mut ngx_cycle_t) -> Option<&'a mut MainConf> {
    // SAFETY: conf_ctx has an entry for every core module, made by create_conf below.
    unsafe {
        if (*cycle).conf_ctx.is_null() {
            return None;
        }
        (*(*cycle).conf_ctx.add((&raw const ngx_amesh_module).read().index)).cast::<MainConf>().as_mut()
    }
}

extern "C" fn create_conf(cycle: *mut ngx_cycle_t) -> *mut c_void {
    guard("amesh", std::ptr::null_mut(), || {
        let conf = MainConf {
            present: false,
            settings: Settings::default(),
            shm_zone: std::ptr::null_mut(),
            cycle: std::ptr::null_mut(),
        };
        // SAFETY: nginx hands in the cycle that it makes.
        nginx::pool_value(unsafe { (*cycle).pool }, conf).map_or(std::ptr::null_mut(), |p| p.cast())
    })
}

extern "C" fn init_conf(_: *mut ngx_cycle_t, _: *mut c_void) -> *mut c_char {
    CONF_OK
}

extern "C" fn init_module(cycle: *mut ngx_cycle_t) -> ngx_int_t {
    guard("amesh", nginx::ERROR, || {
        // SAFETY: nginx hands in the cycle that it made.
        let conf = unsafe { main_conf(cycle) };
        master::commit(cycle, conf)
    })
}

extern "C" fn init_process(cycle: *mut ngx_cycle_t) -> ngx_int_t {
    guard("amesh", nginx::ERROR, || {
        // SAFETY: as above; nginx calls this once a process, after the fork.
        let Some(conf) = (unsafe { main_conf(cycle) }) else { return OK };
        if !conf.present {
            return OK;
        }
        master::start_in_single_process(cycle);
        zone::open_worker(cycle, conf)
    })
}

extern "C" fn exit_process(_: *mut ngx_cycle_t) {
    guard("amesh", (), zone::close_worker);
}

extern "C" fn exit_master(_: *mut ngx_cycle_t) {
    guard("amesh", (), master::stop);
}

extern "C" fn amesh_block(cf: *mut ngx_conf_t, _: *mut ngx_command_t, conf: *mut c_void) -> *mut c_char {
    guard("amesh", CONF_ERROR, || {
        // SAFETY: nginx hands in what create_conf made; cf is copied and put back as nginx's own blocks do.
        unsafe {
            let conf = &mut *conf.cast::<MainConf>();
            if conf.present {
                return c"is duplicate".as_ptr().cast_mut();
            }
            conf.present = true;
            let saved = *cf;
            (*cf).handler = Some(setting);
            (*cf).handler_conf = std::ptr::from_mut(conf).cast();
            let rc = ffi::ngx_conf_parse(cf, std::ptr::null_mut());
            *cf = saved;
            if rc != CONF_OK {
                return rc;
            }
            check(cf, conf)
        }
    })
}

/// What holds for the block as a whole.
fn check(cf: *mut ngx_conf_t, conf: &mut MainConf) -> *mut c_char {
    let s = &conf.settings;
    if s.zone.is_empty() {
        return conf_error(cf, format_args!("\"amesh\" has no \"zone\": add, for example, \"zone mesh 64m;\""));
    }
    if s.mesh.servers.is_empty() {
        return conf_error(
            cf,
            format_args!(
                "\"amesh\" has no \"server\": add \"server host:port;\", \"server unix:/path;\" or \"server file:/path;\""
            ),
        );
    }
    if let Err(e) = settings::engine_config(s) {
        return conf_error(cf, format_args!("{e}"));
    }
    if let Err(e) = etcd::orders(&s.etcd, &s.mesh) {
        return conf_error(cf, format_args!("{e}"));
    }
    for open in s.etcd.iter().filter(|e| e.is_open_to_all()) {
        nginx::conf_warn(
            cf,
            format_args!(
                "\"etcd\" on {} tells everybody who connects the mesh, with its keys: give it \"user\" and \
                 \"password_file\", or \"ssl_client_certificate\"",
                open.address()
            ),
        );
    }
    zone::add(cf, conf)
}

extern "C" fn setting(cf: *mut ngx_conf_t, _: *mut ngx_command_t, conf: *mut c_void) -> *mut c_char {
    guard("amesh", CONF_ERROR, || {
        // SAFETY: the block above handed in its configuration; nginx filled the words.
        let (conf, words) = unsafe { (&mut *conf.cast::<MainConf>(), nginx::conf_args(cf)) };
        let mut args = Vec::with_capacity(words.len());
        for word in words {
            // SAFETY: a word of the configuration, alive as long as its cycle.
            match std::str::from_utf8(unsafe { nginx::bytes(*word) }) {
                Ok(text) => args.push(text),
                Err(_) => return conf_error(cf, format_args!("a word that is not UTF-8 in \"amesh\"")),
            }
        }
        match set(cf, &mut conf.settings, args[0], &args[1..]) {
            Ok(()) => CONF_OK,
            Err(reason) => conf_error(cf, format_args!("{reason}")),
        }
    })
}

/// Sets one directive of the block.
fn set(cf: *mut ngx_conf_t, s: &mut Settings, name: &str, args: &[&str]) -> Result<(), String> {
    let count = |range: std::ops::RangeInclusive<usize>| {
        if range.contains(&args.len()) {
            Ok(())
        } else {
            Err(format!("invalid number of arguments in \"{name}\" directive"))
        }
    };
    let once = |set: bool| if set { Err(format!("\"{name}\" directive is duplicate")) } else { Ok(()) };
    let path = |text: &str| full_path(cf, text).ok_or_else(|| "out of memory".to_owned());
    match name {
        "zone" => {
            count(2..=2)?;
            once(!s.zone.is_empty())?;
            let size = parse_size(args[1]).ok_or_else(|| format!("invalid zone size \"{}\"", args[1]))?;
            if size < MIN_ZONE {
                return Err(format!("zone \"{}\" is too small: {} bytes, at least 1m is needed", args[0], size));
            }
            s.zone = args[0].to_owned();
            s.zone_size = size;
        }
        "server" => {
            count(1..=1)?;
            s.mesh.servers.push(match args[0].split_once(':') {
                Some((kind @ ("file" | "unix"), p)) if !p.is_empty() => format!("{kind}:{}", path(p)?),
                Some((host, port)) if !host.is_empty() && valid_port(port.rsplit(':').next()) => args[0].to_owned(),
                _ => {
                    return Err(format!(
                        "invalid server \"{}\": give host:port, [IPv6]:port, unix:/path or file:/path",
                        args[0]
                    ))
                }
            });
        }
        "protocol" => {
            count(1..=1)?;
            s.mesh.sotw = match args[0] {
                "delta" => false,
                "sotw" => true,
                other => return Err(format!("invalid protocol \"{other}\": it is \"delta\" or \"sotw\"")),
            };
        }
        "ssl" => {
            count(1..=1)?;
            once(s.mesh.ssl.is_some())?;
            s.mesh.ssl = Some(match args[0] {
                "on" => true,
                "off" => false,
                other => {
                    return Err(format!("invalid value \"{other}\" in \"ssl\" directive, it must be \"on\" or \"off\""))
                }
            });
        }
        "ssl_trusted_certificate" | "ssl_certificate" | "ssl_certificate_key" | "token" | "snapshot" => {
            count(1..=1)?;
            let place = match name {
                "ssl_trusted_certificate" => &mut s.mesh.ssl_trusted_certificate,
                "ssl_certificate" => &mut s.mesh.ssl_certificate,
                "ssl_certificate_key" => &mut s.mesh.ssl_certificate_key,
                "token" => &mut s.mesh.token,
                _ => &mut s.mesh.snapshot,
            };
            once(place.is_some())?;
            *place = Some(path(args[0])?.into());
        }
        "ssl_name" | "node" | "node_cluster" => {
            count(1..=1)?;
            let place = match name {
                "ssl_name" => &mut s.mesh.ssl_name,
                "node" => &mut s.mesh.node,
                _ => &mut s.mesh.node_cluster,
            };
            once(place.is_some())?;
            *place = Some(args[0].to_owned());
        }
        "node_locality" => {
            count(1..=3)?;
            once(s.mesh.node_locality.is_some())?;
            let part = |i: usize| args.get(i).copied().unwrap_or("").to_owned();
            s.mesh.node_locality = Some((part(0), part(1), part(2)));
        }
        "node_metadata" => {
            count(2..=2)?;
            s.mesh.node_metadata.push((args[0].to_owned(), args[1].to_owned()));
        }
        "etcd" => s.etcd.push(Etcd::parse(args, path)?),
        "mark" => {
            count(1..=1)?;
            once(s.mesh.mark.is_some())?;
            s.mesh.mark = Some(args[0].parse().map_err(|_| format!("invalid mark \"{}\": it is a number", args[0]))?);
        }
        other => return Err(format!("unknown directive \"{other}\" in \"amesh\"")),
    }
    Ok(())
}

fn valid_port(port: Option<&str>) -> bool {
    port.and_then(|p| p.parse::<u16>().ok()).is_some_and(|p| p > 0)
}

/// `64m`, `512k` or bytes.
fn parse_size(text: &str) -> Option<usize> {
    let mut line = ngx_str_t { len: text.len(), data: text.as_ptr().cast_mut() };
    // SAFETY: nginx only reads the text.
    usize::try_from(unsafe { ffi::ngx_parse_size(&mut line) }).ok()
}

/// A path relative to the directory of the configuration file.
fn full_path(cf: *mut ngx_conf_t, text: &str) -> Option<String> {
    // SAFETY: cf is live while its directives are read; ngx_conf_full_name allocates from the cycle's pool.
    unsafe {
        let mut name = nginx::pool_str((*cf).pool, format!("{text}\0").as_bytes())?;
        name.len -= 1;
        if ffi::ngx_conf_full_name((*cf).cycle, &mut name, 1) != OK {
            return None;
        }
        Some(nginx::text(name).to_owned())
    }
}
