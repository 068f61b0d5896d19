//! `nodeagent logs`

use std::io::{IsTerminal, Write};

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use container_init::log::Stream;

use super::shown::Shown;
use super::{Options, Report, duration};
use crate::api::LogRequest;
use crate::logs::Since;

const EXAMPLES: &str = "\
Examples:
  nodeagent logs web-0
  nodeagent logs web-0 --tail 100
  nodeagent logs -f web-0 sidecar
  nodeagent logs web-0 --since 10m | grep error
  nodeagent logs web-0 --since 2026-11-22T13:30:00Z --timestamps
  nodeagent logs web-0 --stream stderr --tail 20

Lines come from all files that rotation has left ([logs] in the configuration). A line has the
time of its end. Text without times, which an older nodeagent kept, has no stream, and --since shows
it whole or, when it was written to last before that, not at all. The log goes with its instance. On
a terminal control characters are shown, not obeyed.";

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
    /// Only lines of so long ago (10m), or of this RFC 3339 time, and later
    #[arg(long, value_name = "DURATION|TIME", value_parser = since)]
    since: Option<Since>,
    /// Only what was written to standard output, or standard error
    #[arg(long, value_parser = streams())]
    stream: Option<Stream>,
    /// Begin each line with its time
    #[arg(long)]
    timestamps: bool,
}

fn streams() -> impl TypedValueParser<Value = Stream> {
    PossibleValuesParser::new(Stream::ALL.map(Stream::as_str))
        .try_map(|name| Stream::from_name(&name).ok_or("stdout or stderr"))
}

fn since(text: &str) -> Result<Since, String> {
    let ago = duration::parse(text).map(Since::Ago);
    ago.or_else(|rule| {
        let also = || format!("{rule}, or an RFC 3339 time like 2026-11-22T13:31:55Z");
        Since::from_rfc3339(text).ok_or_else(also)
    })
}

impl Logs {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        let request = LogRequest {
            process: self.process.clone(),
            follow: self.follow,
            tail: self.tail,
            since: self.since,
            stream: self.stream,
            timestamps: self.timestamps,
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
