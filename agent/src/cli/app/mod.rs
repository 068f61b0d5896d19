//! `nodeagent app`: what this host knows of apps.

mod apply;
mod check;
mod delete;
mod list;
mod manifest;
mod schema;
mod show;

use clap::{Args, Subcommand};

use super::{Options, Report};

/// Apply, list, show, check and delete apps
#[derive(Debug, Args)]
pub(super) struct App {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Apply(apply::Apply),
    List(list::List),
    Show(show::Show),
    Check(check::Check),
    Schema(schema::Schema),
    Delete(delete::Delete),
}

impl App {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        match &self.verb {
            Verb::Apply(verb) => verb.execute(options).await,
            Verb::List(verb) => verb.execute(options).await,
            Verb::Show(verb) => verb.execute(options).await,
            Verb::Check(verb) => verb.execute(options),
            Verb::Schema(verb) => verb.execute(),
            Verb::Delete(verb) => verb.execute(options).await,
        }
    }
}
