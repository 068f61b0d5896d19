//! What is written down, as data.

use std::net::Ipv4Addr;
use std::sync::Arc;

use super::loss::Loss;
use crate::instance::{AppName, Instance, InstanceName, Phase, Revision, Urgency, Warmth};
use crate::network::HostPort;
use crate::pool::{Evidence, Stable};
use crate::task::{
    EndState, Outcome, Request, Restart, Roll, ScaleImage, TaskContext, TaskId, Trail, Verb,
};

/// One change of the journal. Several in one commit are one transaction.
#[derive(Debug, Clone)]
pub enum Write {
    /// An app's revision, current from now on; Unix milliseconds of the application.
    Revision(Arc<Revision>, u64),
    /// The app is being deleted: its target is 0 from now on.
    Deleting(AppName),
    /// Nothing of the app is left; its tasks stay.
    AppGone(AppName),
    /// An app's stable image; `None`: none is.
    Stable(AppName, Option<StableRow>),
    /// A pool's target.
    Target {
        /// The app.
        app: AppName,
        /// Instances wanted in service.
        target: u32,
        /// Counts the targets.
        seq: u64,
    },
    /// An instance as it is meant to be from now on.
    Instance(InstanceRow),
    /// An instance of which nothing is left. Its generation and its address stay known.
    InstanceGone {
        /// The instance.
        instance: InstanceName,
        /// Its last generation.
        generation: u64,
        /// Milliseconds of steady time since when its address is free.
        released_ms: u64,
    },
    /// An accepted task.
    TaskOpened(TaskRow),
    /// A task's outcome.
    TaskClosed {
        /// The task.
        task_id: TaskId,
        /// How it ended.
        outcome: Outcome,
        /// Unix milliseconds.
        finished_ms: u64,
    },
    /// A task's steps; written again when the answer's own steps are known.
    Trail(TaskId, Trail),
    /// The kernel's boot id, once everything of this boot was observed.
    Boot {
        /// Boot id of the kernel.
        id: String,
        /// Steady time of that boot less its boot time, in milliseconds ([`crate::pool::Now`]).
        clock_offset_ms: i64,
    },
    /// The journal before this one was lost, and what of it is done.
    Loss(Loss),
    /// The loss is accepted: life is normal again.
    Accepted,
    /// Generations and sequence numbers of this epoch are greater than this.
    Floor(u64),
    /// Background work of the agent's own: the intent of changes that no task asked for.
    Operation {
        /// The app.
        app: AppName,
        /// Number of instances that it changes.
        changes: u32,
    },
}

/// An instance's row.
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceRow {
    /// Which one.
    pub instance: InstanceName,
    /// Present incarnation.
    pub generation: u64,
    /// Of the create: part of the container's id.
    pub create_generation: u64,
    /// Of the create that made its rootfs: part of the snapshot's key.
    pub rootfs_generation: u64,
    /// Revision id.
    pub revision: String,
    /// Where it is, or is about to be.
    pub phase: Phase,
    /// Meant for service.
    pub serving: bool,
    /// How warm it was when it was taken.
    pub from: Option<Warmth>,
    /// The task that took it.
    pub task: Option<TaskContext>,
    /// Its address.
    pub address: Option<Ipv4Addr>,
    /// Its ports of the host.
    pub host_ports: Vec<HostPort>,
    /// Times that its app was started again in its container.
    pub reuses: u32,
    /// A backend may know it.
    pub registered: bool,
    /// How it is being taken out.
    pub urgency: Urgency,
    /// `Some` when nothing is left of it but its generation and its claim on the address.
    pub released_ms: Option<u64>,
}

impl InstanceRow {
    /// The row of an instance.
    pub fn of(app: &AppName, instance: &Instance) -> Self {
        Self {
            instance: InstanceName::new(app.clone(), instance.ordinal),
            generation: instance.generation,
            create_generation: instance.create_generation,
            rootfs_generation: instance.rootfs_generation,
            revision: instance.revision.id.clone(),
            phase: instance.phase,
            serving: instance.serving,
            from: instance.from,
            task: instance.task.clone(),
            address: instance.address,
            host_ports: instance.host_ports.clone(),
            reuses: instance.reuses,
            registered: instance.registered,
            urgency: instance.urgency,
            released_ms: None,
        }
    }
}

/// Which revision of an app is stable, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct StableRow {
    /// Revision id.
    pub revision: String,
    /// Why.
    pub evidence: Evidence,
    /// Unix milliseconds since when.
    pub since_ms: u64,
}

impl StableRow {
    /// The row of what is stable.
    pub fn of(stable: &Stable) -> Self {
        Self {
            revision: stable.revision.id.clone(),
            evidence: stable.evidence.clone(),
            since_ms: stable.since_ms,
        }
    }
}

/// A task as it was accepted.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskRow {
    /// Id and trace context.
    pub context: TaskContext,
    /// The app.
    pub app: AppName,
    /// What it does.
    pub verb: Verb,
    /// N; of a roll and of a restart the target that they found.
    pub to: u32,
    /// Which image missing instances are made from.
    pub image: ScaleImage,
    /// What a roll does.
    pub roll: Option<Roll>,
    /// What a restart does.
    pub restart: Option<Restart>,
    /// Hash of the request.
    pub hash: String,
    /// Target that it set.
    pub target: u32,
    /// Sequence number of that target.
    pub seq: u64,
    /// Unix milliseconds of acceptance.
    pub created_ms: u64,
    /// The same by the clock that nobody sets ([`crate::pool::Now`]).
    pub steady_ms: u64,
    /// Milliseconds from then to its deadline.
    pub deadline_ms: u64,
}

impl TaskRow {
    /// The row of a request that sets `target` as number `seq`.
    pub fn open(app: &AppName, request: &Request, target: u32, seq: u64, deadline_ms: u64) -> Self {
        Self {
            context: request.context.clone(),
            app: app.clone(),
            verb: request.verb,
            to: match request.verb {
                Verb::Roll | Verb::Restart => target,
                _ => request.to,
            },
            image: request.image,
            roll: None,
            restart: None,
            hash: request.hash.clone(),
            target,
            seq,
            created_ms: request.created_ms,
            steady_ms: request.steady_ms,
            deadline_ms,
        }
    }

    /// What was asked, in the words of the command line.
    pub fn asked(&self) -> String {
        let (verb, app) = (self.verb.as_str(), &self.app);
        match (&self.roll, &self.restart) {
            (Some(roll), _) => format!("{verb} {app} --step {}", roll.step),
            (None, Some(restart)) => {
                let agent = restart.agent.as_ref();
                let agent =
                    agent.map_or(String::new(), |agent| format!(" --process {}", agent.name));
                format!("{verb} {app}-{}{agent} --strategy reuse", restart.ordinal)
            }
            (None, None) => format!("{verb} {app} --to {}", self.to),
        }
    }
}

/// Which tasks are read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskQuery {
    /// Only those of this app.
    pub app: Option<AppName>,
    /// Only those in one of these states (`None` is a task that has not ended); all when empty.
    pub states: Vec<Option<EndState>>,
    /// Only those accepted at this time or later, in Unix milliseconds.
    pub since_ms: u64,
    /// The newest so many.
    pub limit: u32,
}

/// A task as the journal knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredTask {
    /// As accepted.
    pub row: TaskRow,
    /// Unix milliseconds and outcome, when it has ended.
    pub ended: Option<(u64, Outcome)>,
}
