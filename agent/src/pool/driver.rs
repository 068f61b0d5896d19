//! One task per pool: it alone changes the pool. It never awaits an effect; results come back as
//! events.
//!
//! Effects of one instance never overlap: a later one cancels the earlier, waits until it is over,
//! and only then begins. A result that comes too late has an older id and is ignored by the machine.

use std::collections::{BTreeMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::trails::Trails;
use super::{
    Action, Command, Effect, Effects, Event, Now, Pool, Refusal, Snapshot, Stable, read_clocks,
};
use crate::alarm::{AlarmCode, Alarms, Subject};
use crate::instance::{EffectKind, Failure};
use crate::journal::Write;
use crate::metrics::{Metrics, Verdict};
use crate::network::Ledger;
use crate::task::{Index, Outcome, TaskId};

/// What reaches a driver.
#[derive(Debug)]
pub enum Message {
    /// A new target; the answer goes through the task index.
    Target(crate::task::Request),
    /// A changed manifest or image.
    Revise(
        Arc<crate::instance::Revision>,
        oneshot::Sender<Result<(), Refusal>>,
    ),
    /// This is stable; `None`: the image that covers all instances is.
    Stable(Option<Stable>, oneshot::Sender<Result<(), Refusal>>),
    /// Remove the app; the driver ends when it succeeded.
    Delete {
        /// Take instances out of service without drain.
        force: bool,
        /// Says when nothing is left.
        reply: oneshot::Sender<Result<(), Refusal>>,
    },
    /// Something happened to an instance.
    Happened(Event),
    /// The last byte of a task's answer was written, this long after the first of its request.
    Answered(TaskId, Duration),
}

/// How the rest of the agent reaches a pool.
#[derive(Debug, Clone)]
pub struct PoolHandle {
    /// Messages to the driver.
    pub messages: mpsc::UnboundedSender<Message>,
    /// The pool after the driver's last turn.
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
}

/// What all pools of a host share.
#[derive(Debug)]
pub struct Shared<E> {
    /// Does things.
    pub effects: Arc<E>,
    /// Grants addresses.
    pub ledger: Arc<Mutex<Ledger>>,
    /// Where callers wait for their tasks.
    pub index: Arc<Index>,
    /// What somebody should look at.
    pub alarms: Arc<Alarms>,
    /// Told whenever a pool has a new snapshot, came or went.
    pub moved: watch::Sender<()>,
    /// What is counted and measured.
    pub metrics: Arc<Metrics>,
    /// Creations for warm targets at a time.
    pub refill: Arc<Semaphore>,
    /// Creations for activations at a time.
    pub creations: Arc<Semaphore>,
    /// Owns the effects under way.
    pub tracker: TaskTracker,
    /// Ends the drivers; containers go on.
    pub shutdown: CancellationToken,
}

struct Running {
    cancel: CancellationToken,
    over: CancellationToken,
}

struct Driver<E> {
    pool: Pool,
    shared: Arc<Shared<E>>,
    messages: mpsc::UnboundedSender<Message>,
    /// By instance, and by in-container agent.
    running: BTreeMap<(u32, Option<String>), Running>,
    trails: Trails,
    revisions: VecDeque<oneshot::Sender<Result<(), Refusal>>>,
    deletions: VecDeque<oneshot::Sender<Result<(), Refusal>>>,
    /// Answers that go out behind the snapshot that shows what they say.
    answers: Vec<(TaskId, Outcome)>,
    published: Instant,
    /// Something happened since the last snapshot.
    stale: bool,
    ended: bool,
}

/// While tasks are under way a snapshot is not made for every event.
const BUSY_SNAPSHOTS: Duration = Duration::from_millis(50);

/// Starts the driver of `pool`; `first` are the actions with which an adopted pool goes on.
pub fn spawn<E: Effects>(pool: Pool, first: Vec<Action>, shared: Arc<Shared<E>>) -> PoolHandle {
    let (messages, inbox) = mpsc::unbounded_channel();
    let (publish, snapshot) = watch::channel(Arc::new(pool.snapshot()));
    let driver = Driver {
        pool,
        shared: shared.clone(),
        messages: messages.clone(),
        running: BTreeMap::new(),
        trails: Trails::default(),
        revisions: VecDeque::new(),
        deletions: VecDeque::new(),
        answers: Vec::new(),
        published: Instant::now(),
        stale: true,
        ended: false,
    };
    shared.tracker.spawn(driver.run(first, inbox, publish));
    PoolHandle { messages, snapshot }
}

impl<E: Effects> Driver<E> {
    async fn run(
        mut self,
        first: Vec<Action>,
        mut inbox: mpsc::UnboundedReceiver<Message>,
        publish: watch::Sender<Arc<Snapshot>>,
    ) {
        let now = read_clocks();
        self.alarm(publish.borrow().alarm.as_deref());
        for task in self.pool.open_tasks() {
            self.trails.resume(task, now.at);
        }
        self.carry_out(first, now);
        self.turn(Event::Tick);
        self.publish(&publish);
        while !self.ended {
            let wake = self.pool.wake_at();
            let deadline =
                wake.map_or_else(tokio::time::Instant::now, tokio::time::Instant::from_std);
            let publication = tokio::time::Instant::from_std(self.published + BUSY_SNAPSHOTS);
            tokio::select! {
                biased;
                () = self.shared.shutdown.cancelled() => return,
                message = inbox.recv() => match message {
                    Some(message) => self.take(message),
                    None => return,
                },
                () = tokio::time::sleep_until(deadline), if wake.is_some() => self.turn(Event::Tick),
                () = tokio::time::sleep_until(publication), if self.stale => {}
            }
            while let Ok(message) = inbox.try_recv() {
                self.take(message);
            }
            self.publish(&publish);
        }
        self.turn_away(inbox);
        self.alarm(None);
        // The handle is closed before readers look again.
        drop(publish);
        self.shared.moved.send_replace(());
    }

    /// The app is gone: who comes late is told so.
    fn turn_away(&mut self, mut inbox: mpsc::UnboundedReceiver<Message>) {
        inbox.close();
        while let Ok(message) = inbox.try_recv() {
            match message {
                Message::Target(request) => self
                    .shared
                    .index
                    .refused(&request.context.task_id, Refusal::Deleting),
                Message::Revise(_, reply) | Message::Stable(_, reply) => {
                    answer(Some(reply), Err(Refusal::Deleting));
                }
                Message::Delete { reply, .. } => answer(Some(reply), Ok(())),
                Message::Happened(_) | Message::Answered(..) => {}
            }
        }
    }

    /// The snapshot first, then the answers: who is answered finds what the answer says.
    fn publish(&mut self, publish: &watch::Sender<Arc<Snapshot>>) {
        let resting = self.pool.open_tasks().next().is_none();
        if self.stale
            && (resting || !self.answers.is_empty() || self.published.elapsed() >= BUSY_SNAPSHOTS)
        {
            let snapshot = Arc::new(self.pool.snapshot());
            let alarm = snapshot.alarm.clone();
            let before = publish.send_replace(snapshot);
            if before.alarm != alarm {
                self.alarm(alarm.as_deref());
            }
            self.shared.moved.send_replace(());
            self.published = Instant::now();
            self.stale = false;
        }
        for (task_id, outcome) in self.answers.drain(..) {
            self.shared.index.ended(&task_id, outcome);
        }
    }

    fn measure(&self, task: &TaskId, outcome: &Outcome) {
        let metrics = &self.shared.metrics;
        metrics.task_ended(outcome.state, outcome.elapsed_us);
        for instance in &outcome.instances {
            let Some(from) = &instance.from else {
                continue;
            };
            let registered = self.trails.registered_us(task, instance.ordinal);
            let verdict = match registered {
                Some(_) => Verdict::Ok,
                None => Verdict::Failed,
            };
            metrics.activated(from, verdict, registered);
        }
    }

    fn alarm(&self, detail: Option<&str>) {
        let subject = Subject::App(self.pool.app.clone());
        self.shared
            .alarms
            .set(AlarmCode::InstancesFail, subject, detail);
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Target(request) => {
                self.trails
                    .begin(&request.context.task_id, request.first_byte, Instant::now());
                self.turn(Event::Command(Command::Target(request)));
            }
            Message::Revise(revision, reply) => {
                self.revisions.push_back(reply);
                self.turn(Event::Command(Command::Revise(revision)));
            }
            Message::Stable(stable, reply) => {
                self.revisions.push_back(reply);
                self.turn(Event::Command(Command::Stable(stable)));
            }
            Message::Delete { force, reply } => {
                self.deletions.push_back(reply);
                self.turn(Event::Command(Command::Delete { force }));
            }
            Message::Happened(event) => self.turn(event),
            Message::Answered(task_id, after) => {
                if let Some(trail) = self.trails.answered(&task_id, after) {
                    self.shared.index.keep_trail(task_id, trail);
                }
            }
        }
    }

    fn turn(&mut self, event: Event) {
        self.stale = true;
        let now = read_clocks();
        if let Event::Effect { id, result, .. } = &event {
            self.trails.effect_ended(*id, result.as_ref().err(), now.at);
        }
        let ended = match &event {
            Event::Exited { ordinal, .. } => Some(*ordinal),
            _ => None,
        };
        let ended = ended.filter(|ordinal| self.pool.failed(*ordinal).is_none());
        let actions = {
            let mut ledger = self
                .shared
                .ledger
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            self.pool.step(event, now, &mut ledger)
        };
        if let Some((ordinal, failure)) =
            ended.and_then(|ordinal| Some((ordinal, self.pool.failed(ordinal)?)))
        {
            tracing::warn!(instance = %self.pool.instance_name(ordinal), code = failure.code,
                error = failure.detail, "ended by itself");
        }
        self.carry_out(actions, now);
    }

    fn carry_out(&mut self, actions: Vec<Action>, now: Now) {
        for action in actions {
            match action {
                Action::Commit { id, writes, closes } => self.commit(id, writes, &closes, now),
                Action::Perform(effect) => self.perform(effect, now),
                Action::Opened(context) => {
                    self.trails.opened(&context.task_id, now.at);
                    self.shared.index.opened(&context.task_id);
                }
                Action::Answer(task_id, outcome) => {
                    self.measure(&task_id, &outcome);
                    self.trails.closed(&task_id, now.at);
                    self.answers.push((task_id, outcome));
                }
                Action::Unwritten(task_id, failure) => {
                    self.shared.index.unwritten(&task_id, failure)
                }
                Action::Refuse(task_id, refusal) => {
                    self.trails.forget(&task_id);
                    self.shared.index.refused(&task_id, refusal);
                }
                Action::Revised(result) => answer(self.revisions.pop_front(), result),
                Action::Deleted(Ok(())) => {
                    self.ended = true;
                    for reply in self.deletions.drain(..) {
                        answer(Some(reply), Ok(()));
                    }
                }
                Action::Deleted(refused) => answer(self.deletions.pop_front(), refused),
            }
        }
    }

    fn commit(&mut self, id: u64, mut writes: Vec<Write>, closes: &[TaskId], now: Now) {
        for task_id in closes {
            if let Some(trail) = self.trails.closing(task_id, now.at) {
                writes.push(Write::Trail(task_id.clone(), trail));
            }
        }
        writes.extend(
            self.shared
                .index
                .take_late_trails()
                .into_iter()
                .map(|(id, trail)| Write::Trail(id, trail)),
        );
        let durable = self.shared.effects.commit(writes);
        let (messages, metrics) = (self.messages.clone(), self.shared.metrics.clone());
        self.shared.tracker.spawn(async move {
            let result = AssertUnwindSafe(durable)
                .catch_unwind()
                .await
                .unwrap_or_else(|_| Err(panicked("commit")));
            metrics.committed(Verdict::of(&result), now.at.elapsed());
            let event = match result {
                Ok(()) => Event::Committed(id),
                Err(failure) => {
                    tracing::error!(
                        code = failure.code,
                        error = failure.detail,
                        "the journal refused a commit"
                    );
                    Event::CommitFailed(id, failure)
                }
            };
            // A driver that has ended needs no result.
            let _ = messages.send(Message::Happened(event));
        });
    }

    fn perform(&mut self, effect: Effect, now: Now) {
        if !matches!(effect.kind, EffectKind::Watch | EffectKind::Recover) {
            self.trails.effect_begun(&effect, now.at);
        }
        let ordinal = effect.instance.ordinal;
        let (cancel, over) = (CancellationToken::new(), CancellationToken::new());
        let running = Running {
            cancel: cancel.clone(),
            over: over.clone(),
        };
        let agent = effect.agent.as_ref().map(|agent| agent.name.clone());
        let previous = self.running.insert((ordinal, agent), running);
        if let Some(previous) = &previous {
            previous.cancel.cancel();
        }
        let permits = creation_permits(&effect, &self.shared);
        let (effects, messages) = (self.shared.effects.clone(), self.messages.clone());
        let metrics = self.shared.metrics.clone();
        let over: DropGuard = over.drop_guard();
        self.shared.tracker.spawn(async move {
            if let Some(previous) = previous {
                previous.over.cancelled().await;
            }
            if !effect.after.is_zero() {
                let _ = cancel.run_until_cancelled(tokio::time::sleep(effect.after)).await;
            }
            let mut start = Instant::now();
            let work = async {
                effects.get_ready(&effect, &cancel).await?;
                let _permit = match permits {
                    Some(permits) => cancel.run_until_cancelled(permits.acquire_owned()).await,
                    None => None,
                };
                start = Instant::now();
                match cancel.is_cancelled() {
                    true => Err(Failure::new("cancelled", "overtaken by a later change")),
                    false => effects.perform(&effect, &cancel).await,
                }
            };
            if cancel.is_cancelled() {
                return;
            }
            let result = AssertUnwindSafe(work)
                .catch_unwind()
                .await
                .unwrap_or_else(|_| Err(panicked(effect.kind.as_str())));
            drop(over);
            if !cancel.is_cancelled() {
                let verdict = Verdict::of(&result);
                metrics.step_ended(effect.kind, verdict, start.elapsed());
                if effect.kind == EffectKind::Arm && !effect.instance.serving {
                    metrics.refilled(verdict);
                }
            }
            if let (Err(failure), false) = (&result, cancel.is_cancelled()) {
                let instance = &effect.instance;
                tracing::warn!(instance = %format_args!("{}-{ordinal}", instance.revision.app.name), generation = instance.generation,
                    effect = effect.kind.as_str(), attempt = instance.attempt, code = failure.code, error = failure.detail, "failed");
            }
            let event = Event::Effect {
                ordinal,
                id: effect.id,
                result,
            };
            // A driver that has ended needs no result.
            let _ = messages.send(Message::Happened(event));
        });
    }
}

/// Creating costs the host's strength: activations and refill have separate, bounded shares.
fn creation_permits<E>(effect: &Effect, shared: &Shared<E>) -> Option<Arc<Semaphore>> {
    match effect.kind {
        EffectKind::Network | EffectKind::Create | EffectKind::Arm if effect.instance.serving => {
            Some(shared.creations.clone())
        }
        EffectKind::Network | EffectKind::Create | EffectKind::Arm => Some(shared.refill.clone()),
        _ => None,
    }
}

fn panicked(what: &str) -> Failure {
    Failure::new(
        "internal",
        format!("{what} panicked; this is a defect of nodeagent, its log has the place"),
    )
}

fn answer(reply: Option<oneshot::Sender<Result<(), Refusal>>>, result: Result<(), Refusal>) {
    if let Some(reply) = reply {
        // A caller that is gone does not need the answer.
        let _ = reply.send(result);
    }
}
