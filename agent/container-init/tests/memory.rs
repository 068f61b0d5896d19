//! Out of memory, and frozen: in cgroups of the test's own (version 1, as this kernel has them).

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

#[allow(dead_code, reason = "each test file uses its part")]
mod command;
#[allow(dead_code, reason = "shared with the tests of plans")]
mod container;

use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use container::{Agent, Container, Settings, Spec, until};
use container_init::plan::Limits;
use container_init::protocol::{EnvList, Request, Restart, Start};

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

    /// The names of the cgroups below.
    fn below(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).unwrap().flatten();
        let directories = entries.filter(|entry| entry.path().is_dir());
        let names = directories.map(|entry| entry.file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for name in self.below() {
            let below = self.0.join(name);
            until("an empty cgroup", || std::fs::remove_dir(&below).is_ok());
        }
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
    let flushes = "trap 'echo flushed; exit' TERM; echo up; while :; do busybox sleep 0.05; done";
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
    let script = "trap 'echo bye; exit 5' TERM; echo set; while :; do busybox sleep 0.05; done";
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

/// A container whose cgroups are its own to divide.
fn delegated(name: &str) -> (Vec<Cgroup>, Vec<String>) {
    let controllers = ["memory", "cpu", "pids", "freezer"];
    let cgroups: Vec<Cgroup> = controllers
        .map(|controller| Cgroup::make(controller, name))
        .into();
    let wrapper = cgroups.iter().zip(controllers);
    let wrapper = wrapper.flat_map(|(cgroup, controller)| cgroup.wrapper(controller));
    let wrapper = wrapper.collect();
    (cgroups, wrapper)
}

const NO_LIMITS: Limits = Limits {
    memory_bytes: 0,
    cpu_quota_us: 0,
    pids: 0,
};

#[test]
fn each_process_has_its_own_cgroup_with_its_own_limits_and_its_own_kill_for_memory() {
    let (cgroups, wrapper) = delegated("own");
    let greedy = Spec {
        limits: Some(Limits {
            memory_bytes: LIMIT,
            cpu_quota_us: 50_000,
            pids: 40,
        }),
        ..Spec::agent("greedy", &[]).optional().script(GROWS)
    };
    let app = Spec {
        limits: Some(NO_LIMITS),
        ..Spec::app(&[]).script("echo up; exec busybox sleep 1000")
    };
    let (container, _listener, mut agent) = run(&[greedy, app], wrapper);
    agent.start(8);
    container.wait_for_line("up");
    let told = agent.wait_for("OutOfMemory");
    assert!(told.contains("name: \"greedy\""), "{told}");
    assert!(told.contains(&format!("limit_bytes: {LIMIT}")), "{told}");
    for cgroup in &cgroups {
        assert_eq!(cgroup.below(), ["p-app", "p-greedy"]);
    }
    let [memory, cpu, pids, _] = &cgroups[..] else {
        panic!("four controllers");
    };
    assert_eq!(
        memory.get("p-greedy/memory.limit_in_bytes"),
        format!("{LIMIT}\n")
    );
    assert_eq!(cpu.get("p-greedy/cpu.cfs_quota_us"), "50000\n");
    assert_eq!(cpu.get("p-app/cpu.cfs_quota_us"), "-1\n");
    assert_eq!(pids.get("p-greedy/pids.max"), "40\n");
    assert_eq!(pids.get("p-app/cgroup.procs").lines().count(), 1);
    agent.ask(Request::Status);
    let status = agent.wait_for("Status");
    assert!(!status.contains("app_pid: 0,"), "the app lives: {status}");
}

#[test]
fn a_kill_by_cgroup_reaches_who_left_session_and_group_and_is_frozen() {
    let (cgroups, wrapper) = delegated("all");
    // Deaf, in a session of its own, child of pid 1 by now.
    let deaf = "(busybox setsid busybox sh -c \"trap '' TERM; echo deep; exec busybox sleep 1000\" &); trap '' TERM; while :; do busybox sleep 1; done";
    let stubborn = Spec {
        limits: Some(NO_LIMITS),
        stop_grace_ms: 100,
        ..Spec::agent("stubborn", &[]).script(deaf)
    };
    let app = Spec::app(&[]).script("exec busybox sleep 1000");
    let (mut container, _listener, mut agent) = run(&[stubborn, app], wrapper);
    container.wait_for_line("deep");
    let [_, _, pids, freezer] = &cgroups[..] else {
        panic!("four controllers");
    };
    freezer.set("p-stubborn/freezer.state", "FROZEN");
    agent.ask(Request::Stop { budget_ms: 60_000 });
    assert!(agent.wait_for("Exited").contains("name: \"stubborn\""));
    agent.wait_for("Stopped");
    assert_eq!(container.exit_code(), 0);
    assert_eq!(pids.get("p-stubborn/cgroup.procs"), "");
}

#[test]
fn a_restart_by_cgroup_ends_who_forks_for_ever() {
    let (cgroups, wrapper) = delegated("walk");
    let walks = format!(
        "echo began; if test -n \"$WALKS\"; then {} walk & fi; exec busybox sleep 1000",
        command::compiled("strangers")
    );
    let app = Spec {
        limits: Some(NO_LIMITS),
        ..Spec::app(&[]).script(&walks)
    };
    let specs = [Spec::agent("a", &[]).script("exec busybox sleep 1000"), app];
    let (container, _listener, mut agent) = run(&specs, wrapper);
    agent.start_with(8, &[("WALKS", "yes")]);
    container.wait_for_line("began");
    let [_, _, pids, _] = &cgroups[..] else {
        panic!("four controllers");
    };
    until("it to walk", || {
        pids.get("p-app/cgroup.procs").lines().count() > 1
    });
    agent.ask(Request::Restart(Restart {
        process: "app",
        budget_ms: 20_000,
        start: Start {
            generation: 9,
            task_id: "t",
            traceparent: "",
            env: EnvList::new(&[]),
        },
    }));
    agent.wait_for("Replaced");
    container.wait_for_line("began");
    assert!(agent.wait_for("AppStarted").contains("generation: 9"));
    until("the app is alone", || {
        pids.get("p-app/pids.current") == "1\n"
    });
}

#[test]
fn a_process_with_limits_is_not_run_where_nobody_could_enforce_them() {
    let limited = Spec {
        limits: Some(Limits {
            memory_bytes: LIMIT,
            ..NO_LIMITS
        }),
        ..Spec::agent("limited", &[]).optional().script("echo ran")
    };
    let app = Spec::app(&[]).script("exec busybox sleep 1000");
    // Nothing is delegated where nothing can be made: the root is read-only.
    let script = "exec unshare --mount -- sh -c 'for d in /sys/fs/cgroup/*/; do mount -o remount,bind,ro $d 2>/dev/null || { mount --bind $d $d && mount -o remount,bind,ro $d; }; done; exec \"$@\"' sh \"$@\"";
    let wrapper = ["sh", "-c", script, "sh"].map(str::to_owned).to_vec();
    let (container, _listener, mut agent) = run(&[limited, app], wrapper);
    assert_eq!(
        container.line(),
        "container-init: limited: no cgroup of its own: errno 30"
    );
    assert_eq!(
        container.line(),
        "container-init: limited: cannot have a cgroup of its own: errno 30"
    );
    until("its pause before the next try", || {
        agent.ask(Request::Status);
        let status = agent.wait_for("Status");
        assert!(status.contains("armed: true"), "it holds nobody: {status}");
        status.contains("BackingOff")
    });
}

#[test]
fn without_room_for_another_process_it_says_so_and_goes_on_when_there_is() {
    let cgroup = Cgroup::make("pids", "full");
    let specs = [
        Spec::agent("helper", &[])
            .optional()
            .script("echo up; exec busybox sleep 1000"),
        Spec::app(&[]).script("exec busybox sleep 1000"),
    ];
    let (mut container, _listener, mut agent) = run(&specs, cgroup.wrapper("pids"));
    agent.start(8);
    agent.wait_for("AppReady");
    container.wait_for_line("up");
    cgroup.set("pids.max", "1");
    let init = agent.pid.as_raw_nonzero().get().cast_unsigned();
    let helper = container::children(init)[0].cast_signed();
    let helper = rustix::process::Pid::from_raw(helper).unwrap();
    rustix::process::kill_process(helper, rustix::process::Signal::KILL).unwrap();
    container.wait_for_line("container-init: helper: cannot make a process: errno 11");
    cgroup.set("pids.max", "max");
    container.wait_for_line("up");
    cgroup.set("pids.max", "1");
    agent.ask(Request::Stop { budget_ms: 60_000 });
    agent.wait_for("Stopped");
    assert_eq!(container.exit_code(), 143);
}

#[test]
fn a_child_of_the_app_that_ran_out_of_memory_is_counted_and_not_taken_for_the_app() {
    let cgroup = Cgroup::make("memory", "grandchild");
    cgroup.set("memory.limit_in_bytes", &LIMIT.to_string());
    let script = "busybox tail /dev/zero; echo went on after $?; exec busybox sleep 1000";
    let (container, _listener, mut agent) =
        run(&[Spec::app(&[]).script(script)], cgroup.wrapper("memory"));
    agent.start(8);
    container.wait_for_line("went on after 137");
    agent.ask(Request::Processes);
    let told = agent.wait_for("Processes");
    assert!(told.contains("kills: 1"), "{told}");
    agent.ask(Request::Stop { budget_ms: 60_000 });
    let ended = agent.wait_for("Exited");
    assert!(ended.contains("oom: false"), "{ended}");
}
