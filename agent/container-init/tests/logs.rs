//! Logs as the real program writes them: records, rotation, full disks, readers that do not read.
//! Needs what tests/pid1.rs needs, and the freezer of cgroup v1 for the disk that hangs.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

#[allow(dead_code, reason = "tests/pid1.rs needs more of it")]
mod container;
mod freezer;

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use container::{Agent, Container, LogSpec, PATIENCE, Settings, Spec, until};
use container_init::plan::Restart;
use container_init::protocol::Request;
use freezer::Freezer;
use rustix::process::Signal;

const FOREVER: &str = "exec busybox sleep 1000";

/// Into `NAME.log`, without end.
fn log(path: &'static str) -> Option<LogSpec> {
    Some(LogSpec {
        path,
        max_bytes: 0,
        max_files: 1,
        pass_through: false,
    })
}

fn app(script: &str) -> Spec {
    Spec {
        log: log("app.log"),
        ..Spec::app(&[]).script(script)
    }
}

struct Host {
    container: Container,
    agent: Agent,
    _listener: UnixListener,
}

/// A script before init, in a mount namespace of its own and the container's directory.
fn before(script: &str) -> Vec<String> {
    ["unshare", "--mount", "--", "/bin/sh", "-c", script]
        .map(str::to_owned)
        .into()
}

/// An armed container whose directory was prepared by `before`.
fn armed(specs: &[Spec], mut settings: Settings, before: impl FnOnce(&Path)) -> Host {
    let directory = tempfile::tempdir().unwrap();
    before(directory.path());
    if let Some(script) = settings.wrapper.last_mut() {
        *script = format!(
            "cd {} && {script} && exec \"$0\" \"$@\"",
            directory.path().display()
        );
    }
    let listener = UnixListener::bind(directory.path().join("gate.sock")).unwrap();
    let container = Container::run_in(directory, specs, settings);
    let mut agent = Agent::accept(&listener);
    agent.wait_for("Armed");
    Host {
        container,
        agent,
        _listener: listener,
    }
}

/// One whose app was started.
fn started(specs: &[Spec]) -> Host {
    let mut host = armed(specs, Settings::default(), |_| {});
    host.agent.start(8);
    host
}

impl Host {
    fn path(&self, name: &str) -> PathBuf {
        self.container.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn records(&self, name: &str) -> Vec<Record> {
        self.text(name).lines().map(Record::of).collect()
    }

    /// The text of whole lines of one stream.
    fn lines(&self, name: &str, stream: &str) -> Vec<String> {
        let (mut lines, mut line) = (vec![], String::new());
        for record in self.records(name) {
            if record.stream == stream {
                line.push_str(&record.text);
                if record.tag == "F" {
                    lines.push(std::mem::take(&mut line));
                }
            }
        }
        assert_eq!(line, "", "a line without an end");
        lines
    }

    fn answers(&mut self) -> String {
        self.agent.ask(Request::Status);
        self.agent.wait_for("Status")
    }
}

struct Record {
    time: String,
    stream: String,
    tag: String,
    text: String,
}

impl Record {
    fn of(line: &str) -> Self {
        let mut fields = line.splitn(4, ' ').map(str::to_owned);
        let mut next = || {
            fields
                .next()
                .unwrap_or_else(|| panic!("no record: {line:?}"))
        };
        let (time, stream, tag, text) = (next(), next(), next(), next());
        assert_eq!(
            (time.len(), &time[10..11], &time[29..]),
            (30, "T", "Z"),
            "{line}"
        );
        assert!(["stdout", "stderr"].contains(&&stream[..]), "{line}");
        assert!(["F", "P"].contains(&&tag[..]), "{line}");
        Self {
            time,
            stream,
            tag,
            text,
        }
    }
}

#[test]
fn both_streams_are_records_with_time_stream_and_tag() {
    let before = utc();
    let mut host = started(&[app(
        "echo one; echo two >&2; echo; echo three; sleep 0.1; echo four",
    )]);
    assert_eq!(host.container.exit_code(), 0);
    assert_eq!(
        host.lines("app.log", "stdout"),
        ["one", "", "three", "four"]
    );
    assert_eq!(host.lines("app.log", "stderr"), ["two"]);
    let times: Vec<String> = host
        .records("app.log")
        .into_iter()
        .map(|record| record.time)
        .collect();
    assert!(times.is_sorted(), "{times:?}");
    assert!(
        *before <= times[0][..19] && times[0][..19] <= *utc(),
        "{times:?}"
    );
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &fs::metadata(host.path("app.log")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o640);
}

/// The time of day as date(1) says it.
fn utc() -> String {
    let date = std::process::Command::new("date")
        .args(["-u", "+%FT%T"])
        .output()
        .unwrap();
    String::from_utf8(date.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_log_is_there_before_anything_is_written_and_only_where_the_plan_has_one() {
    let quiet = Spec {
        log: log("quiet.log"),
        ..Spec::agent("quiet", &[]).script(FOREVER)
    };
    let loud = Spec::agent("loud", &[]).script("echo loud; exec busybox sleep 1000");
    let host = armed(&[quiet, loud, app(FOREVER)], Settings::default(), |_| {});
    until("both logs are there", || {
        ["quiet.log", "app.log"]
            .iter()
            .all(|name| host.path(name).exists())
    });
    assert_eq!(host.text("quiet.log") + &host.text("app.log"), "");
    assert_eq!(host.container.line(), "loud");
}

#[test]
fn what_was_written_before_the_end_is_in_the_log_when_init_ends() {
    for _ in 0..5 {
        let mut host = started(&[app(
            "i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); done; exit 3",
        )]);
        assert_eq!(host.container.exit_code(), 3);
        let lines = host.lines("app.log", "stdout");
        assert!(
            lines
                .iter()
                .map(|line| line.parse::<u32>().unwrap())
                .eq(0..3000),
            "{} lines",
            lines.len()
        );
    }
}

#[test]
fn a_line_without_an_end_gets_one_when_its_process_ends() {
    let agent = Spec {
        log: log("a.log"),
        ..Spec::agent("a", &[])
            .script("printf 'half a line'")
            .optional()
    };
    let host = armed(&[agent, app(FOREVER)], Settings::default(), |_| {});
    until("two incarnations have written", || {
        host.text("a.log").lines().count() >= 2
    });
    let lines = host.lines("a.log", "stdout");
    assert!(lines.iter().all(|line| line == "half a line"), "{lines:?}");
}

#[test]
fn a_long_line_is_partial_records_and_a_full_one() {
    let script =
        "printf head; busybox head -c 100000 /dev/zero | busybox tr '\\0' x; echo end; echo next";
    let mut host = started(&[app(script)]);
    assert_eq!(host.container.exit_code(), 0);
    let expected = format!("head{}end", "x".repeat(100_000));
    assert!(host.lines("app.log", "stdout") == [expected.as_str(), "next"]);
    let records = host.records("app.log");
    assert!(records.iter().all(|record| record.text.len() <= 16 * 1024));
    assert!(
        records
            .iter()
            .filter(|record| record.tag == "P")
            .all(|record| record.text.len() > 4096)
    );
}

#[test]
fn a_full_log_is_rotated_and_only_so_many_files_are_kept() {
    let mut spec = app("i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done");
    spec.log = Some(LogSpec {
        max_bytes: 50_000,
        max_files: 3,
        ..spec.log.unwrap()
    });
    let mut host = started(&[spec]);
    assert_eq!(host.container.exit_code(), 0);
    let mut numbers = vec![];
    for name in ["app.log.2", "app.log.1", "app.log"] {
        let size = fs::metadata(host.path(name)).unwrap().len();
        assert!(size <= 50_000, "{name} has {size} bytes");
        let lines = host.lines(name, "stdout");
        numbers.extend(
            lines
                .iter()
                .map(|line| line.strip_prefix("line ").unwrap().parse::<u32>().unwrap()),
        );
    }
    assert!(!host.path("app.log.3").exists());
    assert!(
        numbers.iter().copied().eq(numbers[0]..5000),
        "{} to {:?}",
        numbers[0],
        numbers.last()
    );
    assert!(numbers.len() > 1000, "{}", numbers.len());
}

#[test]
fn nothing_that_was_put_in_a_logs_place_is_followed_or_held_up_by() {
    // A directory where the older file goes: written on, and said once.
    let mut spec = app("i=0; while [ $i -lt 1000 ]; do echo $i; i=$((i+1)); done");
    spec.log = Some(LogSpec {
        max_bytes: 10_000,
        max_files: 2,
        ..spec.log.unwrap()
    });
    let mut host = armed(
        std::slice::from_ref(&spec),
        Settings::default(),
        |directory| {
            fs::create_dir_all(directory.join("app.log.1/full")).unwrap();
        },
    );
    host.agent.start(8);
    assert_eq!(host.container.exit_code(), 0);
    assert_eq!(host.lines("app.log", "stdout").len(), 1000);
    let said = "container-init: log app.log cannot be rotated and is written on: errno 21";
    assert_eq!(host.container.line(), said);
    host.container.assert_nothing_more();

    // A link to another file, and another file's second name.
    for plant in [
        (|target, log| std::os::unix::fs::symlink(target, log).unwrap()) as fn(&Path, &Path),
        |target, log| fs::hard_link(target, log).unwrap(),
    ] {
        let script = "echo early; while [ ! -e $HERE/go ]; do busybox sleep 0.02; done; echo late";
        let mut host = armed(&[app(script)], Settings::default(), |directory| {
            fs::write(directory.join("target"), "precious").unwrap();
            plant(&directory.join("target"), &directory.join("app.log"));
        });
        let line = host.container.line();
        let said = "container-init: log app.log cannot be opened: errno ";
        assert!(line.starts_with(said), "{line}");
        let directory = host.path("").to_str().unwrap().to_owned();
        host.agent.start_with(8, &[("HERE", &directory)]);
        host.agent.wait_for("AppReady");
        // When it is gone, the log begins.
        fs::remove_file(host.path("app.log")).unwrap();
        fs::write(host.path("go"), "").unwrap();
        assert_eq!(host.container.exit_code(), 0);
        assert_eq!(host.text("target"), "precious");
        assert!(host.text("app.log").ends_with(" stdout F late\n"));
    }
}

#[test]
fn a_full_disk_holds_nobody_up_and_what_was_lost_is_told_in_the_log() {
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; busybox touch written; \
                  while [ ! -e room ]; do busybox sleep 0.02; done; echo there is room; exec busybox sleep 1000";
    let mut spec = app(&format!("cd $HERE; {script}"));
    spec.log = log("full/app.log");
    let mut host = armed(
        &[spec],
        Settings {
            wrapper: before(
                "busybox mount -t tmpfs -o size=2m none full && busybox dd if=/dev/zero of=full/filler bs=1k count=1900 2>/dev/null",
            ),
            ..Settings::default()
        },
        |directory| fs::create_dir(directory.join("full")).unwrap(),
    );
    let directory = host.container.directory.path().to_owned();
    host.agent
        .start_with(8, &[("HERE", directory.to_str().unwrap())]);
    host.agent.wait_for("AppReady");
    assert_eq!(
        host.container.line(),
        "container-init: log app.log cannot be written: lines are lost: errno 28"
    );
    let inside = PathBuf::from(format!("/proc/{}/root", host.agent.pid.as_raw_pid()))
        .join(directory.join("full").strip_prefix("/").unwrap());
    let text = || fs::read_to_string(inside.join("app.log")).unwrap();
    until("the app has written it all", || {
        host.path("written").exists()
    });
    let status = host.answers();
    assert!(status.contains("stopping: false"), "{status}");
    fs::remove_file(inside.join("filler")).unwrap();
    fs::write(directory.join("room"), "").unwrap();
    until("the log goes on", || {
        text().ends_with("stdout F there is room\n")
    });
    let text = text();
    let notice = text
        .lines()
        .find(|line| line.contains("container-init: "))
        .unwrap();
    let lost = notice.split_once(" stderr F container-init: ").unwrap().1;
    let lost = lost.strip_suffix(" bytes of log lost: errno 28").unwrap();
    let lost: u64 = lost.parse().unwrap();
    assert!(lost > 400_000, "{notice}");
    assert!(text.contains(" stdout F line 0\n"));
    assert_eq!(
        text.lines()
            .filter(|line| line.contains("bytes of log lost"))
            .count(),
        1
    );
}

#[test]
fn what_passes_through_is_dropped_when_nobody_reads_and_the_log_has_it_all() {
    let mut spec = app(
        "i=0; while [ $i -lt 30000 ]; do echo line $i; i=$((i+1)); done; exec busybox sleep 1000",
    );
    spec.log = Some(LogSpec {
        pass_through: true,
        ..spec.log.unwrap()
    });
    let settings = Settings {
        is_read: false,
        ..Settings::default()
    };
    let mut host = armed(&[spec], settings, |_| {});
    host.agent.start(8);
    until("everything is in the log", || {
        host.text("app.log").ends_with("F line 29999\n")
    });
    assert_eq!(host.lines("app.log", "stdout").len(), 30_000);
    let status = host.answers();
    assert!(status.contains("stopping: false"), "{status}");
    host.agent.ask(Request::Stop { budget_ms: 5000 });
    assert_eq!(host.container.exit_code(), 143);
}

#[test]
fn what_passes_through_goes_to_our_own_streams_as_it_was_written_until_they_are_closed() {
    let mut spec = app(
        "echo one; echo two >&2; while [ ! -e $HERE/go ]; do busybox sleep 0.02; done; \
                        i=0; while [ $i -lt 100 ]; do echo more; busybox usleep 1000; i=$((i+1)); done; echo last",
    );
    spec.log = Some(LogSpec {
        pass_through: true,
        ..spec.log.unwrap()
    });
    let mut host = armed(&[spec], Settings::default(), |_| {});
    let directory = host.container.directory.path().to_str().unwrap().to_owned();
    host.agent.start_with(8, &[("HERE", &directory)]);
    let mut lines = [host.container.line(), host.container.line()];
    lines.sort();
    assert_eq!(lines, ["one", "two"]);
    host.container.close_output();
    fs::write(host.path("go"), "").unwrap();
    assert_eq!(host.container.exit_code(), 0);
    assert_eq!(host.lines("app.log", "stdout").len(), 102);
}

#[test]
fn standard_output_can_be_opened_by_name_by_every_user_and_is_blocking_for_each_incarnation() {
    let agent = Spec {
        uid: 1234,
        log: log("a.log"),
        ..Spec::agent("a", &[])
            .script("echo by name >/dev/stdout; busybox grep flags /proc/self/fdinfo/1")
            .optional()
    };
    let host = armed(&[agent, app(FOREVER)], Settings::default(), |_| {});
    until("it was restarted", || {
        host.text("a.log").lines().count() >= 4
    });
    // O_WRONLY, and O_CLOEXEC of a shell at most.
    for pair in host.lines("a.log", "stdout").chunks_exact(2) {
        assert_eq!(pair[0], "by name");
        let flags = u32::from_str_radix(pair[1].split_whitespace().last().unwrap(), 8).unwrap();
        assert_eq!(flags & 0o4003, 1, "{}", pair[1]);
    }
}

#[test]
fn restarts_leak_no_descriptor() {
    let agent = Spec {
        log: log("a.log"),
        argv: vec![c"/bin/busybox".into(), c"echo".into(), c"restarted".into()],
        restart: Restart {
            backoff_min_ms: 0,
            backoff_max_ms: 1,
            ..Spec::app(&[]).restart
        },
        ..Spec::agent("a", &[])
    };
    let mut host = armed(
        &[agent.optional(), app(FOREVER)],
        Settings::default(),
        |_| {},
    );
    host.agent.start(8);
    host.agent.wait_for("AppReady");
    let init = host.agent.pid.as_raw_pid();
    let descriptors = || fs::read_dir(format!("/proc/{init}/fd")).unwrap().count();
    let before = descriptors();
    for _ in 0..2000 {
        host.agent.wait_for("Exited");
    }
    // What a restart itself opens for an instant is no leak; a leak is one of each.
    let after = descriptors();
    assert!(after < before + 20, "{before}, then {after}");
    until("all of them have written", || {
        host.text("a.log").lines().count() >= 2000
    });
    assert!(
        host.lines("a.log", "stdout")
            .iter()
            .all(|line| line == "restarted")
    );
}

#[test]
fn who_writes_on_after_the_app_does_not_hold_the_end_up() {
    let script = "(trap '' TERM; while :; do echo on and on; done) & exit 5";
    let settings = Settings {
        stop_grace_ms: 100,
        ..Settings::default()
    };
    let mut host = armed(&[app(script)], settings, |_| {});
    let begin = Instant::now();
    host.agent.start(8);
    assert_eq!(host.container.exit_code(), 5);
    assert!(begin.elapsed() < PATIENCE / 2, "{:?}", begin.elapsed());
}

#[test]
fn nobody_wakes_up_while_nothing_is_written() {
    let mut host = started(&[app("echo up; exec busybox sleep 1000")]);
    host.agent.wait_for("AppReady");
    until("it has written", || host.text("app.log").ends_with(" up\n"));
    let init = host.agent.pid.as_raw_pid();
    let wakeups = || -> Vec<String> {
        let tasks = fs::read_dir(format!("/proc/{init}/task")).unwrap();
        let status = |task: std::io::Result<fs::DirEntry>| {
            fs::read_to_string(task.unwrap().path().join("status")).unwrap()
        };
        let mut switches: Vec<String> = tasks
            .map(status)
            .map(|status| {
                status
                    .lines()
                    .find(|line| line.starts_with("voluntary"))
                    .unwrap()
                    .to_owned()
            })
            .collect();
        switches.sort();
        switches
    };
    assert_eq!(wakeups().len(), 2);
    let mut before = vec![];
    until("they sleep", || {
        std::mem::replace(&mut before, wakeups()) == before && !before.is_empty()
    });
    host.container.assert_silent(Duration::from_millis(1500));
    assert_eq!(wakeups(), before);
}

#[test]
fn without_pipes_the_processes_write_themselves_and_that_is_said() {
    let settings = Settings {
        wrapper: before("ulimit -n 16"),
        ..Settings::default()
    };
    let agent = |name| Spec {
        log: log("agents.log"),
        ..Spec::agent(name, &[]).script(FOREVER)
    };
    let specs = [agent("a"), agent("b"), app("echo raw")];
    let mut host = armed(&specs, settings, |_| {});
    host.agent.start(8);
    assert_eq!(host.container.exit_code(), 0);
    let said = "container-init: logs cannot be written for the processes, which do it themselves: errno 24";
    host.container.wait_for_line(said);
    assert_eq!(host.text("app.log"), "raw\n");
}

#[test]
fn a_disk_that_hangs_holds_the_writer_and_not_pid_1() {
    let script = "echo up; while [ ! -e $HERE/go ]; do busybox sleep 0.02; done; exec busybox yes";
    let mut host = armed(&[app(script)], Settings::default(), |_| {});
    let directory = host.container.directory.path().to_str().unwrap().to_owned();
    host.agent.start_with(8, &[("HERE", &directory)]);
    host.agent.wait_for("AppReady");
    until("it has written", || host.text("app.log").ends_with(" up\n"));
    let init = host.agent.pid.as_raw_pid();
    let tasks = fs::read_dir(format!("/proc/{init}/task")).unwrap();
    let writer = tasks
        .map(|task| task.unwrap().file_name().into_string().unwrap())
        .find(|tid| *tid != init.to_string())
        .unwrap();
    // It stands for a write that does not come back.
    let freezer = Freezer::around(&writer);
    fs::write(host.path("go"), "").unwrap();
    let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children")).unwrap();
    let app = children.trim();
    until("the app waits in its write(2)", || {
        fs::read_to_string(format!("/proc/{app}/syscall"))
            .unwrap()
            .starts_with("1 0x1 ")
    });
    let status = host.answers();
    assert!(status.contains("stopping: false"), "{status}");
    host.agent.kill(Signal::TERM);
    let exited = host.agent.wait_for("Exited");
    assert!(exited.contains("Signal(15)"), "{exited}");
    host.container.wait_for_line(
        "container-init: the disk does not answer: the last exits and lines of logs may be lost",
    );
    drop(freezer);
    assert_eq!(host.container.exit_code(), 143);
}
