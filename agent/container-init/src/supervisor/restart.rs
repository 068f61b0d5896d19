//! Restart in place: one process of the plan ends with all that belongs to it, what it left behind
//! is removed, and it is started again, while the others go on.
//!
//! ```text
//!   asked ──► Ending ── gone ──► Sweeping ── two empty passes ──► Cleaning ── clean ──► executed
//!               │                   │                                │
//!               └───────────────────┴────────── budget over ─────────┴──► it failed: as if it had
//!                                               or not clean              ended for good
//! ```
//! It is killed after half of the budget, so that the other half is left for the rest. Passes are
//! repeated because what forks faster than one pass sees outlives it; two empty ones in a row are
//! the proof.

use super::actions::{Action, Actions};
use super::process::{Life, Slot};
use super::{Millis, Phase, Supervisor};
use crate::plan::{Essential, ProcessKind};
use crate::protocol::{ExitStatus, Refusal, RequestKind, Restart};

/// Between two passes while something is still there.
const SWEEP_PAUSE_MS: u64 = 1;
/// Passes in a row that have to find nothing.
const EMPTY_PASSES: u8 = 2;

/// A restart under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Again {
    deadline: Millis,
    leader: u32,
    step: Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Asked to end.
    Ending,
    /// `at` is when to look again; `None` while a pass is under way.
    Sweeping { empty: u8, at: Option<Millis> },
    /// Pid of what cleans; 0 until it was begun.
    Cleaning { pid: u32 },
}

impl Again {
    pub(super) fn due(&self) -> Option<Millis> {
        let at = match self.step {
            Step::Sweeping { at, .. } => at,
            _ => None,
        };
        Some(at.unwrap_or(self.deadline).min(self.deadline))
    }

    /// Pid of what cleans; 0 for none.
    pub(super) fn cleaner(&self) -> u32 {
        match self.step {
            Step::Cleaning { pid } => pid,
            _ => 0,
        }
    }
}

impl<'p> Supervisor<'p> {
    pub(super) fn asked_to_restart<'r>(
        &mut self,
        restart: Restart<'r>,
        now: Millis,
        out: &mut Actions<'p, 'r>,
    ) {
        let refuse = |code| Action::Refuse {
            request: RequestKind::Restart,
            code,
        };
        let named = |slot: &Option<Slot<'p>>| {
            slot.as_ref()
                .is_some_and(|slot| slot.spec.name == restart.process)
        };
        let generation = restart.start.generation;
        let (started, current) = (self.started, self.generation);
        let Some(index) = self.slots.iter().position(named) else {
            return out.push(refuse(Refusal::UnknownProcess));
        };
        if matches!(self.phase, Phase::Stopping(_) | Phase::Ended) {
            return out.push(refuse(Refusal::Stopping));
        }
        let Some(slot) = self.slot(index) else { return };
        let is_app = slot.spec.kind == ProcessKind::App;
        let refusal = match slot.life {
            _ if generation < current => Some(Refusal::StaleGeneration),
            _ if is_app && !started => Some(Refusal::NotStarted),
            Life::Waiting | Life::Spawning => Some(Refusal::NotStarted),
            _ if !is_app && generation > current => Some(Refusal::NotStarted),
            _ => None,
        };
        if let Some(code) = refusal {
            return out.push(refuse(code));
        }
        out.push(Action::Answer);
        if slot.again.is_some() || (is_app && generation == current) {
            return;
        }
        slot.give_up_waiting(index, out);
        slot.again = Some(Again {
            deadline: now + u64::from(restart.budget_ms),
            leader: slot.pid,
            step: Step::Ending,
        });
        let grace_ms = slot.spec.stop_grace_ms.min(restart.budget_ms / 2);
        if slot.pid == 0 {
            sweep(slot, index, 0, out);
        } else {
            slot.ask_to_end(index, None, grace_ms, now, out);
        }
        if is_app {
            self.generation = generation;
            self.looks.stop(out);
            out.push(Action::Keep(restart.start));
        }
    }

    /// A process that is ended to be started again is gone.
    pub(super) fn gone_for_restart(&mut self, index: usize, out: &mut Actions<'p, '_>) {
        if let Some(slot) = self.slot(index)
            && matches!(
                slot.again,
                Some(Again {
                    step: Step::Ending,
                    ..
                })
            )
        {
            sweep(slot, index, 0, out);
        }
    }

    pub(super) fn swept(
        &mut self,
        index: usize,
        found: bool,
        now: Millis,
        out: &mut Actions<'p, '_>,
    ) {
        let Some(slot) = self.slot(index) else { return };
        let Some(again) = &mut slot.again else { return };
        let Step::Sweeping { empty, .. } = again.step else {
            return;
        };
        if found {
            again.step = Step::Sweeping {
                empty: 0,
                at: Some(now + SWEEP_PAUSE_MS),
            };
        } else if empty + 1 < EMPTY_PASSES {
            sweep(slot, index, empty + 1, out);
        } else if slot.spec.clean.iter().next().is_none() && slot.spec.ports.iter().next().is_none()
        {
            spawn_again(slot, index, out);
        } else {
            again.step = Step::Cleaning { pid: 0 };
            out.push(Action::Clean { process: index });
        }
    }

    pub(super) fn cleaning(
        &mut self,
        index: usize,
        cleaner: Option<u32>,
        now: Millis,
        out: &mut Actions<'p, '_>,
    ) {
        let Some(again) = self.slot(index).and_then(|slot| slot.again.as_mut()) else {
            return;
        };
        match (&mut again.step, cleaner) {
            (Step::Cleaning { pid }, Some(cleaner)) => *pid = cleaner,
            (Step::Cleaning { .. }, None) => self.restart_failed(index, now, out),
            _ => {}
        }
    }

    /// What cleans has ended; false when `pid` is none.
    pub(super) fn cleaned(
        &mut self,
        pid: u32,
        status: ExitStatus,
        now: Millis,
        out: &mut Actions<'p, '_>,
    ) -> bool {
        let cleans = |slot: &Slot<'p>| slot.again.is_some_and(|again| again.cleaner() == pid);
        let found =
            self.slots.iter_mut().enumerate().find_map(|(index, slot)| {
                Some((index, slot.as_mut().filter(|slot| cleans(slot))?))
            });
        match found {
            None => return false,
            Some((index, slot)) if status == ExitStatus::Code(0) => spawn_again(slot, index, out),
            Some((index, _)) => self.restart_failed(index, now, out),
        }
        true
    }

    /// Does what is due for restarts.
    pub(super) fn restart_timers(&mut self, now: Millis, out: &mut Actions<'p, '_>) {
        for index in 0..=self.app {
            let Some(slot) = self.slot(index) else {
                continue;
            };
            let Some(again) = slot.again else { continue };
            match again.step {
                _ if again.deadline <= now => self.restart_failed(index, now, out),
                Step::Sweeping {
                    empty,
                    at: Some(at),
                } if at <= now => sweep(slot, index, empty, out),
                _ => {}
            }
        }
    }

    /// The process could not be ended or cleaned after: it ended for good.
    fn restart_failed(&mut self, index: usize, now: Millis, out: &mut Actions<'p, '_>) {
        let grace = self.plan.stop_grace_ms;
        let Some(slot) = self.slot(index) else { return };
        slot.give_up_restart(out);
        let spec = slot.spec;
        if slot.pid == 0 {
            slot.life = Life::Ended;
        }
        out.push(Action::RestartFailed { process: index });
        if spec.kind == ProcessKind::App || spec.essential == Essential::Yes {
            self.exit_code = self.exit_code.or(Some(spec.exit_code.unwrap_or(1)));
            self.begin_stop(grace, None, now);
        }
    }
}

fn sweep(slot: &mut Slot<'_>, index: usize, empty: u8, out: &mut Actions<'_, '_>) {
    if let Some(again) = &mut slot.again {
        again.step = Step::Sweeping { empty, at: None };
        out.push(Action::Sweep {
            process: index,
            leader: again.leader,
        });
    }
}

fn spawn_again(slot: &mut Slot<'_>, index: usize, out: &mut Actions<'_, '_>) {
    slot.again = None;
    slot.life = Life::Spawning;
    out.push(Action::SpawnAgain { process: index });
}
