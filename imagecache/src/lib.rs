//! Stable images on a host: reference, fetch, verify, unpack, share, evict.
//!
//! [`Cache::pull`] brings an image from a registry: its documents into a [`ContentStore`], its
//! layers into our own store of blobs, and unpacked into the snapshots of an [`Unpacker`]; what
//! those are (containerd, memory) is the caller's. Promises: a blob is seen only after its size and
//! sha256 were found right, nothing is unpacked before its blob was verified, every wait has a
//! deadline, memory is bounded, and an error says in its type whether trying again can help.
//! Deliberately not here: names of images that are kept, and when they are needed; they belong to
//! whoever calls.

pub mod archive;
pub mod blobs;
mod cache;
pub mod conformance;
mod digest;
mod error;
pub mod evict;
pub mod fetch;
pub mod inflate;
pub mod layer;
mod manifest;
pub mod memory;
pub mod peers;
pub mod policy;
pub mod progress;
mod pull;
pub mod receipt;
pub mod records;
mod reference;
pub mod registry;
mod removal;
mod store;
mod sys;
pub mod transfer;
mod unpack;
mod waiting;

pub use cache::{Cache, CacheError, Urged};
pub use digest::{Descriptor, Digest, Hasher, InvalidDigest, chain_ids};
pub use error::{PullError, Retry};
pub use pull::{Afterwards, Image, PullOptions, Pulled, local};
pub use receipt::{LayerReceipt, Receipt};
pub use records::{Record, RecordedLayer, Records, RecordsError};
pub use reference::{InvalidReference, Reference};
pub use store::{Begun, BlobWriter, ContentStore, StoreError};
pub use unpack::{
    Extraction, Layer, Prepared, Recheck, Snapshot, Tree, UnpackError, Unpacker, Workplace,
    chain_mark, marked_chain,
};
