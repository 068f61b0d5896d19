//! What a verb leaves behind: text for stdout, text for stderr, an exit code.

use std::fmt::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::Output;
use super::table::plain;
use crate::api::v1::Problem;
use crate::api::{Address, ClientError};

/// How the process ends. Documented and stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// What was asked is done.
    Done,
    /// It failed.
    Failed,
    /// The command line is wrong.
    Usage,
    /// The agent refused, nothing was changed.
    Refused,
    /// There is no such app or task.
    NotFound,
    /// Another request is in the way, or superseded this one.
    Conflict,
    /// The caller's wait ended; the task is still running.
    StillRunning,
    /// No agent answers on the socket.
    Unreachable,
    /// Some instances are where they should be, others are not.
    Partial,
    /// A command in an instance ended with this code.
    Command(u8),
}

impl Exit {
    /// The process's exit code.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Refused => 3,
            Self::NotFound => 4,
            Self::Conflict => 5,
            Self::StillRunning => 6,
            Self::Unreachable => 7,
            Self::Partial => 8,
            Self::Command(code) => code,
        }
    }

    /// The exit that a problem's row in the table of codes says.
    fn of(problem: &Problem) -> Self {
        match problem.code.row().exit {
            3 => Self::Refused,
            4 => Self::NotFound,
            5 => Self::Conflict,
            _ => Self::Failed,
        }
    }
}

/// What a verb leaves behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// For stdout.
    pub out: String,
    /// For stderr.
    pub err: String,
    /// How the process ends.
    pub exit: Exit,
}

impl Report {
    /// Success: the table, or the document.
    pub(super) fn document(
        output: Output,
        document: &impl Serialize,
        table: impl FnOnce() -> String,
    ) -> Self {
        Self {
            out: match output {
                Output::Table => table(),
                Output::Json => json(document),
            },
            err: String::new(),
            exit: Exit::Done,
        }
    }

    /// Success: a text that is the same for people and programs.
    pub(super) fn text(out: String) -> Self {
        Self {
            out,
            err: String::new(),
            exit: Exit::Done,
        }
    }

    /// Success: a document that has no other form.
    pub(super) fn json(document: &impl Serialize) -> Self {
        Self::text(json(document))
    }

    /// Success without a word.
    pub(super) fn done() -> Self {
        Self::text(String::new())
    }

    /// An error that has no document.
    pub(super) fn error(exit: Exit, sentence: impl AsRef<str>) -> Self {
        Self {
            out: String::new(),
            err: format!("nodeagent: {}\n", sentence.as_ref()),
            exit,
        }
    }

    /// What a failed call leaves behind.
    pub(super) fn failure(output: Output, error: &ClientError) -> Self {
        match error {
            ClientError::Problem(problem) => Self::problem(output, problem),
            ClientError::Unreachable {
                agent: Address::Socket(socket),
                source,
            } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                Self::error(Exit::Refused, not_admitted(socket))
            }
            ClientError::Unreachable {
                agent: Address::Socket(socket),
                source,
            } => Self::error(Exit::Unreachable, unreachable(socket, source)),
            ClientError::Unreachable { .. } => {
                let sentence = format!(
                    "{}\n  the agent there listens where [api.tls] of its configuration says so",
                    with_causes(error)
                );
                Self::error(Exit::Unreachable, sentence)
            }
            ClientError::Handshake { .. } => Self::error(Exit::Refused, with_causes(error)),
            ClientError::Credentials { .. } => Self::error(Exit::Usage, error.to_string()),
            ClientError::BrokenOff { .. } | ClientError::Deadline { .. } => Self::error(
                Exit::Unreachable,
                format!(
                    "{}; whether the request took effect is open",
                    with_causes(error)
                ),
            ),
            ClientError::Foreign { .. } => Self::error(Exit::Failed, with_causes(error)),
        }
    }

    /// A refusal: text on stderr, and the document on stdout when programs read it.
    pub(super) fn problem(output: Output, problem: &Problem) -> Self {
        let mut err = format!("nodeagent: {}\n", problem.code.row().title);
        line(&mut err, format_args!("  {}", plain(&problem.detail)));
        for finding in &problem.findings {
            line(&mut err, format_args!("  {}", plain(&finding.to_string())));
        }
        if let Some(current) = &problem.current {
            line(&mut err, format_args!("  now: {}", facts(current)));
        }
        Self {
            out: match output {
                Output::Table => String::new(),
                Output::Json => json(problem),
            },
            err,
            exit: Exit::of(problem),
        }
    }

    /// The same report with `sentence` as a line on stderr.
    pub(super) fn saying(mut self, sentence: impl AsRef<str>) -> Self {
        line(&mut self.err, format_args!("{}", sentence.as_ref()));
        self
    }

    /// The same report with another exit.
    pub(super) fn exiting(self, exit: Exit) -> Self {
        Self { exit, ..self }
    }
}

/// Writing to a `String` cannot fail.
pub(super) fn line(text: &mut String, args: std::fmt::Arguments<'_>) {
    text.write_fmt(args).ok();
    text.push('\n');
}

fn unreachable(socket: &Path, source: &std::io::Error) -> String {
    let why = match source.kind() {
        std::io::ErrorKind::NotFound => "there is no such socket".to_owned(),
        std::io::ErrorKind::ConnectionRefused => "nobody listens on it".to_owned(),
        _ => source.to_string(),
    };
    format!(
        "no agent answers on {}: {why}\n  \
         start it: systemctl start nodeagent, or as root: nodeagent run\n  \
         or name its socket: --socket PATH, or NODEAGENT_SOCKET",
        socket.display()
    )
}

/// The kernel does not let this process connect: who it is, and who may.
fn not_admitted(socket: &Path) -> String {
    let who = rustix::process::geteuid().as_raw();
    let why = match std::fs::metadata(socket) {
        Ok(file) => format!(
            "it belongs to user {} and group {} with mode {:04o}",
            file.uid(),
            file.gid(),
            file.mode() & 0o7777
        ),
        Err(_) => "a directory above it is closed to this user".to_owned(),
    };
    format!(
        "user id {who} may not connect to {}: {why}\n  \
         call as root, or have a role: api.socket_mode and api.*_groups of the agent's configuration",
        socket.display()
    )
}

/// An error and its causes on one line.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    plain(&text)
}

/// `{"target":3,"targetSeq":8}` as `target 3, targetSeq 8`.
fn facts(current: &Value) -> String {
    let value = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let text = match current {
        Value::Object(members) => {
            let members = members
                .iter()
                .map(|(name, v)| format!("{name} {}", value(v)));
            members.collect::<Vec<_>>().join(", ")
        }
        other => value(other),
    };
    plain(&text)
}

/// The document, indented.
pub(super) fn json(document: &impl Serialize) -> String {
    // Documents are plain strings, numbers and lists: their JSON always exists.
    let mut text = serde_json::to_string_pretty(document).unwrap_or_default();
    text.push('\n');
    text
}
