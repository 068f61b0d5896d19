//! nodeagent: warm containers on this host, let go and registered in milliseconds.
//!
//! The daemon (`nodeagent run`), the CLI and the API share this library; `main.rs` only calls it.

pub mod alarm;
pub mod api;
pub mod app;
mod chain;
pub mod check;
pub mod cli;
pub mod config;
pub mod discovery;
pub mod document;
pub mod gate;
mod hex;
pub mod host;
pub mod images;
pub mod instance;
pub mod journal;
pub mod logs;
pub mod metrics;
pub mod network;
mod pem;
pub mod pool;
pub mod processes;
pub mod runtime;
mod sys;
pub mod task;
