//! Memory for a zone: shared with children, unmapped at the end.

use amesh_shm::{format, Options, Reader, Region, WorkerSlot, Writer};
use std::ptr::NonNull;

pub const LAYOUT: u64 = 0xa3e5;

/// An anonymous shared mapping with a zone in it.
pub struct Memory {
    pub region: Region,
}

impl Memory {
    pub fn raw(len: usize) -> Memory {
        // SAFETY: a new mapping, used as a zone alone.
        unsafe {
            let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
            let at = libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            assert_ne!(at, libc::MAP_FAILED);
            // What was there before must not matter.
            at.cast::<u8>().write_bytes(0xa5, len);
            Memory { region: Region::new(NonNull::new(at.cast()).unwrap(), len) }
        }
    }

    pub fn new(len: usize, options: Options) -> Memory {
        let memory = Memory::raw(len);
        format(memory.region, options, LAYOUT).unwrap();
        memory
    }

    pub fn writer(&self) -> Writer {
        Writer::attach(self.region, LAYOUT).unwrap()
    }

    #[allow(dead_code)] // Not every suite that shares this file reads in its own process.
    pub fn worker(&self) -> WorkerSlot {
        Reader::attach(self.region, LAYOUT).unwrap().register().unwrap()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped by `raw`; writers and workers of a test are dropped before.
        unsafe { libc::munmap(self.region.base().as_ptr().cast(), self.region.len()) };
    }
}
