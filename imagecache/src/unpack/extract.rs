//! From a verified blob to a tree that nobody sees yet.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd as _;
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::chains::Chains;
use super::turns::Turns;
use super::{Layer, Tree, UnpackError};
use crate::archive::{Bounds, Reader};
use crate::blobs::Blob;
use crate::inflate::{self, Hashing};
use crate::layer::{Applied, Limits, Marks, apply};
use crate::waiting::Cancel;

/// Bytes that a layer may have beside its files: headers, padding, zeros behind the end.
const BESIDE: u64 = 1 << 30;

/// Of a layer whose blob has at most so many bytes, all files are written by the thread that reads
/// it: threads of its own would take longer to start, and other layers take the other cores.
const SMALL: u64 = 1 << 20;

/// Extracts layers: so many at a time for all pulls of the process.
#[derive(Debug, Clone)]
pub struct Extraction {
    pub(super) places: Arc<Semaphore>,
    pub(super) chains: Chains,
    pub(super) turns: Turns,
    writers: usize,
    limits: Limits,
}

impl Extraction {
    /// `at_a_time` layers, each with so many threads beside its own that write files.
    pub fn new(at_a_time: usize, writers: usize, limits: Limits) -> Self {
        Self {
            places: Arc::new(Semaphore::new(at_a_time.max(1))),
            chains: Chains::default(),
            turns: Turns::default(),
            writers,
            limits,
        }
    }

    /// As many as there are cores, four at most: each takes up to 20 MiB of memory.
    pub fn for_this_machine() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self::new(cores.clamp(2, 4), cores.clamp(1, 4), Limits::default())
    }

    /// Extracts one layer and compares its diff id. Blocks; ends soon when nobody waits any more.
    pub(super) fn run(
        &self,
        layer: &Layer,
        blob: Blob,
        tree: &Tree,
        turn: Turn,
        cancel: &Cancel,
    ) -> Result<Applied, UnpackError> {
        let read = |source| UnpackError::Read {
            layer: layer.blob.digest.clone(),
            source,
        };
        let extract = |source| UnpackError::Extract {
            layer: layer.blob.digest.clone(),
            source,
        };
        let root = File::open(tree.path()).map_err(UnpackError::io("open", tree.path()))?;
        let marks = match layer.parent {
            None => Marks::Remove,
            Some(_) => Marks::Overlay,
        };
        let writers = match blob.size {
            ..=SMALL => 0,
            _ => self.writers,
        };
        let inflated = inflate::open(blob.file).map_err(read)?;
        let bounded = Bounded {
            from: Hashing::new(inflated).map_err(read)?,
            cancel,
            left: self.limits.bytes.saturating_add(BESIDE),
            behind: match turn {
                Turn::OfPull => None,
                Turn::BehindPulls => Some(self.turns.clone()),
            },
        };
        let mut archive = Reader::new(bounded, Bounds::default());
        let applied = apply(&mut archive, root.as_fd(), marks, &self.limits, writers);
        let applied = applied.map_err(extract)?;
        let bounded = archive.drain().map_err(|error| extract(error.into()))?;
        let got = bounded.from.finish().map_err(read)?;
        if got != layer.diff_id {
            return Err(UnpackError::DiffId {
                layer: layer.blob.digest.clone(),
                expected: layer.diff_id.clone(),
                got: got.to_string(),
            });
        }
        Ok(applied)
    }
}

/// Who waits for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Somebody waits for the image.
    OfPull,
    /// It rests while layers of pulls are extracted.
    BehindPulls,
}

/// Ends what inflates without end, and what nobody waits for. The archive is read through it, each
/// header by itself.
struct Bounded<'c, R> {
    from: R,
    cancel: &'c Cancel,
    left: u64,
    /// Those that go before each read.
    behind: Option<Turns>,
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(turns) = &self.behind {
            turns.wait();
        }
        self.cancel.check().map_err(io::Error::other)?;
        let read = self.from.read(buffer)?;
        self.left = self
            .left
            .checked_sub(read as u64)
            .ok_or_else(|| io::Error::other("it inflates to more bytes than a layer may have"))?;
        Ok(read)
    }
}
