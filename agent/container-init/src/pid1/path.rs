//! Paths put together without allocation.

use core::ffi::CStr;

/// A path of at most this many bytes, with its NUL.
pub struct Path<const SIZE: usize> {
    bytes: [u8; SIZE],
}

impl<const SIZE: usize> Path<SIZE> {
    /// The parts one behind the other; `None` when they do not fit or have a NUL inside.
    pub fn of(parts: &[&[u8]]) -> Option<Self> {
        let mut path = Self { bytes: [0; SIZE] };
        let mut length = 0;
        for part in parts {
            let room = path.bytes.get_mut(length..)?.get_mut(..part.len())?;
            room.copy_from_slice(part);
            length += part.len();
        }
        let whole = path
            .as_c_str()
            .is_some_and(|text| text.count_bytes() == length);
        whole.then_some(path)
    }

    fn as_c_str(&self) -> Option<&CStr> {
        CStr::from_bytes_until_nul(&self.bytes).ok()
    }

    /// The path.
    pub fn text(&self) -> &CStr {
        self.as_c_str().unwrap_or_default()
    }
}
