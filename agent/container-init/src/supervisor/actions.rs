//! What goes into the supervisor and what comes out.

use crate::plan::MAX_PROCESSES;
use crate::protocol::{
    EventKind, ExitStatus, LookKind, Looked, Refusal, Request, RequestKind, Start,
};

/// Something that happened. `process` is an index into the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input<'r> {
    /// The first input.
    Begin,
    /// [`Action::Spawn`] was done and the process executed.
    Spawned {
        /// Which process.
        process: usize,
        /// Its pid.
        pid: u32,
    },
    /// [`Action::Spawn`] failed.
    NotSpawned {
        /// Which process.
        process: usize,
        /// The pid that it had; 0 when there was none.
        pid: u32,
        /// 127 when the command was not found, 126 for everything else.
        code: u8,
    },
    /// [`Action::Probe`] was begun; the result comes as `Probed`, or by the end of `pid`.
    Probing {
        /// The process that is probed.
        process: usize,
        /// Pid of the probe, for a probe that is a process.
        pid: Option<u32>,
    },
    /// A probe ended.
    Probed {
        /// The process that is probed.
        process: usize,
        /// Whether it is ready.
        passed: bool,
    },
    /// The process said that it is ready.
    Ready {
        /// Which process.
        process: usize,
    },
    /// [`Action::Look`] was done and the command executed; its end comes as `Reaped`.
    Looking {
        /// Which command.
        kind: LookKind,
        /// Its pid.
        pid: u32,
    },
    /// [`Action::Look`] failed.
    NotLooking {
        /// Which command.
        kind: LookKind,
        /// Why.
        errno: u32,
    },
    /// A child was reaped: of the plan, a probe, a look, or an orphan that nobody knows.
    Reaped {
        /// Its pid.
        pid: u32,
        /// How it ended.
        status: ExitStatus,
        /// Whether it was killed for memory, as far as can be seen.
        oom: bool,
    },
    /// No child is left, neither alive nor to be reaped.
    Childless,
    /// The agent is there, for the first time or again.
    Connected,
    /// The agent asks.
    Asked(Request<'r>),
    /// PID 1 received a signal, one that is meant for the app.
    Signalled {
        /// Which.
        signal: u8,
        /// What came with it (sigqueue(3)).
        value: Option<u64>,
    },
    /// [`Action::Sweep`] was done.
    Swept {
        /// Which process.
        process: usize,
        /// Whether anything of it was still there.
        found: bool,
    },
    /// [`Action::Clean`] was begun; its end comes as `Reaped` of `pid`.
    Cleaning {
        /// Which process.
        process: usize,
        /// Pid of what cleans; `None` when it could not be begun.
        pid: Option<u32>,
    },
    /// Time passed.
    Tick,
}

/// Something to do. `process` is an index into the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action<'p, 'r> {
    /// Execute this process; answered by `Spawned` or `NotSpawned`.
    Spawn {
        /// Which process.
        process: usize,
        /// The start that let it go, for the app.
        start: Option<Start<'r>>,
    },
    /// Keep this for [`Action::SpawnAgain`].
    Keep(Start<'r>),
    /// Execute this process once more, the app with what was kept; answered as `Spawn` is.
    SpawnAgain {
        /// Which process.
        process: usize,
    },
    /// Kill all that belongs to this process, which has ended itself; answered by `Swept`.
    Sweep {
        /// Which process.
        process: usize,
        /// The pid that it had.
        leader: u32,
    },
    /// Remove what the plan says that it leaves behind, and wait until nobody listens on its
    /// ports; answered by `Cleaning`.
    Clean {
        /// Which process.
        process: usize,
    },
    /// Say that a restart in place failed: what it left could not be ended, or not be removed.
    RestartFailed {
        /// Which process.
        process: usize,
    },
    /// Make ready what the start of the app will need, as far as it can be before; without an
    /// answer. It is no process of the plan until [`Action::Spawn`] uses it.
    Prepare {
        /// The app.
        process: usize,
    },
    /// The start will not come: what was made ready ends.
    EndPrepared,
    /// Begin a probe; answered by `Probing` or `Probed`.
    Probe {
        /// The process to probe.
        process: usize,
    },
    /// The probe takes too long or is not wanted any more.
    EndProbe {
        /// The process that is probed.
        process: usize,
        /// Pid of the probe; 0 for a probe that is no process.
        pid: u32,
    },
    /// Execute this command of the plan beside the app; answered by `Looking` or `NotLooking`.
    Look {
        /// Which command.
        kind: LookKind,
    },
    /// Tell the agent what came of a look.
    Looked(Looked),
    /// Send a signal.
    Signal {
        /// To whom.
        target: Target,
        /// Signal number.
        signal: u8,
    },
    /// Pass a signal from outside on.
    Forward {
        /// To whom.
        target: Target,
        /// Signal number.
        signal: u8,
        /// What came with it.
        value: Option<u64>,
    },
    /// Tell the agent, once and until acked; exits also go to the ring.
    Report(EventKind<'p>),
    /// Answer the agent with the status.
    Answer,
    /// Answer the agent with what is known of every process.
    AnswerProcesses,
    /// Answer the agent that its request had no effect.
    Refuse {
        /// The request.
        request: RequestKind,
        /// Why.
        code: Refusal,
    },
    /// End, with this code. The last action.
    Exit {
        /// Exit code of the container.
        code: u8,
    },
}

/// Whom a signal is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// This process.
    Process(u32),
    /// The process group that this process leads.
    Group(u32),
    /// All that belongs to this process of the plan.
    All {
        /// Which process.
        process: usize,
        /// Its pid.
        leader: u32,
    },
    /// Everything in the pid namespace but PID 1; without one of its own: all that descends from
    /// it.
    Everybody,
}

/// More than one step can ask for: five for each process, three for each kind of look and a few for
/// the phase.
const ROOM: usize = MAX_PROCESSES * 6 + 16;

/// Where the actions of one step are put.
pub type Room<'p, 'r> = [Option<Action<'p, 'r>>; ROOM];

/// Nothing in it; what was in it before a step does not count.
pub const fn room<'p, 'r>() -> Room<'p, 'r> {
    [None; ROOM]
}

/// Actions in order, without allocation.
#[derive(Debug)]
pub struct Actions<'p, 'r> {
    items: &'r mut Room<'p, 'r>,
    length: usize,
}

impl<'p, 'r> Actions<'p, 'r> {
    pub(super) fn new(items: &'r mut Room<'p, 'r>) -> Self {
        Self { items, length: 0 }
    }

    #[inline(never)]
    pub(super) fn push(&mut self, action: Action<'p, 'r>) {
        debug_assert!(
            self.length < ROOM,
            "one step asks for more than {ROOM} actions"
        );
        if let Some(room) = self.items.get_mut(self.length) {
            *room = Some(action);
            self.length += 1;
        }
    }

    /// The actions in order.
    pub fn iter(&self) -> impl Iterator<Item = Action<'p, 'r>> + '_ {
        self.items.iter().take(self.length).flatten().copied()
    }
}
