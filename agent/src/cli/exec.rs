//! `nodeagent exec`

use std::io::{self, IsTerminal, Read, Write};

use clap::Args;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::report::Exit;
use super::shown::Shown;
use super::{Options, Report};
use crate::api::v1::{ExecRequest, TerminalSize};
use crate::api::{ExecInput, ExecOutput, ExecReader, ExecWriter, LARGEST_PIECE};

const EXAMPLES: &str = "\
Examples:
  nodeagent exec web-0 -- ps
  nodeagent exec -it web-0 -- sh
  tar -c etc | nodeagent exec -i web-0 -- tar -x -C /tmp
  nodeagent exec web-0 -- cat /etc/app.conf >app.conf

The command runs beside the app: as its user, in its directory, environment and limits. It ends with
this call, however that ends. The exit code is the command's, 128 + signal when a signal ended it;
where it could not be started, that of a refusal (3, 4, 7). Needs the role admin.";

/// Execute a command in an instance
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Exec {
    /// Give it this standard input; without, it has none
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Give it a terminal, which is this one
    #[arg(short = 't', long)]
    tty: bool,
    /// Name of the instance, as in status: web-0
    instance: String,
    /// Program and arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl Exec {
    pub(super) async fn execute(&self, options: &Options) -> Report {
        if self.tty && !io::stdin().is_terminal() {
            let sentence = "--tty needs a terminal on standard input; leave it out in scripts";
            return Report::error(Exit::Usage, sentence);
        }
        let request = ExecRequest {
            command: self.command.clone(),
            stdin: self.stdin,
            terminal: self.tty.then(size),
        };
        let (reader, writer) = match options.client().exec(&self.instance, &request).await {
            Ok(streams) => streams,
            Err(error) => return Report::failure(options.output, &error),
        };
        let raw = match self.tty.then(Raw::enter).transpose() {
            Ok(raw) => raw,
            Err(error) => {
                let sentence = format!("this terminal cannot be handed over: {error}");
                return Report::error(Exit::Failed, sentence);
            }
        };
        let ended = tokio::select! {
            ended = show(reader, self.tty) => ended,
            never = self.feed(writer) => match never {},
            () = told_to_end() => Err("ended by a signal; the command was ended, too".to_owned()),
        };
        drop(raw);
        match ended {
            Ok(code) => Report::done().exiting(Exit::Command(code)),
            Err(why) => Report::error(Exit::Failed, why),
        }
    }

    /// Carries this process's input, and the sizes of its terminal, to the command.
    async fn feed(&self, mut writer: ExecWriter) -> std::convert::Infallible {
        let mut inputs = match self.stdin {
            true => inputs(),
            false => mpsc::channel(1).1,
        };
        let mut resized = signal(SignalKind::window_change()).ok();
        loop {
            let input = tokio::select! {
                Some(input) = inputs.recv() => input,
                () = next(&mut resized), if self.tty => ExecInput::Resize(size()),
                else => std::future::pending().await,
            };
            if writer.tell(input).await.is_err() {
                // The reader finds out, too, and says so.
                std::future::pending::<()>().await;
            }
        }
    }
}

async fn next(signals: &mut Option<tokio::signal::unix::Signal>) {
    let heard = match signals {
        Some(signals) => signals.recv().await,
        None => None,
    };
    if heard.is_none() {
        std::future::pending::<()>().await;
    }
}

async fn told_to_end() {
    let (mut terminate, mut interrupt, mut hangup) = (
        signal(SignalKind::terminate()).ok(),
        signal(SignalKind::interrupt()).ok(),
        signal(SignalKind::hangup()).ok(),
    );
    tokio::select! {
        () = next(&mut terminate) => {}
        () = next(&mut interrupt) => {}
        () = next(&mut hangup) => {}
    }
}

/// Standard input, read in a thread of its own: a read that waits for a key ends with the process.
fn inputs() -> mpsc::Receiver<ExecInput> {
    let (to, inputs) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut buffer = vec![0; LARGEST_PIECE];
        loop {
            let input = match stdin.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(0) | Err(_) => ExecInput::End,
                Ok(length) => {
                    ExecInput::Data(buffer.get(..length).unwrap_or_default().to_vec().into())
                }
            };
            let last = input == ExecInput::End;
            if to.blocking_send(input).is_err() || last {
                return;
            }
        }
    });
    inputs
}

/// Shows what the command writes; its exit code, or why there is none.
async fn show(mut reader: ExecReader, obeyed: bool) -> Result<u8, String> {
    let (mut out, mut err) = (io::stdout(), io::stderr());
    let mut shown = (
        Shown::new(!obeyed && out.is_terminal()),
        Shown::new(!obeyed && err.is_terminal()),
    );
    loop {
        let written = match reader.next().await {
            Ok(Some(ExecOutput::Stdout(bytes))) => out
                .write_all(&shown.0.spell(&bytes))
                .and_then(|()| out.flush()),
            Ok(Some(ExecOutput::Stderr(bytes))) => err.write_all(&shown.1.spell(&bytes)),
            Ok(Some(ExecOutput::Exit(code))) => return Ok(u8::try_from(code).unwrap_or(u8::MAX)),
            Ok(Some(ExecOutput::Failed(why))) => {
                return Err(format!("how the command ended is not known: {why}"));
            }
            Ok(None) => {
                return Err("the agent went away; it ends the command when it is back".to_owned());
            }
            Err(error) => return Err(format!("the agent went away: {error}")),
        };
        if let Err(error) = written {
            // As a program in a pipe ends whose reader has what it wanted (`| head`).
            return match error.kind() {
                io::ErrorKind::BrokenPipe => Ok(0),
                _ => Err(format!("the command's output cannot be written: {error}")),
            };
        }
    }
}

/// The size of this terminal; the usual one where it has none.
fn size() -> TerminalSize {
    let usual = TerminalSize {
        columns: 80,
        rows: 24,
    };
    match tcgetwinsize(io::stdin()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => TerminalSize {
            columns: size.ws_col,
            rows: size.ws_row,
        },
        _ => usual,
    }
}

/// This terminal, raw: every key is the command's. As before when it is dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Flush, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that is gone.
        tcsetattr(io::stdin(), OptionalActions::Now, &self.0).ok();
    }
}
