//! `nodeagent image pin` and `unpin`

use clap::Args;

use super::list::table;
use crate::api::ClientError;
use crate::api::v1::{ImageDocument, ImageRequest};
use crate::cli::{Options, Report};

const EXAMPLES: &str = "\
Examples:
  nodeagent image pin registry.lan/web:1
  nodeagent image unpin registry.lan/web:1";

/// Keep an image that was made ready, whatever happens
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Pin {
    /// Name of the image, as in image list
    image: String,
}

/// Let an image be evicted again
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Unpin {
    /// Name of the image, as in image list
    image: String,
}

impl Pin {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        let request = of(&self.image);
        report(options, options.client().pin_image(&request).await)
    }
}

impl Unpin {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        let request = of(&self.image);
        report(options, options.client().unpin_image(&request).await)
    }
}

fn of(image: &str) -> ImageRequest {
    ImageRequest {
        reference: image.to_owned(),
        pin: false,
    }
}

fn report(options: &Options, answer: Result<ImageDocument, ClientError>) -> Report {
    match answer {
        Ok(image) => Report::document(options.output, &image, || {
            table(std::slice::from_ref(&image))
        }),
        Err(error) => Report::failure(options.output, &error),
    }
}
