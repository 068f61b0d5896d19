//! gzip: members one after the other, each a header, a DEFLATE stream and a trailer (RFC 1952).
//!
//! Zeros behind the last member are padding, as gzip(1) has it; Go refuses them.

use std::io::{self, BufRead};

use super::InflateError;
use crate::sys::{Deflate, Flaw};

const FORMAT: &str = "gzip";

/// The magic, and the only method of compression there is.
const START: [u8; 3] = [0x1f, 0x8b, 8];

// Flags of a header: which fields follow.
const HEADER_CHECKSUM: u8 = 1 << 1;
const EXTRA: u8 = 1 << 2;
const NAME: u8 = 1 << 3;
const COMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0b1110_0000;

/// What comes next in the blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    FirstMember,
    Data,
    /// Another member, padding, or nothing.
    Member,
    Nothing,
}

#[derive(Debug)]
pub(super) struct Gzip<R> {
    from: R,
    /// Bytes taken from it.
    at: u64,
    deflate: Deflate,
    next: Next,
}

impl<R: BufRead> Gzip<R> {
    pub fn new(from: R) -> Self {
        Self {
            from,
            at: 0,
            deflate: Deflate::new(),
            next: Next::FirstMember,
        }
    }

    /// As [`io::Read::read`].
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.next {
                Next::Nothing => return Ok(0),
                Next::FirstMember => self.header()?,
                Next::Member => self.after_a_member()?,
                Next::Data if buffer.is_empty() => return Ok(0),
                Next::Data => {
                    let produced = self.data(buffer)?;
                    if produced > 0 {
                        return Ok(produced);
                    }
                }
            }
        }
    }

    fn data(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let input = self.from.fill_buf()?;
        let given = input.len();
        let step = self.deflate.step(input, buffer).map_err(|flaw| {
            damaged(
                self.at,
                match flaw {
                    Flaw::Data => "what stands there is no DEFLATE data",
                    Flaw::Checksum => "checksum or length are not those of the data",
                },
            )
        })?;
        self.from.consume(step.consumed);
        self.at += step.consumed as u64;
        if step.is_done {
            self.deflate.reset();
            self.next = Next::Member;
        } else if step.produced == 0 && step.consumed == 0 {
            return Err(match given {
                0 => truncated(self.at, "a member"),
                _ => damaged(self.at, "what stands there is no DEFLATE data"),
            });
        }
        Ok(step.produced)
    }

    fn after_a_member(&mut self) -> io::Result<()> {
        let end = self.at;
        if self.from.fill_buf()?.first() == Some(&0) {
            loop {
                let padding = self.from.fill_buf()?;
                if padding.iter().any(|byte| *byte != 0) {
                    return Err(InflateError::Trailing { at: end }.into());
                }
                match padding.len() {
                    0 => break,
                    read => self.from.consume(read),
                }
            }
        }
        match self.from.fill_buf()?.first() {
            None => self.next = Next::Nothing,
            Some(first) if *first == START[0] => self.header()?,
            Some(_) => return Err(InflateError::Trailing { at: end }.into()),
        }
        Ok(())
    }

    fn header(&mut self) -> io::Result<()> {
        let begin = self.at;
        let mut checksum = crc32fast::Hasher::new();
        let mut fixed = [0; 10];
        self.take(&mut fixed, &mut checksum)?;
        // Modification time, level and system (4..10) tell nothing that matters here.
        let flags = fixed[3];
        if fixed[..3] != START {
            return Err(match begin {
                0 => damaged(begin, "it has no gzip header"),
                at => InflateError::Trailing { at }.into(),
            });
        }
        if flags & RESERVED != 0 {
            return Err(damaged(self.at, "its header has flags that are reserved"));
        }
        if flags & EXTRA != 0 {
            let mut length = [0; 2];
            self.take(&mut length, &mut checksum)?;
            let mut extra = vec![0; usize::from(u16::from_le_bytes(length))];
            self.take(&mut extra, &mut checksum)?;
        }
        for field in [NAME, COMMENT] {
            if flags & field != 0 {
                self.skip_text(&mut checksum)?;
            }
        }
        if flags & HEADER_CHECKSUM != 0 {
            let computed = checksum.clone().finalize();
            let mut said = [0; 2];
            self.take(&mut said, &mut checksum)?;
            if u32::from(u16::from_le_bytes(said)) != computed & 0xffff {
                return Err(damaged(self.at, "the checksum of its header is wrong"));
            }
        }
        self.next = Next::Data;
        Ok(())
    }

    /// Takes bytes of a header.
    fn take(&mut self, buffer: &mut [u8], checksum: &mut crc32fast::Hasher) -> io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            let input = self.from.fill_buf()?;
            if input.is_empty() {
                return Err(truncated(self.at, "a header"));
            }
            let taken = input.len().min(buffer.len() - filled);
            buffer[filled..filled + taken].copy_from_slice(&input[..taken]);
            self.from.consume(taken);
            self.at += taken as u64;
            filled += taken;
        }
        checksum.update(buffer);
        Ok(())
    }

    /// Takes a field of a header that ends with a NUL, however long it is.
    fn skip_text(&mut self, checksum: &mut crc32fast::Hasher) -> io::Result<()> {
        loop {
            let text = self.from.fill_buf()?;
            if text.is_empty() {
                return Err(truncated(self.at, "a header"));
            }
            let end = text.iter().position(|byte| *byte == 0);
            let taken = end.map_or(text.len(), |end| end + 1);
            checksum.update(&text[..taken]);
            self.from.consume(taken);
            self.at += taken as u64;
            if end.is_some() {
                return Ok(());
            }
        }
    }
}

fn damaged(at: u64, why: &str) -> io::Error {
    let why = why.to_owned();
    let format = FORMAT;
    InflateError::Damaged { format, at, why }.into()
}

fn truncated(at: u64, within: &'static str) -> io::Error {
    let format = FORMAT;
    InflateError::Truncated { format, at, within }.into()
}
