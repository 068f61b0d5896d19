//! zstd: frames one after the other, those to be skipped among them (RFC 8878).

use std::io::{self, BufRead, Read};

use zstd::stream::read::Decoder;

use super::InflateError;

/// Largest window of a frame, as its binary logarithm: 32 MiB. What a window asks for, the
/// decompressor allocates. Image builders stay at or below it (buildkit's slowest level has 32 MiB,
/// `zstd -19` 8 MiB); `zstd --ultra -21`, `-22` and `--long=26` and above do not, and 128 MiB would
/// be all that a pull may have.
pub const WINDOW_LOG: u32 = 25;

pub(super) struct Zstd<R: BufRead> {
    decoder: Decoder<'static, Counted<R>>,
}

/// Counts the bytes that were taken.
struct Counted<R> {
    from: R,
    at: u64,
}

impl<R: BufRead> Zstd<R> {
    pub fn new(from: R) -> io::Result<Self> {
        let mut decoder = Decoder::with_buffer(Counted { from, at: 0 })?;
        decoder.window_log_max(WINDOW_LOG)?;
        Ok(Self { decoder })
    }

    /// As [`Read::read`].
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.decoder.read(buffer);
        let at = self.decoder.get_ref().at;
        read.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => InflateError::Truncated {
                format: "zstd",
                at,
                within: "a frame",
            }
            .into(),
            // What libzstd says has no code of the system.
            io::ErrorKind::Other if error.raw_os_error().is_none() => InflateError::Damaged {
                format: "zstd",
                at,
                why: why(&error),
            }
            .into(),
            _ => error,
        })
    }
}

fn why(error: &io::Error) -> String {
    let said = error.to_string();
    // ZSTD_error_frameParameter_windowTooLarge
    if said.contains("too much memory") {
        format!(
            "a frame wants a window of more than {} MiB",
            (1 << WINDOW_LOG) >> 20
        )
    } else {
        said
    }
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.from.fill_buf()
    }

    fn consume(&mut self, taken: usize) {
        self.at += taken as u64;
        self.from.consume(taken);
    }
}

impl<R: BufRead> std::fmt::Debug for Zstd<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Zstd").finish_non_exhaustive()
    }
}
