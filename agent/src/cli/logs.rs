//! `nodeagent logs`

use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::Args;

use super::shown::Shown;
use super::{Options, Report, duration};
use crate::api::LogRequest;

const EXAMPLES: &str = "\
Examples:
  nodeagent logs web-0
  nodeagent logs web-0 --tail 100
  nodeagent logs -f web-0 sidecar
  nodeagent logs web-0 --since 10m | grep error

What a process wrote has no times of its own: --since leaves out a log that was written to last
before that. The log goes with its instance. On a terminal control characters are shown, not obeyed.";

/// Show what a process in an instance has written
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Logs {
    /// Name of the instance, as in status: web-0
    instance: String,
    /// Name of the process: app, or an in-container agent's name
    #[arg(default_value = "app")]
    process: String,
    /// Go on with what is written later, until the instance is gone
    #[arg(short, long)]
    follow: bool,
    /// Only the last N lines
    #[arg(long, value_name = "N")]
    tail: Option<u64>,
    /// Nothing that was written to last longer ago than this
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    since: Option<Duration>,
}

impl Logs {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        let request = LogRequest {
            process: self.process.clone(),
            follow: self.follow,
            tail: self.tail,
            since: self.since,
        };
        let mut log = match options.client().log(&self.instance, &request).await {
            Ok(log) => log,
            Err(error) => return Report::failure(options.output, &error),
        };
        let mut out = std::io::stdout();
        let mut shown = Shown::new(out.is_terminal());
        loop {
            let piece = match log.next().await {
                Ok(Some(piece)) => piece,
                Ok(None) => return Report::done(),
                Err(error) => return Report::failure(options.output, &error),
            };
            let written = out
                .write_all(&shown.spell(&piece))
                .and_then(|()| out.flush());
            // A reader that closed its pipe (`| head`) has what it wanted.
            if written.is_err() {
                return Report::done();
            }
        }
    }
}
