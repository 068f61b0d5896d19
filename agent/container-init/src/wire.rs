//! Bounds-checked little-endian reading and writing over plain slices.
//!
//! Promises: no panic, no allocation; a writer that ran out of room, and a reader that met a fault,
//! say so once, at the end; a reader hands out borrowed slices only. Knows nothing of frames or plans.

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

    #[inline(never)]
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

/// Reads from a slice. After a fault there is nothing more to read: everything is zero or empty, and
/// [`Reader::end`] tells the first fault, which names the object that was read.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    fault: Option<Malformed>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            fault: None,
        }
    }

    #[inline(never)]
    pub(crate) fn bytes(&mut self, length: usize, what: &'static str) -> &'a [u8] {
        if let Some((taken, rest)) = self.rest.split_at_checked(length) {
            self.rest = rest;
            return taken;
        }
        self.fail(Malformed::Truncated(what));
        &[]
    }

    /// What was read is none of the values that are allowed.
    pub(crate) fn invalid(&mut self, what: &'static str) {
        self.fail(Malformed::Invalid(what));
    }

    #[inline(never)]
    fn fail(&mut self, fault: Malformed) {
        self.fault.get_or_insert(fault);
        self.rest = &[];
    }

    /// Whether there was no fault.
    pub(crate) fn is_sound(&self) -> bool {
        self.fault.is_none()
    }

    #[inline(never)]
    fn number(&mut self, size: usize, what: &'static str) -> u64 {
        let bytes = self.bytes(size, what).iter().rev();
        bytes.fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    pub(crate) fn u8(&mut self, what: &'static str) -> u8 {
        self.number(1, what) as u8
    }

    pub(crate) fn u16(&mut self, what: &'static str) -> u16 {
        self.number(2, what) as u16
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> u32 {
        self.number(4, what) as u32
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> u64 {
        self.number(8, what)
    }

    /// One of these, by its place.
    pub(crate) fn one_of<T: Copy, const N: usize>(
        &mut self,
        what: &'static str,
        allowed: [T; N],
    ) -> T {
        let number = usize::from(self.u8(what));
        self.known(what, allowed.get(number).copied(), allowed[0])
    }

    /// What was read, where it means anything; else a fault.
    pub(crate) fn known<T>(&mut self, what: &'static str, meaning: Option<T>, instead: T) -> T {
        meaning.unwrap_or_else(|| {
            self.invalid(what);
            instead
        })
    }

    #[inline(never)]
    pub(crate) fn flag(&mut self, what: &'static str) -> bool {
        self.one_of(what, [false, true])
    }

    #[inline(never)]
    pub(crate) fn text(&mut self, what: &'static str) -> &'a str {
        let length = self.u16(what);
        let bytes = self.bytes(usize::from(length), what);
        self.known(what, core::str::from_utf8(bytes).ok(), "")
    }

    #[inline(never)]
    pub(crate) fn c_text(&mut self, what: &'static str) -> &'a CStr {
        let length = self.u32(what) as usize;
        let bytes = self.bytes(length.saturating_add(1), what);
        self.known(what, CStr::from_bytes_with_nul(bytes).ok(), c"")
    }

    /// The bytes of an object written between `open` and `close`.
    #[inline(never)]
    pub(crate) fn block(&mut self, what: &'static str) -> &'a [u8] {
        let length = self.u32(what) as usize;
        self.bytes(length, what)
    }

    pub(crate) fn rest_ref(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.rest)
    }

    /// Takes over the fault of what was read from a part, which has to be read to its end.
    pub(crate) fn end_of(&mut self, part: &Reader<'_>, what: &'static str) {
        if let Err(fault) = part.end(what) {
            self.fail(fault);
        }
    }

    pub(crate) fn end(&self, what: &'static str) -> Result<(), Malformed> {
        match self.fault {
            Some(fault) => Err(fault),
            None if self.rest.is_empty() => Ok(()),
            None => Err(Malformed::Trailing(what)),
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
