//! containerd: whether it answers, and with what the agent asks of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::sockopt::socket_peercred;

use super::finding::Finding;
use crate::chain::chain;
use crate::config;
use crate::runtime::{self, Snapshotter};

/// How long containerd may take for one answer here, whatever the agent gives it.
const DEADLINE: Duration = Duration::from_secs(2);
/// What runs the shim `io.containerd.<name>.<version>` is called `containerd-shim-<name>-<version>`
/// (containerd, docs/runtime-v2.md).
const SHIM_PREFIX: &str = "containerd-shim";
/// Where programs are, beside containerd's own directory and our `PATH`.
const PROGRAMS: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// containerd as it is reached.
#[derive(Debug, Clone)]
pub(super) struct Containerd {
    pub socket: PathBuf,
    pub namespace: String,
    pub snapshotter: String,
    pub shim: String,
    /// Or why it did not answer.
    pub answer: Result<Answer, String>,
}

/// What it said, and what is known of its process.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub version: String,
    pub snapshotters: Result<Vec<Snapshotter>, String>,
    /// The shim's program, where containerd would find it.
    pub shim: Option<PathBuf>,
    /// Whether what we mount is seen by containerd; or why that is not known.
    pub same_mounts: Result<bool, String>,
}

impl Containerd {
    /// Where the configured snapshotter keeps its files.
    pub fn snapshotter_root(&self) -> Option<PathBuf> {
        let all = self.answer.as_ref().ok()?.snapshotters.as_ref().ok()?;
        let own = all.iter().find(|s| s.name == self.snapshotter)?;
        own.root.as_ref().map(PathBuf::from)
    }
}

pub(super) async fn read(settings: &config::Containerd, runtime: &config::Runtime) -> Containerd {
    Containerd {
        socket: settings.socket.clone(),
        namespace: settings.namespace.clone(),
        snapshotter: settings.snapshotter.clone(),
        shim: runtime.shim.clone(),
        answer: ask(settings, runtime).await,
    }
}

async fn ask(settings: &config::Containerd, runtime: &config::Runtime) -> Result<Answer, String> {
    let settings = config::Containerd {
        timeout: settings.timeout.min(DEADLINE),
        ..settings.clone()
    };
    // The socket's own error says more than a channel's.
    let stream = std::os::unix::net::UnixStream::connect(&settings.socket)
        .map_err(|error| error.to_string())?;
    let pid = socket_peercred(&stream)
        .ok()
        .map(|peer| peer.pid.as_raw_nonzero().get());
    drop(stream);
    let said = |error: runtime::RuntimeError| chain(&error);
    let containerd = runtime::Containerd::connect(&settings, runtime, None)
        .await
        .map_err(said)?;
    Ok(Answer {
        version: containerd.version().await.map_err(said)?,
        snapshotters: containerd.snapshotters().await.map_err(said),
        shim: shim_program(&runtime.shim).and_then(|name| found(&name, pid)),
        same_mounts: match pid {
            Some(pid) => same_mounts(pid).map_err(|error| format!("/proc/{pid}/ns/mnt: {error}")),
            None => Err("its process is not visible here".to_owned()),
        },
    })
}

/// `io.containerd.runc.v2` is run by `containerd-shim-runc-v2`; a path is itself.
fn shim_program(shim: &str) -> Option<PathBuf> {
    if shim.starts_with('/') {
        return Some(PathBuf::from(shim));
    }
    let mut parts = shim.rsplit('.');
    let (version, name) = (parts.next()?, parts.next()?);
    Some(PathBuf::from(format!("{SHIM_PREFIX}-{name}-{version}")))
}

/// Beside containerd's program first, as containerd looks it up.
fn found(name: &Path, pid: Option<i32>) -> Option<PathBuf> {
    let program = pid.and_then(|pid| std::fs::read_link(format!("/proc/{pid}/exe")).ok());
    let beside = program
        .as_deref()
        .and_then(Path::parent)
        .map(Path::to_owned);
    beside
        .into_iter()
        .chain(search_path())
        .map(|at| at.join(name))
        .find(|path| path.is_file())
}

/// Directories of programs.
pub(super) fn search_path() -> Vec<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(std::env::split_paths(PROGRAMS))
        .filter(|path| path.is_absolute())
        .collect()
}

fn same_mounts(pid: i32) -> std::io::Result<bool> {
    let theirs = std::fs::read_link(format!("/proc/{pid}/ns/mnt"))?;
    Ok(theirs == std::fs::read_link("/proc/self/ns/mnt")?)
}

pub(super) fn judge(facts: &Containerd) -> Vec<Finding> {
    let answer = match &facts.answer {
        Ok(answer) => answer,
        Err(why) => {
            return vec![Finding::not(
                "containerd.answers",
                format!("nothing on {}: {why}", facts.socket.display()),
                "instances can be neither made nor removed; what runs goes on",
                "systemctl enable --now containerd; or name its socket: containerd.socket",
            )];
        }
    };
    vec![
        version(&answer.version, &facts.namespace),
        snapshotter(&facts.snapshotter, &answer.snapshotters),
        match &answer.shim {
            Some(path) => Finding::full("containerd.shim", path.display().to_string()),
            None => Finding::not(
                "containerd.shim",
                format!(
                    "no program of {} is beside containerd or in PATH",
                    facts.shim
                ),
                "no container can be started",
                "install it (Debian: apt install containerd), or name another: runtime.shim",
            ),
        },
        match &answer.same_mounts {
            Ok(true) => Finding::full("containerd.mounts", "it sees what is mounted here"),
            Ok(false) => Finding::not(
                "containerd.mounts",
                "containerd lives in another mount namespace",
                "it does not see the network namespaces and root file systems that the agent mounts",
                "no PrivateMounts=, PrivateTmp= or ProtectSystem= in either unit; run this check outside of a container",
            ),
            Err(why) => Finding::part(
                "containerd.mounts",
                format!("not known: {why}"),
                "whether containerd sees what the agent mounts is open",
                "run the check as root",
            ),
        },
    ]
}

fn version(version: &str, namespace: &str) -> Finding {
    let check = "containerd.answers";
    let found = format!("{version}, namespace {namespace}");
    let mut numbers = version
        .trim_start_matches('v')
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let parts = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let (oldest, tested) = ((1, 6), 3);
    if parts < oldest {
        return Finding::not(
            check,
            found,
            "the agent needs calls that came with 1.6",
            "containerd 1.6, 1.7 or 2.x",
        );
    }
    if parts.0 >= tested {
        return Finding::part(
            check,
            found,
            "nobody has tried the agent with it",
            "containerd 1.6, 1.7 or 2.x",
        );
    }
    Finding::full(check, found)
}

fn snapshotter(name: &str, all: &Result<Vec<Snapshotter>, String>) -> Finding {
    let check = "containerd.snapshotter";
    let all = match all {
        Ok(all) => all,
        Err(why) => {
            return Finding::part(
                check,
                format!("{name}: {why}"),
                "whether it is there is open",
                "look: ctr plugins list",
            );
        }
    };
    let means = "no root file system can be made";
    let mend = "another one: containerd.snapshotter; look: ctr plugins list";
    match all.iter().find(|s| s.name == name) {
        Some(Snapshotter {
            fault: None, root, ..
        }) => Finding::full(
            check,
            match root {
                Some(root) => format!("{name} in {root}"),
                None => name.to_owned(),
            },
        ),
        Some(Snapshotter {
            fault: Some(fault), ..
        }) => Finding::not(
            check,
            format!("{name} was not loaded: {fault}"),
            means,
            mend,
        ),
        None => {
            let good = all.iter().filter(|s| s.fault.is_none());
            let names: Vec<&str> = good.map(|s| s.name.as_str()).collect();
            Finding::not(
                check,
                format!("{name} is not there; there are: {}", names.join(", ")),
                means,
                mend,
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Works;

    #[test]
    fn only_versions_that_were_tried_work_in_full() {
        let works = |text| version(text, "nodeagent").works;
        assert_eq!(works("1.6.20~ds1"), Works::Full);
        assert_eq!(works("v2.2.0"), Works::Full);
        assert_eq!(works("1.5.9"), Works::Not);
        assert_eq!(works("3.0.0"), Works::Part);
        assert_eq!(works("nonsense"), Works::Not);
    }

    #[test]
    fn a_snapshotter_that_is_not_there_is_answered_with_those_that_are() {
        let of = |name: &str, fault: Option<&str>| Snapshotter {
            name: name.to_owned(),
            fault: fault.map(str::to_owned),
            root: None,
        };
        let all = Ok(vec![
            of("native", None),
            of("overlayfs", Some("no overlay")),
            of("zfs", Some("x")),
        ]);
        assert_eq!(snapshotter("native", &all).works, Works::Full);
        assert_eq!(
            snapshotter("overlayfs", &all).found,
            "overlayfs was not loaded: no overlay"
        );
        let absent = snapshotter("btrfs", &all);
        assert_eq!(absent.works, Works::Not);
        assert_eq!(absent.found, "btrfs is not there; there are: native");
    }

    #[test]
    fn a_containerd_that_does_not_answer_is_one_finding_with_its_socket() {
        let facts = Containerd {
            socket: "/run/c.sock".into(),
            namespace: "nodeagent".into(),
            snapshotter: "overlayfs".into(),
            shim: "io.containerd.runc.v2".into(),
            answer: Err("No such file or directory (os error 2)".into()),
        };
        let findings = judge(&facts);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].works, Works::Not);
        assert!(
            findings[0]
                .found
                .starts_with("nothing on /run/c.sock: No such file")
        );
    }

    #[test]
    fn a_shim_is_found_by_the_name_of_its_runtime() {
        let name = |shim| shim_program(shim).unwrap().display().to_string();
        assert_eq!(name("io.containerd.runc.v2"), "containerd-shim-runc-v2");
        assert_eq!(name("/opt/shim"), "/opt/shim");
    }
}
