//! What an init adds to the life of a command that ends at once.

use anyhow::{Result, ensure};
use nodeagent_tests::bench::{Row, Target};
use nodeagent_tests::init::running::{Started, start};
use nodeagent_tests::init::{Init, Place, now_ns};

use super::{Inits, compared, in_turn, microseconds};

const ROUNDS: usize = 2000;
const COMMAND: [&str; 1] = ["/bin/true"];

pub fn rows(inits: &Inits) -> Result<Vec<Row>> {
    let mut rows = at(inits, Place::Subreaper, "plain")?;
    rows.extend(at(inits, Place::Pid1, "pid 1")?);
    Ok(rows)
}

fn at(inits: &Inits, place: Place, name: &str) -> Result<Vec<Row>> {
    let none = Init::none();
    let [ours, tini, dumb_init] = inits.all();
    let who = [&none, ours, tini, dumb_init];
    let [bare, inits @ ..] = in_turn::<4>(ROUNDS, |which| one(who[which], place))?;
    let overhead = inits.map(|samples| samples.less(bare.p50()));
    let state = format!(
        "fork and exec of INIT -- /bin/true until its end, less the p50 of a bare /bin/true in the \
         same run ({:.0} us, p99 {:.0}); page cache warm",
        bare.p50(),
        bare.p99()
    );
    Ok(compared(
        &format!("start overhead, {name}"),
        &state,
        "us",
        &overhead,
        &[Target::RatioAtLeast(2.5)],
    ))
}

fn one(init: &Init, place: Place) -> Result<f64> {
    let Started { mut child, at } = start(&mut init.command(place, &COMMAND), place)?;
    let status = child.wait()?;
    let took = now_ns() - at;
    ensure!(status.success(), "{} ended with {status}", init.name);
    Ok(microseconds(took))
}
