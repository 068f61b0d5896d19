//! Memory that an init has for itself alone.

use std::path::Path;

use anyhow::{Context, Result};
use nodeagent_tests::bench::{Row, Samples, Target};
use nodeagent_tests::init::proc::{Private, children, private};
use nodeagent_tests::init::{Init, Place, Running};
use nodeagent_tests::wait::{Look, until};

use super::{Inits, PATIENCE, WithAgents, compared, executed, in_turn, sleeper};

const ROUNDS: usize = 20;

pub fn rows(inits: &Inits) -> Result<Vec<Row>> {
    let mut found = Vec::new();
    let who = inits.all();
    let all = in_turn::<3>(ROUNDS, |which| {
        let private = with_one(who[which])?;
        found.push((which, private.dirty));
        Ok(private.all())
    })?;
    let dirty = [0, 1, 2].map(|wanted| {
        let of = found.iter().filter(|(which, _)| *which == wanted);
        of.map(|(_, dirty)| *dirty).collect::<Samples>()
    });
    let state = "one process, asleep; no other process executes the same file";
    let mut rows = compared(
        "private memory, one process",
        &format!("clean and dirty; {state}"),
        "KiB",
        &all,
        &[Target::RatioAtLeast(1.0)],
    );
    rows.extend(compared(
        "private dirty memory, one process",
        state,
        "KiB",
        &dirty,
        &[Target::RatioAtLeast(1.0)],
    ));
    let six: Vec<Private> = (0..ROUNDS).map(|_| with_six()).collect::<Result<_>>()?;
    let clean = six.iter().map(|private| private.clean);
    rows.push(
        Row::new(
            "private memory, six agents",
            &format!(
                "clean (p50 {}) and dirty; six agents and the app under a plan, connected, asleep",
                clean.collect::<Samples>().p50()
            ),
            "KiB",
            &six.iter().map(|private| private.all()).collect(),
        )
        .wanted(&[Target::MaxAtMost(100.0)]),
    );
    Ok(rows)
}

fn with_one(init: &Init) -> Result<Private> {
    let running = Running::start(init.command(Place::Pid1, &sleeper()))?;
    asleep(running.pid(), 1)?;
    private(running.pid())
}

fn with_six() -> Result<Private> {
    let container = WithAgents::start(sleeper())?;
    asleep(container.running.pid(), super::AGENTS + 1)?;
    private(container.running.pid())
}

/// Waits until so many children execute the sleeper.
pub fn asleep(init: u32, count: usize) -> Result<()> {
    let program = Path::new("/bin/busybox").canonicalize();
    let program = program.context("busybox is missing; run `tests/peers/install bench`")?;
    until("the sleepers to run", PATIENCE, || {
        let children = children(init)?;
        let running = children
            .iter()
            .filter(|child| executed(child.pid).as_ref() == Some(&program));
        Ok(match running.count() {
            running if running == count => Look::Seen(()),
            running => Look::NotYet(format!("{running} of {count} run")),
        })
    })
}
