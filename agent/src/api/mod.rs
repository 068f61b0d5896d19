//! The agent's API: HTTP/1.1 and JSON on a unix socket, and by TLS where it is configured.
//!
//! Owns the documents ([`v1`]), the server, the client, and the seam ([`Host`]) behind which the
//! daemon's core stands. Promises that a request is read whole, bounded and validated before the
//! core hears of it, and that every refusal is a [`v1::Problem`]. Deliberately knows nothing of
//! containers, pools or the journal.

pub mod v1;

mod client;
mod exec;
mod feed;
mod host;
mod openapi;
mod role;
mod server;
mod task_id;

pub use client::{
    Address, Client, ClientError, Credentials, Events, ExecReader, ExecWriter, LogStream, Remote,
};
pub use exec::{ExecInput, ExecOutput, LARGEST_PIECE};
pub use feed::{Feed, Subscription};
pub use host::{Deletion, ExecSession, Host, Log, LogRequest, Received, TaskFilter};
pub use openapi::openapi;
pub use role::{Peer, Role, Roles};
pub use server::{BindError, Limits, Method, Operation, ROUTES, Route, Server, TlsError};
pub use task_id::{generate_task_id, is_task_id};
