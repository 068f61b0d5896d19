//! Killing the agent at every effect boundary of an operation: enumerated, not sampled.
//!
//! A first, undisturbed run of the operation records its boundaries (`before start 1`,
//! `after commit 2`, ...). Then the operation is run once for each of them with an agent that gets
//! SIGKILL there, and the real agent is started after it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::host::TestHost;

/// Environment variable that names the directory of the three files below.
pub const DIRECTORY: &str = "NODEAGENT_TESTS_CRASH";
/// Boundaries count while it exists.
pub const MARK: &str = "mark";
/// Boundaries that were passed, one a line.
pub const RECORD: &str = "record";
/// The boundary to crash at.
pub const CRASH_AT: &str = "at";

/// How long the agent may take to reach the boundary behind the answer, or after its start.
const DIES: Duration = Duration::from_secs(10);
const DIES_STARTING: Duration = Duration::from_secs(30);

/// Where an operation begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begins {
    /// With a request to an agent that is ready.
    WithRequest,
    /// With the agent's start: `before` leaves it stopped.
    WithStart,
}

/// One operation whose boundaries are to be survived.
pub struct Operation<'a> {
    /// Where it begins.
    pub begins: Begins,
    /// Brings the host into the state before the operation.
    pub before: &'a dyn Fn(&mut TestHost) -> Result<()>,
    /// The operation, numbered by run. Its answer is lost when the agent dies within.
    pub run: &'a dyn Fn(&TestHost, usize) -> Result<()>,
    /// The agent that was killed has been started again: repeats the operation of that number and
    /// fails unless everything is as if it had never died.
    pub after: &'a dyn Fn(&TestHost, usize) -> Result<()>,
}

/// Runs `operation` undisturbed and then once for each boundary that it passed; returns these.
pub fn at_every_boundary(
    host: &mut TestHost,
    crash_agent: &Path,
    operation: &Operation<'_>,
) -> Result<Vec<String>> {
    let files = host.ground.path("crash");
    fs::create_dir(&files).with_context(|| format!("create {}", files.display()))?;
    host.agent.set(DIRECTORY, &files.to_string_lossy());

    let undisturbed = one(host, crash_agent, operation, &files, 0, None);
    undisturbed.context("undisturbed")?;
    let record = read(&files.join(RECORD))?;
    let boundaries: Vec<String> = record.lines().map(str::to_owned).collect();
    ensure!(!boundaries.is_empty(), "the operation passed no boundary");
    for (number, boundary) in boundaries.iter().enumerate() {
        one(
            host,
            crash_agent,
            operation,
            &files,
            number + 1,
            Some(boundary),
        )
        .with_context(|| format!("killed {boundary}"))
        .with_context(|| host.agent.tail(40))?;
    }
    Ok(boundaries)
}

/// Runs `operation` once with an agent that gets SIGKILL at `boundary`.
pub fn at_boundary(
    host: &mut TestHost,
    crash_agent: &Path,
    operation: &Operation<'_>,
    boundary: &str,
) -> Result<()> {
    let files = host.ground.path("crash");
    fs::create_dir(&files).with_context(|| format!("create {}", files.display()))?;
    host.agent.set(DIRECTORY, &files.to_string_lossy());
    one(host, crash_agent, operation, &files, 1, Some(boundary))
        .with_context(|| format!("killed {boundary}"))
        .with_context(|| host.agent.tail(40))
}

fn one(
    host: &mut TestHost,
    crash_agent: &Path,
    operation: &Operation<'_>,
    files: &Path,
    number: usize,
    boundary: Option<&str>,
) -> Result<()> {
    (operation.before)(host).context("before the operation")?;
    let at = files.join(CRASH_AT);
    fs::write(&at, boundary.unwrap_or("")).with_context(|| format!("write {}", at.display()))?;
    let mark = files.join(MARK);
    let set = || fs::write(&mark, "").with_context(|| format!("write {}", mark.display()));
    let dies = match (operation.begins, boundary) {
        (Begins::WithRequest, _) => {
            restart(host, Some(crash_agent.to_owned()))?;
            set()?;
            DIES
        }
        (Begins::WithStart, None) => {
            set()?;
            restart(host, Some(crash_agent.to_owned()))?;
            DIES
        }
        // It may die before it is ready.
        (Begins::WithStart, Some(_)) => {
            set()?;
            host.agent.run_as(Some(crash_agent.to_owned()));
            host.agent.launch(&host.ground)?;
            DIES_STARTING
        }
    };
    let answer = match (operation.begins, boundary) {
        (Begins::WithStart, Some(_)) => Ok(()),
        _ => (operation.run)(host, number),
    };
    if boundary.is_some() {
        // What the operation leaves to the background counts as well, and its boundaries are later.
        // Background commits share or do not share one: a run that has fewer is killed at its end.
        match host.agent.wait_ended(dies) {
            Ok(status) => ensure!(
                status.code().is_none(),
                "the agent ended by itself: {status}"
            ),
            Err(_) => host.agent.kill()?,
        }
    } else {
        answer?;
        (operation.after)(host, number).context("with the agent alive")?;
    }
    fs::remove_file(&mark).with_context(|| format!("remove {}", mark.display()))?;
    restart(host, None)?;
    (operation.after)(host, number)
}

/// Starts the agent (again): `program`, or the real one.
fn restart(host: &mut TestHost, program: Option<PathBuf>) -> Result<()> {
    host.agent.stop()?;
    host.agent.run_as(program);
    host.agent.start(&host.ground).map(drop)
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("read {}", file.display()))
}
