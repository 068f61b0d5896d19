//! A process of a plan while it is put together: its strings are owned here, the plan borrows them.

use std::ffi::{CStr, CString};
use std::time::Duration;

use container_init::plan::{
    self, Delivery, Essential, Groups, Limits, Log, Output, Ports, Process, ProcessKind, Restart,
    RestartPolicy, Rewrite, Rlimit, Rlimits, Strings,
};

use super::{LogLimits, PlanError, ProcessIds};
use crate::app::{self, AgentResources, AgentRestart, ProbeTiming, SignalDelivery, Ulimit};

/// First and longest pause before an agent is started again.
const BACKOFF_MIN_MS: u32 = 100;
const BACKOFF_MAX_MS: u32 = 30_000;

/// A process with its strings owned; the plan borrows from it.
pub(super) struct Draft {
    pub(super) name: String,
    pub(super) kind: ProcessKind,
    pub(super) argv: Vec<CString>,
    pub(super) env: Vec<CString>,
    pub(super) cwd: CString,
    pub(super) ids: ProcessIds,
    pub(super) capabilities: u64,
    pub(super) rlimits: Vec<Rlimit>,
    pub(super) probe: Probe,
    pub(super) essential: Essential,
    pub(super) exit_code: Option<u8>,
    pub(super) restart: Restart,
    pub(super) nice: Option<i8>,
    pub(super) oom_score_adj: Option<i16>,
    /// As [`Process::after`].
    pub(super) after: u16,
    pub(super) limits: Option<Limits>,
    pub(super) stop_signal: u8,
    pub(super) stop_grace_ms: u32,
    pub(super) delivery: Delivery,
    pub(super) log: CString,
    pub(super) log_limits: LogLimits,
    pub(super) clean: Vec<CString>,
    pub(super) ports: Vec<u16>,
}

/// Readiness with its strings owned.
pub(super) enum Probe {
    None,
    Notify(Duration),
    NewlineFd(u32, Duration),
    Tcp {
        port: u16,
        timing: ProbeTiming,
    },
    Exec {
        argv: Vec<CString>,
        timing: ProbeTiming,
    },
    External,
}

/// Slices of borrowed strings, which a plan's lists borrow in turn.
pub(super) struct View<'a> {
    argv: Vec<&'a CStr>,
    env: Vec<&'a CStr>,
    probe: Vec<&'a CStr>,
    clean: Vec<&'a CStr>,
}

impl<'a> View<'a> {
    pub(super) fn of(draft: &'a Draft) -> Self {
        Self {
            argv: borrowed(&draft.argv),
            env: borrowed(&draft.env),
            probe: match &draft.probe {
                Probe::Exec { argv, .. } => borrowed(argv),
                _ => Vec::new(),
            },
            clean: borrowed(&draft.clean),
        }
    }
}

impl Draft {
    /// The process as the plan has it.
    pub(super) fn process<'a>(&'a self, view: &'a View<'a>) -> Process<'a> {
        Process {
            name: &self.name,
            kind: self.kind,
            argv: Strings::new(&view.argv),
            env: Strings::new(&view.env),
            cwd: &self.cwd,
            uid: self.ids.uid,
            gid: self.ids.gid,
            groups: Groups::new(&self.ids.groups),
            capabilities: self.capabilities,
            rlimits: Rlimits::new(&self.rlimits),
            nice: self.nice,
            oom_score_adj: self.oom_score_adj,
            limits: self.limits,
            after: self.after,
            readiness: self.readiness(view),
            essential: self.essential,
            exit_code: self.exit_code,
            restart: self.restart,
            stop_signal: self.stop_signal,
            stop_grace_ms: self.stop_grace_ms,
            delivery: self.delivery,
            stdout: Output::Log,
            stderr: Output::Log,
            log: Some(Log {
                path: &self.log,
                max_bytes: self.log_limits.max_bytes,
                max_files: self.log_limits.max_files,
                // Of the container's own streams, to which it would go, containerd keeps nothing.
                pass_through: false,
            }),
            clean: Strings::new(&view.clean),
            ports: Ports::new(&self.ports),
        }
    }

    fn readiness<'a>(&self, view: &'a View<'a>) -> plan::Readiness<'a> {
        match &self.probe {
            Probe::None => plan::Readiness::None,
            Probe::External => plan::Readiness::External,
            Probe::Notify(timeout) => plan::Readiness::Notify {
                timeout_ms: millis(*timeout),
            },
            Probe::NewlineFd(fd, timeout) => plan::Readiness::NewlineFd {
                fd: *fd,
                timeout_ms: millis(*timeout),
            },
            Probe::Tcp { port, timing } => plan::Readiness::TcpLoopback {
                port: *port,
                period_ms: millis(timing.period),
                timeout_ms: millis(timing.timeout),
                deadline_ms: millis(
                    timing.initial_delay + timing.period * timing.failure_threshold,
                ),
            },
            Probe::Exec { timing, .. } => plan::Readiness::Exec {
                argv: Strings::new(&view.probe),
                initial_delay_ms: millis(timing.initial_delay),
                period_ms: millis(timing.period),
                timeout_ms: millis(timing.timeout),
                failure_threshold: timing.failure_threshold,
            },
        }
    }
}

/// Limits of a cgroup of its own, where processes have one; 0 is no limit.
pub(super) fn limits(own: Option<AgentResources>) -> Limits {
    let own = own.unwrap_or_default();
    let fits = |value: Option<u64>| u32::try_from(value.unwrap_or(0)).unwrap_or(u32::MAX);
    // Of each period of 100 ms a thousandth of a core is 100 us.
    let quota = own.cpu_millis.map(|millis| millis.saturating_mul(100));
    Limits {
        memory_bytes: own.memory_bytes.unwrap_or(0),
        cpu_quota_us: fits(quota),
        pids: fits(own.pids),
    }
}

/// A limit as container-init sets it.
pub(super) fn rlimit(limit: &Ulimit) -> Rlimit {
    Rlimit {
        resource: limit.resource,
        soft: limit.soft,
        hard: limit.hard,
    }
}

/// When container-init starts an agent again.
pub(super) fn restart(restart: &AgentRestart) -> Restart {
    let policy = match restart.policy {
        app::RestartPolicy::Never => return Restart::NEVER,
        app::RestartPolicy::Always => RestartPolicy::Always,
        app::RestartPolicy::OnFailure => RestartPolicy::OnFailure,
    };
    Restart {
        policy,
        max: restart.max.unwrap_or(u32::MAX),
        backoff_min_ms: BACKOFF_MIN_MS,
        backoff_max_ms: BACKOFF_MAX_MS,
        reset_after_ms: BACKOFF_MAX_MS,
    }
}

/// Whom signals reach, in the plan's words.
pub(super) fn delivery(delivery: SignalDelivery) -> Delivery {
    match delivery {
        SignalDelivery::Process => Delivery::Process,
        SignalDelivery::Group => Delivery::Group,
        SignalDelivery::All => Delivery::All,
    }
}

/// A rewrite, in the plan's words.
pub(super) fn rewrite(rewrite: &app::Rewrite) -> Rewrite {
    Rewrite {
        from: rewrite.from,
        to: rewrite.to,
    }
}

/// The strings as a plan's list borrows them.
pub(super) fn borrowed(strings: &[CString]) -> Vec<&CStr> {
    strings.iter().map(CString::as_c_str).collect()
}

pub(super) fn c_strings(
    process: &str,
    what: &'static str,
    texts: &[String],
) -> Result<Vec<CString>, PlanError> {
    texts
        .iter()
        .map(|text| c_string(process, what, text))
        .collect()
}

pub(super) fn c_string(
    process: &str,
    what: &'static str,
    text: &str,
) -> Result<CString, PlanError> {
    CString::new(text).map_err(|_| PlanError::Nul {
        process: process.to_owned(),
        what,
        value: text.to_owned(),
    })
}

/// Milliseconds, at most what the format holds (49 days).
pub(super) fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
