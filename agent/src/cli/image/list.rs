//! `nodeagent image list`

use std::fmt::Write;

use clap::Args;

use crate::api::v1::{ImageDocument, ImageList};
use crate::cli::size::size;
use crate::cli::status::short;
use crate::cli::table::{Align, Table};
use crate::cli::{Options, Report};

const EXAMPLES: &str = "\
Examples:
  nodeagent image list
  nodeagent image list -o json | jq -r '.images[] | select(.pinned) | .reference'

SIZE is that of the compressed layers. An image that is incomplete was removed from containerd, in
whole or in part, by somebody else: it is pulled again when it is needed.";

/// List the images that were made ready on this host
#[derive(Debug, Args)]
#[command(visible_alias = "ls", after_long_help = EXAMPLES)]
pub(super) struct List {}

impl List {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        match options.client().images().await {
            Ok(list) => Report::document(options.output, &list, || render(&list)),
            Err(error) => Report::failure(options.output, &error),
        }
    }
}

fn render(list: &ImageList) -> String {
    if list.images.is_empty() && list.pulls.is_empty() {
        return "no images: nodeagent image pull IMAGE\n".to_owned();
    }
    let mut text = table(&list.images);
    for pull in &list.pulls {
        let _ = writeln!(text, "being pulled: {}", pull.reference);
    }
    text
}

/// A row for each image.
pub(super) fn table(images: &[ImageDocument]) -> String {
    let mut table = Table::new([
        ("IMAGE", Align::Left),
        ("DIGEST", Align::Left),
        ("STATE", Align::Left),
        ("LAYERS", Align::Right),
        ("SIZE", Align::Right),
        ("KEPT", Align::Left),
        ("READY", Align::Left),
    ]);
    for image in images {
        table.row([
            image.reference.clone(),
            short(&image.digest),
            image.state.as_str().to_owned(),
            image.layers.to_string(),
            size(image.bytes),
            match (image.pinned, image.in_use, image.stable) {
                (true, _, _) => "pinned",
                (false, true, _) => "in use",
                (false, false, true) => "stable",
                (false, false, false) => "-",
            }
            .to_owned(),
            image.ready_at.to_string(),
        ]);
    }
    table.render()
}
