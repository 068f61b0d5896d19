//! Corners: what happens at once, out of order, from outside of the namespace, or with threads.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

#[allow(dead_code, reason = "each test file uses its part")]
mod command;
#[allow(dead_code, reason = "shared with the tests of plans")]
mod container;

use std::process::Command;
use std::sync::OnceLock;

use command::{PLACES, Place, Running, compiled, kill};
use container::{Agent, Container, Settings, Spec, children, until};
use container_init::plan::Readiness;
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
        let script = format!(
            "{} traced & echo tracer $!; wait; exec busybox sleep 1000",
            strangers()
        );
        let running = Running::script(place, &[], &script);
        let init = running.pid.as_raw_nonzero().get().cast_unsigned();
        assert!(running.line().starts_with("tracer"));
        let _traced = running.line();
        let mut orphan = 0;
        until("the orphan to be a zombie of ours", || {
            let mut zombies = children(init)
                .into_iter()
                .filter(|child| state(*child) == 'Z');
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
    // As a subreaper below a shell that is pid 1: nothing of it could outlive the test.
    for place in ["", "exec"] {
        let script = format!(
            "{place} {} -t 0 -- /bin/busybox sh -c 'for n in 1 2 3 4 5 6; do {} walk & done; busybox sleep 0.3; exit 3'
            echo code $?
            busybox cut -d' ' -f5 /proc/loadavg; busybox sleep 0.2; busybox cut -d' ' -f5 /proc/loadavg",
            container::program().display(),
            strangers()
        );
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
        command.args(["/bin/sh", "-c", &script]);
        let mut running = Running::spawn(Place::Subreaper, command);
        if place == "exec" {
            assert_eq!(running.exit_code(), 3);
            continue;
        }
        assert_eq!(running.line(), "code 3");
        let pids = [running.line(), running.line()].map(|pid| pid.parse::<u32>().unwrap());
        assert!(pids[1] - pids[0] < 10, "nobody forks any more: {pids:?}");
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

#[test]
fn a_term_at_any_moment_of_the_agents_start_ends_the_container() {
    for round in 0..60u64 {
        let gated = |name| Spec {
            readiness: Readiness::NewlineFd {
                fd: 7,
                timeout_ms: 20_000,
            },
            ..Spec::agent(name, &[]).script("busybox usleep 500; echo >&7; exec busybox sleep 1000")
        };
        let app = Spec::app(&[]).script("exec busybox sleep 1000");
        let (mut container, listener) = Container::run(&[gated("a"), gated("b"), gated("c"), app]);
        let mut agent = Agent::accept(&listener);
        let moment = std::time::Instant::now();
        while moment.elapsed().as_micros() < u128::from(round * 200) {
            std::hint::spin_loop();
        }
        agent.kill(rustix::process::Signal::TERM);
        agent.wait_for("Stopped");
        assert_eq!(container.exit_code(), 143, "round {round}");
        container.assert_nothing_more();
    }
}

#[test]
fn an_app_that_ends_well_before_it_is_ready_was_never_ready() {
    let app = Spec {
        readiness: Readiness::Notify { timeout_ms: 20_000 },
        ..Spec::app(&[]).script("exit 0")
    };
    let (mut container, listener) = Container::run(&[app]);
    let mut agent = Agent::accept(&listener);
    agent.wait_for("Armed");
    agent.start(8);
    assert!(agent.said().unwrap().starts_with("AppStarted"));
    let ended = agent.said().unwrap();
    assert!(ended.contains("status: Code(0)"), "{ended}");
    assert_eq!(agent.said().unwrap(), "Stopped");
    assert_eq!(container.exit_code(), 0);
}

#[test]
fn a_budget_is_shorter_than_the_graces_inside_it() {
    let deaf = "trap '' TERM; echo deaf; while :; do busybox sleep 1; done";
    let patient = |spec: Spec| Spec {
        stop_grace_ms: 600_000,
        ..spec.script(deaf)
    };
    let specs = [patient(Spec::agent("a", &[])), patient(Spec::app(&[]))];
    let (mut container, listener) = Container::run(&specs);
    let mut agent = Agent::accept(&listener);
    container.wait_for_line("deaf");
    agent.wait_for("Armed");
    agent.start(8);
    container.wait_for_line("deaf");
    let asked = std::time::Instant::now();
    agent.ask(Request::Stop { budget_ms: 500 });
    for name in ["app", "a"] {
        let ended = agent.wait_for("Exited");
        let killed = ended.contains(&format!("name: \"{name}\"")) && ended.contains("Signal(9)");
        assert!(killed, "{ended}");
    }
    assert_eq!(container.exit_code(), 137);
    assert!(asked.elapsed() < container::PATIENCE / 2);
}

#[test]
fn an_argument_that_the_kernel_does_not_take_is_126() {
    // MAX_ARG_STRLEN of execve(2) is 128 KiB.
    let app = Spec::app(&["/bin/busybox", "true", &"x".repeat(140_000)]);
    let (mut container, listener) = Container::run(&[app]);
    let mut agent = Agent::accept(&listener);
    agent.wait_for("Armed");
    agent.start(8);
    assert!(agent.wait_for("Exited").contains("status: Code(126)"));
    container.wait_for_line("container-init: app: cannot execute: errno 7");
    assert_eq!(container.exit_code(), 126);
}

#[test]
fn what_the_runtime_left_open_is_nobodys_and_the_input_is_the_apps() {
    // A directory of the host among it, as in CVE-2024-21626.
    let script = "exec \"$@\" 8</ 9</etc/passwd <<END\ntyped\nEND\n";
    let settings = Settings {
        wrapper: ["sh", "-c", script, "sh"].map(str::to_owned).to_vec(),
        ..Settings::default()
    };
    let shows = "echo $1 $(echo /proc/self/fd/*); read word || word=nothing; echo read $word; exec busybox sleep 1000";
    let shows = shows.replace("$1", "$NAME");
    let named = |spec: Spec, name: &str| {
        let mut spec = spec.script(&shows);
        spec.env
            .push(std::ffi::CString::new(format!("NAME={name}")).unwrap());
        spec
    };
    let specs = [
        named(Spec::agent("a", &[]), "agent"),
        named(Spec::app(&[]), "app"),
    ];
    let directory = tempfile::tempdir().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(directory.path().join("gate.sock"));
    let listener = listener.unwrap();
    let container = Container::run_in(directory, &specs, settings);
    let mut agent = Agent::accept(&listener);
    // 3 is the directory that the shell reads.
    let own = |fds: &str| fds.replace("/proc/self/fd/", "");
    assert_eq!(own(&container.line()), "agent 0 1 2 3");
    assert_eq!(container.line(), "read nothing");
    agent.wait_for("Armed");
    agent.start(8);
    assert_eq!(own(&container.line()), "app 0 1 2 3");
    assert_eq!(container.line(), "read typed");
}

#[test]
fn who_forks_for_ever_does_not_survive_a_restart_in_place() {
    // Beside an agent, so that it has to be found among others.
    let script = format!(
        "echo began; if test -n \"$WALKS\"; then {} walk & fi; exec busybox sleep 1000",
        strangers()
    );
    let specs = [
        Spec::agent("a", &[]).script("exec busybox sleep 1000"),
        Spec::app(&[]).script(&script),
    ];
    let settings = Settings {
        own_proc: true,
        ..Settings::default()
    };
    let directory = tempfile::tempdir().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(directory.path().join("gate.sock"));
    let listener = listener.unwrap();
    let container = Container::run_in(directory, &specs, settings);
    let mut agent = Agent::accept(&listener);
    agent.wait_for("Armed");
    agent.start_with(8, &[("WALKS", "yes")]);
    container.wait_for_line("began");
    let init = outer(&agent);
    until("it to walk", || children(init).len() > 2);
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
    agent.ask(Request::Status);
    agent.wait_for("Status");
    for _ in 0..200 {
        let walks = |pid: u32| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
            name.is_ok_and(|name| name == "strangers\n")
        };
        let all = children(init);
        assert!(!all.into_iter().any(walks), "it walks on");
        std::thread::yield_now();
    }
}
