//! `nodeagent image evict`

use std::fmt::Write;
use std::time::Duration;

use clap::Args;

use crate::api::v1::{EvictRequest, EvictResult};
use crate::app::quantity;
use crate::cli::size::size;
use crate::cli::{Options, Report, duration};

const EXAMPLES: &str = "\
Examples:
  nodeagent image evict --dry-run
  nodeagent image evict --free 10Gi

The image that was not used for longest goes first, and no more go than are needed. Images that are
pinned, or that an app or a container needs, stay. Layers that an image shares with one that stays
are not freed.";

/// Evict images that nobody needs
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Evict {
    /// Bytes to free at least, like 500Mi or 10Gi; all that may go when absent
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    free: Option<u64>,
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
    /// How long this command waits
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration::parse)]
    timeout: Duration,
}

impl Evict {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        let request = EvictRequest {
            bytes: self.free,
            dry_run: self.dry_run,
        };
        let client = options.client().with_deadline(self.timeout);
        match client.evict_images(&request).await {
            Ok(result) => Report::document(options.output, &result, || render(&result)),
            Err(error) => Report::failure(options.output, &error),
        }
    }
}

fn bytes(text: &str) -> Result<u64, String> {
    let allowed = "a number of bytes like 500Mi or 10Gi";
    quantity::bytes(text).ok_or_else(|| allowed.to_owned())
}

fn render(result: &EvictResult) -> String {
    let (goes, freed) = match result.dry_run {
        true => ("would go", "would be freed"),
        false => ("is gone", "freed"),
    };
    let mut text = String::new();
    for image in &result.evicted {
        let _ = writeln!(
            text,
            "{} {goes}: {}",
            image.reference,
            size(image.freed_bytes)
        );
    }
    for image in &result.kept {
        let why = match image.why.as_str() {
            "inUse" => "in use",
            why => why,
        };
        let _ = writeln!(text, "{} stays: {why}", image.reference);
    }
    let _ = writeln!(text, "{} {freed}", size(result.freed_bytes));
    if result.short_bytes > 0 {
        let _ = writeln!(
            text,
            "{} are still needed, and nothing more may go",
            size(result.short_bytes)
        );
    }
    text
}
