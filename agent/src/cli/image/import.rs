//! `nodeagent image import`

use std::time::Duration;

use clap::Args;

use super::bars;
use super::list::table;
use super::path;
use crate::api::v1::{ImageList, ImportRequest};
use crate::cli::{Options, Report, duration};

const EXAMPLES: &str = "\
Examples:
  nodeagent image import web.tar
  nodeagent image import --pin --name registry.lan/web:1 ./web-layout
  nodeagent image import /srv/images.tar.zst -o json | jq '.images[].digest'

Takes an OCI image layout, as a directory or a tar (plain, gzip or zstd), and what docker save and
skopeo write (docker-archive). All images in it become ready, as after a pull, and no registry is
asked. The agent reads the file: it has to be on the agent's host.";

/// Make the images of an archive ready, without a registry
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Import {
    /// The archive: a file, or the directory of a layout
    #[arg(value_name = "FILE|DIR", value_parser = path::parse)]
    path: String,
    /// Name of the image, for an archive with one image without a full name, or for another one
    #[arg(long, value_name = "IMAGE")]
    name: Option<String>,
    /// Pin the images, too: they are never evicted
    #[arg(long)]
    pin: bool,
    /// How long this command waits; the import goes on when it ends
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = duration::parse)]
    timeout: Duration,
}

impl Import {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        let request = ImportRequest {
            path: self.path.clone(),
            reference: self.name.clone(),
            pin: self.pin,
        };
        let client = options.client().with_deadline(self.timeout);
        let import = client.import_images(&request);
        let name = self.name.as_deref().unwrap_or_default();
        let bars = |list: &ImageList| bars::of_pull(list, name);
        match bars::shown_while(import, &options.client(), &bars).await {
            Ok(result) => Report::document(options.output, &result, || table(&result.images)),
            Err(error) => Report::failure(options.output, &error),
        }
    }
}
