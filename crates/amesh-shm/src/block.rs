//! A block: what a slot points to. Written once, never changed until it is freed.

use crate::layout::UNIT;
use std::marker::PhantomData;
use xxhash_rust::xxh3::{xxh3_64_with_seed, Xxh3};

/// Hash of a slot's key, for callers that look the same key up again and again.
#[inline]
pub fn hash(kind: u8, key: &[u8]) -> u64 {
    xxh3_64_with_seed(key, kind.into())
}

/// Longest key and longest payload in bytes.
pub(crate) const MAX_LEN: usize = 1 << 31;

/// Before the payload, which is followed by the key, and by the cells (4 bytes each, aligned).
#[repr(C, align(16))]
struct Head {
    hash: u64,
    version: u64,
    /// Hash of payload and cells.
    content: u64,
    payload: u32,
    key: u32,
    cells: u32,
    kind: u8,
}

/// Bytes of a block before its payload.
pub(crate) const HEAD: usize = size_of::<Head>();

/// What a block is made of.
#[derive(Clone, Copy)]
pub(crate) struct Content<'a> {
    pub kind: u8,
    pub hash: u64,
    pub version: u64,
    pub key: &'a [u8],
    pub payload: &'a [u8],
    pub cells: &'a [u32],
}

impl Content<'_> {
    fn cells_at(&self) -> usize {
        (HEAD + self.payload.len() + self.key.len()).next_multiple_of(4)
    }

    /// Units that the block takes.
    pub(crate) fn units(&self) -> usize {
        (self.cells_at() + size_of_val(self.cells)).div_ceil(UNIT)
    }

    pub(crate) fn digest(&self) -> u64 {
        let mut hasher = Xxh3::new();
        hasher.update(self.payload);
        for cell in self.cells {
            hasher.update(&cell.to_le_bytes());
        }
        hasher.digest()
    }

    /// Writes the block.
    ///
    /// # Safety
    /// `to` is aligned to 16, and `units()` units from it are the caller's alone.
    pub(crate) unsafe fn write(&self, to: *mut u8) {
        let head = Head {
            hash: self.hash,
            version: self.version,
            content: self.digest(),
            payload: self.payload.len() as u32,
            key: self.key.len() as u32,
            cells: self.cells.len() as u32,
            kind: self.kind,
        };
        // SAFETY: all of it is inside units(); the cells are aligned to 4.
        unsafe {
            to.cast::<Head>().write(head);
            let payload = to.add(HEAD);
            payload.copy_from_nonoverlapping(self.payload.as_ptr(), self.payload.len());
            payload.add(self.payload.len()).copy_from_nonoverlapping(self.key.as_ptr(), self.key.len());
            let cells = to.add(self.cells_at()).cast::<u32>();
            cells.copy_from_nonoverlapping(self.cells.as_ptr(), self.cells.len());
        }
    }
}

/// A block that someone published.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a> {
    at: *const u8,
    life: PhantomData<&'a [u8]>,
}

impl<'a> Block<'a> {
    /// The block at `at`; `None` when it would be longer than `room`.
    ///
    /// # Safety
    /// `at` is aligned to 16, and `room` bytes from it are readable as long as `'a`; for as long as a block is there, no
    /// one writes it.
    #[inline]
    pub(crate) unsafe fn read(at: *const u8, room: usize) -> Option<Block<'a>> {
        if room < HEAD {
            return None;
        }
        let block = Block { at, life: PhantomData };
        (block.len() <= room).then_some(block)
    }

    #[inline]
    fn head(&self) -> &'a Head {
        // SAFETY: as `read` was promised; a head has no invalid values.
        unsafe { &*self.at.cast::<Head>() }
    }

    fn slice(&self, from: usize, len: u32) -> &'a [u8] {
        // SAFETY: inside `len()`, which `read` compared with the room.
        unsafe { std::slice::from_raw_parts(self.at.add(from), len as usize) }
    }

    fn cells_at(&self) -> usize {
        (HEAD + self.head().payload as usize + self.head().key as usize).next_multiple_of(4)
    }

    fn len(&self) -> usize {
        self.cells_at() + self.head().cells as usize * size_of::<u32>()
    }

    pub(crate) fn units(&self) -> usize {
        self.len().div_ceil(UNIT)
    }

    #[inline]
    pub(crate) fn is(&self, kind: u8, hash: u64, key: &[u8]) -> bool {
        self.head().hash == hash && self.head().kind == kind && self.key() == key
    }

    /// Whether the block holds this payload and these cells; the version does not matter.
    pub(crate) fn holds(&self, content: &Content) -> bool {
        self.head().payload as usize == content.payload.len()
            && self.head().cells as usize == content.cells.len()
            && self.head().content == content.digest()
            && self.payload() == content.payload
            && self.cells().eq(content.cells.iter().copied())
    }

    #[inline]
    pub(crate) fn hash(&self) -> u64 {
        self.head().hash
    }

    #[inline]
    pub(crate) fn version(&self) -> u64 {
        self.head().version
    }

    #[inline]
    pub(crate) fn kind(&self) -> u8 {
        self.head().kind
    }

    #[inline]
    pub(crate) fn payload(&self) -> &'a [u8] {
        self.slice(HEAD, self.head().payload)
    }

    #[inline]
    pub(crate) fn key(&self) -> &'a [u8] {
        self.slice(HEAD + self.head().payload as usize, self.head().key)
    }

    pub(crate) fn cells(&self) -> impl Iterator<Item = u32> + 'a {
        let bytes = self.slice(self.cells_at(), self.head().cells * size_of::<u32>() as u32);
        bytes.chunks_exact(4).map(|c| u32::from_ne_bytes([c[0], c[1], c[2], c[3]]))
    }
}
