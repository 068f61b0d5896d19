//! Why images could not be imported or exported.

use std::io;
use std::path::PathBuf;

use crate::archive::ArchiveError;
use crate::blobs::{BlobsError, CommitError};
use crate::waiting::GivenUp;
use crate::{Digest, PullError, Retry, StoreError};

/// Why nothing was imported. Names of files are as they stand in the archive.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file system refused.
    #[error("cannot {operation} {}", .path.display())]
    Io {
        /// What was asked for.
        operation: &'static str,
        /// Of which file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Neither a directory nor a file.
    #[error("{} is {what}: a directory, or a tar archive, plain or compressed, is allowed", .path.display())]
    NotReadable {
        /// What was to be imported.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Neither a layout nor a docker-archive.
    #[error(
        "this is no image: an OCI image layout (oci-layout, index.json) or a docker-archive (manifest.json) is allowed"
    )]
    NotAnImage,
    /// The archive cannot be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The bytes of a file could not be had.
    #[error("{name} could not be read")]
    Read {
        /// The file.
        name: String,
        /// What the system, or the archive, said.
        #[source]
        source: io::Error,
    },
    /// A name, or what has it, has no place in an archive of images.
    #[error("the entry {name:?} is refused: {why}")]
    Entry {
        /// The name, shortened when very long.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// It wants more memory or time than it may have.
    #[error("it has more than {allowed} {what}")]
    TooLarge {
        /// What there is too much of, in the plural.
        what: &'static str,
        /// How many it may have.
        allowed: u64,
    },
    /// A file that is named is not there.
    #[error("{name} is missing, which {wanted_by} names")]
    Missing {
        /// The file.
        name: String,
        /// What names it.
        wanted_by: String,
    },
    /// A file is not what its name, or a document, says.
    #[error("{name} is damaged: {expected} is expected, it is {got}")]
    Damaged {
        /// The file.
        name: String,
        /// Digest or size expected.
        expected: String,
        /// Digest or size found.
        got: String,
    },
    /// A file of the layout itself cannot be understood.
    #[error("{name} is malformed: {why}")]
    Malformed {
        /// The file.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// An image has no full name, and none was given.
    #[error(
        "image {target} has no full name in it ({found}): a name has to be given, for example registry.example/web:1"
    )]
    Unnamed {
        /// Digest of the image.
        target: Digest,
        /// What it has instead.
        found: String,
    },
    /// One name was given for several images.
    #[error("the name {name} was given, and there are {count} images in it: one is allowed")]
    SeveralImages {
        /// The name.
        name: String,
        /// How many images there are.
        count: usize,
    },
    /// A document of an image is not what we can use.
    #[error(transparent)]
    Image(#[from] PullError),
    /// Somebody else writes the blob and does not come to an end.
    #[error("another pull or import writes {digest}, and was not done after {waited} s")]
    Busy {
        /// The blob.
        digest: Digest,
        /// How long was waited.
        waited: u64,
    },
    /// Our store failed.
    #[error(transparent)]
    Blobs(#[from] BlobsError),
    /// Our store did not take a blob.
    #[error(transparent)]
    Commit(CommitError),
    /// The caller does not wait any more.
    #[error("the import was given up")]
    Cancelled,
}

impl From<GivenUp> for ImportError {
    fn from(_: GivenUp) -> Self {
        Self::Cancelled
    }
}

impl ImportError {
    /// Whether the same import can succeed later, with nothing changed by the caller.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Busy { .. } | Self::Cancelled => Retry::Later,
            Self::Image(error) => error.retry(),
            Self::Blobs(error) | Self::Commit(CommitError::Store(error)) => error.retry(),
            Self::Commit(_) => Retry::Later,
            Self::Io { .. }
            | Self::NotReadable { .. }
            | Self::NotAnImage
            | Self::Archive(_)
            | Self::Read { .. }
            | Self::Entry { .. }
            | Self::TooLarge { .. }
            | Self::Missing { .. }
            | Self::Damaged { .. }
            | Self::Malformed { .. }
            | Self::Unnamed { .. }
            | Self::SeveralImages { .. } => Retry::Never,
        }
    }
}

/// Why images were not exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Layers are not in our store any more, because they were dropped after the unpack.
    #[error(
        "{reference} cannot be exported: its blobs {} are not kept on this host; pull it again with blobs kept", list(.missing)
    )]
    NotKept {
        /// The image.
        reference: String,
        /// Its blobs that are not there.
        missing: Vec<Digest>,
    },
    /// A blob on the disk is not what its name says. What was written is of no use.
    #[error("blob {expected} is damaged, its bytes are {got}: `nodeagent image verify` mends it")]
    Damaged {
        /// The blob.
        expected: Digest,
        /// What its bytes are.
        got: Digest,
    },
    /// A blob could not be read.
    #[error("blob {digest} could not be read")]
    Read {
        /// The blob.
        digest: Digest,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// What takes the archive refused.
    #[error("the archive could not be written")]
    Write(#[source] io::Error),
    /// Our store failed.
    #[error(transparent)]
    Blobs(#[from] BlobsError),
    /// The content store failed, or lacks a document of the image.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn list(digests: &[Digest]) -> String {
    let names: Vec<&str> = digests.iter().map(Digest::as_str).collect();
    names.join(", ")
}
