//! `nodeagent trace`

use clap::Args;

use super::waterfall::{self, Detail};
use super::{Options, Report};

const EXAMPLES: &str = "\
Examples:
  nodeagent trace peak-7
  nodeagent trace peak-7 --all
  nodeagent trace peak-7 -o json | jq '.steps[] | select(.durationMs > 5)'

Milliseconds count from the first byte of the request. A task of many instances is summed up by
step; --all shows every one.";

/// Show where the milliseconds of a task went
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Trace {
    /// Name of the task
    task: String,
    /// Every step of every instance
    #[arg(long)]
    all: bool,
}

impl Trace {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        let detail = if self.all {
            Detail::All
        } else {
            Detail::Fitting
        };
        match options.client().trail(&self.task).await {
            Ok(trail) => {
                Report::document(options.output, &trail, || waterfall::render(&trail, detail))
            }
            Err(error) => Report::failure(options.output, &error),
        }
    }
}
