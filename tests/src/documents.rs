//! The agent's JSON documents as a caller reads them.
//!
//! Written from the documentation, not from the agent's own types, so that a renamed field breaks
//! a scenario. Only what scenarios read; states and codes are text, as on the wire.

use serde::Deserialize;

/// What `activate`, `deactivate`, `scale`, `roll` and `restart` print.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Task {
    /// The caller's name of it.
    pub task_id: String,
    /// The app.
    pub app: String,
    /// `activate`, `deactivate`, `scale`, `roll` or `restart`.
    pub verb: String,
    /// What was asked for.
    pub to: u32,
    /// `running`, `done`, `partial`, `failed` or `superseded`.
    pub state: String,
    /// The pool's target as this task left it.
    pub target: u32,
    /// Sequence number of that target.
    pub target_seq: u64,
    /// Whether this is the recorded answer to an earlier request.
    pub replayed: bool,
    /// The instances it chose.
    pub instances: Vec<TaskInstance>,
    /// Active instances when it ended.
    pub active: u32,
    /// Milliseconds from the request to the durable outcome.
    pub elapsed_ms: f64,
    /// A sentence.
    pub detail: Option<String>,
    /// What is true now, when `replayed`.
    pub current: Option<Current>,
}

/// One instance of a task.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskInstance {
    /// `<app>-<ordinal>`.
    pub name: String,
    /// Its state when the task ended.
    pub state: String,
    /// The warmth that served it.
    pub from: String,
    /// Its generation.
    pub generation: u64,
    /// Its address.
    pub address: Option<String>,
    /// Registered port.
    pub port: Option<u16>,
    /// Why it is not where the task wanted it.
    pub error: Option<InstanceError>,
}

/// What went wrong with an instance.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceError {
    /// For programs.
    pub code: String,
    /// For people.
    pub detail: String,
}

/// What is true of a pool at the moment of an answer.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Current {
    /// Wanted active instances.
    pub target: u32,
    /// Instances in service.
    pub active: u32,
}

/// What `status` prints.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The host.
    pub host: HostStatus,
    /// By app.
    pub pools: Vec<Pool>,
    /// Those that stand.
    pub alarms: Vec<Alarm>,
}

/// Something that somebody should look at.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Alarm {
    /// For programs.
    pub code: String,
    /// The discovery backend that it is about.
    pub backend: Option<String>,
    /// For people.
    pub detail: String,
}

/// The host in a status.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostStatus {
    /// Id of the host.
    pub id: String,
    /// Whether everything is observed.
    pub ready: bool,
    /// The discovery backends.
    pub discovery: Vec<Backend>,
}

/// A discovery backend in a status.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// `file` or `etcd`.
    pub name: String,
    /// Whether an instance is active only with its acknowledgement.
    pub required: bool,
    /// `serving`, `connecting`, `away`, `refused` or `fenced`.
    pub state: String,
    /// Why it takes no writes.
    pub error: Option<String>,
    /// Failed attempts in a row.
    pub failures: u64,
    /// The server that is spoken to.
    pub endpoint: Option<String>,
    /// Registrations in place.
    pub registered: Option<u64>,
    /// What keeps them alive.
    pub lease: Option<Lease>,
}

/// The host's lease at a backend.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    /// In hexadecimal.
    pub id: String,
    /// Grants and renewals since the agent began.
    pub renewals: u64,
    /// Leases that were found gone.
    pub lost: u64,
}

/// One app's instances in a status.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// The app.
    pub app: String,
    /// Revision of new instances.
    pub revision: String,
    /// Wanted active instances.
    pub target: u32,
    /// Its sequence number.
    pub target_seq: u64,
    /// In service.
    pub active: u32,
    /// On their way into service.
    pub starting: u32,
    /// At the gate.
    pub armed: u32,
    /// On their way to the gate.
    pub arming: u32,
    /// On their way out.
    pub draining: u32,
    /// Failed.
    pub failed: u32,
    /// Why somebody should look.
    pub alarm: Option<String>,
    /// By ordinal.
    pub instances: Vec<Instance>,
}

/// One instance in a status.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    /// `<app>-<ordinal>`.
    pub name: String,
    /// Where it stands.
    pub state: String,
    /// Present generation.
    pub generation: u64,
    /// Generation of the create of its container.
    pub create_generation: Option<u64>,
    /// Revision that it was made from.
    pub revision: String,
    /// Its address.
    pub address: Option<String>,
    /// Its ports on the host.
    #[serde(default)]
    pub host_ports: Vec<String>,
    /// The task that last moved it.
    pub task_id: Option<String>,
    /// Why it failed.
    pub error: Option<InstanceError>,
}

/// What `processes` prints.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessList {
    /// State of the instance.
    pub state: String,
    /// Whether nobody in it runs.
    pub frozen: bool,
    /// Its cgroup.
    pub memory: Option<InstanceMemory>,
    /// Of the manifest.
    pub supervised: Vec<SupervisedProcess>,
    /// All that run.
    pub processes: Vec<Process>,
}

/// Memory of an instance.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceMemory {
    /// In use.
    pub current_bytes: u64,
    /// The most there was.
    pub peak_bytes: Option<u64>,
    /// Of the manifest.
    pub limit_bytes: Option<u64>,
}

/// A process of the manifest.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SupervisedProcess {
    /// `app` or an agent's.
    pub name: String,
    /// What it does.
    pub state: String,
    /// Inside.
    pub pid: Option<u32>,
    /// How often it came again.
    pub restarts: u32,
    /// `{"code": 5}` or `{"signal": 9}`.
    pub last_exit: Option<serde_json::Value>,
}

/// A process that runs.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Inside.
    pub pid: Option<u32>,
    /// On the host.
    pub host_pid: u32,
    /// On the host.
    pub parent_host_pid: Option<u32>,
    /// In the manifest.
    pub name: Option<String>,
    /// Program and arguments.
    pub command: String,
    /// Threads.
    pub threads: u32,
    /// Processor time.
    pub cpu_ms: u64,
    /// Resident memory.
    pub rss_bytes: u64,
    /// The same with what is shared divided.
    pub pss_bytes: Option<u64>,
}

/// A refusal or failure (RFC 9457).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// For programs.
    pub code: String,
    /// What kind of problem it is.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// What is special about this one.
    pub detail: String,
    /// Each refused field.
    #[serde(default)]
    pub findings: Vec<Finding>,
}

/// One refused field.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// Its path.
    pub field: String,
    /// Its value, when it has one.
    #[serde(default)]
    pub value: Option<String>,
    /// What would have been accepted.
    pub allowed: String,
    /// Its line in the manifest.
    pub line: Option<usize>,
}

/// What `trace` prints.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trail {
    /// The task.
    pub task_id: String,
    /// Milliseconds from the first byte of the request to the last of the answer.
    pub answer_ms: Option<f64>,
    /// By start.
    pub steps: Vec<Step>,
}

/// One step of a trail.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Absent for steps of the whole task.
    pub instance: Option<String>,
    /// What was done.
    pub name: String,
    /// Milliseconds from the request to its start.
    pub start_ms: f64,
    /// Milliseconds that it took.
    pub duration_ms: f64,
    /// `ok`, `failed`, `retried` or `skipped`.
    pub outcome: String,
}

/// A target group of Prometheus' file_sd.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct TargetGroup {
    /// `address:port`.
    pub targets: Vec<String>,
    /// Labels of these targets.
    #[serde(default)]
    pub labels: std::collections::BTreeMap<String, String>,
}
