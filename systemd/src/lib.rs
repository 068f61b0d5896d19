//! What nodeagent says to systemd, and what it is given by it.
//!
//! Owns the notification protocol of sd_notify(3), spoken directly to the socket: no libsystemd, no
//! `systemd-notify`; and the sockets of sd_listen_fds(3), from a socket unit or from the FD store.
//! Promises that outside of systemd everything here is a no-op.

mod notify;
mod passed;
mod service;
mod sys;

pub use notify::{Notifier, NotifyError, State};
pub use passed::{Passed, PassedError};
pub use service::{Service, ServiceError};
