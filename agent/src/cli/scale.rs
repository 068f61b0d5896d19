//! `nodeagent scale`

use clap::Args;

use super::submit::{Force, ImageOption, Submission};
use super::{Options, Report};
use crate::api::v1::Verb;

const EXAMPLES: &str = "\
Examples:
  nodeagent scale web --to 8
  nodeagent scale web --to 8 --expect-seq 12

activate never takes an instance out, deactivate never brings one in; scale does either.";

/// Set how many instances of an app are in service, up or down
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Scale {
    #[command(flatten)]
    submission: Submission,
    #[command(flatten)]
    image: ImageOption,
    /// On the way down, wait neither for deregistration nor for the drain
    #[arg(long)]
    force: bool,
}

impl Scale {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        let force = if self.force { Force::Yes } else { Force::No };
        let image = self.image.which();
        let scale = self.submission.execute(options, Verb::Scale, force, image);
        scale.await
    }
}
