//! What is true on this host now: `GET /v1/status`.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Alarm, InstanceError, Timestamp, WarmTargets};

/// The host and its pools.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The host and the agent on it.
    pub host: HostStatus,
    /// One pool for each app, by name.
    pub pools: Vec<Pool>,
    /// Every alarm that stands, those of pools too.
    #[serde(default)]
    pub alarms: Vec<Alarm>,
}

/// The host and the agent on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostStatus {
    /// Stable id of the host.
    pub id: String,
    /// Fleet that it belongs to.
    pub fleet: String,
    /// Version of the agent.
    pub version: String,
    /// The kernel's boot id (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// Epoch of the journal; it grows only when a journal was lost.
    pub epoch: u64,
    /// True once the journal is loaded and every pool is observed.
    pub ready: bool,
    /// When this agent process started.
    pub started_at: Timestamp,
    /// Whether containerd answers.
    pub containerd: ContainerdStatus,
    /// The discovery backends, those first that being in service depends on.
    #[serde(default)]
    pub discovery: Vec<DiscoveryStatus>,
}

/// One discovery backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiscoveryStatus {
    /// `file` or `etcd`.
    pub name: String,
    /// Whether an instance is active only with its acknowledgement.
    pub required: bool,
    /// Whether it takes writes.
    pub state: DiscoveryState,
    /// Since when; absent where the backend cannot be away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Why it takes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Failed attempts in a row.
    pub failures: u64,
    /// The server that is spoken to, or was last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Registrations in place, where the backend counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registered: Option<u64>,
    /// The lease that keeps the registrations alive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseStatus>,
}

/// Whether a discovery backend takes writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum DiscoveryState {
    /// It does.
    Serving,
    /// The first attempt to reach it is under way.
    Connecting,
    /// It cannot be reached.
    Away,
    /// It refuses this agent: user, password or rights.
    Refused,
    /// It serves another agent with this host's id.
    Fenced,
}

/// The host's lease at a discovery backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LeaseStatus {
    /// Its id in hexadecimal, as etcdctl spells it.
    pub id: String,
    /// Its time to live; it is renewed at a third of that.
    pub ttl_seconds: u64,
    /// When it was granted or renewed last.
    pub renewed_at: Timestamp,
    /// Grants and renewals since the agent began.
    pub renewals: u64,
    /// Leases that were found gone since the agent began.
    pub lost: u64,
}

/// Whether containerd answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ContainerdStatus {
    /// As of the last call.
    pub reachable: Reachability,
    /// Version as containerd tells it, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// Whether a peer answered the last time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Reachability {
    /// It answered.
    Yes,
    /// It did not.
    No,
    /// It was not asked yet.
    Unknown,
}

/// All instances of one app on this host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// The app.
    pub app: String,
    /// Revision that new instances are made from.
    pub revision: String,
    /// Labels of that revision, `set` and `lane` among them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Wanted active instances.
    pub target: u32,
    /// Sequence number of the target.
    pub target_seq: u64,
    /// Instances in service.
    pub active: u32,
    /// Instances on their way into service, or out of it until they are ready again.
    pub starting: u32,
    /// Instances that wait at the gate.
    pub armed: u32,
    /// Instances on their way to the gate.
    pub arming: u32,
    /// Instances on their way out of service.
    pub draining: u32,
    /// Instances that failed.
    pub failed: u32,
    /// Wanted instances at each warmth, beyond those in service.
    pub warm: WarmTargets,
    /// Why somebody should look; absent when nobody needs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alarm: Option<String>,
    /// By ordinal.
    #[serde(default)]
    pub instances: Vec<Instance>,
}

/// One instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    /// `<app>-<ordinal>`.
    pub name: String,
    /// Where it stands in its life.
    pub state: InstanceState,
    /// Generation of its present incarnation.
    pub generation: u64,
    /// Generation of the create that its container comes from; absent without a container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create_generation: Option<u64>,
    /// Revision that it was made from.
    pub revision: String,
    /// Its address, once it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Ports of the host that lead to it: `tcp 20000 -> 8080`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<String>,
    /// The task that last moved it; absent for the agent's own work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_id: Option<String>,
    /// When it entered the state.
    pub since: Timestamp,
    /// Why it failed, or is not registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<InstanceError>,
}

/// The life of an instance as the outside sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum InstanceState {
    /// Known from the journal, not yet observed after the agent's start.
    Unverified,
    /// Nothing of it exists.
    Absent,
    /// Snapshot, network, cgroup and spec exist; no process.
    Staged,
    /// On its way to the gate.
    Arming,
    /// container-init runs, the app is held at the gate.
    Armed,
    /// The app booted before its activation.
    Booted,
    /// Booted, and its cgroup is frozen.
    Frozen,
    /// The app was let go and is not ready yet.
    Starting,
    /// Ready, not registered (yet, or because a backend does not acknowledge).
    Ready,
    /// Registered with every required backend.
    Active,
    /// Active, and frozen for an instant by the pressure reflex.
    Held,
    /// It stopped being ready: deregistered until it is again.
    Unready,
    /// Its app is started again in its container: leaving discovery, out of it, or not executed yet.
    Restarting,
    /// Deregistered, still serving what clients send.
    Draining,
    /// Told to stop.
    Stopping,
    /// Its processes ended.
    Stopped,
    /// Stopped, its identity kept.
    Shelved,
    /// It failed; back-off or an alarm follows.
    Failed,
}

impl InstanceState {
    /// As spelt in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unverified => "unverified",
            Self::Absent => "absent",
            Self::Staged => "staged",
            Self::Arming => "arming",
            Self::Armed => "armed",
            Self::Booted => "booted",
            Self::Frozen => "frozen",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Active => "active",
            Self::Held => "held",
            Self::Unready => "unready",
            Self::Restarting => "restarting",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Shelved => "shelved",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for InstanceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
