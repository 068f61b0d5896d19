//! `make bench peers`: eight agents, each with its own containerd and network, pull one image at the
//! same time and share its layers; beside one of them alone with the same registry.
//!
//! `PEERS_CASES` (names of [`CASES`], separated by commas) and `PEERS_TIMES` make it shorter.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use nodeagent::api::v1::ImageDocument;
use nodeagent_tests::bench::{Machine, Report, Row, Samples, Selection, Target};
use nodeagent_tests::image::cached;
use nodeagent_tests::image::layout::Layout;
use nodeagent_tests::swarm::{Sharing, Swarm};

/// Hosts of the herd.
const HOSTS: u8 = 8;

struct Case {
    name: &'static str,
    image: fn() -> Result<Layout>,
    /// What the registry's link gives, in Mbit/s; none is what the machine gives.
    rate: Option<u32>,
    /// What each host has for itself, alone or not; none shares the machine's with the others.
    cores: Option<f64>,
    times: usize,
}

/// So that eight hosts, a registry and the switch fit on two cores.
const OWN: Option<f64> = Some(0.2);

const CASES: [Case; 4] = [
    Case {
        name: "100 Mbit/s",
        image: || cached::one_of_many(0),
        rate: Some(100),
        cores: OWN,
        times: 3,
    },
    Case {
        name: "no limit",
        image: || cached::one_of_many(0),
        rate: None,
        cores: OWN,
        times: 3,
    },
    Case {
        name: "100 layers",
        image: cached::hundred_layers,
        rate: Some(100),
        cores: OWN,
        times: 3,
    },
    Case {
        name: "no limit and shared cores",
        image: || cached::one_of_many(0),
        rate: None,
        cores: None,
        times: 3,
    },
];

/// What a herd did.
struct Herd {
    /// Of the slowest host: from its request to its answer.
    slowest: f64,
    /// Of the slowest host: until the last layer was there and verified.
    fetched: f64,
    /// Bytes that the registry sent, in images.
    egress: f64,
}

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-peers: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<()> {
    let selection = Selection::of("PEERS", &[',']);
    let mut rows = Vec::new();
    let mut version = None;
    // As in bench-pull: nothing is removed while something is measured.
    let mut kept = Vec::new();
    for case in CASES.iter().filter(|case| selection.has(case.name)) {
        let times = selection.times(case.times);
        rows.extend(measure_case(case, times, &mut version, &mut kept)?);
    }
    let report = Report {
        bench: "peers".to_owned(),
        host: Machine::here(version.context("nothing was measured")?),
        rows,
    };
    report.publish()
}

fn measure_case(
    case: &Case,
    times: usize,
    version: &mut Option<String>,
    kept: &mut Vec<Swarm>,
) -> Result<Vec<Row>> {
    let image = (case.image)()?;
    let (mut alone, mut herds) = (Vec::new(), Vec::new());
    for time in 1..=times {
        eprintln!("{}: {time} of {times}", case.name);
        alone.push(pull(1, Sharing::Off, &image, case, version, kept)?);
        herds.push(pull(HOSTS, Sharing::On, &image, case, version, kept)?);
    }
    let link = match case.rate {
        Some(rate) => format!("the registry's link {rate} Mbit/s"),
        None => "no link limited".to_owned(),
    };
    let cores = match case.cores {
        Some(cores) => format!("each host has {cores} cores, alone or not"),
        None => format!("{HOSTS} hosts share the cores that one alone has"),
    };
    let state = format!(
        "{cores}; image of {} MB; {link}; empty stores, nothing removed before the end; the registry's files in the page cache",
        image.size() / 1_000_000
    );
    let of = |herds: &[Herd], figure: fn(&Herd) -> f64| herds.iter().map(figure).collect();
    let row = |figure: &str, unit: &str, samples: &Samples| {
        Row::new(&format!("{}, {figure}", case.name), &state, unit, samples)
    };
    // Not slower than one and a half times one host alone.
    let within = [Target::RatioAtLeast(0.667)];
    let egress: Samples = of(&herds, |herd| herd.egress);
    let slowest: Samples = of(&herds, |herd| herd.slowest);
    let fetched: Samples = of(&herds, |herd| herd.fetched);
    Ok(vec![
        row("registry egress", "image", &egress).wanted(&[Target::MaxAtMost(1.1)]),
        row("slowest host", "s", &slowest)
            .beside("one alone", &of(&alone, |herd| herd.slowest))
            .wanted(&within),
        row("slowest host, until it has all layers", "s", &fetched)
            .beside("one alone", &of(&alone, |herd| herd.fetched)),
    ])
}

/// All hosts pull at the same time.
fn pull(
    hosts: u8,
    sharing: Sharing,
    image: &Layout,
    case: &Case,
    version: &mut Option<String>,
    kept: &mut Vec<Swarm>,
) -> Result<Herd> {
    let swarm = Swarm::new(hosts, sharing, "pull_timeout = \"20m\"\n")?;
    if version.is_none() {
        *version = swarm.hosts[0].containerd_version().ok();
    }
    image.warm()?;
    image.place(&swarm.registry, "image:1")?;
    if let Some(rate) = case.rate {
        swarm.pace(rate)?;
    }
    if let Some(cores) = case.cores {
        swarm.limit_cores(cores)?;
    }
    rustix::fs::sync();
    let reference = Swarm::reference("image:1");
    let before = swarm.registry_sent()?;
    let pulls: Result<Vec<(f64, ImageDocument)>> = std::thread::scope(|scope| {
        let pull = |host| {
            let reference = &reference;
            scope.spawn(move || {
                let begun = Instant::now();
                let pulled = nodeagent_tests::swarm::Member::pull(host, reference)?;
                Ok((begun.elapsed().as_secs_f64(), pulled))
            })
        };
        let pulls: Vec<_> = swarm.hosts.iter().map(pull).collect();
        let joined = pulls.into_iter().map(|pull| match pull.join() {
            Ok(pulled) => pulled,
            Err(_) => Err(anyhow!("a pull panicked")),
        });
        joined.collect()
    });
    let pulls = pulls?;
    let sent = swarm.registry_sent()? - before;
    let slowest = pulls.iter().map(|(took, _)| *took).fold(0.0, f64::max);
    let fetched = pulls.iter().flat_map(|(_, pulled)| &pulled.receipt);
    let fetched = fetched.flat_map(|receipt| &receipt.layers);
    let herd = Herd {
        slowest,
        fetched: fetched.map(|layer| layer.fetch_seconds).fold(0.0, f64::max),
        egress: sent as f64 / image.size() as f64,
    };
    eprintln!(
        "  {hosts} hosts: {:.2} s, fetched after {:.2} s, the registry sent {:.3} images",
        herd.slowest, herd.fetched, herd.egress
    );
    kept.push(swarm);
    Ok(herd)
}
