//! The exit ring on a disk that hangs: a file system of its own, frozen as by fsfreeze(8). Needs what
//! tests/pid1.rs needs, a loop device and mkfs.ext4.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

#[allow(dead_code, reason = "tests/pid1.rs needs more of it")]
mod container;

use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use container::{Agent, Container, PATIENCE, Settings, Spec};
use container_init::exits::{ExitRecord, FILE_SIZE, RECORDS, records};
use container_init::plan::Restart;
use container_init::protocol::{ExitStatus, Request};
use rustix::process::Signal;

/// A container that is armed and whose exit ring is on a disk of its own.
struct OnDisk {
    container: Container,
    agent: Agent,
    /// Open, so that it can be read when the container and its mounts are gone.
    ring: fs::File,
    _listener: UnixListener,
}

impl OnDisk {
    fn armed(specs: &[Spec]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::File::create(path("image"))
            .unwrap()
            .set_len(4 << 20)
            .unwrap();
        run(Command::new("mkfs.ext4")
            .args(["-q", "-F"])
            .arg(path("image")));
        fs::create_dir(path("disk")).unwrap();
        fs::write(path("exits"), "").unwrap();
        // Both mounts and the loop device go with the mount namespace.
        let script = format!(
            "cd {} && mount -o loop image disk && : >disk/exits && mount --bind disk/exits exits \
             && exec \"$0\" \"$@\"",
            directory.path().display()
        );
        let settings = Settings {
            wrapper: ["unshare", "--mount", "--", "/bin/sh", "-c", &script]
                .map(str::to_owned)
                .into(),
            ..Settings::default()
        };
        let listener = UnixListener::bind(path("gate.sock")).unwrap();
        let container = Container::run_in(directory, specs, settings);
        let mut agent = Agent::accept(&listener);
        agent.wait_for("Armed");
        let ring = fs::File::open(inside(&container, &agent, "exits")).unwrap();
        Self {
            container,
            agent,
            ring,
            _listener: listener,
        }
    }

    fn freeze(&self) -> Frozen {
        Frozen::of(&inside(&self.container, &self.agent, "disk"))
    }

    /// What the ring has, oldest first.
    fn records(&self) -> Vec<ExitRecord> {
        let mut file = vec![0; FILE_SIZE];
        self.ring.read_exact_at(&mut file, 0).unwrap();
        let mut found: Vec<ExitRecord> = records(&file).collect();
        found.sort_by_key(|record| record.seq);
        found
    }
}

/// Somewhere below the container's directory, as the container sees it.
fn inside(container: &Container, agent: &Agent, name: &str) -> PathBuf {
    let directory = container.directory.path().strip_prefix("/").unwrap();
    let root = format!("/proc/{}/root", agent.pid.as_raw_pid());
    Path::new(&root).join(directory).join(name)
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// A file system that takes no write, until this goes.
struct Frozen(fs::File);

impl Frozen {
    fn of(mount_point: &Path) -> Self {
        let file = fs::File::open(mount_point).unwrap();
        let frozen = Self(file);
        frozen.fsfreeze("-f");
        frozen
    }

    /// By a descriptor of ours: the container's own way there goes with it.
    fn fsfreeze(&self, what: &str) {
        let descriptor = std::os::fd::AsRawFd::as_raw_fd(&self.0);
        let path = format!("/proc/{}/fd/{descriptor}", std::process::id());
        run(Command::new("fsfreeze").args([what, &path]));
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.fsfreeze("-u");
    }
}

#[test]
fn a_disk_that_hangs_holds_neither_signals_nor_reaping_and_gets_the_newest_ends_when_it_is_back() {
    let crashing = Spec {
        argv: vec![c"/bin/busybox".into(), c"false".into()],
        restart: Restart {
            backoff_min_ms: 0,
            backoff_max_ms: 1,
            ..Spec::app(&[]).restart
        },
        ..Spec::agent("crashing", &[])
    };
    let app = Spec::app(&[])
        .script("trap 'echo got it' USR1; echo up; while :; do busybox sleep 0.01; done");
    let mut host = OnDisk::armed(&[crashing.optional(), app]);
    host.agent.start(8);
    host.container.wait_for_line("up");
    let frozen = host.freeze();
    // More than the ring has room for: each is reaped and its process started again.
    for _ in 0..2 * RECORDS {
        host.agent.wait_for("Exited");
    }
    let since = Instant::now();
    host.agent.kill(Signal::USR1);
    host.container.wait_for_line("got it");
    // The app looks every 10 ms; the rest is the machine's load.
    assert!(since.elapsed() < PATIENCE / 2, "{:?}", since.elapsed());
    host.agent.ask(Request::Status);
    let status = host.agent.wait_for("Status");
    assert!(status.contains("stopping: false"), "{status}");

    drop(frozen);
    host.agent.kill(Signal::TERM);
    assert_eq!(host.container.exit_code(), 143);
    let records = host.records();
    assert_eq!(records.len(), RECORDS);
    // When the app ends, the agent is stopped, if it runs just then.
    let (before, last) = records.split_at(RECORDS - 2);
    let is_app = |record: &&ExitRecord| record.name.as_str() == "app";
    assert!(!before.iter().any(|record| is_app(&record)), "{before:?}");
    let app: Vec<ExitStatus> = last.iter().filter(is_app).map(|app| app.status).collect();
    assert_eq!(app, [ExitStatus::Signal(15)]);
}

#[test]
fn the_end_of_the_container_waits_for_a_disk_that_hangs_and_not_for_ever() {
    let mut host = OnDisk::armed(&[Spec::app(&[]).script("exec busybox sleep 1000")]);
    host.agent.start(8);
    host.agent.wait_for("AppReady");
    let frozen = host.freeze();
    let since = Instant::now();
    host.agent.kill(Signal::TERM);
    let exited = host.agent.wait_for("Exited");
    assert!(exited.contains("Signal(15)"), "{exited}");
    host.container.wait_for_line(
        "container-init: the disk does not answer: the last exits and lines of logs may be lost",
    );
    assert!(
        since.elapsed() >= Duration::from_secs(1),
        "{:?}",
        since.elapsed()
    );
    // The kernel lets nobody go who waits for a disk.
    drop(frozen);
    assert_eq!(host.container.exit_code(), 143);
}
