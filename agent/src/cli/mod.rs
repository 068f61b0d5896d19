//! The command line: one module for each verb, which parses, calls the agent and prints.
//!
//! Promises: tables for people, the API's documents as they are for programs (`-o json`), errors on
//! stderr with what is true now, and the exit codes of [`Exit`], which never change. Deliberately
//! without validation of its own: the agent validates, and `app check` uses the agent's parser.

mod activate;
mod app;
mod check;
mod completions;
mod config;
mod deactivate;
mod duration;
mod exec;
mod image;
mod journal;
mod logs;
mod man;
mod processes;
mod progress;
mod report;
mod restart;
mod roll;
mod run;
mod scale;
mod shown;
mod size;
mod status;
mod submit;
mod table;
mod task_view;
mod tasks;
mod trace;
mod watch;
mod waterfall;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::api::{Client, Credentials, Remote};
use crate::config::Source;

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
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    verb: Verb,
}

/// Options of every verb.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every verb")]
struct Options {
    /// Socket of the agent
    #[arg(long, global = true, value_name = "PATH", env = "NODEAGENT_SOCKET", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    /// Agent of another host, instead of the socket: https://HOST:PORT
    #[arg(long, global = true, value_name = "URL", env = "NODEAGENT_SERVER")]
    server: Option<Remote>,
    /// With --server: PEM file with this caller's certificate
    #[arg(long, global = true, value_name = "FILE", env = "NODEAGENT_CERT")]
    cert: Option<PathBuf>,
    /// With --server: PEM file with the certificate's key
    #[arg(long, global = true, value_name = "FILE", env = "NODEAGENT_KEY")]
    key: Option<PathBuf>,
    /// With --server: PEM file with the authorities of agents' certificates
    #[arg(long, global = true, value_name = "FILE", env = "NODEAGENT_CA")]
    ca: Option<PathBuf>,
    /// What is printed: table, for people, or json, the API's document as it is
    #[arg(short, long, global = true, value_enum, hide_possible_values = true, value_name = "FORMAT", default_value_t = Output::Table)]
    output: Output,
    /// This configuration file, and no drop-ins
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        conflicts_with = "config_dir"
    )]
    config: Option<PathBuf>,
    /// Drop-ins from this directory instead of the standard ones; may be given several times
    #[arg(long, global = true, value_name = "DIR")]
    config_dir: Vec<PathBuf>,
}

/// What is printed on stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Aligned columns and words.
    Table,
    /// The document as the API gave it; of a refusal, the problem document.
    Json,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(run::Run),
    #[command(flatten)]
    Call(Call),
    Config(config::Config),
    Check(check::Check),
    Completions(completions::Completions),
    Man(man::Man),
}

/// The verbs that ask an agent.
#[derive(Debug, Subcommand)]
enum Call {
    Activate(activate::Activate),
    Deactivate(deactivate::Deactivate),
    Scale(scale::Scale),
    Roll(roll::Roll),
    Restart(restart::Restart),
    Status(status::Status),
    Trace(trace::Trace),
    Tasks(tasks::Tasks),
    Logs(logs::Logs),
    Exec(exec::Exec),
    Processes(processes::Processes),
    App(app::App),
    Image(image::Image),
    Journal(journal::Journal),
}

impl Options {
    fn client(&self) -> Client {
        let Some(server) = &self.server else {
            return Client::new(&self.socket);
        };
        let credentials = Credentials {
            certificate: self.cert.clone(),
            key: self.key.clone(),
            authorities: self.ca.clone(),
        };
        Client::remote(server.clone(), credentials)
    }

    fn source(&self) -> Source {
        match &self.config {
            Some(file) => Source::File(file.clone()),
            None if self.config_dir.is_empty() => Source::Standard,
            None => Source::Directories(self.config_dir.clone()),
        }
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
        Verb::Run(run) => run.run(&cli.options, daemon),
        Verb::Config(config) => config.execute(&cli.options),
        Verb::Check(check) => waited_for(check.execute(&cli.options)),
        Verb::Completions(completions) => completions.execute(),
        Verb::Man(man) => man.execute(&cli.options),
        Verb::Call(call) => waited_for(execute(&cli.options, call)),
    };
    print(&report);
    ExitCode::from(report.exit.code())
}

/// Runs a verb that waits for something.
fn waited_for(verb: impl Future<Output = Report>) -> Report {
    match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime.block_on(verb),
        Err(error) => Report::error(Exit::Failed, format!("no runtime for the call: {error}")),
    }
}

async fn execute(options: &Options, call: Call) -> Report {
    match call {
        Call::Activate(verb) => verb.execute(options).await,
        Call::Deactivate(verb) => verb.execute(options).await,
        Call::Scale(verb) => verb.execute(options).await,
        Call::Roll(verb) => verb.execute(options).await,
        Call::Restart(verb) => verb.execute(options).await,
        Call::Status(verb) => verb.execute(options).await,
        Call::Trace(verb) => verb.execute(options).await,
        Call::Tasks(verb) => verb.execute(options).await,
        Call::Logs(verb) => verb.execute(options).await,
        Call::Exec(verb) => verb.execute(options).await,
        Call::Processes(verb) => verb.execute(options).await,
        Call::App(verb) => verb.execute(options).await,
        Call::Image(verb) => verb.execute(options).await,
        Call::Journal(verb) => verb.execute(options).await,
    }
}

/// A reader that closed its pipe (`| head`) has what it wanted.
fn print(report: &Report) {
    std::io::stdout().write_all(report.out.as_bytes()).ok();
    std::io::stderr().write_all(report.err.as_bytes()).ok();
}
