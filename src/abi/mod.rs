//! The C interface for Lua and for other modules: `include/amesh.h` is its one truth, docs/abi.md tells of it.
//!
//! Every function runs within the guard, pins the zone for itself alone, and writes into memory of its caller.

mod balancer;
mod cluster;
mod decide;
mod room;
mod slots;

use crate::guard::guard;
use crate::zone::{self, Worker};
use std::os::raw::{c_char, c_int};

/// What the header says, as Rust.
mod header {
    #![allow(missing_docs, non_camel_case_types, non_upper_case_globals, dead_code)]
    include!(concat!(env!("OUT_DIR"), "/abi.rs"));
}

const OK: c_int = header::AMESH_OK;
const NOT_FOUND: c_int = header::AMESH_NOT_FOUND;
const NO_ROOM: c_int = header::AMESH_NO_ROOM;
const NO_ZONE: c_int = header::AMESH_NO_ZONE;
const BAD_ARGUMENT: c_int = header::AMESH_BAD_ARGUMENT;
const NO_REQUEST: c_int = header::AMESH_NO_REQUEST;
const FAILED: c_int = header::AMESH_FAILED;

/// Two functions of one type: the one declared in the header, the other defined here.
macro_rules! as_declared {
    ($($name:ident($($argument:tt),*) in $module:ident;)*) => {
        const fn same<F: Copy>(_: F, _: F) {}
        $(const _: () = same(
            header::$name as unsafe extern "C" fn($($argument),*) -> _,
            $module::$name as unsafe extern "C" fn($($argument),*) -> _,
        );)*
    };
}

as_declared! {
    amesh_abi_version() in own;
    amesh_abi_cdef() in own;
    amesh_module_version() in own;
    amesh_layout() in own;
    amesh_zone_version(_) in own;
    amesh_zone_ready() in own;
    amesh_zone_stats(_) in own;
    amesh_slot_list(_, _, _, _, _) in slots;
    amesh_slot_version(_, _, _, _) in slots;
    amesh_slot_copy(_, _, _, _, _, _, _) in slots;
    amesh_slot_msgpack(_, _, _, _, _, _, _) in slots;
    amesh_cluster_state(_, _, _, _, _, _) in cluster;
    amesh_balancer_pick(_, _, _, _) in balancer;
    amesh_decide(_, _, _, _, _, _) in decide;
    amesh_route(_, _, _, _, _, _) in decide;
}

/// What went wrong, as it is returned.
enum Failure {
    NotFound,
    NoRoom,
    NoZone,
    NoRequest,
    BadArgument,
    /// No endpoint, for this reason.
    NoPeer(c_int),
    /// Memory is out.
    Memory,
}

impl Failure {
    fn code(&self) -> c_int {
        match self {
            Failure::NotFound => NOT_FOUND,
            Failure::NoRoom => NO_ROOM,
            Failure::NoZone => NO_ZONE,
            Failure::NoRequest => NO_REQUEST,
            Failure::BadArgument => BAD_ARGUMENT,
            Failure::NoPeer(code) => *code,
            Failure::Memory => FAILED,
        }
    }
}

/// Runs the body of a function of the interface.
fn answer(what: &'static str, body: impl FnOnce() -> Result<(), Failure>) -> c_int {
    guard(what, FAILED, || body().map_or_else(|failure| failure.code(), |()| OK))
}

/// Runs the body of a function that reads the zone.
fn read(what: &'static str, body: impl FnOnce(&mut Worker) -> Result<(), Failure>) -> c_int {
    answer(what, || zone::with_thread(body).unwrap_or(Err(Failure::NoZone)))
}

/// A text that a caller hands in.
///
/// # Safety
/// `data` must be null or point to `len` bytes that stay as they are during the call.
unsafe fn text<'a>(data: *const c_char, len: usize) -> Result<&'a str, Failure> {
    // SAFETY: promised by the caller.
    std::str::from_utf8(unsafe { bytes(data, len) }?).map_err(|_| Failure::BadArgument)
}

/// Bytes that a caller hands in.
///
/// # Safety
/// As [`text`].
unsafe fn bytes<'a>(data: *const c_char, len: usize) -> Result<&'a [u8], Failure> {
    match (data.is_null(), len) {
        (true, 0) => Ok(&[]),
        (true, _) => Err(Failure::BadArgument),
        // SAFETY: promised by the caller.
        (false, _) => Ok(unsafe { std::slice::from_raw_parts(data.cast(), len) }),
    }
}

/// A place that a caller hands in.
///
/// # Safety
/// `place` must be null or a place for a `T`.
unsafe fn place<'a, T>(place: *mut T) -> Result<&'a mut T, Failure> {
    // SAFETY: promised by the caller.
    unsafe { place.as_mut() }.ok_or(Failure::BadArgument)
}

/// Room that a caller hands in.
///
/// # Safety
/// `data` must be null or point to `capacity` bytes that nobody else uses during the call.
unsafe fn room<'a>(data: *mut u8, capacity: usize) -> Result<&'a mut [u8], Failure> {
    match (data.is_null(), capacity) {
        (true, 0) => Ok(&mut []),
        (true, _) => Err(Failure::BadArgument),
        // SAFETY: promised by the caller.
        (false, _) => Ok(unsafe { std::slice::from_raw_parts_mut(data, capacity) }),
    }
}

/// What is asked of the interface and of the zone as a whole.
mod own {
    use super::{header, place, read, zone, Failure};
    use std::os::raw::{c_char, c_int};

    const CDEF: &str = include_str!(concat!(env!("OUT_DIR"), "/abi.cdef"));

    /// See the header.
    #[no_mangle]
    pub extern "C" fn amesh_abi_version() -> u32 {
        header::AMESH_ABI_VERSION
    }

    /// See the header.
    #[no_mangle]
    pub extern "C" fn amesh_abi_cdef() -> *const c_char {
        CDEF.as_ptr().cast()
    }

    /// See the header.
    #[no_mangle]
    pub extern "C" fn amesh_module_version() -> *const c_char {
        concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
    }

    /// See the header.
    #[no_mangle]
    pub extern "C" fn amesh_layout() -> u64 {
        zone::layout_hash()
    }

    /// See the header.
    ///
    /// # Safety
    /// As the header says.
    #[no_mangle]
    pub unsafe extern "C" fn amesh_zone_version(version: *mut u64) -> c_int {
        read("amesh_zone_version", |worker| {
            // SAFETY: promised by the caller.
            *unsafe { place(version) }? = worker.zone_version();
            Ok(())
        })
    }

    /// See the header.
    #[no_mangle]
    pub extern "C" fn amesh_zone_ready() -> c_int {
        read("amesh_zone_ready", |worker| match worker.pin().0.is_ready() {
            true => Ok(()),
            false => Err(Failure::NotFound),
        })
    }

    /// See the header.
    ///
    /// # Safety
    /// As the header says.
    #[no_mangle]
    pub unsafe extern "C" fn amesh_zone_stats(stats: *mut header::amesh_zone_stats_t) -> c_int {
        read("amesh_zone_stats", |worker| {
            let s = worker.pin().0.stats();
            // SAFETY: promised by the caller.
            *unsafe { place(stats) }? = header::amesh_zone_stats_t {
                version: s.version,
                size: s.size,
                capacity: s.capacity,
                used: s.used,
                retired: s.retired,
                slots: s.slots,
                slots_max: s.slots_max,
                cells: s.cells,
                cells_max: s.cells_max,
                workers: s.workers,
                full_rejections: s.full_rejections,
            };
            Ok(())
        })
    }
}
