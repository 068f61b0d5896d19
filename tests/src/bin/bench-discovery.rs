//! `make bench discovery`: what registering in etcd costs, beside lone writes to the same etcd by the
//! same client in the same minutes, and beside activations that are registered in files alone.
//!
//! One etcd member on the machine's own disk, on loopback of the host that uses it: every write is
//! synced by etcd. The app says `READY=1` at once.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use etcd_client::{Channel, Client, ConnectOptions, EventType, WatchOptions};
use nodeagent_tests::bench::{Machine, Report, Row, Samples, Target};
use nodeagent_tests::documents::Trail;
use nodeagent_tests::fleet::discovery;
use nodeagent_tests::{Etcd, Image, Manifest, TestHost};
use tonic::transport::Endpoint;

const ENDPOINT: &str = "http://127.0.0.1:2379";
const LONE_WRITE: &str = "a lone put to etcd";

/// Armed, one by one: batches, each from an empty pool in service.
const BATCHES: u32 = 4;
const BATCH: u32 = 25;
const WARM: u32 = 10;
/// Lone writes are made in groups of this size, one after so many activations.
const WRITES: u32 = 5;

/// Registrations at once, how often they are made by an activation, and how often after each of
/// those because the lease was lost.
const MANY: u32 = 200;
const ACTIVATIONS: u32 = 3;
const LOSSES: u32 = 10;
/// Deadline of all registrations after a lost lease.
const REGISTERED: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-discovery: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<()> {
    let files = TestHost::start()?;
    let (host, etcd) = host_with_etcd()?;
    for host in [&files, &host] {
        host.push(&Image::notify(host.ground.directory())?, "notify:1")?;
    }
    eprintln!("armed, one by one: {BATCHES} batches of {BATCH}, in files and in etcd");
    let mut rows = one_by_one(&files, &host)?;
    drop(files);
    eprintln!("{MANY} registrations: {ACTIVATIONS} activations, {LOSSES} lost leases after each");
    rows.extend(many(&host, &etcd)?);
    let report = Report {
        bench: "discovery".to_owned(),
        host: Machine::here(host.containerd.version()?),
        rows,
    };
    report.publish()
}

/// A host whose instances are in service when files and etcd have them.
fn host_with_etcd() -> Result<(TestHost, Etcd)> {
    let config = discovery(&std::net::Ipv4Addr::LOCALHOST, "");
    let mut host = TestHost::without_agent(&config)?;
    let etcd = Etcd::start(&host.ground)?;
    host.agent.start(&host.ground)?;
    Ok((host, etcd))
}

/// The same request to both hosts in turn, each with a full pool and idle.
fn one_by_one(files: &TestHost, with_etcd: &TestHost) -> Result<Vec<Row>> {
    const APP: &str = "armed";
    let hosts = [files, with_etcd];
    for host in hosts {
        host.apply(&Manifest::notify(APP).armed(WARM))?;
    }
    let (mut ours, mut writes, mut registered) = ([vec![], vec![]], Vec::new(), Vec::new());
    for batch in 0..BATCHES {
        for to in 1..=BATCH {
            for host in hosts {
                host.wait_for_armed(APP, WARM)?;
            }
            let task = format!("armed-{batch}-{to}");
            for (host, ours) in hosts.iter().zip(&mut ours) {
                let (done, took) = host.cli().post("activate", APP, to, &task)?;
                let armed = done.instances.iter().all(|i| i.from == "armed");
                ensure!(
                    done.state == "done" && armed,
                    "{task} was not served from armed: {done:?}"
                );
                ours.push(took.as_secs_f64() * 1e3);
                host.wait_for_armed(APP, WARM)?;
            }
            let trail = with_etcd.cli().trace(&task)?;
            registered.push(registering(&trail)?);
            if to % WRITES == 0 {
                writes.extend(lone_writes(with_etcd)?);
            }
        }
        for host in hosts {
            let task = format!("armed-{batch}-end");
            host.cli().post("deactivate", APP, 0, &task)?;
        }
    }
    for host in hosts {
        host.remove_app(APP)?;
    }
    let [files, etcd] = ours.map(|ours| ours.into_iter().collect::<Samples>());
    let writes: Samples = writes.into_iter().collect();
    let state = format!(
        "one instance a request, pool of {WARM} full and idle before each, 0 to {BATCH} in service"
    );
    let most = 2.0 * writes.p50() + files.p50();
    Ok(vec![
        Row::new("armed, files", &state, "ms", &files),
        Row::new(
            "armed, etcd",
            &format!(
                "{state}, in files and in etcd, both required; wanted: two lone puts more than in files alone"
            ),
            "ms",
            &etcd,
        )
        .beside(LONE_WRITE, &writes)
        .wanted(&[Target::P50AtMost((most * 1000.0).round() / 1000.0)]),
        Row::new(
            "armed, etcd, step register",
            "the same requests, by their trails",
            "ms",
            &registered.into_iter().collect(),
        ),
    ])
}

/// Puts of a registration's size, one by one.
fn lone_writes(host: &TestHost) -> Result<Vec<f64>> {
    let value = vec![b'x'; 256];
    within(host, async move || {
        let mut client = connect().await?;
        // The connection's first request is not like the others.
        client.put("/bench", "", None).await?;
        let mut took = Vec::new();
        for n in 0..WRITES {
            let start = Instant::now();
            let key = format!("/bench/{n}");
            client.put(key, value.clone(), None).await?;
            took.push(start.elapsed().as_secs_f64() * 1e3);
        }
        Ok(took)
    })
}

fn many(host: &TestHost, etcd: &Etcd) -> Result<Vec<Row>> {
    const APP: &str = "many";
    let (mut answers, mut spans, mut losses) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ACTIVATIONS {
        host.apply(&Manifest::notify(APP).armed(MANY))?;
        host.wait_for_armed(APP, MANY)?;
        let task = format!("many-{round}");
        let (done, took) = host.cli().post("activate", APP, MANY, &task)?;
        let armed = done.instances.iter().filter(|i| i.from == "armed").count();
        ensure!(
            done.state == "done" && armed == MANY as usize,
            "{task}: {} with {armed} from armed",
            done.state
        );
        // No others are armed meanwhile.
        host.apply(&Manifest::notify(APP).armed(0))?;
        host.wait_for_armed(APP, 0)?;
        answers.push(took.as_secs_f64() * 1e3);
        spans.push(registering(&host.cli().trace(&task)?)?);
        for _ in 0..LOSSES {
            let keys = etcd.wait_for_instances(MANY as usize)?;
            losses.push(lose(host, keys[0].lease)?);
        }
        host.cli()
            .post("deactivate", APP, 0, &format!("{task}-end"))?;
    }
    host.remove_app(APP)?;
    let within = [Target::P99AtMost(500.0)];
    let row = |case: String, state: &str, took: Vec<f64>| {
        Row::new(&case, state, "ms", &took.into_iter().collect())
    };
    Ok(vec![
        row(
            format!("{MANY} registrations, lease lost"),
            "all in service; from the call that revokes the lease to the event of the last key that is there again, seen by another client",
            losses,
        )
        .wanted(&within),
        row(
            format!("{MANY} registrations, activation"),
            "by the trail of one request for as many armed instances: from the first that registers to the last that is registered; the apps are started in the same time",
            spans,
        )
        .wanted(&within),
        row(
            format!("armed, burst of {MANY}, etcd"),
            "the same requests, from the first byte to the answer",
            answers,
        ),
    ])
}

/// Revokes the lease; milliseconds until every key is there again.
fn lose(host: &TestHost, lease: i64) -> Result<f64> {
    within(host, async move || {
        let mut client = connect().await?;
        let options = WatchOptions::new().with_prefix();
        let mut watch = client
            .watch("/nodeagent/default/many/", Some(options))
            .await?;
        let start = Instant::now();
        client.lease_revoke(lease).await?;
        let mut put = 0;
        while put < MANY as usize {
            let answer = tokio::time::timeout(REGISTERED, watch.message()).await;
            let answer = answer.with_context(|| format!("{put} of {MANY} keys are back"))??;
            let Some(answer) = answer else {
                bail!("etcd ended the watch");
            };
            let events = answer.events().iter();
            put += events.filter(|e| e.event_type() == EventType::Put).count();
        }
        Ok(start.elapsed().as_secs_f64() * 1e3)
    })
}

/// Milliseconds from the beginning of a task's first registration to the end of its last.
fn registering(trail: &Trail) -> Result<f64> {
    let steps = trail.steps.iter().filter(|step| step.name == "register");
    let (mut first, mut last) = (f64::INFINITY, 0.0_f64);
    for step in steps {
        first = first.min(step.start_ms);
        last = last.max(step.start_ms + step.duration_ms);
    }
    ensure!(first.is_finite(), "the trail has no registration");
    Ok(last - first)
}

/// Connected as the agent is (agent/src/discovery/etcd/connection.rs).
async fn connect() -> Result<Client> {
    let channel = Endpoint::from_static(ENDPOINT).connect().await?;
    let options = ConnectOptions::new().with_require_leader(true);
    Ok(Client::from_channel(Channel::Tonic(channel), Some(options)).await?)
}

/// Runs `work` in the host's network.
fn within<T: Send>(host: &TestHost, work: impl AsyncFnOnce() -> Result<T> + Send) -> Result<T> {
    host.ground.netns().run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start a runtime")?;
        runtime.block_on(work())
    })
}
