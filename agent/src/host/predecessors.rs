//! Tasks that a create has taken away to make the same container again: their end is nobody's.
//!
//! An agent that is killed between the creation of a task and its start leaves one that never ran.
//! The next agent deletes it and creates another under the same id; containerd then tells the end of
//! the first, which only its pid tells apart from the second's.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::instance::ContainerId;

/// The last task of each container that was taken away; as many as there are containers.
#[derive(Debug, Default)]
pub(super) struct Predecessors(Mutex<HashMap<ContainerId, u32>>);

impl Predecessors {
    /// The task `pid` of the container is about to be taken away.
    pub(super) fn note(&self, container: &ContainerId, pid: u32) {
        self.table().insert(container.clone(), pid);
    }

    /// Whether `pid` was a task of the container before its present one.
    pub(super) fn had(&self, container: &ContainerId, pid: u32) -> bool {
        self.table().get(container) == Some(&pid)
    }

    /// The container is gone for good.
    pub(super) fn forget(&self, container: &ContainerId) {
        self.table().remove(container);
    }

    fn table(&self) -> MutexGuard<'_, HashMap<ContainerId, u32>> {
        // Every change is one call: a panic elsewhere leaves the map whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
