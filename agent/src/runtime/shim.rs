//! Ending shims that containerd has forgotten.
//!
//! containerd cancels the deletion of a task together with the call that asked for it; when the
//! caller dies in the middle, the task is gone and its shim stays ("the shim might be leaked":
//! containerd 2.2, `core/runtime/v2/shim.go`). Nobody can ask containerd for such a shim. It is
//! known by its arguments, which name containerd's socket, the namespace and the container. One
//! that still has children is left alone: it may serve a group, or be in the middle of a command.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::time::Instant;

use crate::processes::{nspid, split_stat};

/// How long a shim may take to end by itself after SIGTERM, which it takes for a shutdown.
const GRACE: Duration = Duration::from_secs(2);

/// Whose shim it is, as containerd wrote it into the shim's arguments.
#[derive(Debug, Clone)]
pub(super) struct ShimOf {
    pub socket: PathBuf,
    pub namespace: String,
    pub container: String,
}

/// What goes on below the shims of a container that containerd has no task of, beside those that
/// do nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Activity {
    /// Nothing.
    None,
    /// A shim does nothing, and has no children.
    Idle,
    /// One has children: the container's processes, or those of its group.
    Holding,
    /// One runs a command for the container, or containerd cleans up behind one: that will end.
    Working,
}

/// Ends the shims of `of` that do nothing, and says what goes on below the others. Call it only
/// when containerd has no task of that container.
pub(super) async fn end_orphans(of: ShimOf) -> io::Result<Activity> {
    let look = move || -> io::Result<_> {
        let seen = look(&of)?;
        let held: Vec<_> = seen.idle.iter().filter_map(|pid| held(*pid, &of)).collect();
        Ok((held, seen.others))
    };
    let (idle, others) = blocking(look).await?;
    for (pid, held) in &idle {
        tracing::warn!(
            pid = pid.as_raw_nonzero().get(),
            "ending a shim that containerd has forgotten"
        );
        send(held, Signal::TERM)?;
    }
    let deadline = Instant::now() + GRACE;
    for (_, held) in idle {
        // A pidfd is readable once its process has ended.
        let watched = crate::sys::watch_readable(held)?;
        if let Err(_overdue) = tokio::time::timeout_at(deadline, watched.readable()).await {
            send(watched.get_ref(), Signal::KILL)?;
        }
    }
    Ok(others)
}

/// The shims of `of` that have no children and of which every thread sleeps. One that is found so
/// again and again while it is asked to create waits for nothing that will come.
pub(super) async fn asleep(of: ShimOf) -> io::Result<Vec<i32>> {
    blocking(move || {
        let seen = look(&of)?;
        let sleeps = |pid: &i32| every_thread_sleeps(&Path::new("/proc").join(pid.to_string()));
        Ok(seen.idle.into_iter().filter(sleeps).collect())
    })
    .await
}

/// What the shims of `of` do.
pub(super) async fn activity(of: ShimOf) -> io::Result<Activity> {
    let seen = blocking(move || look(&of)).await?;
    Ok(match (seen.is_cleaned_up, seen.idle.is_empty()) {
        (true, _) => Activity::Working,
        (false, true) => seen.others,
        (false, false) => seen.others.max(Activity::Idle),
    })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(io::Error::other)?
}

fn send(process: &OwnedFd, signal: Signal) -> io::Result<()> {
    match pidfd_send_signal(process, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// The shims of a container.
struct Seen {
    /// Those that do nothing.
    idle: Vec<i32>,
    /// What goes on below the others; never [`Activity::Idle`].
    others: Activity,
    /// containerd cleans up behind one.
    is_cleaned_up: bool,
}

fn look(of: &ShimOf) -> io::Result<Seen> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    let mut shims = Vec::new();
    let mut is_cleaned_up = false;
    for entry in fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // What ends while it is looked at is nobody's parent and no shim.
        if let Ok(stat) = fs::read(entry.path().join("stat"))
            && let Some(parent) = parent(&String::from_utf8_lossy(&stat))
        {
            children.entry(parent).or_default().push(pid);
        }
        match role(&entry.path(), of) {
            Some(Role::Shim) => shims.push(pid),
            Some(Role::Call) => is_cleaned_up = true,
            None => {}
        }
    }
    let (mut idle, mut others) = (Vec::new(), Activity::None);
    for pid in shims {
        match children.get(&pid) {
            Some(children) if children.iter().any(|child| names(*child, &of.container)) => {
                others = Activity::Working;
            }
            Some(_) => others = others.max(Activity::Holding),
            None => idle.push(pid),
        }
    }
    Ok(Seen {
        idle,
        others,
        is_cleaned_up,
    })
}

/// Held, and found a shim once more: the number was not given to somebody else meanwhile.
fn held(pid: i32, of: &ShimOf) -> Option<(Pid, OwnedFd)> {
    let handle = Pid::from_raw(pid)?;
    let held = pidfd_open(handle, PidfdFlags::empty()).ok()?;
    let process = Path::new("/proc").join(pid.to_string());
    (role(&process, of) == Some(Role::Shim)).then_some((handle, held))
}

/// Whether a process was started with the container's id among its arguments, as OCI runtimes are.
fn names(pid: i32, container: &str) -> bool {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = arguments.split(|byte| *byte == 0);
    words.any(|word| word == container.as_bytes())
}

/// What a process of a shim's program is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// It serves a container, or did.
    Shim,
    /// `delete`: a call that containerd waits for, not a shim that was left.
    Call,
}

/// What `process` (a directory of `/proc`) is, if containerd started it for `of`. Of the host's own
/// pid namespace only: what runs in a container may call itself anything.
fn role(process: &Path, of: &ShimOf) -> Option<Role> {
    let role = role_by_arguments(&fs::read(process.join("cmdline")).ok()?, of)?;
    let status = fs::read_to_string(process.join("status")).ok()?;
    (levels_of_pid_namespace(&status) == Some(1)).then_some(role)
}

fn role_by_arguments(arguments: &[u8], of: &ShimOf) -> Option<Role> {
    let mut words = arguments.split(|byte| *byte == 0);
    let program = words.next().unwrap_or_default();
    let program = program.rsplit(|byte| *byte == b'/').next();
    let words: Vec<&[u8]> = words.collect();
    let value_of = |flag: &str| {
        let at = words.iter().position(|word| *word == flag.as_bytes())?;
        std::str::from_utf8(words.get(at + 1)?).ok()
    };
    let is_ours = program.is_some_and(|program| program.starts_with(b"containerd-shim"))
        && value_of("-namespace") == Some(&of.namespace)
        && value_of("-id") == Some(&of.container)
        && value_of("-address").is_some_and(|address| same_place(Path::new(address), &of.socket));
    is_ours.then(|| match words.contains(&&b"delete"[..]) {
        true => Role::Call,
        false => Role::Shim,
    })
}

/// Whether no thread of `process` (a directory of `/proc`) runs or waits for a disk.
fn every_thread_sleeps(process: &Path) -> bool {
    let Ok(threads) = fs::read_dir(process.join("task")) else {
        return false;
    };
    threads.flatten().all(|thread| {
        let stat = fs::read(thread.path().join("stat")).unwrap_or_default();
        let stat = String::from_utf8_lossy(&stat);
        // Field 3 of proc_pid_stat(5).
        split_stat(&stat).is_some_and(|(_, fields)| fields.first() == Some(&"S"))
    })
}

/// `/var/run/…` and `/run/…` are one socket.
fn same_place(one: &Path, other: &Path) -> bool {
    one == other
        || matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

/// How many pid namespaces a process is in.
fn levels_of_pid_namespace(status: &str) -> Option<usize> {
    Some(nspid(status)?.split_ascii_whitespace().count())
}

/// Field 4 of proc_pid_stat(5).
fn parent(stat: &str) -> Option<i32> {
    let (_, fields) = split_stat(stat)?;
    fields.get(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of() -> ShimOf {
        ShimOf {
            socket: "/run/containerd/containerd.sock".into(),
            namespace: "nodeagent".to_owned(),
            container: "web-0.g7".to_owned(),
        }
    }

    const ARGUMENTS: &[u8] = b"/usr/bin/containerd-shim-runc-v2\0-namespace\0nodeagent\0-id\0web-0.g7\0-address\0/run/containerd/containerd.sock\0";

    #[test]
    fn a_shim_is_known_by_program_namespace_container_and_socket() {
        assert_eq!(role_by_arguments(ARGUMENTS, &of()), Some(Role::Shim));
        let others = [
            ShimOf {
                socket: "/run/other.sock".into(),
                ..of()
            },
            ShimOf {
                namespace: "k8s.io".to_owned(),
                ..of()
            },
            ShimOf {
                container: "web-0.g70".to_owned(),
                ..of()
            },
        ];
        for other in others {
            assert_eq!(role_by_arguments(ARGUMENTS, &other), None, "{other:?}");
        }
        let grep = [b"grep\0", ARGUMENTS].concat();
        assert_eq!(role_by_arguments(&grep, &of()), None);
        assert_eq!(role_by_arguments(b"", &of()), None);
        let call = [ARGUMENTS, b"delete\0"].concat();
        assert_eq!(role_by_arguments(&call, &of()), Some(Role::Call));
    }

    #[test]
    fn the_parent_is_read_behind_any_name() {
        assert_eq!(parent("42 (a) b (c) S 17 42 42 0"), Some(17));
        assert_eq!(parent("nonsense"), None);
    }

    #[test]
    fn a_process_of_a_container_is_in_more_than_one_pid_namespace() {
        assert_eq!(levels_of_pid_namespace("Name:\tx\nNSpid:\t4711\n"), Some(1));
        assert_eq!(levels_of_pid_namespace("NSpid:\t4711\t1\n"), Some(2));
        assert_eq!(levels_of_pid_namespace("Name:\tx\n"), None);
    }
}
