//! The validated app. Names and meanings are Kubernetes' wherever Kubernetes has the thing.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{AgentRestart, Conduct, Dns, EnvFile, HostAlias, Rewrite, Security, Ulimit};
use crate::instance::AppName;

/// An app that may be created: every field was validated, every default applied.
#[derive(Debug, Clone, PartialEq)]
pub struct App {
    /// `metadata.name`.
    pub name: AppName,
    /// `metadata.labels`, carried into discovery metadata.
    pub labels: BTreeMap<String, String>,
    /// Image reference as written, for example `127.0.0.1:5000/web:1`.
    pub image: String,
    /// Replaces the image's entrypoint when not empty.
    pub command: Vec<String>,
    /// Replaces the image's cmd when not empty.
    pub args: Vec<String>,
    /// Files of the host with further variables; `env` wins over them, later ones over earlier.
    pub env_from: Vec<EnvFile>,
    /// Environment in order; later entries win over the image's.
    pub env: Vec<(String, String)>,
    /// Absolute path; the image's when absent.
    pub working_dir: Option<String>,
    /// Who the app runs as; the image's user when absent.
    pub user: Option<User>,
    /// Name of the container in its own eyes; the instance's name when absent. In the host's
    /// network it is the host's in any case.
    pub hostname: Option<String>,
    /// Further entries of `/etc/hosts`.
    pub host_aliases: Vec<HostAlias>,
    /// Where the container asks for names.
    pub dns: Dns,
    /// Ports that the app listens on.
    pub ports: Vec<Port>,
    /// Limits of the instance's cgroup.
    pub resources: Resources,
    /// What its processes may do.
    pub security: Security,
    /// Limits of each process, by number.
    pub ulimits: Vec<Ulimit>,
    /// How the app's process runs and is asked to end.
    pub conduct: Conduct,
    /// Signals that reach container-init from outside, and what reaches the app instead.
    pub signals: Vec<Rewrite>,
    /// Exit codes of the container that become others.
    pub exit_codes: Vec<Rewrite>,
    /// What holds the other probes until it has passed once.
    pub startup: Option<VitalProbe>,
    /// How we learn that the app is ready, and whether it still is.
    pub readiness: Readiness,
    /// What has to go on passing while the app is in service.
    pub liveness: Option<VitalProbe>,
    /// In-container processes that run before the app, as written; [`App::start_order`].
    pub agents: Vec<Agent>,
    /// Volumes where they are mounted, parents before what lies below them.
    pub mounts: Vec<VolumeMount>,
    /// Files of the host that are copied into the container's memory.
    pub secret_files: Vec<SecretFile>,
    /// Whether another instance takes the place of one that ended.
    pub restart: RestartPolicy,
    /// What is removed before the app is started again in its container.
    pub clean: Clean,
    /// How many instances wait at each warmth.
    pub warm: Warm,
    /// How the instance is made known.
    pub registration: Registration,
    /// Network of the instance.
    pub network: NetworkMode,
    /// `terminationGracePeriodSeconds`: the whole budget between TERM and KILL. Default 30 s.
    pub termination_grace: Duration,
    /// `drainSeconds`: cap of the drain, counted from deregistration. Default 30 s.
    pub drain: Duration,
}

impl App {
    /// The fixed host ports: what only one instance of a host can have.
    pub fn fixed_host_ports(&self) -> impl Iterator<Item = (usize, &Port, u16)> {
        self.ports
            .iter()
            .enumerate()
            .filter_map(|(index, port)| match port.host_port {
                Some(HostPortWish::Fixed(number)) => Some((index, port, number)),
                _ => None,
            })
    }

    /// The paths that are cleaned before it is started again in its container.
    pub fn cleaned(&self) -> Vec<&str> {
        let read_only_root = self.security.read_only_root;
        let own = |path: &&str| {
            let volume = self.mounts.iter().any(|mount| lies_in(&mount.path, path));
            let unwritable = read_only_root && *path == "/tmp";
            !volume && !unwritable
        };
        match &self.clean {
            Clean::Default => ["/tmp", "/dev/shm", SYSV_IPC]
                .into_iter()
                .filter(own)
                .collect(),
            Clean::Paths(paths) => paths.iter().map(String::as_str).collect(),
        }
    }

    /// The readiness probe that goes on in service; `None` when readiness is not probed.
    pub fn steady_readiness(&self) -> Option<&Probe> {
        match &self.readiness {
            Readiness::Probe(probe) => Some(probe),
            Readiness::Notify { .. } | Readiness::NotificationFd { .. } | Readiness::None => None,
        }
    }

    /// Whether container-init says when the app has become ready: it hears it from the app, or
    /// waits for the first pass of a command. It waits for one command in a start, and for the
    /// startup probe's first.
    pub fn is_ready_by_init(&self) -> bool {
        match &self.readiness {
            Readiness::Notify { .. } | Readiness::NotificationFd { .. } => true,
            Readiness::Probe(probe) => {
                probe.look.is_command()
                    && probe.timing.success_threshold == 1
                    && self.startup_command().is_none()
            }
            Readiness::None => false,
        }
    }

    /// The startup probe that container-init makes itself: a command.
    pub fn startup_command(&self) -> Option<(&[String], ProbeTiming)> {
        match &self.startup.as_ref()?.probe {
            Probe {
                look: Look::Exec { command },
                timing,
            } => Some((command, *timing)),
            _ => None,
        }
    }

    /// Whether its processes have cgroups of their own inside the container's.
    pub fn divides_cgroup(&self) -> bool {
        self.agents.iter().any(|agent| agent.resources.is_some())
    }

    /// Whether the end for good of the in-container agent of this name is the end of the instance.
    pub fn is_essential_agent(&self, name: &str) -> bool {
        let mut agents = self.agents.iter();
        agents.any(|agent| agent.name == name && agent.essential == Essential::Yes)
    }
}

/// Whether the path `inner` is `outer` or lies below it.
pub(super) fn lies_in(outer: &str, inner: &str) -> bool {
    inner
        .strip_prefix(outer)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether another instance takes the place of one whose app ended, or was ended because its
/// probes failed. Where none does, the target falls by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RestartPolicy {
    /// However it ended.
    #[default]
    Always,
    /// Unless the app ended by itself with code 0.
    OnFailure,
    /// No: an app that was started is not started again.
    Never,
}

impl RestartPolicy {
    /// The words of the manifest, which are Kubernetes'.
    pub const ALL: [Self; 3] = [Self::Always, Self::OnFailure, Self::Never];

    /// As in the manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::OnFailure => "OnFailure",
            Self::Never => "Never",
        }
    }
}

/// What is removed before an app is started again in its container: directories are emptied, files
/// removed, and [`SYSV_IPC`] stands for the System V IPC objects of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Clean {
    /// `/tmp`, `/dev/shm` and [`SYSV_IPC`], but nothing at or below a volume, and no `/tmp` of a
    /// root file system that nobody can write.
    Default,
    /// These absolute paths, in this order; none when empty.
    Paths(Vec<String>),
}

/// Stands for the System V IPC objects of a container among the paths that are cleaned.
pub const SYSV_IPC: &str = "/proc/sysvipc";

/// Numeric or named user, resolved against the image's `/etc/passwd` when named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User as written before the colon: a uid or a name.
    pub user: String,
    /// Group as written after the colon: a gid or a name.
    pub group: Option<String>,
}

/// A port that the app listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Name by which probes and registration refer to it.
    pub name: Option<String>,
    /// 1..=65535.
    pub container_port: u16,
    /// Transport.
    pub protocol: Protocol,
    /// Which port of the host leads to it, if any.
    pub host_port: Option<HostPortWish>,
    /// The host's address that the host port is on; absent, all of them.
    pub host_ip: Option<Ipv4Addr>,
}

/// Transport of a port.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Which port of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostPortWish {
    /// This one; one instance of the host can have it.
    Fixed(u16),
    /// One of the host's range, another one for each instance.
    Auto,
}

/// Limits of an instance. Absent means unlimited, except memory and pids, which have defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resources {
    /// CPU limit in thousandths of a core (`500m` = 500).
    pub cpu_millis: Option<u64>,
    /// Memory limit in bytes. Default 512 MiB: an instance without a limit can take the host.
    pub memory_bytes: u64,
    /// Tasks (processes and threads). Default 1024.
    pub pids: u64,
}

/// How we learn that a process is ready.
#[derive(Debug, Clone, PartialEq)]
pub enum Readiness {
    /// Started is ready.
    None,
    /// The process says `READY=1` on `NOTIFY_SOCKET` (sd_notify(3)); no probe.
    Notify {
        /// How long it may take before the start counts as failed.
        timeout: Duration,
    },
    /// The process writes a newline to this descriptor (s6's `notification-fd`); no probe.
    NotificationFd {
        /// Number of the descriptor in the process, 3..=255.
        fd: u32,
        /// How long it may take before the start counts as failed.
        timeout: Duration,
    },
    /// A probe passes.
    Probe(Probe),
}

/// A look at a process, and when to look.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// What is done.
    pub look: Look,
    /// When, and how often it has to pass or fail.
    pub timing: ProbeTiming,
}

/// What a probe does.
#[derive(Debug, Clone, PartialEq)]
pub enum Look {
    /// A connection to the port succeeds.
    Tcp {
        /// Port number, resolved from a name.
        port: u16,
        /// Instead of the instance's own address.
        host: Option<IpAddr>,
    },
    /// A GET answers 200..=399.
    Http {
        /// Port number, resolved from a name.
        port: u16,
        /// Instead of the instance's own address.
        host: Option<IpAddr>,
        /// With or without TLS.
        scheme: Scheme,
        /// Request target, beginning with `/`.
        path: String,
        /// Extra request headers.
        headers: Vec<(String, String)>,
    },
    /// The command exits 0; run by container-init inside the container, as the process's user.
    Exec {
        /// argv, not a shell line.
        command: Vec<String>,
    },
}

impl Look {
    /// Whether it is made inside, by a command.
    pub fn is_command(&self) -> bool {
        matches!(self, Self::Exec { .. })
    }
}

/// `scheme` of an HTTP probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Plain.
    Http,
    /// TLS; the certificate is not verified, as in Kubernetes.
    Https,
}

/// Kubernetes' probe fields. The first probes after a start come faster than `period`
/// (1, 2, 4, ... ms up to `period`), because an activation waits for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeTiming {
    /// `initialDelaySeconds`, default 0.
    pub initial_delay: Duration,
    /// `periodSeconds`, default 10.
    pub period: Duration,
    /// `timeoutSeconds` of one probe, default 1.
    pub timeout: Duration,
    /// `successThreshold`, default 1: passes in a row after a failure.
    pub success_threshold: u32,
    /// `failureThreshold`, default 3: failures in a row. With `period` it bounds a whole start:
    /// `initial_delay + period * failure_threshold`.
    pub failure_threshold: u32,
}

/// A probe whose failure ends the instance: of `startup` or `liveness`.
#[derive(Debug, Clone, PartialEq)]
pub struct VitalProbe {
    /// The look and its timing.
    pub probe: Probe,
    /// `terminationGracePeriodSeconds` of the stop after its failure; the app's when absent.
    pub termination_grace: Option<Duration>,
}

impl ProbeTiming {
    /// The longest that a start may take until the probe passes.
    pub fn deadline(&self) -> Duration {
        self.initial_delay + self.period * self.failure_threshold
    }
}

impl Readiness {
    /// The longest that a start may take until ready, as the fields say.
    pub fn deadline(&self) -> Duration {
        match self {
            Self::None => Duration::from_secs(30),
            Self::Notify { timeout } | Self::NotificationFd { timeout, .. } => *timeout,
            Self::Probe(probe) => probe.timing.deadline(),
        }
    }
}

/// An in-container process that runs before the app (a sidecar).
#[derive(Debug, Clone, PartialEq)]
pub struct Agent {
    /// Unique among the agents; `app` is taken by the app.
    pub name: String,
    /// argv; an absolute path or a name found in the container's PATH.
    pub command: Vec<String>,
    /// Environment, added to the container's.
    pub env: Vec<(String, String)>,
    /// Who it runs as; the app's user when absent.
    pub user: Option<User>,
    /// Absolute path; the app's when absent.
    pub working_dir: Option<String>,
    /// Limits instead of the app's, by number.
    pub ulimits: Vec<Ulimit>,
    /// How it runs and is asked to end.
    pub conduct: Conduct,
    /// Its own time between the stop signal and KILL, inside the instance's; all of that when
    /// absent.
    pub termination_grace: Option<Duration>,
    /// Indices of the agents that have to be ready before it starts.
    pub after: Vec<usize>,
    /// When those that wait for it may start: none, notify, a newline, tcp (on loopback) or exec.
    pub readiness: Readiness,
    /// Whether its end for good ends the instance.
    pub essential: Essential,
    /// Whether it is started again.
    pub restart: AgentRestart,
    /// Exit code of the container when the end of this agent ends it; its own when absent.
    pub exit_code: Option<u8>,
    /// Limits of its own, inside the instance's.
    pub resources: Option<AgentResources>,
}

/// Limits of one in-container agent, by a cgroup of its own in the container's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AgentResources {
    /// CPU limit in thousandths of a core.
    pub cpu_millis: Option<u64>,
    /// Memory limit in bytes.
    pub memory_bytes: Option<u64>,
    /// Tasks (processes and threads).
    pub pids: Option<u64>,
}

/// Whether the end of an in-container agent ends the instance: an end after which it is not started
/// again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Essential {
    /// It is the instance's end.
    Yes,
    /// The app is not disturbed.
    No,
}

/// A volume at its place in the container. Never set-user-ID, never devices, never propagated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeMount {
    /// Name of the volume.
    pub name: String,
    /// What it is.
    pub volume: Volume,
    /// Absolute path inside.
    pub path: String,
    /// Whether it may be written.
    pub access: Access,
}

/// What a volume is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Volume {
    /// A file or directory of the host, below one of its `volumes.allowed_host_paths`.
    HostPath {
        /// Absolute, without `.` and `..`.
        path: String,
        /// What has to be there; anything when absent.
        kind: Option<HostPathKind>,
    },
    /// An empty directory that goes with the container.
    EmptyDir,
    /// A tmpfs that goes with the container.
    Memory {
        /// Bytes; the instance's memory limit when absent.
        size: Option<u64>,
    },
    /// A directory that stays with the instance's name, over containers and revisions.
    InstanceDirectory,
}

/// `type` of a `hostPath`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostPathKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
}

/// Whether a mount may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It may.
    ReadWrite,
    /// Not even by root.
    ReadOnly,
}

/// A file of the host, of root and readable by nobody else, that the app finds in
/// [`SECRETS`] as its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretFile {
    /// Name of the file in there.
    pub name: String,
    /// Absolute path on the host.
    pub source: String,
    /// Permission bits of the copy.
    pub mode: u32,
}

/// Where an app finds its secret files.
pub const SECRETS: &str = "/run/secrets";

/// How many instances wait at each warmth, beyond those in service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Warm {
    /// Containers that wait at the gate.
    pub armed: u32,
}

/// How an instance is made known to clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Whether the app is registered at all.
    pub enabled: bool,
    /// Service name in discovery; the app's name by default.
    pub service: String,
    /// Which address is registered; absent, the instance's where the host says that clients reach
    /// it. In the host's network it is the host's in any case.
    pub address: Option<RegisteredAddress>,
    /// Registered port, resolved from a name; the first of `ports` by default.
    pub port: u16,
    /// Weight at full service, 1..=1000, default 100.
    pub weight: u32,
    /// Free metadata for the backend.
    pub metadata: BTreeMap<String, String>,
}

/// Which address goes into discovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegisteredAddress {
    /// The instance's own.
    Instance,
    /// The host's.
    Host,
}

/// Network of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkMode {
    /// Own network namespace, veth, one address from the pool.
    Routed,
    /// The host's network namespace.
    Host,
}
