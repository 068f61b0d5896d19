//! `nodeagent tasks`

use clap::Args;

use super::duration::millis;
use super::table::{Align, Table};
use super::task_view::what;
use super::{Options, Report};
use crate::api::v1::TaskList;

const EXAMPLES: &str = "\
Examples:
  nodeagent tasks
  nodeagent tasks -o json | jq -r '.tasks[] | select(.state==\"running\") | .taskId'";

/// List the newest tasks
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Tasks {}

impl Tasks {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        match options.client().tasks().await {
            Ok(list) => Report::document(options.output, &list, || render(&list)),
            Err(error) => Report::failure(options.output, &error),
        }
    }
}

fn render(list: &TaskList) -> String {
    if list.tasks.is_empty() {
        return "no tasks yet\n".to_owned();
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
            format!("{} {}", task.verb, what(task.to, task.step)),
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
