//! What a store of blobs refuses.

use std::io;
use std::path::{Path, PathBuf};

use crate::{Digest, Retry};

/// Why the store did not do what it was asked. What was there before is there.
#[derive(Debug, thiserror::Error)]
pub enum BlobsError {
    /// The file system refused.
    #[error("image store: cannot {operation} {}", .path.display())]
    Io {
        /// What was asked for.
        operation: &'static str,
        /// Of which file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Bytes behind the end of the blob.
    #[error("image store: {digest} has {size} bytes; refused to write up to byte {end}")]
    TooLong {
        /// The blob.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
        /// Where the bytes would have ended.
        end: u64,
    },
}

impl BlobsError {
    /// Whether the same call can succeed later: a disk that is full is mended by eviction.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Retry::Never,
                _ => Retry::Later,
            },
            Self::TooLong { .. } => Retry::Never,
        }
    }
}

/// Why a blob was not committed.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The bytes are not that blob; all that was written is gone.
    #[error("image store: the bytes written for {expected} are {got}")]
    Mismatch {
        /// What they should be.
        expected: Digest,
        /// What they are.
        got: Digest,
        /// How many of them came from a pull before: whoever sent the rest may be right.
        resumed: u64,
    },
    /// Bytes are missing; those that are there stay for the next one.
    #[error("image store: {missing} of {size} bytes of {digest} are missing")]
    Incomplete {
        /// The blob.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
        /// Bytes that are not there.
        missing: u64,
    },
    /// The file system refused; what was written stays for the next one.
    #[error(transparent)]
    Store(#[from] BlobsError),
}

/// For `map_err`: what was being done, to which path.
pub(super) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BlobsError {
    let path = path.to_owned();
    move |source| BlobsError::Io {
        operation,
        path,
        source,
    }
}
