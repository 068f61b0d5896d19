//! PID 1 in a storm: orphans end below it as fast as they can be made, its own processes end and
//! are started again, and signals pass through it all the while.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use container_init::protocol::{EventKind, ExitStatus, Report};
use nodeagent_tests::bench::Samples;
use nodeagent_tests::init::plan::Planned;
use nodeagent_tests::init::proc::{children, private};
use nodeagent_tests::init::{Gate, Running, Workload, now_ns};
use nodeagent_tests::wait::{Look, until};
use rustix::process::{Pid, Signal, kill_process};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two signals.
const PAUSE: Duration = Duration::from_millis(1);
/// How the agents of the plan end, each time they are started.
const ENDS: [(&str, ExitStatus); 2] = [
    ("exit 37", ExitStatus::Code(37)),
    ("kill -KILL $$", ExitStatus::Signal(9)),
];

#[test]
fn in_seconds_of_storm_no_status_is_lost_no_signal_and_no_memory_grows() -> Result<()> {
    storm(Duration::from_secs(5)).map(drop)
}

#[test]
#[ignore = "a minute on a machine that does nothing else: make soak"]
fn in_a_minute_of_10_000_forks_a_second_no_status_is_lost_no_signal_and_no_memory_grows()
-> Result<()> {
    let rate = storm(Duration::from_secs(60))?;
    ensure!(rate >= 10_000.0, "only {rate:.0} orphans a second");
    Ok(())
}

#[test]
#[ignore = "ten minutes on a machine that does nothing else: make soak"]
fn in_ten_million_exits_no_memory_grows() -> Result<()> {
    let length = Duration::from_secs(600);
    let ends = storm(length)? * length.as_secs_f64();
    ensure!(ends >= 10e6, "only {ends:.0} exits");
    Ok(())
}

/// Orphans a second.
fn storm(length: Duration) -> Result<f64> {
    let directory = tempfile::tempdir()?;
    let planned = Planned {
        agents: ENDS.map(|(script, _)| shell(script)).into(),
        app: Workload::Storm.argv()?,
        backoff_ms: 10,
    };
    let listener = Gate::listen(&Planned::socket(directory.path()))?;
    let mut running = Running::start(planned.command(directory.path())?)?;
    let mut gate = Gate::accept(&listener)?;
    let mut heard = Heard::default();
    gate.wait_for("armed", |report| {
        heard.take(report);
        heard.armed.then_some(())
    })?;
    gate.let_go(1)?;
    running.stamp(PATIENCE)?;

    let begun = Instant::now();
    let first = signalled(&mut running)?;
    let mut last = first;
    let mut latency = Vec::new();
    // Of the first fifth, the third and the last.
    let mut memory = Vec::new();
    while begun.elapsed() < length || memory.len() < 2 {
        std::thread::sleep(PAUSE);
        last = signalled(&mut running)?;
        latency.push(last.us);
        gate.heard(|report| heard.take(report))?;
        if begun.elapsed() > length / 5 * (1 + 2 * memory.len() as u32) && memory.len() < 2 {
            memory.push(private(running.pid())?.dirty);
        }
    }
    let rate = (last.orphans - first.orphans) as f64 / begun.elapsed().as_secs_f64();
    let after = private(running.pid())?.dirty;
    memory.push(after);
    // A page that is touched for the first time is no leak; a leak goes on.
    let grew = |pair: &[f64]| pair[1] > pair[0];
    ensure!(
        memory.len() == 3 && !memory.windows(2).all(grew),
        "private dirty memory grew: {memory:?} KiB"
    );

    // Whoever's status were lost would never have been started again.
    let so_far = heard.ends.clone();
    until("every agent to end once more", PATIENCE, || {
        gate.heard(|report| heard.take(report))?;
        let more = |name: &str| heard.ends.get(name) > so_far.get(name);
        Ok(match more("agent-1") && more("agent-2") {
            true => Look::Seen(()),
            false => Look::NotYet(format!("{:?}", heard.ends)),
        })
    })?;
    ensure!(heard.faults.is_empty(), "{:#?}", heard.faults);

    end_the_storm(running.pid())?;
    until("every orphan to be reaped", PATIENCE, || {
        gate.heard(|report| heard.take(report))?;
        let zombies = children(running.pid())?.iter().filter(|c| c.zombie).count();
        Ok(match zombies {
            0 => Look::Seen(()),
            some => Look::NotYet(format!("{some} zombies")),
        })
    })?;
    running.signal(Signal::TERM)?;
    let status = running.ended(PATIENCE)?;
    ensure!(status.code() == Some(128 + 15), "pid 1 ended with {status}");

    let latency: Samples = latency.into_iter().collect();
    println!(
        "{rate:.0} orphans a second; signal to handler: n {} p50 {:.0} us p99 {:.0} us max {:.0} us; \
         ends {:?}; private dirty {after} KiB",
        latency.n(),
        latency.p50(),
        latency.p99(),
        latency.max(),
        heard.ends
    );
    Ok(rate)
}

/// What was reported so far.
#[derive(Default)]
struct Heard {
    armed: bool,
    last_seq: u64,
    /// Ends of each agent.
    ends: BTreeMap<String, u64>,
    /// What should not have been said.
    faults: Vec<String>,
}

impl Heard {
    fn take(&mut self, report: &Report<'_>) {
        let Report::Event(event) = report else { return };
        if event.seq != self.last_seq + 1 {
            self.faults
                .push(format!("event {} after {}", event.seq, self.last_seq));
        }
        self.last_seq = event.seq;
        match event.kind {
            EventKind::Armed => self.armed = true,
            EventKind::Exited { name, status, .. } => {
                let agent = name.strip_prefix("agent-").and_then(|n| n.parse().ok());
                let wanted = agent.and_then(|n: usize| ENDS.get(n - 1));
                if wanted.is_none_or(|(_, wanted)| *wanted != status) {
                    self.faults.push(format!("{name} ended with {status:?}"));
                }
                *self.ends.entry(name.to_owned()).or_default() += 1;
            }
            _ => {}
        }
    }
}

#[derive(Clone, Copy)]
struct Signalled {
    us: f64,
    orphans: u64,
}

fn signalled(running: &mut Running) -> Result<Signalled> {
    let sent = now_ns();
    running.signal(Signal::USR1)?;
    let stamp = running.stamp(PATIENCE)?;
    Ok(Signalled {
        us: stamp.at.saturating_sub(sent) as f64 / 1e3,
        orphans: stamp.orphans,
    })
}

/// Kills the process that makes the orphans: the only child of a child of pid 1.
fn end_the_storm(init: u32) -> Result<()> {
    for child in children(init)? {
        for grandchild in children(child.pid)? {
            let pid = Pid::from_raw(grandchild.pid.cast_signed()).context("pid 0 is nobody's")?;
            // One of a batch may be gone already.
            kill_process(pid, Signal::KILL).ok();
        }
    }
    Ok(())
}

fn shell(script: &str) -> Vec<OsString> {
    ["/bin/busybox", "sh", "-c", script]
        .map(OsString::from)
        .into()
}
