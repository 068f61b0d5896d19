//! Tasks: one request from outside with a caller-chosen id, what it asked for and how it ended.

mod index;
mod request;
mod trail;

pub use index::{Index, Joined, Progress};
pub use request::{
    EndState, InstanceResult, Outcome, Request, Restart, RestartWish, RestartedAgent, Roll,
    RollStep, ScaleImage, TaskContext, TaskId, Verb,
};
pub use trail::{Step, StepOutcome, Trail};
