//! Restarts in place: asked of an init, seen in its status.

use std::time::Duration;

use container_init::protocol::{self, Request};
use tokio::time::Instant;

use super::error::GateError;
use super::{Gate, Start, Status, millis};
use crate::instance::ContainerId;

/// The first version of the protocol that has it.
const SINCE: u16 = 2;
/// How long an init may take to answer what it knows at once.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// Ends a process of the plan with all that belongs to it, and starts it again in its container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restart {
    /// Name from the plan.
    pub process: String,
    /// From the request until it has to be executed again; else the container ends. The process is
    /// killed after half of it.
    pub budget: Duration,
    /// What a start would say. The app needs a greater generation than init's; the same again
    /// changes nothing. An in-container agent needs init's.
    pub start: Start,
}

impl Status {
    /// Whether the init that was connected last can do it.
    pub fn can_restart(&self) -> bool {
        self.version >= SINCE
    }
}

impl Gate {
    /// Asks for a restart. Returns when the frame is on its way; what comes of it is read from the
    /// status: init answers with one at once.
    ///
    /// # Errors
    /// Besides those of every command, [`GateError::RestartsUnknown`] of an older init.
    pub async fn restart(&self, id: &ContainerId, restart: Restart) -> Result<(), GateError> {
        let status = self.expected(id)?.status();
        if status.connected && !status.can_restart() {
            return Err(GateError::RestartsUnknown {
                container: id.clone(),
            });
        }
        self.send(
            id,
            Request::Restart(protocol::Restart {
                process: &restart.process,
                budget_ms: millis(restart.budget),
                start: restart.start.told(&restart.start.pairs()),
            }),
        )
    }

    /// Asks init what is true, and returns its answer.
    pub async fn ask_status(&self, id: &ContainerId) -> Result<Status, GateError> {
        let before = self.expected(id)?.status().reports;
        self.send(id, Request::Status)?;
        let deadline = Instant::now() + ANSWER_DEADLINE;
        self.wait(id, "a status", deadline, |status| status.reports > before)
            .await
    }
}
