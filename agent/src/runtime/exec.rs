//! Further processes in running containers: what `nodeagent exec` runs.
//!
//! The shim connects the process's streams to FIFOs below a directory of ours and holds both ends
//! of each, so that nothing is lost when we go away, and nothing ends either: whoever began a
//! process has to delete it. Promises: the readers are there before the process is; [`Exec::delete`]
//! kills first and may be repeated.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use containerd_client::services::v1::{
    CloseIoRequest, DeleteProcessRequest, ExecProcessRequest, ResizePtyRequest, StartRequest,
    WaitRequest,
};
use oci_spec::runtime::Process;
use prost_types::Any;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::net::unix::pipe;

use super::error::{Answer, RuntimeError, Unanswered};
use super::task::LOOK_AGAIN;
use super::{Containerd, SIGKILL, SPEC};
use crate::instance::ContainerId;

/// Type of a process's description (containerd, typeurl of runtime-spec's `Process`).
const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// Which streams a process has beside its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streams {
    /// Whether it has a standard input.
    pub stdin: bool,
    /// Whether all of them are a terminal; then it has no standard error of its own.
    pub terminal: bool,
}

/// Our ends of a process's streams.
#[derive(Debug)]
pub struct Pipes {
    /// What it writes.
    pub stdout: pipe::Receiver,
    /// What it complains of; none with a terminal.
    pub stderr: Option<pipe::Receiver>,
}

/// The FIFOs of one process.
#[derive(Debug, Clone)]
pub struct Fifos {
    directory: PathBuf,
    streams: Streams,
}

impl Fifos {
    /// Those in `directory`, which is made with them. May block on the disk.
    pub fn make(directory: &Path, streams: Streams) -> io::Result<Self> {
        let fifos = Self {
            directory: directory.to_owned(),
            streams,
        };
        std::fs::create_dir_all(directory)?;
        for path in [fifos.stdin(), Some(fifos.stdout()), fifos.stderr()] {
            let Some(path) = path else { continue };
            let mode = Mode::RUSR | Mode::WUSR;
            mknodat(CWD, &path, FileType::Fifo, mode, 0)?;
        }
        Ok(fifos)
    }

    /// Our ends of what it writes. Before the process is started: then every byte has a reader.
    pub fn readers(&self) -> io::Result<Pipes> {
        let open = |path: &Path| pipe::OpenOptions::new().open_receiver(path);
        Ok(Pipes {
            stdout: open(&self.stdout())?,
            stderr: self.stderr().map(|path| open(&path)).transpose()?,
        })
    }

    /// Our end of its standard input, if it has one. Once the process is started: then it is read.
    pub fn writer(&self) -> io::Result<Option<pipe::Sender>> {
        let open = |path: PathBuf| pipe::OpenOptions::new().open_sender(path);
        self.stdin().map(open).transpose()
    }

    fn stdin(&self) -> Option<PathBuf> {
        self.streams.stdin.then(|| self.directory.join("stdin"))
    }

    fn stdout(&self) -> PathBuf {
        self.directory.join("stdout")
    }

    fn stderr(&self) -> Option<PathBuf> {
        (!self.streams.terminal).then(|| self.directory.join("stderr"))
    }
}

/// A process in a container beside the task's own.
#[derive(Clone)]
pub struct Exec {
    runtime: Containerd,
    container: String,
    id: String,
}

impl Containerd {
    /// The process `exec_id` of a container, made or not.
    pub fn exec(&self, container: &str, exec_id: &str) -> Exec {
        Exec {
            runtime: self.clone(),
            container: container.to_owned(),
            id: exec_id.to_owned(),
        }
    }

    /// The task's own process as the container was recorded.
    pub async fn recorded_process(&self, id: &ContainerId) -> Result<Process, RuntimeError> {
        let (operation, name) = ("read the spec of", id.to_string());
        let none = || RuntimeError::NotFound {
            operation,
            object: format!("container {name}"),
        };
        let container = self.container(&name).await?.ok_or_else(none)?;
        let spec = container.spec.unwrap_or_default().value;
        let spec: oci_spec::runtime::Spec =
            serde_json::from_slice(&spec).map_err(|error| RuntimeError::Conflict {
                operation,
                object: name.clone(),
                why: format!("what containerd has is no {SPEC}: {error}"),
            })?;
        spec.process().clone().ok_or_else(none)
    }
}

impl Exec {
    /// Describes the process to the shim. Nothing runs yet.
    pub async fn create(&self, process: &Process, fifos: &Fifos) -> Result<(), RuntimeError> {
        let operation = "prepare a command in";
        let spec = serde_json::to_vec(process).map_err(|error| RuntimeError::Conflict {
            operation,
            object: self.container.clone(),
            why: format!("its process cannot be written: {error}"),
        })?;
        let text = |path: Option<PathBuf>| path.unwrap_or_default().display().to_string();
        let request = self.runtime.connection.request(ExecProcessRequest {
            container_id: self.container.clone(),
            exec_id: self.id.clone(),
            stdin: text(fifos.stdin()),
            stdout: text(Some(fifos.stdout())),
            stderr: text(fifos.stderr()),
            terminal: fifos.streams.terminal,
            spec: Some(Any {
                type_url: PROCESS.to_owned(),
                value: spec,
            }),
        });
        let call = async { self.runtime.task_client().exec(request).await };
        let connection = &self.runtime.connection;
        connection
            .call(operation, &self.container, call)
            .await
            .map(drop)
    }

    /// Starts it. An error says why it cannot be executed.
    pub async fn start(&self) -> Result<(), RuntimeError> {
        let connection = &self.runtime.connection;
        let deadline = connection.slow();
        let request = StartRequest {
            container_id: self.container.clone(),
            exec_id: self.id.clone(),
        };
        let request = connection.bounded_request(deadline, request);
        let started = connection
            .answer(deadline, self.runtime.task_client().start(request))
            .await;
        started
            .map(drop)
            .map_err(|said| said.into_error("start a command in", &self.container))
    }

    /// Waits for its end, however long it takes; its exit code, 128 + signal when a signal ended
    /// it. Asked before the start it misses nothing.
    pub async fn wait(&self) -> Result<u32, RuntimeError> {
        let connection = &self.runtime.connection;
        let request = connection.request(WaitRequest {
            container_id: self.container.clone(),
            exec_id: self.id.clone(),
        });
        let answer = self.runtime.task_client().wait(request).await;
        answer
            .map(|answer| answer.into_inner().exit_status)
            .map_err(|status| {
                Answer::of(status, connection.socket())
                    .into_error("wait for a command in", &self.container)
            })
    }

    /// Gives its terminal another size.
    pub async fn resize(&self, columns: u16, rows: u16) -> Result<(), RuntimeError> {
        let connection = &self.runtime.connection;
        let request = connection.request(ResizePtyRequest {
            container_id: self.container.clone(),
            exec_id: self.id.clone(),
            width: columns.into(),
            height: rows.into(),
        });
        let call = async { self.runtime.task_client().resize_pty(request).await };
        connection
            .call("resize the terminal in", &self.container, call)
            .await
            .map(drop)
    }

    /// Ends its standard input, once every writer of ours is closed.
    pub async fn close_stdin(&self) -> Result<(), RuntimeError> {
        let connection = &self.runtime.connection;
        let request = connection.request(CloseIoRequest {
            container_id: self.container.clone(),
            exec_id: self.id.clone(),
            stdin: true,
        });
        let call = async { self.runtime.task_client().close_io(request).await };
        connection
            .call("close the input of a command in", &self.container, call)
            .await
            .map(drop)
    }

    /// Ends it, when it still runs, and has the shim forget it. One that is gone is fine.
    pub async fn delete(&self) -> Result<(), RuntimeError> {
        let connection = &self.runtime.connection;
        let end = Instant::now() + connection.slow().length;
        loop {
            // One that has ended, or was never started, cannot be killed and can be deleted.
            self.runtime
                .kill(&self.container, &self.id, SIGKILL)
                .await
                .ok();
            let request = connection.request(DeleteProcessRequest {
                container_id: self.container.clone(),
                exec_id: self.id.clone(),
            });
            let deleted = connection
                .answer(
                    connection.slow(),
                    self.runtime.task_client().delete_process(request),
                )
                .await;
            match deleted {
                Ok(_) | Err(Answer::NotFound) => return Ok(()),
                Err(said @ Answer::Unavailable(Unanswered::Connection { .. })) => {
                    return Err(said.into_error("delete a command in", &self.container));
                }
                Err(said) if Instant::now() >= end => {
                    return Err(said.into_error("delete a command in", &self.container));
                }
                // `cannot delete a running process`: the kill is on its way.
                Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }
}
