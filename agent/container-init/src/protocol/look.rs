//! One look at the running app by a command of the plan: what is asked, and what came of it.

use super::{ExitStatus, Refusal};
use crate::wire::{Reader, Writer};

/// Which command of the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum LookKind {
    /// [`crate::plan::Looks::readiness`]
    Readiness = 1,
    /// [`crate::plan::Looks::liveness`]
    Liveness = 2,
    /// [`crate::plan::Looks::startup`]
    Startup = 3,
}

impl LookKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Readiness, Self::Liveness, Self::Startup];

    fn from_wire(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// Body of [`super::Request::Look`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Chosen by the agent; comes back in the answer.
    pub id: u32,
    /// Which command.
    pub kind: LookKind,
    /// Milliseconds until it is killed, not 0.
    pub timeout_ms: u32,
}

/// Body of [`super::Report::Looked`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Looked {
    /// As in [`Look::id`].
    pub id: u32,
    /// What came of it.
    pub outcome: LookOutcome,
}

/// What came of a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookOutcome {
    /// The command ended; [`ExitStatus::Code`] 0 is a yes.
    Ended(ExitStatus),
    /// It was killed when its time was over.
    TimedOut,
    /// It was not executed.
    NotExecuted {
        /// Why, as errno(3) has it.
        errno: u32,
    },
    /// Nobody looked, or the look was given up.
    Refused(Refusal),
}

impl Look {
    pub(super) fn encode(self, w: &mut Writer<'_>) {
        w.u32(self.id);
        w.u8(self.kind as u8);
        w.u32(self.timeout_ms);
    }

    pub(super) fn decode(r: &mut Reader<'_>) -> Self {
        let id = r.u32("look id");
        let kind = LookKind::from_wire(r.u8("look kind"));
        let kind = r.known("look kind", kind, LookKind::Readiness);
        let timeout_ms = r.u32("look timeout");
        if timeout_ms == 0 {
            r.invalid("look timeout");
        }
        Self {
            id,
            kind,
            timeout_ms,
        }
    }
}

impl Looked {
    pub(super) fn encode(self, w: &mut Writer<'_>) {
        w.u32(self.id);
        match self.outcome {
            LookOutcome::Ended(status) => {
                w.u8(1);
                status.encode(w);
            }
            LookOutcome::TimedOut => w.u8(2),
            LookOutcome::NotExecuted { errno } => {
                w.u8(3);
                w.u32(errno);
            }
            LookOutcome::Refused(code) => {
                w.u8(4);
                w.u8(code as u8);
            }
        }
    }

    pub(super) fn decode(r: &mut Reader<'_>) -> Self {
        let what = "look outcome";
        Self {
            id: r.u32("look id"),
            outcome: match r.u8(what) {
                1 => LookOutcome::Ended(ExitStatus::decode(r)),
                2 => LookOutcome::TimedOut,
                3 => LookOutcome::NotExecuted { errno: r.u32(what) },
                4 => LookOutcome::Refused(Refusal::decode(r, what)),
                _ => r.known(what, None, LookOutcome::TimedOut),
            },
        }
    }
}
