//! Probes that are commands: each look is one that container-init executes beside the app.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use container_init::protocol::ExitStatus;

use crate::chain::chain;
use crate::gate::{Gate, GateError, LookKind, Seen};
use crate::instance::ContainerId;
use crate::instance::probe::{AttemptFailed, Inside};

/// The command of one probe of one instance.
pub(super) struct Command<'a> {
    gate: &'a Gate,
    container: &'a ContainerId,
    kind: LookKind,
    /// It was said that nobody can look.
    told: AtomicBool,
}

impl<'a> Command<'a> {
    pub(super) fn new(gate: &'a Gate, container: &'a ContainerId, kind: LookKind) -> Self {
        Self {
            gate,
            container,
            kind,
            told: AtomicBool::new(false),
        }
    }

    /// An init that does not answer now may answer the next time; one that cannot never will.
    fn tell(&self, error: &GateError) {
        let passing = matches!(error, GateError::NotConnected { .. });
        if !passing && !self.told.swap(true, Ordering::Relaxed) {
            let (container, probe) = (self.container, self.kind);
            tracing::warn!(%container, ?probe, error = chain(error), "a probe counts neither as passed nor as failed");
        }
    }
}

impl Inside for Command<'_> {
    async fn look(&self, within: Duration) -> Result<(), AttemptFailed> {
        match self.gate.look(self.container, self.kind, within).await {
            Ok(Seen::Ended(ExitStatus::Code(0))) => Ok(()),
            Ok(Seen::Ended(ExitStatus::Code(code))) => Err(AttemptFailed::Code(code)),
            Ok(Seen::Ended(ExitStatus::Signal(signal))) => Err(AttemptFailed::Signal(signal)),
            Ok(Seen::TimedOut) => Err(AttemptFailed::Killed(within)),
            Ok(Seen::NotExecuted(error)) => Err(AttemptFailed::Execute(error)),
            Err(error) => {
                self.tell(&error);
                Err(AttemptFailed::NotKnown(Box::new(error)))
            }
        }
    }
}
