//! Corners: what happens at once, out of order, from outside of the namespace, or with threads.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

#[allow(dead_code, reason = "each test file uses its part")]
mod command;
#[allow(dead_code, reason = "shared with the tests of plans")]
mod container;

use std::process::Command;
use std::sync::OnceLock;

use command::{PLACES, Place, Running, compiled, kill};
use container::{Agent, Container, Spec, children, until};
use container_init::protocol::{EnvList, Request, Restart, Start};

const STOP: u32 = 19;
const CONT: u32 = 18;

fn state(pid: u32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    state.unwrap_or('-')
}

fn outer(agent: &Agent) -> u32 {
    agent.pid.as_raw_nonzero().get().cast_unsigned()
}

#[test]
fn a_stopped_init_does_everything_when_it_is_continued() {
    for place in PLACES {
        let script = "trap 'echo usr1' USR1; trap 'echo bye; exit 7' TERM; echo set; while :; do busybox sleep 0.05; done";
        let mut running = Running::script(place, &[], script);
        running.wait_for_line("set");
        let init = running.pid.as_raw_nonzero().get().cast_unsigned();
        running.kill(STOP);
        until("it to be stopped", || state(init) == 'T');
        running.kill(10);
        running.kill(CONT);
        running.wait_for_line("usr1");
        running.kill(20);
        running.kill(15);
        running.wait_for_line("bye");
        assert_eq!(running.exit_code(), 7, "{place:?}");
    }
}

#[test]
fn all_that_ends_in_one_instant_is_told_and_the_first_cause_counts() {
    let specs = [
        Spec::agent("a", &[]).script("exec busybox sleep 1000"),
        Spec::agent("b", &[])
            .optional()
            .script("exec busybox sleep 1000"),
        Spec::app(&[]).script("exec busybox sleep 1000"),
    ];
    let (mut container, listener) = Container::run(&specs);
    let mut agent = Agent::accept(&listener);
    agent.wait_for("Armed");
    agent.start(8);
    agent.wait_for("AppReady");
    let init = outer(&agent);
    kill(init, STOP);
    until("it to be stopped", || state(init) == 'T');
    let all = children(init);
    assert_eq!(all.len(), 3);
    for pid in &all {
        kill(*pid, 9);
    }
    until("all of them to be zombies", || {
        all.iter().all(|pid| state(*pid) == 'Z')
    });
    kill(init, CONT);
    let mut told = Vec::new();
    for _ in 0..3 {
        let ended = agent.wait_for("Exited");
        told.extend(
            ["a", "b", "app"]
                .into_iter()
                .find(|name| ended.contains(&format!("\"{name}\""))),
        );
    }
    told.sort_unstable();
    assert_eq!(told, ["a", "app", "b"]);
    agent.wait_for("Stopped");
    assert_eq!(container.exit_code(), 137);
}

#[test]
fn what_was_executed_in_the_container_from_outside_leaves_no_zombie() {
    let (container, listener) = Container::run(&[Spec::app(&[]).script("exec busybox sleep 1000")]);
    let mut agent = Agent::accept(&listener);
    agent.wait_for("Armed");
    agent.start(8);
    agent.wait_for("AppReady");
    let init = outer(&agent);
    // As `nodeagent exec` and runc do: its parent is outside, its orphans are not.
    let orphaned = Command::new("nsenter")
        .args([
            "--target",
            &init.to_string(),
            "--pid",
            "--",
            "/bin/busybox",
            "sh",
            "-c",
        ])
        .arg("for n in 1 2 3 4 5; do busybox usleep 20000 & done; exit 0")
        .status();
    assert!(orphaned.unwrap().success());
    until("only the app is left", || children(init).len() == 1);
    agent.ask(Request::Status);
    agent.wait_for("Status");
    drop(container);
}

#[test]
fn a_zombie_of_a_living_parent_is_that_parents() {
    // A shell that does not wait: its child stays a zombie, and nobody takes it from the shell.
    let script = "busybox sh -c 'busybox true & exec busybox sleep 1000' & echo set; while :; do busybox sleep 0.05; done";
    let running = Running::script(Place::Namespace, &[], script);
    running.wait_for_line("set");
    let shell = running.command();
    let mut parent = 0;
    until("the zombie", || {
        let zombie = |pid: &u32| children(*pid).iter().any(|child| state(*child) == 'Z');
        parent = children(shell).into_iter().find(zombie).unwrap_or(0);
        parent != 0
    });
    let zombie = children(parent)[0];
    running.kill(28);
    until("the signal to be taken", || !running.has_pending());
    assert_eq!(state(zombie), 'Z');
}

/// tests/strangers.c, built once.
fn strangers() -> &'static str {
    static BUILT: OnceLock<String> = OnceLock::new();
    BUILT.get_or_init(|| compiled("strangers"))
}

#[test]
fn an_orphan_that_somebody_traces_is_reaped_when_the_tracer_has_gone() {
    for place in PLACES {
        let script = format!("{} traced & echo tracer $!; wait; exec busybox sleep 1000", strangers());
        let running = Running::script(place, &[], &script);
        let init = running.pid.as_raw_nonzero().get().cast_unsigned();
        assert!(running.line().starts_with("tracer"));
        let _traced = running.line();
        let mut orphan = 0;
        until("the orphan to be a zombie of ours", || {
            let mut zombies = children(init).into_iter().filter(|child| state(*child) == 'Z');
            orphan = zombies.next().unwrap_or(0);
            orphan != 0
        });
        // It is ours, but not ours to take yet.
        running.kill(28);
        until("the signal to be taken", || !running.has_pending());
        assert_eq!(state(orphan), 'Z', "{place:?}");
        let tracer = children(running.command())[0];
        kill(tracer, 9);
        until("it to be reaped", || children(init).len() == 1);
    }
}

#[test]
fn an_orphan_whose_end_is_signalled_to_nobody_is_reaped() {
    for place in PLACES {
        let script = format!("{} quiet; echo left; exec busybox sleep 1000", strangers());
        let running = Running::script(place, &[], &script);
        let init = running.pid.as_raw_nonzero().get().cast_unsigned();
        running.wait_for_line("left");
        until("only the command is left", || children(init).len() == 1);
    }
}

#[test]
fn who_forks_for_ever_ends_with_the_rest() {
    for place in PLACES {
        let script = format!("{} walk & busybox sleep 0.3; exit 3", strangers());
        let mut running = Running::script(place, &["-t", "1"], &script);
        assert_eq!(running.exit_code(), 3, "{place:?}");
        assert_eq!(running.rest(), Vec::<String>::new(), "nobody is left");
    }
}

#[test]
fn a_command_whose_first_thread_left_ends_with_its_last() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("threads.c");
    let program = directory.path().join("threads");
    let text = "#include <pthread.h>\n#include <stdlib.h>\n#include <unistd.h>\n\
        static void *last(void *_) { usleep(100000); exit(5); return _; }\n\
        int main(void) { pthread_t t; pthread_create(&t, 0, last, 0); pthread_exit(0); }";
    std::fs::write(&source, text).unwrap();
    let built = Command::new("cc")
        .arg("-pthread")
        .arg("-o")
        .args([&program, &source])
        .status();
    assert!(built.unwrap().success());
    for place in PLACES {
        let mut running = Running::words(place, &["--", program.to_str().unwrap()]);
        assert_eq!(running.exit_code(), 5, "{place:?}");
    }
}

#[test]
fn with_hardly_any_descriptors_it_works() {
    let mut command = Command::new("prlimit");
    command
        .args(["--nofile=6:6", "--"])
        .arg(container::program());
    command.args(["--", "/bin/busybox", "sh", "-c", "exit 3"]);
    let mut running = Running::spawn(Place::Subreaper, command);
    assert_eq!(running.exit_code(), 3);
}

#[test]
fn a_stop_during_the_pause_before_a_restart_starts_nothing() {
    let flapping = Spec {
        restart: container_init::plan::Restart {
            backoff_min_ms: 60_000,
            backoff_max_ms: 60_000,
            policy: container_init::plan::RestartPolicy::Always,
            max: u32::MAX,
            reset_after_ms: 60_000,
        },
        ..Spec::agent("flapping", &[]).optional().script("echo ran")
    };
    let (mut container, listener) =
        Container::run(&[flapping, Spec::app(&[]).script("exec busybox sleep 1000")]);
    let mut agent = Agent::accept(&listener);
    container.wait_for_line("ran");
    assert!(agent.wait_for("Exited").contains("flapping"));
    rustix::process::kill_process(agent.pid, rustix::process::Signal::TERM).unwrap();
    agent.wait_for("Stopped");
    assert_eq!(container.exit_code(), 143);
}

#[test]
fn a_restart_in_place_waits_until_nobody_listens_on_its_port() {
    // The port is held by an in-container agent for a while, after the app is gone.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let app = Spec {
        ports: vec![port],
        ..Spec::app(&[]).script("echo began; exec busybox sleep 1000")
    };
    let (container, gate) = Container::run(&[app]);
    let mut agent = Agent::accept(&gate);
    agent.wait_for("Armed");
    agent.start(8);
    container.wait_for_line("began");
    let restart = |process, generation| {
        Request::Restart(Restart {
            process,
            budget_ms: 20_000,
            start: Start {
                generation,
                task_id: "t",
                traceparent: "",
                env: EnvList::new(&[]),
            },
        })
    };
    agent.ask(restart("app", 9));
    agent.wait_for("Replaced");
    container.assert_silent(std::time::Duration::from_millis(300));
    drop(listener);
    container.wait_for_line("began");
    assert!(agent.wait_for("AppStarted").contains("generation: 9"));
    // A port that nobody holds is no reason to wait.
    agent.ask(restart("app", 10));
    container.wait_for_line("began");
}
