//! The shared dictionaries of nginx's Lua module, through its own functions for FFI.
//!
//! There are two families of them with the same shapes: those of the Lua module, and those of APISIX's runtime, where another
//! module has taken the dictionaries over. Which are there is known when nginx runs. Layouts differ between builds: nothing is
//! read but by these functions.

use crate::dictionary::{Dictionary, DictionaryError};
use std::ffi::{c_char, c_int, c_long, c_void, CStr, CString};
use std::ptr::NonNull;

/// `NGX_OK`.
const OK: c_int = 0;
/// `NGX_HTTP_LUA_SHDICT_SAFE_STORE`: evicts nothing.
const SAFE_STORE: c_int = 4;
/// Plain storing; with no value: deleting.
const SET: c_int = 0;
/// `LUA_TNIL`, `LUA_TNUMBER`, `LUA_TSTRING`: the kinds of values.
const NIL: c_int = 0;
/// See [`NIL`].
const NUMBER: c_int = 3;
/// See [`NIL`].
const STRING: c_int = 4;

type StoreFn = unsafe extern "C" fn(
    zone: *mut c_void,
    op: c_int,
    key: *const u8,
    key_len: usize,
    value_type: c_int,
    value: *const u8,
    value_len: usize,
    number: f64,
    exptime: c_long,
    user_flags: c_int,
    errmsg: *mut *mut c_char,
    forcible: *mut c_int,
) -> c_int;

type GetFn = unsafe extern "C" fn(
    zone: *mut c_void,
    key: *const u8,
    key_len: usize,
    value_type: *mut c_int,
    value: *mut *mut u8,
    value_len: *mut usize,
    number: *mut f64,
    user_flags: *mut c_int,
    get_stale: c_int,
    is_stale: *mut c_int,
    errmsg: *mut *mut c_char,
) -> c_int;

/// The functions of this nginx.
#[derive(Clone, Copy)]
pub struct Functions {
    store: StoreFn,
    get: GetFn,
}

impl Functions {
    /// Those of the Lua module, or else those of APISIX's runtime; `None` where neither are loaded.
    pub fn find() -> Option<Functions> {
        ["ngx_http_lua_ffi_shdict_", "ngx_meta_lua_ffi_shdict_"].iter().find_map(|family| {
            let store = symbol(&format!("{family}store"))?;
            let get = symbol(&format!("{family}get"))?;
            // SAFETY: functions of these names have these shapes in every version of both modules: they are what
            // lua-resty-core calls.
            unsafe {
                Some(Functions {
                    store: std::mem::transmute::<NonNull<c_void>, StoreFn>(store),
                    get: std::mem::transmute::<NonNull<c_void>, GetFn>(get),
                })
            }
        })
    }
}

/// A symbol of nginx or of a module that it has loaded.
pub fn symbol(name: &str) -> Option<NonNull<c_void>> {
    let name = CString::new(name).ok()?;
    // SAFETY: a name that ends in a zero byte.
    NonNull::new(unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) })
}

/// A dictionary of this process.
#[derive(Clone, Copy)]
pub struct Zone {
    zone: NonNull<c_void>,
    functions: Functions,
}

// SAFETY: every function locks the dictionary's memory itself, for threads and processes; the zone lives as long as the
// process does, since workers keep their cycle.
unsafe impl Send for Zone {}
// SAFETY: as above.
unsafe impl Sync for Zone {}

impl Zone {
    /// The dictionary of an `ngx_shm_zone_t`.
    ///
    /// # Safety
    /// `zone` is what `…shdict_udata_to_zone` gave for a dictionary of this process.
    pub unsafe fn new(zone: NonNull<c_void>, functions: Functions) -> Zone {
        Zone { zone, functions }
    }

    fn call(&self, op: c_int, key: &str, kind: c_int, value: &str) -> Result<(), DictionaryError> {
        let mut errmsg = std::ptr::null_mut();
        let mut forcible = 0;
        let pointer = if kind == NIL { std::ptr::null() } else { value.as_ptr() };
        // SAFETY: the zone is one (see `new`); key and value are read only, with their lengths; both results have a place.
        let rc = unsafe {
            (self.functions.store)(
                self.zone.as_ptr(),
                op,
                key.as_ptr(),
                key.len(),
                kind,
                pointer,
                value.len(),
                0.0,
                0,
                0,
                &mut errmsg,
                &mut forcible,
            )
        };
        if rc == OK {
            return Ok(());
        }
        // SAFETY: null, or static text.
        Err(unsafe { error(errmsg, rc) })
    }
}

/// # Safety
/// `text` is null or ends in a zero byte.
unsafe fn error(text: *const c_char, rc: c_int) -> DictionaryError {
    if text.is_null() {
        return DictionaryError::Other(format!("code {rc}"));
    }
    // SAFETY: promised by the caller.
    match unsafe { CStr::from_ptr(text) }.to_str() {
        Ok("no memory") => DictionaryError::Full,
        Ok(text) => DictionaryError::Other(text.to_owned()),
        Err(_) => DictionaryError::Other(format!("code {rc}")),
    }
}

impl Dictionary for Zone {
    fn get(&self, key: &str) -> Result<Option<String>, DictionaryError> {
        let mut buffer = [0u8; 512];
        let (mut value, mut len) = (buffer.as_mut_ptr(), buffer.len());
        let own = value;
        let (mut kind, mut number, mut flags, mut stale) = (NIL, 0.0, 0, 0);
        let mut errmsg = std::ptr::null_mut();
        // SAFETY: the zone is one (see `new`); every result has a place. A value that does not fit comes in memory of malloc.
        let rc = unsafe {
            (self.functions.get)(
                self.zone.as_ptr(),
                key.as_ptr(),
                key.len(),
                &mut kind,
                &mut value,
                &mut len,
                &mut number,
                &mut flags,
                0,
                &mut stale,
                &mut errmsg,
            )
        };
        if rc != OK {
            // SAFETY: null, or static text.
            return Err(unsafe { error(errmsg, rc) });
        }
        let result = match kind {
            NIL => None,
            NUMBER => Some(number.to_string()),
            // SAFETY: `value` has `len` bytes, in the buffer or of malloc.
            STRING => Some(String::from_utf8_lossy(unsafe { std::slice::from_raw_parts(value, len) }).into_owned()),
            other => return Err(DictionaryError::Other(format!("a value of kind {other}"))),
        };
        if value != own {
            // SAFETY: of malloc, see above, and of nobody else.
            unsafe { libc::free(value.cast()) };
        }
        Ok(result)
    }

    fn store(&self, key: &str, value: &str) -> Result<(), DictionaryError> {
        self.call(SAFE_STORE, key, STRING, value)
    }

    fn delete(&self, key: &str) -> Result<(), DictionaryError> {
        self.call(SET, key, NIL, "")
    }
}
