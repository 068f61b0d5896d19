//! `nodeagent config`: what the agent on this host would run with.

mod check;
mod schema;
mod show;

use clap::{Args, Subcommand};

use super::report::{Exit, line, with_causes};
use super::{Options, Report};
use crate::config::{LoadError, Loaded, load};

/// Show and check the agent's configuration, without an agent
#[derive(Debug, Args)]
pub(super) struct Config {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Show(show::Show),
    Check(check::Check),
    Schema(schema::Schema),
}

impl Config {
    pub(super) fn execute(&self, options: &Options) -> Report {
        match &self.verb {
            Verb::Show(verb) => verb.execute(options),
            Verb::Check(verb) => verb.execute(options),
            Verb::Schema(verb) => verb.execute(),
        }
    }
}

/// The configuration that `options` name, or a report of every finding. Exit 3 says that a start
/// with the same files fails again, 1 that a file could not be read.
pub(super) fn loaded(options: &Options) -> Result<Loaded, Report> {
    load(&options.source()).map_err(|error| match &error {
        LoadError::Refused { findings } => {
            let mut report = Report::error(Exit::Refused, "the configuration was refused");
            for finding in findings {
                line(&mut report.err, format_args!("  {finding}"));
            }
            report
        }
        LoadError::ListDirectory { .. } | LoadError::ReadFile { .. } => {
            Report::error(Exit::Failed, with_causes(&error))
        }
    })
}
