//! `nodeagent activate`

use clap::Args;

use super::submit::{Force, ImageOption, Submission};
use super::{Options, Report};
use crate::api::v1::Verb;

const EXAMPLES: &str = "\
Examples:
  nodeagent activate web --to 20
  nodeagent activate web --to 20 --task-id peak-7
  nodeagent activate web --to 20 --timeout 0 -o json
  nodeagent activate web --to 5 --expect-seq 12 --deadline 10s
  nodeagent activate web --to 6 --image applied

A pool that already has N active instances, or more, stays as it is.";

/// Bring instances of an app into service, until at least N are active
///
/// Armed instances are let go first, then colder ones. An instance is active once it is ready and
/// every required discovery backend has acknowledged it.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Activate {
    #[command(flatten)]
    submission: Submission,
    #[command(flatten)]
    image: ImageOption,
}

impl Activate {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        self.submission
            .execute(options, Verb::Activate, Force::No, self.image.which())
            .await
    }
}
