//! `nodeagent app delete`

use std::time::Duration;

use clap::Args;

use super::apply::sentence;
use crate::api::Deletion;
use crate::cli::{Options, Report, duration};

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
    /// How long this command waits until nothing of the app is left
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration::parse)]
    timeout: Duration,
}

impl Delete {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        let deletion = if self.force {
            Deletion::Forced
        } else {
            Deletion::WhenUnused
        };
        let client = options.client().with_deadline(self.timeout);
        match client.delete_app(&self.name, deletion).await {
            Ok(result) => Report::document(options.output, &result, || sentence(&result)),
            Err(error) => Report::failure(options.output, &error),
        }
    }
}
