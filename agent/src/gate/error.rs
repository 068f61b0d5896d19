//! Why the gate could not do something.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use container_init::protocol::{Refusal, RequestKind};
use container_init::{Malformed, TooLarge};

use crate::instance::ContainerId;

/// Why the gate could not do something.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The directory of the socket cannot be made or is not a directory.
    #[error("cannot prepare the gate's directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The socket cannot be made.
    #[error("cannot listen at the gate {}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The socket cannot be accepted from.
    #[error("cannot accept at the gate")]
    Accept(#[source] io::Error),
    /// `/proc` cannot be read.
    #[error("cannot read /proc/self/status")]
    Proc(#[source] io::Error),
    /// `/proc` shows another pid namespace than ours, so that no peer could be verified.
    #[error("/proc belongs to another pid namespace: mount the agent's own")]
    ForeignProc,
    /// Nobody called [`super::Gate::expect`] for this container.
    #[error("container {container} is not expected")]
    NotExpected {
        /// The container.
        container: ContainerId,
    },
    /// The container was forgotten during a wait.
    #[error("container {container} was forgotten")]
    Forgotten {
        /// The container.
        container: ContainerId,
    },
    /// Init has not dialled, or its connection ended. Worth repeating after a `Connected`.
    #[error("the init of container {container} is not connected")]
    NotConnected {
        /// The container.
        container: ContainerId,
    },
    /// Init does not read what it is sent.
    #[error("the init of container {container} has left {unsent} bytes unread")]
    Congested {
        /// The container.
        container: ContainerId,
        /// Bytes that wait.
        unsent: usize,
    },
    /// The connection broke while the command was written. Worth repeating after a `Connected`.
    #[error("cannot write to the init of container {container}")]
    Write {
        /// The container.
        container: ContainerId,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The command does not fit a frame.
    #[error("the {kind:?} command is too large")]
    TooLarge {
        /// The command.
        kind: RequestKind,
        /// The limit.
        #[source]
        source: TooLarge,
    },
    /// The command has a value that no environment and no frame can carry.
    #[error("the {kind:?} command cannot be said")]
    Invalid {
        /// The command.
        kind: RequestKind,
        /// The field.
        #[source]
        source: Malformed,
    },
    /// Init was made by an older nodeagent, or its plan has no such command.
    #[error(
        "the init of container {container} cannot execute the commands of probes in service: it was made by an older nodeagent"
    )]
    LooksUnknown {
        /// The container.
        container: ContainerId,
    },
    /// Init was made by an older nodeagent.
    #[error(
        "the init of container {container} cannot tell its processes: it was made by an older nodeagent; a roll makes it anew"
    )]
    ProcessesUnknown {
        /// The container.
        container: ContainerId,
    },
    /// Init answers none of many questions.
    #[error("the init of container {container} has left {waiting} questions unanswered")]
    Unanswered {
        /// The container.
        container: ContainerId,
        /// How many.
        waiting: usize,
    },
    /// Init was made by an older nodeagent.
    #[error(
        "the init of container {container} cannot start a process again in its container: it was made by an older nodeagent; nodeagent deactivate and activate make another container"
    )]
    RestartsUnknown {
        /// The container.
        container: ContainerId,
    },
    /// Init refused the newest command.
    #[error("the init of container {container} refused {}: {}", command(*request), sentence(*code))]
    Refused {
        /// The container.
        container: ContainerId,
        /// The command; `None` when init could not read it.
        request: Option<RequestKind>,
        /// Why.
        code: Refusal,
    },
    /// The time was over.
    #[error("{what}: container {container} did not get there within {waited:?}")]
    Deadline {
        /// What was waited for.
        what: &'static str,
        /// The container.
        container: ContainerId,
        /// How long it was waited for.
        waited: Duration,
    },
}

fn command(request: Option<RequestKind>) -> &'static str {
    match request {
        None => "a command that it could not read",
        Some(RequestKind::Start) => "start",
        Some(RequestKind::Adopt) => "adopt",
        Some(RequestKind::Stop) => "stop",
        Some(RequestKind::Restart) => "restart",
        Some(RequestKind::Signal) => "signal",
        Some(RequestKind::Status) => "status",
        Some(RequestKind::Ack) => "ack",
        Some(RequestKind::Look) => "a look at the app",
        Some(RequestKind::Processes) => "the question for its processes",
    }
}

fn sentence(code: Refusal) -> &'static str {
    match code {
        Refusal::StaleGeneration => "its generation is older than the one init works for",
        Refusal::NotArmed => "not every in-container agent is ready",
        Refusal::AlreadyStarted => "the app was started for another generation",
        Refusal::Stopping => "a stop is under way",
        Refusal::Malformed => "the frame could not be read",
        Refusal::Unsupported => "this container-init cannot do it",
        Refusal::NotStarted => "the app does not run",
        Refusal::UnknownProcess => "it has no process of this name",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_who_refused_what_and_why() {
        let error = GateError::Refused {
            container: "web-0.g1".parse().unwrap(),
            request: Some(RequestKind::Start),
            code: Refusal::StaleGeneration,
        };
        assert_eq!(
            error.to_string(),
            "the init of container web-0.g1 refused start: its generation is older than the one init works for"
        );
    }
}
