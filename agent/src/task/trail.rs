//! The trail of a task: which step took how long, so that "where did the 3 seconds go?" has an answer.
//!
//! Steps of one instance are contiguous: each begins where the one before it ended, so waiting in
//! queues is part of the step that waited.

use serde::{Deserialize, Serialize};

/// How an attempt at a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepOutcome {
    /// It did what it should.
    Ok,
    /// It failed; the error says why.
    Failed,
}

/// One attempt at one step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The instance's position, or `None` for a step of the whole task.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ordinal: Option<u32>,
    /// `accept`, `intent`, `start`, `ready`, `register`, `outcome`, ...
    pub name: String,
    /// From 1.
    pub attempt: u32,
    /// Microseconds from the first byte of the request, by the monotonic clock.
    pub start_us: u64,
    /// Length in microseconds.
    pub duration_us: u64,
    /// How it ended.
    pub outcome: StepOutcome,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
}

/// All steps of a task so far.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Trail {
    /// In the order in which they ended.
    pub steps: Vec<Step>,
    /// First byte of the request to the last byte of the answer, in microseconds; absent while
    /// the task runs, and after a crash between the outcome and the answer.
    pub answer_us: Option<u64>,
}
