//! Rolling to the current revision: which instances come, which go, and when it is over. Pure.
//!
//! ```text
//!                    step at a time                                 when it is active
//! stale, in service ───────────────► a new one comes (from the gate, ──────────────────► a stale one
//!                                    else created), beside it                            leaves, drained
//! ```
//! A pool that rolls has more instances in service than its target, never fewer active ones than it
//! would have without: a stale one leaves when the new one is active. At most `step` are above the
//! target or on their way out at a time, so a roll needs room for `step` instances.
//!
//! A new one that fails stops the roll: no other comes, those under way go to their end, and the
//! stale ones that are left go on serving. So does whatever makes the roll pointless: a target that
//! moved, a later roll, a revision that was applied meanwhile.

use std::sync::Arc;

use crate::instance::{Phase, Revision, Urgency};
use crate::network::Ledger;
use crate::task::{EndState, Request, Roll, TaskContext, Verb};

use super::clock::Now;
use super::intent::Intent;
use super::machine::{Command, OpenTask, Pool, Slot, count};
use super::plan::Leave;

/// The roll that a plan has to go on with.
#[derive(Debug)]
pub(super) struct Rolling {
    pub task: TaskContext,
    step: u32,
    /// No other one comes.
    stopped: bool,
}

impl Pool {
    /// What a request to roll is to the journal and to the task: `None` for other requests.
    pub(super) fn roll_of(&self, request: &Request) -> Option<Roll> {
        let step = request.step.filter(|_| request.verb == Verb::Roll)?;
        Some(Roll {
            step: step.instances(self.target),
            revision: self.revision.id.clone(),
        })
    }

    /// The roll that goes on once `command` is durable.
    pub(super) fn rolling(&self, command: Option<&Command>) -> Option<Rolling> {
        match command {
            Some(Command::Target(request)) if request.verb == Verb::Roll => {
                return Some(Rolling {
                    task: request.context.clone(),
                    step: self.roll_of(request)?.step,
                    stopped: false,
                });
            }
            Some(Command::Target(request))
                if request.verb.target(self.target, request.to) == self.target => {}
            Some(_) => return None,
            None => {}
        }
        let open = self.tasks.values().filter(|task| task.end.is_none());
        let (task, roll) = open
            .filter_map(|task| Some((task, task.roll.as_ref()?)))
            .max_by_key(|(task, _)| task.seq)?;
        let goes_on = self.overtaken(task, roll).is_none();
        goes_on.then(|| Rolling {
            task: task.context.clone(),
            step: roll.step,
            stopped: stopped(task),
        })
    }

    /// At least as many serve as are wanted: who comes beside them, and who leaves.
    pub(super) fn plan_roll(
        &self,
        rolling: &Rolling,
        revision: &Arc<Revision>,
        intent: &mut Intent,
        now: Now,
        ledger: &mut Ledger,
    ) {
        let fresh = |slot: &&Slot| slot.instance.revision.id == revision.id;
        let serving = || self.slots.values().filter(|slot| slot.instance.serving);
        let stale = count(serving().filter(|slot| !fresh(slot)));
        let coming = serving().filter(|slot| fresh(slot) && slot.instance.phase != Phase::Active);
        let above = self.serving().saturating_sub(intent.target);
        let replaced = above.saturating_sub(count(coming)).min(stale);
        let task = Some(rolling.task.clone());
        let leave = Leave::Stale(&revision.id);
        self.plan_excess(replaced, leave, Urgency::Drain, task.clone(), intent);

        let leaving = self.slots.values().filter(|slot| {
            !fresh(slot) && slot.instance.phase.going_down() && slot.instance.from.is_some()
        });
        let room = rolling.step.saturating_sub(above + count(leaving));
        let missing = room.min(stale.saturating_sub(above));
        if missing > 0 && !rolling.stopped && !self.pausing(now) {
            self.plan_missing(missing, task, revision, intent, now, ledger);
        }
    }

    /// Why a roll can no longer be what was asked for.
    pub(super) fn overtaken(&self, task: &OpenTask, roll: &Roll) -> Option<String> {
        let later = |other: &OpenTask| other.roll.is_some() && other.seq > task.seq;
        if self.revision.id != roll.revision {
            return Some(format!(
                "revision {} was applied meanwhile; instances of others go on serving",
                self.revision.id
            ));
        }
        if task.verb.superseded_by(task.to, self.target) {
            return Some(format!(
                "a later task set the target to {} (sequence {})",
                self.target, self.seq
            ));
        }
        let other = self.tasks.values().find(|other| later(other))?;
        Some(format!(
            "a later roll, task {}, goes on with it",
            other.context.task_id
        ))
    }

    /// Every instance in service is of the revision, and those that it replaced are gone.
    pub(super) fn rolled(&self, task: &OpenTask, roll: &Roll) -> bool {
        self.unrolled(roll) == 0 && self.active() >= task.to && !self.roll_under_way(task, roll)
    }

    /// Instances in service that are of another revision.
    fn unrolled(&self, roll: &Roll) -> u32 {
        let stale =
            |slot: &&Slot| slot.instance.serving && slot.instance.revision.id != roll.revision;
        count(self.slots.values().filter(stale))
    }

    /// Something of the roll comes or leaves.
    fn roll_under_way(&self, task: &OpenTask, roll: &Roll) -> bool {
        let of_it = task
            .picked
            .iter()
            .filter_map(|ordinal| self.slots.get(ordinal));
        of_it.into_iter().any(|slot| {
            let instance = &slot.instance;
            let coming = instance.serving && instance.phase != Phase::Active;
            let leaving = instance.phase.going_down() || instance.phase == Phase::Failed;
            coming && instance.revision.id == roll.revision || leaving
        })
    }

    /// How a roll ends that was stopped or has run out of time.
    pub(super) fn roll_ends(&self, task: &OpenTask, roll: &Roll, now: Now) -> Option<EndState> {
        let rests = !self.roll_under_way(task, roll) && self.intent.is_none();
        let given_up = stopped(task) || self.streak >= self.limits.give_up_after;
        if now.at < task.deadline && !(given_up && rests) {
            return None;
        }
        let replaced = task.picked.iter().any(|ordinal| {
            self.slots.get(ordinal).is_some_and(|slot| {
                slot.instance.phase == Phase::Active && slot.instance.revision.id == roll.revision
            })
        });
        Some(match replaced {
            true => EndState::Partial,
            false => EndState::Failed,
        })
    }

    /// What a roll that did not end well leaves, and why.
    pub(super) fn roll_shortfall(&self, task: &OpenTask, roll: &Roll) -> String {
        let first = task.failed.values().map(|(_, failure)| failure).next();
        let cause = first.or(task.unplanned.as_ref());
        let cause = cause.map_or("the deadline passed", |failure| failure.detail.as_str());
        format!(
            "{} of {} in service are still of another revision than {}: {cause}; they go on serving, \
             and the roll does not go on by itself",
            self.unrolled(roll),
            self.serving(),
            roll.revision
        )
    }
}

/// Something of it failed.
fn stopped(task: &OpenTask) -> bool {
    !task.failed.is_empty() || task.unplanned.is_some()
}
