//! What is ours by name or label and belongs to no instance.
//!
//! All is listed before the journal is asked who is alive: what an intent that comes between has
//! made is either not in the list, or its instance is in the journal. A container's id is never used
//! again; a slot is named like its instance, which may come again while this runs: the ledger, which
//! grants an address before anything is made, is asked in the slot's own turn.

use std::collections::BTreeSet;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::executor::Executor;
use super::registrations::{self, Records};
use super::volumes;
use crate::chain::chain;
use crate::instance::{ContainerId, InstanceName};
use crate::journal::InstanceRow;
use crate::network::{Ledger, ObservedSlot};
use crate::runtime::Observed;

/// Everything of ours that is on this host. What could not be listed is left out, and stays.
pub(super) struct Found {
    pub containers: Vec<Observed>,
    pub snapshots: Vec<String>,
    pub cgroups: BTreeSet<ContainerId>,
    pub directories: Vec<ContainerId>,
    pub secrets: Vec<ContainerId>,
    pub slots: Vec<ObservedSlot>,
    pub records: Records,
}

/// Lists everything of ours; `records` are what the backends of discovery list.
pub(super) async fn find(
    executor: &Executor,
    containers: Vec<Observed>,
    records: Records,
) -> Found {
    let snapshots = told("snapshots", executor.runtime.list_snapshots().await);
    let slots = told("network slots", executor.network.slots().await);
    Found {
        containers,
        snapshots: snapshots.unwrap_or_default(),
        cgroups: told("cgroups", executor.runtime.cgroups()).unwrap_or_default(),
        directories: told("directories", executor.directories.existing()).unwrap_or_default(),
        secrets: told("secrets", volumes::existing(&executor.settings)).unwrap_or_default(),
        slots: slots.unwrap_or_default(),
        records,
    }
}

/// Removes what belongs to no instance of the journal; `containers` are all of ours that containerd
/// has, `records` what the backends of discovery list. May run at any time.
pub(super) async fn sweep(
    executor: &Executor,
    ledger: &Mutex<Ledger>,
    containers: Vec<Observed>,
    records: Records,
) {
    let found = find(executor, containers, records).await;
    let Some(mut rows) = told("instances", executor.journal.instances()) else {
        return;
    };
    rows.retain(|row| row.released_ms.is_none());
    Sweep::new(executor, &rows).run(found, ledger).await;
}

/// What may stay.
struct Sweep<'a> {
    executor: &'a Executor,
    instances: BTreeSet<&'a InstanceName>,
    containers: BTreeSet<ContainerId>,
    /// The key of an instance's rootfs is the id of the container that it was made for.
    rootfs: BTreeSet<String>,
}

impl<'a> Sweep<'a> {
    fn new(executor: &'a Executor, live: &'a [InstanceRow]) -> Self {
        let id = |row: &InstanceRow, generation| ContainerId::new(row.instance.clone(), generation);
        Self {
            executor,
            instances: live.iter().map(|row| &row.instance).collect(),
            containers: live
                .iter()
                .map(|row| id(row, row.create_generation))
                .collect(),
            rootfs: live
                .iter()
                .map(|row| id(row, row.rootfs_generation).to_string())
                .collect(),
        }
    }

    /// Containers before what they stand on.
    async fn run(&self, found: Found, ledger: &Mutex<Ledger>) {
        let executor = self.executor;
        let containers = found.containers.iter().filter_map(|c| c.id.parse().ok());
        for id in containers.filter(|id| self.is_stray(id)) {
            removing("container", &id);
            said("container", executor.runtime.delete_container(&id).await);
        }
        for id in found.cgroups.iter().filter(|id| self.is_stray(id)) {
            self.remove_cgroup(id).await;
        }
        let stray = |key: &&String| !self.rootfs.contains(*key);
        for key in found.snapshots.iter().filter(stray) {
            removing("snapshot", key);
            said("snapshot", executor.runtime.remove_snapshot(key).await);
        }
        for id in found.directories.iter().filter(|id| self.is_stray(id)) {
            removing("directory", id);
            said("directory", executor.directories.remove(id));
        }
        for id in found.secrets.iter().filter(|id| self.is_stray(id)) {
            removing("directory of secrets", id);
            said("secrets", volumes::remove(id, &executor.settings));
        }
        let stray = |slot: &&ObservedSlot| !self.instances.contains(&slot.instance);
        for slot in found.slots.iter().filter(stray) {
            let holds_nothing = || {
                let ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
                ledger.held_by(&slot.instance).is_none()
            };
            removing("network slot", &slot.instance);
            let removed = executor.network.remove_stray(slot, holds_nothing).await;
            said("network slot", removed);
        }
        for (backend, records) in &found.records {
            let stray = records.iter();
            let stray = stray.filter(|record| !self.instances.contains(&record.instance));
            registrations::deregister(backend.as_ref(), stray).await;
        }
    }

    fn is_stray(&self, id: &ContainerId) -> bool {
        !self.containers.contains(id)
    }

    /// The group of a container that containerd does not know. What runs in it is killed when it is
    /// ours, and left alone otherwise.
    async fn remove_cgroup(&self, id: &ContainerId) {
        let runtime = &self.executor.runtime;
        let Some(processes) = told("processes", runtime.processes(id)) else {
            return;
        };
        let gate = self.executor.settings.paths.runtime.join("ctl");
        if processes.iter().any(|pid| !dials(*pid, &gate)) {
            tracing::warn!(
                container = %id,
                ?processes,
                "in the cgroup of a container that belongs to no instance, and not ours; left alone"
            );
            return;
        }
        // The group of a container that was deleted just now goes by itself.
        if !processes.is_empty() {
            removing("cgroup with processes", id);
        }
        said("cgroup", runtime.remove_cgroup(id).await);
        // Its shim has nothing to do any more.
        said("shim", runtime.delete_container(id).await);
    }
}

/// Whether a process sees our gate's directory where our containers do. One that ended meanwhile
/// sees nothing, and nothing is lost when it is taken for another's: the next start looks again.
fn dials(pid: i32, gate: &Path) -> bool {
    let seen = format!("/proc/{pid}/root/.nodeagent/ctl");
    match (std::fs::metadata(seen), std::fs::metadata(gate)) {
        (Ok(seen), Ok(gate)) => (seen.dev(), seen.ino()) == (gate.dev(), gate.ino()),
        _ => false,
    }
}

fn removing(what: &str, name: &dyn fmt::Display) {
    tracing::warn!(what, %name, "removing what belongs to no instance");
}

pub(super) fn told<T, E: std::error::Error + 'static>(
    what: &str,
    result: Result<T, E>,
) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::warn!(
                what,
                error = chain(&error),
                "cannot be listed; nothing of it is removed"
            );
            None
        }
    }
}

pub(super) fn said<T, E: std::error::Error + 'static>(what: &str, result: Result<T, E>) {
    if let Err(error) = result {
        tracing::warn!(
            what,
            error = chain(&error),
            "cannot be removed; the next start tries again"
        );
    }
}
