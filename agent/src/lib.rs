//! nodeagent: warm containers on this host, let go and registered in milliseconds.
//!
//! The daemon (`nodeagent run`), the CLI and the API share this library; `main.rs` only calls it.

pub mod app;
pub mod config;
pub mod instance;
pub mod runtime;
