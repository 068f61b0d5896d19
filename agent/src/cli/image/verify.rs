//! `nodeagent image verify`

use std::fmt::Write;
use std::time::Duration;

use clap::Args;

use crate::api::v1::{VerifyRequest, VerifyResult};
use crate::cli::size::size;
use crate::cli::{Exit, Options, Report, duration};

const EXAMPLES: &str = "\
Examples:
  nodeagent image verify
  nodeagent image verify registry.lan/web:1

Hashes the layers in the store of this host. One that is damaged is removed, and fetched again when
it is needed; the exit code is then 1.";

/// Hash the layers that lie on the disk again
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Verify {
    /// Name of the image, as in image list; all when absent
    image: Option<String>,
    /// How long this command waits
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = duration::parse)]
    timeout: Duration,
}

impl Verify {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        let request = VerifyRequest {
            reference: self.image.clone(),
        };
        let client = options.client().with_deadline(self.timeout);
        match client.verify_images(&request).await {
            Ok(result) => {
                let report = Report::document(options.output, &result, || render(&result));
                Report {
                    exit: match result.damaged.is_empty() {
                        true => Exit::Done,
                        false => Exit::Failed,
                    },
                    ..report
                }
            }
            Err(error) => Report::failure(options.output, &error),
        }
    }
}

fn render(result: &VerifyResult) -> String {
    let mut text = String::new();
    for blob in &result.damaged {
        let images = blob.images.join(", ");
        let _ = writeln!(
            text,
            "{} was damaged (it was {}) and is gone: {images}",
            blob.digest, blob.got
        );
    }
    let _ = write!(
        text,
        "{} layers are right ({})",
        result.right,
        size(result.bytes)
    );
    match result.absent {
        0 => {}
        absent => {
            let _ = write!(text, ", {absent} are not in the store");
        }
    }
    text.push('\n');
    text
}
