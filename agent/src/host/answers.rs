//! What the machines and the journal know, as documents of the API.

use std::collections::BTreeMap;
use std::time::SystemTime;

use crate::alarm::{Alarms, Subject};
use crate::api::TaskFilter;
use crate::api::v1::{
    Alarm, AppDocument, AppSummary, ContainerdStatus, Current, DiscoveryState, DiscoveryStatus,
    HostStatus, Instance, InstanceError, InstanceState, JournalDocument, JournalState, LeaseStatus,
    Pool, Problem, ProblemCode, Reachability, StartedFrom, Status, Step, StepOutcome, Task,
    TaskInstance, TaskState, Timestamp, Trail, Verb, WarmTargets,
};
use crate::config::{Requirement, Settings};
use crate::discovery::{Health, Reach};
use crate::instance::{AppName, Failure, State};
use crate::journal::{InstanceRow, PoolRow, Recovered, StoredTask, TaskQuery};
use crate::network::HostPort;
use crate::pool::{InstanceSnapshot, NotRestarted, Refusal, Snapshot, read_clocks};
use crate::task::{self, EndState, InstanceResult};

use super::epoch::Epoch;
use super::node::{Entry, Identity};

/// Whether the answer is of a task that was known before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Replayed {
    /// It is: the answer says what is true now, too.
    Yes,
    /// It is not.
    No,
}

/// A task, ended or under way.
pub(super) fn task(stored: &StoredTask, snapshot: Option<&Snapshot>, replayed: Replayed) -> Task {
    let row = &stored.row;
    let outcome = stored.ended.as_ref().map(|(_, outcome)| outcome);
    let instances = match (outcome, snapshot) {
        (Some(outcome), _) => outcome
            .instances
            .iter()
            .map(|i| result(row.app.as_str(), i))
            .collect(),
        (None, Some(snapshot)) => under_way(snapshot, &row.context.task_id),
        (None, None) => Vec::new(),
    };
    let now = snapshot.map_or(0, |s| count(s, State::Active));
    Task {
        task_id: row.context.task_id.to_string(),
        app: row.app.to_string(),
        verb: verb(row.verb),
        to: row.to,
        step: row.roll.as_ref().map(|roll| roll.step),
        revision: row.roll.as_ref().map(|roll| roll.revision.clone()),
        instance: row
            .restart
            .as_ref()
            .map(|restart| format!("{}-{}", row.app, restart.ordinal)),
        process: row
            .restart
            .as_ref()
            .and_then(|restart| restart.agent.as_ref())
            .map(|agent| agent.name.clone()),
        state: outcome.map_or(TaskState::Running, |o| end_state(o.state)),
        target: row.target,
        target_seq: row.seq,
        replayed: replayed == Replayed::Yes,
        instances,
        active: outcome.map_or(now, |o| o.active),
        created_at: timestamp(row.created_ms),
        finished_at: stored.ended.as_ref().map(|(at, _)| timestamp(*at)),
        elapsed_ms: match outcome {
            Some(outcome) => millis(outcome.elapsed_us),
            None => millis(
                read_clocks()
                    .wall_ms
                    .saturating_sub(row.created_ms)
                    .saturating_mul(1000),
            ),
        },
        detail: outcome.and_then(|o| o.detail.clone()),
        current: snapshot.filter(|_| replayed == Replayed::Yes).map(current),
    }
}

fn under_way(snapshot: &Snapshot, task: &task::TaskId) -> Vec<TaskInstance> {
    let mine = |i: &&InstanceSnapshot| i.task_id.as_ref() == Some(task);
    let document = |i: &InstanceSnapshot| TaskInstance {
        name: format!("{}-{}", snapshot.app, i.ordinal),
        state: instance_state(i.phase.state().as_str()),
        from: started_from(i.from.map(|w| w.as_str())),
        generation: i.generation,
        address: i
            .endpoint
            .map(|(address, _)| address)
            .or(i.address)
            .map(|a| a.to_string()),
        port: i.endpoint.map(|(_, port)| port),
        error: i.failure.as_ref().map(instance_error),
    };
    snapshot
        .instances
        .iter()
        .filter(mine)
        .map(document)
        .collect()
}

fn result(app: &str, instance: &InstanceResult) -> TaskInstance {
    TaskInstance {
        name: format!("{app}-{}", instance.ordinal),
        state: instance_state(&instance.state),
        from: started_from(instance.from.as_deref()),
        generation: instance.generation,
        address: instance.address.map(|a| a.to_string()),
        port: instance.port,
        error: instance.error.as_ref().map(|(code, detail)| InstanceError {
            code: code.clone(),
            detail: detail.clone(),
        }),
    }
}

/// A task's steps, by start.
pub(super) fn trail(stored: &StoredTask, trail: &task::Trail) -> Trail {
    let row = &stored.row;
    let mut steps: Vec<Step> = trail
        .steps
        .iter()
        .map(|step| Step {
            instance: step.ordinal.map(|ordinal| format!("{}-{ordinal}", row.app)),
            name: step.name.clone(),
            attempt: step.attempt,
            start_ms: millis(step.start_us),
            duration_ms: millis(step.duration_us),
            outcome: match step.outcome {
                task::StepOutcome::Ok => StepOutcome::Ok,
                task::StepOutcome::Failed => StepOutcome::Failed,
            },
            error: step.error.clone(),
        })
        .collect();
    steps.sort_by(|a, b| a.start_ms.total_cmp(&b.start_ms));
    Trail {
        task_id: row.context.task_id.to_string(),
        app: row.app.to_string(),
        verb: verb(row.verb),
        traceparent: Some(row.context.traceparent.clone()),
        state: stored
            .ended
            .as_ref()
            .map_or(TaskState::Running, |(_, o)| end_state(o.state)),
        started_at: timestamp(row.created_ms),
        answer_ms: trail.answer_us.map(millis),
        steps,
    }
}

/// A pool.
pub(super) fn pool(snapshot: &Snapshot) -> Pool {
    let instance = |i: &InstanceSnapshot| Instance {
        name: format!("{}-{}", snapshot.app, i.ordinal),
        state: instance_state(i.phase.state().as_str()),
        generation: i.generation,
        create_generation: Some(i.create_generation),
        revision: i.revision.clone(),
        address: i.address.map(|a| a.to_string()),
        host_ports: host_ports(&i.host_ports),
        task_id: i.task_id.as_ref().map(ToString::to_string),
        since: timestamp(i.since_ms),
        error: i.failure.as_ref().map(instance_error),
    };
    let current = current(snapshot);
    Pool {
        app: snapshot.app.to_string(),
        revision: snapshot.revision.clone(),
        labels: snapshot.labels.clone(),
        target: current.target,
        target_seq: current.target_seq,
        active: current.active,
        starting: current.starting,
        armed: current.armed,
        arming: count(snapshot, State::Arming),
        draining: current.draining,
        failed: current.failed,
        warm: WarmTargets {
            armed: snapshot.warm_armed,
        },
        alarm: snapshot.alarm.clone(),
        instances: snapshot.instances.iter().map(instance).collect(),
    }
}

/// `tcp 20000 -> 8080`.
fn host_ports(ports: &[HostPort]) -> Vec<String> {
    let text = |port: &HostPort| format!("{port} -> {}", port.container_port);
    ports.iter().map(text).collect()
}

/// A pool as the journal left it: nobody has looked at its instances yet.
pub(super) fn unverified(recovered: &Recovered, pool: &PoolRow) -> Pool {
    let live = recovered
        .instances
        .iter()
        .filter(|row| row.instance.app == pool.app && row.released_ms.is_none());
    let instance = |row: &InstanceRow| Instance {
        name: row.instance.to_string(),
        state: InstanceState::Unverified,
        generation: row.generation,
        create_generation: Some(row.create_generation),
        revision: row.revision.clone(),
        address: row.address.map(|a| a.to_string()),
        host_ports: host_ports(&row.host_ports),
        task_id: row.task.as_ref().map(|task| task.task_id.to_string()),
        since: Timestamp::now(),
        error: None,
    };
    Pool {
        app: pool.app.to_string(),
        revision: pool.revision.clone(),
        labels: BTreeMap::new(),
        target: pool.target,
        target_seq: pool.seq,
        active: 0,
        starting: 0,
        armed: 0,
        arming: 0,
        draining: 0,
        failed: 0,
        warm: WarmTargets { armed: 0 },
        alarm: None,
        instances: live.map(instance).collect(),
    }
}

fn current(snapshot: &Snapshot) -> Current {
    Current {
        target: snapshot.target,
        target_seq: snapshot.seq,
        active: count(snapshot, State::Active),
        starting: count(snapshot, State::Starting)
            + count(snapshot, State::Ready)
            + count(snapshot, State::Unready)
            + count(snapshot, State::Restarting),
        armed: count(snapshot, State::Armed),
        draining: count(snapshot, State::Draining)
            + count(snapshot, State::Stopping)
            + count(snapshot, State::Stopped),
        failed: count(snapshot, State::Failed),
    }
}

fn count(snapshot: &Snapshot, state: State) -> u32 {
    snapshot.count(|phase| phase.state() == state)
}

/// What the agent has just looked at.
pub(super) struct Look {
    /// Whether everything was observed.
    pub ready: bool,
    /// Version of containerd, when it answers.
    pub containerd: Option<String>,
    /// Each backend of discovery.
    pub discovery: Vec<(String, Requirement, Health)>,
    /// The pools.
    pub pools: Vec<Pool>,
    /// The alarms that stand.
    pub alarms: Vec<Alarm>,
}

/// The host.
pub(super) fn status(settings: &Settings, identity: &Identity, epoch: u64, look: Look) -> Status {
    let Look {
        ready,
        containerd,
        discovery,
        pools,
        alarms,
    } = look;
    Status {
        host: HostStatus {
            id: settings.host.id.clone(),
            fleet: settings.host.fleet.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: identity.boot_id.clone(),
            epoch,
            ready,
            started_at: timestamp(identity.started_ms),
            containerd: ContainerdStatus {
                reachable: if containerd.is_some() {
                    Reachability::Yes
                } else {
                    Reachability::No
                },
                version: containerd,
            },
            discovery: discovery.into_iter().map(backend).collect(),
        },
        pools,
        alarms,
    }
}

fn backend((name, requirement, health): (String, Requirement, Health)) -> DiscoveryStatus {
    let lease = health.lease.map(|lease| LeaseStatus {
        id: format!("{:x}", lease.id),
        ttl_seconds: lease.ttl_seconds,
        renewed_at: timestamp(lease.renewed_ms),
        renewals: lease.renewals,
        lost: lease.lost,
    });
    DiscoveryStatus {
        name,
        required: requirement == Requirement::Required,
        state: match health.reach {
            Reach::Serving => DiscoveryState::Serving,
            Reach::Connecting => DiscoveryState::Connecting,
            Reach::Away => DiscoveryState::Away,
            Reach::Refused => DiscoveryState::Refused,
            Reach::Fenced => DiscoveryState::Fenced,
        },
        since: (health.since_ms > 0).then(|| timestamp(health.since_ms)),
        error: health.error,
        failures: health.failures,
        endpoint: health.endpoint,
        registered: health
            .registered
            .and_then(|count| u64::try_from(count).ok()),
        lease,
    }
}

/// The journal, and whether one before it was lost.
pub(super) fn journal(epoch: &Epoch) -> JournalDocument {
    let loss = epoch.loss();
    JournalDocument {
        epoch: epoch.number,
        state: match loss {
            Some(_) => JournalState::Lost,
            None => JournalState::Sound,
        },
        reason: loss.as_ref().map(|loss| loss.reason.clone()),
        set_aside: loss
            .as_ref()
            .and_then(|loss| loss.set_aside.as_ref())
            .map(|path| path.display().to_string()),
        since: loss.map(|loss| timestamp(loss.since_ms)),
    }
}

/// The alarms that stand.
pub(super) fn alarms(alarms: &Alarms) -> Vec<Alarm> {
    let document = |alarm: crate::alarm::Alarm| {
        let (app, backend) = match alarm.subject {
            Subject::Host => (None, None),
            Subject::App(app) => (Some(app.to_string()), None),
            Subject::Backend(name) => (None, Some(name)),
        };
        Alarm {
            code: alarm.code.as_str().to_owned(),
            app,
            backend,
            detail: alarm.detail,
            since: timestamp(alarm.since_ms),
        }
    };
    alarms.standing_now().into_iter().map(document).collect()
}

/// An app's line.
pub(super) fn app_summary(entry: &Entry) -> AppSummary {
    let revision = &entry.revision;
    AppSummary {
        name: revision.app.name.to_string(),
        revision: revision.id.clone(),
        image: revision.app.image.clone(),
        image_digest: Some(revision.image.digest.clone()),
        applied_at: timestamp(entry.applied_ms),
        warm: WarmTargets {
            armed: revision.app.warm.armed,
        },
    }
}

/// An app with its manifest.
pub(super) fn app(entry: &Entry) -> AppDocument {
    let summary = app_summary(entry);
    AppDocument {
        name: summary.name,
        revision: summary.revision,
        image: summary.image,
        image_digest: summary.image_digest,
        applied_at: summary.applied_at,
        warm: summary.warm,
        manifest: entry.revision.manifest.clone(),
    }
}

/// A refusal of the pool.
pub(super) fn refused(refusal: &Refusal) -> Problem {
    match refusal {
        Refusal::SeqMismatch { expected, seq, target } => Problem::new(
            ProblemCode::SeqMismatch,
            format!("expectSeq {expected} is not the pool's sequence number {seq}; nothing was changed"),
        )
        .with_current(serde_json::json!({"target": target, "targetSeq": seq})),
        Refusal::InUse { target, serving } => Problem::new(
            ProblemCode::AppInUse,
            format!("the target is {target} and {serving} instances are in service; deactivate them first, or say --force"),
        )
        .with_current(serde_json::json!({"target": target, "serving": serving})),
        Refusal::Deleting => Problem::new(ProblemCode::AppInUse, "the app is being deleted"),
        Refusal::Restart(why) => {
            let code = match why {
                NotRestarted::NoInstance { .. } | NotRestarted::NoProcess { .. } => ProblemCode::NotFound,
                NotRestarted::NotInService { .. }
                | NotRestarted::Stale { .. }
                | NotRestarted::UnderWay { .. }
                | NotRestarted::UsedUp { .. } => ProblemCode::NotRestartable,
            };
            Problem::new(code, format!("{why}; nothing was done"))
        }
        Refusal::Journal(failure) => unwritten(failure),
    }
}

/// The journal refused: nothing was begun.
pub(super) fn unwritten(failure: &Failure) -> Problem {
    let code = match failure.code {
        "journal_full" => ProblemCode::JournalFull,
        _ => ProblemCode::Internal,
    };
    Problem::new(code, format!("{}; nothing was begun", failure.detail))
}

fn instance_error(failure: &Failure) -> InstanceError {
    InstanceError {
        code: failure.code.to_owned(),
        detail: failure.detail.clone(),
    }
}

fn verb(verb: task::Verb) -> Verb {
    match verb {
        task::Verb::Activate => Verb::Activate,
        task::Verb::Deactivate => Verb::Deactivate,
        task::Verb::Scale => Verb::Scale,
        task::Verb::Roll => Verb::Roll,
        task::Verb::Restart => Verb::Restart,
    }
}

/// What the journal is asked for.
pub(super) fn task_query(filter: &TaskFilter, app: Option<AppName>, now: SystemTime) -> TaskQuery {
    let state = |state: &TaskState| match state {
        TaskState::Running => None,
        TaskState::Done => Some(EndState::Done),
        TaskState::Partial => Some(EndState::Partial),
        TaskState::Failed => Some(EndState::Failed),
        TaskState::Superseded => Some(EndState::Superseded),
    };
    let since = filter.since.and_then(|since| now.checked_sub(since));
    let since = since.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    TaskQuery {
        app,
        states: filter.states.iter().map(state).collect(),
        since_ms: since.map_or(0, |at| u64::try_from(at.as_millis()).unwrap_or(u64::MAX)),
        limit: filter.limit,
    }
}

fn end_state(state: EndState) -> TaskState {
    match state {
        EndState::Done => TaskState::Done,
        EndState::Partial => TaskState::Partial,
        EndState::Failed => TaskState::Failed,
        EndState::Superseded => TaskState::Superseded,
    }
}

/// The state of an instance in this phase.
pub(super) fn state(phase: crate::instance::Phase) -> InstanceState {
    instance_state(phase.state().as_str())
}

fn instance_state(word: &str) -> InstanceState {
    match word {
        "arming" => InstanceState::Arming,
        "armed" => InstanceState::Armed,
        "starting" => InstanceState::Starting,
        "ready" => InstanceState::Ready,
        "active" => InstanceState::Active,
        "unready" => InstanceState::Unready,
        "restarting" => InstanceState::Restarting,
        "draining" => InstanceState::Draining,
        "stopping" => InstanceState::Stopping,
        "stopped" => InstanceState::Stopped,
        "failed" => InstanceState::Failed,
        _ => InstanceState::Absent,
    }
}

fn started_from(word: Option<&str>) -> StartedFrom {
    match word {
        Some("armed") => StartedFrom::Armed,
        Some("cached") => StartedFrom::Cached,
        _ => StartedFrom::None,
    }
}

/// Unix milliseconds; now, when no date is that late.
pub(super) fn timestamp(unix_ms: u64) -> Timestamp {
    i64::try_from(unix_ms)
        .ok()
        .and_then(Timestamp::from_unix_millis)
        .unwrap_or_else(Timestamp::now)
}

/// Microseconds as milliseconds.
fn millis(micros: u64) -> f64 {
    lossy(micros) / 1000.0
}

/// A count as a floating-point number.
#[allow(
    clippy::cast_precision_loss,
    reason = "285 years still have every microsecond"
)]
pub(super) fn lossy(count: u64) -> f64 {
    count as f64
}
