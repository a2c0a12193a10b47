//! `libxds.so`: what Apache APISIX loads for `config_provider: xds`.
//!
//! APISIX hands two shared dictionaries to [`initial`], in its privileged agent, once a process. A thread of that process
//! then writes the mesh into the first, as APISIX's own objects, and raises the version in the second. See docs/libxds.md.

mod agent;
mod bridge;
mod dictionary;
mod index;
mod log;
mod mesh;
mod mirror;
mod objects;
mod settings;
mod shdict;
mod slots;
mod store;
mod version;

use amesh_xds::engine::{Level, Log as _};
use std::ffi::c_void;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr::NonNull;

/// Begins to write: the objects into `config_zone`, the version into `version_zone`. Returns at once.
///
/// # Safety
/// Both are what `…shdict_udata_to_zone` of the Lua module gave for shared dictionaries of this process; null is refused.
#[no_mangle]
pub unsafe extern "C" fn initial(config_zone: *mut c_void, version_zone: *mut c_void) {
    // The one guard of this library: nginx must not see a panic.
    let begun = catch_unwind(AssertUnwindSafe(|| {
        let (Some(config), Some(version)) = (NonNull::new(config_zone), NonNull::new(version_zone)) else {
            return Err("the shared dictionaries \"xds-config\" and \"xds-config-version\" are wanted".to_owned());
        };
        let functions = shdict::Functions::find().ok_or_else(|| {
            "this nginx has no functions of shared dictionaries: neither ngx_http_lua_ffi_shdict_store nor \
             ngx_meta_lua_ffi_shdict_store"
                .to_owned()
        })?;
        // SAFETY: promised by the caller.
        let zones = unsafe { (shdict::Zone::new(config, functions), shdict::Zone::new(version, functions)) };
        agent::start(zones.0, zones.1).map_err(|e| e.to_string())
    }));
    let text = match begun {
        Ok(Ok(())) => return,
        Ok(Err(text)) => text,
        Err(payload) => format!("panicked: {}", message(&payload)),
    };
    log::Log { level: Level::Error }.log(Level::Error, &text);
}

/// The text of a panic's payload.
fn message(payload: &Box<dyn std::any::Any + Send>) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
