//! The API and the command line in front of an in-memory host.

mod cli;
mod server;
mod twin;
