//! How fast a crowd of zombies is reaped that comes at once.

use std::io::Write;

use anyhow::{Context, Result};
use nodeagent_tests::bench::{Row, Target};
use nodeagent_tests::init::{Init, Place, Running, Workload, now_ns};
use rustix::process::Signal;

use super::{Inits, PATIENCE, compared, in_turn, milliseconds};

const ROUNDS: usize = 10;
const SIZES: [usize; 3] = [200, 2000, 20_000];
/// Milliseconds for the largest: 300 000 zombies a second.
const WANTED: f64 = 66.6;

pub fn rows(inits: &Inits) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for size in SIZES {
        let mut running = Vec::new();
        for init in inits.all() {
            running.push(run(init, size)?);
        }
        let times = in_turn::<3>(ROUNDS, |which| reaped(&mut running[which]))?;
        let [ours, tini, dumb_init] = [0, 1, 2].map(|which| {
            let ms = times[which].p50();
            size as f64 / ms * 1e3
        });
        let state = format!(
            "pid 1 is stopped (SIGSTOP) while a parent makes them and ends; from SIGCONT until the \
             last is gone; {ours:.0} a second (tini {tini:.0}, dumb-init {dumb_init:.0})"
        );
        let targets = match size {
            20_000 => &[Target::P50AtMost(WANTED)][..],
            _ => &[],
        };
        rows.extend(compared(
            &format!("{size} zombies at once"),
            &state,
            "ms",
            &times,
            targets,
        ));
    }
    Ok(rows)
}

fn run(init: &Init, size: usize) -> Result<Running> {
    let mut running = Running::start(init.command(Place::Pid1, &Workload::Crowd(size).argv()?))?;
    running.stamp(PATIENCE)?;
    Ok(running)
}

/// Milliseconds from SIGCONT until all of them are gone. Nobody looks at them in /proc: what it
/// remembers of a process makes reaping it several times slower.
fn reaped(running: &mut Running) -> Result<f64> {
    running.signal(Signal::STOP)?;
    running
        .stdin()?
        .write_all(b"!")
        .context("ask for a crowd")?;
    running.stamp(PATIENCE)?;
    let since = now_ns();
    running.signal(Signal::CONT)?;
    let gone = running.stamp(PATIENCE)?;
    Ok(milliseconds(gone.at.saturating_sub(since)))
}
