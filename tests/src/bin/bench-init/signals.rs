//! How long a signal to the init takes to the handler of its command, also in a storm of orphans.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use nodeagent_tests::bench::{Row, Samples, Target};
use nodeagent_tests::init::{Init, Place, Running, Workload, now_ns};
use rustix::process::Signal;

use super::{Inits, PATIENCE, compared, in_turn, microseconds};

const ROUNDS: usize = 3000;
/// Between two signals.
const PAUSE: Duration = Duration::from_micros(500);

/// The storm comes in spells, so that what the machine does meanwhile meets every init.
const SPELLS: usize = 5;
const SIGNALS_OF_A_SPELL: usize = 1000;
const STORM: f64 = 10_000.0;

pub fn rows(inits: &Inits) -> Result<Vec<Row>> {
    let mut rows = calm(inits)?;
    rows.extend(storm(inits)?);
    Ok(rows)
}

fn calm(inits: &Inits) -> Result<Vec<Row>> {
    let mut running = Vec::new();
    for init in inits.all() {
        running.push(run(init, Workload::Handler)?);
    }
    let latency = in_turn::<3>(ROUNDS, |which| {
        sleep(PAUSE);
        Ok(signalled(&mut running[which])?.0)
    })?;
    Ok(compared(
        "signal to handler",
        "SIGUSR1 to pid 1 until the handler's clock, nothing else runs",
        "us",
        &latency,
        &[Target::RatioAtLeast(0.833)],
    ))
}

fn storm(inits: &Inits) -> Result<Vec<Row>> {
    let mut latency = [const { Vec::new() }; 3];
    let mut rates = [const { Vec::new() }; 3];
    for _ in 0..SPELLS {
        for (which, init) in inits.all().into_iter().enumerate() {
            let mut running = run(init, Workload::Storm)?;
            let (_, first) = signalled(&mut running)?;
            let since = now_ns();
            let mut last = first;
            for _ in 0..SIGNALS_OF_A_SPELL {
                sleep(PAUSE);
                let (took, orphans) = signalled(&mut running)?;
                latency[which].push(took);
                last = orphans;
            }
            let seconds = (now_ns() - since) as f64 / 1e9;
            rates[which].push((last - first) as f64 / seconds);
        }
    }
    let rates = rates.map(|rates| rates.into_iter().collect::<Samples>());
    let [ours, tini, dumb_init] = &rates;
    ensure!(
        ours.p50() >= STORM,
        "the storm made only {:.0} orphans a second",
        ours.p50()
    );
    let state = format!(
        "as before, while {:.0} orphans a second end below it (slowest spell {:.0}; tini \
         {:.0}, dumb-init {:.0})",
        ours.p50(),
        ours.percentile(0),
        tini.p50(),
        dumb_init.p50()
    );
    Ok(compared(
        "signal in a storm of orphans",
        &state,
        "us",
        &latency.map(|values| values.into_iter().collect::<Samples>()),
        &[Target::P99AtMost(1000.0)],
    ))
}

fn run(init: &Init, workload: Workload) -> Result<Running> {
    let mut running = Running::start(init.command(Place::Pid1, &workload.argv()?))?;
    running.stamp(PATIENCE)?;
    Ok(running)
}

/// Microseconds until the handler ran, and the storm's orphans then.
fn signalled(running: &mut Running) -> Result<(f64, u64)> {
    let sent = now_ns();
    running.signal(Signal::USR1)?;
    let stamp = running.stamp(PATIENCE)?;
    Ok((microseconds(stamp.at.saturating_sub(sent)), stamp.orphans))
}
