//! Who dialled: a peer is container-init of an instance, or it is turned away.
//!
//! Nothing of this comes from a message. The kernel says which process connected; while a pidfd
//! of it is held, `/proc` says that it is pid 1 in a namespace exactly one level below ours and
//! in which cgroup it lives, and the cgroup's path names the container. That the pidfd is still
//! alive afterwards proves that `/proc/<pid>` was that process all along.
//!
//! Before Linux 6.5 (no `SO_PEERPIDFD`) the pid comes from `SO_PEERCRED`, and a peer that died and
//! whose number was given to another container's init between connect and accept would be taken
//! for it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::net::UnixStream;

use crate::instance::ContainerId;
use crate::processes::nspid;

/// `/proc` files of a process are read up to here; a longer one is refused.
const PROC_FILE_LIMIT: u64 = 64 * 1024;

/// Hierarchies that count as proof: the unified one, and the v1 ones that every runtime joins.
/// A named hierarchy may be somebody else's.
const PROVING_CONTROLLERS: [&str; 3] = ["memory", "pids", "freezer"];

/// Why a peer was turned away.
#[derive(Debug, thiserror::Error)]
pub(super) enum TurnedAway {
    #[error("the kernel does not say who connected")]
    Credentials(#[source] io::Error),
    #[error("the peer lives in no pid namespace that is visible here")]
    InvisiblePid,
    #[error("a pidfd of process {pid} cannot be opened")]
    Pidfd {
        pid: i32,
        #[source]
        source: io::Error,
    },
    #[error("/proc/{pid}/{file} cannot be read")]
    Proc {
        pid: i32,
        file: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("process {pid} is not pid 1 of a namespace one level below (NSpid {nspid:?})")]
    NotInit { pid: i32, nspid: String },
    #[error("process {pid} is in no instance's cgroup")]
    NoInstance { pid: i32 },
    #[error("process {pid} is in cgroup {path:?}, which no instance has")]
    ForeignCgroup { pid: i32, path: String },
    #[error("process {pid} is in the cgroups of {one} and of {other}")]
    TwoInstances {
        pid: i32,
        one: ContainerId,
        other: ContainerId,
    },
    #[error("process {pid} ended while it was looked at")]
    Ended { pid: i32 },
    #[error("container {0} is not expected")]
    Unexpected(ContainerId),
    #[error("container {0} has another init that is alive")]
    Second(ContainerId),
    #[error("the hello of {container} calls itself {claimed:?}")]
    OtherName {
        container: ContainerId,
        claimed: String,
    },
    #[error("{0} said no hello within its deadline")]
    Silent(ContainerId),
    #[error("{container} began with something else than a hello: {said}")]
    NoHello {
        container: ContainerId,
        said: String,
    },
    #[error(
        "container {container} speaks version {version}, and is to say whether it knows a newer"
    )]
    Older {
        container: ContainerId,
        version: u16,
    },
    #[error("the connection of {container} failed before its hello")]
    Connection {
        container: ContainerId,
        #[source]
        source: io::Error,
    },
}

impl TurnedAway {
    /// Whether the peer was found to be the init of a container, or may have been one.
    pub(super) fn is_of_an_init(&self) -> bool {
        match self {
            Self::NotInit { .. }
            | Self::NoInstance { .. }
            | Self::ForeignCgroup { .. }
            | Self::TwoInstances { .. } => false,
            Self::Credentials(_)
            | Self::InvisiblePid
            | Self::Pidfd { .. }
            | Self::Proc { .. }
            | Self::Ended { .. }
            | Self::Unexpected(_)
            | Self::Second(_)
            | Self::OtherName { .. }
            | Self::Silent(_)
            | Self::NoHello { .. }
            | Self::Older { .. }
            | Self::Connection { .. } => true,
        }
    }
}

/// A verified container-init.
#[derive(Debug)]
pub(super) struct Peer {
    /// The container, as its cgroup says.
    pub container: ContainerId,
    /// Its process id in our namespace.
    pub pid: i32,
    pidfd: OwnedFd,
}

impl Peer {
    /// Verifies who is at the other end. Reads `/proc` (which may wait for the kernel's cgroup
    /// lock): call it where blocking is allowed.
    pub(super) fn verify(
        socket: &UnixStream,
        cgroup_parents: &[String],
    ) -> Result<Self, TurnedAway> {
        let credentials = socket.peer_cred().map_err(TurnedAway::Credentials)?;
        let pid = credentials.pid().unwrap_or_default();
        let pid_handle = Pid::from_raw(pid).ok_or(TurnedAway::InvisiblePid)?;
        let pidfd = match crate::sys::peer_pidfd(socket) {
            Err(e) if e.raw_os_error() == Some(libc::ENOPROTOOPT) => {
                pidfd_open(pid_handle, PidfdFlags::empty()).map_err(io::Error::from)
            }
            answer => answer,
        }
        .map_err(|source| TurnedAway::Pidfd { pid, source })?;

        let status = proc_file(pid, "status")?;
        let nspid = nspid(&status).unwrap_or_default();
        if !is_init_one_level_below(nspid, pid) {
            return Err(TurnedAway::NotInit {
                pid,
                nspid: nspid.trim().to_owned(),
            });
        }
        let cgroups = proc_file(pid, "cgroup")?;
        let containers = cgroup_parents
            .iter()
            .map(|parent| container_of(&cgroups, parent, pid));
        let container = containers
            .reduce(|one, other| one.or(other))
            .unwrap_or(Err(TurnedAway::NoInstance { pid }))?;
        let peer = Self {
            container,
            pid,
            pidfd,
        };
        if peer.is_alive() {
            Ok(peer)
        } else {
            Err(TurnedAway::Ended { pid })
        }
    }

    /// Another descriptor of the process, readable once it has ended; `None` when there are no more.
    pub(super) fn pidfd(&self) -> Option<OwnedFd> {
        self.pidfd.try_clone().ok()
    }

    /// Whether the process still runs (a zombie does not).
    pub(super) fn is_alive(&self) -> bool {
        let mut watched = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        matches!(poll(&mut watched, Some(&at_once)), Ok(0))
    }
}

/// Whether our `/proc` shows this process by the same number that the kernel gives it: only then
/// do peers' numbers and `/proc` agree.
pub(super) fn proc_is_ours() -> Result<bool, io::Error> {
    let mut status = String::new();
    File::open("/proc/self/status")?
        .take(PROC_FILE_LIMIT)
        .read_to_string(&mut status)?;
    let own = std::process::id().to_string();
    Ok(nspid(&status).is_some_and(|ids| ids.split_ascii_whitespace().eq([own.as_str()])))
}

fn proc_file(pid: i32, file: &'static str) -> Result<String, TurnedAway> {
    let refuse = |source| TurnedAway::Proc { pid, file, source };
    let mut bytes = Vec::new();
    File::open(format!("/proc/{pid}/{file}"))
        .map_err(refuse)?
        .take(PROC_FILE_LIMIT)
        .read_to_end(&mut bytes)
        .map_err(refuse)?;
    if bytes.len() as u64 == PROC_FILE_LIMIT {
        return Err(refuse(io::ErrorKind::FileTooLarge.into()));
    }
    // A name in some other cgroup may be anything; ours are ASCII and survive.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// `proc_is_ours` holds, so the first number is ours and the second is the container's.
fn is_init_one_level_below(nspid: &str, pid: i32) -> bool {
    let outer = pid.to_string();
    nspid.split_ascii_whitespace().eq([outer.as_str(), "1"])
}

/// Which container the lines of `/proc/<pid>/cgroup` name (cgroups(7)): at least one proving
/// hierarchy below `<parent>/<container id>`, and none below another's.
fn container_of(lines: &str, parent: &str, pid: i32) -> Result<ContainerId, TurnedAway> {
    let mut found: Option<ContainerId> = None;
    let mut proven = false;
    for line in lines.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(hierarchy), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let Some(below) = path.strip_prefix(parent) else {
            continue;
        };
        if !(below.is_empty() || below.starts_with('/')) {
            continue;
        }
        let name = below
            .trim_start_matches('/')
            .split('/')
            .next()
            .unwrap_or_default();
        let id: ContainerId = name.parse().map_err(|_| TurnedAway::ForeignCgroup {
            pid,
            path: path.to_owned(),
        })?;
        match &found {
            Some(one) if *one != id => {
                return Err(TurnedAway::TwoInstances {
                    pid,
                    one: one.clone(),
                    other: id,
                });
            }
            _ => found = Some(id),
        }
        proven |= (hierarchy == "0" && controllers.is_empty())
            || controllers
                .split(',')
                .any(|c| PROVING_CONTROLLERS.contains(&c));
    }
    found
        .filter(|_| proven)
        .ok_or(TurnedAway::NoInstance { pid })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(lines: &str) -> Result<String, String> {
        container_of(lines, "/nodeagent", 7)
            .map(|id| id.to_string())
            .map_err(|e| e.to_string())
    }

    #[test]
    fn only_pid_1_exactly_one_level_below_is_init() {
        assert!(is_init_one_level_below("\t4711\t1", 4711));
        for nspid in [
            "\t4711",
            "\t4711\t2",
            "\t4711\t1\t1",
            "\t4711\t7\t1",
            "\t4712\t1",
            "",
        ] {
            assert!(!is_init_one_level_below(nspid, 4711), "{nspid:?}");
        }
        let status = "Name:\tinit\nNSpid:\t4711\t1\nNSpgid:\t1\n";
        assert_eq!(nspid(status), Some("\t4711\t1"));
    }

    #[test]
    fn the_cgroup_names_the_container_on_v1_hybrid_and_v2() {
        let v1 = "9:name=systemd:/\n8:pids:/nodeagent/web-0.g1\n4:cpu,memory:/nodeagent/web-0.g1\n0::/\n";
        assert_eq!(named(v1), Ok("web-0.g1".into()));
        assert_eq!(
            named("0::/nodeagent/web-0.g1/init.scope\n"),
            Ok("web-0.g1".into())
        );
    }

    #[test]
    fn a_peer_of_two_instances_is_nobody() {
        let lines = "8:pids:/nodeagent/web-0.g1\n0::/nodeagent/web-1.g1\n";
        assert_eq!(
            named(lines),
            Err("process 7 is in the cgroups of web-0.g1 and of web-1.g1".into())
        );
    }

    #[test]
    fn a_cgroup_that_only_looks_like_ours_is_nobodys() {
        for lines in [
            "",
            "0::/\n",
            "0::/nodeagent-x/web-0.g1\n",
            "0::/other/nodeagent/web-0.g1\n",
            "nonsense\n",
        ] {
            assert_eq!(
                named(lines),
                Err("process 7 is in no instance's cgroup".into()),
                "{lines:?}"
            );
        }
        for path in [
            "/nodeagent",
            "/nodeagent/",
            "/nodeagent/web-0.g01",
            "/nodeagent/web-0.g1 (deleted)",
            "/nodeagent/../x",
        ] {
            assert_eq!(
                named(&format!("0::{path}\n")),
                Err(format!(
                    "process 7 is in cgroup {path:?}, which no instance has"
                ))
            );
        }
    }

    #[test]
    fn a_named_hierarchy_alone_proves_nothing() {
        assert_eq!(
            named("9:name=mine:/nodeagent/web-0.g1\n"),
            Err("process 7 is in no instance's cgroup".into())
        );
    }

    #[tokio::test]
    async fn a_process_outside_is_turned_away_by_its_pid_namespace() {
        let (one, _other) = UnixStream::pair().unwrap();
        let refused = Peer::verify(&one, &["/nodeagent".to_owned()]).unwrap_err();
        assert!(
            matches!(refused, TurnedAway::NotInit { pid, .. } if pid as u32 == std::process::id()),
            "{refused}"
        );
    }
}
