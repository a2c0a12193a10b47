//! A caller's buffer that texts and lists are put into, one after the other. What does not fit is counted all the same.

use super::{header, Failure};

/// Such a buffer.
pub(super) struct Room<'a> {
    buffer: &'a mut [u8],
    used: usize,
}

impl<'a> Room<'a> {
    pub fn new(buffer: &'a mut [u8]) -> Room<'a> {
        Room { buffer, used: 0 }
    }

    fn take(&mut self, len: usize) -> Option<&mut [u8]> {
        let from = self.used;
        self.used += len;
        self.buffer.get_mut(from..self.used)
    }

    /// A text.
    pub fn text(&mut self, bytes: &[u8]) -> header::amesh_str_t {
        let place = self.take(bytes.len());
        let data = place.map_or(std::ptr::null(), |place| {
            place.copy_from_slice(bytes);
            place.as_ptr()
        });
        header::amesh_str_t { data: data.cast(), len: bytes.len() }
    }

    /// A list of plain data. Null where there is no room.
    pub fn list<T: Copy>(&mut self, items: &[T]) -> *const T {
        let address = self.buffer.as_ptr() as usize + self.used;
        self.used += address.next_multiple_of(align_of::<T>()) - address;
        match self.take(size_of_val(items)) {
            Some(place) => {
                let to = place.as_mut_ptr().cast::<T>();
                // SAFETY: aligned above, and as long as the items, which the buffer does not overlap.
                unsafe { std::ptr::copy_nonoverlapping(items.as_ptr(), to, items.len()) };
                to
            }
            None => std::ptr::null(),
        }
    }

    /// Tells how much was put there, or would have been.
    pub fn end(self, size: &mut usize) -> Result<(), Failure> {
        *size = self.used;
        match self.used <= self.buffer.len() {
            true => Ok(()),
            false => {
                // A list may need other padding elsewhere.
                *size += 64;
                Err(Failure::NoRoom)
            }
        }
    }
}
