//! `nodeagent app show`

use clap::Args;

use crate::api::v1::AppDocument;
use crate::cli::report::line;
use crate::cli::table::plain;
use crate::cli::{Options, Report};

const EXAMPLES: &str = "\
Examples:
  nodeagent app show web
  nodeagent app show web -o json | jq -r .manifest > web.yaml";

/// Show an app and its manifest as applied
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Show {
    /// Name of the app
    name: String,
}

impl Show {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        match options.client().app(&self.name).await {
            Ok(app) => Report::document(options.output, &app, || render(&app)),
            Err(error) => Report::failure(options.output, &error),
        }
    }
}

/// The facts are YAML comments, so that the whole can be applied again.
fn render(app: &AppDocument) -> String {
    let mut text = String::new();
    line(
        &mut text,
        format_args!("# app {}, revision {}", app.name, plain(&app.revision)),
    );
    let digest = app.image_digest.as_deref().unwrap_or("not resolved yet");
    line(
        &mut text,
        format_args!("# image {} ({})", plain(&app.image), plain(digest)),
    );
    line(
        &mut text,
        format_args!(
            "# applied {}, {} kept armed",
            app.applied_at, app.warm.armed
        ),
    );
    for manifest_line in app.manifest.lines() {
        line(&mut text, format_args!("{}", plain(manifest_line)));
    }
    text
}
