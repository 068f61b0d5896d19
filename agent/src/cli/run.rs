//! `nodeagent run`

use clap::Args;

use super::config::loaded;
use super::report::Exit;
use super::{Options, Report};
use crate::config::Settings;
use crate::host::RunError;

const EXAMPLES: &str = "\
Examples:
  nodeagent run
  nodeagent run --config ./nodeagent.toml

SIGTERM ends the agent and leaves the containers running. It listens where its configuration says
(paths.api_socket), not where --socket says.";

/// Run the agent in the foreground
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Run {}

/// What `nodeagent run` runs, until it is told to stop.
pub type Daemon = fn(Settings) -> anyhow::Result<()>;

impl Run {
    pub(super) fn run(&self, options: &Options, daemon: Daemon) -> Report {
        let settings = match loaded(options) {
            Ok(loaded) => loaded.settings,
            Err(report) => return report,
        };
        match daemon(settings) {
            Ok(()) => Report::done(),
            Err(error) => {
                let refused = error
                    .downcast_ref::<RunError>()
                    .is_some_and(RunError::is_refusal);
                let exit = if refused { Exit::Refused } else { Exit::Failed };
                Report::error(exit, format!("{error:#}"))
            }
        }
    }
}
