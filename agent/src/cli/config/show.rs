//! `nodeagent config show`

use clap::Args;

use super::loaded;
use crate::cli::report::Exit;
use crate::cli::{Options, Report};
use crate::config::show;

const EXAMPLES: &str = "\
Examples:
  nodeagent config show
  nodeagent config show --config-dir ./config.d
  nodeagent config show -o json | jq .paths";

/// Print the configuration in effect, with the file and line of every key
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Show {}

impl Show {
    pub(super) fn execute(&self, options: &Options) -> Report {
        let text = match loaded(options) {
            Ok(loaded) => show(&loaded),
            Err(report) => return report,
        };
        match toml::from_str::<toml::Table>(&text) {
            Ok(document) => Report::document(options.output, &document, || text),
            Err(error) => Report::error(
                Exit::Failed,
                format!("the configuration shown is not TOML: {error}"),
            ),
        }
    }
}
