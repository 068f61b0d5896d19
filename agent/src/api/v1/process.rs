//! The processes of an instance: `GET /v1/instances/{name}/processes`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::InstanceState;

/// Every process in an instance, and what its container-init knows of those of the manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProcessList {
    /// Name of the instance.
    pub instance: String,
    /// Its container: `web-0.g7`.
    pub container: String,
    /// What the instance does.
    pub state: InstanceState,
    /// Whether its processes are frozen: then container-init tells nothing, and `supervised` is
    /// empty.
    pub frozen: bool,
    /// What its memory cgroup counts; absent where none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<InstanceMemory>,
    /// The processes of the manifest in the order of their start, the app last, whether they run or
    /// not.
    pub supervised: Vec<SupervisedProcess>,
    /// What runs, each behind its parent.
    pub processes: Vec<Process>,
    /// How many more run than are listed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub omitted: u64,
}

/// Memory of an instance, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceMemory {
    /// In use, with what the kernel keeps of files.
    pub current_bytes: u64,
    /// The most there ever was in this container; absent where the kernel does not keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_bytes: Option<u64>,
    /// Absent without a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<u64>,
    /// How many of its processes were killed for memory.
    pub oom_kills: u64,
}

/// A process of the manifest, as container-init knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SupervisedProcess {
    /// `app`, or the in-container agent's name.
    pub name: String,
    /// What it does.
    pub state: SupervisedState,
    /// Pid in the instance; absent when it does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// How often it was started again.
    pub restarts: u32,
    /// Milliseconds since its last start; absent when it was never started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
    /// How it ended the last time; absent when it never did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<ProcessExit>,
}

/// How a process ended: one of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ProcessExit {
    /// With this code.
    Code(u8),
    /// By this signal.
    Signal(u8),
}

/// What a process of the manifest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum SupervisedState {
    /// Its turn has not come; for the app: held at the gate.
    Waiting,
    /// It runs and has not said, or shown, that it is ready. Also an app that the agent probes.
    Starting,
    /// It runs and is ready.
    Ready,
    /// It ended and will be started again.
    BackingOff,
    /// It was told to stop and still runs.
    Stopping,
    /// It ended for good.
    Ended,
    /// It is being restarted on request.
    Restarting,
}

/// A process in an instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Pid in the instance; absent for one that is not in its pid namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Pid on the host.
    pub host_pid: u32,
    /// Its parent's pid on the host; absent when the parent is outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_host_pid: Option<u32>,
    /// Name in the manifest, `container-init` for pid 1; absent for what those have started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Name of the program, 15 bytes of it.
    pub program: String,
    /// Program and arguments.
    pub command: String,
    /// What it does.
    pub state: ProcessState,
    /// Threads.
    pub threads: u32,
    /// Processor time in milliseconds.
    pub cpu_ms: u64,
    /// Processor time as a share of its age, in per cent of one core.
    pub cpu_percent: f64,
    /// Milliseconds since its start.
    pub age_ms: u64,
    /// Resident memory.
    pub rss_bytes: u64,
    /// Resident memory with what is shared divided among those who share it; absent where it could
    /// not be read, or not in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pss_bytes: Option<u64>,
}

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ProcessState {
    /// Runs, or could.
    Running,
    /// Waits.
    Sleeping,
    /// Waits for a device, and hears no signals.
    Uninterruptible,
    /// Stopped.
    Stopped,
    /// Ended, and not yet collected by its parent.
    Zombie,
    /// Something else.
    Other,
}

impl SupervisedState {
    /// As in documents and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::BackingOff => "backing off",
            Self::Stopping => "stopping",
            Self::Ended => "ended",
            Self::Restarting => "restarting",
        }
    }
}

impl ProcessState {
    /// As in documents and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Sleeping => "sleeping",
            Self::Uninterruptible => "uninterruptible",
            Self::Stopped => "stopped",
            Self::Zombie => "zombie",
            Self::Other => "other",
        }
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}
