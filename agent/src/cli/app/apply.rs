//! `nodeagent app apply`

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::manifest;
use crate::api::v1::{ApplyOutcome, ApplyResult};
use crate::cli::status::short;
use crate::cli::table::plain;
use crate::cli::{Options, Report, duration};

const EXAMPLES: &str = "\
Examples:
  nodeagent app apply -f web.yaml
  sed s/:1/:2/ web.yaml | nodeagent app apply -f -

A changed manifest makes a new revision: waiting instances are replaced by and by, active ones when
they are restarted.";

/// Make a manifest known to the agent, or change it
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Apply {
    /// The manifest; - is stdin
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// How long this command waits for the agent, which pulls the image first
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration::parse)]
    timeout: Duration,
}

impl Apply {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        let manifest = match manifest::read(&self.file) {
            Ok(manifest) => manifest,
            Err(report) => return report,
        };
        let client = options.client().with_deadline(self.timeout);
        match client.apply(manifest).await {
            Ok(result) => Report::document(options.output, &result, || sentence(&result)),
            Err(error) => Report::failure(options.output, &error),
        }
    }
}

/// What an apply or delete changed, in a sentence.
pub(super) fn sentence(result: &ApplyResult) -> String {
    let mut text = format!("app {}: {}", result.name, result.outcome.as_str());
    if result.outcome != ApplyOutcome::Deleted {
        text.push_str(&format!(", revision {}", short(&result.revision)));
    }
    if let Some(detail) = &result.detail {
        text.push_str(&format!("\n{}", plain(detail)));
    }
    text + "\n"
}
