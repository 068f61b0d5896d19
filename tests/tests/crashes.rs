//! kill -9 of the agent at every effect boundary: exactly the right instances afterwards, the same
//! result for the same task, no orphan, and no container that was started twice.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::crash::{Operation, at_every_boundary};
use nodeagent_tests::host::address_of;
use nodeagent_tests::{Image, Manifest, TestHost, http, leaks};

const WANTED: u32 = 2;

/// A host with the app `web`, which writes down each of its starts.
fn host(armed: u32) -> Result<TestHost> {
    let host = TestHost::start()?;
    host.push(&Image::web()?, "web:1")?;
    let script = "echo started >>/www/starts; exec httpd -f -p 8080 -h /www";
    host.apply(
        &Manifest::script("web", script)
            .armed(armed)
            .ready_by_page(20),
    )?;
    host.wait_for_armed("web", armed)?;
    Ok(host)
}

fn crash_agent() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_crash-agent"))
}

/// `active` in service, found and started once each; `armed` at the gate; nothing besides.
fn assert_exactly(host: &TestHost, active: u32, armed: u32) -> Result<()> {
    let pool = host.wait_for_pool("web", &format!("{active} active, {armed} armed"), |pool| {
        (pool.active, pool.armed) == (active, armed)
            && pool.arming + pool.starting + pool.draining + pool.failed == 0
    })?;
    let count = active + armed;
    ensure!(pool.alarm.is_none(), "{:?}", pool.alarm);
    ensure!(
        pool.instances.len() == count as usize,
        "{:?}",
        pool.instances
    );
    assert_eq!(host.discovered()?.len(), active as usize);
    for instance in pool
        .instances
        .iter()
        .filter(|instance| instance.state == "active")
    {
        let address = instance
            .address
            .as_deref()
            .context("active without an address")?;
        let server = format!("{address}:8080").parse()?;
        let starts = http::get(host.ground.netns(), server, "/starts")?.text();
        ensure!(
            starts == "started\n",
            "{} was started: {starts:?}",
            instance.name
        );
    }
    nodeagent_tests::wait::until(
        "exactly these containers",
        std::time::Duration::from_secs(15),
        || {
            use nodeagent_tests::wait::Look;
            let there = leaks::look(&host.ground, &host.containerd, &host.agent)?;
            let kinds = [
                "containers",
                "tasks",
                "snapshots",
                "netns",
                "links",
                "instance directories",
            ];
            let right = kinds
                .iter()
                .all(|kind| there.of(kind).len() == count as usize);
            Ok(if right && there.of("leases").is_empty() {
                Look::Seen(())
            } else {
                Look::NotYet(there.to_string())
            })
        },
    )
}

/// Nothing in service, `armed` at the gate.
fn reset(host: &TestHost, armed: u32) -> Result<()> {
    let target = host.cli().pool("web")?.target;
    if target > 0 {
        host.cli().json(&["deactivate", "web", "--to", "0"])?.ok()?;
    }
    assert_exactly(host, 0, armed)
}

/// The activation of that number done, by the same instances whenever it is asked for again.
fn assert_activated(host: &TestHost, number: usize, armed: u32) -> Result<()> {
    let task = host
        .cli()
        .activate("web", WANTED, &format!("up-{number}"))?;
    ensure!(
        (task.state.as_str(), task.active) == ("done", WANTED),
        "{task:?}"
    );
    let again = host
        .cli()
        .activate("web", WANTED, &format!("up-{number}"))?;
    ensure!(
        again.replayed && again.instances == task.instances,
        "{task:?}\n{again:?}"
    );
    for instance in &task.instances {
        address_of(instance)?;
    }
    assert_exactly(host, WANTED, armed)
}

#[test]
fn an_activation_from_the_gate_survives_a_kill_at_every_boundary() -> Result<()> {
    let mut host = host(WANTED)?;
    let operation = Operation {
        before: &|host| reset(host, WANTED),
        run: &|host, n| {
            host.cli()
                .activate("web", WANTED, &format!("up-{n}"))
                .map(drop)
        },
        after: &|host, n| assert_activated(host, n, WANTED),
    };
    let boundaries = at_every_boundary(&mut host, crash_agent(), &operation)?;
    for effect in ["commit", "start", "ready", "register"] {
        for side in ["before", "after"] {
            let boundary = format!("{side} {effect} 1");
            ensure!(
                boundaries.contains(&boundary),
                "no {boundary:?} in {boundaries:?}"
            );
        }
    }
    host.remove_app("web")
}

#[test]
fn a_cold_activation_survives_a_kill_at_every_boundary() -> Result<()> {
    let mut host = host(0)?;
    let operation = Operation {
        before: &|host| reset(host, 0),
        run: &|host, n| {
            host.cli()
                .activate("web", WANTED, &format!("up-{n}"))
                .map(drop)
        },
        after: &|host, n| assert_activated(host, n, 0),
    };
    let boundaries = at_every_boundary(&mut host, crash_agent(), &operation)?;
    for effect in [
        "commit", "network", "create", "arm", "start", "ready", "register",
    ] {
        let boundary = format!("after {effect} 1");
        ensure!(
            boundaries.contains(&boundary),
            "no {boundary:?} in {boundaries:?}"
        );
    }
    host.remove_app("web")
}

#[test]
fn a_deactivation_survives_a_kill_at_every_boundary() -> Result<()> {
    let mut host = host(WANTED)?;
    let down = |host: &TestHost, n: usize| host.cli().deactivate("web", 0, &format!("down-{n}"));
    let operation = Operation {
        before: &|host| {
            host.cli().json(&["activate", "web", "--to", "2"])?.ok()?;
            assert_exactly(host, WANTED, WANTED)
        },
        run: &|host, n| down(host, n).map(drop),
        after: &|host, n| {
            let task = down(host, n)?;
            ensure!(
                (task.state.as_str(), task.active) == ("done", 0),
                "{task:?}"
            );
            ensure!(down(host, n)?.replayed, "done twice");
            assert_exactly(host, 0, WANTED)
        },
    };
    let boundaries = at_every_boundary(&mut host, crash_agent(), &operation)?;
    for effect in ["commit", "deregister", "drain", "stop", "remove", "release"] {
        let boundary = format!("after {effect} 1");
        ensure!(
            boundaries.contains(&boundary),
            "no {boundary:?} in {boundaries:?}"
        );
    }
    host.remove_app("web")
}
