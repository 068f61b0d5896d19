//! Host configuration, in three shapes: fragment -> merged -> [`Settings`].
//!
//! A fragment is one TOML file as written (`fragment`); [`load()`] finds the files, merges them
//! key by key and remembers which file each key came from; `assemble` applies defaults and rules.
//! Only [`Settings`] leaves, and only when there is no finding. [`show`] prints the result with the
//! origin of every key.
//!
//! Nothing is created or changed here; that a path exists is for its user to find out.

mod assemble;
mod check;
mod discovery;
mod duration;
mod fragment;
mod images;
mod load;
mod peers;
mod settings;
mod show;

pub use load::{LoadError, Loaded, STANDARD_DIRECTORIES, Source, defaults, load};
pub use settings::*;
pub use show::show;

/// JSON Schema of one configuration file.
pub fn schema() -> serde_json::Value {
    crate::document::schema::<fragment::Fragment>("nodeagent configuration")
}
