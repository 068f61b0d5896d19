//! `make bench activation`: from the first byte of the request to the last byte of the answer,
//! beside `ctr run -d` on the same containerd in the same minutes.
//!
//! The app says `READY=1` at once, so that what is measured is ours. Every activation waits until
//! the warm pool is full and the agent is idle; what a refill costs a neighbour is not measured.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::bench::{Machine, Report, Row, Samples, Target};
use nodeagent_tests::ctr::Ctr;
use nodeagent_tests::documents::Trail;
use nodeagent_tests::process::Usage;
use nodeagent_tests::{Image, Manifest, TestHost};

const PEER: &str = "ctr run -d";
/// One `ctr run -d` is run after so many activations.
const PEER_EVERY: u32 = 7;

/// Armed, one by one: batches, each from an empty pool in service.
const BATCHES: u32 = 5;
const BATCH: u32 = 50;
const WARM: u32 = 10;

/// Cached, one by one.
const CACHED: u32 = 30;

/// Bursts: (instances of one request, how often).
const BURSTS: [(u32, u32); 3] = [(1, 20), (10, 10), (100, 5)];

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-activation: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<()> {
    let host = TestHost::start()?;
    let image = host.push(&Image::notify(host.ground.directory())?, "notify:1")?;
    let mut ctr = Ctr::new(&host.ground, &host.containerd);
    ctr.pull(&image.reference)?;

    eprintln!("armed, one by one: {BATCHES} batches of {BATCH}");
    let armed = one_by_one(&host, &mut ctr, &image.reference)?;
    eprintln!("cached: {CACHED}");
    let cached = cached(&host, &mut ctr, &image.reference)?;
    let mut rows = armed;
    rows.extend(cached);
    for (size, times) in BURSTS {
        eprintln!("bursts of {size}: {times}");
        rows.push(burst(&host, size, times)?);
    }
    let report = Report {
        bench: "activation".to_owned(),
        host: Machine::here(host.containerd.version()?),
        rows,
    };
    report.publish()
}

fn one_by_one(host: &TestHost, ctr: &mut Ctr, reference: &str) -> Result<Vec<Row>> {
    const APP: &str = "armed";
    host.apply(&Manifest::notify(APP).armed(WARM))?;
    let (mut ours, mut peer, mut unexplained) = (Vec::new(), Vec::new(), Vec::new());
    let mut cpu = Vec::new();
    let mut steps: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let pid = host.agent.pid().context("the agent does not run")?;
    for batch in 0..BATCHES {
        for to in 1..=BATCH {
            host.wait_for_armed(APP, WARM)?;
            let task = format!("armed-{batch}-{to}");
            let before = Usage::of(pid)?;
            let (done, took) = host.cli().post("activate", APP, to, &task)?;
            cpu.push(Usage::of(pid)?.since(&before).0.as_secs_f64() * 1e3);
            ensure!(done.state == "done", "{task} is {}", done.state);
            ensure!(
                done.instances
                    .iter()
                    .all(|instance| instance.from == "armed"),
                "{task} was not served from armed: {done:?}"
            );
            ours.push(took.as_secs_f64() * 1e3);
            let trail = host.cli().trace(&task)?;
            unexplained.push(unexplained_percent(&trail)?);
            for step in &trail.steps {
                let took = steps.entry(step.name.clone()).or_default();
                took.push(step.duration_ms);
            }
            if to % PEER_EVERY == 0 {
                peer.push(peer_run(ctr, reference)?);
            }
        }
        empty(host, APP, &format!("armed-{batch}"))?;
    }
    host.remove_app(APP)?;
    let peer: Samples = peer.into_iter().collect();
    let state = format!(
        "one instance a request, pool of {WARM} full and idle before each, 0 to {BATCH} in service, page cache warm; the peer's image unpacked"
    );
    let armed = Row::new(
        "armed, one by one",
        &state,
        "ms",
        &ours.into_iter().collect(),
    )
    .beside(PEER, &peer)
    .wanted(&[Target::RatioAtLeast(50.0), Target::P99AtMost(15.0)]);
    let trail = Row::new(
        "armed, time outside the trail's steps",
        "the same requests: |answer - sum of the steps| / answer",
        "%",
        &unexplained.into_iter().collect(),
    )
    .wanted(&[Target::P99AtMost(5.0)]);
    let cpu = Row::new(
        "armed, CPU of the agent",
        "the same requests, all threads of the agent, up to the answer",
        "ms",
        &cpu.into_iter().collect(),
    );
    let mut rows = vec![armed, trail, cpu];
    for (step, took) in steps {
        let case = format!("armed, step {step}");
        let took = took.into_iter().collect();
        rows.push(Row::new(
            &case,
            "the same requests, by their trails",
            "ms",
            &took,
        ));
    }
    Ok(rows)
}

/// How much of the answer's time the trail's steps do not explain, in percent.
fn unexplained_percent(trail: &Trail) -> Result<f64> {
    let answer = trail.answer_ms.context("the trail has no answer time")?;
    let steps: f64 = trail.steps.iter().map(|step| step.duration_ms).sum();
    Ok((answer - steps).abs() / answer * 100.0)
}

fn cached(host: &TestHost, ctr: &mut Ctr, reference: &str) -> Result<Vec<Row>> {
    const APP: &str = "cached";
    host.apply(&Manifest::notify(APP).armed(0))?;
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    for to in 1..=CACHED {
        let (done, took) = host
            .cli()
            .post("activate", APP, to, &format!("cached-{to}"))?;
        ensure!(done.state == "done", "cached-{to} is {}", done.state);
        let from = done
            .instances
            .first()
            .map_or("none", |instance| &instance.from);
        // The very first may have had to pull.
        ensure!(
            from == "cached" || to == 1,
            "cached-{to} was served from {from}"
        );
        if from == "cached" {
            ours.push(took.as_secs_f64() * 1e3);
        }
        peer.push(peer_run(ctr, reference)?);
    }
    empty(host, APP, "cached")?;
    host.remove_app(APP)?;
    let row = Row::new(
        "cached, one by one",
        "no warm pool, image unpacked, page cache warm, 0 to 30 in service, ready and registered at the end; a first one that pulls is not counted",
        "ms",
        &ours.into_iter().collect(),
    )
    .beside(PEER, &peer.into_iter().collect())
    .wanted(&[Target::RatioAtLeast(1.0)]);
    Ok(vec![row])
}

fn burst(host: &TestHost, size: u32, times: u32) -> Result<Row> {
    let app = format!("burst-{size}");
    host.apply(&Manifest::notify(&app).armed(size))?;
    let mut ours = Vec::new();
    for time in 0..times {
        host.wait_for_armed(&app, size)?;
        let task = format!("{app}-{time}");
        let (done, took) = host.cli().post("activate", &app, size, &task)?;
        ensure!(done.state == "done", "{task} is {}", done.state);
        ensure!(
            done.instances
                .iter()
                .filter(|instance| instance.from == "armed")
                .count()
                == size as usize,
            "{task} was not served from armed"
        );
        ours.push(took.as_secs_f64() * 1e3);
        empty(host, &app, &task)?;
    }
    host.remove_app(&app)?;
    let state = format!("one request for {size} armed instances, none in service before");
    let row = Row::new(
        &format!("armed, burst of {size}"),
        &state,
        "ms",
        &ours.into_iter().collect(),
    );
    Ok(if size == 100 {
        row.wanted(&[Target::P50AtMost(150.0)])
    } else {
        row
    })
}

fn empty(host: &TestHost, app: &str, task: &str) -> Result<()> {
    host.cli()
        .post("deactivate", app, 0, &format!("{task}-end"))?;
    Ok(())
}

fn peer_run(ctr: &mut Ctr, reference: &str) -> Result<f64> {
    let (id, took) = ctr.run_detached(reference)?;
    ctr.remove(&id)?;
    Ok(took.as_secs_f64() * 1e3)
}
