//! Documents that people write: YAML manifests and TOML configuration, read to the last mistake.
//!
//! Text becomes a `Node` tree in which every value knows its file and line; `read` turns the
//! tree into a serde shape and collects **every** unknown, doubled or mistyped field on the way,
//! where serde alone would stop at the first. Each mistake is a [`Finding`]: the field, the value
//! and what is allowed.
//!
//! What the values mean is not known here; [`crate::app`] and [`crate::config`] validate that.

mod finding;
#[cfg(test)]
pub(crate) mod names;
mod node;
mod read;
mod schema;
mod suggest;
mod toml;
mod yaml;

pub use finding::Finding;
pub(crate) use finding::Findings;
pub(crate) use node::{Entry, Node, Place, Value, join_key, shown};
pub(crate) use read::read;
pub(crate) use schema::schema;
pub(crate) use toml::from_toml;
pub(crate) use yaml::from_yaml;

/// Largest document that is read, in bytes. A manifest or drop-in is a few kilobytes.
pub const MAX_BYTES: usize = 1024 * 1024;
/// Deepest nesting that is read; our shapes need less than ten.
const MAX_DEPTH: usize = 48;
