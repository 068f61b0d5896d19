//! Cgroups of containers that nobody knows any more: of a create that was given up (`runc init` may
//! hang in it), or of a container whose record is gone. Only ever a container's own cgroup, below
//! `runtime.cgroup_parent`.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::Containerd;
use crate::instance::ContainerId;

/// Where the hierarchies are mounted (cgroups(7)): each its own directory with version 1, the one
/// itself with version 2.
const MOUNT: &str = "/sys/fs/cgroup";
/// Pause between two looks at a cgroup whose processes were killed.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

impl Containerd {
    /// Containers that have a cgroup in any hierarchy, in order, whether or not containerd knows
    /// them. What is not named like a container is not ours and left out.
    pub fn cgroups(&self) -> io::Result<BTreeSet<ContainerId>> {
        let mut found = BTreeSet::new();
        for directory in hierarchies()? {
            let parent = directory.join(self.runtime.cgroup_parent.trim_start_matches('/'));
            let entries = match fs::read_dir(parent) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries?,
            };
            for entry in entries {
                let name = entry?.file_name();
                found.extend(name.to_str().and_then(|name| name.parse().ok()));
            }
        }
        Ok(found)
    }

    /// Pids of the processes in a container's cgroup.
    pub fn processes(&self, id: &ContainerId) -> io::Result<BTreeSet<i32>> {
        let mut found = BTreeSet::new();
        for directory in hierarchies()? {
            let members = members(&directory.join(self.path_of(id)))?;
            found.extend(members.into_iter().map(|pid| pid.as_raw_nonzero().get()));
        }
        Ok(found)
    }

    /// Kills what is in a container's cgroup and removes it in every hierarchy. None is fine.
    ///
    /// # Errors
    /// What the kernel said; `TimedOut` when processes remain at the deadline of a call.
    pub async fn remove_cgroup(&self, id: &ContainerId) -> io::Result<()> {
        let path = self.path_of(id);
        let remaining = sweep(&path, self.connection.plain().length).await?;
        match remaining.first() {
            None => Ok(()),
            Some(busy) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("{} still has processes", busy.display()),
            )),
        }
    }

    pub(super) fn path_of(&self, id: &ContainerId) -> String {
        format!("{}/{id}", self.runtime.cgroup_parent.trim_matches('/'))
    }
}

/// Kills every process in the cgroup `path` (absolute, as in the spec) of every hierarchy, and
/// removes it. What still has processes at the deadline is returned; a frozen process is one.
pub(super) async fn sweep(path: &str, deadline: Duration) -> io::Result<Vec<PathBuf>> {
    let begin = Instant::now();
    let mut remaining = Vec::new();
    for directory in hierarchies()? {
        let cgroup = directory.join(path.trim_start_matches('/'));
        if !cgroup.is_dir() {
            continue;
        }
        loop {
            kill_all(&cgroup)?;
            match fs::remove_dir(&cgroup) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(_) if begin.elapsed() < deadline => tokio::time::sleep(LOOK_AGAIN).await,
                Err(_) => {
                    remaining.push(cgroup);
                    break;
                }
            }
        }
    }
    Ok(remaining)
}

pub(super) fn hierarchies() -> io::Result<Vec<PathBuf>> {
    let mut found = vec![PathBuf::from(MOUNT)];
    for entry in fs::read_dir(MOUNT)? {
        let path = entry?.path();
        // Directories of version 2 are cgroups, and have no such path below them.
        if path.is_dir() {
            found.push(path);
        }
    }
    Ok(found)
}

fn kill_all(cgroup: &Path) -> io::Result<()> {
    for pid in members(cgroup)? {
        // Held by descriptor and found a member once more: a pid that was given to somebody else
        // meanwhile is not killed.
        let Ok(held) = pidfd_open(pid, PidfdFlags::empty()) else {
            continue;
        };
        if members(cgroup)?.contains(&pid) {
            tracing::warn!(pid = pid.as_raw_nonzero().get(), cgroup = %cgroup.display(), "killing what nobody knows any more");
            match pidfd_send_signal(&held, Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(())
}

pub(super) fn members(cgroup: &Path) -> io::Result<Vec<Pid>> {
    match fs::read_to_string(cgroup.join("cgroup.procs")) {
        Ok(listed) => Ok(listed
            .lines()
            .filter_map(|line| line.parse().ok().and_then(Pid::from_raw))
            .collect()),
        // Removed at the same time; or a directory that is no cgroup, and has no members.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound) => Ok(Vec::new()),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}
