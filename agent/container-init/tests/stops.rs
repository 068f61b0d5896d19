//! How it stops: who is asked, who is killed, who is waited for; orphans, crowds and exhaustion.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

#[allow(dead_code, reason = "each test file uses its part")]
mod command;
#[allow(dead_code, reason = "shared with the tests of plans")]
mod container;
mod freezer;

use std::process::Command;
use std::time::{Duration, Instant};

use command::{PLACES, Place, Running};
use container::{Agent, Container, PATIENCE, Spec, children, until};
use container_init::plan::Rlimit;
use container_init::protocol::Request;
use freezer::Freezer;
use rustix::process::Signal;

fn armed(specs: &[Spec]) -> (Container, std::os::unix::net::UnixListener, Agent) {
    let (container, listener) = Container::run(specs);
    let mut agent = Agent::accept(&listener);
    agent.wait_for("Armed");
    (container, listener, agent)
}

fn app(script: &str) -> Spec {
    Spec::app(&[]).script(script)
}

#[test]
fn what_outlives_the_command_gets_its_term_and_its_time() {
    for place in PLACES {
        let script = "
            busybox setsid busybox sh -c 'trap \"echo flushed; exit\" TERM; echo up; while :; do busybox sleep 0.05; done' &
            busybox sleep 0.3; exit 3";
        let mut running = Running::script(place, &[], script);
        running.wait_for_line("up");
        running.wait_for_line("flushed");
        assert_eq!(running.exit_code(), 3, "{place:?}");
    }
}

#[test]
fn a_daemon_that_left_every_session_and_group_does_not_outlive_us() {
    for place in PLACES {
        // Twice forked, a session of its own, deaf to TERM.
        let script = "
            (busybox setsid busybox sh -c \"trap '' TERM HUP; (busybox setsid busybox sh -c \\\"trap '' TERM HUP; echo deep; exec busybox sleep 1000\\\" &) ; exec busybox sleep 1000\" &)
            busybox sleep 0.3; exit 5";
        let begun = Instant::now();
        let mut running = Running::script(place, &["-t", "1"], script);
        running.wait_for_line("deep");
        assert_eq!(running.exit_code(), 5, "{place:?}");
        assert!(begun.elapsed() < PATIENCE / 2);
        assert_eq!(
            running.rest(),
            Vec::<String>::new(),
            "nobody holds the output"
        );
    }
}

#[test]
fn strangers_of_a_subreaper_are_left_alone() {
    let mut stranger = Command::new("busybox")
        .args(["sleep", "1000"])
        .spawn()
        .unwrap();
    let mut running = Running::script(
        Place::Subreaper,
        &["-t", "0"],
        "busybox sleep 1000 & exit 4",
    );
    assert_eq!(running.exit_code(), 4);
    assert!(stranger.try_wait().unwrap().is_none());
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[test]
fn a_second_term_kills_what_is_deaf_to_the_first() {
    for place in PLACES {
        let script = "trap '' TERM; echo set; while :; do busybox sleep 1000; done";
        let mut running = Running::script(place, &[], script);
        running.wait_for_line("set");
        running.kill(15);
        // Two that are pending at a time are one.
        until("the first to be taken", || !running.has_pending());
        assert!(running.runs());
        running.kill(15);
        assert_eq!(running.exit_code(), 137, "{place:?}");
    }
}

#[test]
fn a_grace_of_nothing_kills_at_once() {
    let script = "trap '' TERM; echo set; while :; do busybox sleep 1000; done";
    let mut running = Running::script(Place::Namespace, &["-t", "0"], script);
    running.wait_for_line("set");
    running.kill(15);
    assert_eq!(running.exit_code(), 137);
}

#[test]
fn a_stopped_process_is_continued_so_that_it_can_end() {
    for place in PLACES {
        let script = "trap 'echo bye; exit 6' TERM; echo set; while :; do busybox sleep 0.05; done";
        let mut running = Running::script(place, &[], script);
        running.wait_for_line("set");
        running.kill(20);
        let command = running.command();
        until("it to be stopped", || {
            let stat = std::fs::read_to_string(format!("/proc/{command}/stat")).unwrap();
            stat.rsplit_once(") ").unwrap().1.starts_with('T') || {
                // TSTP does nothing to an orphaned group (setsid): STOP does.
                command::kill(command, 19);
                false
            }
        });
        running.kill(15);
        running.wait_for_line("bye");
        assert_eq!(running.exit_code(), 6, "{place:?}");
    }
}

#[test]
fn a_process_that_is_stuck_in_the_kernel_is_told_and_holds_nobody_up() {
    let stuck = Spec::agent("stuck", &["busybox", "sleep", "1000"]).optional();
    let (mut container, _listener, mut agent) = armed(&[stuck, app("exec busybox sleep 1000")]);
    agent.start(8);
    agent.wait_for("AppReady");
    let init = agent.pid.as_raw_pid().cast_unsigned();
    let of_agent = |pid: &u32| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        words.starts_with(b"busybox\0sleep\0")
    };
    let pid = children(init).into_iter().find(of_agent).unwrap();
    let freezer = Freezer::around(&pid.to_string());
    agent.kill(Signal::TERM);
    let exited = agent.wait_for("Exited");
    assert!(exited.contains("Signal(15)"), "{exited}");
    agent.kill(Signal::TERM);
    let left = agent.wait_for("LeftBehind");
    assert!(left.contains("stuck"), "{left}");
    let said = container.line();
    let own = "container-init: stuck: killed and does not go, pid ";
    assert!(said.starts_with(own), "{said}");
    container.wait_for_line("container-init: ends, although what was killed is not gone");
    // Init has ended; the kernel keeps its namespace until everybody in it is gone.
    until("init to end", || {
        let stat = std::fs::read_to_string(format!("/proc/{init}/stat")).unwrap();
        stat.rsplit_once(") ")
            .unwrap()
            .1
            .starts_with(['D', 'Z', 'S'])
            && std::fs::read_link(format!("/proc/{init}/exe")).is_err()
    });
    drop(freezer);
    assert_eq!(container.exit_code(), 143);
}

#[test]
fn twenty_thousand_orphans_at_once_are_reaped_and_no_status_is_lost() {
    let app = Spec::app(&[]).workload("workload_crowd");
    let (mut container, _listener, mut agent) = armed(&[app]);
    agent.start(8);
    container.wait_for_line("20000 zombies");
    let init = agent.pid.as_raw_nonzero().get().cast_unsigned();
    until("only the app is left", || children(init).len() == 1);
    agent.ask(Request::Signal { signal: 15 });
    assert!(agent.wait_for("Exited").contains("status: Code(7)"));
    assert_eq!(container.exit_code(), 7);
}

/// Leaves 20 000 zombies to whoever adopts them, then waits for TERM and exits with 7.
#[test]
#[ignore = "run as a process of a container"]
fn workload_crowd() {
    let crowd = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/crowd.c");
    let program = std::env::temp_dir().join(format!("crowd-{}", std::process::id()));
    let built = Command::new("cc")
        .arg("-o")
        .arg(&program)
        .arg(crowd)
        .status();
    assert!(built.unwrap().success());
    let made = Command::new(&program).arg("20000").status();
    std::fs::remove_file(&program).unwrap();
    assert!(made.unwrap().success());
    println!("20000 zombies");
    let error = std::os::unix::process::CommandExt::exec(Command::new("busybox").args([
        "sh",
        "-c",
        "trap 'exit 7' TERM; while :; do busybox sleep 0.05; done",
    ]));
    panic!("{error}");
}

#[test]
fn without_pids_left_it_still_reaps_reports_and_stops() {
    // RLIMIT_NPROC of a user of its own: the app fills it, so that an agent cannot be executed.
    let full = Spec {
        uid: 4242,
        rlimits: vec![Rlimit {
            resource: 6,
            soft: 12,
            hard: 12,
        }],
        ..app("while :; do busybox sleep 1000 & done")
    };
    let sidecar = Spec {
        uid: 4242,
        ..Spec::agent("sidecar", &[])
            .optional()
            .script("exec busybox sleep 0.2")
    };
    let (mut container, _listener, mut agent) = armed(&[sidecar, full]);
    agent.start(8);
    agent.wait_for("AppReady");
    // The shell that cannot fork ends: its children are orphans now, and the container ends.
    agent.wait_for("Exited { name: \"app\"");
    assert_eq!(agent.wait_for("Stopped"), "Stopped");
    assert_eq!(container.exit_code(), 2);
}

#[test]
fn a_stop_costs_no_more_than_the_slowest_process() {
    let slow =
        "trap 'busybox usleep 100000; exit 0' TERM; echo set; while :; do busybox sleep 0.05; done";
    let (mut container, _listener, mut agent) = armed(&[app(slow)]);
    agent.start(8);
    container.wait_for_line("set");
    let begun = Instant::now();
    agent.ask(Request::Stop { budget_ms: 20_000 });
    assert_eq!(container.exit_code(), 0);
    let took = begun.elapsed();
    assert!(
        took < Duration::from_secs(5),
        "{took:?}: nothing is slept or polled"
    );
}
