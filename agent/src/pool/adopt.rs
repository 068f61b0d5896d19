//! A pool after a restart: what the journal says, held against what is true on the host.
//!
//! Reality wins over the journal; the journal says what was meant. Nothing is replayed: an effect
//! is performed (again) only for what is observed not to be there yet.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::instance::machine::NOT_READY;
use crate::instance::{EffectKind, Failure, Instance, Phase, Revision};
use crate::journal::{InstanceRow, PoolRow, TaskRow};
use crate::network::{Grant, Ledger};
use crate::task::{Roll, TaskId};

use super::clock::Now;
use super::machine::{Action, Event, Limits, OpenTask, Pool, Slot};
use super::restart::OpenRestart;
use super::stable::Stable;

/// What was observed of one instance's container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observation {
    /// There is no running container.
    Absent,
    /// It runs, but its container-init has not come to the gate.
    Silent,
    /// Its container-init is at the gate and says this.
    Connected {
        /// Generation that container-init works for.
        generation: u64,
        /// The in-container agents are up.
        armed: bool,
        /// The app was let go.
        started: bool,
        /// The app has ended, or everything is being ended.
        over: bool,
    },
    /// Nobody could be asked: containerd is down and container-init has not come.
    Unknown,
}

/// Whether discovery knows an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed {
    /// A backend lists it, or could not be asked.
    Yes,
    /// No backend does.
    No,
}

/// A pool as the journal knows it.
#[derive(Debug)]
pub struct Adopted {
    /// Target and revision.
    pub pool: PoolRow,
    /// The current revision.
    pub revision: Arc<Revision>,
    /// The stable revision, if one is.
    pub stable: Option<Stable>,
    /// All revisions of the app, by id.
    pub revisions: BTreeMap<String, Arc<Revision>>,
    /// Its instances with what was observed of each, and whether a backend lists it.
    pub instances: Vec<(InstanceRow, Observation, Listed)>,
    /// How those ended that are not there any more, by ordinal, where that is known.
    pub ends: BTreeMap<u32, Failure>,
    /// Its tasks without an outcome.
    pub tasks: Vec<TaskRow>,
}

/// Where a row and an observation leave an instance.
enum Resume {
    At(Phase),
    /// It cannot go on, and this is why.
    Failed(&'static str),
    /// It has ended; this is said when nobody knows how.
    Ended(&'static str),
}

impl Pool {
    /// The pool goes on; the actions are the effects that are (still) to be performed.
    pub fn adopt(
        adopted: Adopted,
        limits: Limits,
        now: Now,
        ledger: &mut Ledger,
    ) -> (Self, Vec<Action>) {
        let mut pool = Self::new(adopted.revision.clone(), limits);
        pool.target = adopted.pool.target;
        pool.seq = adopted.pool.seq;
        pool.deleting = adopted.pool.deleting;
        pool.stable = adopted.stable;
        for (row, observation, listed) in adopted.instances {
            let ordinal = row.instance.ordinal;
            pool.generations.insert(ordinal, row.generation);
            match row.released_ms {
                Some(at) => {
                    pool.released.insert(ordinal, at);
                }
                None => {
                    let revision = adopted
                        .revisions
                        .get(&row.revision)
                        .unwrap_or(&adopted.revision)
                        .clone();
                    let ended = adopted.ends.get(&ordinal).cloned();
                    let instance = resume(&row, observation, listed, revision, ended);
                    let slot = Slot {
                        instance,
                        effect: None,
                        since_ms: now.wall_ms,
                        over: false,
                    };
                    let ended = slot.instance.phase == Phase::Failed;
                    pool.slots.insert(ordinal, slot);
                    if ended && row.serving && was_let_go(row.phase) {
                        pool.note_end(ordinal);
                    }
                    pool.dirty.insert(ordinal);
                }
            }
        }
        for row in adopted.tasks {
            let elapsed = Duration::from_millis(now.steady_ms.saturating_sub(row.steady_ms));
            let left = Duration::from_millis(row.deadline_ms).saturating_sub(elapsed);
            let mine = |slot: &&Slot| {
                slot.instance
                    .task
                    .as_ref()
                    .is_some_and(|task| task.task_id == row.context.task_id)
            };
            let mine = || pool.slots.values().filter(mine);
            let failed = mine().filter_map(|slot| failed_in(row.roll.as_ref()?, &slot.instance));
            let task = OpenTask {
                verb: row.verb,
                to: row.to,
                image: row.image,
                failed: failed.collect(),
                picked: mine()
                    .map(|slot| slot.instance.ordinal)
                    .chain(row.restart.as_ref().map(|restart| restart.ordinal))
                    .collect(),
                roll: row.roll,
                restart: row.restart.map(OpenRestart::new),
                target: row.target,
                seq: row.seq,
                first_byte: now.at.checked_sub(elapsed).unwrap_or(now.at),
                deadline: now.at + left,
                unplanned: None,
                lessened: false,
                end: None,
                unwritten_until: None,
                context: row.context,
            };
            pool.tasks.insert(task.context.task_id.clone(), task);
        }
        let mut out = Vec::new();
        let effects: Vec<(u32, EffectKind)> = pool
            .slots
            .iter()
            .filter_map(|(&ordinal, slot)| Some((ordinal, slot.instance.effect()?)))
            .collect();
        for (ordinal, kind) in effects {
            pool.perform(ordinal, kind, Duration::ZERO, &mut out);
        }
        let open: Vec<TaskId> = pool.tasks.keys().cloned().collect();
        for task_id in open {
            pool.restart_agent(&task_id, &mut out);
        }
        out.extend(pool.step(Event::Tick, now, ledger));
        (pool, out)
    }
}

fn resume(
    row: &InstanceRow,
    observation: Observation,
    listed: Listed,
    revision: Arc<Revision>,
    ended: Option<Failure>,
) -> Instance {
    let mut instance = Instance::create(
        row.instance.ordinal,
        row.create_generation,
        revision,
        Grant {
            address: row.address,
            host_ports: row.host_ports.clone(),
        },
    );
    let first = instance.phase;
    instance.generation = row.generation;
    instance.rootfs_generation = row.rootfs_generation;
    instance.serving = row.serving;
    instance.reuses = row.reuses;
    instance.from = row.from;
    instance.task = row.task.clone();
    instance.urgency = row.urgency;
    // Between an intent and its outcome the registration may have been sent.
    let may_be = was_let_go(row.phase) && instance.revision.app.registration.enabled;
    instance.registered = row.registered || may_be || listed == Listed::Yes;
    let gone = |why| Failure::new("gone", format!("{} {why}", row.instance));
    let failure = match place(row, observation, listed, first) {
        Resume::At(phase) => {
            instance.phase = phase;
            if phase == Phase::Withdrawing {
                let why = format!("{} was not ready before the agent came back", row.instance);
                instance.failure = Some(Failure::new(NOT_READY, why).passing());
            }
            return instance;
        }
        Resume::Failed(why) => gone(why),
        Resume::Ended(why) => ended.unwrap_or_else(|| gone(why)),
    };
    instance.phase = Phase::Failed;
    instance.serving = false;
    instance.failure = Some(failure);
    instance
}

/// An instance that a roll brought and that is not to come any more.
fn failed_in(roll: &Roll, instance: &Instance) -> Option<(u32, (u64, Failure))> {
    let over = instance.phase == Phase::Failed || instance.phase.going_down();
    let brought = instance.revision.id == roll.revision;
    let gone = || Failure::new("gone", "a new instance failed before the agent came back");
    let failure = || instance.failure.clone().unwrap_or_else(gone);
    (over && brought).then(|| (instance.ordinal, (instance.generation, failure())))
}

fn was_let_go(phase: Phase) -> bool {
    matches!(
        phase,
        Phase::Starting
            | Phase::Probing
            | Phase::Registering
            | Phase::Active
            | Phase::Withdrawing
            | Phase::Unready
            | Phase::Leaving
            | Phase::Emptying
            | Phase::Restarting
            | Phase::Deregistering
            | Phase::Draining
    )
}

fn place(row: &InstanceRow, observation: Observation, listed: Listed, first: Phase) -> Resume {
    const GONE: &str = "was not there any more when the agent came back";
    const OVER: &str = "had ended when the agent came back";
    let let_go = was_let_go(row.phase);
    match (row.phase, observation) {
        // On its way down it goes on from the beginning: each of these steps finds its work done.
        (Phase::Deregistering | Phase::Draining, _) => Resume::At(Phase::Deregistering),
        (Phase::Stopping | Phase::Removing | Phase::Releasing, _) => Resume::At(Phase::Stopping),
        (Phase::Lost, _) => Resume::At(Phase::Lost),
        (Phase::Failed, _) => Resume::Failed("had failed before the agent came back"),
        (_, Observation::Connected { over: true, .. }) => Resume::Ended(OVER),
        // The generation says whether container-init was asked already; asked again it does not do it
        // again. Until then clients are taken away first.
        (phase, Observation::Connected { generation, .. }) if phase.before_restart() => {
            Resume::At(match generation >= row.generation {
                true => Phase::Restarting,
                false => Phase::Leaving,
            })
        }
        (Phase::Restarting, Observation::Connected { .. }) => Resume::At(Phase::Restarting),
        (phase, Observation::Connected { started: true, .. }) => {
            if let_go || row.serving {
                // Already active: to register again with the same generation changes nothing.
                Resume::At(match phase {
                    Phase::Active => Phase::Registering,
                    Phase::Withdrawing | Phase::Unready => Phase::Withdrawing,
                    _ => Phase::Probing,
                })
            } else {
                Resume::Failed("was let go without an intent")
            }
        }
        (_, Observation::Connected { armed: true, .. }) => Resume::At(if row.serving {
            Phase::Starting
        } else {
            Phase::Armed
        }),
        // Clients still find what is not there: that goes first, then a new one comes.
        (phase, _) if phase.on_the_way_to_armed() && listed == Listed::Yes => Resume::Ended(GONE),
        (phase, _) if phase.on_the_way_to_armed() => Resume::At(first),
        (_, Observation::Absent) => Resume::Ended(GONE),
        // Nobody contradicts the journal: what serves is not touched, and nothing is registered
        // without a sign of life.
        (Phase::Active, _) => Resume::At(Phase::Active),
        (Phase::Withdrawing | Phase::Unready, _) => Resume::At(Phase::Withdrawing),
        (phase, _) if phase.before_restart() => Resume::At(Phase::Leaving),
        (Phase::Restarting, _) => Resume::At(Phase::Restarting),
        (Phase::Armed, Observation::Silent | Observation::Connected { .. }) => {
            Resume::Failed("did not come to the gate")
        }
        (Phase::Armed, _) => Resume::At(Phase::Armed),
        _ => Resume::At(Phase::Starting),
    }
}
