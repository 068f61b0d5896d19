//! `nodeagent deactivate`

use clap::Args;

use super::submit::{Force, Submission};
use super::{Options, Report};
use crate::api::v1::Verb;

const EXAMPLES: &str = "\
Examples:
  nodeagent deactivate web --to 0
  nodeagent deactivate web --to 4 --task-id after-peak-7 --timeout 2m
  nodeagent deactivate web --to 0 --force

A pool that already has N active instances, or fewer, stays as it is.";

/// Take instances of an app out of service, until at most N are active
///
/// An instance is deregistered, serves what clients still send, and is stopped after its drain.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Deactivate {
    #[command(flatten)]
    submission: Submission,
    /// Wait neither for deregistration nor for the drain: requests in flight may fail
    #[arg(long)]
    force: bool,
}

impl Deactivate {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        let force = if self.force { Force::Yes } else { Force::No };
        self.submission
            .execute(options, Verb::Deactivate, force, None)
            .await
    }
}
