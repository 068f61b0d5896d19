//! The validated app. Names and meanings are Kubernetes' wherever Kubernetes has the thing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

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
    /// Environment in order; later entries win over the image's.
    pub env: Vec<(String, String)>,
    /// Absolute path; the image's when absent.
    pub working_dir: Option<String>,
    /// Who the app runs as; the image's user when absent.
    pub user: Option<User>,
    /// Ports that the app listens on.
    pub ports: Vec<Port>,
    /// Limits of the instance's cgroup.
    pub resources: Resources,
    /// What holds the other probes until it has passed once.
    pub startup: Option<VitalProbe>,
    /// How we learn that the app is ready, and whether it still is.
    pub readiness: Readiness,
    /// What has to go on passing while the app is in service.
    pub liveness: Option<VitalProbe>,
    /// In-container processes that run before the app, in order.
    pub agents: Vec<Agent>,
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
    /// The readiness probe that goes on in service; `None` when readiness is not probed from here.
    pub fn steady_readiness(&self) -> Option<&Probe> {
        match &self.readiness {
            Readiness::Probe(probe) if !matches!(probe.look, Look::Exec { .. }) => Some(probe),
            _ => None,
        }
    }

    /// Whether the end of the in-container agent of this name is the end of the instance.
    pub fn is_essential_agent(&self, name: &str) -> bool {
        let mut agents = self.agents.iter();
        agents.any(|agent| agent.name == name && agent.essential == Essential::Yes)
    }
}

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
            Self::Notify { timeout } => *timeout,
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
    /// When the next process may start: none, notify, tcp (on loopback) or exec.
    pub readiness: Readiness,
    /// Whether its end ends the instance.
    pub essential: Essential,
}

/// Whether the end of an in-container agent ends the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Essential {
    /// Its end is the instance's end.
    Yes,
    /// It is started again with back-off; the app is not disturbed.
    No,
}

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
