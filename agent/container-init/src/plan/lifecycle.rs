//! What a process's end means, and how it is asked to end.

use crate::wire::{Malformed, Reader, Writer};

/// What the end of a process for good means, an end after which it is not started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Essential {
    /// The container ends.
    Yes,
    /// The others go on.
    No,
}

/// Whether, when and how often an in-container agent is started again. The pause doubles from
/// min to max, and begins again at min after a run longer than `reset_after_ms`, as does the
/// count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restart {
    /// After which ends.
    pub policy: RestartPolicy,
    /// Starts again in a row, at most; `u32::MAX` for no bound.
    pub max: u32,
    /// First pause in milliseconds.
    pub backoff_min_ms: u32,
    /// Longest pause in milliseconds; not below the first.
    pub backoff_max_ms: u32,
    /// A run longer than this many milliseconds was a good one.
    pub reset_after_ms: u32,
}

/// After which ends a process is started again; Kubernetes' names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RestartPolicy {
    /// After every end.
    Always = 0,
    /// After a signal, and after an exit with another code than 0.
    OnFailure = 1,
    /// After none.
    Never = 2,
}

/// Whom a signal reaches that is meant for a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Delivery {
    /// The process.
    Process = 0,
    /// Its process group.
    Group = 1,
    /// All of it: its cgroup where it has one, else its session and what descends from it.
    All = 2,
}

/// One number instead of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rewrite {
    /// What comes.
    pub from: u8,
    /// What goes on.
    pub to: u8,
}

/// [`super::Process::after`] of process `index` in a plan of `count` whose agents start one after
/// the other, each when the one before is ready, as Kubernetes' sidecars do.
pub fn after_previous(index: usize, count: usize) -> u16 {
    match index {
        0 => 0,
        _ if index + 1 >= count => 0,
        _ => 1u16.checked_shl(index as u32 - 1).unwrap_or(0),
    }
}

impl Restart {
    /// It is not started again.
    pub const NEVER: Self = Self {
        policy: RestartPolicy::Never,
        max: 0,
        backoff_min_ms: 0,
        backoff_max_ms: 0,
        reset_after_ms: 0,
    };

    pub(super) fn check(&self) -> Result<(), Malformed> {
        match self.backoff_min_ms <= self.backoff_max_ms {
            true => Ok(()),
            false => Err(Malformed::Invalid("restart back-off")),
        }
    }

    pub(super) fn encode(&self, w: &mut Writer<'_>) {
        w.u8(self.policy as u8);
        w.u32(self.max);
        w.u32(self.backoff_min_ms);
        w.u32(self.backoff_max_ms);
        w.u32(self.reset_after_ms);
    }

    pub(super) fn decode(r: &mut Reader<'_>) -> Self {
        let what = "restart";
        Self {
            policy: r.one_of(
                what,
                [
                    RestartPolicy::Always,
                    RestartPolicy::OnFailure,
                    RestartPolicy::Never,
                ],
            ),
            max: r.u32(what),
            backoff_min_ms: r.u32(what),
            backoff_max_ms: r.u32(what),
            reset_after_ms: r.u32(what),
        }
    }
}

impl Delivery {
    pub(super) fn decode(r: &mut Reader<'_>) -> Self {
        r.one_of("delivery", [Self::Process, Self::Group, Self::All])
    }
}
