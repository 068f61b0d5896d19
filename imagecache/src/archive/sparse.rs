//! Maps of sparse files: GNU's old headers, and PAX 0.0, 0.1 and 1.0.

use super::header::{BLOCK, Block, number};

/// A piece of a sparse file that has data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where in the file it begins.
    pub offset: u64,
    /// Its bytes.
    pub length: u64,
}

/// Whether the pieces follow one another inside of the file, and are all that is stored.
pub(super) fn check(extents: &[Extent], real_size: u64, stored: u64) -> Result<(), String> {
    let (mut end, mut sum) = (0_u64, 0_u64);
    for Extent { offset, length } in extents {
        let next = offset
            .checked_add(*length)
            .filter(|next| *next <= real_size);
        let Some(next) = next.filter(|_| *offset >= end) else {
            return Err(format!(
                "a sparse file of {real_size} bytes has a piece of {length} at {offset}, behind {end}"
            ));
        };
        end = next;
        sum += length;
    }
    match sum == stored {
        true => Ok(()),
        false => Err(format!(
            "a sparse file has {stored} bytes, its map says {sum}"
        )),
    }
}

/// Offsets and lengths in turn.
pub(super) fn pairs(numbers: &[u64]) -> Result<Vec<Extent>, String> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("the map of a sparse file has a piece without a length".to_owned());
    }
    let extent = |[offset, length]: &[u64; 2]| Extent {
        offset: *offset,
        length: *length,
    };
    Ok(pairs.iter().map(extent).collect())
}

/// The map of type `S`: four pieces in the header, 21 in each block behind it.
#[derive(Debug)]
pub(super) struct Old {
    pub real_size: u64,
    pub extents: Vec<Extent>,
    pub goes_on: bool,
}

impl Old {
    pub fn begin(header: &Block) -> Result<Self, String> {
        let real_size = unsigned(&header[483..495])?;
        let mut table = Self {
            real_size,
            extents: Vec::new(),
            goes_on: false,
        };
        table.take(&header[386..482], header[482])?;
        Ok(table)
    }

    pub fn add(&mut self, block: &Block) -> Result<(), String> {
        self.take(&block[..504], block[504])
    }

    fn take(&mut self, table: &[u8], goes_on: u8) -> Result<(), String> {
        self.goes_on = goes_on != 0;
        for piece in table.chunks_exact(24) {
            // The table ends with the first empty place.
            if piece[0] == 0 {
                break;
            }
            self.extents.push(Extent {
                offset: unsigned(&piece[..12])?,
                length: unsigned(&piece[12..])?,
            });
        }
        Ok(())
    }
}

fn unsigned(field: &[u8]) -> Result<u64, String> {
    let number = number(field).and_then(|number| u64::try_from(number).ok());
    number.ok_or_else(|| "the map of a sparse file has what is no number".to_owned())
}

/// The map of 1.0: how many pieces, then their offsets and lengths, a decimal number a line.
#[derive(Debug, Default)]
pub(super) struct Lines {
    pub extents: Vec<Extent>,
    wanted: Option<u64>,
    numbers: Vec<u64>,
    line: Vec<u8>,
}

impl Lines {
    /// How many pieces it will have, once that is known.
    pub fn wanted(&self) -> usize {
        self.wanted
            .map_or(0, |n| usize::try_from(n).unwrap_or(usize::MAX))
    }

    /// Whether the map is whole; what follows in the block are zeros.
    pub fn add(&mut self, block: &[u8; BLOCK]) -> Result<bool, String> {
        for byte in block {
            match byte {
                b'0'..=b'9' if self.line.len() < 20 => self.line.push(*byte),
                b'\n' => {
                    self.end_line()?;
                    if self.is_whole() {
                        self.extents = pairs(&self.numbers)?;
                        return Ok(true);
                    }
                }
                _ => return Err("the map of a sparse file has what is no number".to_owned()),
            }
        }
        Ok(false)
    }

    fn end_line(&mut self) -> Result<(), String> {
        let text = std::str::from_utf8(&self.line).unwrap_or_default();
        let number = text
            .parse()
            .map_err(|_| "the map of a sparse file has an empty line")?;
        self.line.clear();
        match self.wanted {
            None => self.wanted = Some(number),
            Some(_) => self.numbers.push(number),
        }
        Ok(())
    }

    fn is_whole(&self) -> bool {
        let wanted = self.wanted.and_then(|pieces| pieces.checked_mul(2));
        wanted == Some(self.numbers.len() as u64)
    }
}
