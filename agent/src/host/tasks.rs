//! A request for a new target, a roll or a restart: recognised, brought to its pool, awaited, answered.

use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::answers;
use super::node::{Node, app_name, stopping, unreadable};
use crate::api::Received;
use crate::api::v1::{
    Problem, ProblemCode, RollStep, STEP_RULE, ScaleImage, Task, TaskRequest, Verb,
};
use crate::hex::hex;
use crate::instance::InstanceName;
use crate::instance::plan::APP_PROCESS;
use crate::journal::{StoredTask, TaskRow};
use crate::pool::{Effects, Message, read_clocks};
use crate::task::{
    self, Joined, Progress, Request, RestartWish, RestartedAgent, TaskContext, TaskId,
};

impl<E: Effects> Node<E> {
    pub(super) async fn submit_task(
        &self,
        name: &str,
        verb: Verb,
        request: TaskRequest,
        received: Received,
        wait: Duration,
    ) -> Result<Task, Problem> {
        let (app, ordinal) = match verb {
            Verb::Restart => {
                let none = |_| Problem::not_found("instance", name);
                let name: InstanceName = name.parse().map_err(none)?;
                (name.app, name.ordinal)
            }
            Verb::Activate | Verb::Deactivate | Verb::Scale | Verb::Roll => (app_name(name)?, 0),
        };
        let vouched = request.new_epoch == Some(true);
        let request = accepted(name, ordinal, verb, &request, &received)?;
        let (id, asked) = (request.context.task_id.clone(), request.clone());
        let recorded = || self.journal.task(&id).map(|found| found.is_some());
        let joined = self
            .shared
            .index
            .join(&app, &request, recorded)
            .map_err(|e| unreadable(&e))?;
        let (progress, replayed) = match joined {
            None => return self.recorded(&request),
            Some(Joined::Other { .. }) => {
                return Err(conflict(&id, "a task with this id is under way"));
            }
            Some(Joined::Same(progress)) => (progress, answers::Replayed::Yes),
            Some(Joined::New(_)) if self.epoch.is_lost() && !vouched => {
                self.shared.index.withdrawn(&id);
                return Err(self.unknown_epoch(&id));
            }
            Some(Joined::New(progress)) => {
                let mut request = request;
                let looked = match self.entry(&app).await {
                    Ok(entry) => {
                        let looked = self.look_before_restart(&app, &mut request).await;
                        looked.map(|()| entry)
                    }
                    Err(problem) => Err(problem),
                };
                let sent = match looked {
                    Ok(entry) => entry
                        .handle
                        .messages
                        .send(Message::Target(request))
                        .map_err(|_| stopping()),
                    Err(problem) => Err(problem),
                };
                if let Err(problem) = sent {
                    self.shared.index.withdrawn(&id);
                    return Err(problem);
                }
                (progress, answers::Replayed::No)
            }
        };
        let waited = tokio::time::timeout(wait, settled(progress.clone())).await;
        let progress = match waited {
            Ok(progress) => progress?,
            Err(_) => progress.borrow().clone(),
        };
        match (progress, replayed) {
            // What the journal has is at hand: the answer needs no read.
            (Progress::Ended(outcome), answers::Replayed::No)
                if asked.step.is_none() && asked.restart.is_none() =>
            {
                let stored = StoredTask {
                    row: TaskRow::open(&app, &asked, outcome.target, outcome.target_seq, 0),
                    ended: Some((outcome.finished_ms, outcome)),
                };
                Ok(answers::task(&stored, None, replayed))
            }
            (progress, replayed) => self.answer(&id, progress, replayed),
        }
    }

    fn answer(
        &self,
        id: &TaskId,
        progress: Progress,
        replayed: answers::Replayed,
    ) -> Result<Task, Problem> {
        match progress {
            Progress::Refused(refusal) => {
                Err(answers::refused(&refusal).about(format!("/v1/tasks/{id}")))
            }
            Progress::Unwritten(failure) => Err(Problem::new(
                ProblemCode::Unavailable,
                format!(
                    "task {id} took effect, but its outcome cannot be written yet: {failure}; ask again with the same task id"
                ),
            )),
            Progress::Pending => Err(Problem::new(
                ProblemCode::Unavailable,
                format!(
                    "the intent of task {id} is not durable yet; ask again with the same task id"
                ),
            )),
            Progress::Running | Progress::Ended(_) => {
                let stored = self.journal.task(id).map_err(|e| unreadable(&e))?;
                let stored = stored.ok_or_else(|| {
                    Problem::new(
                        ProblemCode::Internal,
                        format!("task {id} is not in the journal"),
                    )
                })?;
                Ok(answers::task(
                    &stored,
                    self.snapshot(&stored.row.app).as_deref(),
                    replayed,
                ))
            }
        }
    }

    /// The journal that may have known the id is lost: only the caller can say that it is new.
    fn unknown_epoch(&self, id: &TaskId) -> Problem {
        Problem::new(
            ProblemCode::UnknownEpoch,
            format!(
                "task id {id} may be of the epoch before, whose journal was lost; nothing was done. If it was \
                 never used before, say newEpoch (--new-epoch), or accept the loss: nodeagent journal accept"
            ),
        )
        .with_current(serde_json::json!({"epoch": self.epoch.number}))
        .about(format!("/v1/tasks/{id}"))
    }

    /// The id is in the journal: its recorded result, and what is true now.
    fn recorded(&self, request: &Request) -> Result<Task, Problem> {
        let id = &request.context.task_id;
        let stored: Option<StoredTask> = self.journal.task(id).map_err(|e| unreadable(&e))?;
        match stored {
            Some(stored) if stored.row.hash == request.hash => Ok(answers::task(
                &stored,
                self.snapshot(&stored.row.app).as_deref(),
                answers::Replayed::Yes,
            )),
            Some(stored) => Err(conflict(
                id,
                &format!("it was used for {}", stored.row.asked()),
            )),
            None => Err(Problem::not_found("task", id.as_str())),
        }
    }
}

fn conflict(id: &TaskId, why: &str) -> Problem {
    Problem::new(
        ProblemCode::TaskConflict,
        format!(
            "task id {id} stands for another request: {why}; nothing was done, choose another id"
        ),
    )
    .about(format!("/v1/tasks/{id}"))
}

/// Until the task has ended, was refused, or its outcome cannot be written.
async fn settled(mut progress: watch::Receiver<Progress>) -> Result<Progress, Problem> {
    let over = |p: &Progress| !matches!(p, Progress::Pending | Progress::Running);
    match progress.wait_for(over).await {
        Ok(progress) => Ok(progress.clone()),
        Err(_) => Err(stopping()),
    }
}

/// `name` is the app's, or the instance's that is restarted.
fn accepted(
    name: &str,
    ordinal: u32,
    verb: Verb,
    request: &TaskRequest,
    received: &Received,
) -> Result<Request, Problem> {
    let id = request.task_id.as_deref().unwrap_or_default();
    let task_id = id.parse().map_err(|e: crate::instance::InvalidName| {
        Problem::new(ProblemCode::InvalidRequest, e.to_string())
    })?;
    let traceparent = match &received.traceparent {
        Some(traceparent) => traceparent.clone(),
        None => made_up(id)?,
    };
    let now = read_clocks();
    Ok(Request {
        hash: hash(name, verb, request),
        verb: match verb {
            Verb::Activate => task::Verb::Activate,
            Verb::Deactivate => task::Verb::Deactivate,
            Verb::Scale => task::Verb::Scale,
            Verb::Roll => task::Verb::Roll,
            Verb::Restart => task::Verb::Restart,
        },
        to: request.to.unwrap_or(0),
        image: match request.image {
            Some(ScaleImage::Applied) => task::ScaleImage::Applied,
            Some(ScaleImage::Stable) | None => task::ScaleImage::Stable,
        },
        step: (verb == Verb::Roll).then(|| step(request)).transpose()?,
        restart: (verb == Verb::Restart).then(|| RestartWish {
            ordinal,
            agent: agent(request),
        }),
        expect_seq: request.expect_seq,
        force: request.force.unwrap_or(false),
        deadline_seconds: request.deadline_seconds,
        created_ms: now.wall_ms,
        steady_ms: now.steady_ms,
        first_byte: received.first_byte,
        context: TaskContext {
            task_id,
            traceparent,
        },
    })
}

/// How many instances a roll replaces at a time: one, when nothing is said.
fn step(request: &TaskRequest) -> Result<task::RollStep, Problem> {
    let Some(step) = &request.step else {
        return Ok(task::RollStep::Instances(1));
    };
    let counted = match step {
        RollStep::Instances(count) => Some(task::RollStep::Instances(*count)),
        RollStep::Percent(_) => step.percent().map(task::RollStep::Percent),
    };
    counted.ok_or_else(|| Problem::new(ProblemCode::InvalidRequest, format!("step: {STEP_RULE}")))
}

/// The in-container agent that is restarted; the app may be named as well as left out.
fn agent(request: &TaskRequest) -> Option<RestartedAgent> {
    let name = request
        .process
        .as_ref()
        .filter(|name| *name != APP_PROCESS)?;
    Some(RestartedAgent {
        name: name.clone(),
        pid: None,
    })
}

/// Everything that makes two requests the same.
fn hash(app: &str, verb: Verb, request: &TaskRequest) -> String {
    let mut hasher = Sha256::new();
    let mut text = format!(
        "{app}\n{verb}\n{}\n{:?}\n{:?}\n{}",
        request.to.unwrap_or(0),
        request.expect_seq,
        request.deadline_seconds,
        request.force.unwrap_or(false)
    );
    if let Some(step) = &request.step {
        text.push_str(&format!("\n{step}"));
    }
    if request.image == Some(ScaleImage::Applied) {
        text.push_str("\napplied");
    }
    if verb == Verb::Restart {
        let agent = agent(request).map(|agent| agent.name);
        text.push_str(&format!("\n{:?}\n{agent:?}", request.strategy));
    }
    hasher.update(text);
    hex(&hasher.finalize()[..16])
}

/// A trace context of our own (W3C Trace Context, version 00): random ids, sampled.
fn made_up(task_id: &str) -> Result<String, Problem> {
    let mut random = [0_u8; 24];
    let filled = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    match filled {
        Ok(24) => Ok(format!(
            "00-{}-{}-01",
            hex(&random[..16]),
            hex(&random[16..])
        )),
        _ => Err(Problem::new(
            ProblemCode::Internal,
            format!("no randomness for the trace context of task {task_id}"),
        )),
    }
}
