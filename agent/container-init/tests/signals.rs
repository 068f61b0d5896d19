//! Signals: every one of them, both ways, and what is inherited.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

#[allow(dead_code, reason = "each test file uses its part")]
mod command;
#[allow(dead_code, reason = "shared with the tests of plans")]
mod container;

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Instant;

use command::{PLACES, Place, Running, compiled, kill};
use container::{PATIENCE, children, install, program, until};

/// Says `got N` for every signal that a shell can trap: all but KILL, STOP, its own CHLD, and the two
/// that its libc keeps.
const LISTENS: &str = "
    for n in $(busybox seq 1 64); do
        case $n in 9|17|19|32|33) ;; *) trap \"echo got $n\" $n ;; esac
    done
    echo set
    while :; do busybox sleep 1000 & wait $!; kill $! 2>/dev/null; done";

/// tests/signals.c, built once.
fn workload() -> &'static str {
    static BUILT: OnceLock<String> = OnceLock::new();
    BUILT.get_or_init(|| compiled("signals"))
}

/// tests/strangers.c, built once.
fn strangers() -> &'static str {
    static BUILT: OnceLock<String> = OnceLock::new();
    BUILT.get_or_init(|| compiled("strangers"))
}

fn can_be_trapped(signal: u32) -> bool {
    !matches!(signal, 9 | 17 | 19 | 32 | 33)
}

#[test]
fn every_signal_reaches_the_commands_handler() {
    for place in PLACES {
        let running = Running::script(place, &[], LISTENS);
        running.wait_for_line("set");
        // A shell's own signals are left out; TERM is the last: after it a stop is under way.
        let others = (1..=64).filter(|signal| *signal != 15);
        for signal in others.filter(|signal| can_be_trapped(*signal)).chain([15]) {
            running.kill(signal);
            running.wait_for_line(&format!("got {signal}"));
        }
    }
}

#[test]
fn every_signal_that_can_be_caught_is_passed_on_also_those_that_libc_keeps() {
    for place in PLACES {
        let running = Running::words(place, &["--", workload(), "receive"]);
        running.wait_for_line("set");
        let others = (1..=64).filter(|signal| !matches!(signal, 9 | 15 | 19));
        for signal in others.chain([15]) {
            running.kill(signal);
            running.wait_for_line(&format!("{signal} 0"));
        }
    }
}

#[test]
fn a_signal_without_a_handler_does_to_the_command_what_it_does_to_any() {
    for place in PLACES {
        // 32 and 33 are ignored by what posix_spawn(3) of glibc executes, us and the command.
        for signal in (1..=64).filter(|signal| !matches!(signal, 9 | 17..=23 | 28 | 32 | 33)) {
            let mut running = sleeping(place);
            running.kill(signal);
            assert_eq!(running.exit_code(), 128 + signal.cast_signed(), "{place:?}");
        }
        let mut running = sleeping(place);
        for harmless in [17, 18, 23, 28] {
            running.kill(harmless);
        }
        assert!(running.runs());
        running.kill(15);
        assert_eq!(running.exit_code(), 143);
    }
}

/// A command with every signal at its default.
fn sleeping(place: Place) -> Running {
    let running = Running::words(place, &["--", "/bin/busybox", "sleep", "1000"]);
    let command = running.command();
    until("the command to be executed", || {
        std::fs::read_link(format!("/proc/{command}/exe")).is_ok_and(|exe| exe.ends_with("busybox"))
    });
    running
}

#[test]
fn a_thousand_equal_signals_are_at_least_one_and_real_time_ones_are_all_there() {
    for place in PLACES {
        let running = Running::words(place, &["--", workload(), "receive"]);
        running.wait_for_line("set");
        for _ in 0..1000 {
            rustix::process::kill_process(running.pid, rustix::process::Signal::USR1).unwrap();
        }
        running.wait_for_line("10 0");
        let pid = running.pid.to_string();
        for value in 0..50 {
            let sent = Command::new(workload())
                .args(["send", &pid, "40", &value.to_string()])
                .status();
            assert!(sent.unwrap().success());
        }
        // In their order, each with its value.
        let mut values = Vec::new();
        while values.len() < 50 {
            let line = running.line();
            values.extend(line.strip_prefix("40 ").map(str::to_owned));
        }
        let expected: Vec<String> = (0..50).map(|value| value.to_string()).collect();
        assert_eq!(values, expected);
    }
}

#[test]
fn a_child_signal_that_somebody_sends_is_passed_on() {
    let running = Running::words(Place::Namespace, &["--", workload(), "receive"]);
    running.wait_for_line("set");
    for signal in [17, 21, 22] {
        running.kill(signal);
        running.wait_for_line(&format!("{signal} 0"));
    }
}

#[test]
fn a_rewritten_signal_arrives_as_the_other_and_a_dropped_one_never() {
    let options = ["-r", "TERM:QUIT", "-r", "1:0", "--rewrite", "10:64"];
    let mut running = Running::script(Place::Namespace, &options, LISTENS);
    running.wait_for_line("set");
    running.kill(1);
    running.kill(10);
    running.wait_for_line("got 64");
    running.kill(15);
    assert_eq!(running.line(), "got 3", "and nothing of the first");
    running.kill(15);
    assert_eq!(running.exit_code(), 137, "the second TERM is KILL");
}

#[test]
fn a_group_hears_when_asked_and_only_then() {
    let script = "
        busybox sh -c 'trap \"echo child; exit\" USR1; echo set; while :; do busybox sleep 0.05; done' &
        trap 'echo parent' USR1
        while :; do wait; done";
    for (options, both) in [(&[][..], false), (&["-g"][..], true)] {
        let running = Running::script(Place::Namespace, options, script);
        running.wait_for_line("set");
        running.kill(10);
        let mut missing = vec!["parent"];
        missing.extend(both.then_some("child"));
        while !missing.is_empty() {
            let line = running.line();
            assert!(both || line != "child");
            missing.retain(|wanted| *wanted != line);
        }
    }
}

/// Prints its masks and ignored signals.
const SHOW: &str = "exec busybox grep -E '^Sig(Blk|Ign)' /proc/self/status";

#[test]
fn blocked_and_ignored_signals_are_inherited_as_without_us() {
    let show = ["/bin/busybox", "sh", "-c", SHOW];
    let bare = Command::new(workload())
        .arg("inherit")
        .args(show)
        .output()
        .unwrap();
    let mut command = Command::new(workload());
    command.arg("inherit").arg(program()).arg("--").args(show);
    let mut running = Running::spawn(Place::Subreaper, command);
    assert_eq!(
        running.exit_code(),
        0,
        "an ignored SIGCHLD loses no exit code"
    );
    let expected = String::from_utf8(bare.stdout).unwrap();
    assert_eq!(running.rest(), expected.lines().collect::<Vec<_>>());
    assert!(expected.contains("SigBlk:\t0000008000000800"), "{expected}");
}

#[test]
fn a_signal_at_any_moment_of_the_start_is_not_lost() {
    for round in 0..300u64 {
        let mut running = Running::script(Place::Subreaper, &[], "exec busybox sleep 1000");
        // From the first instruction to long after the execution.
        let moment = Instant::now();
        while moment.elapsed().as_micros() < u128::from(round * 10) {
            std::hint::spin_loop();
        }
        rustix::process::kill_process(running.pid, rustix::process::Signal::TERM).unwrap();
        assert_eq!(running.exit_code(), 143, "round {round}");
    }
}

#[test]
fn a_fault_signal_that_somebody_sends_is_the_commands_and_harms_nobody_else() {
    for signal in [4, 5, 7, 8, 11, 31] {
        let mut running = Running::script(Place::Namespace, &[], LISTENS);
        running.wait_for_line("set");
        running.kill(signal);
        running.wait_for_line(&format!("got {signal}"));
        assert!(running.runs());
    }
}

#[test]
fn a_fault_of_our_own_ends_all_of_it() {
    for place in PLACES {
        let mut running = sleeping(place);
        let faulted = Command::new(strangers())
            .args(["fault", &running.pid.to_string()])
            .status();
        assert!(faulted.unwrap().success());
        assert_eq!(running.exit_code(), 128 + 11, "{place:?}");
    }
}

#[test]
fn signals_for_a_command_that_has_ended_harm_nobody() {
    for place in PLACES {
        let script = "
            (busybox setsid busybox sh -c \"trap '' TERM; echo left; exec busybox sleep 1000\" &)
            busybox sleep 0.2; exit 3";
        let mut running = Running::script(place, &["-t", "60"], script);
        let command = running.command();
        running.wait_for_line("left");
        until("the command's end", || {
            !Path::new(&format!("/proc/{command}")).exists()
        });
        for signal in [1, 10, 28, 34, 15] {
            running.kill(signal);
        }
        until("them to be taken", || !running.has_pending());
        assert!(running.runs(), "one TERM is no reason to kill: {place:?}");
        running.kill(15);
        assert_eq!(running.exit_code(), 3, "{place:?}");
        assert_eq!(running.rest(), Vec::<String>::new(), "nobody is left");
    }
}

#[test]
fn a_child_that_kills_pid_1_kills_nobody() {
    let script = "for n in 1 2 3 9 11 15 19; do busybox kill -$n 1; done; echo done; exec busybox sleep 1000";
    let mut running = Running::script(
        Place::Namespace,
        &[
            "-r", "1:0", "-r", "2:0", "-r", "3:0", "-r", "11:0", "-r", "15:0",
        ],
        script,
    );
    running.wait_for_line("done");
    assert!(running.runs());
}

#[test]
fn a_command_of_another_user_that_we_may_not_signal_does_not_end_us() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(
        directory.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let (init, rooted) = (
        directory.path().join("init"),
        directory.path().join("rooted"),
    );
    install(program(), &init, "0755");
    // Set-user-ID root under an init of another user: kill(2) says EPERM.
    install(Path::new(workload()), &rooted, "4755");
    let mut command = Command::new(&init);
    command.arg("--").arg(rooted).arg("root").uid(1234);
    let mut running = Running::spawn(Place::Subreaper, command);
    running.wait_for_line("set");
    running.kill(10);
    let said = running.line();
    assert_eq!(said, "container-init: cannot send signal 10: errno 1");
    assert!(running.runs());
    let command = running.command();
    kill(command, 9);
    assert_eq!(running.exit_code(), 137);
}

#[test]
fn a_parent_that_ends_sends_the_signal_that_was_asked_for() {
    let inner = format!(
        "{} -p TERM -- busybox sleep 1000 & echo up; wait",
        program().display()
    );
    let mut outer = Running::script(Place::Namespace, &[], &inner);
    outer.wait_for_line("up");
    let shell = outer.command();
    until("the inner one and its command", || {
        children(shell)
            .first()
            .is_some_and(|inner| !children(*inner).is_empty())
    });
    let begun = Instant::now();
    kill(shell, 9);
    assert_eq!(outer.exit_code(), 137);
    assert!(
        begun.elapsed() < PATIENCE / 2,
        "the sleeper was not waited for"
    );
}
