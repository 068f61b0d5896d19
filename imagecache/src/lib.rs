//! Stable images on a host: reference, fetch, verify, unpack.
//!
//! [`pull`] brings an image from a registry into a [`ContentStore`] and has its layers unpacked by
//! an [`Unpacker`]; what those are (containerd, memory) is the caller's. Promises: a blob is
//! committed only after its size and sha256 were found right, nothing is unpacked before its blob
//! was committed, every wait has a deadline, and an error says in its type whether trying again
//! can help. Deliberately not here: retries, single flight, pinning and records of images; they
//! belong to whoever calls.

pub mod archive;
pub mod blobs;
pub mod conformance;
mod digest;
mod error;
pub mod fetch;
pub mod inflate;
pub mod layer;
mod manifest;
pub mod memory;
pub mod peers;
pub mod policy;
mod pull;
mod reference;
pub mod registry;
mod store;
mod sys;
pub mod transfer;
mod unpack;

pub use digest::{Descriptor, Digest, Hasher, InvalidDigest, chain_ids};
pub use error::{PullError, Retry};
pub use pull::{Image, PullOptions, local, pull, resolve};
pub use reference::{InvalidReference, Reference};
pub use store::{Begun, BlobWriter, ContentStore, StoreError};
pub use unpack::{Layer, UnpackError, Unpacker};
