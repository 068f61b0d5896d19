//! What activate, deactivate, scale, roll and restart have in common: one submission, waited for.

use std::time::Duration;

use clap::Args;

use super::duration::{self, spoken};
use super::report::{Exit, Report};
use super::{Options, progress, task_view};
use crate::api::v1::{ScaleImage, Task, TaskRequest, TaskState, Verb};
use crate::api::{ClientError, generate_task_id};

/// Whether clients are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Force {
    /// Deregistration and drain take their time.
    No,
    /// They are skipped.
    Yes,
}

#[derive(Debug, Clone, Args)]
pub(super) struct Submission {
    /// Name of the app
    app: String,
    /// How many active instances are wanted
    #[arg(long, value_name = "N")]
    to: u32,
    #[command(flatten)]
    options: TaskOptions,
}

/// Of a verb that brings instances into service.
#[derive(Debug, Clone, Args)]
pub(super) struct ImageOption {
    /// Image of the instances that come: the stable one [default], or the one applied last
    ///
    /// They differ from the application of another image on until it has covered all instances, as
    /// by a roll (nodeagent image stable).
    #[arg(long, value_name = "WHICH", value_parser = image)]
    image: Option<ScaleImage>,
}

impl ImageOption {
    pub(super) fn which(&self) -> Option<ScaleImage> {
        self.image
    }
}

fn image(text: &str) -> Result<ScaleImage, String> {
    match text {
        "stable" => Ok(ScaleImage::Stable),
        "applied" => Ok(ScaleImage::Applied),
        _ => Err("stable or applied".to_owned()),
    }
}

/// Options of every submission.
#[derive(Debug, Clone, Args)]
pub(super) struct TaskOptions {
    /// Name of the task: repeating a command with the same name never does it twice
    ///
    /// The same name with the same request gives the recorded answer and what is true now. With
    /// another request it is refused. Made up and printed when absent.
    #[arg(long, value_name = "ID")]
    task_id: Option<String>,
    /// How long this command waits for the task; the task itself goes on
    #[arg(long, value_name = "DURATION", default_value = "90s", value_parser = duration::parse)]
    timeout: Duration,
    /// Do it only when the pool's target has this sequence number (status shows it)
    #[arg(long, value_name = "SEQ")]
    expect_seq: Option<u64>,
    /// The task id was never used before (asked for while the loss of a journal is not accepted)
    #[arg(long)]
    new_epoch: bool,
    /// When the task itself ends, reached or not [default: the agent's]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    deadline: Option<Duration>,
    /// W3C trace context that the task becomes part of
    #[arg(
        long,
        value_name = "TRACEPARENT",
        env = "TRACEPARENT",
        hide_env_values = true
    )]
    traceparent: Option<String>,
}

impl Submission {
    pub(super) async fn execute(
        &self,
        options: &Options,
        verb: Verb,
        force: Force,
        image: Option<ScaleImage>,
    ) -> Report {
        let asked = TaskRequest {
            force: (force == Force::Yes).then_some(true),
            image,
            ..TaskRequest::to(self.to)
        };
        self.options.execute(options, &self.app, verb, asked).await
    }
}

impl TaskOptions {
    /// Submits what is asked of an app, or of an instance, under these options.
    pub(super) async fn execute(
        &self,
        options: &Options,
        name: &str,
        verb: Verb,
        asked: TaskRequest,
    ) -> Report {
        let made_up = self.task_id.is_none();
        let task_id = self.task_id.clone().unwrap_or_else(generate_task_id);
        if made_up {
            // Before the call: whoever is interrupted can still repeat it.
            eprintln!("task id: {task_id}");
        }
        let request = TaskRequest {
            task_id: Some(task_id.clone()),
            expect_seq: self.expect_seq,
            deadline_seconds: self.deadline.map(|deadline| deadline.as_secs_f64()),
            new_epoch: (made_up || self.new_epoch).then_some(true),
            ..asked
        };
        let client = options.client();
        let (wait, traceparent) = (self.timeout, self.traceparent.as_deref());
        let call = client.submit(name, verb, &request, wait, traceparent);
        let app = match verb {
            Verb::Restart => name.rsplit_once('-').map_or(name, |(app, _)| app),
            Verb::Activate | Verb::Deactivate | Verb::Scale | Verb::Roll => name,
        };
        match progress::shown_while(call, &client, app, request.to).await {
            Ok(task) => self.report(options, &task),
            Err(error) => lost(Report::failure(options.output, &error), &error, &task_id),
        }
    }

    fn report(&self, options: &Options, task: &Task) -> Report {
        let report = Report::document(options.output, task, || task_view::render(task));
        match task.state {
            TaskState::Done => report,
            TaskState::Failed => report.exiting(Exit::Failed),
            TaskState::Partial => report.exiting(Exit::Partial),
            TaskState::Superseded => report.exiting(Exit::Conflict),
            TaskState::Running => {
                let waited = spoken(self.timeout);
                let id = &task.task_id;
                let sentence = format!(
                    "nodeagent: the wait of {waited} ended, task {id} is still running\n  \
                     follow it: nodeagent trace {id}, or nodeagent tasks"
                );
                report.saying(sentence).exiting(Exit::StillRunning)
            }
        }
    }
}

/// After a call that ended without an answer, the task id is what finds out.
fn lost(report: Report, error: &ClientError, task_id: &str) -> Report {
    match error {
        ClientError::Deadline { .. } => {
            let hint = format!(
                "  look: nodeagent trace {task_id}, or repeat the command with --task-id {task_id}"
            );
            report.saying(hint).exiting(Exit::StillRunning)
        }
        ClientError::BrokenOff { .. } => report.saying(format!(
            "  repeat the command with --task-id {task_id}: it is not done twice"
        )),
        _ => report,
    }
}
