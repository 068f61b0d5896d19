//! `nodeagent app delete`

use clap::Args;

use super::apply::sentence;
use crate::api::Deletion;
use crate::cli::{Options, Report};

const EXAMPLES: &str = "\
Examples:
  nodeagent deactivate web --to 0 && nodeagent app delete web
  nodeagent app delete web --force";

/// Forget an app and remove its waiting instances
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Delete {
    /// Name of the app
    name: String,
    /// Also when instances are in service: they are taken out without a drain
    #[arg(long)]
    force: bool,
}

impl Delete {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        let deletion = if self.force {
            Deletion::Forced
        } else {
            Deletion::WhenUnused
        };
        match options.client().delete_app(&self.name, deletion).await {
            Ok(result) => Report::document(options.output, &result, || sentence(&result)),
            Err(error) => Report::failure(options.output, &error),
        }
    }
}
