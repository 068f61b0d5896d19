//! A process in a container that means harm: it gets nowhere, and its neighbours do not notice.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nodeagent_tests::host::address_of;
use nodeagent_tests::wait::{Look, until};
use nodeagent_tests::{Image, Manifest, TestHost, http};

#[test]
fn a_hostile_container_neither_speaks_for_init_nor_replaces_what_the_agent_trusts() -> Result<()> {
    let mut host = TestHost::start()?;
    host.warm_web(1)?;
    let directory = host.ground.directory().to_owned();
    host.push(&Image::hostile(&directory)?, "hostile:1")?;
    let hostile = Manifest::new("hostile", "hostile:1")
        .armed(1)
        .ready_by_page(10);
    host.apply(&hostile)?;
    host.wait_for_armed("hostile", 1)?;
    let passwd = std::fs::read("/etc/passwd").context("read /etc/passwd")?;

    let task = host.cli().activate("hostile", 1, "attack")?;
    let page = host.fetch(&task.instances[0])?.text();
    let expected = [
        "noise",
        "emptiness",
        "unlink the socket",
        "replace container-init",
        "replace the plan",
        "rename bin",
        "remount",
    ];
    for attempt in expected {
        let line = page
            .lines()
            .find(|line| line.starts_with(&format!("{attempt}: ")));
        let line = line.with_context(|| format!("no word of {attempt:?} in {page}"))?;
        ensure!(!line.ends_with("achieved"), "{line}\n{page}");
    }

    // The agent goes on, with its neighbours and with the hostile one.
    let neighbour = host.cli().activate("web", 1, "neighbour")?;
    assert_eq!((neighbour.state.as_str(), neighbour.active), ("done", 1));
    host.assert_serves(&neighbour.instances[0])?;
    host.agent.kill()?;
    host.agent.start(&host.ground)?;
    host.wait_for_pool("hostile", "one active", |pool| pool.active == 1)?;
    host.remove_app_only("hostile")?;
    host.remove_app("web")?;
    assert_eq!(
        std::fs::read("/etc/passwd")?,
        passwd,
        "the machine's own file was changed"
    );
    Ok(())
}

/// CPU time of a process so far: `utime` and `stime` of proc_pid_stat(5).
fn cpu(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("no end of the name")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(Duration::from_millis(
        ticks * 1000 / rustix::param::clock_ticks_per_second(),
    ))
}

/// Longest queue of a socket, net.core.somaxconn, and what is looked at at the same time.
const QUEUE: u128 = 4096 + 64;

#[test]
fn a_storm_of_connects_costs_the_agent_little_and_delays_no_neighbour() -> Result<()> {
    let host = TestHost::start()?;
    host.push(&Image::web()?, "web:1")?;
    let directory = host.ground.directory().to_owned();
    host.push(&Image::hostile(&directory)?, "hostile:1")?;
    let storm = serde_json::json!([{ "name": "STORM", "value": "1" }]);
    let hostile = Manifest::new("hostile", "hostile:1")
        .armed(1)
        .with("env", storm)
        // Its share of the processors is the kernel's to bound; here it is about the gate.
        .with("resources", serde_json::json!({"limits": {"cpu": "300m"}}))
        .ready_by_page(20);
    host.apply(&hostile)?;
    host.wait_for_armed("hostile", 1)?;
    let attack = host.cli().activate("hostile", 1, "attack")?;
    let storm = address_of(&attack.instances[0])?;
    let log = directory.join("agent.log");
    until("the storm at the gate", Duration::from_secs(20), || {
        let log = std::fs::read_to_string(&log)?;
        let count = log.matches("turned away from the gate").count();
        Ok(match count {
            0 => Look::NotYet("nobody was turned away".to_owned()),
            _ => Look::Seen(()),
        })
    })?;

    // Neighbours come to the gate and into service in the middle of it.
    let began = Instant::now();
    host.apply(&Manifest::web("web").armed(3))?;
    let applied = began.elapsed();
    host.wait_for_armed("web", 3)?;
    let armed = began.elapsed();
    // About 2 s without a storm; one that keeps them out takes them through every pause.
    ensure!(
        armed < Duration::from_secs(20),
        "neighbours came to the gate in {armed:?}"
    );
    let task = host.cli().activate("web", 3, "neighbours")?;
    assert_eq!((task.state.as_str(), task.active), ("done", 3));
    for instance in &task.instances {
        host.assert_serves(instance)?;
    }
    let neighbours = began.elapsed();
    host.wait_for_armed("web", 3)?;

    let pid = host.agent.pid().context("no agent")?;
    let connects = || -> Result<u64> {
        let page = http::get(host.ground.netns(), storm, "/storm")?;
        let count = page.body.try_into();
        count
            .map(u64::from_ne_bytes)
            .map_err(|body| anyhow!("not a count: {body:?}"))
    };
    let (began, before, first) = (Instant::now(), cpu(pid)?, connects()?);
    // What is measured is a length of time, not an event.
    std::thread::sleep(Duration::from_secs(5));
    let (count, elapsed) = (connects()? - first, began.elapsed());
    let share = (cpu(pid)? - before).as_secs_f64() / began.elapsed().as_secs_f64();
    println!(
        "{count} connects in {elapsed:?} cost {:.1} % of a core; neighbours: {applied:?} applied, {armed:?} armed, {neighbours:?} in service",
        share * 100.0
    );
    // Who is known is turned away at a cost that is counted as 20 us, and all of that may be a 25th
    // of the time (`gate::pace`). A client is through when it is in the kernel's queue.
    let most = elapsed.as_micros() / (20 * 25) + QUEUE;
    ensure!(
        u128::from(count) <= most,
        "{count} connects in {elapsed:?}, not {most} at most"
    );
    // About 0.06; how much it is depends on the machine.
    ensure!(
        share < 0.5,
        "a storm of connects costs {:.0} % of a core",
        share * 100.0
    );
    host.remove_app_only("hostile")?;
    host.remove_app("web")
}
