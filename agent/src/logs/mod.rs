//! What processes in instances have written: read from the end, chosen, and followed.
//!
//! container-init writes records in the format of the Container Runtime Interface into
//! `<process>.log` and moves full files to `<process>.log.1` and on ([`container_init::log`]). They
//! lie where containers can write ([`crate::gate::open_untrusted`]). Promises: memory is a few
//! pieces per reader, however large the log and however slow the reader; at most two files are held
//! open, so that a slow reader keeps no more than that on the disk; a follower goes on across
//! rotation and truncation, costs nothing while nothing is written, and ends with the instance or
//! its reader. What was moved away before it was read is told as missing.

mod files;
mod follow;
mod records;
mod start;
mod tail;

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use chrono::{DateTime, Timelike, Utc};
use container_init::log::{Stream, TIME, rfc3339};
use tokio::sync::mpsc;

use crate::gate::UntrustedError;
use files::Files;
use follow::Reader;
use records::{Selection, Text};
use start::Start;

pub use files::MOST_FILES;

/// Pieces that wait for a reader.
const QUEUE: usize = 4;

/// How much of a log is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// Lines from the end, of those that are wanted otherwise; everything when absent.
    pub tail: Option<u64>,
    /// Only lines that were finished at this time or later. Text without times is wanted when its
    /// file was written to since.
    pub since: Option<SystemTime>,
    /// Only one of the two streams, and no text of which nobody knows it.
    pub stream: Option<Stream>,
    /// Whether lines begin with their times.
    pub timestamps: bool,
    /// Whether the reader goes on.
    pub follow: Follow,
}

/// Whether what is written later is read, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// Until the directory is gone or the reader leaves.
    Yes,
    /// What is there now.
    No,
}

/// A point in time as callers say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// So long ago.
    Ago(Duration),
    /// Then.
    At(SystemTime),
}

impl Since {
    /// A time in the spelling of RFC 3339, with any offset; none when it is none.
    pub fn from_rfc3339(text: &str) -> Option<Self> {
        let at = DateTime::parse_from_rfc3339(text).ok()?;
        Some(Self::At(at.into()))
    }

    /// The point, now being `now`.
    pub fn point(self, now: SystemTime) -> SystemTime {
        match self {
            Self::Ago(ago) => now.checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH),
            Self::At(at) => at,
        }
    }
}

/// Name of the process whose log is there from the start, empty until it writes.
pub const APP: &str = "app";

/// Begins to read the log of a process in a container's log directory, as text. The pieces end
/// with the log, with an error, or when the receiver is dropped. May block on the disk.
///
/// # Errors
/// Why the log cannot be opened; one of [`APP`] that is not there yet is an empty one. Reading
/// errors come as the last piece.
pub fn read(
    directory: &Path,
    process: &str,
    extent: &Extent,
) -> Result<mpsc::Receiver<io::Result<Bytes>>, UntrustedError> {
    let files = Files::new(directory, format!("{process}.log"));
    let selection = Selection {
        since: extent.since.map(spelled),
        stream: extent.stream,
        timestamps: extent.timestamps,
    };
    let start = match Start::find(&files, &selection, extent) {
        Err(UntrustedError::Open(error))
            if process == APP && error.kind() == io::ErrorKind::NotFound && directory.is_dir() =>
        {
            Start::empty()
        }
        found => found?,
    };
    let (pieces, receiver) = mpsc::channel(QUEUE);
    let text = Text::new(selection, start.skipped);
    let follow = extent.follow;
    // Owned by the receiver: it ends when that is dropped.
    drop(tokio::spawn(async move {
        let reader = Reader::new(files, text, start.file, start.at, pieces.clone());
        let done = match follow {
            Follow::Yes => reader.follow().await,
            Follow::No => reader.read_to(start.end).await,
        };
        if let Err(error) = done {
            pieces.send(Err(error)).await.ok();
        }
    }));
    Ok(receiver)
}

/// As records have it, so that both compare as bytes.
fn spelled(time: SystemTime) -> [u8; TIME] {
    let time = DateTime::<Utc>::from(time);
    rfc3339(
        u64::try_from(time.timestamp()).unwrap_or(0),
        time.nanosecond(),
    )
}

/// Names of the processes that have a log.
pub fn processes(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let name = |entry: io::Result<std::fs::DirEntry>| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        name.strip_suffix(".log").map(str::to_owned)
    };
    // A container may have made any number of files.
    let mut names: Vec<String> = entries.take(256).filter_map(name).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests;
