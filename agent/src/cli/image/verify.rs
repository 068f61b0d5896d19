//! `nodeagent image verify`

use std::fmt::Write;
use std::time::Duration;

use clap::Args;

use super::bars;
use crate::api::v1::{DamagedLayer, DamagedState, VerifyRequest, VerifyResult, WhyNotCompared};
use crate::cli::size::size;
use crate::cli::{Exit, Options, Report, duration};

const EXAMPLES: &str = "\
Examples:
  nodeagent image verify
  nodeagent image verify registry.lan/web:1

Hashes the layers in the store of this host, and compares what was unpacked of them, file by file.
A layer that is damaged is removed, and fetched again when it is needed. What is damaged of an
unpacked one is listed (what should be there / what is there), and it is unpacked anew; one that an
instance stands on stays as it is. The exit code is 1 when something was damaged.";

/// Look at what lies on the disk: layers, and what was unpacked of them
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Verify {
    /// Name of the image, as in image list; all when absent
    image: Option<String>,
    /// How long this command waits; the look ends with it
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = duration::parse)]
    timeout: Duration,
}

impl Verify {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        let request = VerifyRequest {
            reference: self.image.clone(),
        };
        let client = options.client().with_deadline(self.timeout);
        let verify = client.verify_images(&request);
        let answer = bars::shown_while(verify, &options.client(), &bars::verification).await;
        match answer {
            Ok(result) => {
                let report = Report::document(options.output, &result, || render(&result));
                Report {
                    exit: exit(&result),
                    ..report
                }
            }
            Err(error) => Report::failure(options.output, &error),
        }
    }
}

/// What was not compared because that failed is not known to be right.
fn exit(result: &VerifyResult) -> Exit {
    let unpacked = &result.unpacked;
    let mut reasons = unpacked.not_compared.iter();
    let is_right = result.damaged.is_empty()
        && unpacked.damaged.is_empty()
        && reasons.all(|not| not.why != WhyNotCompared::Failed);
    match is_right {
        true => Exit::Done,
        false => Exit::Failed,
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
    for layer in &result.unpacked.damaged {
        text.push_str(&damaged(layer));
    }
    let right = result.unpacked.right;
    let _ = writeln!(text, "{right} unpacked layers are right");
    for not in &result.unpacked.not_compared {
        let _ = write!(
            text,
            "{} unpacked layers were not compared: {}",
            not.layers,
            reason(not.why)
        );
        if let Some(error) = &not.error {
            let _ = write!(text, ": {error}");
        }
        text.push('\n');
    }
    text
}

fn damaged(layer: &DamagedLayer) -> String {
    let mut text = String::new();
    let images = layer.images.join(", ");
    let _ = writeln!(
        text,
        "{} is damaged where it is unpacked: {images}",
        layer.layer
    );
    for difference in &layer.differences {
        let _ = writeln!(text, "  {difference}");
    }
    if layer.more {
        text.push_str("  and more\n");
    }
    let users = match layer.used_by.is_empty() {
        true => "something in containerd".to_owned(),
        false => layer.used_by.join(", "),
    };
    let error = layer.error.as_deref().unwrap_or_default();
    let _ = match layer.state {
        DamagedState::Used => writeln!(text, "  it stays as long as {users} stands on it"),
        DamagedState::UnpackedAnew => writeln!(text, "  it was unpacked anew, and is right"),
        DamagedState::Gone => writeln!(text, "  it is gone; image pull unpacks it: {error}"),
        DamagedState::Kept => writeln!(text, "  it stays, and is to be verified again: {error}"),
    };
    text
}

const fn reason(why: WhyNotCompared) -> &'static str {
    match why {
        WhyNotCompared::BlobAbsent => "the layers are not in the store",
        WhyNotCompared::NotUnpacked => "containerd does not have them",
        WhyNotCompared::OutOfSight => "they are not overlayfs's, or not visible for the agent",
        WhyNotCompared::Failed => "this failed",
    }
}
