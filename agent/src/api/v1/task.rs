//! Tasks: what is asked, and what became of it.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{InstanceState, Timestamp};

/// Which image instances are made from that a task brings into service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ScaleImage {
    /// The stable one; the applied one where there is none.
    Stable,
    /// The one of the manifest that was applied last.
    Applied,
}

/// What a [`ScaleImage`] may be.
pub const SCALE_IMAGE_RULE: &str = "\"stable\" or \"applied\"";

/// What a task does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Verb {
    /// target = max(target, to).
    Activate,
    /// target = min(target, to).
    Deactivate,
    /// target = to.
    Scale,
    /// Replaces instances in service by ones of the current revision; the target stays.
    Roll,
    /// Starts the app of an instance, or one of its in-container agents, again in its container; the
    /// target stays.
    Restart,
}

impl Verb {
    /// As spelt in documents, paths and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Activate => "activate",
            Self::Deactivate => "deactivate",
            Self::Scale => "scale",
            Self::Roll => "roll",
            Self::Restart => "restart",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How many instances a roll replaces at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RollStep {
    /// This many: 1..=[`TaskRequest::MAX_TO`].
    Instances(u32),
    /// `"25%"`: this many of a hundred of the target, rounded up; 1 to 100.
    Percent(String),
}

/// What a [`RollStep`] may be.
pub const STEP_RULE: &str =
    "a whole number of instances from 1 to 10000, or a text from \"1%\" to \"100%\"";

impl RollStep {
    /// The number of a percentage, when it is one.
    pub fn percent(&self) -> Option<u32> {
        let Self::Percent(text) = self else {
            return None;
        };
        let percent: u32 = text.strip_suffix('%')?.parse().ok()?;
        (1..=100).contains(&percent).then_some(percent)
    }

    /// Whether it is what [`STEP_RULE`] says.
    pub fn is_allowed(&self) -> bool {
        match self {
            Self::Instances(count) => (1..=TaskRequest::MAX_TO).contains(count),
            Self::Percent(_) => self.percent().is_some(),
        }
    }
}

impl fmt::Display for RollStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instances(count) => write!(f, "{count}"),
            Self::Percent(text) => f.write_str(text),
        }
    }
}

/// How an instance is restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Strategy {
    /// In its container: address, rootfs and volumes stay, and so do its in-container agents.
    Reuse,
}

/// What a [`Strategy`] may be.
pub const STRATEGY_RULE: &str = "\"reuse\", in the same container; another container is made by deactivate and activate, or by roll";

/// Body of `POST /v1/apps/{app}/{activate|deactivate|scale|roll}` and of
/// `POST /v1/instances/{name}/restart`. Unknown fields are refused.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TaskRequest {
    /// How many active instances are asked for: 0..=[`TaskRequest::MAX_TO`]. Required, but of a
    /// roll and of a restart, which have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<u32>,
    /// Activate and scale only: which image instances that come are made from. `stable` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ScaleImage>,
    /// Roll only: how many instances are replaced at a time. 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<RollStep>,
    /// Restart only, required there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
    /// Restart only: the in-container agent that is restarted. The app when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// Caller's name of the task: 1..=128 of `[A-Za-z0-9._:-]`. Made up by the server when
    /// absent; [`crate::api::Host::submit`] always sees it present.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_id: Option<String>,
    /// Only when the pool's target has this sequence number, else `seq_mismatch`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_seq: Option<u64>,
    /// Seconds after which the task itself ends: greater than 0, at most 86400. The agent's
    /// default for the verb when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_seconds: Option<f64>,
    /// Deactivate, scale and the restart of an app only: do not wait for an acknowledged deregistration nor for the
    /// drain. Requests in flight may fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force: Option<bool>,
    /// The caller vouches that the task id was never used before. Asked for only while a journal
    /// was lost and not accepted: then an id that is not known is `unknown_epoch` without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_epoch: Option<bool>,
}

impl TaskRequest {
    /// Most instances of one app that one host is asked for.
    pub const MAX_TO: u32 = 10_000;
    /// Longest deadline of a task, in seconds: one day.
    pub const MAX_DEADLINE_SECONDS: f64 = 86_400.0;

    /// A request with nothing but its target.
    pub fn to(to: u32) -> Self {
        Self {
            to: Some(to),
            ..Self::default()
        }
    }
}

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum TaskState {
    /// Its intent is durable; it has not ended.
    Running,
    /// The target was reached.
    Done,
    /// Some instances reached it, others did not before the deadline; the pool goes on.
    Partial,
    /// No instance reached it before the deadline.
    Failed,
    /// A later task moved the target the other way.
    Superseded,
}

impl TaskState {
    /// Every state, in the order of a task's life.
    pub const ALL: [Self; 5] = [
        Self::Running,
        Self::Done,
        Self::Partial,
        Self::Failed,
        Self::Superseded,
    ];

    /// The state that [`as_str`](Self::as_str) names.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }

    /// As spelt in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Partial => "partial",
            Self::Failed => "failed",
            Self::Superseded => "superseded",
        }
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A task: the answer to a submission, and `GET /v1/tasks/{id}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Task {
    /// Name of the task, the caller's or made up by the server.
    pub task_id: String,
    /// App whose pool it concerns.
    pub app: String,
    /// What was asked.
    pub verb: Verb,
    /// The number that was asked for; of a roll and of a restart the target that they found.
    pub to: u32,
    /// Of a roll: how many instances it replaces at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u32>,
    /// Of a roll: the revision that it leads to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Of a restart: the instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Of a restart: the in-container agent; absent when it is the app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// Where it stands.
    pub state: TaskState,
    /// The pool's target as this task's intent left it.
    pub target: u32,
    /// Sequence number of that target.
    pub target_seq: u64,
    /// True when the task id had been seen before: this is the recorded answer, nothing was done.
    pub replayed: bool,
    /// The instances that the task chose, by ordinal.
    #[serde(default)]
    pub instances: Vec<TaskInstance>,
    /// Active instances of the pool when the task ended (now, while it runs).
    pub active: u32,
    /// When the intent was written.
    pub created_at: Timestamp,
    /// When the task ended; absent while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// Milliseconds from the first byte of the request to the durable outcome (to now, while it
    /// runs), by the monotonic clock.
    pub elapsed_ms: f64,
    /// An operator's sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// What is true now; only when `replayed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<Current>,
}

/// One instance that a task chose.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskInstance {
    /// `<app>-<ordinal>`.
    pub name: String,
    /// Its state when the task ended (now, while it runs).
    pub state: InstanceState,
    /// The warmth that served it.
    pub from: StartedFrom,
    /// Generation that the task gave it.
    pub generation: u64,
    /// Its address as clients see it, once it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Registered port, when the app is registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Why it is not where the task wanted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<InstanceError>,
}

/// How warm an instance was when the task took it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum StartedFrom {
    /// The app was booted and frozen.
    Frozen,
    /// The container waited at the gate.
    Armed,
    /// Snapshot, network and cgroup were there, no process.
    Staged,
    /// The image was there.
    Cached,
    /// Nothing was there: the image was pulled.
    Absent,
    /// The task did not start it (it was active already, or the task takes it out).
    None,
}

impl StartedFrom {
    /// As spelt in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Frozen => "frozen",
            Self::Armed => "armed",
            Self::Staged => "staged",
            Self::Cached => "cached",
            Self::Absent => "absent",
            Self::None => "none",
        }
    }
}

/// What went wrong with an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceError {
    /// Stable, for programs: `image_not_found`, `readiness_timeout`, ...
    pub code: String,
    /// A sentence for people.
    pub detail: String,
}

/// What is true of a pool at the moment of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Current {
    /// Wanted active instances.
    pub target: u32,
    /// Sequence number of the target.
    pub target_seq: u64,
    /// Instances in service.
    pub active: u32,
    /// Instances on their way into service.
    pub starting: u32,
    /// Instances that wait at the gate.
    pub armed: u32,
    /// Instances on their way out.
    pub draining: u32,
    /// Instances that failed and were not given up, or were given up.
    pub failed: u32,
}

/// One line of `GET /v1/tasks`: a task without its instances.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskSummary {
    /// As in [`Task::task_id`].
    pub task_id: String,
    /// As in [`Task::app`].
    pub app: String,
    /// As in [`Task::verb`].
    pub verb: Verb,
    /// As in [`Task::to`].
    pub to: u32,
    /// As in [`Task::step`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u32>,
    /// As in [`Task::instance`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// As in [`Task::process`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// As in [`Task::state`].
    pub state: TaskState,
    /// As in [`Task::target`].
    pub target: u32,
    /// As in [`Task::target_seq`].
    pub target_seq: u64,
    /// As in [`Task::active`].
    pub active: u32,
    /// As in [`Task::created_at`].
    pub created_at: Timestamp,
    /// As in [`Task::finished_at`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// As in [`Task::elapsed_ms`].
    pub elapsed_ms: f64,
    /// As in [`Task::detail`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl From<&Task> for TaskSummary {
    fn from(task: &Task) -> Self {
        Self {
            task_id: task.task_id.clone(),
            app: task.app.clone(),
            verb: task.verb,
            to: task.to,
            step: task.step,
            instance: task.instance.clone(),
            process: task.process.clone(),
            state: task.state,
            target: task.target,
            target_seq: task.target_seq,
            active: task.active,
            created_at: task.created_at,
            finished_at: task.finished_at,
            elapsed_ms: task.elapsed_ms,
            detail: task.detail.clone(),
        }
    }
}

/// `GET /v1/tasks`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskList {
    /// Newest first, bounded by the agent.
    pub tasks: Vec<TaskSummary>,
}
