//! What init knows of the processes of its plan: asked of it, awaited by the caller.
//!
//! Answers come in the order of the questions, so a question needs no number. An init of an older
//! nodeagent knows no such question and is not asked.

use std::collections::VecDeque;
use std::time::Duration;

use container_init::protocol::{ExitStatus, ProcessState, Processes, Request};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::Gate;
use super::error::GateError;
use crate::instance::ContainerId;

/// How long init may take, also on a busy host.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);
/// Questions that wait for one init, also those that nobody awaits any more: a frozen init answers
/// none.
const MAX_QUESTIONS: usize = 64;
/// The first version of the protocol that has the question.
const SINCE_VERSION: u16 = 2;

/// A process of the plan, as init knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Supervised {
    /// Name from the plan; the app's is [`crate::instance::plan::APP_PROCESS`].
    pub name: String,
    /// What it does.
    pub state: ProcessState,
    /// Pid inside the container; `None` when it does not run.
    pub pid: Option<u32>,
    /// How often it was started again.
    pub restarts: u32,
    /// Since its last start; `None` when it was never started.
    pub since: Option<Duration>,
    /// How it ended the last time; `None` when it never did.
    pub last_exit: Option<ExitStatus>,
}

/// The questions to one connection.
#[derive(Default)]
pub(super) struct Questions {
    awaited: VecDeque<oneshot::Sender<Vec<Supervised>>>,
}

impl Questions {
    /// Where the answer to a question comes that is sent next, to an init of this version.
    pub(super) fn begin(
        &mut self,
        container: &ContainerId,
        version: u16,
    ) -> Result<oneshot::Receiver<Vec<Supervised>>, GateError> {
        let container = container.clone();
        if version < SINCE_VERSION {
            return Err(GateError::ProcessesUnknown { container });
        }
        if self.awaited.len() >= MAX_QUESTIONS {
            let waiting = self.awaited.len();
            return Err(GateError::Unanswered { container, waiting });
        }
        let (answer, told) = oneshot::channel();
        self.awaited.push_back(answer);
        Ok(told)
    }

    /// The question was not sent.
    pub(super) fn withdraw(&mut self) {
        self.awaited.pop_back();
    }

    /// Hands an answer to who asked first, if they still wait.
    pub(super) fn answered(&mut self, said: &Processes<'_>) {
        let Some(answer) = self.awaited.pop_front() else {
            return;
        };
        let told = said.list.iter().map(|process| Supervised {
            name: process.name.to_owned(),
            state: process.state,
            pid: (process.pid != 0).then_some(process.pid),
            restarts: process.restarts,
            since: (process.since_ms != 0).then(|| Duration::from_millis(process.since_ms)),
            last_exit: process.last_exit,
        });
        // Who gave up waiting needs no answer.
        answer.send(told.collect()).ok();
    }
}

impl Gate {
    /// What init knows of every process of the plan, in its order: the app is the last.
    ///
    /// # Errors
    /// Init is not connected, does not answer, or is older than the question.
    pub async fn processes(&self, id: &ContainerId) -> Result<Vec<Supervised>, GateError> {
        let began = Instant::now();
        let told = self.expected(id)?.ask_processes(&Request::Processes)?;
        let container = id.clone();
        match timeout_at(began + ANSWER_DEADLINE, told).await {
            Ok(Ok(told)) => Ok(told),
            Ok(Err(_)) => Err(GateError::NotConnected { container }),
            Err(_) => Err(GateError::Deadline {
                what: "the answer about its processes",
                container,
                waited: began.elapsed(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use container_init::plan::List;
    use container_init::protocol::{Memory, ProcessStatus};

    fn container() -> ContainerId {
        "web-0.g1".parse().unwrap()
    }

    fn said<'a>(list: &'a [ProcessStatus<'a>]) -> Processes<'a> {
        Processes {
            memory: Memory::default(),
            list: List::new(list),
        }
    }

    #[test]
    fn answers_go_to_those_who_asked_in_their_order() {
        let mut questions = Questions::default();
        let mut first = questions.begin(&container(), 2).unwrap();
        let mut second = questions.begin(&container(), 2).unwrap();
        let app = ProcessStatus {
            name: "app",
            restarts: 3,
            ..ProcessStatus::default()
        };
        questions.answered(&said(&[app]));
        let told = first.try_recv().unwrap();
        assert_eq!((told[0].name.as_str(), told[0].restarts), ("app", 3));
        assert_eq!((told[0].pid, told[0].since), (None, None));
        assert!(second.try_recv().is_err());
        drop(second);
        questions.answered(&said(&[app]));
        questions.answered(&said(&[app]));
        assert!(questions.awaited.is_empty());
    }

    #[test]
    fn an_older_init_is_not_asked_and_a_silent_one_not_for_ever() {
        let error = Questions::default().begin(&container(), 1).unwrap_err();
        assert!(matches!(error, GateError::ProcessesUnknown { .. }));
        let mut silent = Questions::default();
        for _ in 0..MAX_QUESTIONS {
            drop(silent.begin(&container(), 2).unwrap());
        }
        let error = silent.begin(&container(), 2).unwrap_err();
        assert!(matches!(error, GateError::Unanswered { waiting: 64, .. }));
    }
}
