//! Steps as they happen: whose they are, when they began and ended.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::Effect;
use crate::instance::{EffectKind, Failure};
use crate::task::{Step, StepOutcome, TaskId, Trail};

/// Ended tasks whose trail waits for the end of their answer.
const UNANSWERED: usize = 256;

#[derive(Debug)]
struct Open {
    first_byte: Instant,
    /// Where the task's present step of its own began.
    mark: Instant,
    trail: Trail,
}

#[derive(Debug)]
struct Begun {
    task: TaskId,
    ordinal: u32,
    name: &'static str,
    attempt: u32,
    at: Instant,
}

/// The trails of a pool's open tasks, and the effects under way that belong to them.
#[derive(Debug, Default)]
pub(super) struct Trails {
    open: BTreeMap<TaskId, Open>,
    /// Tasks whose answer is on its way; a client that went away never gets it.
    closed: VecDeque<TaskId>,
    begun: BTreeMap<u64, Begun>,
}

impl Trails {
    /// The request reached the driver: what was before is `accept`.
    pub fn begin(&mut self, task: &TaskId, first_byte: Instant, now: Instant) {
        let mut open = Open {
            first_byte,
            mark: first_byte,
            trail: Trail::default(),
        };
        open.own_step("accept", now);
        self.open.insert(task.clone(), open);
    }

    /// A task that a crash interrupted goes on: its clock begins again.
    pub fn resume(&mut self, task: &TaskId, now: Instant) {
        self.begin(task, now, now);
    }

    /// The intent is durable.
    pub fn opened(&mut self, task: &TaskId, now: Instant) {
        if let Some(open) = self.open.get_mut(task) {
            open.own_step("intent", now);
        }
    }

    pub fn effect_begun(&mut self, effect: &Effect, now: Instant) {
        let Some(task) = effect
            .instance
            .task
            .as_ref()
            .map(|context| &context.task_id)
        else {
            return;
        };
        if self.open.contains_key(task) {
            let begun = Begun {
                task: task.clone(),
                ordinal: effect.instance.ordinal,
                name: effect.kind.as_str(),
                attempt: effect.instance.attempt,
                at: now,
            };
            self.begun.insert(effect.id, begun);
        }
    }

    pub fn effect_ended(&mut self, id: u64, failure: Option<&Failure>, now: Instant) {
        let Some(begun) = self.begun.remove(&id) else {
            return;
        };
        if let Some(open) = self.open.get_mut(&begun.task) {
            open.trail.steps.push(Step {
                ordinal: Some(begun.ordinal),
                name: begun.name.to_owned(),
                attempt: begun.attempt,
                start_us: micros(begun.at.duration_since(open.first_byte)),
                duration_us: micros(now.duration_since(begun.at)),
                outcome: if failure.is_some() {
                    StepOutcome::Failed
                } else {
                    StepOutcome::Ok
                },
                error: failure.map(ToString::to_string),
            });
        }
    }

    /// The task has ended; its outcome is about to be committed together with the steps so far.
    pub fn closing(&mut self, task: &TaskId, now: Instant) -> Option<Trail> {
        let open = self.open.get_mut(task)?;
        open.mark = now;
        Some(open.trail.clone())
    }

    /// The outcome is durable.
    pub fn closed(&mut self, task: &TaskId, now: Instant) {
        if let Some(open) = self.open.get_mut(task) {
            open.own_step("outcome", now);
            self.closed.push_back(task.clone());
        }
        if self.closed.len() > UNANSWERED
            && let Some(oldest) = self.closed.pop_front()
        {
            self.open.remove(&oldest);
        }
        self.begun.retain(|_, begun| begun.task != *task);
    }

    /// Microseconds from the first byte of the request until the instance was registered for it.
    pub fn registered_us(&self, task: &TaskId, ordinal: u32) -> Option<u64> {
        let steps = &self.open.get(task)?.trail.steps;
        let registered = steps.iter().rev().find(|step| {
            step.ordinal == Some(ordinal)
                && step.outcome == StepOutcome::Ok
                && step.name == EffectKind::Register.as_str()
        });
        registered.map(|step| step.start_us + step.duration_us)
    }

    /// The last byte of the answer is out: the trail is whole.
    pub fn answered(&mut self, task: &TaskId, after: Duration) -> Option<Trail> {
        // A caller whose wait ended before the task did was answered, too: the trail goes on.
        let at = self.closed.iter().position(|closed| closed == task)?;
        self.closed.remove(at);
        self.begun.retain(|_, begun| begun.task != *task);
        let mut open = self.open.remove(task)?;
        open.own_step("answer", open.first_byte + after);
        open.trail.answer_us = Some(micros(after));
        Some(open.trail)
    }

    pub fn forget(&mut self, task: &TaskId) {
        self.open.remove(task);
    }
}

impl Open {
    /// A step of the task itself, from the last mark to now.
    fn own_step(&mut self, name: &str, now: Instant) {
        self.trail.steps.push(Step {
            ordinal: None,
            name: name.to_owned(),
            attempt: 1,
            start_us: micros(self.mark.duration_since(self.first_byte)),
            duration_us: micros(now.duration_since(self.mark)),
            outcome: StepOutcome::Ok,
            error: None,
        });
        self.mark = now;
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
