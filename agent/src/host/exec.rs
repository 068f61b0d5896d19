//! Commands in instances: a process beside the app, and its streams to a client and back.
//!
//! A command is its client's: it ends with the session. Its FIFOs lie in
//! `<runtime>/exec/<container>/<id>`, made before it and removed after it, so that what a killed
//! agent left is found at its next start, and ended.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use container_init::plan::{Plan, ProcessKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};

use super::executor::{Executor, blocking};
use super::failure::failure;
use super::node::Node;
use crate::api::v1::{ExecRequest, Problem, ProblemCode, TerminalSize};
use crate::api::{ExecInput, ExecOutput, ExecSession, LARGEST_PIECE};
use crate::chain::chain;
use crate::instance::{ContainerId, Failure, Phase, spec};
use crate::pool::Effects;
use crate::runtime::{Exec, Fifos, Pipes, RuntimeError, Streams};

/// Pieces that wait, in each direction: what a command or a client does not take is kept nowhere.
const QUEUE: usize = 4;
/// Silence after a command's end, after which what its children might still write is not awaited.
const LAST_WORDS: Duration = Duration::from_millis(250);
/// How long who is refused waits until nothing is left of the command.
const REMOVAL: Duration = Duration::from_secs(2);
/// Between two tries to delete a command while containerd does not answer.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// How many times; after them the next start of the agent does it.
const TRIES: u32 = 60;

/// Number of the next command of this agent.
static NEXT: AtomicU64 = AtomicU64::new(1);

impl<E: Effects> Node<E> {
    pub(super) async fn execute(
        &self,
        instance: &str,
        request: ExecRequest,
        caller: &str,
    ) -> Result<ExecSession, Problem> {
        let (name, found) = self.instance(instance).await?;
        let about = format!("/v1/instances/{name}/exec");
        if !runs(found.phase) {
            let phase = found.phase.as_str();
            let detail = format!(
                "{name} is {phase}: commands are executed in instances that wait at the gate, start or serve; nothing was executed"
            );
            return Err(Problem::new(ProblemCode::Unavailable, detail).about(about));
        }
        let container = ContainerId::new(name, found.create_generation);
        tracing::info!(%container, caller, program = ?request.command.first(), "a command is executed");
        let id = format!(
            "exec-{:x}-{}",
            self.identity.started_ms,
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let begun = begin(&self.executor, &container, &id, request).await;
        begun.map_err(|problem| problem.about(about))
    }
}

/// Whether there is a container-init that has done all it does before the gate.
fn runs(phase: Phase) -> bool {
    match phase {
        Phase::Armed
        | Phase::Starting
        | Phase::Probing
        | Phase::Registering
        | Phase::Active
        | Phase::Withdrawing
        | Phase::Unready
        | Phase::Leaving
        | Phase::Emptying
        | Phase::Restarting
        | Phase::Deregistering
        | Phase::Draining => true,
        Phase::Networking
        | Phase::Creating
        | Phase::Arming
        | Phase::Stopping
        | Phase::Removing
        | Phase::Releasing
        | Phase::Failed
        | Phase::Lost => false,
    }
}

/// A command that was started, or nothing of it is left.
async fn begin(
    executor: &Executor,
    container: &ContainerId,
    id: &str,
    request: ExecRequest,
) -> Result<ExecSession, Problem> {
    let recorded = executor.runtime.recorded_process(container).await;
    let recorded = recorded.map_err(|error| unexecuted(&error))?;
    let plan = executor.directories.of(container).bin.join("plan");
    let streams = Streams {
        stdin: request.stdin,
        terminal: request.terminal.is_some(),
    };
    let terminal = request.terminal.map(|size| (size.columns, size.rows));
    let process = blocking(move || {
        let plan = std::fs::read(&plan).map_err(|error| failure("plan", &error))?;
        let plan = Plan::decode(&plan)
            .map_err(|error| Failure::new("plan", format!("the plan is malformed: {error:?}")))?;
        let app = plan.processes.iter().find(|p| p.kind == ProcessKind::App);
        let app = app.ok_or_else(|| Failure::new("plan", "the plan has no app"))?;
        spec::command(&recorded, &app, &request.command, terminal)
            .map_err(|error| failure("spec", &error))
    });
    let process = process.await.and_then(|made| made).map_err(internal)?;

    let traces = Traces {
        exec: executor.runtime.exec(&container.to_string(), id),
        directory: root(executor).join(container.to_string()).join(id),
    };
    let started = start(&traces, &process, streams).await;
    let (fifos, pipes, exit) = match started {
        Ok(started) => started,
        Err(problem) => {
            // While containerd is away it goes on by itself.
            let removal = tokio::spawn(traces.remove());
            tokio::time::timeout(REMOVAL, removal).await.ok();
            return Err(problem);
        }
    };
    let (input, told) = mpsc::channel(QUEUE);
    let (says, output) = mpsc::channel(QUEUE);
    // Owned by the session: it ends when that is dropped.
    drop(tokio::spawn(run(traces, fifos, pipes, exit, told, says)));
    Ok(ExecSession { input, output })
}

type Waiting = tokio::task::JoinHandle<Result<u32, RuntimeError>>;

async fn start(
    traces: &Traces,
    process: &oci_spec::runtime::Process,
    streams: Streams,
) -> Result<(Fifos, Pipes, Waiting), Problem> {
    let directory = traces.directory.clone();
    let made = blocking(move || Fifos::make(&directory, streams));
    let fifos = made.await.map_err(internal)?;
    let fifos = fifos.map_err(|error| internal(failure("fifo", &error)))?;
    let pipes = fifos
        .readers()
        .map_err(|error| internal(failure("fifo", &error)))?;
    let created = traces.exec.create(process, &fifos).await;
    created.map_err(|error| unexecuted(&error))?;
    let exec = traces.exec.clone();
    let exit = tokio::spawn(async move { exec.wait().await });
    let started = traces.exec.start().await;
    started.map_err(|error| unexecuted(&error))?;
    Ok((fifos, pipes, exit))
}

/// Until the command has ended and its last words were told, or the session is gone.
async fn run(
    traces: Traces,
    fifos: Fifos,
    pipes: Pipes,
    mut exit: Waiting,
    told: mpsc::Receiver<ExecInput>,
    says: mpsc::Sender<ExecOutput>,
) {
    let listening = tokio::spawn(listen(traces.exec.clone(), fifos, told));
    let (ended_to, ended) = watch::channel(false);
    let stdout = tokio::spawn(speak(
        pipes.stdout,
        says.clone(),
        ExecOutput::Stdout,
        ended.clone(),
    ));
    let stderr = pipes
        .stderr
        .map(|pipe| tokio::spawn(speak(pipe, says.clone(), ExecOutput::Stderr, ended)));
    let code = tokio::select! {
        code = &mut exit => Some(code),
        () = says.closed() => None,
    };
    if let Some(code) = code {
        ended_to.send_replace(true);
        for spoken in [Some(stdout), stderr].into_iter().flatten() {
            // It ends by itself.
            spoken.await.ok();
        }
        let last = match code {
            Ok(Ok(code)) => ExecOutput::Exit(code),
            Ok(Err(error)) => ExecOutput::Failed(chain(&error)),
            Err(error) => ExecOutput::Failed(error.to_string()),
        };
        // One who has left wants to know nothing.
        says.send(last).await.ok();
    }
    // Before the process is deleted: the writer is one that its input waits for.
    listening.abort();
    exit.abort();
    drop(says);
    traces.remove().await;
}

/// Carries what a client says to the command, until the session ends.
async fn listen(exec: Exec, fifos: Fifos, mut told: mpsc::Receiver<ExecInput>) {
    let mut stdin = match fifos.writer() {
        Ok(stdin) => stdin,
        Err(error) => {
            // It has ended, or closed its input, already.
            tracing::debug!(%error, "a command takes no input");
            None
        }
    };
    while let Some(input) = told.recv().await {
        match input {
            ExecInput::Data(data) => {
                let Some(pipe) = &mut stdin else { continue };
                if let Err(error) = pipe.write_all(&data).await {
                    tracing::debug!(%error, "a command takes no more input");
                    stdin = None;
                }
            }
            ExecInput::End => {
                if stdin.take().is_some()
                    && let Err(error) = exec.close_stdin().await
                {
                    tracing::debug!(error = chain(&error), "a command's input is not closed");
                }
            }
            ExecInput::Resize(size) => resize(&exec, size).await,
        }
    }
}

/// Carries what the command writes to the client, until its end.
async fn speak(
    mut pipe: pipe::Receiver,
    says: mpsc::Sender<ExecOutput>,
    piece: fn(Bytes) -> ExecOutput,
    mut ended: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; LARGEST_PIECE];
    loop {
        let over = *ended.borrow_and_update();
        let read = tokio::select! {
            read = pipe.read(&mut buffer) => read,
            // What is read from here on is its last words.
            Ok(()) = ended.changed(), if !over => continue,
            () = tokio::time::sleep(LAST_WORDS), if over => return,
        };
        let length = match read {
            Ok(0) => return,
            Ok(length) => length,
            Err(error) => {
                tracing::warn!(%error, "a command's output cannot be read");
                return;
            }
        };
        let bytes = buffer.get(..length).unwrap_or_default();
        if says
            .send(piece(Bytes::copy_from_slice(bytes)))
            .await
            .is_err()
        {
            return;
        }
    }
}

async fn resize(exec: &Exec, size: TerminalSize) {
    if let Err(error) = exec.resize(size.columns, size.rows).await {
        tracing::debug!(error = chain(&error), "a terminal keeps its size");
    }
}

/// What a command leaves: a process that the shim remembers, and FIFOs.
struct Traces {
    exec: Exec,
    directory: PathBuf,
}

impl Traces {
    /// Ends the command, if it still runs, and removes what it left.
    async fn remove(self) {
        for _ in 0..TRIES {
            match self.exec.delete().await {
                Ok(()) => {
                    let directory = self.directory;
                    let removed = blocking(move || forget(&directory)).await;
                    if let Ok(Err(error)) = removed {
                        tracing::warn!(%error, "the FIFOs of a command remain");
                    }
                    return;
                }
                Err(error) => {
                    tracing::warn!(error = chain(&error), "a command could not be ended");
                    tokio::time::sleep(TRY_AGAIN).await;
                }
            }
        }
    }
}

/// Ends the commands of an agent that was killed, and removes what they left, in a task of its own:
/// containerd may be away. Mostly there are none, and the look costs one system call.
pub(super) fn end_leftovers(executor: &Executor) {
    for (container, id, directory) in leftovers(&root(executor)) {
        tracing::info!(container, id, "a command of an earlier agent is ended");
        let exec = executor.runtime.exec(&container, &id);
        tokio::spawn(Traces { exec, directory }.remove());
    }
}

fn root(executor: &Executor) -> PathBuf {
    executor.settings.paths.runtime.join("exec")
}

/// Container, id and directory of each command that has one.
fn leftovers(root: &Path) -> Vec<(String, String, PathBuf)> {
    let below = |directory: &Path| -> Vec<(String, PathBuf)> {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let named = entries.filter_map(|e| Some((e.file_name().into_string().ok()?, e.path())));
        named.collect()
    };
    let commands = |(container, directory): (String, PathBuf)| {
        let commands = below(&directory).into_iter();
        commands.map(move |(id, directory)| (container.clone(), id, directory))
    };
    below(root).into_iter().flat_map(commands).collect()
}

/// Removes a command's directory, and its container's with the last of them.
fn forget(directory: &Path) -> std::io::Result<()> {
    std::fs::remove_dir_all(directory)?;
    if let Some(container) = directory.parent() {
        // Not empty: another command runs there.
        std::fs::remove_dir(container).ok();
    }
    Ok(())
}

/// What containerd refused, as the caller's mistake where it is one.
fn unexecuted(error: &RuntimeError) -> Problem {
    let (code, then) = match error {
        RuntimeError::Failed { .. } => (ProblemCode::InvalidRequest, "nothing was executed"),
        RuntimeError::Unavailable { .. } | RuntimeError::Abandoned { .. } => (
            ProblemCode::Unavailable,
            "what may have begun is ended when containerd answers",
        ),
        RuntimeError::NotFound { .. } => (ProblemCode::NotFound, "nothing was executed"),
        _ => (ProblemCode::Internal, "nothing was executed"),
    };
    Problem::new(code, format!("{}; {then}", chain(error)))
}

fn internal(failure: Failure) -> Problem {
    Problem::new(ProblemCode::Internal, failure.detail)
}
