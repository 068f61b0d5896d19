//! What the processes of an app may do, and how much of what the kernel counts: `securityContext`
//! and `ulimits`.

use super::{App, CapabilitySet, User};
use crate::document::Finding;
use crate::instance::ImageConfig;

/// `securityContext`, for the app and its agents; without who they run as, which is
/// [`App::user`](super::App::user).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Security {
    /// `runAsNonRoot`: nothing of the manifest runs as uid 0.
    pub non_root: bool,
    /// `supplementalGroups`, beside those that the image gives the user.
    pub supplemental_groups: Vec<u32>,
    /// `fsGroup`: a supplementary group, and the group of `emptyDir` and `instanceDirectory`.
    pub fs_group: Option<u32>,
    /// `readOnlyRootFilesystem`.
    pub read_only_root: bool,
    /// `allowPrivilegeEscalation`: whether executing a program may give more rights (set-user-ID).
    pub privilege_escalation: bool,
    /// The bounding set, and what root has.
    pub capabilities: CapabilitySet,
    /// Which system calls may be made.
    pub seccomp: Seccomp,
    /// Settings of the container's own namespaces, by name.
    pub sysctls: Vec<(String, String)>,
}

impl Default for Security {
    fn default() -> Self {
        Self {
            non_root: false,
            supplemental_groups: Vec::new(),
            fs_group: None,
            read_only_root: false,
            privilege_escalation: false,
            capabilities: CapabilitySet::STANDARD,
            seccomp: Seccomp::RuntimeDefault,
            sysctls: Vec::new(),
        }
    }
}

/// `seccompProfile`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seccomp {
    /// The agent's profile.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// This file below the host's `security.seccomp_profiles`.
    Localhost(String),
}

/// A limit of setrlimit(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ulimit {
    /// Name as in Docker, for example `nofile`.
    pub name: &'static str,
    /// `RLIMIT_` number.
    pub resource: u32,
    /// What counts; `u64::MAX` is unlimited.
    pub soft: u64,
    /// Up to where a process may raise it; `u64::MAX` is unlimited.
    pub hard: u64,
}

/// Sysctls that every app may set, because they reach nobody else: Kubernetes' safe list.
pub const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// Whether the sysctl belongs to a namespace that a container has of its own (the list of runc's
/// `configs/validate`).
pub fn is_namespaced(sysctl: &str) -> bool {
    const OF_IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shm_rmid_forced",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
    ];
    OF_IPC.contains(&sysctl) || sysctl.starts_with("fs.mqueue.") || sysctl.starts_with("net.")
}

/// What the image makes of the app that the manifest does not allow.
pub fn check_against_image(app: &App, image: &ImageConfig) -> Vec<Finding> {
    let of_image = image.user.as_deref().unwrap_or("");
    let user = of_image.split(':').next().unwrap_or("");
    let as_root = app.user.is_none() && matches!(user, "" | "0" | "root");
    if !app.security.non_root || !as_root {
        return Vec::new();
    }
    let sentence = "an image that does not run as root, or a user here: spec.user or spec.securityContext.runAsUser";
    let field = "spec.securityContext.runAsNonRoot";
    vec![Finding::new(field, Some("true".to_owned()), sentence)]
}

impl User {
    /// Whether it says root without a look into the image.
    pub fn is_root(&self) -> bool {
        self.user == "root" || self.user.parse() == Ok(0_u32)
    }
}
