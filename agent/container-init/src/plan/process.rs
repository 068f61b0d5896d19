//! One process of a plan: who it is, how it runs, when it counts as ready, how it stops.

use core::ffi::CStr;

use super::lifecycle::{Delivery, Essential, Restart};
use super::limits::Limits;
use super::lists::{Groups, Item, Ports, Rlimits, Strings};
use super::output::{Log, Output};
use super::readiness::Readiness;
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
    /// Nice value, -20..=19; one below init's own needs `CAP_SYS_NICE`.
    pub nice: Option<i8>,
    /// `oom_score_adj`, -1000..=1000; lowering it needs `CAP_SYS_RESOURCE`.
    pub oom_score_adj: Option<i16>,
    /// Limits of a cgroup of its own.
    pub limits: Option<Limits>,
    /// The agents that have to have passed their gates before this agent starts: bit n is process
    /// n, all of them earlier ones. The app waits for all of them.
    pub after: u16,
    /// When it counts as ready.
    pub readiness: Readiness<'a>,
    /// What its end means. The app is always essential.
    pub essential: Essential,
    /// Exit code of the container that ends because this process did; `None` is the process's own,
    /// for an agent at least 1.
    pub exit_code: Option<u8>,
    /// Whether it is started again. The app never is, but by a restart from outside.
    pub restart: Restart,
    /// Signal that asks it to stop, 1..=64; normally 15.
    pub stop_signal: u8,
    /// Milliseconds from that signal until it is killed, inside the budget of the whole stop;
    /// `u32::MAX` for all of the budget.
    pub stop_grace_ms: u32,
    /// Whom its signals reach.
    pub delivery: Delivery,
    /// Where its standard output goes.
    pub stdout: Output<'a>,
    /// Where its standard error goes.
    pub stderr: Output<'a>,
    /// Its log.
    pub log: Option<Log<'a>>,
    /// Absolute directories that are emptied, and files that are removed, before it is started
    /// again in place.
    pub clean: Strings<'a>,
    /// TCP ports that nobody may listen on any more before it is started again in place.
    pub ports: Ports<'a>,
}

/// In-container agent, or the app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessKind {
    /// Runs before the app and is stopped after it.
    Agent,
    /// Held at the gate until a start.
    App,
}

impl<'a> Process<'a> {
    /// A process that says no more than what it executes: as root without capabilities in `/`, ready
    /// when it was started, essential, never started again, asked to stop by TERM.
    pub fn plain(name: &'a str, kind: ProcessKind, argv: Strings<'a>) -> Self {
        Self {
            name,
            kind,
            argv,
            env: Strings::none(),
            cwd: c"/",
            uid: 0,
            gid: 0,
            groups: Groups::none(),
            capabilities: 0,
            rlimits: Rlimits::none(),
            nice: None,
            oom_score_adj: None,
            limits: None,
            after: 0,
            readiness: Readiness::None,
            essential: Essential::Yes,
            exit_code: None,
            restart: Restart::NEVER,
            stop_signal: 15,
            stop_grace_ms: u32::MAX,
            delivery: Delivery::Process,
            stdout: Output::Inherit,
            stderr: Output::Inherit,
            log: None,
            clean: Strings::none(),
            ports: Ports::none(),
        }
    }

    pub(super) fn check(&self) -> Result<(), Malformed> {
        let allowed = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let name = self.name.as_bytes();
        if name.is_empty() || name.len() > MAX_NAME || name[0] == b'.' || !name.iter().all(allowed)
        {
            return Err(Malformed::Invalid("process name"));
        }
        if self.argv.iter().next().is_none_or(CStr::is_empty) || self.argv.len() > MAX_STRINGS {
            return Err(Malformed::Invalid("argv"));
        }
        if self.env.len() > MAX_STRINGS {
            return Err(Malformed::Invalid("env"));
        }
        if self.groups.len() > MAX_GROUPS {
            return Err(Malformed::Invalid("groups"));
        }
        if !self.cwd.to_bytes().starts_with(b"/") {
            return Err(Malformed::Invalid("working directory"));
        }
        if !(1..=64).contains(&self.stop_signal) {
            return Err(Malformed::Invalid("stop signal"));
        }
        self.restart.check()?;
        if self.nice.is_some_and(|nice| !(-20..=19).contains(&nice)) {
            return Err(Malformed::Invalid("nice"));
        }
        if self
            .oom_score_adj
            .is_some_and(|score| !(-1000..=1000).contains(&score))
        {
            return Err(Malformed::Invalid("oom_score_adj"));
        }
        self.log.as_ref().map_or(Ok(()), Log::check)?;
        if self.log.is_none() && [self.stdout, self.stderr].contains(&Output::Log) {
            return Err(Malformed::Invalid("log"));
        }
        if !self
            .clean
            .iter()
            .all(|path| path.to_bytes().starts_with(b"/"))
        {
            return Err(Malformed::Invalid("path to clean"));
        }
        if self
            .rlimits
            .iter()
            .any(|limit| limit.resource > 15 || limit.soft > limit.hard)
        {
            return Err(Malformed::Invalid("rlimit"));
        }
        self.readiness.check(self.kind)
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
        option(self.nice, w, |nice, w| w.u8(nice.cast_unsigned()));
        option(self.oom_score_adj, w, |score, w| {
            w.u16(score.cast_unsigned())
        });
        option(self.limits, w, |limits, w| limits.encode(w));
        w.u16(self.after);
        self.readiness.encode(w);
        w.flag(self.essential == Essential::Yes);
        option(self.exit_code, w, |code, w| w.u8(code));
        self.restart.encode(w);
        w.u8(self.stop_signal);
        w.u32(self.stop_grace_ms);
        w.u8(self.delivery as u8);
        self.stdout.encode(w);
        self.stderr.encode(w);
        option(self.log, w, |log, w| log.encode(w));
        self.clean.encode(w);
        self.ports.encode(w);
    }

    fn decode(r: &mut Reader<'a>, _: &'static str) -> Self {
        Self {
            name: r.text("process name"),
            kind: r.one_of("process kind", [ProcessKind::Agent, ProcessKind::App]),
            argv: Strings::decode(r, "argv"),
            env: Strings::decode(r, "env"),
            cwd: r.c_text("working directory"),
            uid: r.u32("uid"),
            gid: r.u32("gid"),
            groups: Groups::decode(r, "groups"),
            capabilities: r.u64("capabilities"),
            rlimits: Rlimits::decode(r, "rlimits"),
            nice: optional(r, "nice", |r| r.u8("nice").cast_signed()),
            oom_score_adj: optional(r, "oom_score_adj", |r| r.u16("oom_score_adj").cast_signed()),
            limits: optional(r, "cgroup limits", Limits::decode),
            after: r.u16("dependencies"),
            readiness: Readiness::decode(r),
            essential: r.one_of("essential", [Essential::No, Essential::Yes]),
            exit_code: optional(r, "exit code", |r| r.u8("exit code")),
            restart: Restart::decode(r),
            stop_signal: r.u8("stop signal"),
            stop_grace_ms: r.u32("stop grace"),
            delivery: Delivery::decode(r),
            stdout: Output::decode(r, "stdout"),
            stderr: Output::decode(r, "stderr"),
            log: optional(r, "log", Log::decode),
            clean: Strings::decode(r, "paths to clean"),
            ports: Ports::decode(r, "ports"),
        }
    }
}

/// A flag, then the value where there is one.
fn option<T>(value: Option<T>, w: &mut Writer<'_>, encode: impl Fn(T, &mut Writer<'_>)) {
    w.flag(value.is_some());
    if let Some(value) = value {
        encode(value, w);
    }
}

fn optional<'a, T>(
    r: &mut Reader<'a>,
    what: &'static str,
    decode: impl Fn(&mut Reader<'a>) -> T,
) -> Option<T> {
    r.flag(what).then(|| decode(r))
}
