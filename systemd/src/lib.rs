//! What nodeagent says to systemd.
//!
//! Owns the notification protocol of sd_notify(3), spoken directly to the socket: no libsystemd, no
//! `systemd-notify`. Promises that outside of systemd everything here is a no-op. Deliberately
//! absent for now: D-Bus (units, scopes, jobs) and socket activation.

mod notify;

pub use notify::{Notifier, NotifyError, State};
