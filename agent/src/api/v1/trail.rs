//! The trail: where the milliseconds of a task went. `GET /v1/tasks/{id}/trail`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{TaskState, Timestamp, Verb};

/// Steps of one task in order of their start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Trail {
    /// The task.
    pub task_id: String,
    /// App whose pool it concerned.
    pub app: String,
    /// What was asked.
    pub verb: Verb,
    /// W3C Trace Context of the request (`00-<trace>-<parent>-<flags>`), given or made up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// Where the task stands.
    pub state: TaskState,
    /// Wall time of the first byte of the request.
    pub started_at: Timestamp,
    /// Milliseconds from the first byte of the request to the last byte of the answer; absent
    /// until the answer was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_ms: Option<f64>,
    /// By start.
    pub steps: Vec<Step>,
}

/// One step, of the task as a whole or of one instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// `<app>-<ordinal>`; absent for steps of the whole task (intent, outcome, ...).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// What was done: `intent`, `start`, `ready`, `register`, ...
    pub name: String,
    /// From 1.
    pub attempt: u32,
    /// Milliseconds from the first byte of the request to the step's start, monotonic.
    pub start_ms: f64,
    /// Milliseconds that it took, monotonic.
    pub duration_ms: f64,
    /// What became of it.
    pub outcome: StepOutcome,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum StepOutcome {
    /// It did what it should.
    Ok,
    /// It did not, and was not tried again.
    Failed,
    /// It did not, and another attempt follows.
    Retried,
    /// There was nothing to do.
    Skipped,
}

impl StepOutcome {
    /// As spelt in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Retried => "retried",
            Self::Skipped => "skipped",
        }
    }
}
