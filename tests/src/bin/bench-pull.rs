//! `make bench pull`: pull, verify, unpack and pin, beside `ctr images pull` on a containerd of the
//! same kind and `podman pull`, in turn, each on an empty store; then what is here once more.
//!
//! `PULL_CASES` (words of [`CASES`], and [`AGAIN`]) and `PULL_TIMES` make it shorter; `PULL_TOOL`
//! puts a command in the agent's place.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use nodeagent_tests::bench::{Machine, Report, Row, Samples, Selection, Target};
use nodeagent_tests::image::cached;
use nodeagent_tests::image::layout::Layout;
use nodeagent_tests::pull::{Cost, Puller, Stage};

const STATE: &str = "empty store each time, nothing removed before the end; the registry's files in the page cache, free memory touched, nothing dirty";

/// What is pulled, how often, and by which peers.
struct Case {
    name: &'static str,
    images: fn() -> Result<Vec<Layout>>,
    times: usize,
    peers: &'static [(Puller, f64)],
}

const CASES: [Case; 5] = [
    Case {
        name: "debian",
        images: || Ok(vec![cached::debian()?]),
        times: 3,
        peers: &[(Puller::Ctr, 3.0), (Puller::Podman, 2.5)],
    },
    Case {
        name: LAYERS,
        images: || Ok(vec![cached::hundred_layers()?]),
        times: 5,
        peers: &[(Puller::Ctr, 3.0), (Puller::Podman, 2.5)],
    },
    Case {
        name: "big",
        images: || Ok(vec![cached::one_big_layer()?]),
        times: 3,
        peers: &[(Puller::Ctr, 1.0)],
    },
    Case {
        name: "files",
        images: || Ok(vec![cached::small_files()?]),
        times: 3,
        peers: &[(Puller::Ctr, 1.0)],
    },
    Case {
        name: "eight",
        images: || (0..8).map(cached::one_of_many).collect(),
        times: 3,
        peers: &[(Puller::Ctr, 3.0)],
    },
];

/// The case of a hundred layers.
const LAYERS: &str = "layers";
/// The case of a pull of what is here.
const AGAIN: &str = "again";
const AGAIN_STATE: &str = "the Debian image is here, with one other; one pull after the other";
const ASKED_AGAIN: usize = 200;
const PULLED_AGAIN: usize = 30;

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-pull: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<()> {
    let selection = Selection::of("PULL", &[' ', ',']);
    let mut rows = Vec::new();
    let mut version = None;
    // ext4 without a journal looks at every inode that was freed in the last minutes before it takes
    // another (`find_inode_bit` in fs/ext4/ialloc.c): who comes behind a removal of many files would
    // be measured with it. So nothing is removed while something is measured.
    let mut stages = Vec::new();
    for case in CASES.iter().filter(|case| selection.has(case.name)) {
        let times = selection.times(case.times);
        rows.extend(measure_case(case, times, &mut version, &mut stages)?);
    }
    if selection.has(LAYERS) {
        rows.push(measure_chain()?);
    }
    if selection.has(AGAIN) {
        rows.extend(measure_again(&mut version)?);
    }
    let report = Report {
        bench: "pull".to_owned(),
        host: Machine::here(version.context("nothing was measured")?),
        rows,
    };
    report.publish()
}

/// All pullers in turn, so often.
fn measure_case(
    case: &Case,
    times: usize,
    version: &mut Option<String>,
    stages: &mut Vec<Stage>,
) -> Result<Vec<Row>> {
    let images = (case.images)()?;
    let mut ours = Vec::new();
    let mut peers: Vec<Vec<Cost>> = case.peers.iter().map(|_| Vec::new()).collect();
    for time in 1..=times {
        eprintln!("{}: {time} of {times}", case.name);
        ours.push(pull(&Puller::ours(), &images, version, stages)?);
        for ((peer, _), costs) in case.peers.iter().zip(&mut peers) {
            costs.push(pull(peer, &images, version, stages)?);
        }
    }
    let mut rows = Vec::new();
    for ((peer, ratio), theirs) in case.peers.iter().zip(&peers) {
        for figure in FIGURES {
            // Said once; the peers differ in these by nature.
            if figure.once && !rows.is_empty() && *peer != Puller::Ctr {
                continue;
            }
            let targets: &[Target] = match figure.name {
                "time" => &[Target::RatioAtLeast(*ratio)],
                "peak memory" => &[Target::MaxAtMost(128.0)],
                _ => &[],
            };
            let name = format!("{}, {}", case.name, figure.name);
            let row = Row::new(&name, STATE, figure.unit, &samples(&ours, figure.of))
                .beside(label(peer), &samples(theirs, figure.of));
            rows.push(if targets.is_empty() {
                row
            } else {
                row.wanted(targets)
            });
        }
    }
    Ok(rows)
}

/// What containerd takes of the hundred layers, without any: nobody who pulls into it is faster.
fn measure_chain() -> Result<Row> {
    let chain = || Stage::new(&Puller::Ctr)?.chain(100);
    let took: Result<Vec<Duration>> = (0..5).map(|_| chain()).collect();
    let took: Samples = took?.iter().map(Duration::as_secs_f64).collect();
    let state = "100 times Prepare and Commit of empty snapshots, one on the other; an empty store";
    Ok(Row::new("layers, containerd alone", state, "s", &took))
}

/// The Debian image once more, when it is here: by requests, and by commands beside `ctr`.
fn measure_again(version: &mut Option<String>) -> Result<Vec<Row>> {
    let images = [cached::debian()?, cached::one_of_many(0)?];
    eprintln!("{AGAIN}");
    let ready = |puller: &Puller| -> Result<(Stage, String)> {
        let stage = Stage::new(puller)?;
        let references = stage.offer(&images)?;
        stage.pull(&references)?;
        let first = references.into_iter().next().context("no image")?;
        Ok((stage, first))
    };
    let (ours, reference) = ready(&Puller::Agent)?;
    version.get_or_insert(ours.containerd_version()?);
    let (theirs, their_reference) = ready(&Puller::Ctr)?;
    let (asked, asked_bytes) = ours.ask_again(&reference, ASKED_AGAIN)?;
    let (ran, ran_bytes) = ours.pull_again(&reference, PULLED_AGAIN)?;
    let (ctr, ctr_bytes) = theirs.pull_again(&their_reference, PULLED_AGAIN)?;
    let millis = |took: &[Duration]| -> Samples {
        took.iter().map(|took| took.as_secs_f64() * 1e3).collect()
    };
    let each = |bytes: u64, times: usize| -> Samples {
        [bytes as f64 / times as f64].into_iter().collect()
    };
    let row = |name: &str, unit: &str, ours: &Samples, theirs: &Samples| {
        let name = format!("{AGAIN}, {name}");
        Row::new(&name, AGAIN_STATE, unit, ours).beside("ctr images pull", theirs)
    };
    let ctr = millis(&ctr);
    let ctr_bytes = each(ctr_bytes, PULLED_AGAIN);
    Ok(vec![
        row("by request", "ms", &millis(&asked), &ctr).wanted(&[Target::P99AtMost(5.0)]),
        row("by command", "ms", &millis(&ran), &ctr),
        row(
            "network, by request",
            "B",
            &each(asked_bytes, ASKED_AGAIN),
            &ctr_bytes,
        )
        .wanted(&[Target::MaxAtMost(0.0)]),
        row(
            "network, by command",
            "B",
            &each(ran_bytes, PULLED_AGAIN),
            &ctr_bytes,
        )
        .wanted(&[Target::MaxAtMost(0.0)]),
    ])
}

struct Figure {
    name: &'static str,
    unit: &'static str,
    of: fn(&Cost) -> f64,
    once: bool,
}

const FIGURES: [Figure; 6] = [
    Figure {
        name: "time",
        unit: "s",
        of: |cost| cost.took.as_secs_f64(),
        once: false,
    },
    Figure {
        name: "then synced",
        unit: "s",
        of: |cost| cost.synced.as_secs_f64(),
        once: false,
    },
    Figure {
        name: "CPU",
        unit: "s",
        of: |cost| cost.cpu.as_secs_f64(),
        once: false,
    },
    Figure {
        name: "CPU of the registry",
        unit: "s",
        of: |cost| cost.registry_cpu.as_secs_f64(),
        once: true,
    },
    Figure {
        name: "peak memory",
        unit: "MiB",
        of: |cost| cost.peak as f64 / f64::from(1 << 20),
        once: true,
    },
    Figure {
        name: "fetched",
        unit: "MB",
        of: |cost| cost.fetched as f64 / 1e6,
        once: true,
    },
];

fn samples(costs: &[Cost], of: fn(&Cost) -> f64) -> Samples {
    costs.iter().map(of).collect()
}

fn label(peer: &Puller) -> &'static str {
    match peer {
        Puller::Ctr => "ctr images pull",
        Puller::Podman => "podman pull",
        Puller::Agent | Puller::Tool(_) => "nodeagent",
    }
}

fn pull(
    puller: &Puller,
    images: &[Layout],
    version: &mut Option<String>,
    stages: &mut Vec<Stage>,
) -> Result<Cost> {
    let stage = Stage::new(puller)?;
    if version.is_none() {
        *version = stage.containerd_version().ok();
    }
    let cost = stage.pull(&stage.offer(images)?)?;
    let Cost {
        took,
        synced,
        cpu,
        registry_cpu,
        peak,
        fetched,
    } = cost;
    eprintln!(
        "  {puller:?}: {took:.2?}, synced after {synced:.2?}, CPU {cpu:.2?}, of the registry {registry_cpu:.2?}, {} MiB, {} MB",
        peak >> 20,
        fetched / 1_000_000,
    );
    stages.push(stage);
    Ok(cost)
}
