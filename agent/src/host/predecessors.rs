//! Tasks of a container from before its present one: their end is nobody's.
//!
//! An agent that is killed in the middle of a creation leaves a task that never ran, or one that
//! containerd is still making and gives up. The next agent makes another under the same id;
//! containerd then tells the end of the first, which only its pid tells apart from the second's.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::instance::ContainerId;

/// The present task of each container that this agent has created; none while it creates it.
#[derive(Debug, Default)]
pub(super) struct Predecessors(Mutex<HashMap<ContainerId, Option<u32>>>);

impl Predecessors {
    /// The container is about to be created: what ends until its task is there was another.
    pub(super) fn begin(&self, container: &ContainerId) {
        self.table().insert(container.clone(), None);
    }

    /// The container's task is there.
    pub(super) fn end(&self, container: &ContainerId, pid: u32) {
        self.table().insert(container.clone(), Some(pid));
    }

    /// Whether `pid` was a task of the container before its present one; 0 is not known to be.
    pub(super) fn had(&self, container: &ContainerId, pid: u32) -> bool {
        match self.table().get(container) {
            Some(Some(present)) => pid != 0 && pid != *present,
            Some(None) => true,
            None => false,
        }
    }

    /// The container is gone for good.
    pub(super) fn forget(&self, container: &ContainerId) {
        self.table().remove(container);
    }

    fn table(&self) -> MutexGuard<'_, HashMap<ContainerId, Option<u32>>> {
        // Every change is one call: a panic elsewhere leaves the map whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_before_the_present_task_is_there_was_another() {
        let predecessors = Predecessors::default();
        let id: ContainerId = "web-0.g1".parse().unwrap();
        assert!(!predecessors.had(&id, 7), "adopted");
        predecessors.begin(&id);
        assert!(predecessors.had(&id, 7));
        predecessors.end(&id, 8);
        assert!(predecessors.had(&id, 7) && !predecessors.had(&id, 8));
        assert!(!predecessors.had(&id, 0), "nobody knows which it was");
        predecessors.forget(&id);
        assert!(!predecessors.had(&id, 7));
    }
}
