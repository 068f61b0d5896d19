//! `nodeagent restart`

use clap::{Args, ValueEnum};

use super::submit::TaskOptions;
use super::{Options, Report};
use crate::api::v1::{Strategy, TaskRequest, Verb};

const EXAMPLES: &str = "\
Examples:
  nodeagent restart web-0 --strategy reuse
  nodeagent restart web-0 --strategy reuse --task-id mend-3 --timeout 2m
  nodeagent restart web-0 --process log --strategy reuse

The app leaves discovery and is drained, ends with all that it started, and is started again in the
same container: address, files and volumes stay, what spec.reuse.clean names is removed, and clients
find it when it is ready. With --process an in-container agent is started again beside the app, which
goes on serving.";

/// Start the app of an instance, or one of its in-container agents, again in its container
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Restart {
    /// Name of the instance
    instance: String,
    /// How: reuse keeps the container, its address and its files
    #[arg(long, value_enum)]
    strategy: Way,
    /// Name of the in-container agent [default: the app]
    #[arg(long, value_name = "NAME")]
    process: Option<String>,
    /// Do not wait for discovery nor for clients: requests in flight fail
    #[arg(long, conflicts_with = "process")]
    force: bool,
    #[command(flatten)]
    options: TaskOptions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    Reuse,
}

impl Restart {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        let Way::Reuse = self.strategy;
        let asked = TaskRequest {
            strategy: Some(Strategy::Reuse),
            process: self.process.clone(),
            force: self.force.then_some(true),
            ..TaskRequest::default()
        };
        self.options
            .execute(options, &self.instance, Verb::Restart, asked)
            .await
    }
}
