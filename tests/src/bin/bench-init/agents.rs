//! How fast in-container agents are executed.

use std::path::Path;
use std::process::{Child, Command};

use anyhow::{Result, ensure};
use nodeagent_tests::bench::{Row, Samples, Target};
use nodeagent_tests::init::plan::Planned;
use nodeagent_tests::init::proc::children;
use nodeagent_tests::init::{Gate, Running, now_ns};

use super::{AGENTS, Inits, executed, in_turn, milliseconds, sleeper, with_agents};

const ROUNDS: usize = 300;

pub fn rows(_: &Inits) -> Result<Vec<Row>> {
    let [ours, bare] = in_turn::<2>(ROUNDS, |which| match which {
        0 => dispatched(),
        _ => spawned(),
    })?;
    Ok(vec![dispatch_row(&ours, &bare)])
}

fn dispatch_row(ours: &Samples, bare: &Samples) -> Row {
    Row::new(
        "six agents dispatched",
        &format!(
            "from before the fork of container-init to its word at the gate that all six are \
             executed; beside six posix_spawn by one process that runs (p99 {:.2})",
            bare.p99()
        ),
        "ms",
        ours,
    )
    .beside("6x posix_spawn", bare)
    .wanted(&[Target::P50AtMost(2.0)])
}

fn dispatched() -> Result<f64> {
    let (directory, planned) = with_agents(sleeper())?;
    let listener = Gate::listen(&Planned::socket(directory.path()))?;
    let running = Running::start(planned.command(directory.path())?)?;
    let mut gate = Gate::accept(&listener)?;
    gate.armed()?;
    let took = now_ns() - running.since;
    let program = Path::new("/bin/busybox").canonicalize()?;
    let executed = children(running.pid())?
        .iter()
        .filter(|child| executed(child.pid).as_ref() == Some(&program))
        .count();
    ensure!(
        executed == AGENTS,
        "armed with {executed} of {AGENTS} agents executed"
    );
    Ok(milliseconds(took))
}

fn spawned() -> Result<f64> {
    let words = sleeper();
    let since = now_ns();
    let spawned: Vec<Child> = (0..AGENTS)
        .map(|_| Command::new(&words[0]).args(&words[1..]).spawn())
        .collect::<Result<_, _>>()?;
    let took = now_ns() - since;
    for mut child in spawned {
        child.kill()?;
        child.wait()?;
    }
    Ok(milliseconds(took))
}
