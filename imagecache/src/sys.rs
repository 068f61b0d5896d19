//! The calls into C of this crate: ISA-L's inflate, behind a safe face.
//!
//! Nothing that C keeps between two calls points into memory of the caller: input and output are
//! given anew with each call, and what ISA-L has not worked off it copies into its own state.

#![allow(unsafe_code)]

use isal_sys::igzip_lib as isal;

/// A DEFLATE stream with the trailer of gzip behind it (RFC 1951; RFC 1952, section 2.3.1), decoded
/// piece by piece. 88 KiB, the window included.
pub(crate) struct Deflate(Box<isal::inflate_state>);

/// What a call of [`Deflate::step`] has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    /// Bytes of the input that were taken.
    pub consumed: usize,
    /// Bytes of the output that were written.
    pub produced: usize,
    /// Whether the trailer was read, and checksum and length were right.
    pub is_done: bool,
}

/// Why a stream cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// A block, a symbol or a distance is none.
    Data,
    /// Checksum or length are not those of what came out.
    Checksum,
}

// SAFETY: the state belongs to no thread (ISA-L keeps nothing in thread-local storage), and the
// pointers in it are not used outside of `step`, which sets them first.
unsafe impl Send for Deflate {}

impl Deflate {
    /// At the beginning of a stream.
    pub fn new() -> Self {
        // SAFETY: integers, arrays of integers, a union of integers and raw pointers: all zeros are
        // a value of each.
        let mut state = unsafe { Box::<isal::inflate_state>::new_zeroed().assume_init() };
        // SAFETY: the pointer is to a whole inflate_state that nobody else uses.
        unsafe { isal::isal_inflate_init(&mut *state) };
        state.crc_flag = isal::ISAL_GZIP_NO_HDR_VER;
        Self(state)
    }

    /// Back to the beginning of another stream.
    pub fn reset(&mut self) {
        // SAFETY: as above.
        unsafe { isal::isal_inflate_reset(&mut *self.0) };
    }

    /// Decodes what fits. A call that neither consumes nor produces anything, with input and room
    /// for output, will never do more.
    pub fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Flaw> {
        let given = u32::try_from(input.len()).unwrap_or(u32::MAX);
        let room = u32::try_from(output.len()).unwrap_or(u32::MAX);
        let state = &mut *self.0;
        // C has no const here; `next_in` is only read from (igzip_inflate.c).
        state.next_in = input.as_ptr().cast_mut();
        state.avail_in = given;
        state.next_out = output.as_mut_ptr();
        state.avail_out = room;
        // SAFETY: `next_in` and `next_out` point to at least `avail_in` readable and `avail_out`
        // writable bytes that do not overlap, for the time of the call; the rest of the state is
        // what ISA-L left there.
        let said = unsafe { isal::isal_inflate(state) };
        match said {
            isal::ISAL_INCORRECT_CHECKSUM => return Err(Flaw::Checksum),
            0 => {}
            _ => return Err(Flaw::Data),
        }
        Ok(Step {
            consumed: given.saturating_sub(state.avail_in) as usize,
            produced: room.saturating_sub(state.avail_out) as usize,
            is_done: state.block_state == isal::isal_block_state_ISAL_BLOCK_FINISH,
        })
    }
}

impl std::fmt::Debug for Deflate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deflate").finish_non_exhaustive()
    }
}
