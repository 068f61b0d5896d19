//! `nodeagent config schema`

use clap::Args;

use crate::cli::Report;

const EXAMPLES: &str = "\
Examples:
  nodeagent config schema > nodeagent-config.schema.json
  nodeagent config schema | jq '.[\"$defs\"].Api.properties | keys'

It knows which keys there are and what kind of value each takes; config check knows the rest.";

/// Print the JSON Schema of a configuration file
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Schema {}

impl Schema {
    pub(super) fn execute(&self) -> Report {
        Report::json(&crate::config::schema())
    }
}
