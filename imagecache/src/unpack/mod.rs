//! How layers become file systems.
//!
//! Each layer is extracted into a directory of its own, so that all layers of an image are
//! extracted at a time; then they are placed one on the other, in order, as snapshots of an
//! [`Unpacker`]. What cannot take trees applies layers itself, one after the other. Promises: what
//! is extracted was verified before, the diff id is compared before a tree is placed, a chain is
//! extracted once however many ask for it, and nothing half-done is left under a name.

mod chains;
mod error;
mod extract;
mod image;
mod implicit;
mod recheck;
mod turns;
mod workplace;

pub use error::UnpackError;
pub use extract::Extraction;
pub(crate) use image::{Parts, Unpacked, layers};
pub use image::{chain_mark, marked_chain};
pub use recheck::Recheck;
pub use workplace::{Tree, Workplace};

use std::path::PathBuf;

use crate::blobs::Blob;
use crate::{Descriptor, Digest};

/// A layer to unpack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The blob.
    pub blob: Descriptor,
    /// Digest of the uncompressed blob.
    pub diff_id: Digest,
    /// Name of the result.
    pub chain_id: Digest,
    /// Name of the layer below; absent for the lowest.
    pub parent: Option<Digest>,
}

/// A snapshot that was begun: empty, on its parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// What the unpacker calls it.
    pub key: String,
    /// The empty directory that the layer's tree replaces.
    pub target: PathBuf,
    /// Trees of the layers below, the topmost first.
    pub lower: Vec<PathBuf>,
}

/// Result of [`Unpacker::prepare`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Snapshot {
    /// The chain is unpacked already.
    Present,
    /// Place the tree, then commit.
    Prepared(Prepared),
}

/// Keeps unpacked layers. Everything is idempotent by chain id.
pub trait Unpacker: Send + Sync {
    /// Whether the chain is unpacked; if so, it stays at least until the end of this pull.
    fn unpacked(&self, chain_id: &Digest)
    -> impl Future<Output = Result<bool, UnpackError>> + Send;

    /// Where trees are extracted: on the file system of the snapshots. [`None`] where trees cannot
    /// be placed, and [`Self::apply`] does it all.
    fn workplace(&self) -> Option<&Workplace>;

    /// Begins the snapshot of a layer on its parent, which is unpacked.
    fn prepare(&self, layer: &Layer) -> impl Future<Output = Result<Snapshot, UnpackError>> + Send;

    /// Gives a snapshot whose tree was placed its name. One that is there already is success, and
    /// what was prepared is removed.
    fn commit(
        &self,
        layer: &Layer,
        prepared: &Prepared,
    ) -> impl Future<Output = Result<(), UnpackError>> + Send;

    /// Removes what was prepared.
    fn discard(&self, prepared: &Prepared) -> impl Future<Output = ()> + Send;

    /// Unpacks one layer on top of its parent, which is unpacked, from its verified blob. A result
    /// that is there already is success. Checks the diff id; what was begun is removed on failure.
    fn apply(
        &self,
        layer: &Layer,
        blob: &Blob,
    ) -> impl Future<Output = Result<(), UnpackError>> + Send;
}
