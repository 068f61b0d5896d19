//! The command line: one module for each verb, which parses, calls the agent and prints.
//!
//! Promises: tables for people, the API's documents as they are for programs (`-o json`), errors on
//! stderr with what is true now, and the exit codes of [`Exit`], which never change. Deliberately
//! without validation of its own: the agent validates, and `app check` uses the agent's parser.

mod activate;
mod app;
mod deactivate;
mod duration;
mod progress;
mod report;
mod run;
mod scale;
mod status;
mod submit;
mod table;
mod task_view;
mod tasks;
mod trace;
mod waterfall;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::api::Client;

pub use report::{Exit, Report};
pub use run::Daemon;

/// Where the agent listens when nobody says otherwise.
const DEFAULT_SOCKET: &str = "/run/nodeagent/api.sock";

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  usage: the command line is wrong
  3  refused: the agent says why, nothing was changed
  4  not found
  5  conflict, or superseded by a later request
  6  the wait ended and the task is still running
  7  no agent answers on the socket
  8  partial: some instances are where they should be, others are not";

/// Warm containers on this host, let go and registered in milliseconds.
#[derive(Debug, Parser)]
#[command(name = "nodeagent", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    verb: Verb,
}

/// Options of every verb.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Socket of the agent
    #[arg(long, global = true, value_name = "PATH", env = "NODEAGENT_SOCKET", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    /// What is printed: a table for people, or the API's JSON document
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT", default_value_t = Output::Table)]
    output: Output,
}

/// What is printed on stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Aligned columns and words.
    Table,
    /// The document as the API gave it; of a refusal, the problem document.
    Json,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(run::Run),
    Activate(activate::Activate),
    Deactivate(deactivate::Deactivate),
    Scale(scale::Scale),
    Status(status::Status),
    Trace(trace::Trace),
    Tasks(tasks::Tasks),
    App(app::App),
}

impl Options {
    fn client(&self) -> Client {
        Client::new(&self.socket)
    }
}

/// The command line's grammar, for help pages and completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Parses the process's arguments, does what they say and prints the outcome. `daemon` is what
/// `nodeagent run` runs.
pub fn main(daemon: Daemon) -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to stdout and is no error; a closed pipe must not make it one.
            let code = u8::try_from(error.exit_code()).unwrap_or(Exit::Usage.code());
            error.print().ok();
            return ExitCode::from(code);
        }
    };
    let report = match cli.verb {
        Verb::Run(run) => run.run(daemon),
        verb => match tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
        {
            Ok(runtime) => runtime.block_on(execute(&cli.options, verb)),
            Err(error) => Report::error(Exit::Failed, format!("no runtime for the call: {error}")),
        },
    };
    print(&report);
    ExitCode::from(report.exit.code())
}

async fn execute(options: &Options, verb: Verb) -> Report {
    match verb {
        Verb::Run(_) => Report::error(Exit::Usage, "run is no call to an agent"),
        Verb::Activate(verb) => verb.execute(options).await,
        Verb::Deactivate(verb) => verb.execute(options).await,
        Verb::Scale(verb) => verb.execute(options).await,
        Verb::Status(verb) => verb.execute(options).await,
        Verb::Trace(verb) => verb.execute(options).await,
        Verb::Tasks(verb) => verb.execute(options).await,
        Verb::App(verb) => verb.execute(options).await,
    }
}

/// A reader that closed its pipe (`| head`) has what it wanted.
fn print(report: &Report) {
    std::io::stdout().write_all(report.out.as_bytes()).ok();
    std::io::stderr().write_all(report.err.as_bytes()).ok();
}
