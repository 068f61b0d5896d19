//! How the program ends: every exit code, every signal, every way not to execute.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

#[allow(dead_code, reason = "each test file uses its part")]
mod command;
#[allow(dead_code, reason = "shared with the tests of plans")]
mod container;

use std::os::unix::fs::PermissionsExt as _;

use command::{PLACES, Place, Running};

/// Signals whose default action ends a process; but for QUIT, which a shell does not mind.
const DEADLY: [u32; 23] = [
    1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 24, 25, 26, 27, 29, 30, 31, 64,
];

fn ends_with(place: Place, options: &[&str], script: &str) -> i32 {
    Running::script(place, options, script).exit_code()
}

#[test]
fn every_exit_code_is_the_commands_and_remapped_only_when_asked() {
    for code in 0..=255 {
        let script = format!("exit {code}");
        assert_eq!(ends_with(Place::Subreaper, &[], &script), code);
        let remap = code.to_string();
        let options = ["-e", &remap];
        assert_eq!(
            ends_with(Place::Subreaper, &options, &script),
            0,
            "{code} to 0"
        );
        let other = ["-e", if code == 7 { "8" } else { "7" }];
        assert_eq!(ends_with(Place::Subreaper, &other, &script), code);
        let pair = format!("{code}:{}", 255 - code);
        let pair = ["--remap", &pair];
        assert_eq!(ends_with(Place::Subreaper, &pair, &script), 255 - code);
    }
}

#[test]
fn as_pid_1_the_exit_code_is_the_same() {
    for code in [0, 1, 2, 42, 125, 126, 127, 128, 143, 255] {
        assert_eq!(
            ends_with(Place::Namespace, &[], &format!("exit {code}")),
            code
        );
    }
}

#[test]
fn a_command_that_a_signal_ended_is_128_and_its_number() {
    for place in PLACES {
        for signal in DEADLY {
            let script = format!("busybox kill -{signal} $$; exec busybox sleep 1000");
            let code = ends_with(place, &[], &script);
            assert_eq!(code, 128 + signal.cast_signed(), "{place:?}");
        }
    }
    assert_eq!(
        ends_with(Place::Subreaper, &["-e", "143"], "kill -15 $$"),
        0
    );
}

#[test]
fn a_core_dump_changes_no_exit_code_and_one_beyond_255_is_cut_as_ever() {
    let directory = tempfile::tempdir().unwrap();
    for place in PLACES {
        let script = format!(
            "cd {} && ulimit -c unlimited && busybox kill -6 $$",
            directory.path().display()
        );
        assert_eq!(ends_with(place, &[], &script), 134, "{place:?}");
        assert_eq!(ends_with(place, &[], "exit 256"), 0);
        assert_eq!(ends_with(place, &[], "exit 300"), 44);
    }
}

#[test]
fn what_cannot_be_executed_is_126_and_what_is_not_there_127() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8], mode| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let busy = file("busy", &std::fs::read("/bin/busybox").unwrap(), 0o755);
    let _written = std::fs::OpenOptions::new()
        .append(true)
        .open(&busy)
        .unwrap();
    let cases = [
        (file("plain", b"#!/bin/sh\n", 0o644), 126, "errno 13"),
        (file("format", b"neither", 0o755), 126, "errno 8"),
        (
            file("script", b"#!/no/such/interpreter\n", 0o755),
            127,
            "errno 2",
        ),
        (
            directory.path().to_str().unwrap().to_owned(),
            126,
            "errno 13",
        ),
        (busy, 126, "errno 26"),
        ("/no/such/command".to_owned(), 127, "errno 2"),
        ("no-such-command-in-path".to_owned(), 127, "errno 2"),
        (String::new(), 127, "errno 2"),
        (format!("/{}", "x".repeat(300)), 126, "errno 36"),
    ];
    for place in PLACES {
        for (command, code, why) in &cases {
            let mut running = Running::words(place, &["--", command]);
            assert_eq!(running.exit_code(), *code, "{command}");
            let said = running.line();
            assert!(said.ends_with(&format!("cannot execute: {why}")), "{said}");
        }
    }
}

#[test]
fn arguments_as_large_as_the_kernel_takes_reach_the_command() {
    // E2BIG is the kernel's answer to us already: there is no smaller limit of ours.
    let many: Vec<String> = (0..20_000).map(|number| number.to_string()).collect();
    let mut words = vec!["--", "/bin/busybox", "sh", "-c", "echo $# ${20000}", "sh"];
    words.extend(many.iter().map(String::as_str));
    let mut running = Running::words(Place::Subreaper, &words);
    assert_eq!(running.line(), "20000 19999");
    assert_eq!(running.exit_code(), 0);
}

#[test]
fn a_wrong_command_line_is_125_and_says_what_is_allowed() {
    for (words, said) in [
        (&["-x", "true"][..], "no option -x; try --help"),
        (
            &["-t", "soon", "true"],
            "value 'soon' of --grace: allowed is seconds, at most 4294967",
        ),
        (&["-t"], "value '' of --grace: allowed is seconds"),
        (
            &["-r", "NOPE:1", "true"],
            "value 'NOPE:1' of --rewrite: allowed is FROM:TO, signals like TERM or 15",
        ),
        (
            &["--plan", "/plan", "true"],
            "value 'true' of --plan: allowed is the path of a plan, and nothing behind it",
        ),
        (&[], "nothing to run"),
        (&["--"], "nothing to run"),
    ] {
        let mut running = Running::words(Place::Subreaper, words);
        assert_eq!(running.exit_code(), 125);
        let line = running.line();
        assert!(line.contains(said), "{line}");
    }
    let mut help = Running::words(Place::Subreaper, &["--help"]);
    assert_eq!(help.exit_code(), 0);
    let text = help.rest().join("\n");
    for word in ["Usage:", "--grace SECONDS", "Examples:", "126"] {
        assert!(text.contains(word), "{text}");
    }
    let mut version = Running::words(Place::Subreaper, &["--version"]);
    assert_eq!(version.exit_code(), 0);
    assert!(version.line().starts_with("nodeagent container-init "));
}
