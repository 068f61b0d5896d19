//! An app: what a manifest describes, after validation.
//!
//! Only [`App`] leaves this module; what YAML looks like stays in `manifest`.

mod types;

pub use types::*;
