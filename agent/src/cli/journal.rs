//! `nodeagent journal`: the state of the agent's journal, and what to do when it was lost.

use clap::{Args, Subcommand};

use super::report::line;
use super::table::plain;
use super::{Options, Report};
use crate::api::v1::{JournalDocument, JournalState};

const EXAMPLES: &str = "\
Examples:
  nodeagent journal show
  nodeagent journal accept

After a loss instances go on, and nothing is removed. Look whether status shows what it should, then
accept: failed instances and what belongs to none are removed, and ids of tasks that are not known
are new ones again.";

/// Show the journal, or accept the loss of one
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Journal {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show its epoch, and whether the one before was lost
    Show,
    /// Accept the loss: from now on what belongs to no instance is removed
    Accept,
}

impl Journal {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        let client = options.client();
        let answer = match self.verb {
            Verb::Show => client.journal().await,
            Verb::Accept => client.accept_journal().await,
        };
        match answer {
            Ok(journal) => Report::document(options.output, &journal, || render(&journal)),
            Err(error) => Report::failure(options.output, &error),
        }
    }
}

fn render(journal: &JournalDocument) -> String {
    let mut text = String::new();
    let state = match journal.state {
        JournalState::Sound => "sound",
        JournalState::Lost => "the one before was lost, and this is not accepted yet",
    };
    line(
        &mut text,
        format_args!("journal epoch {}: {state}", journal.epoch),
    );
    if let (Some(reason), Some(since)) = (&journal.reason, &journal.since) {
        line(&mut text, format_args!("{since}: {}", plain(reason)));
    }
    if let Some(path) = &journal.set_aside {
        line(
            &mut text,
            format_args!("its file is kept as {}", plain(path)),
        );
    }
    text
}
