//! What is ours by name or label and belongs to no instance.
//!
//! All is listed before the journal is asked who is alive: what an intent that comes between has
//! made is either not in the list, or its instance is in the journal.

use std::collections::BTreeSet;

use super::executor::Executor;
use super::registrations::Records;
use crate::chain::chain;
use crate::instance::{ContainerId, InstanceName};
use crate::journal::InstanceRow;
use crate::network::ObservedSlot;
use crate::runtime::Observed;

/// Everything of ours that is on this host. What could not be listed is left out, and stays.
pub(super) struct Found {
    pub containers: Vec<Observed>,
    pub snapshots: Vec<String>,
    pub directories: Vec<ContainerId>,
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
        directories: told("directories", executor.directories.existing()).unwrap_or_default(),
        slots: slots.unwrap_or_default(),
        records,
    }
}

impl Found {
    /// Removes what belongs to none of `live`.
    pub async fn remove_strays(self, executor: &Executor, live: &[&InstanceRow]) {
        let id = |row: &&InstanceRow| ContainerId::new(row.instance.clone(), row.create_generation);
        let rootfs = |row: &&InstanceRow| {
            ContainerId::new(row.instance.clone(), row.rootfs_generation).to_string()
        };
        let known: BTreeSet<String> = live.iter().map(|row| id(row).to_string()).collect();
        let rootfs: BTreeSet<String> = live.iter().map(rootfs).collect();
        let instances: BTreeSet<&InstanceName> = live.iter().map(|row| &row.instance).collect();
        for container in self.containers.iter().filter(|c| !known.contains(&c.id)) {
            let Ok(id) = container.id.parse::<ContainerId>() else {
                continue;
            };
            tracing::warn!(container = %id, "removing a container that belongs to no instance");
            said("container", executor.runtime.delete_container(&id).await);
        }
        for key in self.snapshots.iter().filter(|key| !rootfs.contains(*key)) {
            said("snapshot", executor.runtime.remove_snapshot(key).await);
        }
        let stray = |id: &&ContainerId| !known.contains(&id.to_string());
        for id in self.directories.iter().filter(stray) {
            said("directory", executor.directories.remove(id));
        }
        let stray = |slot: &&ObservedSlot| !instances.contains(&slot.instance);
        for slot in self.slots.iter().filter(stray) {
            tracing::warn!(instance = %slot.instance, "removing a network slot that belongs to no instance");
            said(
                "network slot",
                executor
                    .network
                    .remove_slot(&slot.instance, slot.address())
                    .await,
            );
        }
        for (backend, records) in &self.records {
            let stray = records
                .iter()
                .filter(|record| !instances.contains(&record.instance));
            let stray: Vec<_> = stray
                .map(|record| (record.instance.clone(), record.generation))
                .collect();
            if !stray.is_empty() {
                tracing::warn!(
                    backend = backend.name(),
                    count = stray.len(),
                    "deregistering what belongs to no instance"
                );
                said("registration", backend.deregister(&stray).await);
            }
        }
    }
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
