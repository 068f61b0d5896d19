//! The order of a tree: everybody behind their parent.

use std::collections::{BTreeMap, BTreeSet};

use super::Process;

/// Everybody behind their parent and before the parent's next child; children by pid in the
/// container. Who has no parent among them begins a tree of their own, the container's first
/// process first. Nobody is left out, whatever pids were given anew while they were read.
pub fn ordered(processes: Vec<Process>) -> Vec<Process> {
    let known: BTreeSet<u32> = processes.iter().map(|process| process.host_pid).collect();
    let mut children: BTreeMap<u32, Vec<Process>> = BTreeMap::new();
    for process in processes {
        let parent = process.host_parent;
        let rooted = known.contains(&parent) && parent != process.host_pid;
        children
            .entry(if rooted { parent } else { 0 })
            .or_default()
            .push(process);
    }
    for siblings in children.values_mut() {
        // Popped from the end.
        siblings.sort_by_key(|p| std::cmp::Reverse((p.pid.unwrap_or(u32::MAX), p.host_pid)));
    }
    let mut order = Vec::new();
    let mut stack = children.remove(&0).unwrap_or_default();
    loop {
        while let Some(process) = stack.pop() {
            stack.extend(children.remove(&process.host_pid).unwrap_or_default());
            order.push(process);
        }
        match children.pop_first() {
            // Parents in a circle: read at different moments.
            Some((_, rest)) => stack = rest,
            None => return order,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processes::RunState;
    use proptest::prelude::*;
    use std::time::Duration;

    fn process(pid: u32, parent: u32) -> Process {
        Process {
            host_pid: 100 + pid,
            pid: Some(pid),
            host_parent: 100 + parent,
            name: "x".to_owned(),
            command: "x".to_owned(),
            state: RunState::Sleeping,
            threads: 1,
            cpu: Duration::ZERO,
            age: Duration::ZERO,
            resident: 0,
            proportional: None,
        }
    }

    fn pids(processes: Vec<Process>) -> Vec<u32> {
        processes.iter().filter_map(|process| process.pid).collect()
    }

    #[test]
    fn children_stand_behind_their_parents() {
        let crowd = [(9, 2), (2, 1), (40, 0), (3, 1), (7, 2), (1, 0), (12, 7)];
        let crowd = crowd.map(|(pid, parent)| process(pid, parent));
        assert_eq!(pids(ordered(crowd.to_vec())), [1, 2, 7, 12, 9, 3, 40]);
    }

    proptest! {
        #[test]
        fn nobody_is_left_out(parents in proptest::collection::vec(0u32..30, 0..30)) {
            let crowd: Vec<Process> = parents
                .iter()
                .zip(1..)
                .map(|(parent, pid)| process(pid, *parent))
                .collect();
            let mut found = pids(ordered(crowd));
            found.sort_unstable();
            prop_assert_eq!(found, (1..=u32::try_from(parents.len()).unwrap()).collect::<Vec<_>>());
        }
    }
}
