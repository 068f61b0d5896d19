//! The pool machine: events in, actions out; no I/O, no clock, no log.
//!
//! ```text
//!   command ──► queue ──► plan ──► intent (one in flight) ──► committed ──► instances step
//!   effect result, exit ─────────────────────────────────────────┘   │          │
//!                                                                     ▼          ▼
//!                                              tasks end ──► outcome commit ──► answer
//! ```
//! Nothing is created, started, stopped, freed or registered but by an intent that was durable
//! before. A plan is data until its commit is acknowledged: a journal that refuses leaves the pool
//! as it was. One intent is in flight at a time, so plans never race; commands wait in the queue.
//!
//! It does not know addresses' rules (the ledger does), how effects are performed (the driver
//! does), nor documents of the API.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::instance::machine::{self as life, Next};
use crate::instance::{AppName, EffectKind, Failure, Instance, Phase, Revision};
use crate::journal::{InstanceRow, Write};
use crate::network::Ledger;
use crate::task::{Outcome, Request, RestartedAgent, Roll, ScaleImage, TaskContext, TaskId, Verb};

use super::clock::Now;
use super::close;
use super::intent::Intent;
use super::restart::{NotRestarted, OpenRestart};
use super::stable::Stable;

/// What the host allows a pool.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Generations and sequence numbers are greater than this: those of a lost journal were not.
    pub floor: u64,
    /// Nothing is removed of the pool's own accord: a lost journal was not accepted yet.
    pub keep_everything: bool,
    /// Consecutive failures after which a task gives up.
    pub give_up_after: u32,
    /// Default deadline of an activation.
    pub activation_deadline: Duration,
    /// Stale warm instances replaced at a time.
    pub refill: usize,
    /// Address under which clients reach the host, when it is known.
    pub host_address: Option<Ipv4Addr>,
}

/// What the outside asks of a pool; each is answered once.
#[derive(Debug, Clone)]
pub enum Command {
    /// A new target, a roll to the current revision, or a restart of one instance.
    Target(Request),
    /// A changed manifest or image.
    Revise(Arc<Revision>),
    /// This is stable because somebody says so; `None`: what coverage says again.
    Stable(Option<Stable>),
    /// Remove the app.
    Delete {
        /// Take instances out of service, without drain.
        force: bool,
    },
}

/// Why a command was refused: a value, not an error. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// `expectSeq` is not the pool's sequence number.
    SeqMismatch {
        /// What the caller expected.
        expected: u64,
        /// What is true now.
        seq: u64,
        /// The target now.
        target: u32,
    },
    /// The app has instances in service and `--force` was not said.
    InUse {
        /// The target now.
        target: u32,
        /// Instances in service or on their way.
        serving: u32,
    },
    /// The app is being deleted.
    Deleting,
    /// The instance is not restarted in place.
    Restart(NotRestarted),
    /// The journal did not take the intent.
    Journal(Failure),
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// Somebody asks.
    Command(Command),
    /// A commit is durable.
    Committed(u64),
    /// A commit was refused; nothing of it is durable.
    CommitFailed(u64, Failure),
    /// An effect ended.
    Effect {
        /// The instance.
        ordinal: u32,
        /// The effect's id; an older one is ignored.
        id: u64,
        /// How it ended.
        result: Result<(), Failure>,
    },
    /// A container or its app ended, or the container began to because an essential agent did.
    Exited {
        /// The instance.
        ordinal: u32,
        /// Of the container that ended; another one's end is ignored.
        create_generation: u64,
        /// What is known of the end.
        failure: Failure,
    },
    /// The loss of the journal is accepted.
    Accepted,
    /// A deadline or a back-off is over.
    Tick,
}

/// One effect to perform on the host. Performing it twice is the same as once.
#[derive(Debug, Clone)]
pub struct Effect {
    /// Identifies the result.
    pub id: u64,
    /// The instance as it is now.
    pub instance: Instance,
    /// What to do.
    pub kind: EffectKind,
    /// The in-container agent that it is done to, beside what is done to the instance.
    pub agent: Option<RestartedAgent>,
    /// Pause before it (an effect that is tried again).
    pub after: Duration,
}

/// What the driver does next.
#[derive(Debug)]
pub enum Action {
    /// Make durable, then say `Committed` or `CommitFailed` with this id.
    Commit {
        /// Identifies the result.
        id: u64,
        /// In one transaction.
        writes: Vec<Write>,
        /// The tasks whose OUTCOME this commit is: the driver adds their trail to it.
        closes: Vec<TaskId>,
    },
    /// Perform; an effect of the same instance (or of the same in-container agent of it) that still
    /// runs is cancelled and awaited first.
    Perform(Effect),
    /// The task is accepted: its INTENT is durable.
    Opened(TaskContext),
    /// The task has ended and its OUTCOME is durable.
    Answer(TaskId, Outcome),
    /// The task has ended, but its OUTCOME could not be written; it is tried again.
    Unwritten(TaskId, Failure),
    /// The request was refused.
    Refuse(TaskId, Refusal),
    /// The revision is the pool's, or the stable one, from now on; or that was refused.
    Revised(Result<(), Refusal>),
    /// Nothing of the app is left on the host (end of the pool; everybody who asked is told), or
    /// the oldest request for it was refused.
    Deleted(Result<(), Refusal>),
}

/// A task that has not been answered.
#[derive(Debug, Clone)]
pub(super) struct OpenTask {
    pub context: TaskContext,
    pub verb: Verb,
    /// N; of a roll and of a restart the target that they found.
    pub to: u32,
    /// Which image missing instances are made from.
    pub image: ScaleImage,
    /// What a roll does.
    pub roll: Option<Roll>,
    /// What a restart does, and how far it is.
    pub restart: Option<OpenRestart>,
    pub target: u32,
    pub seq: u64,
    pub first_byte: Instant,
    pub deadline: Instant,
    /// Instances it chose.
    pub picked: BTreeSet<u32>,
    /// The last failure of each instance it chose.
    pub failed: BTreeMap<u32, (u64, Failure)>,
    /// What last kept an instance from being planned: no failure of any instance.
    pub unplanned: Option<Failure>,
    /// An instance that it chose has ended, and nobody takes its place.
    pub lessened: bool,
    /// Its end, once decided, and the commit that makes it durable.
    pub end: Option<(u64, Outcome)>,
    /// The outcome could not be written: not before this it is tried again.
    pub unwritten_until: Option<Instant>,
}

#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub instance: Instance,
    /// The effect under way.
    pub effect: Option<u64>,
    /// Unix milliseconds since when it is in its phase.
    pub since_ms: u64,
    /// It ended in service, and by its restart policy nobody takes its place: the target does not
    /// say so yet.
    pub over: bool,
}

/// All instances of one app.
#[derive(Debug)]
pub struct Pool {
    pub(super) app: AppName,
    /// The one that was applied last.
    pub(super) revision: Arc<Revision>,
    pub(super) stable: Option<Stable>,
    pub(super) unwritten_stable: super::stable::Unwritten,
    pub(super) target: u32,
    pub(super) seq: u64,
    pub(super) slots: BTreeMap<u32, Slot>,
    /// Last generation of every ordinal that ever was.
    pub(super) generations: BTreeMap<u32, u64>,
    /// Milliseconds of steady time since when nothing is left of an ordinal.
    pub(super) released: BTreeMap<u32, u64>,
    pub(super) tasks: BTreeMap<TaskId, OpenTask>,
    pub(super) queue: VecDeque<Command>,
    pub(super) intent: Option<Intent>,
    pub(super) deleting: bool,
    /// The deletion was asked for again, with force.
    pub(super) hurried: bool,
    /// Instances whose row in the journal is behind.
    pub(super) dirty: BTreeSet<u32>,
    /// Those whose row a commit under way carries; a refused one gives them back.
    pub(super) carried: BTreeMap<u64, BTreeSet<u32>>,
    /// The journal refused: until then nothing is committed of the pool's own accord.
    pub(super) stalled_until: Option<Instant>,
    /// Failures since the last success: a task gives up by them, an alarm is raised by them.
    pub(super) streak: u32,
    /// A commit of dirty rows alone is under way.
    pub(super) settling: Option<u64>,
    /// The commit that removes the app from the journal is under way.
    pub(super) removal: Option<u64>,
    pub(super) failures: u32,
    pub(super) last_failure: Option<Instant>,
    pub(super) retry_at: Option<Instant>,
    pub(super) alarm: Option<String>,
    pub(super) limits: Limits,
    next_id: u64,
}

/// A failure this long after the pause of the last one begins a new count.
const FAILURES_FORGOTTEN_AFTER: Duration = Duration::from_secs(60);
/// Pause before the journal is asked again after it refused.
const JOURNAL_PAUSE: Duration = Duration::from_secs(1);
/// Code of a failure: a process of the host has a port that the ledger granted.
pub const HOST_PORT_TAKEN: &str = "host_port_taken";
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Pause after `failures` consecutive ones: none after the first, then 200 ms doubling to a minute.
pub(super) fn pause(failures: u32) -> Duration {
    match failures {
        0 | 1 => Duration::ZERO,
        n => Duration::from_millis(100 << (n - 1).min(12)).min(LONGEST_PAUSE),
    }
}

/// Doublings of the pause: discovery comes back by itself and costs little to ask.
fn longest(kind: EffectKind) -> u32 {
    match kind {
        EffectKind::Register | EffectKind::Deregister => 6,
        _ => 9,
    }
}

impl Pool {
    /// A pool with nothing in it.
    pub fn new(revision: Arc<Revision>, limits: Limits) -> Self {
        Self {
            app: revision.app.name.clone(),
            revision,
            stable: None,
            unwritten_stable: Default::default(),
            target: 0,
            seq: limits.floor,
            slots: BTreeMap::new(),
            generations: BTreeMap::new(),
            released: BTreeMap::new(),
            tasks: BTreeMap::new(),
            queue: VecDeque::new(),
            intent: None,
            deleting: false,
            hurried: false,
            dirty: BTreeSet::new(),
            carried: BTreeMap::new(),
            stalled_until: None,
            streak: 0,
            settling: None,
            removal: None,
            failures: 0,
            last_failure: None,
            retry_at: None,
            alarm: None,
            limits,
            next_id: 1,
        }
    }

    /// Generations go on where a former app of this name left them.
    pub fn with_left_behind(mut self, rows: &[InstanceRow]) -> Self {
        for row in rows {
            self.generations
                .insert(row.instance.ordinal, row.generation);
            self.released
                .insert(row.instance.ordinal, row.released_ms.unwrap_or(0));
        }
        self
    }

    /// One event. The actions are to be carried out in their order.
    pub fn step(&mut self, event: Event, now: Now, ledger: &mut Ledger) -> Vec<Action> {
        let mut out = Vec::new();
        self.expire(now);
        match event {
            Event::Command(command) => self.queue.push_back(command),
            Event::Committed(id) => self.committed(id, now, ledger, &mut out),
            Event::CommitFailed(id, failure) => {
                self.commit_failed(id, failure, now, ledger, &mut out)
            }
            Event::Effect {
                ordinal,
                id,
                result,
            } => self.effect_ended(ordinal, id, result, now, ledger, &mut out),
            Event::Exited {
                ordinal,
                create_generation,
                failure,
            } => {
                if self.container(ordinal, create_generation).is_some() {
                    self.advance(ordinal, life::Event::Exited(failure), now, ledger, &mut out);
                }
            }
            Event::Accepted => self.limits.keep_everything = false,
            Event::Tick => {}
        }
        self.note_coverage(now);
        self.close_tasks(now, &mut out);
        self.plan_next(now, ledger, &mut out);
        self.settle(&mut out);
        out
    }

    /// The instance, if its container is still the one that is meant.
    pub(super) fn container(&self, ordinal: u32, create_generation: u64) -> Option<&Slot> {
        let slot = self.slots.get(&ordinal);
        slot.filter(|slot| slot.instance.create_generation == create_generation)
    }

    /// Why the instance has failed, as long as it waits to be discarded.
    pub fn failed(&self, ordinal: u32) -> Option<&Failure> {
        let instance = &self.slots.get(&ordinal)?.instance;
        let failed = instance.phase == Phase::Failed;
        instance.failure.as_ref().filter(|_| failed)
    }

    /// What is over is forgotten: no timer of the past wakes the driver.
    fn expire(&mut self, now: Now) {
        let over = |at: &mut Instant| now.at >= *at;
        self.retry_at.take_if(over);
        self.stalled_until.take_if(over);
        for task in self.tasks.values_mut() {
            task.unwritten_until.take_if(over);
        }
    }

    /// When `Tick` has to come at the latest, if ever.
    pub fn wake_at(&self) -> Option<Instant> {
        let open = self.tasks.values().filter(|t| t.end.is_none());
        let deadlines = open.map(|t| t.unwritten_until.unwrap_or(t.deadline));
        let retry = self.retry_at.filter(|_| self.wants_more());
        deadlines.chain(retry).chain(self.stalled_until).min()
    }

    /// Tasks without an answer.
    pub fn open_tasks(&self) -> impl Iterator<Item = &TaskId> {
        self.tasks.keys()
    }

    pub(super) fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn committed(&mut self, id: u64, now: Now, ledger: &mut Ledger, out: &mut Vec<Action>) {
        self.carried.remove(&id);
        if self.intent.as_ref().is_some_and(|intent| intent.id == id) {
            if let Some(intent) = self.intent.take() {
                self.carry_out(intent, now, ledger, out);
            }
        } else if self.settling == Some(id) {
            self.settling = None;
        } else if self.removal == Some(id) {
            out.push(Action::Deleted(Ok(())));
        } else {
            self.answer(id, out);
        }
    }

    fn commit_failed(
        &mut self,
        id: u64,
        failure: Failure,
        now: Now,
        ledger: &mut Ledger,
        out: &mut Vec<Action>,
    ) {
        self.dirty
            .extend(self.carried.remove(&id).unwrap_or_default());
        self.stable_refused(id);
        self.stalled_until = Some(now.at + JOURNAL_PAUSE);
        if self.intent.as_ref().is_some_and(|intent| intent.id == id) {
            if let Some(intent) = self.intent.take() {
                self.take_back(intent, failure, now, ledger, out);
            }
        } else if self.settling == Some(id) {
            self.settling = None;
        } else if self.removal == Some(id) {
            self.removal = None;
        } else {
            self.unwritten(id, failure, now, out);
        }
    }

    fn effect_ended(
        &mut self,
        ordinal: u32,
        id: u64,
        result: Result<(), Failure>,
        now: Now,
        ledger: &mut Ledger,
        out: &mut Vec<Action>,
    ) {
        if self.agent_restarted(id, &result) {
            return;
        }
        let Some(slot) = self
            .slots
            .get_mut(&ordinal)
            .filter(|slot| slot.effect == Some(id))
        else {
            return;
        };
        slot.effect = None;
        let event = match result {
            Ok(()) => life::Event::Done,
            Err(failure) => life::Event::Fail(failure),
        };
        self.advance(ordinal, event, now, ledger, out);
    }

    /// Steps one instance and follows up. A denied event changes nothing.
    pub(super) fn advance(
        &mut self,
        ordinal: u32,
        event: life::Event,
        now: Now,
        ledger: &mut Ledger,
        out: &mut Vec<Action>,
    ) {
        let Some(slot) = self.slots.get_mut(&ordinal) else {
            return;
        };
        let (before, was_unhealthy) = (slot.instance.phase, slot.instance.unhealthy);
        let was_let_go = super::rest::let_go(&slot.instance);
        let Ok(next) = slot.instance.step(event) else {
            return;
        };
        let (phase, attempt) = (slot.instance.phase, slot.instance.attempt);
        let unhealthy = slot.instance.unhealthy && !was_unhealthy;
        if phase != before {
            slot.since_ms = now.wall_ms;
            if matches!(phase, Phase::Armed | Phase::Active | Phase::Unready) {
                self.dirty.insert(ordinal);
            }
            if matches!(phase, Phase::Armed | Phase::Active) {
                self.streak = 0;
                self.alarm = None;
            }
        }
        match next {
            Next::Rest => {}
            Next::Perform(kind) => self.perform(ordinal, kind, Duration::ZERO, out),
            Next::Again(kind) => {
                self.perform(ordinal, kind, pause(attempt.min(longest(kind))), out)
            }
            Next::Gone => {
                let name = crate::instance::InstanceName::new(self.app.clone(), ordinal);
                if slot
                    .instance
                    .failure
                    .as_ref()
                    .is_some_and(|f| f.code == HOST_PORT_TAKEN)
                {
                    ledger.avoid_ports(&name, now.steady_ms);
                }
                ledger.release_all(&name, now.steady_ms);
                self.slots.remove(&ordinal);
                self.released.insert(ordinal, now.steady_ms);
                self.dirty.insert(ordinal);
            }
        }
        if phase == Phase::Failed && before != Phase::Failed {
            if was_let_go {
                self.note_end(ordinal);
            }
            self.instance_failed(ordinal, now);
        } else if unhealthy {
            self.note_failure(now);
        }
        if phase == Phase::Stopping && before == Phase::Deregistering {
            self.tell_tasks(ordinal, |failure| failure.code == life::UNACKNOWLEDGED);
        }
    }

    pub(super) fn perform(
        &mut self,
        ordinal: u32,
        kind: EffectKind,
        after: Duration,
        out: &mut Vec<Action>,
    ) {
        let id = self.id();
        if let Some(slot) = self.slots.get_mut(&ordinal) {
            slot.effect = Some(id);
            out.push(Action::Perform(Effect {
                id,
                instance: slot.instance.clone(),
                kind,
                agent: None,
                after,
            }));
        }
    }

    fn instance_failed(&mut self, ordinal: u32, now: Now) {
        let mut completed = false;
        if let Some(slot) = self.slots.get_mut(&ordinal) {
            slot.effect = None;
            let failure = slot.instance.failure.as_ref();
            completed = slot.over && failure.is_some_and(|f| f.code == life::COMPLETED);
        }
        self.tell_tasks(ordinal, |_| true);
        if !completed {
            self.note_failure(now);
        }
    }

    /// The tasks that chose the instance remember why it is not where they wanted it.
    fn tell_tasks(&mut self, ordinal: u32, worth: impl FnOnce(&Failure) -> bool) {
        let Some(instance) = self.slots.get(&ordinal).map(|slot| &slot.instance) else {
            return;
        };
        let Some(failure) = instance.failure.clone().filter(worth) else {
            return;
        };
        // One that a roll replaces is gone however it ends; what clients may still find of it counts.
        let concerns = |task: &OpenTask| match &task.roll {
            Some(roll) if roll.revision != instance.revision.id => {
                close::tells(Verb::Deactivate, &failure)
            }
            _ => true,
        };
        let chose = |task: &&mut OpenTask| task.picked.contains(&ordinal) && concerns(task);
        for task in self.tasks.values_mut().filter(chose) {
            task.failed
                .insert(ordinal, (instance.generation, failure.clone()));
        }
    }

    /// Counts a failure and sets the pause before the next try.
    pub(super) fn note_failure(&mut self, now: Now) {
        let forgotten = self.last_failure.is_none_or(|at| {
            now.at.duration_since(at) > FAILURES_FORGOTTEN_AFTER + pause(self.failures)
        });
        self.failures = if forgotten {
            1
        } else {
            self.failures.saturating_add(1)
        };
        self.streak = self.streak.saturating_add(1);
        self.last_failure = Some(now.at);
        self.retry_at = Some(now.at + pause(self.failures));
        if self.streak >= self.limits.give_up_after && self.alarm.is_none() {
            self.alarm = Some(format!(
                "{} consecutive failures; the pool goes on with a pause of up to {} s between tries",
                self.streak,
                LONGEST_PAUSE.as_secs()
            ));
        }
    }

    /// Instances in service or on their way into it.
    pub(super) fn serving(&self) -> u32 {
        count(self.slots.values().filter(|s| s.instance.serving))
    }

    /// Instances in service.
    pub fn active(&self) -> u32 {
        count(
            self.slots
                .values()
                .filter(|s| s.instance.phase == Phase::Active),
        )
    }

    pub(super) fn pausing(&self, now: Now) -> bool {
        self.retry_at.is_some_and(|at| now.at < at)
    }

    /// The generation of an ordinal's next incarnation or activation.
    pub(super) fn next_generation(&self, ordinal: u32) -> u64 {
        let last = self.generations.get(&ordinal).copied().unwrap_or(0);
        last.max(self.limits.floor) + 1
    }

    pub(super) fn instance_name(&self, ordinal: u32) -> crate::instance::InstanceName {
        crate::instance::InstanceName::new(self.app.clone(), ordinal)
    }

    /// The rows of all instances whose row is behind, for this commit.
    pub(super) fn carry(&mut self, commit: u64) -> Vec<Write> {
        let dirty = std::mem::take(&mut self.dirty);
        let mut rows: Vec<Write> = dirty.iter().map(|ordinal| self.row(*ordinal)).collect();
        self.carried.insert(commit, dirty);
        rows.extend(self.carry_stable(commit));
        rows
    }

    pub(super) fn row(&self, ordinal: u32) -> Write {
        match self.slots.get(&ordinal) {
            Some(slot) => Write::Instance(InstanceRow::of(&self.app, &slot.instance)),
            None => Write::InstanceGone {
                instance: self.instance_name(ordinal),
                generation: self.generations.get(&ordinal).copied().unwrap_or(0),
                released_ms: self.released.get(&ordinal).copied().unwrap_or(0),
            },
        }
    }

    /// Rows that are behind are written when nothing more urgent carries them.
    fn settle(&mut self, out: &mut Vec<Action>) {
        // What is gone frees an address: that is not left to the next commit that comes along.
        let gone = self
            .dirty
            .iter()
            .any(|ordinal| !self.slots.contains_key(ordinal));
        let busy = self.intent.is_some() || self.settling.is_some() || self.removal.is_some();
        if self.dirty.is_empty() && !self.stable_is_behind()
            || busy
            || self.stalled_until.is_some()
            || !(gone || self.tasks.is_empty())
        {
            return;
        }
        let id = self.id();
        self.settling = Some(id);
        let writes = self.carry(id);
        out.push(Action::Commit {
            id,
            writes,
            closes: Vec::new(),
        });
    }
}

pub(super) fn count<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}
