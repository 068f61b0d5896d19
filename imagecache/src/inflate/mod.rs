//! From a layer's blob to the archive in it: gzip, zstd, or as it is.
//!
//! What a blob is, is told by its first bytes and not by its media type, as containerd does it for
//! all that may be compressed (`DetectCompression`): tools have always written wrong media types.
//! A plain OCI layer is the exception there, and not here: where it is compressed after all,
//! containerd fails. What comes out is right when its digest is the diff id of the image's config,
//! whatever it was compressed with; [`Hashing`] computes it on the way.
//!
//! Promises: a blob that ends too early, or has anything but zeros behind its end, is refused, as
//! are wrong checksums; any bytes are answered with bytes or an error; memory is bounded, whatever
//! the blob asks for ([`WINDOW_LOG`]). Not bounded here is how much comes out: what reads the
//! archive counts ([`crate::layer::Limits`]).

mod gzip;
mod hashing;
mod zstd;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};

pub use hashing::Hashing;
pub use zstd::WINDOW_LOG;

/// Bytes that are read from a blob at a time.
const INPUT: usize = 256 * 1024;

/// Bytes that tell a [`Format`].
const MAGIC: u64 = 4;

/// Why a blob cannot be decompressed; inside of an [`io::Error`] of the kind `InvalidData`. None of
/// it gets better by trying again with the same bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InflateError {
    /// It ends in the middle.
    #[error("the {format} stream ends after {at} bytes, in the middle of {within}")]
    Truncated {
        /// `gzip`, `zstd`.
        format: &'static str,
        /// Its bytes.
        at: u64,
        /// What was being read.
        within: &'static str,
    },
    /// It is not what it begins as.
    #[error("the {format} stream is damaged before byte {at}: {why}")]
    Damaged {
        /// `gzip`, `zstd`.
        format: &'static str,
        /// How far it had been read.
        at: u64,
        /// What is wrong with it.
        why: String,
    },
    /// Something stands behind its end.
    #[error(
        "the gzip stream ends at byte {at}, and what follows is neither another member nor zeros"
    )]
    Trailing {
        /// Where it ends.
        at: u64,
    },
}

impl From<InflateError> for io::Error {
    fn from(error: InflateError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// What a blob is compressed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Not at all, or with something that layers are not compressed with.
    Plain,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Format {
    /// What begins with `start`, of which 4 bytes are enough.
    pub fn of(start: &[u8]) -> Self {
        match start {
            // DEFLATE is the only method there is.
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A frame to be skipped, as pzstd and zstd:chunked write it (RFC 8878, section 3.1.2).
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }
}

/// The archive in a blob. Each read goes to the decompressor: read through [`Hashing`], or in large
/// pieces.
#[derive(Debug)]
pub struct Inflate<R: Read = File> {
    source: Source<Blob<R>>,
    /// What was found wrong: a decompressor that goes on behind it could make something up.
    flaw: Option<InflateError>,
}

/// A blob, with its first bytes put back.
type Blob<R> = Chain<Cursor<Vec<u8>>, BufReader<Steady<R>>>;

#[derive(Debug)]
enum Source<R: BufRead> {
    Plain(R),
    Gzip(gzip::Gzip<R>),
    Zstd(zstd::Zstd<R>),
}

/// Reads the layer that `blob` contains, from where the file stands, which should be its beginning.
pub fn open(blob: File) -> io::Result<Inflate> {
    Inflate::new(blob)
}

impl<R: Read> Inflate<R> {
    /// Reads the layer that comes from `blob`.
    pub fn new(blob: R) -> io::Result<Self> {
        let mut blob = BufReader::with_capacity(INPUT, Steady(blob));
        let mut start = Vec::new();
        blob.by_ref().take(MAGIC).read_to_end(&mut start)?;
        let format = Format::of(&start);
        let blob = Cursor::new(start).chain(blob);
        let source = match format {
            Format::Plain => Source::Plain(blob),
            Format::Gzip => Source::Gzip(gzip::Gzip::new(blob)),
            Format::Zstd => Source::Zstd(zstd::Zstd::new(blob)?),
        };
        Ok(Self { source, flaw: None })
    }

    /// What the blob is compressed with.
    pub fn format(&self) -> Format {
        match &self.source {
            Source::Plain(_) => Format::Plain,
            Source::Gzip(_) => Format::Gzip,
            Source::Zstd(_) => Format::Zstd,
        }
    }
}

/// Begins again what was interrupted: nothing above could go on in the middle of a header.
#[derive(Debug)]
struct Steady<R>(R);

impl<R: Read> Read for Steady<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }
}

impl<R: Read> Read for Inflate<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(flaw) = &self.flaw {
            return Err(flaw.clone().into());
        }
        let read = match &mut self.source {
            Source::Plain(blob) => blob.read(buffer),
            Source::Gzip(gzip) => gzip.read(buffer),
            Source::Zstd(zstd) => zstd.read(buffer),
        };
        if let Err(error) = &read {
            let flaw = error.get_ref().and_then(|inner| inner.downcast_ref());
            self.flaw = flaw.cloned();
        }
        read
    }
}
