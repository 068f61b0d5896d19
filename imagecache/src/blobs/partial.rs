//! A blob on its way: written in pieces by several at a time, hashed as far as it reaches.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use super::error::{BlobsError, CommitError, io as failed};
use super::pieces::Ranges;
use super::unsettled::Unsettled;
use super::{Blob, CHUNK, remove};
use crate::{Descriptor, Digest, Hasher};

/// Bytes that one byte of the map stands for: what is lost of each connection by a kill.
const PIECE: u64 = 1 << 20;

/// Some of a blob. Whoever has it is the only one, in all processes. Dropped, what was written
/// stays for the next one.
#[derive(Debug)]
pub struct Partial {
    file: File,
    path: PathBuf,
    /// Which pieces are there; none of a blob of one piece, of which all is lost by a kill.
    map: Option<File>,
    target: PathBuf,
    digest: Digest,
    size: u64,
    resumed: u64,
    unsettled: Unsettled,
    ranges: Mutex<State>,
    follower: Mutex<Follower>,
}

#[derive(Debug, Default)]
struct State {
    present: Ranges,
    /// Being written at this moment. Bytes that are there are never written again: they may have
    /// been hashed.
    writing: Ranges,
}

/// Hashes from the front, reading what was written.
#[derive(Debug, Default)]
struct Follower {
    hasher: Hasher,
    at: u64,
}

impl Partial {
    pub(super) fn open(
        file: File,
        path: PathBuf,
        target: PathBuf,
        blob: &Descriptor,
        unsettled: Unsettled,
    ) -> Result<Self, BlobsError> {
        let map_path = map_of(&path);
        let map = match blob.size {
            ..=PIECE => None,
            _ => Some(open_map(&map_path)?),
        };
        let mut present = Ranges::default();
        let length = file.metadata().map_err(failed("look at", &path))?.len();
        if length == blob.size {
            if let Some(map) = &map {
                let pieces = usize::try_from(blob.size.div_ceil(PIECE)).unwrap_or(0);
                let mut there = Vec::new();
                io::Read::read_to_end(&mut io::Read::take(map, pieces as u64), &mut there)
                    .map_err(failed("read", &map_path))?;
                for (piece, there) in there.iter().enumerate() {
                    if *there == 1 {
                        let start = piece as u64 * PIECE;
                        present.add(start..(start + PIECE).min(blob.size));
                    }
                }
            }
        } else {
            // New, or of somebody who was wrong about the size.
            if let Some(map) = &map {
                map.set_len(0).map_err(failed("truncate", &map_path))?;
            }
            file.set_len(0).map_err(failed("truncate", &path))?;
            file.set_len(blob.size).map_err(failed("extend", &path))?;
        }
        Ok(Self {
            file,
            path,
            map,
            target,
            digest: blob.digest.clone(),
            size: blob.size,
            resumed: blob.size - missing(&present, blob.size),
            unsettled,
            ranges: Mutex::new(State {
                present,
                writing: Ranges::default(),
            }),
            follower: Mutex::default(),
        })
    }

    /// Size of the whole blob in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that were there when this was begun: a pull that did not end wrote them.
    pub fn resumed(&self) -> u64 {
        self.resumed
    }

    /// Ranges that are not there, in order.
    pub fn missing(&self) -> Vec<Range<u64>> {
        self.ranges().present.gaps(0..self.size)
    }

    /// Bytes from the front that are there.
    pub fn contiguous(&self) -> u64 {
        self.ranges().present.contiguous()
    }

    /// Writes some bytes, and hashes what is there from the front; blocks.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), BlobsError> {
        self.put(offset, bytes)?;
        self.hash_on()
    }

    /// Writes some bytes. Those that are there already, or are being written by another, are left
    /// as they are. A kill after this returns loses less than 1 MiB at the end of what
    /// was written in one go. Blocks.
    pub(crate) fn put(&self, offset: u64, bytes: &[u8]) -> Result<(), BlobsError> {
        let end = offset.saturating_add(bytes.len() as u64);
        if end > self.size {
            return Err(BlobsError::TooLong {
                digest: self.digest.clone(),
                size: self.size,
                end,
            });
        }
        for range in self.claim(offset..end) {
            let slice = &bytes[at(offset, range.start)..at(offset, range.end)];
            let written = self.file.write_all_at(slice, range.start);
            let mut ranges = self.ranges();
            ranges.writing.take(range.clone());
            written.map_err(failed("write", &self.path))?;
            ranges.present.add(range.clone());
            let whole = whole_pieces(&ranges.present, &range, self.size);
            drop(ranges);
            if let Some(map) = self.map.as_ref().filter(|_| !whole.is_empty()) {
                let ones = vec![1; usize::try_from(whole.end - whole.start).unwrap_or(0)];
                let path = map_of(&self.path);
                let marked = map.write_all_at(&ones, whole.start);
                marked.map_err(failed("write", &path))?;
            }
        }
        Ok(())
    }

    /// Hashes what is there from the front and was not hashed yet: takes its time; blocks.
    pub(crate) fn hash_on(&self) -> Result<(), BlobsError> {
        match self.follower.try_lock() {
            Ok(mut follower) => self.follow(&mut follower),
            // Somebody is at it, and takes this along or leaves it for the commit.
            Err(TryLockError::WouldBlock) => Ok(()),
            Err(TryLockError::Poisoned(poisoned)) => self.follow(&mut poisoned.into_inner()),
        }
    }

    /// What of `range` the caller is to write.
    fn claim(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut ranges = self.ranges();
        let missing = ranges.present.gaps(range);
        let free = missing.into_iter().flat_map(|gap| ranges.writing.gaps(gap));
        let free: Vec<Range<u64>> = free.collect();
        for range in &free {
            ranges.writing.add(range.clone());
        }
        free
    }

    fn follow(&self, follower: &mut Follower) -> Result<(), BlobsError> {
        let reach = self.contiguous();
        if reach <= follower.at {
            return Ok(());
        }
        let mut buffer = vec![0; CHUNK.min(at(follower.at, reach))];
        while follower.at < reach {
            let most = at(follower.at, reach).min(buffer.len());
            let read = self.file.read_exact_at(&mut buffer[..most], follower.at);
            read.map_err(failed("read", &self.path))?;
            follower.hasher.update(&buffer[..most]);
            follower.at += most as u64;
        }
        Ok(())
    }

    /// Makes the blob visible when all its bytes are there and are what they should be.
    pub fn commit(self) -> Result<Blob, CommitError> {
        let missing = missing(&self.ranges().present, self.size);
        if missing > 0 {
            return Err(CommitError::Incomplete {
                digest: self.digest,
                size: self.size,
                missing,
            });
        }
        let mut follower = self.follower.lock().unwrap_or_else(PoisonError::into_inner);
        self.follow(&mut follower)?;
        let got = std::mem::take(&mut *follower).hasher.finish();
        drop(follower);
        if got != self.digest {
            let (expected, resumed) = (self.digest.clone(), self.resumed);
            self.remove()?;
            return Err(CommitError::Mismatch {
                expected,
                got,
                resumed,
            });
        }
        self.unsettled.mark(self.digest.hex())?;
        fs::rename(&self.path, &self.target).map_err(failed("rename", &self.path))?;
        remove(&map_of(&self.path))?;
        // Whoever reads it has no descriptor to write with.
        let file = File::open(&self.target).map_err(failed("open", &self.target))?;
        Ok(Blob {
            file,
            size: self.size,
            path: self.target,
        })
    }

    /// Removes what was written; whether there was something.
    pub fn remove(self) -> Result<bool, BlobsError> {
        // The map first: without it, nothing of the rest counts.
        remove(&map_of(&self.path))?;
        remove(&self.path)
    }

    fn ranges(&self) -> MutexGuard<'_, State> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn missing(present: &Ranges, size: u64) -> u64 {
    let gaps = present.gaps(0..size);
    gaps.iter().map(|gap| gap.end - gap.start).sum()
}

fn open_map(path: &Path) -> Result<File, BlobsError> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    options.open(path).map_err(failed("create", path))
}

fn map_of(path: &Path) -> PathBuf {
    path.with_extension("map")
}

/// Distance in memory of two offsets.
fn at(from: u64, to: u64) -> usize {
    usize::try_from(to - from).unwrap_or(usize::MAX)
}

/// Pieces that `range` touches and that are there from end to end.
fn whole_pieces(present: &Ranges, range: &Range<u64>, size: u64) -> Range<u64> {
    let touched = range.start / PIECE..range.end.div_ceil(PIECE);
    let is_whole = |piece: &u64| {
        let start = piece * PIECE;
        present.end_of(start) >= Some((start + PIECE).min(size))
    };
    // `range` is there in one, so those between the first and the last piece are.
    let first = touched.clone().find(&is_whole).unwrap_or(touched.end);
    let last = touched.rev().find(&is_whole).map_or(first, |last| last + 1);
    first..last
}
