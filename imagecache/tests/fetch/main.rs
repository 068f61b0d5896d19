//! Fetching from registries that are right, slow, and wrong: real connections on loopback, a server
//! that does what the test says.

#![allow(clippy::unwrap_used, reason = "a panic in a test is the report")]

mod authorisation;
mod blobs;
mod server;
mod speed;
mod tls;
mod ways;
