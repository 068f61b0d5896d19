//! Out of memory, and frozen: in cgroups of the test's own (version 1, as this kernel has them).

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

#[allow(dead_code, reason = "shared with the tests of plans")]
mod container;

use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use container::{Agent, Container, Settings, Spec, until};
use container_init::protocol::Request;

/// A cgroup of one controller; gone with the test.
struct Cgroup(PathBuf);

impl Cgroup {
    fn make(controller: &str, name: &str) -> Self {
        let name = format!("nodeagent-tests-{name}-{}", std::process::id());
        let path = PathBuf::from(format!("/sys/fs/cgroup/{controller}/{name}"));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn set(&self, file: &str, value: &str) {
        std::fs::write(self.0.join(file), value).unwrap();
    }

    fn get(&self, file: &str) -> String {
        std::fs::read_to_string(self.0.join(file)).unwrap()
    }

    /// Words that put what they execute into the cgroup, which it sees as the root.
    fn wrapper(&self, controller: &str) -> Vec<String> {
        let script = format!(
            "echo $$ >{0}/cgroup.procs && exec unshare --mount -- sh -c 'mount --bind {0} /sys/fs/cgroup/{controller} && exec \"$@\"' sh \"$@\"",
            self.0.display()
        );
        ["sh", "-c", &script, "sh"].map(str::to_owned).to_vec()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        until("an empty cgroup", || std::fs::remove_dir(&self.0).is_ok());
    }
}

/// Grows until something stops it.
const GROWS: &str = "exec busybox tail /dev/zero";
const LIMIT: u64 = 24 * 1024 * 1024;

fn run(specs: &[Spec], wrapper: Vec<String>) -> (Container, UnixListener, Agent) {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("gate.sock")).unwrap();
    let settings = Settings {
        wrapper,
        ..Settings::default()
    };
    let container = Container::run_in(directory, specs, settings);
    let mut agent = Agent::accept(&listener);
    agent.wait_for("Armed");
    (container, listener, agent)
}

#[test]
fn a_kill_for_memory_is_told_with_victim_and_counters_while_the_others_live() {
    let cgroup = Cgroup::make("memory", "oom");
    cgroup.set("memory.limit_in_bytes", &LIMIT.to_string());
    let flushes =
        "trap 'echo flushed; exit' TERM; echo up; while :; do busybox sleep 1000 & wait $!; done";
    let specs = [
        Spec::agent("log", &[]).script(flushes),
        Spec::app(&[]).script(GROWS),
    ];
    let (mut container, _listener, mut agent) = run(&specs, cgroup.wrapper("memory"));
    agent.start(8);
    let told = agent.wait_for("OutOfMemory");
    assert!(told.contains("name: \"app\""), "{told}");
    assert!(
        told.contains(&format!("kills: 1, limit_bytes: {LIMIT}")),
        "{told}"
    );
    let ended = agent.wait_for("Exited");
    assert!(ended.contains("status: Signal(9), oom: true"), "{ended}");
    container.wait_for_line("flushed");
    assert_eq!(container.exit_code(), 137);
}

#[test]
fn a_kill_that_somebody_sent_is_not_called_out_of_memory() {
    let cgroup = Cgroup::make("memory", "kill");
    let (mut container, _listener, mut agent) = run(
        &[Spec::app(&[]).script("busybox kill -9 $$")],
        cgroup.wrapper("memory"),
    );
    agent.start(8);
    let ended = agent.wait_for("Exited");
    assert!(ended.contains("status: Signal(9), oom: false"), "{ended}");
    assert_eq!(container.exit_code(), 137);
}

#[test]
fn an_optional_agent_that_runs_out_of_memory_comes_back_and_the_app_lives() {
    let cgroup = Cgroup::make("memory", "agent");
    cgroup.set("memory.limit_in_bytes", &LIMIT.to_string());
    let specs = [
        Spec::agent("greedy", &[]).optional().script(GROWS),
        Spec::app(&[]).script("echo up; exec busybox sleep 1000"),
    ];
    let (container, _listener, mut agent) = run(&specs, cgroup.wrapper("memory"));
    agent.start(8);
    container.wait_for_line("up");
    for kills in [1, 2] {
        let told = agent.wait_for("OutOfMemory");
        assert!(told.contains("name: \"greedy\""), "{told}");
        assert!(told.contains("kills: "), "{kills}: {told}");
    }
    agent.ask(Request::Status);
    let status = agent.wait_for("Status");
    assert!(!status.contains("app_pid: 0,"), "{status}");
}

#[test]
fn a_container_that_was_frozen_during_its_stop_ends_when_it_is_thawed() {
    let cgroup = Cgroup::make("freezer", "stop");
    let script =
        "trap 'echo bye; exit 5' TERM; echo set; while :; do busybox sleep 1000 & wait $!; done";
    let (mut container, _listener, mut agent) =
        run(&[Spec::app(&[]).script(script)], cgroup.wrapper("freezer"));
    agent.start(8);
    container.wait_for_line("set");
    cgroup.set("freezer.state", "FROZEN");
    until("all of it to be frozen", || {
        cgroup.get("freezer.state") == "FROZEN\n"
    });
    // The request waits in the socket, TERM in the queue of a process that does not run.
    agent.ask(Request::Stop { budget_ms: 60_000 });
    cgroup.set("freezer.state", "THAWED");
    container.wait_for_line("bye");
    assert_eq!(container.exit_code(), 5);
}
