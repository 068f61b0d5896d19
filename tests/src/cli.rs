//! `nodeagent` as a person or program at a shell uses it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::documents::{InstanceError, Pool, Problem, Status, Task, Trail};
use crate::http;
use crate::netns::Netns;
use crate::wait::{Look, until};

/// Longest silence of the agent while a task goes on.
const LONGEST_TASK: Duration = Duration::from_secs(120);

/// The agent's program: `NODEAGENT_BIN`, else what `cargo build` makes.
pub fn nodeagent() -> Result<PathBuf> {
    program("NODEAGENT_BIN", "target/debug/nodeagent", "cargo build")
}

/// The static container-init: `NODEAGENT_CONTAINER_INIT`, else what `make container-init` makes.
pub fn container_init() -> Result<PathBuf> {
    program(
        "NODEAGENT_CONTAINER_INIT",
        "target/x86_64-unknown-linux-gnu/init/container-init",
        "make container-init",
    )
}

fn program(variable: &str, default: &str, made_by: &str) -> Result<PathBuf> {
    let path = match std::env::var_os(variable) {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("..")
            .join(default),
    };
    path.canonicalize().with_context(|| {
        format!(
            "{} is missing; build it by `{made_by}` or set {variable}",
            path.display()
        )
    })
}

/// The CLI of one agent.
#[derive(Debug, Clone)]
pub struct Cli {
    netns: Netns,
    socket: PathBuf,
}

/// What a command printed and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The command's words, for messages.
    pub command: String,
    /// Exit code (DESIGN, "API and CLI"); 128 + n when it died of signal n.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained.
    pub stderr: String,
}

impl Answer {
    /// The document it printed, having ended with `code`.
    pub fn document<T: DeserializeOwned>(&self, code: i32) -> Result<T> {
        ensure!(self.code == code, "{self}\nexpected exit code {code}");
        serde_json::from_str(&self.stdout).with_context(|| format!("{self}\nnot the document"))
    }

    /// Fails unless it ended with 0.
    pub fn ok(self) -> Result<Self> {
        ensure!(self.code == 0, "{self}");
        Ok(self)
    }

    /// The problem document of a refusal that ended with `code`.
    pub fn problem(&self, code: i32) -> Result<Problem> {
        ensure!(self.code == code, "{self}\nexpected exit code {code}");
        let text = [&self.stdout, &self.stderr];
        let found = text.iter().find_map(|text| serde_json::from_str(text).ok());
        found.with_context(|| format!("{self}\nno problem document"))
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            command,
            code,
            stdout,
            stderr,
        } = self;
        write!(
            f,
            "`{command}` ended with {code}\nstdout: {stdout}\nstderr: {stderr}"
        )
    }
}

impl Cli {
    /// For the agent that listens at `socket`.
    pub fn new(netns: Netns, socket: PathBuf) -> Self {
        Self { netns, socket }
    }

    /// Runs `nodeagent <arguments>` as given, in the tables made for people.
    pub fn run(&self, arguments: &[&str]) -> Result<Answer> {
        let mut command = Command::new(nodeagent()?);
        command
            .args(arguments)
            .env("NODEAGENT_SOCKET", &self.socket)
            .current_dir("/");
        let output = self
            .netns
            .run(|| command.output().context("run nodeagent"))?;
        use std::os::unix::process::ExitStatusExt;
        let code = output.status.code();
        Ok(Answer {
            command: format!("nodeagent {}", arguments.join(" ")),
            code: code.unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0)),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs `nodeagent <arguments> -o json`.
    pub fn json(&self, arguments: &[&str]) -> Result<Answer> {
        self.run(&[arguments, &["-o", "json"]].concat())
    }

    /// Applies a manifest that has to be accepted.
    pub fn apply(&self, manifest: &Path) -> Result<()> {
        let file = manifest.to_string_lossy();
        self.json(&["app", "apply", "-f", &file])?.ok().map(drop)
    }

    /// Begins a task, whose id is among `words`, and waits for no more than `timeout`, which has to
    /// be too short for its end. Afterwards its intent is durable: asked again until it is.
    pub fn begin(&self, words: &[&str], timeout: &str) -> Result<()> {
        let words = [words, &["--timeout", timeout]].concat();
        until("the task to be under way", LONGEST_TASK, || {
            let answer = self.json(&words)?;
            if answer.code == 1 && answer.stderr.contains("is not durable yet") {
                return Ok(Look::NotYet(answer.to_string()));
            }
            ensure!(answer.code == 6, "{answer}\nexpected exit code 6");
            Ok(Look::Seen(()))
        })
    }

    /// `activate APP --to N --task-id ID`, which has to succeed.
    pub fn activate(&self, app: &str, to: u32, task: &str) -> Result<Task> {
        let to = to.to_string();
        self.json(&["activate", app, "--to", &to, "--task-id", task])?
            .document(0)
    }

    /// `activate APP --to 1 --task-id ID --deadline DEADLINE`, of which nothing comes: why.
    pub fn activate_in_vain(&self, app: &str, task: &str, deadline: &str) -> Result<InstanceError> {
        let words = ["activate", app, "--to", "1", "--task-id", task];
        let answer = self.json(&[&words[..], &["--deadline", deadline]].concat())?;
        let task: Task = answer.document(1)?;
        let instance = task.instances.into_iter().next().context("no instance")?;
        instance.error.context("no error")
    }

    /// `deactivate APP --to N --task-id ID`, which has to succeed.
    pub fn deactivate(&self, app: &str, to: u32, task: &str) -> Result<Task> {
        let to = to.to_string();
        self.json(&["deactivate", app, "--to", &to, "--task-id", task])?
            .document(0)
    }

    /// `scale APP --to N --task-id ID`, which has to succeed.
    pub fn scale(&self, app: &str, to: u32, task: &str) -> Result<Task> {
        let to = to.to_string();
        self.json(&["scale", app, "--to", &to, "--task-id", task])?
            .document(0)
    }

    /// `roll APP --step STEP --task-id ID`, which has to succeed.
    pub fn roll(&self, app: &str, step: &str, task: &str) -> Result<Task> {
        self.json(&["roll", app, "--step", step, "--task-id", task])?
            .document(0)
    }

    /// The request of `activate APP --to N --task-id ID` straight to the API, without the CLI's
    /// own start: returns the task and the time from the first byte sent to the last received.
    pub fn post(&self, verb: &str, app: &str, to: u32, task: &str) -> Result<(Task, Duration)> {
        let target = format!("/v1/apps/{app}/{verb}");
        let body = json!({ "to": to, "taskId": task }).to_string();
        let (answer, took) =
            http::request_unix(&self.socket, "POST", &target, body.as_bytes(), LONGEST_TASK)?;
        let text = answer.text();
        ensure!(answer.status == 200, "{target}: {} {text}", answer.status);
        let task = serde_json::from_str(&text).with_context(|| format!("read {text}"))?;
        Ok((task, took))
    }

    /// `status`.
    pub fn status(&self) -> Result<Status> {
        self.json(&["status"])?.document(0)
    }

    /// The pool of `app` in the status.
    pub fn pool(&self, app: &str) -> Result<Pool> {
        let status = self.status()?;
        match status.pools.into_iter().find(|pool| pool.app == app) {
            Some(pool) => Ok(pool),
            None => bail!("the status has no pool of {app}"),
        }
    }

    /// `trace TASK`.
    pub fn trace(&self, task: &str) -> Result<Trail> {
        self.json(&["trace", task])?.document(0)
    }
}
