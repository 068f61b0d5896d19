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

/// How long a shim may take to end by itself after SIGTERM, which it takes for a shutdown.
const GRACE: Duration = Duration::from_secs(2);

/// Whose shim it is, as containerd wrote it into the shim's arguments.
#[derive(Debug, Clone)]
pub(super) struct ShimOf {
    pub socket: PathBuf,
    pub namespace: String,
    pub container: String,
}

/// Which processes of a shim's program are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Count {
    /// Those that serve a container, or did.
    Shims,
    /// `delete`: a call that containerd waits for, not a shim that was left.
    Calls,
}

/// What was not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Left {
    /// No shim of the container is left.
    Nobody,
    /// One has children: the container's processes, or those of its group.
    Holding,
    /// One runs a command for the container, which will end.
    Working,
}

/// Ends the shims of `of` that have nothing to do any more, and says what is left. Call it only
/// when containerd has no task of that container.
pub(super) async fn end_orphans(of: ShimOf) -> io::Result<Left> {
    let (idle, left) = tokio::task::spawn_blocking(move || orphans(&of))
        .await
        .map_err(io::Error::other)??;
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
    Ok(left)
}

/// What is going on for a container that containerd has no task of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activity {
    /// No shim of it is there.
    None,
    /// A shim is there and does nothing.
    Idle,
    /// A shim runs a command for it, or containerd cleans up behind one.
    Working,
}

/// Looks at the shims of `of`.
pub(super) async fn activity(of: ShimOf) -> io::Result<Activity> {
    let look = move || {
        let mut entries = fs::read_dir("/proc")?.flatten();
        let is_cleaned_up = entries.any(|entry| is_shim_of(&entry.path(), &of, Count::Calls));
        let (idle, left) = orphans(&of)?;
        Ok(match (is_cleaned_up, left) {
            (true, _) | (_, Left::Working) => Activity::Working,
            (false, Left::Nobody) if idle.is_empty() => Activity::None,
            (false, _) => Activity::Idle,
        })
    };
    tokio::task::spawn_blocking(look)
        .await
        .map_err(io::Error::other)?
}

fn send(process: &OwnedFd, signal: Signal) -> io::Result<()> {
    match pidfd_send_signal(process, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Those that have no children, held; and what the others do.
fn orphans(of: &ShimOf) -> io::Result<(Vec<(Pid, OwnedFd)>, Left)> {
    let proc = Path::new("/proc");
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    let mut shims = Vec::new();
    for entry in fs::read_dir(proc)?.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // What ends while it is looked at is nobody's parent and no shim.
        if let Ok(stat) = fs::read_to_string(entry.path().join("stat"))
            && let Some(parent) = parent(&stat)
        {
            children.entry(parent).or_default().push(pid);
        }
        if is_shim_of(&entry.path(), of, Count::Shims) {
            shims.push(pid);
        }
    }
    let (mut idle, mut left) = (Vec::new(), Left::Nobody);
    for pid in shims {
        match children.get(&pid) {
            Some(children) => {
                let works = children.iter().any(|child| names(*child, &of.container));
                left = left.max(if works { Left::Working } else { Left::Holding });
            }
            None => idle.extend(held(pid, of)),
        }
    }
    Ok((idle, left))
}

/// Held, and found a shim once more: the number was not given to somebody else meanwhile.
fn held(pid: i32, of: &ShimOf) -> Option<(Pid, OwnedFd)> {
    let handle = Pid::from_raw(pid)?;
    let held = pidfd_open(handle, PidfdFlags::empty()).ok()?;
    let process = Path::new("/proc").join(pid.to_string());
    is_shim_of(&process, of, Count::Shims).then_some((handle, held))
}

/// Whether a process was started with the container's id among its arguments, as OCI runtimes are.
fn names(pid: i32, container: &str) -> bool {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = arguments.split(|byte| *byte == 0);
    words.any(|word| word == container.as_bytes())
}

/// Whether `process` (a directory of `/proc`) is a shim that containerd started for `of`. Of the
/// host's own pid namespace only: what runs in a container may call itself anything.
fn is_shim_of(process: &Path, of: &ShimOf, count: Count) -> bool {
    let Ok(arguments) = fs::read(process.join("cmdline")) else {
        return false;
    };
    is_arguments_of(&arguments, of, count)
        && fs::read_to_string(process.join("status"))
            .is_ok_and(|status| levels_of_pid_namespace(&status) == Some(1))
}

fn is_arguments_of(arguments: &[u8], of: &ShimOf, count: Count) -> bool {
    let mut words = arguments.split(|byte| *byte == 0);
    let program = words.next().unwrap_or_default();
    let program = program.rsplit(|byte| *byte == b'/').next();
    let words: Vec<&[u8]> = words.collect();
    let value_of = |flag: &str| {
        let at = words.iter().position(|word| *word == flag.as_bytes())?;
        std::str::from_utf8(words.get(at + 1)?).ok()
    };
    program.is_some_and(|program| program.starts_with(b"containerd-shim"))
        && (count == Count::Calls) == words.contains(&&b"delete"[..])
        && value_of("-namespace") == Some(&of.namespace)
        && value_of("-id") == Some(&of.container)
        && value_of("-address").is_some_and(|address| same_place(Path::new(address), &of.socket))
}

/// `/var/run/…` and `/run/…` are one socket.
fn same_place(one: &Path, other: &Path) -> bool {
    one == other
        || matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

/// How many pid namespaces a process is in, by `NSpid` of proc_pid_status(5).
fn levels_of_pid_namespace(status: &str) -> Option<usize> {
    let ids = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?;
    Some(ids.split_ascii_whitespace().count())
}

/// Field 4 of proc_pid_stat(5); field 2 is a name in parentheses that may contain anything.
fn parent(stat: &str) -> Option<i32> {
    let after_name = &stat[stat.rfind(')')? + 1..];
    after_name.split_ascii_whitespace().nth(1)?.parse().ok()
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
        assert!(is_arguments_of(ARGUMENTS, &of(), Count::Shims));
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
            assert!(
                !is_arguments_of(ARGUMENTS, &other, Count::Shims),
                "{other:?}"
            );
        }
        let grep = [b"grep\0", ARGUMENTS].concat();
        for count in [Count::Shims, Count::Calls] {
            assert!(!is_arguments_of(&grep, &of(), count));
            assert!(!is_arguments_of(b"", &of(), count));
        }
        let call = [ARGUMENTS, b"delete\0"].concat();
        assert!(!is_arguments_of(&call, &of(), Count::Shims));
        assert!(is_arguments_of(&call, &of(), Count::Calls));
        assert!(!is_arguments_of(ARGUMENTS, &of(), Count::Calls));
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
