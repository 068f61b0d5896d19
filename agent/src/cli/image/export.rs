//! `nodeagent image export`

use std::time::Duration;

use clap::Args;

use super::path;
use crate::api::v1::{ExportRequest, ExportResult};
use crate::cli::size::size;
use crate::cli::{Options, Report, duration};

const EXAMPLES: &str = "\
Examples:
  nodeagent image export registry.lan/web:1 --file web.tar
  nodeagent image export registry.lan/web:1 registry.lan/api:3 -f /srv/images.tar --force

Writes a tar of an OCI image layout, which nodeagent image import, docker load, ctr images import,
podman load and skopeo read. The agent writes the file, on its host, readable by its owner alone;
it is there whole or not at all. Layers that were dropped after the unpack cannot be exported.";

/// Write images to a file
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Export {
    /// Names of the images, as in image list
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// The file
    #[arg(short, long, value_name = "FILE", value_parser = path::parse)]
    file: String,
    /// Replace a file of that name
    #[arg(long)]
    force: bool,
    /// How long this command waits; the export goes on when it ends
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = duration::parse)]
    timeout: Duration,
}

impl Export {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        let request = ExportRequest {
            references: self.images.clone(),
            path: self.file.clone(),
            overwrite: self.force,
        };
        let client = options.client().with_deadline(self.timeout);
        match client.export_images(&request).await {
            Ok(result) => Report::document(options.output, &result, || render(&result)),
            Err(error) => Report::failure(options.output, &error),
        }
    }
}

fn render(result: &ExportResult) -> String {
    let names = result.references.join(", ");
    format!(
        "{names} written to {} ({})\n",
        result.path,
        size(result.bytes)
    )
}
