//! When a process counts as ready.

use super::MAX_STRINGS;
use super::lists::Strings;
use super::process::ProcessKind;
use crate::wire::{Malformed, Reader, Writer};

/// When a process counts as ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness<'a> {
    /// Started is ready.
    None,
    /// `READY=1` on `NOTIFY_SOCKET` (sd_notify(3)).
    Notify {
        /// Milliseconds from the start until it counts as failed.
        timeout_ms: u32,
    },
    /// A newline on this descriptor (s6's notification-fd).
    NewlineFd {
        /// Number of the descriptor in the process, 3..=255.
        fd: u32,
        /// Milliseconds from the start until it counts as failed.
        timeout_ms: u32,
    },
    /// A connection to 127.0.0.1 at this port succeeds.
    TcpLoopback {
        /// TCP port, not 0.
        port: u16,
        /// Longest pause between two probes in milliseconds, not 0.
        period_ms: u32,
        /// Milliseconds for one probe, not 0.
        timeout_ms: u32,
        /// Milliseconds from the start until it counts as failed.
        deadline_ms: u32,
    },
    /// This command, run as the process's user in its directory, exits 0.
    Exec {
        /// At least one.
        argv: Strings<'a>,
        /// Milliseconds before the first probe.
        initial_delay_ms: u32,
        /// Longest pause between two probes in milliseconds, not 0.
        period_ms: u32,
        /// Milliseconds for one probe, not 0.
        timeout_ms: u32,
        /// Failures in a row, at full period, until it counts as failed; not 0.
        failure_threshold: u32,
    },
    /// nodeagent probes from outside; init reports only that it was started.
    External,
}

impl<'a> Readiness<'a> {
    pub(super) fn check(&self, kind: ProcessKind) -> Result<(), Malformed> {
        let possible = match *self {
            Readiness::None | Readiness::Notify { .. } => true,
            Readiness::External => kind == ProcessKind::App,
            Readiness::NewlineFd { fd, .. } => (3..=255).contains(&fd),
            Readiness::TcpLoopback {
                port,
                period_ms,
                timeout_ms,
                ..
            } => port != 0 && period_ms != 0 && timeout_ms != 0,
            Readiness::Exec {
                argv,
                period_ms,
                timeout_ms,
                failure_threshold,
                ..
            } => {
                argv.iter().next().is_some_and(|arg| !arg.is_empty())
                    && argv.len() <= MAX_STRINGS
                    && period_ms != 0
                    && timeout_ms != 0
                    && failure_threshold != 0
            }
        };
        match possible {
            true => Ok(()),
            false => Err(Malformed::Invalid("readiness")),
        }
    }

    pub(super) fn encode(&self, w: &mut Writer<'_>) {
        match *self {
            Self::None => w.u8(0),
            Self::Notify { timeout_ms } => {
                w.u8(1);
                w.u32(timeout_ms);
            }
            Self::NewlineFd { fd, timeout_ms } => {
                w.u8(2);
                w.u32(fd);
                w.u32(timeout_ms);
            }
            Self::TcpLoopback {
                port,
                period_ms,
                timeout_ms,
                deadline_ms,
            } => {
                w.u8(3);
                w.u16(port);
                w.u32(period_ms);
                w.u32(timeout_ms);
                w.u32(deadline_ms);
            }
            Self::Exec {
                argv,
                initial_delay_ms,
                period_ms,
                timeout_ms,
                failure_threshold,
            } => {
                w.u8(4);
                argv.encode(w);
                w.u32(initial_delay_ms);
                w.u32(period_ms);
                w.u32(timeout_ms);
                w.u32(failure_threshold);
            }
            Self::External => w.u8(5),
        }
    }

    pub(super) fn decode(r: &mut Reader<'a>) -> Self {
        let what = "readiness";
        match r.u8(what) {
            0 => Self::None,
            1 => Self::Notify {
                timeout_ms: r.u32(what),
            },
            2 => Self::NewlineFd {
                fd: r.u32(what),
                timeout_ms: r.u32(what),
            },
            3 => Self::TcpLoopback {
                port: r.u16(what),
                period_ms: r.u32(what),
                timeout_ms: r.u32(what),
                deadline_ms: r.u32(what),
            },
            4 => Self::Exec {
                argv: Strings::decode(r, what),
                initial_delay_ms: r.u32(what),
                period_ms: r.u32(what),
                timeout_ms: r.u32(what),
                failure_threshold: r.u32(what),
            },
            5 => Self::External,
            _ => r.known(what, None, Self::None),
        }
    }
}
