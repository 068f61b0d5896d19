//! When a task has ended, and as what.

use std::time::Duration;

use crate::instance::machine::UNACKNOWLEDGED;
use crate::instance::{Failure, Instance, Phase};
use crate::journal::Write;
use crate::task::{EndState, InstanceResult, Outcome, TaskId, Verb};

use super::clock::Now;
use super::machine::{Action, OpenTask, Pool, count};

/// Pause before an outcome that could not be written is tried again.
const UNWRITTEN_PAUSE: Duration = Duration::from_secs(1);

impl Pool {
    /// Decides the end of every open task that has one, and asks for the commit of its outcome.
    pub(super) fn close_tasks(&mut self, now: Now, out: &mut Vec<Action>) {
        let ended: Vec<(TaskId, Outcome)> = self
            .tasks
            .iter()
            .filter(|(_, task)| {
                task.end.is_none() && task.unwritten_until.is_none_or(|at| now.at >= at)
            })
            .filter_map(|(id, task)| {
                Some((
                    id.clone(),
                    self.outcome(task, self.end_state(task, now)?, now),
                ))
            })
            .collect();
        for (task_id, outcome) in ended {
            let id = self.id();
            let mut writes = self.carry(id);
            writes.push(Write::TaskClosed {
                task_id: task_id.clone(),
                outcome: outcome.clone(),
                finished_ms: now.wall_ms,
            });
            if let Some(task) = self.tasks.get_mut(&task_id) {
                task.end = Some((id, outcome));
            }
            out.push(Action::Commit {
                id,
                writes,
                closes: vec![task_id],
            });
        }
    }

    /// The outcome is durable: the caller is answered.
    pub(super) fn answer(&mut self, commit: u64, out: &mut Vec<Action>) {
        if let Some(task_id) = self.closing(commit)
            && let Some((_, outcome)) = self.tasks.remove(&task_id).and_then(|task| task.end)
        {
            out.push(Action::Answer(task_id, outcome));
        }
    }

    /// The outcome is not durable: the caller learns so now, and the commit is tried again.
    pub(super) fn unwritten(
        &mut self,
        commit: u64,
        failure: Failure,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let Some(task_id) = self.closing(commit) else {
            return;
        };
        if let Some(task) = self.tasks.get_mut(&task_id) {
            task.end = None;
            task.unwritten_until = Some(now.at + UNWRITTEN_PAUSE);
        }
        out.push(Action::Unwritten(task_id, failure));
    }

    fn closing(&self, commit: u64) -> Option<TaskId> {
        let closing = |task: &OpenTask| task.end.as_ref().is_some_and(|(id, _)| *id == commit);
        self.tasks
            .iter()
            .find(|(_, task)| closing(task))
            .map(|(id, _)| id.clone())
    }

    fn end_state(&self, task: &OpenTask, now: Now) -> Option<EndState> {
        if self.met(task) {
            return Some(EndState::Done);
        }
        if let Some(restart) = &task.restart {
            return self.restart_ends(task, restart, now);
        }
        if let Some(roll) = &task.roll {
            return match self.overtaken(task, roll) {
                Some(_) => Some(EndState::Superseded),
                None => self.roll_ends(task, roll, now),
            };
        }
        let unreachable = task.verb.superseded_by(task.to, self.target) && task.seq < self.seq;
        if unreachable && !task.lessened {
            return Some(EndState::Superseded);
        }
        let hopeless = unreachable || self.streak >= self.limits.give_up_after;
        let given_up = hopeless && !self.progressing(task);
        if now.at >= task.deadline || given_up {
            return Some(if self.achieved_something(task) {
                EndState::Partial
            } else {
                EndState::Failed
            });
        }
        None
    }

    fn met(&self, task: &OpenTask) -> bool {
        let gone = || task.picked.iter().all(|ordinal| !self.leaving(*ordinal));
        match task.verb {
            // By what becomes of its instance: `restart_ends`.
            Verb::Restart => false,
            Verb::Roll => task
                .roll
                .as_ref()
                .is_some_and(|roll| self.rolled(task, roll)),
            Verb::Activate => self.active() >= task.to,
            Verb::Deactivate => self.serving() <= task.to && gone(),
            Verb::Scale => self.active() == task.to && self.serving() == task.to && gone(),
        }
    }

    fn leaving(&self, ordinal: u32) -> bool {
        self.slots
            .get(&ordinal)
            .is_some_and(|slot| slot.instance.phase.going_down())
    }

    /// Something of the task is still under way.
    fn progressing(&self, task: &OpenTask) -> bool {
        match task.verb {
            Verb::Deactivate => true,
            Verb::Activate | Verb::Scale | Verb::Roll | Verb::Restart => self
                .slots
                .values()
                .any(|slot| slot.instance.serving && slot.instance.phase != Phase::Active),
        }
    }

    fn achieved_something(&self, task: &OpenTask) -> bool {
        let phase = |ordinal: &u32| self.slots.get(ordinal).map(|slot| slot.instance.phase);
        match task.verb {
            Verb::Deactivate => task.picked.iter().any(|ordinal| phase(ordinal).is_none()),
            Verb::Activate | Verb::Scale | Verb::Roll | Verb::Restart => task
                .picked
                .iter()
                .any(|ordinal| phase(ordinal) == Some(Phase::Active)),
        }
    }

    fn outcome(&self, task: &OpenTask, state: EndState, now: Now) -> Outcome {
        // Who has what it asked for need not read of those that failed and were replaced, but of
        // what clients may still find.
        let replaced = |ordinal: &u32| {
            let active = self
                .slots
                .get(ordinal)
                .is_some_and(|slot| slot.instance.phase == Phase::Active);
            let failed = task.failed.get(ordinal);
            let failed = failed.is_some_and(|(_, failure)| failure.code != UNACKNOWLEDGED);
            state == EndState::Done && failed && !active
        };
        let told = task.picked.iter().filter(|ordinal| !replaced(ordinal));
        let instances: Vec<InstanceResult> =
            told.map(|&ordinal| self.result(task, ordinal)).collect();
        let detail = match (state, &task.roll) {
            (EndState::Done, _) => None,
            (_, None) if let Some(restart) = &task.restart => {
                Some(self.restart_shortfall(task, restart, state))
            }
            (EndState::Superseded, Some(roll)) => self.overtaken(task, roll),
            (_, Some(roll)) => Some(self.roll_shortfall(task, roll)),
            (EndState::Superseded, None) => Some(format!(
                "a later task set the target to {} (sequence {})",
                self.target, self.seq
            )),
            (EndState::Partial | EndState::Failed, None) => Some(self.shortfall(task)),
        };
        Outcome {
            state,
            target: task.target,
            target_seq: task.seq,
            active: self.active(),
            elapsed_us: u64::try_from(
                now.at
                    .saturating_duration_since(task.first_byte)
                    .as_micros(),
            )
            .unwrap_or(u64::MAX),
            finished_ms: now.wall_ms,
            instances,
            detail,
        }
    }

    fn shortfall(&self, task: &OpenTask) -> String {
        let present = task
            .picked
            .iter()
            .filter_map(|ordinal| self.slots.get(ordinal)?.instance.failure.as_ref());
        let cause = present
            .chain(task.failed.values().map(|(_, failure)| failure))
            .chain(&task.unplanned)
            .next();
        let cause = match cause {
            Some(failure) => failure.detail.clone(),
            None => format!(
                "the deadline passed with {} instances under way",
                self.under_way()
            ),
        };
        let (active, to, target) = (self.active(), task.to, self.target);
        let policy = self.revision.app.restart.as_str();
        if task.lessened {
            return format!(
                "{active} of {to} active: {cause}; restartPolicy is {policy}: the target is {target} now"
            );
        }
        format!("{active} of {to} active: {cause}; the target stays {target} and the pool goes on")
    }

    fn under_way(&self) -> u32 {
        count(
            self.slots
                .values()
                .filter(|s| s.instance.serving && s.instance.phase != Phase::Active),
        )
    }

    fn result(&self, task: &OpenTask, ordinal: u32) -> InstanceResult {
        let slot = self.slots.get(&ordinal);
        let instance = slot.map(|slot| &slot.instance);
        let endpoint = instance.and_then(|i| i.endpoint(self.limits.host_address));
        let failed = task.failed.get(&ordinal);
        let active = instance.is_some_and(|i| i.phase == Phase::Active);
        // Of those that a roll takes out, or that were there, it is of no interest how they once came.
        let came = |i: &&Instance| {
            let roll = task.roll.as_ref();
            task.restart.is_none() && roll.is_none_or(|roll| i.revision.id == roll.revision)
        };
        let error = instance
            .and_then(|i| i.failure.as_ref())
            .or(failed.map(|(_, failure)| failure))
            .filter(|failure| !active && tells(task.verb, failure));
        InstanceResult {
            ordinal,
            state: instance
                .map_or("absent", |i| i.phase.state().as_str())
                .to_owned(),
            from: instance
                .filter(came)
                .and_then(|i| i.from)
                .map(|warmth| warmth.as_str().to_owned()),
            generation: instance
                .map(|i| i.generation)
                .or_else(|| self.generations.get(&ordinal).copied())
                .unwrap_or(0),
            address: endpoint.map(|(address, _)| address),
            port: instance
                .filter(|i| i.revision.app.registration.enabled)
                .and(endpoint)
                .map(|(_, port)| port),
            error: error.map(|failure| (failure.code.to_owned(), failure.detail.clone())),
        }
    }
}

/// Who takes an instance out asks for its end: why it ended is nothing to tell, but what clients may
/// still find is.
pub(super) fn tells(verb: Verb, failure: &Failure) -> bool {
    verb != Verb::Deactivate || matches!(failure.code, UNACKNOWLEDGED | "discovery")
}
