//! `nodeagent tasks`

use std::time::Duration;

use clap::{Args, Subcommand};

use super::duration::{self, millis};
use super::table::{Align, Table};
use super::task_view::{self, what};
use super::{Options, Report};
use crate::api::TaskFilter;
use crate::api::v1::{TaskList, TaskState, TaskSummary};

const EXAMPLES: &str = "\
Examples:
  nodeagent tasks
  nodeagent tasks --app web --state running,partial
  nodeagent tasks --since 1h --limit 1000 -o json | jq -r '.tasks[].taskId'
  nodeagent tasks show peak-7";

/// List the newest tasks, or show one in full
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(super) struct Tasks {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Only those of this app
    #[arg(long, value_name = "APP")]
    app: Option<String>,
    /// Only those in this state; several with commas: running, done, partial, failed, superseded
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = state)]
    state: Vec<TaskState>,
    /// Only those that were accepted at most so long ago
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    since: Option<Duration>,
    /// The newest N, at most 1000
    #[arg(long, value_name = "N", default_value_t = TaskFilter::default().limit)]
    limit: u32,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Show(Show),
}

const EXAMPLES_OF_SHOW: &str = "\
Examples:
  nodeagent tasks show peak-7
  nodeagent tasks show peak-7 -o json | jq .state

The exit code is 0 whatever the task came to. Its steps: nodeagent trace TASK.";

/// Show a task and its instances
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES_OF_SHOW)]
struct Show {
    /// Id of the task
    #[arg(value_name = "TASK")]
    id: String,
}

fn state(text: &str) -> Result<TaskState, String> {
    TaskState::from_name(text).ok_or_else(|| {
        let names = TaskState::ALL.map(TaskState::as_str);
        format!("one of {} is expected", names.join(", "))
    })
}

impl Tasks {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        if let Some(Verb::Show(show)) = &self.verb {
            return show.execute(options).await;
        }
        let filter = TaskFilter {
            app: self.app.clone(),
            states: self.state.clone(),
            since: self.since,
            limit: self.limit,
        };
        match options.client().tasks(&filter).await {
            Ok(list) => Report::document(options.output, &list, || render(&list, &filter)),
            Err(error) => Report::failure(options.output, &error),
        }
    }
}

impl Show {
    async fn execute(&self, options: &Options) -> Report {
        match options.client().task(&self.id).await {
            Ok(task) => Report::document(options.output, &task, || task_view::render(&task)),
            Err(error) => Report::failure(options.output, &error),
        }
    }
}

/// The app stands in a column of its own.
fn asked(task: &TaskSummary) -> String {
    let verb = task.verb;
    match &task.instance {
        Some(instance) => format!("{verb} {instance} {}", what(task)),
        None => format!("{verb} {}", what(task)),
    }
}

fn render(list: &TaskList, filter: &TaskFilter) -> String {
    if list.tasks.is_empty() {
        let every = TaskFilter {
            limit: filter.limit,
            ..TaskFilter::default()
        };
        let none = match *filter == every {
            true => "no tasks yet\n",
            false => "no such tasks\n",
        };
        return none.to_owned();
    }
    let mut table = Table::new([
        ("TASK", Align::Left),
        ("APP", Align::Left),
        ("ASKED", Align::Left),
        ("STATE", Align::Left),
        ("TARGET", Align::Right),
        ("SEQ", Align::Right),
        ("ACTIVE", Align::Right),
        ("CREATED", Align::Left),
        ("TOOK ms", Align::Right),
        ("DETAIL", Align::Left),
    ]);
    for task in &list.tasks {
        table.row([
            task.task_id.clone(),
            task.app.clone(),
            asked(task),
            task.state.to_string(),
            task.target.to_string(),
            task.target_seq.to_string(),
            task.active.to_string(),
            task.created_at.to_string(),
            millis(task.elapsed_ms),
            task.detail.clone().unwrap_or_default(),
        ]);
    }
    table.without_empty("DETAIL").render()
}
