//! Slots by kind and name, as they are archived.

use super::{header, place, read, room, text, Failure};
use crate::zone::{self, Pin};
use amesh_model::cluster::Cluster;
use amesh_model::endpoint::EndpointSet;
use amesh_model::listener::{Listener, ListenerIndex};
use amesh_model::route::RouteTable;
use amesh_model::Kind;
use rkyv::api::high::HighDeserializer;
use rkyv::rancor::Error as ArchiveError;
use rmp_serde::config::BytesMode;
use std::os::raw::{c_char, c_int, c_void};

type Entry = header::amesh_slot_entry_t;

/// The kind of a number.
pub(super) fn kind(number: u32) -> Result<Kind, Failure> {
    u8::try_from(number).ok().and_then(Kind::from_u8).ok_or(Failure::BadArgument)
}

/// See the header.
///
/// # Safety
/// As the header says.
#[no_mangle]
pub unsafe extern "C" fn amesh_slot_list(
    number: u32,
    buffer: *mut c_void,
    capacity: usize,
    size: *mut usize,
    count: *mut usize,
) -> c_int {
    read("amesh_slot_list", |worker| {
        // SAFETY: promised by the caller.
        let (buffer, size, count) = unsafe { (room(buffer.cast(), capacity)?, place(size)?, count.as_mut()) };
        let kind = kind(number)?;
        let (pin, _) = worker.pin();
        let all = pin.list(kind);
        *size = all.iter().map(|(name, _)| entry_len(name)).sum();
        if let Some(count) = count {
            *count = all.len();
        }
        let mut rest = buffer.get_mut(..*size).ok_or(Failure::NoRoom)?;
        for (name, slot) in all {
            let (entry, others) = rest.split_at_mut(entry_len(name));
            rest = others;
            let (version, numbers) = entry.split_at_mut(8);
            version.copy_from_slice(&slot.version.to_ne_bytes());
            let (length, numbers) = numbers.split_at_mut(4);
            length.copy_from_slice(&(slot.bytes.len() as u32).to_ne_bytes());
            let (length, text) = numbers.split_at_mut(4);
            length.copy_from_slice(&(name.len() as u32).to_ne_bytes());
            let (text, zeroes) = text.split_at_mut(name.len());
            text.copy_from_slice(name.as_bytes());
            zeroes.fill(0);
        }
        Ok(())
    })
}

const _: () = assert!(size_of::<Entry>() == 16 && std::mem::offset_of!(Entry, name_len) == 12);

/// Bytes that an entry takes.
fn entry_len(name: &str) -> usize {
    (size_of::<Entry>() + name.len()).next_multiple_of(8)
}

/// See the header.
///
/// # Safety
/// As the header says.
#[no_mangle]
pub unsafe extern "C" fn amesh_slot_version(
    number: u32,
    name: *const c_char,
    name_len: usize,
    version: *mut u64,
) -> c_int {
    read("amesh_slot_version", |worker| {
        // SAFETY: promised by the caller.
        let (name, version) = unsafe { (text(name, name_len)?, place(version)?) };
        let (pin, _) = worker.pin();
        *version = pin.slot(kind(number)?, name).ok_or(Failure::NotFound)?.version;
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// As the header says.
#[no_mangle]
pub unsafe extern "C" fn amesh_slot_copy(
    number: u32,
    name: *const c_char,
    name_len: usize,
    buffer: *mut c_void,
    capacity: usize,
    size: *mut usize,
    version: *mut u64,
) -> c_int {
    read("amesh_slot_copy", |worker| {
        // SAFETY: promised by the caller.
        let (name, buffer, size, version) =
            unsafe { (text(name, name_len)?, room(buffer.cast(), capacity)?, place(size)?, version.as_mut()) };
        let (pin, _) = worker.pin();
        copy(&pin, kind(number)?, name, buffer, size, version)
    })
}

fn copy(
    pin: &Pin<'_>,
    kind: Kind,
    name: &str,
    buffer: &mut [u8],
    size: &mut usize,
    version: Option<&mut u64>,
) -> Result<(), Failure> {
    let slot = pin.slot(kind, name).ok_or(Failure::NotFound)?;
    *size = slot.bytes.len();
    if let Some(version) = version {
        *version = slot.version;
    }
    buffer.get_mut(..slot.bytes.len()).ok_or(Failure::NoRoom)?.copy_from_slice(slot.bytes);
    Ok(())
}

/// See the header.
///
/// # Safety
/// As the header says.
#[no_mangle]
pub unsafe extern "C" fn amesh_slot_msgpack(
    number: u32,
    name: *const c_char,
    name_len: usize,
    buffer: *mut c_void,
    capacity: usize,
    size: *mut usize,
    version: *mut u64,
) -> c_int {
    read("amesh_slot_msgpack", |worker| {
        // SAFETY: promised by the caller.
        let (name, buffer, size, version) =
            unsafe { (text(name, name_len)?, room(buffer.cast(), capacity)?, place(size)?, version.as_mut()) };
        let (pin, _) = worker.pin();
        let kind = kind(number)?;
        let slot = pin.slot(kind, name).ok_or(Failure::NotFound)?;
        let packed = match kind {
            Kind::Listener => packed::<_, Listener>(pin.listener(name)),
            Kind::RouteTable => packed::<_, RouteTable>(pin.route_table(name)),
            Kind::Cluster => packed::<_, Cluster>(pin.cluster(zone::hash(kind, name.as_bytes()), name)),
            Kind::EndpointSet => packed::<_, EndpointSet>(pin.endpoint_set(name)),
            Kind::ListenerIndex => packed::<_, ListenerIndex>(pin.listener_index()),
        }?;
        *size = packed.len();
        if let Some(version) = version {
            *version = slot.version;
        }
        buffer.get_mut(..packed.len()).ok_or(Failure::NoRoom)?.copy_from_slice(&packed);
        Ok(())
    })
}

/// A resource as MessagePack.
fn packed<A, T>(archived: Option<&A>) -> Result<Vec<u8>, Failure>
where
    A: rkyv::Deserialize<T, HighDeserializer<ArchiveError>>,
    T: serde::Serialize,
{
    let owned: T = rkyv::deserialize(archived.ok_or(Failure::NotFound)?).map_err(|_: ArchiveError| Failure::Memory)?;
    let mut out = Vec::new();
    let mut to = rmp_serde::Serializer::new(&mut out).with_struct_map().with_bytes(BytesMode::ForceIterables);
    owned.serialize(&mut to).map_err(|_| Failure::Memory)?;
    Ok(out)
}
