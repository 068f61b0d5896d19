//! `make bench init`: what container-init costs beside a bare exec, tini and dumb-init.
//!
//! Every init is measured in turn with the others, one sample each, so that what the machine does
//! meanwhile meets them all. Where it is not said otherwise, it is pid 1 of a pid namespace.

mod agents;
mod crowd;
mod idle;
mod memory;
mod restart;
mod signals;
mod size;
mod start;
mod stop;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result};
use nodeagent_tests::bench::{Machine, Report, Row, Samples, Target};
use nodeagent_tests::init::plan::Planned;
use nodeagent_tests::init::{Gate, Init, Running};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// In-container agents where there are any.
const AGENTS: usize = 6;

type Part = fn(&Inits) -> Result<Vec<Row>>;

/// What is measured, by the word that asks for it alone: `bench-init crowd stop`.
const PARTS: [(&str, Part); 9] = [
    ("start", start::rows),
    ("size", size::rows),
    ("memory", memory::rows),
    ("idle", idle::rows),
    ("signals", signals::rows),
    ("crowd", crowd::rows),
    ("stop", stop::rows),
    ("agents", agents::rows),
    ("restart", restart::rows),
];

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-init: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<()> {
    let inits = Inits {
        ours: Init::container_init()?,
        tini: Init::tini()?,
        dumb_init: Init::dumb_init()?,
    };
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let mut rows = Vec::new();
    for (name, part) in PARTS {
        if wanted.is_empty() || wanted.iter().any(|word| word == name) {
            eprintln!("{name}");
            rows.extend(part(&inits).context(name)?);
        }
    }
    let report = Report {
        bench: "init".to_owned(),
        host: Machine::here("not used".to_owned()),
        rows,
    };
    // Parts of it are for the one who looks, not for the record.
    match wanted.is_empty() {
        true => report.publish(),
        false => {
            println!("{}", report.table());
            Ok(())
        }
    }
}

/// Who is compared.
struct Inits {
    ours: Init,
    tini: Init,
    dumb_init: Init,
}

impl Inits {
    /// In the order of the samples that [`compared`] takes.
    fn all(&self) -> [&Init; 3] {
        [&self.ours, &self.tini, &self.dumb_init]
    }
}

/// One figure: ours beside tini's, with its targets, and ours beside dumb-init's.
fn compared(
    case: &str,
    state: &str,
    unit: &str,
    [ours, tini, dumb_init]: &[Samples; 3],
    targets: &[Target],
) -> Vec<Row> {
    let row = Row::new(case, state, unit, ours).beside("tini", tini);
    let row = match targets {
        [] => row,
        targets => row.wanted(targets),
    };
    let with_tini = format!("{state}; tini p99 {:.1} max {:.1}", tini.p99(), tini.max());
    let with_dumb_init = format!(
        "the same run; dumb-init p99 {:.1} max {:.1}",
        dumb_init.p99(),
        dumb_init.max()
    );
    vec![
        Row {
            state: with_tini,
            ..row
        },
        Row::new(&format!("{case}; dumb-init"), &with_dumb_init, unit, ours)
            .beside("dumb-init", dumb_init),
    ]
}

/// Takes `rounds` samples of each, in turn, the first of a round being another one every time.
fn in_turn<const N: usize>(
    rounds: usize,
    mut sample: impl FnMut(usize) -> Result<f64>,
) -> Result<[Samples; N]> {
    let mut values = [const { Vec::new() }; N];
    for round in 0..rounds {
        for place in 0..N {
            let which = (round + place) % N;
            values[which].push(sample(which)?);
        }
    }
    Ok(values.map(|values| values.into_iter().collect()))
}

fn milliseconds(ns: u64) -> f64 {
    ns as f64 / 1e6
}

fn microseconds(ns: u64) -> f64 {
    ns as f64 / 1e3
}

/// A command that does nothing, and is small to execute.
fn sleeper() -> Vec<OsString> {
    ["/bin/busybox", "sleep", "1000000"]
        .map(OsString::from)
        .into()
}

/// A container-init with [`AGENTS`] agents and `app`, which runs.
struct WithAgents {
    running: Running,
    gate: Gate,
    _directory: tempfile::TempDir,
}

impl WithAgents {
    fn start(app: Vec<OsString>) -> Result<Self> {
        Self::start_by(app, Running::start)
    }

    fn start_by(
        app: Vec<OsString>,
        start: impl FnOnce(Command) -> Result<Running>,
    ) -> Result<Self> {
        let (directory, planned) = with_agents(app)?;
        let listener = Gate::listen(&Planned::socket(directory.path()))?;
        let running = start(planned.command(directory.path())?)?;
        let mut gate = Gate::accept(&listener)?;
        gate.armed()?;
        gate.start(1)?;
        Ok(Self {
            running,
            gate,
            _directory: directory,
        })
    }
}

fn with_agents(app: Vec<OsString>) -> Result<(tempfile::TempDir, Planned)> {
    let planned = Planned {
        agents: vec![sleeper(); AGENTS],
        app,
        backoff_ms: 1000,
    };
    let directory = tempfile::tempdir().context("make a directory")?;
    Ok((directory, planned))
}

/// Where a program lies, as the kernel names what executes it.
fn executed(pid: u32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/exe")).ok()
}
