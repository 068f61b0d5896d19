//! `make bench agent`: what the agent itself costs: time to ready, memory, wake-ups, fsyncs.
//!
//! With nothing to do, and with 10, 100 and 200 instances (half armed, half in service).

use std::fs;
use std::process::{Command, ExitCode};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::bench::{Machine, Report, Row, Samples, Target};
use nodeagent_tests::process::{Process, Usage};
use nodeagent_tests::wait::{Look, until};
use nodeagent_tests::{Image, Manifest, TestHost};

const STARTS: usize = 20;
const SIZES: [u32; 4] = [0, 10, 100, 200];
/// Instances with which the time from kill -9 to READY has a target.
const KILLED_WITH: u32 = 200;
/// Largest number of instances with which idle memory has one.
const IDLE_WITH: u32 = 100;
/// How long wake-ups are counted, and fsyncs after that.
const WATCHED: Duration = Duration::from_secs(20);
const APP: &str = "idle";

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<()> {
    let mut host = TestHost::start()?;
    host.push(&Image::notify(host.ground.directory())?, "notify:1")?;
    let mut rows = Vec::new();
    for size in SIZES {
        eprintln!("{size} instances");
        let half = size / 2;
        if size > 0 {
            host.apply(&Manifest::notify(APP).armed(half))?;
            host.wait_for_armed(APP, half)?;
            host.cli()
                .post("activate", APP, half, &format!("fill-{size}"))?;
            host.wait_for_armed(APP, half)?;
        }
        rows.extend(ready(&mut host, size)?);
        rows.extend(idle(&host, size)?);
        if size > 0 {
            host.remove_app(APP)?;
        }
    }
    let report = Report {
        bench: "agent".to_owned(),
        host: Machine::here(host.containerd.version()?),
        rows,
    };
    report.publish()
}

/// From fork to READY=1, after an end by SIGTERM and after one by SIGKILL.
fn ready(host: &mut TestHost, size: u32) -> Result<Vec<Row>> {
    let mut measured = |end: fn(&mut TestHost) -> Result<()>| -> Result<Samples> {
        (0..STARTS)
            .map(|_| {
                end(host)?;
                let took = host.agent.start(&host.ground)?;
                Ok(took.as_secs_f64() * 1e3)
            })
            .collect()
    };
    let after_term = measured(|host| host.agent.stop())?;
    let after_kill = measured(|host| host.agent.kill())?;
    let instances = format!("{size} instances, page cache warm");
    let mut started = Row::new(
        &format!("exec to READY, {size} instances"),
        &format!("ended by SIGTERM before; {instances}"),
        "ms",
        &after_term,
    );
    if size == 0 || size == KILLED_WITH {
        started = started.wanted(&[Target::P50AtMost(50.0)]);
    }
    let mut killed = Row::new(
        &format!("kill -9, to READY, {size} instances"),
        &instances,
        "ms",
        &after_kill,
    );
    if size == KILLED_WITH {
        killed = killed.wanted(&[Target::P50AtMost(500.0)]);
    }
    Ok(vec![started, killed])
}

fn idle(host: &TestHost, size: u32) -> Result<Vec<Row>> {
    let pid = host.agent.pid().context("the agent does not run")?;
    // What the start itself left to do (observing, probing) is not idleness.
    sleep(Duration::from_secs(3));
    // Every wake-up ends in a context switch. Second by second, for threads that end.
    let mut switches = 0;
    let mut before = Usage::of(pid)?;
    for _ in 0..WATCHED.as_secs() {
        sleep(Duration::from_secs(1));
        let now = Usage::of(pid)?;
        switches += now.since(&before).1;
        before = now;
    }
    let per_second = switches as f64 / WATCHED.as_secs_f64();
    let memory = pss_mib(pid)?;
    let fsyncs = fsyncs(host, pid)?;
    let state = format!("{size} instances, no requests, {} s", WATCHED.as_secs());
    let one = |value: f64| -> Samples { [value].into_iter().collect() };
    let mut pss = Row::new(
        &format!("idle PSS, {size} instances"),
        &state,
        "MiB",
        &one(memory),
    );
    if size <= IDLE_WITH {
        pss = pss.wanted(&[Target::MaxAtMost(15.0)]);
    }
    Ok(vec![
        pss,
        Row::new(
            &format!("idle wake-ups, {size} instances"),
            &state,
            "1/s",
            &one(per_second),
        )
        .wanted(&[Target::MaxAtMost(2.0)]),
        Row::new(
            &format!("idle fsyncs, {size} instances"),
            &state,
            "n",
            &one(fsyncs),
        )
        .wanted(&[Target::MaxAtMost(0.0)]),
    ])
}

/// Proportional set size (proc_pid_smaps(5)).
fn pss_mib(pid: u32) -> Result<f64> {
    let file = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kib.with_context(|| format!("no Pss in {file}"))? / 1024.0)
}

/// fsync(2) and fdatasync(2) calls while [`WATCHED`] passes, by strace(1).
fn fsyncs(host: &TestHost, pid: u32) -> Result<f64> {
    let calls = host.ground.path("strace");
    let mut command = Command::new("strace");
    command
        .args([
            "-f",
            "-qq",
            "-e",
            "trace=fsync,fdatasync,sync_file_range,syncfs",
            "-o",
        ])
        .arg(&calls)
        .args(["-p", &pid.to_string()]);
    let mut tracer = Process::start(&host.ground, "strace", command)?;
    let traced = format!("TracerPid:\t{}", tracer.pid());
    until("strace to be attached", Duration::from_secs(10), || {
        ensure!(
            tracer.ended()?.is_none(),
            "strace ended:\n{}",
            tracer.tail(5)
        );
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        Ok(if status.contains(&traced) {
            Look::Seen(())
        } else {
            Look::NotYet("it is not".to_owned())
        })
    })?;
    sleep(WATCHED);
    tracer.terminate(Duration::from_secs(10))?;
    let text = fs::read_to_string(&calls).with_context(|| format!("read {}", calls.display()))?;
    let synced = text
        .lines()
        .filter(|line| line.contains("sync") && line.contains('('));
    Ok(synced.count() as f64)
}
