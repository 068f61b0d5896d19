//! What nodeagent says to systemd, and what it is given by it.
//!
//! Owns the notification protocol of sd_notify(3), spoken directly to the socket: no libsystemd, no
//! `systemd-notify`; and the sockets of sd_listen_fds(3), from a socket unit or from the FD store; and what is asked for
//! over D-Bus: a transient scope, a delay of the shutdown.
//! Promises that outside of systemd everything here is a no-op.

mod bus;
mod logind;
mod notify;
mod passed;
mod scope;
mod service;
mod sys;

pub use bus::BusError;
pub use logind::Inhibitor;
pub use notify::{Notifier, NotifyError, State};
pub use passed::{Passed, PassedError};
pub use scope::{Scope, ScopeError};
pub use service::{Service, ServiceError};
