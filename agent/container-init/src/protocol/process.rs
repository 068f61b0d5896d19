//! What init knows of every process of its plan.

use super::{ExitStatus, Memory};
use crate::plan::{Item, List};
use crate::wire::{Reader, Writer};

/// Body of [`super::Report::Processes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Processes<'a> {
    /// What the container's memory cgroup counts.
    pub memory: Memory,
    /// Every process, in the plan's order: the app is the last.
    pub list: List<'a, ProcessStatus<'a>>,
}

/// One process of the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProcessStatus<'a> {
    /// Name from the plan.
    pub name: &'a str,
    /// What it does.
    pub state: ProcessState,
    /// Pid inside the container; 0 when it does not run.
    pub pid: u32,
    /// How often it was started again, by itself or on request.
    pub restarts: u32,
    /// Milliseconds since its last start; 0 when it was never started.
    pub since_ms: u64,
    /// How it ended the last time; `None` when it never did.
    pub last_exit: Option<ExitStatus>,
}

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum ProcessState {
    /// Its turn has not come; for the app: held at the gate.
    #[default]
    Waiting = 0,
    /// It runs and has not passed its gate.
    Starting = 1,
    /// It runs and is ready.
    Ready = 2,
    /// It ended and will be started again.
    BackingOff = 3,
    /// It was told to stop and still runs.
    Stopping = 4,
    /// It ended for good.
    Ended = 5,
    /// It is ended, and what it left behind is cleaned, to be started again on request.
    Restarting = 6,
}

impl<'a> Processes<'a> {
    pub(super) fn encode(&self, w: &mut Writer<'_>) {
        self.memory.encode(w);
        self.list.encode(w);
    }

    pub(super) fn decode(r: &mut Reader<'a>) -> Self {
        Self {
            memory: Memory::decode(r),
            list: List::decode(r, "processes"),
        }
    }
}

impl<'a> Item<'a> for ProcessStatus<'a> {
    fn encode(&self, w: &mut Writer<'_>) {
        w.text(self.name);
        w.u8(self.state as u8);
        w.u32(self.pid);
        w.u32(self.restarts);
        w.u64(self.since_ms);
        w.flag(self.last_exit.is_some());
        if let Some(status) = self.last_exit {
            status.encode(w);
        }
    }

    fn decode(r: &mut Reader<'a>, _: &'static str) -> Self {
        Self {
            name: r.text("process name"),
            state: r.one_of("process state", ProcessState::ALL),
            pid: r.u32("pid"),
            restarts: r.u32("restarts"),
            since_ms: r.u64("time since the start"),
            last_exit: r.flag("last exit").then(|| ExitStatus::decode(r)),
        }
    }
}

impl ProcessState {
    /// Every state, in the order of their numbers.
    const ALL: [Self; 7] = [
        Self::Waiting,
        Self::Starting,
        Self::Ready,
        Self::BackingOff,
        Self::Stopping,
        Self::Ended,
        Self::Restarting,
    ];
}
