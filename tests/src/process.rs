//! Processes of a test host: started inside its network, recorded, ended by pid.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::ground::Ground;
use crate::wait::{Look, until};

/// File below a host's directory that lists the processes it started: `pid starttime name`.
pub const RECORD: &str = "processes";

/// A process of a test host. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` inside the host's network, its output appended to `<name>.log`.
    pub fn start(ground: &Ground, name: &str, command: Command) -> Result<Self> {
        Self::start_with(ground, name, command, [None, None])
    }

    /// The same with these descriptors as standard input and output, where they are given.
    pub fn start_with(
        ground: &Ground,
        name: &str,
        mut command: Command,
        [input, out]: [Option<OwnedFd>; 2],
    ) -> Result<Self> {
        let log = ground.path(&format!("{name}.log"));
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("open {}", log.display()))?;
        let errors = output
            .try_clone()
            .context("duplicate the log's descriptor")?;
        command
            .stdin(input.map_or_else(Stdio::null, Stdio::from))
            .stdout(out.map_or_else(|| Stdio::from(output), Stdio::from))
            .stderr(errors)
            // Ctrl-C at the terminal is for the one who started the host, who then removes it.
            .process_group(0)
            .current_dir("/");
        // A child has the network namespace of the thread that forked it.
        let child = ground.netns().run(|| {
            command
                .spawn()
                .with_context(|| format!("start {}", command.get_program().display()))
        })?;
        record(ground, child.id(), name)?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
        })
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its output so far.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child
            .try_wait()
            .with_context(|| format!("wait for {}", self.name))
    }

    /// Ends it with SIGKILL and waits for it.
    pub fn kill(&mut self) -> Result<()> {
        self.child
            .kill()
            .and_then(|()| self.child.wait())
            .map(drop)
            .with_context(|| format!("kill {}", self.name))
    }

    /// Asks it to end with SIGTERM and waits, at most `within`.
    pub fn terminate(&mut self, within: Duration) -> Result<ExitStatus> {
        if self.ended()?.is_none() {
            kill_process(Pid::from_child(&self.child), Signal::TERM)
                .with_context(|| format!("send SIGTERM to {}", self.name))?;
        }
        let what = format!("{} to end after SIGTERM", self.name);
        until(&what, within, || match self.child.try_wait()? {
            Some(status) => Ok(Look::Seen(status)),
            None => Ok(Look::NotYet("it runs".to_owned())),
        })
    }

    /// The last `lines` of its output, for the report of a failure.
    pub fn tail(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be gone already, and there is nobody left to tell.
        let _ = self.kill();
    }
}

/// The last `lines` of a file, each indented; empty when there is no such file.
pub fn tail(file: &Path, lines: usize) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    let mut shown = String::new();
    for line in &all[all.len().saturating_sub(lines)..] {
        // Writing to a String cannot fail.
        let _ = writeln!(shown, "    {line}");
    }
    shown
}

fn record(ground: &Ground, pid: u32, name: &str) -> Result<()> {
    let Some(start) = start_time(pid) else {
        return Ok(()); // It has ended and nothing is left to record.
    };
    let file = ground.path(RECORD);
    let mut list: File = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&file)
        .with_context(|| format!("open {}", file.display()))?;
    writeln!(list, "{pid} {start} {name}").with_context(|| format!("write {}", file.display()))
}

/// When a process started, in clock ticks since boot (proc_pid_stat(5), field 22): with the pid
/// it names one process for good.
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Field 2 is the name in parentheses and may contain anything.
    let after_name = &stat[stat.rfind(')')? + 1..];
    after_name.split_whitespace().nth(19)?.parse().ok()
}

/// What the threads of a process have used so far; a thread that ends takes its share away.
#[derive(Debug, Clone, Default)]
pub struct Usage(BTreeMap<OsString, (u64, u64)>);

impl Usage {
    /// Of the threads that live now.
    pub fn of(pid: u32) -> Result<Self> {
        let threads = format!("/proc/{pid}/task");
        let entries = fs::read_dir(&threads).with_context(|| format!("read {threads}"))?;
        let used = entries.flatten().filter_map(|thread| {
            // First field: nanoseconds on a processor (kernel: Documentation/scheduler/sched-stats).
            let ran = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            let ran = ran.split(' ').next()?.parse().ok()?;
            // Voluntary and other context switches (proc_pid_status(5)).
            let status = fs::read_to_string(thread.path().join("status")).ok()?;
            let switches = status
                .lines()
                .filter(|line| line.contains("voluntary_ctxt_switches"))
                .filter_map(|line| line.split_whitespace().last()?.parse::<u64>().ok())
                .sum();
            Some((thread.file_name(), (ran, switches)))
        });
        Ok(Self(used.collect()))
    }

    /// Processor time and context switches since `before`, of the threads that live now.
    pub fn since(&self, before: &Self) -> (Duration, u64) {
        let mut sum = (0, 0);
        for (thread, now) in &self.0 {
            let then = before.0.get(thread).copied().unwrap_or_default();
            sum.0 += now.0.saturating_sub(then.0);
            sum.1 += now.1.saturating_sub(then.1);
        }
        (Duration::from_nanos(sum.0), sum.1)
    }
}
