//! Where blobs go: the interface of a content store.
//!
//! Small on purpose: two implementations (memory here, containerd in the agent) pass the one suite
//! in [`crate::conformance`].

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{Descriptor, Digest, Retry};

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store did not answer, or not in time.
    #[error("content store did not answer: {operation} {object}")]
    Unavailable {
        /// What was asked for.
        operation: &'static str,
        /// Of what.
        object: String,
        /// Why it did not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store answered with an error.
    #[error("content store failed: {operation} {object}")]
    Failed {
        /// What was asked for.
        operation: &'static str,
        /// Of what.
        object: String,
        /// What it said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What was written is not what was announced; nothing was committed.
    #[error("content store refused to commit {digest}: the bytes written are not that content")]
    Mismatch {
        /// Announced digest.
        digest: Digest,
    },
    /// There is no such blob.
    #[error("content store has no {digest}")]
    NotFound {
        /// The digest asked for.
        digest: Digest,
    },
    /// The blob is larger than the reader allows.
    #[error("{digest} has {size} bytes, more than the {limit} allowed for reading it at once")]
    TooLarge {
        /// The blob.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
        /// The reader's limit in bytes.
        limit: u64,
    },
}

impl StoreError {
    /// Whether the same call can succeed later.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Unavailable { .. } | Self::Mismatch { .. } => Retry::Later,
            Self::Failed { .. } | Self::NotFound { .. } | Self::TooLarge { .. } => Retry::Never,
        }
    }
}

/// Result of [`ContentStore::begin`].
#[derive(Debug)]
pub enum Begun<W> {
    /// The store has the blob already, and keeps it for this pull.
    Present,
    /// Write it here.
    Writer(W),
}

/// A store of verified blobs, named by digest.
pub trait ContentStore: Send + Sync {
    /// Writes one blob.
    type Writer: BlobWriter;

    /// Whether the blob is there. Says nothing about a moment later; [`Self::begin`] does.
    fn has(&self, digest: &Digest) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Begins to write a blob, or says that it is there. Two writers of one blob may run side by
    /// side; both commits succeed and there is one blob.
    fn begin(
        &self,
        blob: &Descriptor,
    ) -> impl Future<Output = Result<Begun<Self::Writer>, StoreError>> + Send;

    /// Reads a whole blob of at most `limit` bytes.
    fn read(
        &self,
        digest: &Digest,
        limit: u64,
    ) -> impl Future<Output = Result<Bytes, StoreError>> + Send;

    /// Sets labels of a blob; labels that are not named stay as they are.
    fn label(
        &self,
        digest: &Digest,
        labels: BTreeMap<String, String>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// All labels of a blob.
    fn labels(
        &self,
        digest: &Digest,
    ) -> impl Future<Output = Result<BTreeMap<String, String>, StoreError>> + Send;
}

/// Writes one blob. Nobody sees it before [`Self::commit`]; dropped without commit, it never was.
pub trait BlobWriter: Send {
    /// Appends bytes.
    fn write(&mut self, bytes: Bytes) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Makes the blob visible. The store checks size and digest itself and answers
    /// [`StoreError::Mismatch`] when they differ from what was announced.
    fn commit(self) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Gives up and frees what was written, now rather than at some later collection.
    fn abort(self) -> impl Future<Output = ()> + Send;
}
