//! The module's slots, through its C interface (include/amesh.h), where the module is loaded in the same nginx.

use crate::bridge::{Listed, Slots, SlotsError};
use crate::shdict::symbol;
use amesh_model::Kind;
use rkyv::util::AlignedVec;
use std::ffi::{c_char, c_int, c_void};
use std::ptr::NonNull;

/// Major version of the interface.
const MAJOR: u32 = 1;
/// `AMESH_OK`.
const OK: c_int = 0;
/// `AMESH_NOT_FOUND`.
const NOT_FOUND: c_int = 1;
/// `AMESH_NO_ROOM`.
const NO_ROOM: c_int = 2;
/// `AMESH_NO_ZONE`.
const NO_ZONE: c_int = -1;
/// Bytes of `amesh_slot_entry_t`.
const ENTRY: usize = 16;

type VersionFn = unsafe extern "C" fn() -> u32;
type LayoutFn = unsafe extern "C" fn() -> u64;
type ReadyFn = unsafe extern "C" fn() -> c_int;
type ZoneVersionFn = unsafe extern "C" fn(*mut u64) -> c_int;
type ListFn = unsafe extern "C" fn(u32, *mut c_void, usize, *mut usize, *mut usize) -> c_int;
type CopyFn = unsafe extern "C" fn(u32, *const c_char, usize, *mut c_void, usize, *mut usize, *mut u64) -> c_int;

/// Why the module that is loaded cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ngx_amesh_module in this nginx is of another build than this libxds.so: install both of one build")]
pub struct OtherBuild;

/// The functions of the module.
#[derive(Clone, Copy)]
pub struct Module {
    zone_version: ZoneVersionFn,
    zone_ready: ReadyFn,
    slot_list: ListFn,
    slot_copy: CopyFn,
}

impl Module {
    /// The module of this nginx; `None` where it is not loaded.
    ///
    /// # Errors
    /// It is another one than this library was built with.
    pub fn find() -> Result<Option<Module>, OtherBuild> {
        let Some(version) = symbol("amesh_abi_version") else { return Ok(None) };
        // SAFETY: as include/amesh.h declares it.
        let version = unsafe { std::mem::transmute::<NonNull<c_void>, VersionFn>(version)() };
        if version >> 16 != MAJOR {
            return Err(OtherBuild);
        }
        let find = |name| symbol(name).ok_or(OtherBuild);
        // SAFETY: all of them are as include/amesh.h declares them, of the major version that was just asked for.
        unsafe {
            let layout = std::mem::transmute::<NonNull<c_void>, LayoutFn>(find("amesh_layout")?);
            if layout() != amesh_model::layout_hash() {
                return Err(OtherBuild);
            }
            Ok(Some(Module {
                zone_version: std::mem::transmute::<NonNull<c_void>, ZoneVersionFn>(find("amesh_zone_version")?),
                zone_ready: std::mem::transmute::<NonNull<c_void>, ReadyFn>(find("amesh_zone_ready")?),
                slot_list: std::mem::transmute::<NonNull<c_void>, ListFn>(find("amesh_slot_list")?),
                slot_copy: std::mem::transmute::<NonNull<c_void>, CopyFn>(find("amesh_slot_copy")?),
            }))
        }
    }
}

fn failed(code: c_int) -> SlotsError {
    match code {
        NO_ZONE => SlotsError::NoZone,
        code => SlotsError::Failed(code),
    }
}

impl Slots for Module {
    fn version(&self) -> Result<u64, SlotsError> {
        let mut version = 0;
        // SAFETY: there is a place for the version.
        match unsafe { (self.zone_version)(&mut version) } {
            OK => Ok(version),
            code => Err(failed(code)),
        }
    }

    fn is_ready(&self) -> bool {
        // SAFETY: no preconditions.
        unsafe { (self.zone_ready)() == OK }
    }

    fn list(&self, kind: Kind) -> Result<Vec<Listed>, SlotsError> {
        let mut buffer = Vec::<u8>::new();
        loop {
            let mut size = 0;
            // SAFETY: the buffer has as many bytes as are said, and there is a place for the size.
            let code = unsafe {
                (self.slot_list)(kind as u32, buffer.as_mut_ptr().cast(), buffer.len(), &mut size, std::ptr::null_mut())
            };
            match code {
                OK => return Ok(entries(buffer.get(..size).unwrap_or_default())),
                NO_ROOM => buffer.resize(size + size / 8, 0),
                code => return Err(failed(code)),
            }
        }
    }

    fn copy(&self, kind: Kind, name: &str, into: &mut AlignedVec) -> Result<bool, SlotsError> {
        loop {
            let mut size = 0;
            // SAFETY: the buffer has as many bytes as are said, all written once; there is a place for the size, the version
            // may be null.
            let code = unsafe {
                (self.slot_copy)(
                    kind as u32,
                    name.as_ptr().cast(),
                    name.len(),
                    into.as_mut_ptr().cast(),
                    into.len(),
                    &mut size,
                    std::ptr::null_mut(),
                )
            };
            match code {
                OK => {
                    into.resize(size, 0);
                    return Ok(true);
                }
                NOT_FOUND => return Ok(false),
                NO_ROOM => into.resize(size, 0),
                code => return Err(failed(code)),
            }
        }
    }
}

/// The entries of a list: numbers, then the name, then zeroes up to a multiple of 8 bytes.
fn entries(mut rest: &[u8]) -> Vec<Listed> {
    let mut all = Vec::new();
    while let Some((numbers, names)) = rest.split_first_chunk::<ENTRY>() {
        let [a, b, c, d, e, f, g, h, _, _, _, _, i, j, k, l] = *numbers;
        let version = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
        let len = u32::from_ne_bytes([i, j, k, l]) as usize;
        let Some(name) = names.get(..len) else { break };
        if let Ok(name) = std::str::from_utf8(name) {
            all.push(Listed { name: name.to_owned(), version });
        }
        rest = rest.get((ENTRY + len).next_multiple_of(8)..).unwrap_or_default();
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_as_the_header_lays_them_out() {
        let mut bytes = Vec::new();
        for (version, name) in [(7u64, "outbound"), (u64::MAX, "a"), (1, "")] {
            bytes.extend(version.to_ne_bytes());
            bytes.extend(99u32.to_ne_bytes());
            bytes.extend((name.len() as u32).to_ne_bytes());
            bytes.extend(name.as_bytes());
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        let all = entries(&bytes);
        let all: Vec<_> = all.iter().map(|e| (e.version, e.name.as_str())).collect();
        assert_eq!(all, [(7, "outbound"), (u64::MAX, "a"), (1, "")]);
    }
}
