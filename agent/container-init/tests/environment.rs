//! What is not there: /proc, a writable root, root's rights, system calls; what is inherited:
//! descriptors, sockets, a terminal.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

#[allow(dead_code, reason = "each test file uses its part")]
mod command;
#[allow(dead_code, reason = "shared with the tests of plans")]
mod container;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use command::{PLACES, Place, Running, compiled};
use container::{PATIENCE, install, program, until};

/// tests/surroundings.c, built once.
fn surroundings() -> &'static str {
    static BUILT: OnceLock<String> = OnceLock::new();
    BUILT.get_or_init(|| compiled("surroundings"))
}

/// `surroundings WHAT container-init -- busybox sh -c SCRIPT`.
fn within(what: &str, options: &[&str], script: &str) -> Running {
    let mut command = Command::new(surroundings());
    command
        .args(what.split_whitespace())
        .arg(program())
        .args(options);
    command.args(["--", "/bin/busybox", "sh", "-c", script]);
    Running::spawn(Place::Subreaper, command)
}

/// Leaves a survivor of TERM behind.
const LEAVES: &str = "(busybox setsid busybox sh -c \"trap '' TERM; exec busybox sleep 1000\" &); busybox sleep 0.2; exit 3";

#[test]
fn without_proc_it_reaps_forwards_and_ends_what_is_left() {
    // As pid 1 of a namespace nothing of /proc is needed.
    let unshare = [
        "unshare",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount",
        "--",
    ];
    let script = format!(
        "umount -l /proc && exec {} -t 1 -- /bin/busybox sh -c '{LEAVES}'",
        program().display()
    );
    let mut command = Command::new(unshare[0]);
    command.args(&unshare[1..]).args(["/bin/sh", "-c", &script]);
    let mut running = Running::spawn(Place::Subreaper, command);
    assert_eq!(running.exit_code(), 3, "{:?}", running.rest());
    assert_eq!(running.rest(), Vec::<String>::new());
}

#[test]
fn without_proc_a_subreaper_gives_up_on_what_it_cannot_find_and_still_ends() {
    // pid 1 is a shell, which takes what is left with it.
    let script = format!(
        "umount -l /proc && {} -t 1 -- /bin/busybox sh -c '{LEAVES}'; echo code $?",
        program().display()
    );
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount", "--"]);
    command.args(["/bin/sh", "-c", &script]);
    let begun = Instant::now();
    let mut running = Running::spawn(Place::Subreaper, command);
    running.wait_for_line("code 3");
    assert!(begun.elapsed() < PATIENCE / 2, "the budget bounds it");
    assert_eq!(running.exit_code(), 0);
}

#[test]
fn a_filter_that_denies_what_is_new_changes_nothing() {
    // pidfd_open, pidfd_send_signal, close_range and openat2 answer EPERM, and ENOSYS.
    for errno in ["1", "38"] {
        for place in PLACES {
            let mut command = match place {
                Place::Subreaper => Command::new(surroundings()),
                Place::Namespace => {
                    let mut command = Command::new("unshare");
                    command
                        .args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"])
                        .arg(surroundings());
                    command
                }
            };
            command.args(["deny", errno]).arg(program());
            command.args(["-t", "1", "--", "/bin/busybox", "sh", "-c", LEAVES]);
            let mut running = Running::spawn(Place::Subreaper, command);
            assert_eq!(running.exit_code(), 3, "{place:?}, errno {errno}");
            assert_eq!(running.rest(), Vec::<String>::new(), "nobody is left");
        }
    }
}

#[test]
fn a_filter_that_denies_what_it_cannot_do_without_is_said() {
    let mut running = within("deny-signalfd 1", &[], "exit 0");
    assert_eq!(running.exit_code(), 125);
    assert_eq!(
        running.line(),
        "container-init: refused: signals (signalfd): errno 1"
    );
}

#[test]
fn as_another_user_on_a_root_that_cannot_be_written_it_works() {
    let command = format!("touch /x 2>/dev/null || echo read-only; busybox id -u; {LEAVES}");
    let script = format!(
        "mount -o remount,bind,ro / && exec setpriv --reuid 1234 --regid 1234 --clear-groups \
         --no-new-privs {} -t 1 -- /bin/busybox sh -c '{command}'",
        place_for_all().display()
    );
    let mut unshare = Command::new("unshare");
    unshare.args([
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "--",
    ]);
    unshare.args(["/bin/sh", "-c", &script]);
    let mut running = Running::spawn(Place::Subreaper, unshare);
    assert_eq!(running.line(), "read-only");
    assert_eq!(running.line(), "1234");
    assert_eq!(running.exit_code(), 3);
    assert_eq!(running.rest(), Vec::<String>::new(), "nobody is left");
}

/// The program where every user can execute it.
fn place_for_all() -> PathBuf {
    static PLACED: OnceLock<tempfile::TempDir> = OnceLock::new();
    let directory = PLACED.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(directory.path(), mode).unwrap();
        install(program(), &directory.path().join("init"), "0755");
        directory
    });
    directory.path().join("init")
}

#[test]
fn descriptors_that_were_handed_to_us_are_the_commands_and_not_ours() {
    let mut command = Command::new(surroundings());
    command.args(["descriptors"]).arg(program()).args([
        "--",
        "/bin/busybox",
        "sh",
        "-c",
        "echo $(busybox ls /proc/self/fd); echo $LISTEN_PID $$; echo set; exec busybox sleep 1000",
    ]);
    let running = Running::spawn(Place::Subreaper, command);
    // 3, 4 and 7 were handed over; 5 is the directory that ls reads.
    assert_eq!(running.line(), "0 1 2 3 4 5 7");
    let listen = running.line();
    let (meant, own) = listen.split_once(' ').unwrap();
    assert_eq!(meant, own, "LISTEN_PID is the command's");
    running.wait_for_line("set");
    let directory = format!("/proc/{}/cwd", running.pid);
    until("us to have left its directory", || {
        std::fs::read_link(&directory).unwrap() == Path::new("/")
    });
    let ours = std::fs::read_dir(format!("/proc/{}/fd", running.pid)).unwrap();
    for entry in ours.flatten() {
        let target = std::fs::read_link(entry.path()).unwrap();
        assert!(
            !target.to_string_lossy().contains("memfd"),
            "we hold nothing that was meant for the command: {target:?}"
        );
    }
}

#[test]
fn closed_standard_streams_stay_harmless() {
    for closed in ["0", "1", "2", "012"] {
        let mut running = within(&format!("close {closed}"), &[], "exit 9");
        assert_eq!(running.exit_code(), 9, "without {closed}");
    }
}

#[test]
fn standard_input_is_the_commands_to_its_end() {
    let mut child = Command::new(program())
        .args(["--", "busybox", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, b"typed").unwrap();
    drop(stdin);
    // cat ends where its input does: nobody else holds the other end.
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), &output.stdout[..]),
        (Some(0), &b"typed"[..])
    );
}

#[test]
fn where_everybody_is_more_than_ours_nobody_asks_for_everybody() {
    // Whoever called kill(-1) would end by SIGSYS: 159.
    for options in [&["-t", "1"][..], &["-g", "-t", "1"]] {
        let mut running = within("deny-everybody", options, LEAVES);
        assert_eq!(running.exit_code(), 3);
        assert_eq!(running.rest(), Vec::<String>::new(), "nobody is left");
    }
    let deaf = "trap '' TERM; echo set; while :; do busybox sleep 1000; done";
    let mut running = within("deny-everybody", &[], deaf);
    running.wait_for_line("set");
    running.kill(15);
    until("the first to be taken", || !running.has_pending());
    running.kill(15);
    assert_eq!(running.exit_code(), 137);
}

#[test]
fn a_reader_that_left_is_not_our_end() {
    let (read, write) = std::io::pipe().unwrap();
    let mut child = Command::new(program())
        .args(["--", "/no/such"])
        .stderr(Stdio::from(OwnedFd::from(write)))
        .spawn()
        .unwrap();
    drop(read);
    assert_eq!(child.wait().unwrap().code(), Some(127));
}

#[test]
fn a_blocked_reader_does_not_block_us() {
    let (_read, write) = std::io::pipe().unwrap();
    let fill = [
        "sh",
        "-c",
        "busybox dd if=/dev/zero bs=4096 count=16 2>/dev/null",
    ];
    let stdout = Stdio::from(OwnedFd::from(write.try_clone().unwrap()));
    let filled = Command::new("busybox").args(fill).stdout(stdout).status();
    assert!(filled.unwrap().success());
    // It has something to say, and nobody makes room for it.
    let mut child = Command::new(program())
        .args(["--", "/no/such"])
        .stderr(Stdio::from(OwnedFd::from(write)))
        .spawn()
        .unwrap();
    let mut ended = None;
    until("its end", || {
        ended = child.try_wait().unwrap();
        ended.is_some()
    });
    assert_eq!(ended.unwrap().code(), Some(127));
}

#[test]
fn a_terminal_is_handed_over_with_its_job_control() {
    // The helper makes a terminal, us its session's leader, types, and prints what came out.
    let output = Command::new(surroundings())
        .arg("terminal")
        .arg(program())
        .args(["--", "/bin/busybox", "sh", "-c"])
        .arg("trap 'echo hup' HUP; busybox tty >/dev/null && echo terminal; read word; echo word $word; trap 'echo int; exit 4' INT; trap 'echo sized $(busybox stty size)' WINCH; echo ready; while :; do busybox sleep 0.05; done")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    let lines: Vec<&str> = said.lines().map(str::trim).collect();
    let sized = "sized 33 44";
    for wanted in ["terminal", "word typed", "ready", sized, "int", "exit 4"] {
        assert!(
            lines.iter().any(|line| line.ends_with(wanted)),
            "{wanted}: {said}"
        );
    }
    assert!(
        !said.contains("hup"),
        "the hang-up of the hand-over is ours: {said}"
    );
}

#[test]
fn the_terminal_of_somebody_elses_session_is_shared() {
    let output = Command::new(surroundings())
        .args(["terminal", "/bin/busybox", "sh", "-c"])
        .arg(format!(
            "{} -- /bin/busybox sh -c 'read word; echo word $word; exit 4'; code=$?; busybox sleep 0.1; exit $code",
            program().display()
        ))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    for wanted in ["word typed", "exit 4"] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
}
