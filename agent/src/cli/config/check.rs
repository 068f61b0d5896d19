//! `nodeagent config check`

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::loaded;
use crate::cli::report::line;
use crate::cli::{Options, Report};

const EXAMPLES: &str = "\
Examples:
  nodeagent config check
  nodeagent config check --config ./nodeagent.toml && systemctl restart nodeagent";

/// Check the configuration; every mistake is named with its file and line
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Check {}

/// What `-o json` prints of a valid configuration.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Valid {
    valid: bool,
    /// In the order in which they were merged.
    files: Vec<PathBuf>,
}

impl Check {
    pub(super) fn execute(&self, options: &Options) -> Report {
        let files = match loaded(options) {
            Ok(loaded) => loaded.files,
            Err(report) => return report,
        };
        let valid = Valid { valid: true, files };
        Report::document(options.output, &valid, || {
            let mut text = String::new();
            let count = match valid.files.len() {
                0 => "no file, only defaults".to_owned(),
                1 => "1 file".to_owned(),
                many => format!("{many} files"),
            };
            line(
                &mut text,
                format_args!("the configuration is valid: {count}"),
            );
            for file in &valid.files {
                line(&mut text, format_args!("  {}", file.display()));
            }
            text
        })
    }
}
