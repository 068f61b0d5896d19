//! The API and the command line in front of an in-memory host.

#![allow(
    clippy::unwrap_used,
    reason = "a panic in a test's own functions is the report too"
)]

mod cli;
mod events;
mod exec;
mod generated;
mod openapi;
mod roles;
mod schema;
mod server;
mod tls;
mod twin;
mod watch;
