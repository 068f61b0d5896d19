//! Reading tar archives of layers: ustar, PAX, GNU and V7, one entry after the other.
//!
//! Reads what Go's `archive/tar` reads, because images are made and judged by it, and refuses what
//! two readers could take for two different archives (RUSTSEC-2025-0110, CVE-2025-62518: the size
//! of a PAX header counts, also for finding the next entry). Memory is bounded by [`Bounds`]. Knows
//! nothing of files; what entries mean for a tree is [`crate::layer`].

mod entry;
mod header;
mod pax;
mod sparse;

use std::io::{self, Read};

pub use entry::{Entry, Kind, Timestamp, Xattr};
pub use sparse::Extent;

use header::{BLOCK, Block, Header};
use pax::Records;

/// What an archive may ask for before it is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of one extended header, or of one long name.
    pub extension: u64,
    /// Pieces of one sparse file.
    pub extents: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            // As Go has it.
            extension: 1 << 20,
            extents: 1 << 16,
        }
    }
}

/// Why an archive cannot be read any further.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The bytes could not be had.
    #[error("the archive could not be read after {at} bytes")]
    Read {
        /// Bytes read before.
        at: u64,
        /// What the system or the decompressor said.
        #[source]
        source: io::Error,
    },
    /// It ends in the middle of an entry.
    #[error("the archive ends after {at} bytes, in the middle of {within}")]
    Truncated {
        /// Its bytes.
        at: u64,
        /// What was being read.
        within: String,
    },
    /// A header is none.
    #[error("the header at byte {at} is damaged: {why}")]
    Header {
        /// Where the header begins.
        at: u64,
        /// What is wrong with it.
        why: String,
    },
    /// It wants more than [`Bounds`] allow.
    #[error("the header at byte {at} wants {wanted} {what}: at most {allowed} are allowed")]
    TooLarge {
        /// Where the header begins.
        at: u64,
        /// What it wants, in the plural.
        what: &'static str,
        /// How many.
        wanted: u64,
        /// How many it may have.
        allowed: u64,
    },
}

/// An archive, entry by entry.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    bounds: Bounds,
    /// Bytes read.
    at: u64,
    /// Bytes of the present entry in the archive that were not read yet.
    data: u64,
    /// Zeros behind them, up to a full block.
    padding: u64,
}

impl<R: Read> Reader<R> {
    /// Reads from here on. `from` should be buffered.
    pub fn new(from: R, bounds: Bounds) -> Self {
        Self {
            from,
            bounds,
            at: 0,
            data: 0,
            padding: 0,
        }
    }

    /// The next entry; none at the end of the archive. What is left of the one before is skipped.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut pax = Records::default();
        let mut long_name = None;
        let mut long_link = None;
        loop {
            self.skip_data()?;
            let begin = self.at;
            let Some(block) = self.header_block()? else {
                return match long_name.is_some() || long_link.is_some() || !pax.is_empty() {
                    true => Err(self.truncated("the entry of an extended header")),
                    false => Ok(None),
                };
            };
            let damaged = |why: String| ArchiveError::Header { at: begin, why };
            let header = Header::parse(&block).map_err(damaged)?;
            match header.typeflag {
                b'x' => {
                    let text = self.extension(begin, header.size, "a PAX header")?;
                    pax = Records::parse(&text).map_err(damaged)?;
                }
                // Of the whole archive: Go ignores them, and so do all who unpack with it.
                b'g' => {
                    self.extension(begin, header.size, "a global PAX header")?;
                }
                b'L' => long_name = Some(self.long_text(begin, header.size, "a long name")?),
                b'K' => long_link = Some(self.long_text(begin, header.size, "a long link")?),
                _ => {
                    let made = self.entry(begin, &block, header, pax, (long_name, long_link));
                    return made.map(Some);
                }
            }
        }
    }

    fn entry(
        &mut self,
        begin: u64,
        block: &Block,
        mut header: Header,
        pax: Records,
        (long_name, long_link): (Option<Vec<u8>>, Option<Vec<u8>>),
    ) -> Result<Entry, ArchiveError> {
        let damaged = |why: String| ArchiveError::Header { at: begin, why };
        header.name = long_name.unwrap_or(header.name);
        header.link = long_link.unwrap_or(header.link);
        pax.apply(&mut header).map_err(damaged)?;
        let mut entry = Entry::of(header, pax.xattrs()).map_err(damaged)?;
        let stored = entry.stored_size();
        self.data = stored;
        self.padding = stored.next_multiple_of(BLOCK as u64) - stored;
        if let Kind::File { size, extents } = &mut entry.kind {
            *extents = self.sparse_map(begin, block, &pax, size)?;
        }
        Ok(entry)
    }

    /// Reads data of the present entry, without holes; 0 at its end.
    pub fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let most = usize::try_from(self.data).map_or(buffer.len(), |left| left.min(buffer.len()));
        if most == 0 {
            return Ok(0);
        }
        let read = self.read_some(&mut buffer[..most])?;
        if read == 0 {
            return Err(self.truncated("a file"));
        }
        self.data -= read as u64;
        Ok(read)
    }

    /// Reads on behind the archive, to the end of what it came from: the digest is of everything.
    pub fn drain(mut self) -> Result<R, ArchiveError> {
        self.skip_data()?;
        let mut buffer = vec![0; 64 * 1024];
        while self.read_some(&mut buffer)? > 0 {}
        Ok(self.from)
    }

    fn skip_data(&mut self) -> Result<(), ArchiveError> {
        let mut buffer = [0; 16 * 1024];
        while self.read_data(&mut buffer)? > 0 {}
        let padding = usize::try_from(self.padding).unwrap_or(0);
        self.padding = 0;
        self.fill(&mut buffer[..padding], "the padding of a file")
            .map(drop)
    }

    /// The next block that is a header; none where two empty blocks, or nothing, follow.
    fn header_block(&mut self) -> Result<Option<Block>, ArchiveError> {
        let mut block = [0; BLOCK];
        let begin = self.at;
        if !self.fill_or_end(&mut block, "a header")? {
            return Ok(None);
        }
        if block.iter().any(|byte| *byte != 0) {
            return Ok(Some(block));
        }
        if !self.fill_or_end(&mut block, "the end mark")? || block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        Err(ArchiveError::Header {
            at: begin,
            why: "one empty block, and something behind it".to_owned(),
        })
    }

    fn extension(
        &mut self,
        begin: u64,
        size: u64,
        within: &'static str,
    ) -> Result<Vec<u8>, ArchiveError> {
        if size > self.bounds.extension {
            return Err(ArchiveError::TooLarge {
                at: begin,
                what: "bytes",
                wanted: size,
                allowed: self.bounds.extension,
            });
        }
        let mut text = vec![0; usize::try_from(size).unwrap_or(0)];
        self.fill(&mut text, within)?;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(text)
    }

    fn long_text(
        &mut self,
        begin: u64,
        size: u64,
        within: &'static str,
    ) -> Result<Vec<u8>, ArchiveError> {
        let text = self.extension(begin, size, within)?;
        Ok(header::until_nul(&text).to_vec())
    }

    fn sparse_map(
        &mut self,
        begin: u64,
        block: &Block,
        pax: &Records,
        size: &mut u64,
    ) -> Result<Option<Vec<Extent>>, ArchiveError> {
        let damaged = |why: String| ArchiveError::Header { at: begin, why };
        let (real_size, extents) = if block[156] == b'S' {
            let mut table = sparse::Old::begin(block).map_err(damaged)?;
            while table.goes_on {
                self.bound_extents(begin, table.extents.len())?;
                // Behind the header, before the data, and not counted in the size.
                let mut more = [0; BLOCK];
                self.fill(&mut more, "a table of a sparse file")?;
                table.add(&more).map_err(damaged)?;
            }
            (table.real_size, table.extents)
        } else if let Some(real_size) = pax.sparse_version_1().map_err(damaged)? {
            (real_size, self.sparse_1_0(begin)?)
        } else if let Some((real_size, extents)) = pax.sparse_map().map_err(damaged)? {
            (real_size, extents)
        } else {
            return Ok(None);
        };
        self.bound_extents(begin, extents.len())?;
        sparse::check(&extents, real_size, self.data).map_err(damaged)?;
        *size = real_size;
        Ok(Some(extents))
    }

    fn bound_extents(&self, at: u64, wanted: usize) -> Result<(), ArchiveError> {
        if wanted <= self.bounds.extents {
            return Ok(());
        }
        Err(ArchiveError::TooLarge {
            at,
            what: "pieces of a sparse file",
            wanted: wanted as u64,
            allowed: self.bounds.extents as u64,
        })
    }

    /// The map stands before the data, as decimal lines in whole blocks.
    fn sparse_1_0(&mut self, begin: u64) -> Result<Vec<Extent>, ArchiveError> {
        let mut map = sparse::Lines::default();
        loop {
            let mut block = [0; BLOCK];
            let mut filled = 0;
            while filled < BLOCK {
                match self.read_data(&mut block[filled..])? {
                    0 => return Err(self.truncated("the map of a sparse file")),
                    read => filled += read,
                }
            }
            let done = map.add(&block);
            let done = done.map_err(|why| ArchiveError::Header { at: begin, why })?;
            self.bound_extents(begin, map.wanted())?;
            if done {
                return Ok(map.extents);
            }
        }
    }

    /// Whether the buffer was filled; false when there was nothing at all.
    fn fill_or_end(&mut self, buffer: &mut [u8], within: &str) -> Result<bool, ArchiveError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read_some(&mut buffer[filled..])? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(self.truncated(within)),
                read => filled += read,
            }
        }
        Ok(true)
    }

    fn fill(&mut self, buffer: &mut [u8], within: &str) -> Result<(), ArchiveError> {
        if buffer.is_empty() || self.fill_or_end(buffer, within)? {
            return Ok(());
        }
        Err(self.truncated(within))
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        loop {
            match self.from.read(buffer) {
                Ok(read) => {
                    self.at += read as u64;
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(ArchiveError::Read {
                        at: self.at,
                        source,
                    });
                }
            }
        }
    }

    fn truncated(&self, within: &str) -> ArchiveError {
        ArchiveError::Truncated {
            at: self.at,
            within: within.to_owned(),
        }
    }
}
