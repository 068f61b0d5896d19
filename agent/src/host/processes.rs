//! The processes of an instance: what the kernel says of each, and what container-init says of
//! those of the manifest.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::answers::{self, lossy};
use super::executor::blocking;
use super::node::Node;
use crate::api::v1::{
    InstanceMemory, InstanceState, Problem, ProblemCode, Process, ProcessExit, ProcessList,
    ProcessState, SupervisedProcess, SupervisedState,
};
use crate::chain::chain;
use crate::gate::{self, ExitStatus, GateError, Supervised};
use crate::instance::ContainerId;
use crate::instance::plan::APP_PROCESS;
use crate::pool::Effects;
use crate::processes::{self, RunState};
use crate::runtime::{MemoryUsage, Usage};

/// Processes that are listed of one instance.
const MOST: usize = 4096;

impl<E: Effects> Node<E> {
    pub(super) async fn processes_of(&self, instance: &str) -> Result<ProcessList, Problem> {
        let (name, found) = self.instance(instance).await?;
        let about = format!("/v1/instances/{name}/processes");
        let problem = |code, detail: String| Problem::new(code, detail).about(about.clone());
        let container = ContainerId::new(name, found.create_generation);
        let state = answers::state(found.phase);
        let usage = self.usage(&container).await;
        let usage = usage.map_err(|detail| problem(ProblemCode::Internal, detail))?;
        if usage.pids.is_empty() {
            return Err(problem(
                ProblemCode::Unavailable,
                format!(
                    "{} is {}: no process runs in it",
                    container.instance,
                    found.phase.as_str()
                ),
            ));
        }
        // Asked first: who is listed afterwards is at least as new as what is told.
        let supervised = match usage.frozen {
            true => Vec::new(),
            false => {
                let told = self.gate.processes(&container).await;
                told.map_err(|error| problem(ProblemCode::Unavailable, unanswered(&error)))?
            }
        };
        let usage = self.usage(&container).await;
        let usage = usage.map_err(|detail| problem(ProblemCode::Internal, detail))?;
        let pids = usage.pids.clone();
        let looked = blocking(move || processes::ordered(processes::look(&pids, MOST))).await;
        let looked = looked.map_err(|failure| problem(ProblemCode::Internal, failure.detail))?;
        Ok(document(&container, state, &usage, supervised, &looked))
    }

    async fn usage(&self, container: &ContainerId) -> Result<Usage, String> {
        let (runtime, id) = (self.executor.runtime.clone(), container.clone());
        let read = blocking(move || runtime.usage(&id)).await;
        let read = read.map_err(|failure| failure.detail)?;
        read.map_err(|error| format!("the cgroup of {container} cannot be read: {error}"))
    }
}

fn unanswered(error: &GateError) -> String {
    match error {
        GateError::NotConnected { container } => format!(
            "container-init of {container} is not connected to the agent yet, so that nobody can tell its processes; ask again"
        ),
        error => chain(error),
    }
}

fn document(
    container: &ContainerId,
    state: InstanceState,
    usage: &Usage,
    supervised: Vec<Supervised>,
    looked: &[processes::Process],
) -> ProcessList {
    let mut names: BTreeMap<u32, &str> = supervised
        .iter()
        .filter_map(|process| Some((process.pid?, process.name.as_str())))
        .collect();
    names.insert(1, "container-init");
    let there: BTreeSet<u32> = looked.iter().map(|process| process.host_pid).collect();
    let omitted = usage.pids.len().saturating_sub(MOST) as u64;
    let listed = looked.iter().map(|process| {
        let name = process.pid.and_then(|pid| names.get(&pid));
        let parent = Some(process.host_parent).filter(|parent| there.contains(parent));
        listed(process, name.map(|name| (*name).to_owned()), parent)
    });
    ProcessList {
        instance: container.instance.to_string(),
        container: container.to_string(),
        state,
        frozen: usage.frozen,
        memory: usage.memory.map(memory),
        processes: listed.collect(),
        supervised: supervised
            .into_iter()
            .map(|process| told(process, state))
            .collect(),
        omitted,
    }
}

fn memory(usage: MemoryUsage) -> InstanceMemory {
    InstanceMemory {
        current_bytes: usage.current,
        peak_bytes: usage.peak,
        limit_bytes: usage.limit,
        oom_kills: usage.kills,
    }
}

fn listed(process: &processes::Process, name: Option<String>, parent: Option<u32>) -> Process {
    let (cpu_ms, age_ms) = (millis(process.cpu), millis(process.age));
    Process {
        pid: process.pid,
        host_pid: process.host_pid,
        parent_host_pid: parent,
        name,
        program: process.name.clone(),
        command: process.command.clone(),
        state: match process.state {
            RunState::Running => ProcessState::Running,
            RunState::Sleeping => ProcessState::Sleeping,
            RunState::Waiting => ProcessState::Uninterruptible,
            RunState::Stopped => ProcessState::Stopped,
            RunState::Zombie => ProcessState::Zombie,
            RunState::Other => ProcessState::Other,
        },
        threads: process.threads,
        cpu_ms,
        cpu_percent: share(cpu_ms, age_ms),
        age_ms,
        rss_bytes: process.resident,
        pss_bytes: process.proportional,
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Per cent with one decimal; 0 of a process without an age.
fn share(part: u64, whole: u64) -> f64 {
    match whole {
        0 => 0.0,
        whole => (lossy(part) / lossy(whole) * 1000.0).round() / 10.0,
    }
}

fn told(process: Supervised, instance: InstanceState) -> SupervisedProcess {
    let is_app = process.name == APP_PROCESS;
    // Whether an app is ready that the agent probes, the agent knows.
    let serves = matches!(
        instance,
        InstanceState::Ready | InstanceState::Active | InstanceState::Draining
    );
    SupervisedProcess {
        state: match process.state {
            gate::ProcessState::Starting if is_app && serves => SupervisedState::Ready,
            gate::ProcessState::Waiting => SupervisedState::Waiting,
            gate::ProcessState::Starting => SupervisedState::Starting,
            gate::ProcessState::Ready => SupervisedState::Ready,
            gate::ProcessState::BackingOff => SupervisedState::BackingOff,
            gate::ProcessState::Stopping => SupervisedState::Stopping,
            gate::ProcessState::Ended => SupervisedState::Ended,
            gate::ProcessState::Restarting => SupervisedState::Restarting,
        },
        pid: process.pid,
        restarts: process.restarts,
        since_ms: process.since.map(millis),
        last_exit: process.last_exit.map(|exit| match exit {
            ExitStatus::Code(code) => ProcessExit::Code(code),
            ExitStatus::Signal(signal) => ProcessExit::Signal(signal),
        }),
        name: process.name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: Option<u32>, host_pid: u32, host_parent: u32) -> processes::Process {
        processes::Process {
            host_pid,
            pid,
            host_parent,
            name: "sh".to_owned(),
            command: "sh -c x".to_owned(),
            state: RunState::Sleeping,
            threads: 1,
            cpu: Duration::from_millis(250),
            age: Duration::from_secs(1),
            resident: 4096,
            proportional: None,
        }
    }

    #[test]
    fn the_kernels_processes_and_container_inits_are_joined_by_the_pid_inside() {
        let supervised = |name: &str, pid| Supervised {
            name: name.to_owned(),
            state: gate::ProcessState::Starting,
            pid,
            restarts: 2,
            since: None,
            last_exit: Some(ExitStatus::Signal(9)),
        };
        let usage = Usage {
            pids: [100, 101, 102, 103].into(),
            frozen: false,
            memory: None,
        };
        let looked = [
            process(Some(1), 100, 50),
            process(Some(7), 101, 100),
            process(Some(8), 102, 101),
            process(None, 103, 60),
        ];
        let list = document(
            &"web-0.g3".parse().unwrap(),
            InstanceState::Active,
            &usage,
            vec![supervised("cache", None), supervised("app", Some(7))],
            &looked,
        );
        let names: Vec<_> = list.processes.iter().map(|p| p.name.as_deref()).collect();
        assert_eq!(names, [Some("container-init"), Some("app"), None, None]);
        let parents: Vec<_> = list.processes.iter().map(|p| p.parent_host_pid).collect();
        assert_eq!(parents, [None, Some(100), Some(101), None]);
        assert_eq!(list.processes[0].cpu_percent.to_string(), "25");
        let states: Vec<_> = list.supervised.iter().map(|p| p.state).collect();
        assert_eq!(states, [SupervisedState::Starting, SupervisedState::Ready]);
        assert_eq!(list.supervised[0].last_exit, Some(ProcessExit::Signal(9)));
        assert_eq!((list.instance.as_str(), list.omitted), ("web-0", 0));
    }
}
