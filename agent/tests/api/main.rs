//! The API and the command line in front of an in-memory host.

mod server;
mod twin;
