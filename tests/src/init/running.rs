//! Starting a command as pid 1 of a pid namespace or as a plain process, and ending it.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::workload::{Stamp, next_stamp};
use super::{now_ns, sys};
use crate::wait::{Look, until};

/// What an init is to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Pid 1 of a pid namespace of its own.
    Pid1,
    /// A process of the machine that adopts orphans.
    Subreaper,
}

/// A process that was started, and when.
#[derive(Debug)]
pub struct Started {
    /// The process.
    pub child: Child,
    /// [`now_ns`] right before it was made.
    pub at: u64,
}

/// Starts a command there. Whoever kills pid 1 ends its namespace.
pub fn start(command: &mut Command, place: Place) -> Result<Started> {
    let ours = match place {
        Place::Subreaper => None,
        Place::Pid1 => {
            let ours = File::open("/proc/thread-self/ns/pid").context("open our pid namespace")?;
            sys::unshare_pid().context("make a pid namespace")?;
            Some(ours)
        }
    };
    let at = now_ns();
    let child = command.spawn();
    if let Some(ours) = ours {
        move_into_link_name_space(ours.as_fd(), Some(LinkNameSpaceType::ProcessID))
            .context("return to our pid namespace")?;
    }
    let child = child.with_context(|| format!("start {}", command.get_program().display()))?;
    Ok(Started { child, at })
}

/// Pid 1 of a namespace of its own, with the command's streams in our hands. Dropping it ends the
/// namespace.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    /// [`now_ns`] right before it was made.
    pub since: u64,
}

impl Running {
    /// Starts `command` as pid 1.
    pub fn start(command: Command) -> Result<Self> {
        Self::start_at(command, Place::Pid1)
    }

    fn start_at(mut command: Command, place: Place) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let Started { mut child, at } = start(&mut command, place)?;
        Ok(Self {
            stdin: child.stdin.take(),
            stdout: child.stdout.take(),
            child,
            since: at,
        })
    }

    /// Starts `command` as pid 1 that sees its own namespace in /proc, as in a container, by
    /// unshare(1): [`Running::pid`] and signals are unshare's, whose end ends the namespace.
    pub fn start_with_proc(command: &Command) -> Result<Self> {
        let mut unshare = Command::new("unshare");
        unshare
            .args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"])
            .arg(command.get_program())
            .args(command.get_args());
        Self::start_at(unshare, Place::Subreaper)
    }

    /// Its pid, outside.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("send {signal:?} to pid {}", self.pid()))
    }

    /// The next stamp that its [`Workload`](super::Workload) wrote.
    pub fn stamp(&mut self, within: Duration) -> Result<Stamp> {
        let stdout = self.stdout.as_mut().context("its output is not ours")?;
        next_stamp(stdout, within).with_context(|| format!("a stamp from pid {}", self.child.id()))
    }

    /// What it reads.
    pub fn stdin(&mut self) -> Result<&mut ChildStdin> {
        self.stdin.as_mut().context("its input is not ours")
    }

    /// Waits for its end; returns how it ended and [`now_ns`] then.
    pub fn wait(&mut self) -> Result<(ExitStatus, u64)> {
        let status = self.child.wait().context("wait for pid 1")?;
        Ok((status, now_ns()))
    }

    /// Waits for its end, at most `within`.
    pub fn ended(&mut self, within: Duration) -> Result<ExitStatus> {
        until("pid 1 to end", within, || match self.child.try_wait()? {
            Some(status) => Ok(Look::Seen(status)),
            None => Ok(Look::NotYet("it runs".to_owned())),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may be gone already, and there is nobody left to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
