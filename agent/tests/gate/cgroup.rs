//! Cgroups of a test: `/nodeagent-gatetest-<pid>-<n>/<container id>` in every hierarchy that
//! proves something, removed at the end.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A cgroup parent of this test's own.
pub struct Cgroups {
    /// As the agent is told.
    pub parent: String,
    roots: Vec<PathBuf>,
}

impl Cgroups {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let mount = Path::new("/sys/fs/cgroup");
        let roots = if mount.join("cgroup.controllers").exists() {
            vec![mount.to_owned()]
        } else {
            let known = ["memory", "pids", "freezer", "unified"].map(|name| mount.join(name));
            known
                .into_iter()
                .filter(|root| root.join("cgroup.procs").exists())
                .collect()
        };
        assert!(
            !roots.is_empty(),
            "no cgroup hierarchy below {}",
            mount.display()
        );
        Self {
            parent: format!("/nodeagent-gatetest-{}-{next}", std::process::id()),
            roots,
        }
    }

    /// Makes the cgroups of `container`; a process that writes `0` into these files joins them.
    pub fn join_files(&self, container: &str) -> Vec<PathBuf> {
        let directories = self
            .roots
            .iter()
            .map(|root| self.below(root).join(container));
        directories
            .map(|directory| {
                fs::create_dir_all(&directory).unwrap();
                directory.join("cgroup.procs")
            })
            .collect()
    }

    fn below(&self, root: &Path) -> PathBuf {
        root.join(self.parent.trim_start_matches('/'))
    }
}

impl Drop for Cgroups {
    /// Every peer was waited for, so that the cgroups are empty.
    fn drop(&mut self) {
        for parent in self.roots.iter().map(|root| self.below(root)) {
            let Ok(entries) = fs::read_dir(&parent) else {
                continue;
            };
            let children = entries
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| path.is_dir());
            for directory in children.chain([parent.clone()]) {
                if let Err(e) = fs::remove_dir(&directory) {
                    eprintln!("{} is left behind: {e}", directory.display());
                }
            }
        }
    }
}
