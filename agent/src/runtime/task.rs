//! Tasks: the processes of containers, through containerd and the shim.

use std::time::{Duration, Instant, SystemTime};

use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    Container, CreateTaskRequest, DeleteTaskRequest, GetRequest, KillRequest, ListTasksRequest,
    StartRequest, WaitRequest,
};
use containerd_client::types::v1::{Process, Status as ProcessStatus};
use prost_types::{Any, Timestamp};
use tonic::transport::Channel;

use super::error::{Answer, RuntimeError, Unanswered};
use super::shim::{self, Activity, ShimOf};
use super::{Containerd, SIGKILL, cgroup};
use crate::config;
use crate::instance::ContainerId;

/// Pause between two looks at a task whose shim is going away.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How long containerd may be busy with a create of a killed agent: 1.6 and 2.2 give the clean-up
/// behind a shim 5 seconds, and twice where the shim hangs.
const CREATE_IN_FLIGHT: Duration = Duration::from_secs(15);
/// Creates that find what an earlier one left although nobody is at it any more, some 40 ms apart: a
/// containerd that was killed in the middle leaves it for ever.
const CREATES_IN_THE_WAY: u32 = 25;
/// Looks in a row that find a shim doing nothing, about a second, until nobody minds it: containerd
/// leaves one alone for milliseconds between two steps.
const FORGOTTEN_AFTER: u32 = 50;
/// Between two looks for a shim that does nothing in the middle of a create.
const LOOK_FOR_HANG: Duration = Duration::from_millis(500);
/// A shim that does nothing for this long in the middle of a create never will.
const HANGS_AFTER: Duration = Duration::from_secs(3);
/// How often the processes of a container are ended below a shim that holds any, until those that
/// are left are others'.
const SWEEPS: u32 = 10;

/// A task, as its shim sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskState {
    /// Process id in the host's namespace; 0 when the process is gone and forgotten.
    pub pid: u32,
    /// How far it is.
    pub status: TaskStatus,
}

/// How far a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskStatus {
    /// Made, its process waits for the start.
    Created,
    /// Started. A frozen one counts as running.
    Running,
    /// Ended.
    Stopped {
        /// Exit code, 128 + signal when a signal ended it.
        code: u32,
    },
    /// The shim did not say.
    Unknown,
}

/// How a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus {
    /// Exit code, 128 + signal when a signal ended it.
    pub code: u32,
    /// When, by the shim's clock; the time of asking where it does not say.
    pub at: SystemTime,
}

impl Containerd {
    /// Makes the task of a recorded container: shim, namespaces, cgroup, mounts; the process waits
    /// for the start. Its standard streams are /dev/null. Returns its pid; a task that exists
    /// already is success. A create that does not end in time is undone as far as possible, and
    /// the error says whether something may remain.
    ///
    /// Where an agent was killed in the middle of the same, containerd refuses for a while: it ends
    /// that create, or takes it back. What came of it is the task that was asked for; where nothing
    /// did, it is made anew once nobody cleans up behind the first any more.
    /// [`RuntimeError::Conflict`]: a containerd that was killed in the middle left it for ever.
    pub async fn create_task(&self, id: &ContainerId) -> Result<u32, RuntimeError> {
        let end = Instant::now() + CREATE_IN_FLIGHT;
        let mut made = self.try_create(id).await;
        for _ in 0..CREATES_IN_THE_WAY {
            let Err(RuntimeError::Conflict { .. }) = made else {
                break;
            };
            tracing::info!(container_id = %id, "waiting for a create that was cut off");
            if !self.wait_for_former_create(id, end).await? {
                break;
            }
            made = self.try_create(id).await;
        }
        made
    }

    /// [`RuntimeError::Conflict`]: an earlier create of it is under way, or being taken back.
    async fn try_create(&self, id: &ContainerId) -> Result<u32, RuntimeError> {
        let operation = "create task";
        let name = id.to_string();
        let Some(container) = self.container(&name).await? else {
            return Err(RuntimeError::NotFound {
                operation,
                object: format!("container {name}"),
            });
        };
        let deadline = self.connection.slow();
        let request = CreateTaskRequest {
            container_id: name.clone(),
            rootfs: self.mounts(&container.snapshot_key).await?,
            options: runc_options(&self.runtime, self.shim_cgroup.as_deref()),
            ..CreateTaskRequest::default()
        };
        let request = self.connection.bounded_request(deadline, request);
        let mut client = self.task_client();
        let mut answer = std::pin::pin!(self.connection.answer(deadline, client.create(request)));
        let mut hung = false;
        let answer = tokio::select! {
            answer = answer.as_mut() => answer,
            () = self.shim_hangs(&name) => {
                hung = true;
                self.end_forgotten_shim(id).await;
                answer.await
            }
        };
        match answer {
            Ok(response) => Ok(response.into_inner().pid),
            Err(_) if hung => Err(RuntimeError::Conflict {
                operation,
                object: name,
                why: "its shim did nothing and was ended".to_owned(),
            }),
            Err(said) if said.is_in_the_way() => match self.task(&name).await? {
                Some(task) => Ok(task.pid),
                None => Err(RuntimeError::Conflict {
                    operation,
                    object: name,
                    why: "an earlier create of it is not over".to_owned(),
                }),
            },
            Err(Answer::Unavailable(source @ Unanswered::Overdue { .. })) => {
                let undone = self.undo_create(id, &container).await;
                Err(RuntimeError::Abandoned {
                    operation,
                    object: name,
                    undone,
                    source,
                })
            }
            Err(said) => Err(said.into_error(operation, &name)),
        }
    }

    /// Returns when the shim of a create under way has done nothing for [`HANGS_AFTER`].
    ///
    /// Under load a shim of containerd 1.6 whose container was being made and taken back shortly
    /// before may never answer its `Create` (seen once in some 500 creates that were cut off: no
    /// children, every thread asleep); containerd waits for it as long as its caller does.
    async fn shim_hangs(&self, name: &str) {
        let mut since: Option<(Vec<i32>, Instant)> = None;
        loop {
            tokio::time::sleep(LOOK_FOR_HANG).await;
            let asleep = shim::asleep(self.shim_of(name)).await.unwrap_or_default();
            match &since {
                _ if asleep.is_empty() => since = None,
                Some((before, at)) if *before == asleep => {
                    if at.elapsed() >= HANGS_AFTER {
                        tracing::warn!(container_id = name, "a shim does not create its container");
                        return;
                    }
                }
                _ => since = Some((asleep, Instant::now())),
            }
        }
    }

    /// Waits until a create that was cut off has made its task, or until nothing of it is left:
    /// containerd cleans up behind its shim by path, and would take what was made anew meanwhile.
    /// False when neither will be: the shim is there and nobody minds it, because containerd died
    /// in the middle too. Returns also at the deadline.
    async fn wait_for_former_create(
        &self,
        id: &ContainerId,
        end: Instant,
    ) -> Result<bool, RuntimeError> {
        let name = id.to_string();
        let (mut without_shim, mut idle) = (0, 0);
        while Instant::now() < end && without_shim < 2 {
            tokio::time::sleep(LOOK_AGAIN).await;
            if self.task(&name).await?.is_some() {
                return Ok(true);
            }
            let activity = shim::activity(self.shim_of(&name)).await;
            let activity = activity.unwrap_or_else(|error| {
                tracing::warn!(%error, container_id = name, "cannot look for shims");
                Activity::None
            });
            (without_shim, idle) = match activity {
                Activity::None => (without_shim + 1, 0),
                Activity::Idle | Activity::Holding => (0, idle + 1),
                Activity::Working => (0, 0),
            };
            if idle >= FORGOTTEN_AFTER {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Ends what a create may have left: task, shim, and processes that hang in the cgroup. Says
    /// whether nothing remains.
    async fn undo_create(&self, id: &ContainerId, container: &Container) -> bool {
        let container_id = id.to_string();
        let deleted = self.delete_task(id).await;
        if let Err(error) = &deleted {
            let error: &dyn std::error::Error = error;
            tracing::error!(
                error,
                container_id,
                "a create that timed out could not be undone"
            );
        }
        let Some(path) = own_cgroup(container, &self.runtime.cgroup_parent, &container_id) else {
            return deleted.is_ok();
        };
        match cgroup::sweep(&path, self.connection.plain().length).await {
            Ok(remaining) if remaining.is_empty() => deleted.is_ok(),
            Ok(remaining) => {
                tracing::error!(
                    ?remaining,
                    container_id,
                    "processes of a create that timed out remain"
                );
                false
            }
            Err(error) => {
                tracing::error!(%error, container_id, "the cgroup of a create that timed out could not be swept");
                false
            }
        }
    }

    /// Starts a created task. One that runs already is success.
    pub async fn start_task(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let name = id.to_string();
        let deadline = self.connection.slow();
        let request = StartRequest {
            container_id: name.clone(),
            ..StartRequest::default()
        };
        let request = self.connection.bounded_request(deadline, request);
        match self
            .connection
            .answer(deadline, self.task_client().start(request))
            .await
        {
            Ok(_) => Ok(()),
            // The shim has no error of its own for "it runs already".
            Err(said @ (Answer::Precondition(_) | Answer::Other(_))) => {
                match self.task(&name).await? {
                    Some(TaskState {
                        status: TaskStatus::Running,
                        ..
                    }) => Ok(()),
                    _ => Err(said.into_error("start task", &name)),
                }
            }
            Err(said) => Err(said.into_error("start task", &name)),
        }
    }

    /// Sends a signal to the task's first process. One that is gone is fine.
    pub async fn kill_task(&self, id: &ContainerId, signal: i32) -> Result<(), RuntimeError> {
        let name = id.to_string();
        let signal = u32::try_from(signal).map_err(|_| RuntimeError::Setting {
            setting: "signal",
            value: signal.to_string(),
            allowed: "a signal number",
        })?;
        match self.kill(&name, "", signal).await {
            Ok(()) | Err(Answer::NotFound) => Ok(()),
            Err(said) => Err(said.into_error("kill task", &name)),
        }
    }

    /// Deletes a task, killing it first when it lives, and returns how it ended; none when there
    /// was none. A shim that died on the way is waited for: containerd cleans up behind it. A shim
    /// that stayed behind without its task is ended.
    pub async fn delete_task(&self, id: &ContainerId) -> Result<Option<ExitStatus>, RuntimeError> {
        let name = id.to_string();
        let end = Instant::now() + self.connection.slow().length;
        loop {
            match self.try_delete(&name).await {
                Ok(Some(ended)) => return Ok(Some(ended)),
                Ok(None) => {
                    self.end_forgotten_shim(id).await;
                    return Ok(None);
                }
                Err(said @ Answer::Unavailable(Unanswered::Connection { .. })) => {
                    return Err(said.into_error("delete task", &name));
                }
                Err(said) if Instant::now() >= end => {
                    return Err(said.into_error("delete task", &name));
                }
                // `ttrpc: closed`, `cannot delete a running process`, a shim that is busy with a
                // create: things are on their way.
                Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }

    /// A shim may be in the middle of a create whose caller is gone: its end is waited for, and
    /// what it made is ended. One that holds the processes of others serves a group.
    async fn end_forgotten_shim(&self, id: &ContainerId) {
        let end = Instant::now() + self.connection.plain().length;
        let mut sweeps = 0;
        let ended = async {
            while Instant::now() < end && sweeps < SWEEPS {
                match shim::end_orphans(self.shim_of(&id.to_string())).await? {
                    // Those that were idle are ended.
                    Activity::None | Activity::Idle => return Ok(()),
                    Activity::Working => {}
                    Activity::Holding => {
                        cgroup::sweep(&self.path_of(id), LOOK_AGAIN).await?;
                        sweeps += 1;
                    }
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            Err(std::io::Error::other("it has children"))
        };
        let ended: std::io::Result<()> = ended.await;
        if let Err(error) = ended {
            tracing::warn!(%error, container_id = %id, "a shim that containerd has forgotten may remain");
        }
    }

    fn shim_of(&self, name: &str) -> ShimOf {
        ShimOf {
            socket: self.connection.socket().to_owned(),
            namespace: self.connection.namespace().to_owned(),
            container: name.to_owned(),
        }
    }

    async fn try_delete(&self, name: &str) -> Result<Option<ExitStatus>, Answer> {
        let Some(task) = self.get(name).await? else {
            return Ok(None);
        };
        if !matches!(task.status, TaskStatus::Stopped { .. }) {
            match self.kill(name, "", SIGKILL).await {
                Ok(()) | Err(Answer::NotFound) => {}
                Err(said) => return Err(said),
            }
            let request = self.connection.request(WaitRequest {
                container_id: name.to_owned(),
                ..WaitRequest::default()
            });
            let deadline = self.connection.plain();
            let waited = self
                .connection
                .answer(deadline, self.task_client().wait(request))
                .await;
            match waited {
                Ok(_) | Err(Answer::NotFound) => {}
                Err(said) => return Err(said),
            }
        }
        let deadline = self.connection.slow();
        let request = DeleteTaskRequest {
            container_id: name.to_owned(),
        };
        let request = self.connection.bounded_request(deadline, request);
        let deleted = self
            .connection
            .answer(deadline, self.task_client().delete(request))
            .await;
        match deleted.map(|response| response.into_inner()) {
            Ok(ended) => Ok(Some(ExitStatus {
                code: ended.exit_status,
                at: time(ended.exited_at),
            })),
            // Somebody else deleted it, or containerd did behind a dead shim.
            Err(Answer::NotFound) => Ok(None),
            Err(said) => Err(said),
        }
    }

    /// All tasks of the namespace.
    pub(super) async fn tasks(&self) -> Result<Vec<(String, TaskState)>, RuntimeError> {
        let request = self.connection.request(ListTasksRequest::default());
        let deadline = self.connection.slow();
        let listed = self
            .connection
            .answer(deadline, self.task_client().list(request))
            .await;
        let tasks = listed
            .map_err(|said| said.into_error("list", "tasks"))?
            .into_inner()
            .tasks;
        Ok(tasks
            .into_iter()
            .map(|process| {
                let state = state(&process);
                // `container_id` is empty in 1.6; a task's own id is its container's.
                (process.id, state)
            })
            .collect())
    }

    async fn task(&self, name: &str) -> Result<Option<TaskState>, RuntimeError> {
        self.get(name)
            .await
            .map_err(|said| said.into_error("ask for task", name))
    }

    async fn get(&self, name: &str) -> Result<Option<TaskState>, Answer> {
        let request = self.connection.request(GetRequest {
            container_id: name.to_owned(),
            ..GetRequest::default()
        });
        let deadline = self.connection.plain();
        match self
            .connection
            .answer(deadline, self.task_client().get(request))
            .await
        {
            Ok(response) => Ok(response.into_inner().process.as_ref().map(state)),
            Err(Answer::NotFound) => Ok(None),
            Err(said) => Err(said),
        }
    }

    /// Signals a process of a task: its first one, where `exec_id` is empty.
    pub(super) async fn kill(&self, name: &str, exec_id: &str, signal: u32) -> Result<(), Answer> {
        let request = self.connection.request(KillRequest {
            container_id: name.to_owned(),
            exec_id: exec_id.to_owned(),
            signal,
            ..KillRequest::default()
        });
        let deadline = self.connection.plain();
        self.connection
            .answer(deadline, self.task_client().kill(request))
            .await
            .map(drop)
    }

    pub(super) fn task_client(&self) -> TasksClient<Channel> {
        TasksClient::new(self.connection.channel())
    }
}

/// The container's cgroup as its spec says, when it is this container's own one below our parent.
fn own_cgroup(container: &Container, parent: &str, id: &str) -> Option<String> {
    let spec: serde_json::Value = serde_json::from_slice(&container.spec.as_ref()?.value).ok()?;
    let path = spec.pointer("/linux/cgroupsPath")?.as_str()?;
    let expected = format!("{}/{id}", parent.trim_end_matches('/'));
    (path == expected).then_some(expected)
}

fn state(process: &Process) -> TaskState {
    TaskState {
        pid: process.pid,
        status: match process.status() {
            ProcessStatus::Created => TaskStatus::Created,
            ProcessStatus::Running | ProcessStatus::Paused | ProcessStatus::Pausing => {
                TaskStatus::Running
            }
            ProcessStatus::Stopped => TaskStatus::Stopped {
                code: process.exit_status,
            },
            ProcessStatus::Unknown => TaskStatus::Unknown,
        },
    }
}

/// A timestamp of a shim; now, when it is absent or before 1970.
pub(super) fn time(stamp: Option<Timestamp>) -> SystemTime {
    stamp
        .and_then(|stamp| SystemTime::try_from(stamp).ok())
        .unwrap_or_else(SystemTime::now)
}

/// Options of the runc shim, when one of them is not the default: `shim_cgroup`, field 3, and
/// `binary_name`, field 6 of `containerd.runc.v1.Options` (containerd
/// api/types/runc/options/oci.proto). Its other defaults
/// are what we want, `systemd_cgroup = false` among them. containerd-client does not generate that
/// message, and two string fields do not justify a code generator.
pub(super) fn runc_options(runtime: &config::Runtime, shim_cgroup: Option<&str>) -> Option<Any> {
    let binary = runtime.binary.as_ref().and_then(|path| path.to_str());
    let fields = [(3, shim_cgroup), (6, binary)];
    if fields.iter().all(|(_, text)| text.is_none()) {
        return None;
    }
    let mut value = Vec::new();
    for (field, text) in fields {
        let Some(text) = text else { continue };
        value.push(field << 3 | 2);
        let mut length = text.len();
        while length >= 0x80 {
            value.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        value.push(length as u8);
        value.extend_from_slice(text.as_bytes());
    }
    Some(Any {
        type_url: "containerd.runc.v1.Options".to_owned(),
        value,
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn options(binary: Option<&str>, shim_cgroup: Option<&str>) -> Option<Any> {
        let runtime = config::Runtime {
            shim: "io.containerd.runc.v2".to_owned(),
            binary: binary.map(PathBuf::from),
            cgroup_parent: "/nodeagent".to_owned(),
            scope: config::UseScope::Never,
            container_init: PathBuf::from("/usr/lib/nodeagent/container-init"),
        };
        runc_options(&runtime, shim_cgroup)
    }

    #[test]
    fn runc_options_are_the_shims_cgroup_in_field_3_and_the_binary_in_field_6() {
        assert_eq!(options(None, None), None);
        let both = options(Some("/crun"), Some("/s")).unwrap();
        assert_eq!(both.value, b"\x1a\x02/s\x32\x05/crun");
        let any = options(Some("/usr/bin/crun"), None).unwrap();
        assert_eq!(any.type_url, "containerd.runc.v1.Options");
        assert_eq!(any.value, b"\x32\x0d/usr/bin/crun");
        let long = format!("/{}", "d".repeat(199));
        let value = options(Some(&long), None).unwrap().value;
        assert_eq!(&value[..3], [0x32, 0xc8, 0x01]);
        assert_eq!(&value[3..], long.as_bytes());
    }
}
