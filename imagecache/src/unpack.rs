//! How layers become file systems: the interface of an unpacker.

use crate::{Descriptor, Digest, Retry};

/// Why a layer was not unpacked.
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
}

impl UnpackError {
    /// Whether the same call can succeed later.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Unavailable { .. } => Retry::Later,
            Self::Failed { .. } | Self::DiffId { .. } => Retry::Never,
        }
    }
}

/// A layer to unpack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The blob, committed in the content store.
    pub blob: Descriptor,
    /// Digest of the uncompressed blob.
    pub diff_id: Digest,
    /// Name of the result.
    pub chain_id: Digest,
    /// Name of the layer below; absent for the lowest.
    pub parent: Option<Digest>,
}

/// Unpacks layers. Everything is idempotent by chain id.
pub trait Unpacker: Send + Sync {
    /// Whether the chain is unpacked; if so, it stays at least until the end of this pull.
    fn unpacked(&self, chain_id: &Digest)
    -> impl Future<Output = Result<bool, UnpackError>> + Send;

    /// Unpacks one layer on top of its parent, which is unpacked. A result that is there already
    /// is success. Checks the diff id; what was begun is removed on failure.
    fn apply(&self, layer: &Layer) -> impl Future<Output = Result<(), UnpackError>> + Send;
}
