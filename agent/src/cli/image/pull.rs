//! `nodeagent image pull`

use std::fmt::Write;
use std::time::Duration;

use clap::Args;

use super::bars;
use crate::api::v1::{ImageDocument, ImageList, ImageRequest};
use crate::cli::size::size;
use crate::cli::status::short;
use crate::cli::table::{Align, Table};
use crate::cli::{Options, Report, duration};

const EXAMPLES: &str = "\
Examples:
  nodeagent image pull registry.lan/web:1
  nodeagent image pull --pin registry.lan/web@sha256:4f53cda18c2baa0c0354bb5f9a3ecbe5...
  nodeagent image pull registry.lan/web:1 -o json | jq .receipt

An image that is ready is not pulled again, whatever its tag names in the registry now: pull by
digest for exactly that. The receipt says where each layer came from: the registry, a mirror or
another agent; from the store of this host; or from nowhere because it was unpacked already.";

/// Make an image ready: pulled, verified, unpacked and kept
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Pull {
    /// Name of the image: registry/repository:tag, or @sha256:... for exactly one
    image: String,
    /// Pin it, too: it is never evicted
    #[arg(long)]
    pin: bool,
    /// How long this command waits; the pull goes on when it ends
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = duration::parse)]
    timeout: Duration,
}

impl Pull {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        let request = ImageRequest {
            reference: self.image.clone(),
            pin: self.pin,
        };
        let client = options.client().with_deadline(self.timeout);
        let pull = client.pull_image(&request);
        let bars = |list: &ImageList| bars::of_pull(list, &self.image);
        let answer = bars::shown_while(pull, &options.client(), &bars).await;
        match answer {
            Ok(image) => Report::document(options.output, &image, || render(&image)),
            Err(error) => Report::failure(options.output, &error),
        }
    }
}

fn render(image: &ImageDocument) -> String {
    let mut text = String::new();
    if let Some(receipt) = &image.receipt {
        let mut table = Table::new([
            ("LAYER", Align::Left),
            ("SIZE", Align::Right),
            ("FROM", Align::Left),
            ("FETCHED", Align::Right),
            ("FETCH", Align::Right),
            ("UNPACK", Align::Right),
        ]);
        for layer in &receipt.layers {
            table.row([
                short(&layer.digest),
                size(layer.bytes),
                match &layer.sender {
                    Some(sender) => format!("{} {sender}", layer.from),
                    None => layer.from.clone(),
                },
                size(layer.fetched_bytes),
                format!("{:.2} s", layer.fetch_seconds),
                format!("{:.2} s", layer.unpack_seconds),
            ]);
        }
        text.push_str(&table.render());
    }
    let _ = write!(
        text,
        "{} {} is {}",
        image.reference,
        short(&image.digest),
        image.state.as_str()
    );
    if image.pinned {
        text.push_str(" and pinned");
    }
    if let Some(receipt) = &image.receipt {
        let _ = write!(
            text,
            ": {} fetched in {:.2} s",
            size(receipt.fetched_bytes),
            receipt.seconds
        );
    }
    text.push('\n');
    text
}
