//! `nodeagent app schema`

use clap::Args;

use crate::cli::Report;

const EXAMPLES: &str = "\
Examples:
  nodeagent app schema > nodeagent-app.schema.json

In an editor with a YAML language server, as a manifest's first line:
  # yaml-language-server: $schema=/usr/share/nodeagent/schema/app.json

It knows which fields there are and what kind of value each takes; app check knows the rest.";

/// Print the JSON Schema of a manifest
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Schema {}

impl Schema {
    pub(super) fn execute(&self) -> Report {
        Report::json(&crate::app::schema())
    }
}
