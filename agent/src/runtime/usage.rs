//! What a container's cgroup holds and counts, as the host sees it: version 1 and 2, without
//! containerd and without the container's help, also while it is frozen.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Containerd;
use super::cgroup::{hierarchies, members};
use crate::instance::ContainerId;

/// What version 1 says where there is no limit: the largest number of whole pages.
const NO_LIMIT: u64 = i64::MAX as u64 & !4095;
/// Groups below a container's that are looked into, each level: what runs inside may make its own.
const MAX_GROUPS: usize = 256;
const MAX_DEPTH: usize = 8;

/// What a container uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Its processes, by their pids on the host.
    pub pids: BTreeSet<i32>,
    /// Whether they are frozen.
    pub frozen: bool,
    /// What they may use and do use; `None` where no memory is counted.
    pub memory: Option<MemoryUsage>,
}

/// Memory of a container in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryUsage {
    /// With what the kernel keeps of files for it.
    pub current: u64,
    /// The most there ever was; `None` where that is not kept (version 2 before Linux 5.19).
    pub peak: Option<u64>,
    /// `None` without a limit.
    pub limit: Option<u64>,
    /// How many processes were killed for memory.
    pub kills: u64,
}

impl Containerd {
    /// What the container uses; nothing where it has no cgroup. Reads files of the kernel, and
    /// blocks that long.
    pub fn usage(&self, id: &ContainerId) -> io::Result<Usage> {
        let path = self.path_of(id);
        let mut usage = Usage::default();
        for hierarchy in hierarchies()? {
            let group = hierarchy.join(&path);
            if !group.is_dir() {
                continue;
            }
            within(&group, MAX_DEPTH, &mut usage.pids)?;
            usage.frozen |= is_frozen(&group);
            usage.memory = usage.memory.or_else(|| memory(&group));
        }
        Ok(usage)
    }
}

/// Adds the members of a group and of those below it.
fn within(group: &Path, depth: usize, pids: &mut BTreeSet<i32>) -> io::Result<()> {
    let own = members(group)?;
    pids.extend(own.into_iter().map(|pid| pid.as_raw_nonzero().get()));
    let entries = match fs::read_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let below: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.is_dir())
        .take(MAX_GROUPS)
        .collect();
    for group in below.iter().filter(|_| depth > 0) {
        within(group, depth - 1, pids)?;
    }
    Ok(())
}

/// `freezer.state` of version 1 (FREEZING counts), `cgroup.events` of version 2.
fn is_frozen(group: &Path) -> bool {
    let read = |name: &str| fs::read_to_string(group.join(name)).unwrap_or_default();
    matches!(read("freezer.state").trim_end(), "FROZEN" | "FREEZING")
        || field(&read("cgroup.events"), "frozen") == Some(1)
}

fn memory(group: &Path) -> Option<MemoryUsage> {
    let read = |name: &str| fs::read_to_string(group.join(name)).ok();
    let number = |name: &str| read(name)?.trim_end().parse::<u64>().ok();
    let (current, peak, limit, kills) = match number("memory.current") {
        Some(current) => (current, "memory.peak", "memory.max", "memory.events"),
        None => (
            number("memory.usage_in_bytes")?,
            "memory.max_usage_in_bytes",
            "memory.limit_in_bytes",
            "memory.oom_control",
        ),
    };
    Some(MemoryUsage {
        current,
        peak: number(peak),
        limit: number(limit).filter(|limit| *limit < NO_LIMIT),
        kills: field(&read(kills).unwrap_or_default(), "oom_kill").unwrap_or(0),
    })
}

/// The number behind a name at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    let (_, value) = lines.find(|(key, _)| *key == name)?;
    value.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        directory
    }

    #[test]
    fn both_versions_say_the_same() {
        let of_v1 = group(&[
            ("memory.usage_in_bytes", "4096\n"),
            ("memory.max_usage_in_bytes", "8192\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            (
                "memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
            ),
            ("freezer.state", "FREEZING\n"),
        ]);
        let of_v2 = group(&[
            ("memory.current", "4096\n"),
            ("memory.peak", "8192\n"),
            ("memory.max", "max\n"),
            ("memory.events", "low 0\noom 1\noom_kill 2\n"),
            ("cgroup.events", "populated 1\nfrozen 1\n"),
        ]);
        let expected = MemoryUsage {
            current: 4096,
            peak: Some(8192),
            limit: None,
            kills: 2,
        };
        for group in [of_v1, of_v2] {
            assert_eq!(memory(group.path()), Some(expected));
            assert!(is_frozen(group.path()));
        }
        let none = group(&[("cgroup.events", "populated 1\nfrozen 0\n")]);
        assert_eq!(memory(none.path()), None);
        assert!(!is_frozen(none.path()));
    }

    #[test]
    fn members_of_groups_below_are_members() {
        let outer = group(&[("cgroup.procs", "10\n11\n")]);
        let inner = outer.path().join("app");
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("cgroup.procs"), "12\n").unwrap();
        let mut pids = BTreeSet::new();
        within(outer.path(), MAX_DEPTH, &mut pids).unwrap();
        assert_eq!(pids, BTreeSet::from([10, 11, 12]));
    }
}
