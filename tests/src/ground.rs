//! What a test host stands on: its id, its directory, its network namespace.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock};

use crate::netns::Netns;
use crate::teardown;

/// Directory of all test hosts of the machine. Short, because unix socket paths end at 107 bytes.
pub const BASE: &str = "/tmp/nodeagent-tests";

/// The ground of one test host. Dropping it removes everything that stood on it.
#[derive(Debug)]
pub struct Ground {
    id: String,
    directory: PathBuf,
    netns: Netns,
    // Held while the run lives; the kernel releases it when the run dies, however it does.
    _lock: File,
}

impl Ground {
    /// A new ground; the first of a run removes what dead runs left.
    pub fn new() -> Result<Self> {
        static SWEEP: Once = Once::new();
        static COUNT: AtomicU32 = AtomicU32::new(0);

        ensure!(
            rustix::process::geteuid().is_root(),
            "test hosts need root: network namespaces, mounts, cgroups"
        );
        let base = Path::new(BASE);
        fs::create_dir_all(base).with_context(|| format!("create {BASE}"))?;
        SWEEP.call_once(|| teardown::sweep_dead_runs(base));

        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}-{count}", std::process::id());
        let lock = File::create(teardown::lock_file(base, &id))
            .with_context(|| format!("create the lock of test host {id}"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .with_context(|| format!("lock test host {id}"))?;
        let directory = base.join(&id);
        fs::create_dir(&directory).with_context(|| format!("create {}", directory.display()))?;
        // From here on teardown knows what to do, also when making the namespace fails.
        let netns = Netns::create(&directory.join("netns"))
            .inspect_err(|_| teardown::tear_down(base, &id))?;
        Ok(Self {
            id,
            directory,
            netns,
            _lock: lock,
        })
    }

    /// `<pid>-<n>`, unique on this machine while the run lives.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The host's own directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A path below the host's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The host's network.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Absolute cgroup below which the host's containers live, in every hierarchy.
    pub fn cgroup_parent(&self) -> String {
        teardown::cgroup_parent(&self.id)
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        teardown::tear_down(Path::new(BASE), &self.id);
    }
}
