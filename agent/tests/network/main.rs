//! Slots on the real kernel. Needs root. Each test has a network namespace of its own as "the host",
//! entered by the test's first thread; nothing happens in the machine's.

#![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

mod bridges;
mod filter;
mod host;
mod slots;
