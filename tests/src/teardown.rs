//! Removing a test host, from what is on disk alone: so a killed run is removed like a living one.
//!
//! Order: what restarts others first (the host's own processes), then its containers by their
//! cgroup, then the shims, then mounts, runc's and the shims' files, cgroups, and the directory.
//! A step that fails is said on stderr and the next ones go on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::process::{RECORD, start_time};
use crate::wait::{Look, until};

/// Where runc keeps its state when the shim names no other place: `<this>/<namespace>/<id>`.
const RUNC_ROOT: &str = "/run/containerd/runc";

/// How long killed processes may take to leave.
const PROCESSES_GONE: Duration = Duration::from_secs(10);

/// The cgroup parent of the test host `id`.
pub fn cgroup_parent(id: &str) -> String {
    format!("/nodeagent-{id}")
}

/// The lock that says that the run of test host `id` lives.
pub(crate) fn lock_file(base: &Path, id: &str) -> PathBuf {
    base.join(format!("{id}.lock"))
}

/// Removes the hosts below `base` whose run has died.
pub fn sweep_dead_runs(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else {
        return;
    };
    let ids: BTreeSet<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .map(|name| name.trim_end_matches(".lock").to_owned())
        .filter(|name| is_id(name))
        .collect();
    for id in ids {
        let Ok(lock) = File::create(lock_file(base, &id)) else {
            continue;
        };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            eprintln!("test host {id}: removing what a dead run left");
            tear_down(base, &id);
        }
    }
}

/// Whether `name` is one that [`Ground`](crate::Ground) gives: nothing else below the base is ours.
fn is_id(name: &str) -> bool {
    name.split_once('-').is_some_and(|(pid, count)| {
        [pid, count]
            .iter()
            .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    })
}

/// Removes a test host of this run at once, for a program that is about to end.
pub fn remove_now(id: &str) {
    tear_down(Path::new(crate::BASE), id);
}

/// Removes the test host `id` below `base`.
pub(crate) fn tear_down(base: &Path, id: &str) {
    let directory = base.join(id);
    if directory.exists() {
        let parent = cgroup_parent(id);
        report(id, kill_recorded(&directory));
        report(id, kill_cgroup(&parent));
        report(id, kill_shims(&directory));
        report(id, unmount_below(&directory));
        report(id, remove_shim_sockets(&directory));
        report(id, remove_runc_state(id));
        report(id, remove_cgroup(&parent));
        report(
            id,
            fs::remove_dir_all(&directory)
                .with_context(|| format!("remove {}", directory.display())),
        );
    }
    // The lock goes last: while it is there, the host is somebody's.
    let _ = fs::remove_file(lock_file(base, id));
}

fn report(id: &str, step: Result<()>) {
    if let Err(error) = step {
        eprintln!("test host {id}: {error:#}");
    }
}

fn kill_recorded(directory: &Path) -> Result<()> {
    let list = fs::read_to_string(directory.join(RECORD)).unwrap_or_default();
    let recorded = list.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let pid: u32 = fields.next()?.parse().ok()?;
        let start: u64 = fields.next()?.parse().ok()?;
        (start_time(pid) == Some(start)).then_some(pid)
    });
    kill_and_wait("recorded processes", &recorded.collect::<Vec<u32>>())
}

/// Ends what runs in the host's own cgroups. Frozen ones are thawed, or SIGKILL would stay pending.
fn kill_cgroup(parent: &str) -> Result<()> {
    let mut pids = Vec::new();
    for group in cgroups_below(parent) {
        for (file, thawed) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
            if group.join(file).exists() {
                fs::write(group.join(file), thawed)
                    .with_context(|| format!("thaw {}", group.display()))?;
            }
        }
        let members = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        pids.extend(members.lines().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    kill_and_wait("containers", &pids)
}

/// Shims outlive containerd and are nobody's children.
fn kill_shims(directory: &Path) -> Result<()> {
    let shims = shims(directory)?;
    kill_and_wait("shims", &shims.into_keys().collect::<Vec<u32>>())
}

/// Shims of the containerd of the host in `directory`: pid -> arguments. Each names the socket of
/// the containerd that started it.
pub(crate) fn shims(directory: &Path) -> Result<BTreeMap<u32, Vec<String>>> {
    let socket = crate::containerd::socket(directory);
    let own = ["-address".to_owned(), socket.display().to_string()];
    let mut shims = BTreeMap::new();
    for entry in fs::read_dir("/proc").context("read /proc")?.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments);
        let arguments: Vec<String> = arguments.split('\0').map(str::to_owned).collect();
        if arguments.windows(2).any(|pair| pair == own) {
            shims.insert(pid, arguments);
        }
    }
    Ok(shims)
}

fn kill_and_wait(what: &str, pids: &[u32]) -> Result<()> {
    let alive = |pid: &u32| {
        // A zombie is dead; its parent will collect it.
        fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat[stat.rfind(')').unwrap_or(0)..].starts_with(") Z"))
    };
    for pid in pids {
        if let Some(pid) = i32::try_from(*pid).ok().and_then(Pid::from_raw) {
            // It may have ended meanwhile.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    until(&format!("{what} to leave"), PROCESSES_GONE, || {
        let left: Vec<&u32> = pids.iter().filter(|pid| alive(pid)).collect();
        Ok(if left.is_empty() {
            Look::Seen(())
        } else {
            Look::NotYet(format!("pids {left:?}"))
        })
    })
}

/// Mount points at or below `directory`, in the order they were made.
pub(crate) fn mounts_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("read mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(points
        .map(PathBuf::from)
        .filter(|point| point.starts_with(directory))
        .collect())
}

fn unmount_below(directory: &Path) -> Result<()> {
    for point in mounts_below(directory)?.iter().rev() {
        unmount(point, UnmountFlags::DETACH)
            .with_context(|| format!("unmount {}", point.display()))?;
    }
    Ok(())
}

/// Shims listen below `/run/containerd/s`, whatever containerd's directories are; each bundle
/// names its socket: in `address` (1.6), or in `bootstrap.json` (2.x).
fn remove_shim_sockets(directory: &Path) -> Result<()> {
    for bundle in crate::containerd::bundles(directory) {
        let address = fs::read_to_string(bundle.join("address"))
            .or_else(|_| bootstrap_address(&bundle))
            .unwrap_or_default();
        let Some(socket) = address.strip_prefix("unix://") else {
            continue;
        };
        if Path::new(socket).exists() {
            fs::remove_file(socket).with_context(|| format!("remove {socket}"))?;
        }
    }
    Ok(())
}

fn bootstrap_address(bundle: &Path) -> std::io::Result<String> {
    let text = fs::read(bundle.join("bootstrap.json"))?;
    let parameters: serde_json::Value = serde_json::from_slice(&text)?;
    Ok(parameters["address"]
        .as_str()
        .unwrap_or_default()
        .to_owned())
}

/// runc's root is the machine's; the containerd namespaces of a host end in its id.
fn remove_runc_state(id: &str) -> Result<()> {
    let suffix = format!(".{id}");
    let Ok(entries) = fs::read_dir(RUNC_ROOT) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().ends_with(&suffix) {
            fs::remove_dir_all(entry.path())
                .with_context(|| format!("remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Directories of `parent` and below it in every hierarchy, deepest first.
pub(crate) fn cgroups_below(parent: &str) -> Vec<PathBuf> {
    fn walk(group: PathBuf, found: &mut Vec<PathBuf>) {
        if let Ok(entries) = fs::read_dir(&group) {
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    walk(entry.path(), found);
                }
            }
            found.push(group);
        }
    }
    let mut found = Vec::new();
    let parent = parent.trim_start_matches('/');
    let root = Path::new("/sys/fs/cgroup");
    // cgroup v2 alone is mounted at the root; v1 and hybrid have one directory a hierarchy.
    walk(root.join(parent), &mut found);
    if let Ok(hierarchies) = fs::read_dir(root) {
        for hierarchy in hierarchies.flatten() {
            walk(hierarchy.path().join(parent), &mut found);
        }
    }
    found
}

fn remove_cgroup(parent: &str) -> Result<()> {
    // A group stays busy for an instant after its last process has gone.
    until(
        &format!("cgroup {parent} to be removed"),
        PROCESSES_GONE,
        || {
            for group in cgroups_below(parent) {
                let _ = fs::remove_dir(group);
            }
            let left = cgroups_below(parent);
            Ok(if left.is_empty() {
                Look::Seen(())
            } else {
                Look::NotYet(format!("{left:?}"))
            })
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_a_run_gives_are_swept() {
        assert!(is_id("4711-0"));
        for other in ["", "-", "4711-", "-1", "4711-a", "x-1", "4711"] {
            assert!(!is_id(other), "{other:?}");
        }
    }
}
