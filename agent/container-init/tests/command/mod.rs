//! One command under the real program, as a plain process or as pid 1 of a pid namespace.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::container::{PATIENCE, children, program, until};

/// Where it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Beside everybody else: it adopts orphans.
    Subreaper,
    /// pid 1 of a pid namespace with its own /proc.
    Namespace,
}

/// Both places.
pub const PLACES: [Place; 2] = [Place::Subreaper, Place::Namespace];

/// The program with its command.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    /// Pid of container-init, as we see it.
    pub pid: Pid,
}

impl Running {
    /// `container-init OPTIONS -- busybox sh -c SCRIPT`.
    pub fn script(place: Place, options: &[&str], script: &str) -> Self {
        let mut words = options.to_vec();
        words.extend(["--", "/bin/busybox", "sh", "-c", script]);
        Self::words(place, &words)
    }

    /// `container-init WORDS`.
    pub fn words(place: Place, words: &[&str]) -> Self {
        // Who runs the tests in the background ignores INT and QUIT, and so would all below.
        let mut command = Command::new("env");
        command.arg("--default-signal");
        if place == Place::Namespace {
            command.args([
                "unshare",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "--",
            ]);
        }
        command.arg(program());
        command.args(words);
        Self::spawn(place, command)
    }

    /// A command that ends up as container-init: itself for a plain process, its only child else.
    pub fn spawn(place: Place, mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let streams: [Box<dyn Read + Send>; 2] = [
            Box::new(child.stdout.take().unwrap()),
            Box::new(child.stderr.take().unwrap()),
        ];
        for stream in streams {
            let sender = sender.clone();
            thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        let pid = match place {
            Place::Subreaper => child.id(),
            Place::Namespace => {
                let mut inner = 0;
                until("the init", || {
                    let is_init = |pid: &&u32| is_program(**pid);
                    inner = children(child.id())
                        .iter()
                        .find(is_init)
                        .copied()
                        .unwrap_or(0);
                    inner != 0 || child.try_wait().unwrap().is_some()
                });
                inner
            }
        };
        let pid = Pid::from_raw(pid.cast_signed()).unwrap_or(Pid::INIT);
        Self { child, lines, pid }
    }

    /// The next line that anybody wrote.
    pub fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line")
    }

    /// Reads lines until this one.
    pub fn wait_for_line(&self, wanted: &str) {
        while self.line() != wanted {}
    }

    /// All that is written until everybody who could write is gone.
    pub fn rest(&self) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => lines.push(line),
                Err(RecvTimeoutError::Disconnected) => return lines,
                Err(RecvTimeoutError::Timeout) => panic!("somebody still holds the output"),
            }
        }
    }

    /// Sends a signal by its number to container-init.
    pub fn kill(&self, signal: u32) {
        kill(self.pid.as_raw_nonzero().get().cast_unsigned(), signal);
    }

    /// Whether a signal waits to be read by container-init.
    pub fn has_pending(&self) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let pending = status
            .lines()
            .find_map(|line| line.strip_prefix("ShdPnd:\t"));
        pending.unwrap().bytes().any(|digit| digit != b'0')
    }

    /// The only child of container-init, as we see it: the command.
    pub fn command(&self) -> u32 {
        let mut command = 0;
        until("the command", || {
            let init = self.pid.as_raw_nonzero().get().cast_unsigned();
            command = children(init).first().copied().unwrap_or(0);
            command != 0
        });
        command
    }

    /// Waits for the end and returns the exit code, 128 + n for a signal.
    pub fn exit_code(&mut self) -> i32 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status
                    .code()
                    .unwrap_or_else(|| 128 + status.signal().unwrap());
            }
            assert!(Instant::now() < deadline, "it does not end");
            thread::park_timeout(Duration::from_millis(1));
        }
    }

    /// Whether it runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.runs() {
            for pid in descendants(self.child.id()) {
                rustix::process::kill_process(pid, Signal::KILL).ok();
            }
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The program of tests/NAME.c, built below the target directory.
pub fn compiled(name: &str) -> String {
    let source = format!("{}/tests/{name}.c", env!("CARGO_MANIFEST_DIR"));
    let path = format!("{}/{name}", env!("CARGO_TARGET_TMPDIR"));
    // Others may be executing the one that is there.
    let own = format!("{path}.{}", std::process::id());
    let built = Command::new("cc").args(["-o", &own, &source]).status();
    assert!(built.unwrap().success(), "{source}");
    std::fs::rename(own, &path).unwrap();
    path
}

/// kill(1) of busybox, which takes every number.
pub fn kill(pid: u32, signal: u32) {
    let (signal, pid) = (format!("-{signal}"), pid.to_string());
    let sent = Command::new("busybox")
        .args(["kill", &signal, &pid])
        .status();
    assert!(sent.unwrap().success(), "kill {signal} {pid}");
}

fn is_program(pid: u32) -> bool {
    let shown = std::fs::read_link(format!("/proc/{pid}/exe"));
    shown.is_ok_and(|exe| exe == Path::new(program()).canonicalize().unwrap())
}

fn descendants(pid: u32) -> Vec<Pid> {
    let mut found = Vec::new();
    for child in children(pid) {
        found.extend(Pid::from_raw(child.cast_signed()));
        found.extend(descendants(child));
    }
    found
}
