//! Bounds-checked little-endian reading and writing over plain slices.
//!
//! Promises: no panic, no allocation; a writer that ran out of room says so once, at the end; a
//! reader hands out borrowed slices only. Knows nothing of frames or plans.

use core::ffi::CStr;
use core::fmt;

/// What is written does not fit the buffer or the format's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge;

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("does not fit the buffer or the limits of the format")
    }
}

impl core::error::Error for TooLarge {}

/// Bytes that are not what the format says; the text names the object that is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// The bytes end inside this object.
    Truncated(&'static str),
    /// The value of this object is none of those allowed.
    Invalid(&'static str),
    /// The object is complete, and more bytes follow.
    Trailing(&'static str),
}

impl Malformed {
    /// The object that is wrong, and how, for a reader without formatting machinery.
    pub fn parts(&self) -> (&'static str, &'static str) {
        match self {
            Self::Truncated(object) => (object, "is cut off"),
            Self::Invalid(object) => (object, "has a value that is not allowed"),
            Self::Trailing(object) => (object, "is followed by more bytes"),
        }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (object, fault) = self.parts();
        write!(f, "{object} {fault}")
    }
}

impl core::error::Error for Malformed {}

/// Writes into a slice; [`Writer::finish`] tells whether all of it fitted.
pub(crate) struct Writer<'b> {
    buf: &'b mut [u8],
    at: usize,
    fits: bool,
}

impl<'b> Writer<'b> {
    pub(crate) fn new(buf: &'b mut [u8]) -> Self {
        Self {
            buf,
            at: 0,
            fits: true,
        }
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        let room = self
            .at
            .checked_add(bytes.len())
            .and_then(|end| self.buf.get_mut(self.at..end));
        match room {
            Some(room) if self.fits => {
                room.copy_from_slice(bytes);
                self.at += bytes.len();
            }
            _ => self.fits = false,
        }
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.bytes(&[value]);
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    pub(crate) fn flag(&mut self, value: bool) {
        self.u8(u8::from(value));
    }

    /// u16 length + bytes.
    pub(crate) fn text(&mut self, text: &str) {
        self.count(text.len());
        self.bytes(text.as_bytes());
    }

    /// u32 length + bytes + NUL, so that the reader can pass it to the kernel in place.
    pub(crate) fn c_text(&mut self, text: &CStr) {
        match u32::try_from(text.to_bytes().len()) {
            Ok(length) => self.u32(length),
            Err(_) => self.fits = false,
        }
        self.bytes(text.to_bytes_with_nul());
    }

    pub(crate) fn count(&mut self, count: usize) {
        match u16::try_from(count) {
            Ok(count) => self.u16(count),
            Err(_) => self.fits = false,
        }
    }

    /// Reserves four bytes for [`Writer::close`].
    pub(crate) fn open(&mut self) -> usize {
        let at = self.at;
        self.u32(0);
        at
    }

    /// Fills in how many bytes followed the four at `opened`.
    pub(crate) fn close(&mut self, opened: usize) {
        let length = self.at.saturating_sub(opened + 4);
        match (u32::try_from(length), self.buf.get_mut(opened..opened + 4)) {
            (Ok(length), Some(room)) if self.fits => room.copy_from_slice(&length.to_le_bytes()),
            _ => self.fits = false,
        }
    }

    pub(crate) fn finish(self) -> Result<usize, TooLarge> {
        if self.fits {
            Ok(self.at)
        } else {
            Err(TooLarge)
        }
    }
}

/// Reads from a slice; every fault names the object that was read.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn bytes(
        &mut self,
        length: usize,
        what: &'static str,
    ) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(Malformed::Truncated(what))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self
            .rest
            .split_first_chunk()
            .ok_or(Malformed::Truncated(what))?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, Malformed> {
        self.array(what).map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self, what: &'static str) -> Result<u16, Malformed> {
        self.array(what).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, Malformed> {
        self.array(what).map(u64::from_le_bytes)
    }

    pub(crate) fn flag(&mut self, what: &'static str) -> Result<bool, Malformed> {
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed::Invalid(what)),
        }
    }

    pub(crate) fn text(&mut self, what: &'static str) -> Result<&'a str, Malformed> {
        let length = self.u16(what)?;
        let bytes = self.bytes(usize::from(length), what)?;
        core::str::from_utf8(bytes).map_err(|_| Malformed::Invalid(what))
    }

    pub(crate) fn c_text(&mut self, what: &'static str) -> Result<&'a CStr, Malformed> {
        let length = usize::try_from(self.u32(what)?).map_err(|_| Malformed::Invalid(what))?;
        let with_nul = length.checked_add(1).ok_or(Malformed::Invalid(what))?;
        let bytes = self.bytes(with_nul, what)?;
        CStr::from_bytes_with_nul(bytes).map_err(|_| Malformed::Invalid(what))
    }

    /// The bytes of an object written between `open` and `close`.
    pub(crate) fn block(&mut self, what: &'static str) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(self.u32(what)?).map_err(|_| Malformed::Invalid(what))?;
        self.bytes(length, what)
    }

    pub(crate) fn rest_ref(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.rest)
    }

    pub(crate) fn end(&self, what: &'static str) -> Result<(), Malformed> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(Malformed::Trailing(what))
        }
    }
}

/// CRC-32 as in IEEE 802.3 (reflected, 0xEDB88320); bitwise: plans are small and read once.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let mask = (crc & 1).wrapping_neg();
            crc = (crc >> 1) ^ (0xEDB8_8320 & mask);
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_everybody_else_computes() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn a_writer_without_room_says_so_and_writes_nothing_after() {
        let mut buf = [0u8; 5];
        let mut writer = Writer::new(&mut buf);
        writer.u32(1);
        writer.u32(2);
        writer.u8(3);
        assert_eq!(writer.finish(), Err(TooLarge));
        assert_eq!(buf, [1, 0, 0, 0, 0]);
    }
}
