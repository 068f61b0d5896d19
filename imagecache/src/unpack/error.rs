//! Why a layer was not unpacked.

use std::io;
use std::path::PathBuf;

use crate::blobs::BlobsError;
use crate::layer::LayerError;
use crate::{Digest, Retry};

/// Why a layer was not unpacked. Nothing of it stays under its name.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The unpacker did not answer, or not in time.
    #[error("unpacker did not answer: {operation} {object}")]
    Unavailable {
        /// What was asked for.
        operation: &'static str,
        /// Of what.
        object: String,
        /// Why it did not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The unpacker answered with an error.
    #[error("unpacker failed: {operation} {object}")]
    Failed {
        /// What was asked for.
        operation: &'static str,
        /// Of what.
        object: String,
        /// What it said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The layer's content is not what the image's config says.
    #[error("layer {layer} unpacks to {got}, the image's config says {expected}")]
    DiffId {
        /// The layer's blob.
        layer: Digest,
        /// Diff id of the config.
        expected: Digest,
        /// Digest of what came out.
        got: String,
    },
    /// The layer is no layer, or the file system refused it.
    #[error("layer {layer} cannot be extracted")]
    Extract {
        /// The layer's blob.
        layer: Digest,
        /// Why.
        #[source]
        source: LayerError,
    },
    /// The blob cannot be decompressed.
    #[error("layer {layer} cannot be read")]
    Read {
        /// The layer's blob.
        layer: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file system refused something beside the layer's own files.
    #[error("cannot {operation} {}", .path.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Our own store failed.
    #[error(transparent)]
    Blobs(#[from] BlobsError),
}

impl UnpackError {
    /// Whether the same call can succeed later: with another answer, or with room on the disk.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Unavailable { .. } | Self::Io { .. } => Retry::Later,
            Self::Extract {
                source: LayerError::Io { source, .. },
                ..
            } if lacks_room(source) => Retry::Later,
            Self::Blobs(error) => error.retry(),
            Self::Failed { .. }
            | Self::DiffId { .. }
            | Self::Extract { .. }
            | Self::Read { .. } => Retry::Never,
        }
    }

    /// Whether the blob may be the cause: what lies on a disk can rot after it was verified.
    pub(crate) fn may_be_damage(&self) -> bool {
        matches!(
            self,
            Self::DiffId { .. }
                | Self::Read { .. }
                | Self::Extract {
                    source: LayerError::Archive(_)
                        | LayerError::Refused { .. }
                        | LayerError::TooLarge { .. },
                    ..
                }
        )
    }

    pub(crate) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            operation,
            path,
            source,
        }
    }
}

fn lacks_room(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}
