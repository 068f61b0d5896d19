//! Import and export: images as files, for hosts without a registry.
//!
//! [`import`] reads an OCI image layout (a directory, or a tar of it, plain, gzip or zstd) or what
//! `docker save` writes; [`Export`] writes an OCI layout that containerd, docker and skopeo read
//! too. Nothing is extracted: an archive is read twice, first for its names and documents
//! (`survey`), from which all decisions are made, then for the blobs that they name.
//!
//! Promises: a blob becomes visible only verified; documents are recorded only when every blob of
//! every image is there, so that an import that fails leaves at most verified blobs behind.
//! Deliberately not here: unpacking, pinning and records of images; they belong to whoever calls.

mod contents;
mod docker;
mod error;
mod export;
mod fill;
mod found;
mod import;
mod oci;
mod survey;

pub use error::{ExportError, ImportError};
pub use export::Export;
pub use import::{Archive, Filled, import};
