//! One process of a plan: who it is, how it runs, when it counts as ready, how it stops.

use core::ffi::CStr;

use super::lists::{Groups, Item, Rlimits, Strings};
use super::{MAX_GROUPS, MAX_NAME, MAX_STRINGS};
use crate::wire::{Malformed, Reader, Writer};

/// A process that init starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process<'a> {
    /// Unique in the plan, 1 to [`MAX_NAME`] characters `a-z`, `A-Z`, `0-9`, `-`, `_`, `.`, not
    /// beginning with a dot; names the notify socket.
    pub name: &'a str,
    /// In-container agent, or the app.
    pub kind: ProcessKind,
    /// At least one; the first is a path, or a name that is looked up in the `PATH` of `env`.
    pub argv: Strings<'a>,
    /// `KEY=VALUE` entries, the whole environment; init adds only what the contract names.
    pub env: Strings<'a>,
    /// Absolute working directory.
    pub cwd: &'a CStr,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups, exactly these.
    pub groups: Groups<'a>,
    /// Bit n is capability n (capabilities(7)): what stays in the bounding set, and what uid 0
    /// has as permitted and effective. A process of another uid starts without capabilities.
    pub capabilities: u64,
    /// Limits, set as soft and hard before the ids change.
    pub rlimits: Rlimits<'a>,
    /// When it counts as ready.
    pub readiness: Readiness<'a>,
    /// What its end means. The app is always essential.
    pub essential: Essential,
    /// Pause before it is started again, for an optional agent.
    pub restart: Restart,
    /// Signal that asks it to stop, 1..=64; normally 15.
    pub stop_signal: u8,
    /// Where its standard output goes.
    pub stdout: Output<'a>,
    /// Where its standard error goes.
    pub stderr: Output<'a>,
}

/// In-container agent, or the app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessKind {
    /// Runs before the app and is stopped after it.
    Agent,
    /// Held at the gate until a start.
    App,
}

/// What the end of a process means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Essential {
    /// The container ends.
    Yes,
    /// It is started again with back-off.
    No,
}

/// Pause between an end and the next start: doubles from min to max, and begins again at min
/// after a run longer than max.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restart {
    /// First pause in milliseconds.
    pub backoff_min_ms: u32,
    /// Longest pause in milliseconds; not below the first.
    pub backoff_max_ms: u32,
}

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

/// A resource limit as setrlimit(2) has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rlimit {
    /// `RLIMIT_` number, 0..=15.
    pub resource: u32,
    /// Soft limit; `u64::MAX` is unlimited.
    pub soft: u64,
    /// Hard limit; `u64::MAX` is unlimited.
    pub hard: u64,
}

/// Where an output stream goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output<'a> {
    /// Where container-init's own goes.
    Inherit,
    /// Appended to this file, which is made when it is missing.
    File(&'a CStr),
}

impl Process<'_> {
    pub(super) fn check(&self) -> Result<(), Malformed> {
        let allowed = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let name = self.name.as_bytes();
        if name.is_empty() || name.len() > MAX_NAME || name[0] == b'.' || !name.iter().all(allowed)
        {
            return Err(Malformed::Invalid("process name"));
        }
        if self.argv.iter().next().is_none_or(CStr::is_empty)
            || self.argv.iter().count() > MAX_STRINGS
        {
            return Err(Malformed::Invalid("argv"));
        }
        if self.env.iter().count() > MAX_STRINGS {
            return Err(Malformed::Invalid("env"));
        }
        if self.groups.iter().count() > MAX_GROUPS {
            return Err(Malformed::Invalid("groups"));
        }
        if !self.cwd.to_bytes().starts_with(b"/") {
            return Err(Malformed::Invalid("working directory"));
        }
        if !(1..=64).contains(&self.stop_signal) {
            return Err(Malformed::Invalid("stop signal"));
        }
        if self.restart.backoff_min_ms > self.restart.backoff_max_ms {
            return Err(Malformed::Invalid("restart back-off"));
        }
        if self
            .rlimits
            .iter()
            .any(|limit| limit.resource > 15 || limit.soft > limit.hard)
        {
            return Err(Malformed::Invalid("rlimit"));
        }
        let readiness = match self.readiness {
            Readiness::None | Readiness::Notify { .. } => true,
            Readiness::External => self.kind == ProcessKind::App,
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
                    && argv.iter().count() <= MAX_STRINGS
                    && period_ms != 0
                    && timeout_ms != 0
                    && failure_threshold != 0
            }
        };
        if readiness {
            Ok(())
        } else {
            Err(Malformed::Invalid("readiness"))
        }
    }
}

impl<'a> Item<'a> for Process<'a> {
    fn encode(&self, w: &mut Writer<'_>) {
        w.text(self.name);
        w.flag(self.kind == ProcessKind::App);
        self.argv.encode(w);
        self.env.encode(w);
        w.c_text(self.cwd);
        w.u32(self.uid);
        w.u32(self.gid);
        self.groups.encode(w);
        w.u64(self.capabilities);
        self.rlimits.encode(w);
        self.readiness.encode(w);
        w.flag(self.essential == Essential::Yes);
        w.u32(self.restart.backoff_min_ms);
        w.u32(self.restart.backoff_max_ms);
        w.u8(self.stop_signal);
        self.stdout.encode(w);
        self.stderr.encode(w);
    }

    fn decode(r: &mut Reader<'a>, _: &'static str) -> Result<Self, Malformed> {
        Ok(Self {
            name: r.text("process name")?,
            kind: if r.flag("process kind")? {
                ProcessKind::App
            } else {
                ProcessKind::Agent
            },
            argv: Strings::decode(r, "argv")?,
            env: Strings::decode(r, "env")?,
            cwd: r.c_text("working directory")?,
            uid: r.u32("uid")?,
            gid: r.u32("gid")?,
            groups: Groups::decode(r, "groups")?,
            capabilities: r.u64("capabilities")?,
            rlimits: Rlimits::decode(r, "rlimits")?,
            readiness: Readiness::decode(r)?,
            essential: if r.flag("essential")? {
                Essential::Yes
            } else {
                Essential::No
            },
            restart: Restart {
                backoff_min_ms: r.u32("restart back-off")?,
                backoff_max_ms: r.u32("restart back-off")?,
            },
            stop_signal: r.u8("stop signal")?,
            stdout: Output::decode(r, "stdout")?,
            stderr: Output::decode(r, "stderr")?,
        })
    }
}

impl<'a> Readiness<'a> {
    fn encode(&self, w: &mut Writer<'_>) {
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

    fn decode(r: &mut Reader<'a>) -> Result<Self, Malformed> {
        let what = "readiness";
        Ok(match r.u8(what)? {
            0 => Self::None,
            1 => Self::Notify {
                timeout_ms: r.u32(what)?,
            },
            2 => Self::NewlineFd {
                fd: r.u32(what)?,
                timeout_ms: r.u32(what)?,
            },
            3 => Self::TcpLoopback {
                port: r.u16(what)?,
                period_ms: r.u32(what)?,
                timeout_ms: r.u32(what)?,
                deadline_ms: r.u32(what)?,
            },
            4 => Self::Exec {
                argv: Strings::decode(r, what)?,
                initial_delay_ms: r.u32(what)?,
                period_ms: r.u32(what)?,
                timeout_ms: r.u32(what)?,
                failure_threshold: r.u32(what)?,
            },
            5 => Self::External,
            _ => return Err(Malformed::Invalid(what)),
        })
    }
}

impl Item<'_> for Rlimit {
    fn encode(&self, w: &mut Writer<'_>) {
        w.u32(self.resource);
        w.u64(self.soft);
        w.u64(self.hard);
    }

    fn decode(r: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed> {
        Ok(Self {
            resource: r.u32(what)?,
            soft: r.u64(what)?,
            hard: r.u64(what)?,
        })
    }
}

impl<'a> Output<'a> {
    fn encode(&self, w: &mut Writer<'_>) {
        match self {
            Self::Inherit => w.u8(0),
            Self::File(path) => {
                w.u8(1);
                w.c_text(path);
            }
        }
    }

    fn decode(r: &mut Reader<'a>, what: &'static str) -> Result<Self, Malformed> {
        match r.u8(what)? {
            0 => Ok(Self::Inherit),
            1 => Ok(Self::File(r.c_text(what)?)),
            _ => Err(Malformed::Invalid(what)),
        }
    }
}
