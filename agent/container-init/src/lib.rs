//! container-init: PID 1 of nodeagent's containers, and the one definition of what it speaks.
//!
//! Owns the wire formats that the agent and PID 1 share (frames, plan, exit ring, paths) and the
//! pure supervisor. Everything here is `no_std` and allocates nothing, so that the static binary
//! and the agent compile the same code. Promises: bytes from outside are judged, never trusted,
//! and no input makes it panic. Deliberately does no I/O: system calls live in the binary.
#![no_std]
#[cfg(test)]
extern crate std;

pub mod command_line;
pub mod decimal;
pub mod exits;
pub mod link;
pub mod log;
pub mod paths;
pub mod plan;
pub mod procfs;
pub mod protocol;
pub mod supervisor;
mod wire;

pub use wire::{Malformed, TooLarge};

/// What the program calls itself when it is used wrongly, name and version. `nodeagent check` looks
/// for it in the file.
pub const MARK: &str = concat!("nodeagent container-init ", env!("CARGO_PKG_VERSION"));
