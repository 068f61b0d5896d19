//! `nodeagent run`

use clap::Args;

use super::Report;
use super::report::Exit;

const EXAMPLES: &str = "\
Examples:
  nodeagent run
  nodeagent run --config-dir /tmp/lab/config.d

SIGTERM ends the agent and leaves the containers running.";

/// Run the agent in the foreground
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Run {}

/// What `nodeagent run` runs.
pub type Daemon = fn() -> anyhow::Result<()>;

impl Run {
    pub(super) fn run(&self, daemon: Daemon) -> Report {
        match daemon() {
            Ok(()) => Report::done(),
            Err(error) => Report::error(Exit::Failed, format!("{error:#}")),
        }
    }
}
