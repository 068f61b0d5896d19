//! How long an init stays when its command has done what a stop asks for.

use std::ffi::OsString;

use anyhow::{Result, ensure};
use nodeagent_tests::bench::{Row, Samples, Target};
use nodeagent_tests::init::{Init, Place, Running, Workload};
use rustix::process::Signal;

use super::memory::asleep;
use super::{AGENTS, Inits, PATIENCE, WithAgents, compared, in_turn, milliseconds};

const ROUNDS: usize = 100;
/// What the command takes to stop, in milliseconds.
const WORK_MS: u32 = 20;

pub fn rows(inits: &Inits) -> Result<Vec<Row>> {
    let who = inits.all();
    let app: Vec<OsString> = Workload::Stop(WORK_MS).argv()?;
    let alone = in_turn::<3>(ROUNDS, |which| with_one(who[which], &app))?;
    let state = format!(
        "SIGTERM to pid 1; the command works {WORK_MS} ms in its handler and ends; from there to \
         the end of pid 1"
    );
    let targets = [Target::P99AtMost(5.0)];
    let mut rows = compared("stop overhead, one process", &state, "ms", &alone, &targets);
    let six = (0..ROUNDS)
        .map(|_| with_six(&app))
        .collect::<Result<Samples>>()?;
    rows.push(
        Row::new(
            "stop overhead, six agents",
            "as before; six agents that end at once are stopped behind the app, one by one",
            "ms",
            &six,
        )
        .wanted(&targets),
    );
    Ok(rows)
}

fn with_one(init: &Init, app: &[OsString]) -> Result<f64> {
    stopped(&mut Running::start(init.command(Place::Pid1, app))?)
}

fn with_six(app: &[OsString]) -> Result<f64> {
    let mut container = WithAgents::start(app.to_vec())?;
    asleep(container.running.pid(), AGENTS)?;
    stopped(&mut container.running)
}

fn stopped(running: &mut Running) -> Result<f64> {
    running.stamp(PATIENCE)?;
    running.signal(Signal::TERM)?;
    let worked = running.stamp(PATIENCE)?;
    let (status, ended) = running.wait()?;
    ensure!(status.code() == Some(0), "pid 1 ended with {status}");
    Ok(milliseconds(ended.saturating_sub(worked.at)))
}
