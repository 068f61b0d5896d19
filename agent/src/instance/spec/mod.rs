//! The OCI runtime spec of a container: what runc or crun is told.
//!
//! The process is always container-init as root with the app's capabilities and its own, and those
//! that it needs to set priorities and limits where the manifest has some; what the app itself may do is in the plan, which container-init carries out. The spec holds the walls:
//! namespaces, masked paths, seccomp, cgroup limits, mounts. [`build`] is pure: what it needs to
//! know about the host comes in [`HostFacts`]. Images, files and directories are not touched.

mod exec;
mod limits;
mod mounts;

use std::collections::HashMap;
use std::ffi::CStr;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use container_init::paths;
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capabilities, Capability, Linux, LinuxBuilder, LinuxCapabilities, LinuxCapabilitiesBuilder,
    LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxSeccomp, Process,
    ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};

pub use exec::command;
pub use limits::{CgroupVersion, HostFacts, RaisesLimits, SwapAccounting};

use super::{ContainerId, ImageConfig, seccomp};
use crate::app::{Access, App, CapabilitySet, NetworkMode, Seccomp, Ulimit};

/// `PATH` where the image says nothing.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Longest hostname, `__NEW_UTS_LEN` of the kernel.
const HOSTNAME_BYTES: usize = 64;
/// Said, or the container has what its shim has: -998 below a containerd that systemd protects, and
/// then the kernel ends the host's other processes before a container that takes all memory.
const OOM_SCORE_ADJ: i32 = 0;

/// What a spec is built from. All paths are absolute.
#[derive(Debug, Clone)]
pub struct SpecInput<'a> {
    /// The app: limits and network mode.
    pub app: &'a App,
    /// The image: its `PATH`.
    pub image: &'a ImageConfig,
    /// The container; last part of `cgroup_path`.
    pub id: &'a ContainerId,
    /// Hostname inside, at most 64 bytes.
    pub hostname: &'a str,
    /// File of the instance's network namespace; `None` for the host's.
    pub netns: Option<&'a Path>,
    /// `<parent>/<container id>`, the same in every hierarchy.
    pub cgroup_path: String,
    /// Host directory with container-init and the plan, read-only inside.
    pub bin_dir: &'a Path,
    /// Host directory for logs and the exit ring, writable inside.
    pub log_dir: &'a Path,
    /// Host directory with the agent's socket, read-only inside.
    pub ctl_dir: &'a Path,
    /// Files of `/etc`, volumes and secret files, in the order in which they are mounted.
    pub volumes: &'a [VolumeSource],
    /// The seccomp profile of an app that names a file.
    pub seccomp_profile: Option<LinuxSeccomp>,
    /// What the host can do.
    pub host: HostFacts,
}

/// A volume as the runtime gets it. Set-user-ID and devices have no effect on it, and mounts of
/// either side do not reach the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeSource {
    /// Absolute path inside.
    pub destination: String,
    /// Where its content is.
    pub content: Content,
    /// Whether it may be written.
    pub access: Access,
}

/// Where a volume's content is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// This file or directory of the host.
    Host(PathBuf),
    /// Memory.
    Memory {
        /// Bytes.
        size: u64,
        /// Whose it is, beside everybody's.
        group: Option<u32>,
    },
}

/// Why no spec was built.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// A path that must be absolute and without `..` is not.
    #[error("{what} {} is not an absolute path without \"..\"", path.display())]
    Path {
        /// Which path.
        what: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// The cgroup does not end in the container's id, by which it is recognised.
    #[error("cgroup path {path} does not end in the container id {id}")]
    CgroupName {
        /// The path as given.
        path: String,
        /// The container.
        id: ContainerId,
    },
    /// The hostname is empty, too long, or has a character that no hostname has.
    #[error(
        "hostname {hostname:?} is not allowed; allowed: 1 to 64 letters, digits, '-', '_' and '.'"
    )]
    Hostname {
        /// As given.
        hostname: String,
    },
    /// A network namespace was given for an app on the host's network, or none for another.
    #[error("app {app} has network {mode:?}, but its network namespace is {netns:?}")]
    Network {
        /// The app.
        app: String,
        /// Its mode.
        mode: NetworkMode,
        /// What was given.
        netns: Option<PathBuf>,
    },
    /// The app names a seccomp profile, and none was given.
    #[error("app {app} names a seccomp profile, which was not read")]
    Seccomp {
        /// The app.
        app: String,
    },
    /// oci-spec refused a part.
    #[error("cannot assemble the OCI spec")]
    Assemble(#[from] OciSpecError),
}

/// The runtime spec of the container `input.id`.
///
/// # Errors
/// [`SpecError`]; all variants but `Assemble` mean that the caller mixed something up.
pub fn build(input: &SpecInput<'_>) -> Result<Spec, SpecError> {
    check(input)?;
    let root = RootBuilder::default()
        .path("rootfs")
        .readonly(input.app.security.read_only_root)
        .build()?;
    let spec = SpecBuilder::default()
        .version("1.0.2")
        .root(root)
        .hostname(input.hostname)
        .process(process(input)?)
        .mounts(mounts::mounts(input)?)
        .linux(linux(input)?)
        .build()?;
    Ok(spec)
}

fn check(input: &SpecInput<'_>) -> Result<(), SpecError> {
    let cgroup = Path::new(&input.cgroup_path);
    for (what, path) in [
        ("bin directory", Some(input.bin_dir)),
        ("log directory", Some(input.log_dir)),
        ("ctl directory", Some(input.ctl_dir)),
        ("network namespace", input.netns),
        ("cgroup path", Some(cgroup)),
    ] {
        let Some(path) = path else { continue };
        let up = path.components().any(|part| part == Component::ParentDir);
        if !path.is_absolute() || up {
            return Err(SpecError::Path {
                what,
                path: path.to_owned(),
            });
        }
    }
    if cgroup
        .file_name()
        .is_none_or(|name| name != input.id.to_string().as_str())
    {
        return Err(SpecError::CgroupName {
            path: input.cgroup_path.clone(),
            id: input.id.clone(),
        });
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if !(1..=HOSTNAME_BYTES).contains(&input.hostname.len()) || !input.hostname.bytes().all(allowed)
    {
        return Err(SpecError::Hostname {
            hostname: input.hostname.to_owned(),
        });
    }
    let wants_own = input.app.network == NetworkMode::Routed;
    if wants_own != input.netns.is_some() {
        return Err(SpecError::Network {
            app: input.app.name.to_string(),
            mode: input.app.network,
            netns: input.netns.map(Path::to_owned),
        });
    }
    Ok(())
}

fn process(input: &SpecInput<'_>) -> Result<Process, SpecError> {
    let args = [paths::INIT, c"--plan", paths::PLAN].map(text);
    let path = input
        .image
        .env
        .iter()
        .rev()
        .find(|(name, _)| name == "PATH")
        .map_or(DEFAULT_PATH, |(_, value)| value);
    let all = input.app.security.capabilities.with(CapabilitySet::INIT);
    let to_set = input.app.to_set_conduct();
    let all = all.with(to_set.without(to_set.without(input.host.gives)));
    let agents = input.app.agents.iter().flat_map(|agent| &agent.ulimits);
    let of_agents: Vec<Ulimit> = agents.copied().collect();
    let process = ProcessBuilder::default()
        .terminal(false)
        .user(UserBuilder::default().uid(0_u32).gid(0_u32).build()?)
        .args(args)
        .env([
            format!("PATH={path}"),
            format!("HOSTNAME={}", input.hostname),
        ])
        .cwd("/")
        .no_new_privileges(!input.app.security.privilege_escalation)
        .capabilities(capabilities(all, all)?)
        .oom_score_adj(OOM_SCORE_ADJ)
        .rlimits(limits::process(
            &input.app.ulimits,
            &of_agents,
            &input.host,
        )?)
        .build()?;
    Ok(process)
}

fn text(path: &CStr) -> String {
    path.to_string_lossy().into_owned()
}

/// What a process can ever have, and what it begins with. Nothing is inheritable or ambient: a
/// capability must not survive the exec of a process that does not run as root (CVE-2022-24769).
fn capabilities(
    bounding: CapabilitySet,
    own: CapabilitySet,
) -> Result<LinuxCapabilities, OciSpecError> {
    let spelt = |set: CapabilitySet| -> Capabilities {
        let names = set.names();
        names
            .filter_map(|name| Capability::from_str(name).ok())
            .collect()
    };
    LinuxCapabilitiesBuilder::default()
        .bounding(spelt(bounding))
        .effective(spelt(own))
        .permitted(spelt(own))
        .inheritable(Capabilities::new())
        .ambient(Capabilities::new())
        .build()
}

fn linux(input: &SpecInput<'_>) -> Result<Linux, SpecError> {
    let mut linux = LinuxBuilder::default()
        .cgroups_path(&input.cgroup_path)
        .namespaces(namespaces(input)?)
        .resources(limits::resources(&input.app.resources, &input.host)?)
        .masked_paths(mounts::MASKED.map(str::to_owned))
        .readonly_paths(mounts::READ_ONLY.map(str::to_owned));
    let security = &input.app.security;
    if !security.sysctls.is_empty() {
        let sysctls: HashMap<String, String> = security.sysctls.iter().cloned().collect();
        linux = linux.sysctl(sysctls);
    }
    linux = match &security.seccomp {
        Seccomp::RuntimeDefault => linux.seccomp(seccomp::default_profile(security.capabilities)?),
        Seccomp::Unconfined => linux,
        Seccomp::Localhost(_) => {
            let profile = input.seccomp_profile.clone();
            linux.seccomp(profile.ok_or_else(|| SpecError::Seccomp {
                app: input.app.name.to_string(),
            })?)
        }
    };
    Ok(linux.build()?)
}

fn namespaces(input: &SpecInput<'_>) -> Result<Vec<LinuxNamespace>, OciSpecError> {
    let new = |typ| LinuxNamespaceBuilder::default().typ(typ).build();
    let mut namespaces = vec![
        new(LinuxNamespaceType::Pid)?,
        new(LinuxNamespaceType::Ipc)?,
        new(LinuxNamespaceType::Uts)?,
        new(LinuxNamespaceType::Mount)?,
    ];
    if input.host.cgroup == CgroupVersion::V2 {
        namespaces.push(new(LinuxNamespaceType::Cgroup)?);
    }
    if let Some(path) = input.netns {
        let network = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Network);
        namespaces.push(network.path(path).build()?);
    }
    Ok(namespaces)
}
