//! The cgroup below which containers live: a scope of systemd, or `runtime.cgroup_parent`.
//!
//! ```text
//! nodeagent-instances.scope      delegated to the agent, kept alive by the holder
//! ├── holder                     container-init --hold
//! ├── shims                      containerd's shims, moved there by themselves (`ShimCgroup`)
//! └── web-0.g1                   a container
//! ```
//! The scope is no child of the service: nothing that happens to the agent's unit reaches it. On
//! shutdown systemd stops it after the agent: its SIGTERM is a container-init's order to stop.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nodeagent_systemd::{Scope, ScopeError};

use crate::config::{self, UseScope};

/// There while systemd is PID 1 (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";
/// Where the trees are in which systemd finds processes: version 2 alone, version 1, both.
const TREES: [&str; 3] = [
    "/sys/fs/cgroup",
    "/sys/fs/cgroup/systemd",
    "/sys/fs/cgroup/unified",
];
/// What a shutdown leaves to containers between SIGTERM and SIGKILL.
const STOP: Duration = Duration::from_secs(30);

/// Why there is no place for containers, or none that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// systemd did not give a scope.
    #[error(transparent)]
    Scope(#[from] ScopeError),
    /// The scope is in no tree of cgroups that is mounted here.
    #[error("systemd's scope has the cgroup {cgroup:?}, which is not mounted below /sys/fs/cgroup")]
    Invisible {
        /// What systemd calls it.
        cgroup: String,
    },
    /// A cgroup of the scope could not be prepared.
    #[error("cannot prepare {}", path.display())]
    Prepare {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Where containers live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Absolute cgroup, the same in every hierarchy.
    pub parent: String,
    /// Cgroup for their shims; with containerd's where it is [`None`].
    pub shims: Option<String>,
}

/// Whether systemd is PID 1 here.
pub(super) fn is_booted() -> bool {
    Path::new(BOOTED).is_dir()
}

/// Finds or makes it. Without D-Bus it is `runtime.cgroup_parent`, unless a scope is demanded.
pub(super) async fn find(settings: &config::Runtime) -> Result<Place, PlaceError> {
    let plain = Place {
        parent: settings.cgroup_parent.clone(),
        shims: None,
    };
    match settings.scope {
        UseScope::Never => return Ok(plain),
        UseScope::Auto if !is_booted() => return Ok(plain),
        UseScope::Auto | UseScope::Always => {}
    }
    match scope(&settings.container_init).await {
        Err(error) if settings.scope == UseScope::Auto => {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(
                error,
                parent = plain.parent,
                "containers live below runtime.cgroup_parent, not in a scope of systemd"
            );
            Ok(plain)
        }
        found => found,
    }
}

async fn scope(container_init: &Path) -> Result<Place, PlaceError> {
    let scope = Scope {
        name: "nodeagent-instances.scope",
        description: "Containers of the nodeagent",
        before: &["nodeagent.service"],
        after: &["network.target", "containerd.service"],
        stop_within: STOP,
    };
    let mut holder = None;
    let placed = scope
        .ensure(|| {
            let child = hold(container_init)?;
            Ok(holder.insert(child).id())
        })
        .await
        .map_err(PlaceError::from)
        .and_then(|cgroup| prepare(cgroup, holder.as_ref().map(Child::id)));
    if placed.is_err()
        && let Some(mut holder) = holder
    {
        // It holds nothing; there is nobody else to end it.
        let ended = holder.kill().and_then(|()| holder.wait());
        if let Err(error) = ended {
            tracing::warn!(%error, pid = holder.id(), "a process that does nothing is left");
        }
    }
    placed
}

fn hold(container_init: &Path) -> io::Result<Child> {
    Command::new(container_init)
        .arg("--hold")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .spawn()
}

/// Makes the groups inside: with version 2 a group has processes, or groups with controllers below
/// it, not both (cgroups(7), "no internal processes").
fn prepare(cgroup: String, holder: Option<u32>) -> Result<Place, PlaceError> {
    let relative = cgroup.trim_start_matches('/');
    let trees: Vec<PathBuf> = TREES
        .iter()
        .map(|tree| Path::new(tree).join(relative))
        .filter(|group| !relative.is_empty() && group.join("cgroup.procs").is_file())
        .collect();
    if trees.is_empty() {
        return Err(PlaceError::Invisible { cgroup });
    }
    for group in trees {
        for name in ["holder", "shims"] {
            let path = group.join(name);
            match std::fs::create_dir(&path) {
                Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(PlaceError::Prepare { path, source });
                }
                _ => {}
            }
        }
        if let Some(pid) = holder {
            let path = group.join("holder/cgroup.procs");
            std::fs::write(&path, pid.to_string())
                .map_err(|source| PlaceError::Prepare { path, source })?;
        }
    }
    Ok(Place {
        shims: Some(format!("{cgroup}/shims")),
        parent: cgroup,
    })
}
