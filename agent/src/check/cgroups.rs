//! Control groups: which layout, the controllers, and whose the agent's part of the tree is.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::facts::{line_of, nearest, writable};
use super::finding::Finding;

/// Where the hierarchies are (cgroups(7)).
const MOUNT: &str = "/sys/fs/cgroup";
/// Containers are limited by these on every layout.
const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];
/// With version 1 these are controllers of their own; version 2 has them built in.
const NEEDED_V1: [&str; 2] = ["devices", "freezer"];

/// Which hierarchies carry controllers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// One tree for everything.
    V2,
    /// One tree for each controller.
    V1,
    /// As [`Layout::V1`], beside a tree of version 2 without controllers.
    Hybrid,
    /// Nothing is mounted.
    Absent,
}

/// Who manages the tree above `runtime.cgroup_parent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// No systemd: nobody else touches it.
    Nobody,
    /// systemd, which has delegated it (`Delegate=yes`).
    Delegated,
    /// systemd, which knows nothing of it.
    Systemd,
}

/// The control groups of this host.
#[derive(Debug, Clone)]
pub(super) struct Cgroups {
    pub layout: Layout,
    pub controllers: BTreeSet<String>,
    pub parent: String,
    pub owner: Owner,
    /// Whether groups can be made at the parent; or why not.
    pub writable: Result<(), String>,
}

pub(super) fn read(parent: &str) -> Cgroups {
    let mounts = line_of("/proc/self/mounts").unwrap_or_default();
    let layout = layout(&mounts);
    let controllers = match layout {
        Layout::V2 => line_of(&format!("{MOUNT}/cgroup.controllers")).unwrap_or_default(),
        _ => controllers_v1(&mounts),
    };
    let trees: Vec<PathBuf> = match layout {
        Layout::V2 => vec![PathBuf::from(MOUNT)],
        Layout::V1 | Layout::Hybrid => ["memory", "pids"].map(|c| Path::new(MOUNT).join(c)).into(),
        Layout::Absent => Vec::new(),
    };
    let below = parent.trim_start_matches('/');
    let places: Vec<PathBuf> = trees.iter().map(|tree| tree.join(below)).collect();
    Cgroups {
        layout,
        controllers: controllers.split_whitespace().map(str::to_owned).collect(),
        parent: parent.to_owned(),
        owner: owner(&places),
        writable: places.iter().try_for_each(|place| writable(place)),
    }
}

/// Where runc and the agent look: below [`MOUNT`]. `mounts` is `/proc/self/mounts` (proc(5)).
fn layout(mounts: &str) -> Layout {
    let mounted: Vec<(&str, &str)> = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            Some((fields.next()?, fields.next()?))
        })
        .filter(|(at, _)| at.starts_with(MOUNT))
        .collect();
    if mounted.contains(&(MOUNT, "cgroup2")) {
        return Layout::V2;
    }
    let any = |kind| mounted.iter().any(|(_, found)| *found == kind);
    match (any("cgroup"), any("cgroup2")) {
        (true, true) => Layout::Hybrid,
        (true, false) => Layout::V1,
        _ => Layout::Absent,
    }
}

/// The options of each mounted hierarchy name its controllers.
fn controllers_v1(mounts: &str) -> String {
    let options = mounts.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        (fields.get(2) == Some(&"cgroup")).then(|| fields.get(3).copied().unwrap_or_default())
    });
    let words: Vec<&str> = options.flat_map(|options| options.split(',')).collect();
    words.join(" ")
}

/// systemd marks what it has delegated by an extended attribute (systemd.resource-control(5)).
fn owner(places: &[PathBuf]) -> Owner {
    if !Path::new("/run/systemd/system").is_dir() {
        return Owner::Nobody;
    }
    let delegated = |directory: &Path| {
        ["trusted.delegate", "user.delegate"].iter().any(|name| {
            let mut value = [0_u8; 1];
            matches!(rustix::fs::getxattr(directory, *name, &mut value), Ok(1) if value == *b"1")
        })
    };
    let below = |path: &PathBuf| nearest(path).ancestors().any(delegated);
    if places.iter().all(below) {
        Owner::Delegated
    } else {
        Owner::Systemd
    }
}

pub(super) fn judge(cgroups: &Cgroups) -> Vec<Finding> {
    let check = "cgroups.layout";
    let layout = match cgroups.layout {
        Layout::V2 => Finding::full(check, "version 2"),
        Layout::V1 => Finding::full(check, "version 1"),
        Layout::Hybrid => {
            Finding::full(check, "version 1, version 2 beside it without controllers")
        }
        Layout::Absent => {
            return vec![Finding::not(
                check,
                format!("nothing is mounted below {MOUNT}"),
                "containers can be neither limited nor told apart",
                format!("mount -t cgroup2 none {MOUNT}"),
            )];
        }
    };
    vec![layout, controllers(cgroups), parent(cgroups)]
}

fn controllers(cgroups: &Cgroups) -> Finding {
    let check = "cgroups.controllers";
    let own: &[&str] = match cgroups.layout {
        Layout::V2 => &[],
        _ => &NEEDED_V1,
    };
    let wanted: Vec<&str> = NEEDED.iter().chain(own).copied().collect();
    let missing: Vec<&str> = wanted
        .iter()
        .copied()
        .filter(|name| !cgroups.controllers.contains(*name))
        .collect();
    if missing.is_empty() {
        return Finding::full(check, wanted.join(", "));
    }
    let missing_text = missing.join(", ");
    Finding::not(
        check,
        format!("missing: {missing_text}"),
        "limits of the manifest would not hold, and runc refuses containers",
        if missing.contains(&"memory") {
            "boot with cgroup_enable=memory on the kernel's command line"
        } else {
            "a kernel with these controllers, not switched off by cgroup_disable= or cgroup_no_v1="
        },
    )
}

fn parent(cgroups: &Cgroups) -> Finding {
    let check = "cgroups.parent";
    let parent = &cgroups.parent;
    if let Err(why) = &cgroups.writable {
        return Finding::not(
            check,
            format!("{parent} cannot be made: {why}"),
            "no container can be made",
            "run as root, with /sys/fs/cgroup mounted writable; or another runtime.cgroup_parent",
        );
    }
    match cgroups.owner {
        Owner::Nobody => Finding::full(check, format!("{parent}; no systemd that manages it")),
        Owner::Delegated => Finding::full(check, format!("{parent}, delegated by systemd")),
        Owner::Systemd => Finding::part(
            check,
            format!("{parent} is not delegated: systemd does not know of it"),
            "systemd may move processes out of it or take its controllers away",
            "run the agent as its unit: systemctl enable --now nodeagent",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Works;

    const HYBRID: &str = "\
tmpfs /sys/fs/cgroup tmpfs rw 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0
";

    fn cgroups(layout: Layout, controllers: &str) -> Cgroups {
        Cgroups {
            layout,
            controllers: controllers.split(' ').map(str::to_owned).collect(),
            parent: "/nodeagent".to_owned(),
            owner: Owner::Nobody,
            writable: Ok(()),
        }
    }

    #[test]
    fn the_layout_is_read_from_what_is_mounted() {
        assert_eq!(layout(HYBRID), Layout::Hybrid);
        assert_eq!(
            layout("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"),
            Layout::V2
        );
        let v1 = "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n";
        assert_eq!(layout(v1), Layout::V1);
        assert_eq!(layout("proc /proc proc rw 0 0\n"), Layout::Absent);
        assert_eq!(
            layout("cgroup2 /mnt/other cgroup2 rw 0 0\n"),
            Layout::Absent
        );
        assert!(controllers_v1(HYBRID).split(' ').any(|c| c == "cpu"));
    }

    #[test]
    fn version_1_needs_the_freezer_as_a_controller_and_version_2_has_it() {
        let works = |layout, list| controllers(&cgroups(layout, list)).works;
        assert_eq!(works(Layout::V2, "cpu memory pids"), Works::Full);
        assert_eq!(works(Layout::V1, "cpu memory pids"), Works::Not);
        assert_eq!(
            works(Layout::Hybrid, "cpu devices freezer memory pids"),
            Works::Full
        );
        let finding = controllers(&cgroups(Layout::V2, "cpu pids"));
        assert_eq!(finding.found, "missing: memory");
        assert!(
            finding
                .mend
                .is_some_and(|m| m.contains("cgroup_enable=memory"))
        );
    }

    #[test]
    fn a_tree_that_systemd_has_not_delegated_works_in_part() {
        let mut own = cgroups(Layout::V2, "cpu memory pids");
        assert_eq!(parent(&own).works, Works::Full);
        own.owner = Owner::Systemd;
        assert_eq!(parent(&own).works, Works::Part);
        own.owner = Owner::Delegated;
        assert_eq!(parent(&own).works, Works::Full);
        own.writable = Err("/sys/fs/cgroup: Read-only file system".to_owned());
        assert_eq!(parent(&own).works, Works::Not);
    }

    #[test]
    fn without_cgroups_nothing_else_is_said_of_them() {
        let findings = judge(&cgroups(Layout::Absent, ""));
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].works, Works::Not);
    }
}
