//! A plan as data, its commit, and what happens once that is durable.
//!
//! Until then nothing has changed: a journal that refuses leaves the pool as it was.

use std::sync::Arc;
use std::time::Duration;

use crate::instance::machine as life;
use crate::instance::{Failure, Instance, Revision, Urgency};
use crate::journal::{InstanceRow, StableRow, TaskRow, Write};
use crate::network::{Grant, Ledger};
use crate::task::{Request, TaskContext, Verb};

use super::clock::Now;
use super::machine::{Action, Command, OpenTask, Pool, Refusal, Slot, count};
use super::plan::refuse;
use super::restart::OpenRestart;

/// The longest that a roll takes when its caller sets no deadline.
const LONGEST_ROLL: Duration = Duration::from_secs(86_400);

/// One change of one instance.
#[derive(Debug, Clone)]
pub(super) enum Change {
    /// A new incarnation; `serve` is the activation's generation when it is for service.
    Create {
        ordinal: u32,
        generation: u64,
        serve: Option<u64>,
        revision: Arc<Revision>,
        grant: Grant,
        task: Option<TaskContext>,
    },
    /// Armed, or on its way there: goes into service.
    Activate {
        ordinal: u32,
        generation: u64,
        task: Option<TaskContext>,
    },
    /// On its way to the gate: waits there after all.
    Unserve { ordinal: u32 },
    /// Out of service.
    TakeOut {
        ordinal: u32,
        urgency: Urgency,
        task: Option<TaskContext>,
    },
    /// Out of discovery until it is ready again.
    Withdraw { ordinal: u32 },
    /// Started again in its container.
    Restart {
        ordinal: u32,
        generation: u64,
        urgency: Urgency,
        task: TaskContext,
    },
    /// Back into service: wanted before it was stopped, ready again, or not restarted after all.
    Reinstate {
        ordinal: u32,
        generation: u64,
        task: Option<TaskContext>,
    },
    /// Removed.
    Discard { ordinal: u32 },
    /// A new container on the rootfs that a reboot left.
    Restore { ordinal: u32, generation: u64 },
}

impl Change {
    pub(super) fn ordinal(&self) -> u32 {
        match self {
            Self::Create { ordinal, .. }
            | Self::Activate { ordinal, .. }
            | Self::Unserve { ordinal }
            | Self::Withdraw { ordinal }
            | Self::TakeOut { ordinal, .. }
            | Self::Restart { ordinal, .. }
            | Self::Reinstate { ordinal, .. }
            | Self::Discard { ordinal }
            | Self::Restore { ordinal, .. } => *ordinal,
        }
    }
}

/// A plan whose commit is under way.
#[derive(Debug)]
pub(super) struct Intent {
    pub id: u64,
    pub command: Option<Command>,
    pub target: u32,
    pub changes: Vec<Change>,
    /// Instances that ended and whose place stays empty: the target is without them.
    pub over: Vec<u32>,
    /// Instances that could not be planned, and why.
    pub unplanned: Vec<Failure>,
}

impl Intent {
    /// It lowers the target without a command that says what the target is.
    fn lessens(&self) -> bool {
        let says = matches!(
            self.command,
            Some(Command::Target(_) | Command::Delete { .. })
        );
        !self.over.is_empty() && !says
    }
}

impl Pool {
    /// Makes the plan durable; it is carried out when that is told.
    pub(super) fn send(&mut self, intent: Intent, now: Now, out: &mut Vec<Action>) {
        let mut writes = self.carry(intent.id);
        match &intent.command {
            Some(Command::Target(request)) => {
                let (target, seq) = (intent.target, self.seq + 1);
                let deadline_ms = self.deadline_ms(request);
                let row = TaskRow::open(&self.app, request, target, seq, deadline_ms);
                writes.push(Write::TaskOpened(TaskRow {
                    roll: self.roll_of(request),
                    restart: self.restart_of(request),
                    ..row
                }));
                writes.push(Write::Target {
                    app: self.app.clone(),
                    target: intent.target,
                    seq: self.seq + 1,
                });
            }
            Some(Command::Revise(revision)) => {
                writes.push(Write::Revision(revision.clone(), now.wall_ms))
            }
            Some(Command::Stable(stable)) => {
                let row = stable.as_ref().map(StableRow::of);
                writes.push(Write::Stable(self.app.clone(), row));
            }
            Some(Command::Delete { .. }) => writes.push(Write::Deleting(self.app.clone())),
            None => writes.push(Write::Operation {
                app: self.app.clone(),
                changes: count(intent.changes.iter()),
            }),
        }
        if intent.lessens() {
            let (target, seq) = (intent.target, self.seq + 1);
            let app = self.app.clone();
            writes.push(Write::Target { app, target, seq });
        }
        // Who is over is written as such, so that nobody counts its end again after a restart.
        writes.extend(intent.over.iter().map(|ordinal| self.row(*ordinal)));
        for change in &intent.changes {
            if let Some(instance) = self.after(change) {
                writes.push(Write::Instance(InstanceRow::of(&self.app, &instance)));
            }
        }
        out.push(Action::Commit {
            id: intent.id,
            writes,
            closes: Vec::new(),
        });
        self.intent = Some(intent);
    }

    /// The instance as the change will leave it: what the journal is told before it happens.
    fn after(&self, change: &Change) -> Option<Instance> {
        let mut instance = match change {
            Change::Create {
                ordinal,
                generation,
                revision,
                grant,
                ..
            } => Instance::create(*ordinal, *generation, revision.clone(), grant.clone()),
            other => self.slots.get(&other.ordinal())?.instance.clone(),
        };
        if let Some(event) = edge(change) {
            instance.step(event).ok()?;
        }
        Some(instance)
    }

    fn deadline_ms(&self, request: &Request) -> u64 {
        u64::try_from(self.deadline(request).as_millis()).unwrap_or(u64::MAX)
    }

    fn deadline(&self, request: &Request) -> Duration {
        let app = &self.revision.app;
        let leaves = app.drain + app.termination_grace + Duration::from_secs(30);
        match (request.deadline_seconds, request.verb) {
            (Some(seconds), _) => {
                Duration::try_from_secs_f64(seconds).unwrap_or(self.limits.activation_deadline)
            }
            (None, Verb::Activate) => self.limits.activation_deadline,
            (None, Verb::Deactivate | Verb::Scale) => leaves,
            (None, Verb::Roll) => {
                let step = self.roll_of(request).map_or(1, |roll| roll.step);
                let rounds = self.target.div_ceil(step).max(1);
                let round = self.limits.activation_deadline + leaves;
                round.saturating_mul(rounds).min(LONGEST_ROLL)
            }
            (None, Verb::Restart) => self.limits.activation_deadline + leaves,
        }
    }

    /// The intent is durable: what it says happens now.
    pub(super) fn carry_out(
        &mut self,
        intent: Intent,
        now: Now,
        ledger: &mut Ledger,
        out: &mut Vec<Action>,
    ) {
        match intent.command.clone() {
            Some(Command::Target(request)) => self.open(&request, &intent, now, out),
            Some(Command::Revise(revision)) => {
                self.keep_newest_of_stable();
                self.revision = revision;
                out.push(Action::Revised(Ok(())));
            }
            Some(Command::Stable(stable)) => {
                self.stable = stable;
                out.push(Action::Revised(Ok(())));
            }
            Some(Command::Delete { .. }) => {
                self.deleting = true;
                self.set_target(0, self.seq + 1);
            }
            None => {}
        }
        if intent.lessens() {
            self.set_target(intent.target, self.seq + 1);
        }
        self.lessen(&intent.over);
        if !intent.unplanned.is_empty() {
            self.unplanned(&intent.unplanned, now);
        }
        for change in intent.changes {
            self.apply(change, now, ledger, out);
        }
    }

    fn open(&mut self, request: &Request, intent: &Intent, now: Now, out: &mut Vec<Action>) {
        let (roll, deadline) = (self.roll_of(request), self.deadline(request));
        let restart = self.restart_of(request);
        let agent = restart.as_ref().filter(|restart| restart.agent.is_some());
        let agent = agent.map(|restart| restart.ordinal);
        self.set_target(intent.target, self.seq + 1);
        let picked = intent
            .changes
            .iter()
            .filter(|change| concerns(change, request.verb))
            .map(Change::ordinal);
        // Who takes out waits for those as well that an earlier task is taking out.
        let leaving = self.slots.values().map(|slot| &slot.instance);
        let takes_out = matches!(request.verb, Verb::Deactivate | Verb::Scale);
        let leaving = leaving.filter(|i| takes_out && i.phase.going_down() && i.from.is_some());
        let leaving = leaving.map(|instance| instance.ordinal);
        self.tasks.insert(
            request.context.task_id.clone(),
            OpenTask {
                context: request.context.clone(),
                verb: request.verb,
                to: match request.verb {
                    Verb::Roll | Verb::Restart => intent.target,
                    Verb::Activate | Verb::Deactivate | Verb::Scale => request.to,
                },
                image: request.image,
                roll,
                restart: restart.map(OpenRestart::new),
                target: intent.target,
                seq: self.seq,
                first_byte: request.first_byte,
                deadline: now.at + deadline,
                picked: picked.chain(leaving).chain(agent).collect(),
                failed: Default::default(),
                unplanned: None,
                lessened: false,
                end: None,
                unwritten_until: None,
            },
        );
        out.push(Action::Opened(request.context.clone()));
        if agent.is_some() {
            self.restart_agent(&request.context.task_id, out);
        }
    }

    fn set_target(&mut self, target: u32, seq: u64) {
        self.target = target;
        self.seq = seq;
    }

    fn apply(&mut self, change: Change, now: Now, ledger: &mut Ledger, out: &mut Vec<Action>) {
        let ordinal = change.ordinal();
        if let Change::Create {
            generation,
            revision,
            grant,
            ..
        } = &change
        {
            let instance = Instance::create(ordinal, *generation, revision.clone(), grant.clone());
            let first = instance.effect();
            let slot = Slot {
                instance,
                effect: None,
                since_ms: now.wall_ms,
                over: false,
            };
            self.slots.insert(ordinal, slot);
            self.generations.insert(ordinal, *generation);
            if let Some(kind) = first {
                self.perform(ordinal, kind, Duration::ZERO, out);
            }
        }
        if let Change::Create {
            serve: Some(generation),
            ..
        }
        | Change::Activate { generation, .. }
        | Change::Restart { generation, .. }
        | Change::Reinstate { generation, .. }
        | Change::Restore { generation, .. } = &change
        {
            self.generations.insert(ordinal, *generation);
        }
        let task = match &change {
            Change::Create { task, .. }
            | Change::Activate { task, .. }
            | Change::Reinstate { task, .. }
            | Change::TakeOut { task, .. } => task.as_ref(),
            Change::Restart { task, .. } => Some(task),
            Change::Unserve { .. }
            | Change::Withdraw { .. }
            | Change::Discard { .. }
            | Change::Restore { .. } => None,
        };
        if let Some(task) = task.and_then(|task| self.tasks.get_mut(&task.task_id)) {
            task.picked.insert(ordinal);
        }
        if let Some(event) = edge(&change) {
            self.advance(ordinal, event, now, ledger, out);
        }
    }

    /// The journal refused: the pool is as it was, and says so.
    pub(super) fn take_back(
        &mut self,
        intent: Intent,
        failure: Failure,
        now: Now,
        ledger: &mut Ledger,
        out: &mut Vec<Action>,
    ) {
        for change in &intent.changes {
            if let Change::Create { ordinal, .. } = change {
                ledger.release_all(&self.instance_name(*ordinal), now.steady_ms);
            }
        }
        if let Some(command) = &intent.command {
            refuse(command, Refusal::Journal(failure), out);
        }
    }
}

/// What a roll or a restart chooses is told by each change's own task.
fn concerns(change: &Change, verb: Verb) -> bool {
    match change {
        _ if matches!(verb, Verb::Roll | Verb::Restart) => false,
        Change::Create { serve, .. } => serve.is_some() && verb != Verb::Deactivate,
        Change::Activate { .. } | Change::Reinstate { .. } => verb != Verb::Deactivate,
        Change::Unserve { .. } | Change::TakeOut { .. } => verb != Verb::Activate,
        Change::Withdraw { .. }
        | Change::Restart { .. }
        | Change::Discard { .. }
        | Change::Restore { .. } => false,
    }
}

/// The instance's edge that a change is.
fn edge(change: &Change) -> Option<life::Event> {
    Some(match change.clone() {
        Change::Create { serve: None, .. } => return None,
        Change::Create {
            serve: Some(generation),
            task,
            ..
        }
        | Change::Activate {
            generation, task, ..
        } => life::Event::Activate { generation, task },
        Change::Unserve { .. } => life::Event::Unserve,
        Change::Withdraw { .. } => life::Event::Withdraw,
        Change::TakeOut { urgency, task, .. } => life::Event::Deactivate { urgency, task },
        Change::Restart {
            generation,
            urgency,
            task,
            ..
        } => life::Event::Restart {
            generation,
            urgency,
            task,
        },
        Change::Reinstate {
            generation, task, ..
        } => life::Event::Reinstate { generation, task },
        Change::Discard { .. } => life::Event::Discard,
        Change::Restore { generation, .. } => life::Event::Restore { generation },
    })
}
