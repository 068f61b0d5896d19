//! The stop: the app first, then the agents, each when those that wait for it in the plan are gone,
//! then strangers, all inside one budget.
//!
//! Each process has its own grace inside the budget. With agents in the plan the app may use all but
//! a tail of it (a tenth, at most [`TAIL_MAX_MS`]), so that an app which ignores its signal does not
//! cost a log shipper its last flush. What is left when the budget ends is killed, and so it is at a
//! second TERM. What is killed and does not go is stuck in the kernel: it is reported, and nobody
//! waits for it.

use super::actions::{Action, Actions, Target};
use super::process::{KILL_WAIT_MS, Life, Slot};
use super::{Millis, Phase, SIGCONT, SIGKILL, SIGTERM, Supervisor};
use crate::protocol::EventKind;

/// The most of a budget that is kept for the agents.
const TAIL_MAX_MS: u64 = 2_000;
/// Between two kills of what does not go: what forks faster than one pass over /proc sees outlives it.
const KILL_AGAIN_MS: u64 = 10;
/// How long what outlives the app may take where the stop has no budget.
const LEFT_OVER_MS: u64 = 10_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stop {
    /// End of the budget.
    deadline: Millis,
    /// When the app is killed so that the agents still get their turn.
    app_deadline: Option<Millis>,
    /// The signal from outside that began the stop, passed on instead of the app's stop signal.
    passed_on: Option<u8>,
    /// A TERM came from outside: the next one kills.
    term: bool,
    /// The app was held, and what was made ready for its start is still there.
    prepared: bool,
    /// Strangers were asked to end.
    swept: bool,
    killed: Option<Killed>,
}

/// Everything was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Killed {
    again_at: Millis,
    /// When we stop waiting for it.
    give_up_at: Millis,
}

impl Stop {
    pub(super) fn due(&self) -> Option<Millis> {
        match self.killed {
            Some(killed) => Some(killed.again_at.min(killed.give_up_at)),
            None => Some(
                self.app_deadline
                    .unwrap_or(self.deadline)
                    .min(self.deadline),
            ),
        }
    }

    /// A TERM from outside; true when it is the second.
    pub(super) fn term(&mut self, now: Millis) -> bool {
        if core::mem::replace(&mut self.term, true) {
            self.deadline = self.deadline.min(now);
            return true;
        }
        false
    }

    fn shorten(&mut self, deadline: Millis, app_deadline: Option<Millis>) {
        self.deadline = self.deadline.min(deadline);
        if let (Some(own), Some(new)) = (&mut self.app_deadline, app_deadline) {
            *own = new.min(*own);
        }
    }
}

impl<'p> Supervisor<'p> {
    pub(super) fn begin_stop(&mut self, budget_ms: u32, passed_on: Option<u8>, now: Millis) {
        let budget = u64::from(budget_ms);
        let deadline = now + budget;
        let app_deadline = (self.app > 0).then(|| deadline - (budget / 10).min(TAIL_MAX_MS));
        match &mut self.phase {
            Phase::Stopping(stop) => stop.shorten(deadline, app_deadline),
            Phase::Ended => {}
            Phase::Arming | Phase::Armed | Phase::Running => {
                let prepared = self.phase == Phase::Armed;
                self.phase = Phase::Stopping(Stop {
                    deadline,
                    app_deadline,
                    passed_on,
                    term: passed_on.is_some(),
                    prepared,
                    swept: false,
                    killed: None,
                });
            }
        }
    }

    /// Takes the stop as far as it can go now.
    pub(super) fn wind_down(&mut self, now: Millis, out: &mut Actions<'p, '_>) {
        let Phase::Stopping(mut stop) = self.phase else {
            return;
        };
        if core::mem::take(&mut stop.prepared) {
            out.push(Action::EndPrepared);
        }
        self.looks.stop(out);
        self.cancel_waiting(out);
        let spawning = self
            .slots
            .iter()
            .flatten()
            .any(|slot| slot.life == Life::Spawning);
        let left = self.next_in_turn(&stop, now, out);
        if !left && !self.childless && !stop.swept {
            stop.swept = true;
            if self.plan.stop_grace_ms == u32::MAX {
                stop.deadline = stop.deadline.min(now + LEFT_OVER_MS);
            }
            for signal in [SIGTERM, SIGCONT] {
                out.push(Action::Signal {
                    target: Target::Everybody,
                    signal,
                });
            }
        }
        let gave_up = stop.killed.is_some_and(|killed| killed.give_up_at <= now);
        if (!left && self.childless && !spawning) || gave_up {
            self.phase = Phase::Ended;
            self.report_left_behind(out);
            out.push(Action::Report(EventKind::Stopped));
            out.push(Action::Exit {
                code: self.container_code(),
            });
            return;
        }
        if stop.app_deadline.is_some_and(|deadline| deadline <= now) {
            stop.app_deadline = None;
            let app = self.app;
            if let Some(slot) = self.slot(app).filter(|slot| slot.pid != 0) {
                slot.kill(app, now, out);
            }
        }
        let is_due = stop.killed.is_none_or(|killed| killed.again_at <= now);
        if stop.deadline <= now && is_due {
            let give_up_at = stop
                .killed
                .map_or(now + KILL_WAIT_MS, |killed| killed.give_up_at);
            stop.killed = Some(Killed {
                again_at: now + KILL_AGAIN_MS,
                give_up_at,
            });
            out.push(Action::Signal {
                target: Target::Everybody,
                signal: SIGKILL,
            });
        }
        self.phase = Phase::Stopping(stop);
    }

    fn cancel_waiting(&mut self, out: &mut Actions<'p, '_>) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if let Some(slot) = slot {
                slot.give_up_restart(out);
                slot.give_up_waiting(index, out);
                if slot.pid == 0 && slot.life != Life::Spawning {
                    slot.life = Life::Ended;
                }
            }
        }
    }

    /// Asks those to end whom nobody needs any more, once; false when all of them are gone.
    fn next_in_turn(&mut self, stop: &Stop, now: Millis, out: &mut Actions<'p, '_>) -> bool {
        let mut needed = 0u16;
        let mut left = false;
        // What needs a process stands behind it in the plan.
        for index in (0..=self.app).rev() {
            let is_app = index == self.app;
            let Some(slot) = self.slot(index) else {
                continue;
            };
            if slot.life == Life::Ended || slot.is_stuck() {
                continue;
            }
            let is_needed = needed & (1 << index) != 0;
            needed |= match is_app {
                true => u16::MAX,
                false => slot.spec.after,
            };
            left = true;
            if slot.pid != 0 && !is_needed {
                let signal = stop.passed_on.filter(|_| is_app);
                slot.ask_to_end(index, signal, slot.spec.stop_grace_ms, now, out);
            }
        }
        left
    }

    fn report_left_behind(&self, out: &mut Actions<'p, '_>) {
        let left = |slot: &&Slot<'p>| slot.pid != 0 && !slot.is_stuck();
        for slot in self.slots.iter().flatten().filter(left) {
            out.push(Action::Report(EventKind::LeftBehind {
                name: slot.spec.name,
                pid: slot.pid,
            }));
        }
    }

    /// What the container ends with: the first cause, rewritten as the plan says.
    fn container_code(&self) -> u8 {
        let code = self.exit_code.unwrap_or(0);
        let mut rewrites = self.plan.exit_codes.iter();
        rewrites
            .find(|rewrite| rewrite.from == code)
            .map_or(code, |rewrite| rewrite.to)
    }
}
