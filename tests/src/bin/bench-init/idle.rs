//! How often an init wakes while nothing happens: by its context switches and, in the same minute,
//! by every system call that strace(1) sees.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::bench::{Row, Samples, Target};
use nodeagent_tests::init::{Place, Running};
use nodeagent_tests::process::Usage;
use nodeagent_tests::wait::{Look, until};
use rustix::process::{Pid, Signal, kill_process};

use super::memory::asleep;
use super::{AGENTS, Inits, PATIENCE, WithAgents, compared, sleeper};

const WATCHED: Duration = Duration::from_secs(60);

pub fn rows(inits: &Inits) -> Result<Vec<Row>> {
    // Two of each: what is traced is switched to and fro by the tracer.
    let counted = Sleeping::start(inits)?;
    let traced = Sleeping::start(inits)?;
    let tracers: Vec<Tracer> = traced
        .pids()
        .into_iter()
        .map(Tracer::attach)
        .collect::<Result<_>>()?;
    let pids = counted.pids();
    let before: Vec<Usage> = pids
        .iter()
        .map(|pid| Usage::of(*pid))
        .collect::<Result<_>>()?;
    sleep(WATCHED);
    let mut woken = Vec::new();
    for ((pid, before), tracer) in pids.into_iter().zip(before).zip(tracers) {
        let (_, switches) = Usage::of(pid)?.since(&before);
        woken.push(Woken {
            switches: switches as f64,
            calls: tracer.detach()?,
        });
    }
    let [ours, tini, dumb_init, six] = woken[..] else {
        anyhow::bail!("{} were watched", woken.len());
    };
    let one = |woken: Woken| -> Samples { [woken.switches].into_iter().collect() };
    let seconds = WATCHED.as_secs();
    let calls = |woken: Woken| format!("{} system calls by strace -f", woken.calls);
    let mut rows = compared(
        "idle wake-ups, one process",
        &format!(
            "context switches in {seconds} s; in another one in the same minute {}, tini {}, dumb-init {}",
            calls(ours),
            tini.calls,
            dumb_init.calls
        ),
        "n",
        &[one(ours), one(tini), one(dumb_init)],
        &[Target::MaxAtMost(0.0)],
    );
    rows.push(
        Row::new(
            "idle wake-ups, six agents",
            &format!(
                "context switches in {seconds} s, connected at the gate, app running; in another one {}",
                calls(six)
            ),
            "n",
            &one(six),
        )
        .beside("tini, alone", &one(tini))
        .wanted(&[Target::MaxAtMost(0.0)]),
    );
    Ok(rows)
}

#[derive(Clone, Copy)]
struct Woken {
    switches: f64,
    calls: usize,
}

/// One of each init above a sleeper, and ours with agents.
struct Sleeping {
    alone: Vec<Running>,
    six: WithAgents,
}

impl Sleeping {
    fn start(inits: &Inits) -> Result<Self> {
        let mut alone = Vec::new();
        for init in inits.all() {
            let running = Running::start(init.command(Place::Pid1, &sleeper()))?;
            asleep(running.pid(), 1)?;
            alone.push(running);
        }
        let six = WithAgents::start(sleeper())?;
        asleep(six.running.pid(), AGENTS + 1)?;
        Ok(Self { alone, six })
    }

    fn pids(&self) -> Vec<u32> {
        let all = self.alone.iter().chain([&self.six.running]);
        all.map(Running::pid).collect()
    }
}

struct Tracer {
    pid: u32,
    strace: Child,
    record: tempfile::NamedTempFile,
}

impl Tracer {
    fn attach(pid: u32) -> Result<Self> {
        let record = tempfile::NamedTempFile::new().context("a file for strace")?;
        let strace = Command::new("strace")
            .args(["-f", "-qq", "-o"])
            .arg(record.path())
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .spawn()
            .context("run strace(1)")?;
        let traced = format!("TracerPid:\t{}", strace.id());
        until("strace to be attached", PATIENCE, || {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            // It writes down the call that the process sleeps in.
            let written = record.as_file().metadata()?.len() > 0;
            Ok(match status.contains(&traced) && written {
                true => Look::Seen(()),
                false => Look::NotYet("it is not".to_owned()),
            })
        })?;
        Ok(Self {
            pid,
            strace,
            record,
        })
    }

    /// How many system calls were begun since.
    fn detach(mut self) -> Result<usize> {
        kill_process(Pid::from_child(&self.strace), Signal::TERM).context("end strace")?;
        self.strace.wait().context("wait for strace")?;
        let text = fs::read_to_string(self.record.path()).context("read what strace wrote")?;
        ensure!(!text.is_empty(), "strace saw nothing of pid {}", self.pid);
        let calls = text
            .lines()
            .filter(|line| line.contains('(') && !line.contains("<detached"));
        Ok(calls.count())
    }
}
