//! Limits of the kernel and of the agent's process, in instances.

use super::cgroups::Layout;
use super::facts::{line_of, number_of};
use super::finding::Finding;

/// Instances that a host should have room for.
const INSTANCES: u64 = 1000;
/// Threads of a shim with its container-init and a small app (`docs/development`: 12 for the shim).
const THREADS_OF_INSTANCE: u64 = 20;
/// Descriptors of the agent for an instance: the gate's session, the init's pidfd and its watch.
const FILES_OF_INSTANCE: u64 = 4;
/// Descriptors that the agent needs with no instance at all.
const FILES_OF_AGENT: u64 = 256;
/// The default of the kernel's neighbour table (arp(7)).
const NEIGHBOURS: u64 = 1024;

/// What may be used up.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub pid_max: Result<u64, String>,
    pub threads_max: Result<u64, String>,
    /// Hard limit of open files, and of which process.
    pub files: Result<(u64, Whose), String>,
    pub inotify_instances: Result<u64, String>,
    pub neighbours: Result<u64, String>,
}

/// Whose limit it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// The running agent's.
    Agent,
    /// Of the process that checks; the agent's may differ.
    Caller,
}

pub(super) fn read(agent: Option<i32>) -> Limits {
    let files = match agent {
        Some(pid) => line_of(&format!("/proc/{pid}/limits"))
            .and_then(|text| {
                hard_files(&text).ok_or_else(|| format!("/proc/{pid}/limits has none"))
            })
            .map(|hard| (hard, Whose::Agent)),
        None => {
            let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
            Ok((limit.maximum.unwrap_or(u64::MAX), Whose::Caller))
        }
    };
    Limits {
        pid_max: number_of("/proc/sys/kernel/pid_max"),
        threads_max: number_of("/proc/sys/kernel/threads-max"),
        files,
        inotify_instances: number_of("/proc/sys/fs/inotify/max_user_instances"),
        neighbours: number_of("/proc/sys/net/ipv4/neigh/default/gc_thresh3"),
    }
}

/// `Max open files   1024   524288   files` (proc_pid_limits(5)).
fn hard_files(limits: &str) -> Option<u64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().nth(1)? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

pub(super) fn judge(limits: &Limits, layout: Layout) -> Vec<Finding> {
    vec![
        threads("limits.pid_max", &limits.pid_max, "kernel.pid_max"),
        threads("limits.threads", &limits.threads_max, "kernel.threads-max"),
        files(&limits.files),
        inotify(&limits.inotify_instances, layout),
        neighbours(&limits.neighbours),
    ]
}

fn unknown(check: &str, why: &str) -> Finding {
    Finding::part(
        check,
        why,
        "how many instances fit is not known",
        "mount /proc, and run as root",
    )
}

fn sysctl(key: &str, value: u64) -> String {
    format!("sysctl -w {key}={value}, and the same in /etc/sysctl.d/")
}

fn threads(check: &str, limit: &Result<u64, String>, key: &str) -> Finding {
    let limit = match limit {
        Ok(limit) => *limit,
        Err(why) => return unknown(check, why),
    };
    let room = limit / THREADS_OF_INSTANCE;
    let found = format!("{limit}: threads for about {room} small instances");
    if room >= INSTANCES {
        return Finding::full(check, found);
    }
    Finding::part(
        check,
        found,
        "with more instances nothing on this host can start a process",
        sysctl(key, 4_194_304),
    )
}

fn files(limit: &Result<(u64, Whose), String>) -> Finding {
    let check = "limits.nofile";
    let (limit, whose) = match limit {
        Ok(limit) => *limit,
        Err(why) => return unknown(check, why),
    };
    let room = limit.saturating_sub(FILES_OF_AGENT) / FILES_OF_INSTANCE;
    let (of, mend) = match whose {
        Whose::Agent => ("the agent", "LimitNOFILE=524288 in the agent's unit"),
        Whose::Caller => ("this process", "ulimit -n 524288 before `nodeagent run`"),
    };
    if room >= INSTANCES {
        return Finding::full(check, format!("{limit} open files, of {of}"));
    }
    Finding::part(
        check,
        format!("{limit} open files, of {of}: for about {room} instances"),
        "with more instances the agent accepts neither callers nor containers",
        mend,
    )
}

fn inotify(limit: &Result<u64, String>, layout: Layout) -> Finding {
    let check = "limits.inotify";
    let limit = match limit {
        Ok(limit) => *limit,
        Err(why) => return unknown(check, why),
    };
    if layout != Layout::V2 {
        let found = format!("{limit} instances a user; shims use none on version 1");
        return Finding::full(check, found);
    }
    if limit >= INSTANCES {
        return Finding::full(check, format!("{limit} instances a user"));
    }
    Finding::part(
        check,
        format!("{limit} instances a user, and each shim uses one on version 2"),
        format!("from about {limit} instances on the kernel's word of memory kills is lost"),
        sysctl("fs.inotify.max_user_instances", 8192),
    )
}

fn neighbours(limit: &Result<u64, String>) -> Finding {
    let check = "limits.neighbours";
    match limit {
        Ok(limit) if *limit >= NEIGHBOURS => Finding::full(
            check,
            format!("{limit} (gc_thresh3); the agent's own entries are permanent and do not count"),
        ),
        Ok(limit) => Finding::part(
            check,
            format!("{limit} (gc_thresh3)"),
            "hosts that speak with many others lose connections",
            sysctl("net.ipv4.neigh.default.gc_thresh3", 8192),
        ),
        // Only the host's own network namespace has it.
        Err(why) => Finding::full(check, format!("not in this network namespace ({why})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Works;

    #[test]
    fn limits_are_told_in_instances() {
        let few = threads("limits.pid_max", &Ok(4096), "kernel.pid_max");
        assert_eq!(few.works, Works::Part);
        assert_eq!(few.found, "4096: threads for about 204 small instances");
        assert!(
            few.mend
                .is_some_and(|m| m.starts_with("sysctl -w kernel.pid_max="))
        );
        let debian = threads("limits.pid_max", &Ok(32768), "kernel.pid_max");
        assert_eq!(debian.works, Works::Full);
    }

    #[test]
    fn shims_use_inotify_on_version_2_only() {
        assert_eq!(inotify(&Ok(128), Layout::V2).works, Works::Part);
        assert_eq!(inotify(&Ok(128), Layout::Hybrid).works, Works::Full);
        assert_eq!(inotify(&Ok(8192), Layout::V2).works, Works::Full);
    }

    #[test]
    fn the_agents_own_limit_of_files_counts() {
        let text = "Limit   Soft Limit  Hard Limit  Units\n\
                    Max open files            1024                 524288               files     \n";
        assert_eq!(hard_files(text), Some(524_288));
        assert_eq!(files(&Ok((524_288, Whose::Agent))).works, Works::Full);
        let few = files(&Ok((1024, Whose::Agent)));
        assert_eq!(few.works, Works::Part);
        assert!(few.mend.is_some_and(|m| m.contains("LimitNOFILE")));
    }

    #[test]
    fn what_cannot_be_read_is_said_and_not_guessed() {
        let finding = threads("limits.pid_max", &Err("/proc/x: gone".to_owned()), "k");
        assert_eq!(
            (finding.works, finding.found.as_str()),
            (Works::Part, "/proc/x: gone")
        );
    }
}
