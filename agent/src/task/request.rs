//! What a task asks for, and how it ended.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::instance::InvalidName;

/// Id of a task, chosen by the caller: 1 to 128 characters of `A-Z a-z 0-9 . _ : -`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskId(String);

impl TaskId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TaskId {
    type Err = InvalidName;

    fn from_str(value: &str) -> Result<Self, InvalidName> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-');
        if (1..=128).contains(&value.len()) && value.bytes().all(allowed) {
            Ok(Self(value.to_owned()))
        } else {
            Err(InvalidName {
                what: "task id",
                value: value.chars().take(140).collect(),
                allowed: "1 to 128 characters of A-Z, a-z, 0-9, '.', '_', ':' and '-'",
            })
        }
    }
}

/// What goes with a task to the app and to discovery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskContext {
    /// The task.
    pub task_id: TaskId,
    /// W3C trace context of the caller, or our own.
    pub traceparent: String,
}

/// What a task does to the pool's target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// `target = max(target, N)`; done when N are active.
    Activate,
    /// `target = min(target, N)`; done when at most N are in service and the others are gone.
    Deactivate,
    /// `target = N`; done when exactly N are active and the others are gone.
    Scale,
    /// The target stays; done when all in service are of the current revision and those that they
    /// replaced are gone.
    Roll,
    /// The target stays; done when the app of one instance was started again in its container and is
    /// in service, or one of its in-container agents was started again and is ready.
    Restart,
}

impl Verb {
    /// Every verb.
    pub const ALL: [Self; 5] = [
        Self::Activate,
        Self::Deactivate,
        Self::Scale,
        Self::Roll,
        Self::Restart,
    ];

    /// The word in the CLI, the API and the journal.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Activate => "activate",
            Self::Deactivate => "deactivate",
            Self::Scale => "scale",
            Self::Roll => "roll",
            Self::Restart => "restart",
        }
    }

    /// The verb that [`as_str`](Self::as_str) names.
    pub fn from_name(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|v| v.as_str() == word)
    }

    /// The pool's target after this verb.
    pub fn target(self, current: u32, to: u32) -> u32 {
        match self {
            Self::Activate => current.max(to),
            Self::Deactivate => current.min(to),
            Self::Scale => to,
            Self::Roll | Self::Restart => current,
        }
    }

    /// Whether a later target makes it impossible for this task to be done; `to` of a roll is the
    /// target that it found. A restart ends by what becomes of its instance.
    pub fn superseded_by(self, to: u32, later_target: u32) -> bool {
        match self {
            Self::Activate => later_target < to,
            Self::Deactivate => later_target > to,
            Self::Scale | Self::Roll => later_target != to,
            Self::Restart => false,
        }
    }
}

/// Which image instances are made from that a task brings into service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ScaleImage {
    /// The one that has covered all instances, or that was set by hand; the applied one where there
    /// is none.
    #[default]
    Stable,
    /// The one of the manifest that was applied last.
    Applied,
}

impl ScaleImage {
    /// The word in the CLI, the API and the journal.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Applied => "applied",
        }
    }

    /// The one that [`as_str`](Self::as_str) names.
    pub fn from_name(word: &str) -> Option<Self> {
        [Self::Stable, Self::Applied]
            .into_iter()
            .find(|image| image.as_str() == word)
    }
}

/// How many instances a roll replaces at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RollStep {
    /// This many.
    Instances(u32),
    /// This many of a hundred of the target, rounded up.
    Percent(u32),
}

impl RollStep {
    /// Instances at a time while `target` are in service: at least one.
    pub fn instances(self, target: u32) -> u32 {
        let wanted = match self {
            Self::Instances(count) => u64::from(count),
            Self::Percent(percent) => (u64::from(target) * u64::from(percent)).div_ceil(100),
        };
        u32::try_from(wanted).unwrap_or(u32::MAX).max(1)
    }
}

/// A roll, as its intent has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roll {
    /// Instances replaced at a time.
    pub step: u32,
    /// Revision that it leads to: the pool's when it was accepted.
    pub revision: String,
}

/// What a restart is asked to start again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestartWish {
    /// The instance.
    pub ordinal: u32,
    /// One of its in-container agents; the app when absent.
    pub agent: Option<RestartedAgent>,
}

/// An in-container agent that is started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartedAgent {
    /// Its name.
    pub name: String,
    /// The pid inside the container that it had when it was asked for: another one shows that it was
    /// started again. `None` when it did not run.
    pub pid: Option<u32>,
}

/// A restart, as its intent has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// The instance.
    pub ordinal: u32,
    /// Of the container that it happens in.
    pub create_generation: u64,
    /// Restarts of the app in this container, this one included.
    pub reuses: u32,
    /// One of its in-container agents; the app when absent.
    pub agent: Option<RestartedAgent>,
}

/// One accepted request: a new target, a roll, or a restart.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Task id and trace context.
    pub context: TaskContext,
    /// Hash over everything that makes two requests the same: app, verb, to, step, instance,
    /// process, force, expectSeq.
    pub hash: String,
    /// What it does.
    pub verb: Verb,
    /// N; of no meaning for a roll.
    pub to: u32,
    /// Which image missing instances are made from.
    pub image: ScaleImage,
    /// Of a roll.
    pub step: Option<RollStep>,
    /// Of a restart.
    pub restart: Option<RestartWish>,
    /// Refused unless the pool's sequence number is this.
    pub expect_seq: Option<u64>,
    /// Stop without drain.
    pub force: bool,
    /// The task's deadline, seconds from its acceptance; `None`: the verb's default.
    pub deadline_seconds: Option<f64>,
    /// Wall time of acceptance, Unix milliseconds.
    pub created_ms: u64,
    /// The same by the clock that nobody sets.
    pub steady_ms: u64,
    /// When its first byte arrived.
    pub first_byte: Instant,
}

/// How a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndState {
    /// Everything that was asked for.
    Done,
    /// Some of it; the target stays and the pool goes on.
    Partial,
    /// None of it; the target stays and the pool goes on.
    Failed,
    /// A later task moved the target the other way.
    Superseded,
}

impl EndState {
    /// The word in documents and in the journal.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Partial => "partial",
            Self::Failed => "failed",
            Self::Superseded => "superseded",
        }
    }

    /// The end state that [`as_str`](Self::as_str) names.
    pub fn from_name(word: &str) -> Option<Self> {
        [Self::Done, Self::Partial, Self::Failed, Self::Superseded]
            .into_iter()
            .find(|s| s.as_str() == word)
    }
}

/// One instance as a task left it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceResult {
    /// Position in the pool.
    pub ordinal: u32,
    /// The operator's word for its state, `absent` when nothing is left.
    pub state: String,
    /// How warm it was when the task took it.
    pub from: Option<String>,
    /// Its generation.
    pub generation: u64,
    /// Its address, absent in the host's network.
    pub address: Option<Ipv4Addr>,
    /// Registered port, when the app is registered.
    pub port: Option<u16>,
    /// Why it is not what was asked for: stable code and sentence.
    pub error: Option<(String, String)>,
}

/// What a task came to: the part of the answer that the journal keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// End state.
    pub state: EndState,
    /// Target that the task set.
    pub target: u32,
    /// Sequence number of that target.
    pub target_seq: u64,
    /// Active instances of the pool at the end.
    pub active: u32,
    /// Microseconds from the first byte of the request to this end.
    pub elapsed_us: u64,
    /// Wall time of this end, Unix milliseconds.
    pub finished_ms: u64,
    /// The instances that the task chose.
    pub instances: Vec<InstanceResult>,
    /// An operator's sentence, when there is something to say.
    pub detail: Option<String>,
}
