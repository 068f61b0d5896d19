//! Memory that an init has for itself alone.

use std::path::Path;

use anyhow::{Context, Result};
use nodeagent_tests::bench::{Row, Samples, Target};
use nodeagent_tests::init::proc::{Private, children, private};
use nodeagent_tests::init::{Init, Place, Running};
use nodeagent_tests::wait::{Look, until};

use super::{AGENTS, Inits, PATIENCE, WithAgents, compared, executed, in_turn, sleeper};

const ROUNDS: usize = 20;
const ALONE: &str = "nobody else executes the same file, so that all of it that is mapped counts";

pub fn rows(inits: &Inits) -> Result<Vec<Row>> {
    let mut rows = one_process(inits, "private memory, one process, alone", ALONE)?;
    rows.push(six_agents("private memory, six agents, alone", ALONE)?);
    // What is clean is the page cache's: a second container pays for none of it.
    let mut neighbours = Vec::new();
    for init in inits.all() {
        neighbours.push(with_one(init)?);
    }
    let state = "beside one more of the same, as on a host of containers";
    rows.extend(one_process(inits, "private memory, one process", state)?);
    let _six = WithAgents::start(sleeper())?;
    let six = six_agents("private memory, six agents", state)?;
    rows.push(six.wanted(&[Target::MaxAtMost(100.0)]));
    Ok(rows)
}

fn one_process(inits: &Inits, case: &str, state: &str) -> Result<Vec<Row>> {
    let who = inits.all();
    let mut dirty = [const { Vec::new() }; 3];
    let all = in_turn::<3>(ROUNDS, |which| {
        let private = private(with_one(who[which])?.pid())?;
        dirty[which].push(private.dirty);
        Ok(private.all())
    })?;
    let [ours, tini, dumb_init] = dirty.map(|dirty| dirty.into_iter().collect::<Samples>().p50());
    let state = format!(
        "above a process that sleeps; {state}; of it dirty {ours}, tini {tini}, dumb-init {dumb_init}"
    );
    let targets = [Target::RatioAtLeast(1.0)];
    Ok(compared(case, &state, "KiB", &all, &targets))
}

fn six_agents(case: &str, state: &str) -> Result<Row> {
    let mut found: Vec<Private> = Vec::new();
    for _ in 0..ROUNDS {
        let container = WithAgents::start(sleeper())?;
        asleep(container.running.pid(), AGENTS + 1)?;
        found.push(private(container.running.pid())?);
    }
    let dirty: Samples = found.iter().map(|private| private.dirty).collect();
    let state = format!(
        "six agents and the app under a plan, connected, asleep; {state}; of it dirty {}",
        dirty.p50()
    );
    let all = found.into_iter().map(Private::all).collect();
    Ok(Row::new(case, &state, "KiB", &all))
}

fn with_one(init: &Init) -> Result<Running> {
    let running = Running::start(init.command(Place::Pid1, &sleeper()))?;
    asleep(running.pid(), 1)?;
    Ok(running)
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
