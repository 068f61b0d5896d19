//! The stop: the app first, then the agents in reverse, then strangers, all inside one budget.
//!
//! With agents in the plan the app may use all but a tail of the budget (a tenth, at most
//! [`TAIL_MAX_MS`]), so that an app which ignores its signal does not cost a log shipper its last
//! flush. What is left when the budget ends is killed.

use super::actions::{Action, Actions, Target};
use super::process::Life;
use super::{Millis, Phase, SIGKILL, SIGTERM, Scope, Supervisor};
use crate::protocol::EventKind;

/// The most of a budget that is kept for the agents.
const TAIL_MAX_MS: u64 = 2_000;
/// How long the killed may take to be gone; a process stuck in the kernel does not hold us longer.
const KILL_WAIT_MS: u64 = 1_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stop {
    /// End of the budget.
    deadline: Millis,
    /// When the app is killed so that the agents still get their turn.
    app_deadline: Option<Millis>,
    /// The signal from outside that began the stop, passed on instead of the app's stop signal.
    passed_on: Option<u8>,
    /// How many processes of the plan, from the first, have not ended.
    left: usize,
    /// The app was held, and what was made ready for its start is still there.
    prepared: bool,
    /// Strangers were asked to end.
    swept: bool,
    /// Everything was killed; when we stop waiting for it.
    killed: Option<Millis>,
}

impl Stop {
    pub(super) fn due(&self) -> Option<Millis> {
        match self.killed {
            Some(give_up) => Some(give_up),
            None => Some(
                self.app_deadline
                    .unwrap_or(self.deadline)
                    .min(self.deadline),
            ),
        }
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
                let left = self.app + 1;
                let prepared = self.phase == Phase::Armed;
                self.phase = Phase::Stopping(Stop {
                    deadline,
                    app_deadline,
                    passed_on,
                    left,
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
        self.next_in_turn(&mut stop, out);
        let alone = self.childless || self.scope == Scope::Subreaper;
        if stop.left == 0 && !alone && !stop.swept {
            stop.swept = true;
            out.push(Action::Signal {
                target: Target::Everybody,
                signal: SIGTERM,
            });
        }
        let gave_up = stop.killed.is_some_and(|give_up| give_up <= now);
        if (stop.left == 0 && alone && !spawning) || gave_up {
            self.phase = Phase::Ended;
            out.push(Action::Report(EventKind::Stopped));
            out.push(Action::Exit {
                code: self.exit_code.unwrap_or(0),
            });
            return;
        }
        if stop.app_deadline.is_some_and(|deadline| deadline <= now) {
            stop.app_deadline = None;
            let pid = self.app_pid();
            if pid != 0 {
                out.push(Action::Signal {
                    target: Target::Group(pid),
                    signal: SIGKILL,
                });
            }
        }
        if stop.deadline <= now && stop.killed.is_none() {
            stop.killed = Some(now + KILL_WAIT_MS);
            self.kill_all(out);
        }
        self.phase = Phase::Stopping(stop);
    }

    fn cancel_waiting(&mut self, out: &mut Actions<'p, '_>) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if let Some(slot) = slot {
                slot.give_up_waiting(index, out);
            }
        }
    }

    /// Asks the last that still runs to stop, once.
    fn next_in_turn(&mut self, stop: &mut Stop, out: &mut Actions<'p, '_>) {
        while let Some(index) = stop.left.checked_sub(1) {
            let is_app = index == self.app;
            let Some(slot) = self.slot(index) else { return };
            if slot.pid == 0 && slot.life != Life::Spawning {
                slot.life = Life::Ended;
                stop.left = index;
                continue;
            }
            if slot.pid != 0 && !slot.told_to_stop {
                slot.told_to_stop = true;
                let signal = stop
                    .passed_on
                    .filter(|_| is_app)
                    .unwrap_or(slot.spec.stop_signal);
                out.push(Action::Signal {
                    target: Target::Process(slot.pid),
                    signal,
                });
            }
            return;
        }
    }

    fn kill_all(&self, out: &mut Actions<'p, '_>) {
        match self.scope {
            Scope::Namespace => out.push(Action::Signal {
                target: Target::Everybody,
                signal: SIGKILL,
            }),
            Scope::Subreaper => {
                for slot in self.slots.iter().flatten().filter(|slot| slot.pid != 0) {
                    out.push(Action::Signal {
                        target: Target::Group(slot.pid),
                        signal: SIGKILL,
                    });
                }
            }
        }
    }
}
