//! How long a restart in place takes beside the app's own start and end.

use anyhow::Result;
use nodeagent_tests::bench::{Row, Samples, Target};
use nodeagent_tests::init::{Running, now_ns};

use super::memory::asleep;
use super::{AGENTS, Inits, WithAgents, milliseconds, sleeper};

const ROUNDS: u64 = 200;

pub fn rows(_: &Inits) -> Result<Vec<Row>> {
    // What is left of the app is looked for in /proc, which is the container's own.
    let own_proc = |command| Running::start_with_proc(&command);
    let mut container = WithAgents::start_by(sleeper(), own_proc)?;
    asleep(container.gate.pid()?, AGENTS + 1)?;
    let mut took = Vec::new();
    for generation in 2..2 + ROUNDS {
        let asked = now_ns();
        container.gate.restart(generation)?;
        took.push(milliseconds(now_ns() - asked));
    }
    let state = "from the request at the gate to the word that the app is executed again; the app \
                 ends at once, six agents go on, nothing to clean";
    let took: Samples = took.into_iter().collect();
    Ok(vec![
        Row::new("restart in place", state, "ms", &took).wanted(&[Target::P50AtMost(5.0)]),
    ])
}
