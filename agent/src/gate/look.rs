//! Looks at an app by commands of its plan: asked of its init, awaited by their caller.
//!
//! One of each kind may be awaited for a container; a later one takes its place. An init of an older
//! nodeagent knows no looks: it refuses the frame, is not asked again on its connection, and nobody
//! else hears of that refusal.

use std::io;
use std::time::Duration;

use container_init::protocol::{ExitStatus, Look, LookKind, LookOutcome, Looked, Refusal, Request};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::error::GateError;
use super::{Gate, RequestKind, millis};
use crate::instance::ContainerId;

/// Beyond the time that a command has: init's own work, also on a busy host.
const LOOK_MARGIN: Duration = Duration::from_secs(5);
/// Room for the frame of a look.
pub(super) const LOOK_FRAME: usize = 32;

/// What came of a look.
#[derive(Debug)]
pub enum Seen {
    /// The command ended; code 0 is a yes.
    Ended(ExitStatus),
    /// It was killed when its time was over.
    TimedOut,
    /// It cannot be executed.
    NotExecuted(io::Error),
}

/// The looks that are awaited on one connection.
#[derive(Default)]
pub(super) struct Looks {
    newest: u32,
    awaited: Vec<Awaited>,
    /// Init cannot look.
    unknown: bool,
}

struct Awaited {
    id: u32,
    kind: LookKind,
    answer: oneshot::Sender<LookOutcome>,
}

impl Looks {
    /// Whether init is known not to look.
    pub(super) fn are_unknown(&self) -> bool {
        self.unknown
    }

    /// A look that is sent next, and where its answer comes.
    pub(super) fn begin(
        &mut self,
        kind: LookKind,
        timeout: Duration,
    ) -> (Request<'static>, oneshot::Receiver<LookOutcome>) {
        self.newest = self.newest.wrapping_add(1);
        let (answer, outcome) = oneshot::channel();
        self.awaited.retain(|awaited| awaited.kind != kind);
        self.awaited.push(Awaited {
            id: self.newest,
            kind,
            answer,
        });
        let look = Look {
            id: self.newest,
            kind,
            timeout_ms: millis(timeout).max(1),
        };
        (Request::Look(look), outcome)
    }

    /// Hands an answer to who waits for it, if anybody does.
    pub(super) fn answered(&mut self, looked: &Looked) {
        let at = self.awaited.iter().position(|a| a.id == looked.id);
        if let Some(at) = at {
            // Who gave up waiting needs no answer.
            self.awaited
                .swap_remove(at)
                .answer
                .send(looked.outcome)
                .ok();
        }
    }

    /// Whether this refusal is the answer of an init that cannot read the frame of a look. Every
    /// other request is one that each version reads.
    pub(super) fn take_refusal(&mut self, request: Option<RequestKind>, code: Refusal) -> bool {
        let unread = (request, code) == (None, Refusal::Malformed);
        let asked = self.unknown || !self.awaited.is_empty();
        if !(unread && asked) {
            return false;
        }
        self.unknown = true;
        for awaited in self.awaited.drain(..) {
            let outcome = LookOutcome::Refused(Refusal::Unsupported);
            awaited.answer.send(outcome).ok();
        }
        true
    }
}

impl Gate {
    /// Executes the command of this kind beside the app and returns what came of it, after `within`
    /// and init's own work at most.
    ///
    /// # Errors
    /// Whenever nobody knows how it would have ended: init is not connected, does not answer, has no
    /// such command, or is stopping.
    pub async fn look(
        &self,
        id: &ContainerId,
        kind: LookKind,
        within: Duration,
    ) -> Result<Seen, GateError> {
        let began = Instant::now();
        let outcome = self.expected(id)?.look(kind, within)?;
        let container = id.clone();
        match timeout_at(began + within + LOOK_MARGIN, outcome).await {
            Ok(Ok(LookOutcome::Ended(status))) => Ok(Seen::Ended(status)),
            Ok(Ok(LookOutcome::TimedOut)) => Ok(Seen::TimedOut),
            Ok(Ok(LookOutcome::NotExecuted { errno })) => {
                let errno = i32::try_from(errno).unwrap_or(i32::MAX);
                Ok(Seen::NotExecuted(io::Error::from_raw_os_error(errno)))
            }
            Ok(Ok(LookOutcome::Refused(Refusal::Unsupported))) => {
                Err(GateError::LooksUnknown { container })
            }
            Ok(Ok(LookOutcome::Refused(code))) => Err(GateError::Refused {
                container,
                request: Some(RequestKind::Look),
                code,
            }),
            Ok(Err(_)) => Err(GateError::NotConnected { container }),
            Err(_) => Err(GateError::Deadline {
                what: "a look at the app",
                container,
                waited: began.elapsed(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn id(request: Request<'_>) -> u32 {
        match request {
            Request::Look(look) => look.id,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_answer_goes_to_the_look_that_it_is_for() {
        let mut looks = Looks::default();
        let (ready, mut of_ready) = looks.begin(LookKind::Readiness, SECOND);
        let (alive, mut of_alive) = looks.begin(LookKind::Liveness, SECOND);
        let outcome = LookOutcome::TimedOut;
        looks.answered(&Looked { id: 99, outcome });
        looks.answered(&Looked {
            id: id(alive),
            outcome,
        });
        assert_eq!(of_alive.try_recv(), Ok(outcome));
        assert!(of_ready.try_recv().is_err());
        let (_, mut again) = looks.begin(LookKind::Readiness, SECOND);
        looks.answered(&Looked {
            id: id(ready),
            outcome,
        });
        assert!(
            again.try_recv().is_err(),
            "that was the answer to the former look"
        );
        assert_eq!(looks.awaited.len(), 1);
    }

    #[test]
    fn an_init_that_cannot_read_a_look_knows_none() {
        let mut looks = Looks::default();
        assert!(
            !looks.take_refusal(None, Refusal::Malformed),
            "nobody asked"
        );
        let (_, mut outcome) = looks.begin(LookKind::Readiness, SECOND);
        assert!(!looks.take_refusal(Some(RequestKind::Stop), Refusal::Stopping));
        assert!(looks.take_refusal(None, Refusal::Malformed));
        let unsupported = LookOutcome::Refused(Refusal::Unsupported);
        assert_eq!(outcome.try_recv(), Ok(unsupported));
        assert!(looks.are_unknown());
        assert!(
            looks.take_refusal(None, Refusal::Malformed),
            "the second look's"
        );
    }
}
