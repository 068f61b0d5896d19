//! What processes in instances have written: read from the end, and followed.
//!
//! The files lie where containers can write ([`crate::gate::open_untrusted`]). Promises: memory is
//! a few pieces per reader, however large the log and however slow the reader; a follower goes on
//! across rotation and truncation, costs nothing while nothing is written, and ends with the
//! instance or its reader. Deliberately without an idea of lines beyond counting them.

mod follow;
mod tail;

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::gate::{UntrustedError, open_untrusted};
use follow::Reader;

/// Pieces that wait for a reader.
const QUEUE: usize = 4;

/// How much of a log is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Lines from the end; everything when absent.
    pub tail: Option<u64>,
    /// Nothing when the file was written to last longer ago than this.
    pub since: Option<Duration>,
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

/// Name of the process whose log is there from the start, empty until it writes.
pub const APP: &str = "app";

/// Begins to read `<process>.log` in a container's log directory. The pieces end with the log, with
/// an error, or when the receiver is dropped. May block on the disk.
///
/// # Errors
/// Why the file cannot be opened; a file of [`APP`] that is not there yet is an empty one. Reading
/// errors come as the last piece.
pub fn read(
    directory: &Path,
    process: &str,
    extent: Extent,
) -> Result<mpsc::Receiver<io::Result<Bytes>>, UntrustedError> {
    let name = format!("{process}.log");
    let (file, at, end) = match open_untrusted(directory, &name) {
        Err(UntrustedError::Open(error))
            if process == APP && error.kind() == io::ErrorKind::NotFound && directory.is_dir() =>
        {
            (None, 0, 0)
        }
        opened => {
            let file = opened?;
            let (at, end) = range(&file, extent).map_err(UntrustedError::Open)?;
            (Some(file), at, end)
        }
    };
    let (pieces, receiver) = mpsc::channel(QUEUE);
    let reader = Reader::new(directory, name, file, at);
    // Owned by the receiver: it ends when that is dropped.
    drop(tokio::spawn(async move {
        let done = match extent.follow {
            Follow::Yes => reader.follow(&pieces).await,
            Follow::No => reader.read_to(end, &pieces).await,
        };
        if let Err(error) = done {
            pieces.send(Err(error)).await.ok();
        }
    }));
    Ok(receiver)
}

/// Where reading begins, and where the file ends now.
fn range(file: &File, extent: Extent) -> io::Result<(u64, u64)> {
    let metadata = file.metadata()?;
    let end = metadata.len();
    let old = extent.since.is_some_and(|since| {
        let age = metadata
            .modified()
            .ok()
            .map(|at| SystemTime::now().duration_since(at));
        age.is_some_and(|age| age.is_ok_and(|age| age > since))
    });
    let at = match extent.tail {
        _ if old => end,
        Some(lines) => tail::start(file, end, lines)?,
        None => 0,
    };
    Ok((at, end))
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
