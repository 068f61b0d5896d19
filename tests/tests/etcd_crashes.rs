//! kill -9 of the agent at every effect boundary, with registrations in etcd: afterwards exactly the
//! right keys, of the right generation, and none that nobody stands for. `make test-peers`.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Result, ensure};
use nodeagent_tests::crash::{Begins, Operation, at_every_boundary};
use nodeagent_tests::documents::Task;
use nodeagent_tests::fleet::discovery;
use nodeagent_tests::{Etcd, TestHost};

fn start() -> Result<(TestHost, Etcd)> {
    let mut host = TestHost::without_agent(&discovery(&Ipv4Addr::LOCALHOST, ""))?;
    let etcd = Etcd::start(&host.ground)?;
    host.agent.start(&host.ground)?;
    host.warm_web(1)?;
    Ok((host, etcd))
}

fn crash_agent() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_crash-agent"))
}

/// The keys are those of the task's instances; none of them is waited for.
fn assert_registered(etcd: &Etcd, task: &Task) -> Result<()> {
    ensure!(task.state == "done", "{task:?}");
    let keys = etcd.instances()?;
    let found = keys.iter().map(|key| {
        let name = key.value["instance"].as_str().unwrap_or_default();
        (name.to_owned(), key.value["generation"].as_u64())
    });
    let wanted = task.instances.iter();
    let wanted = wanted.map(|i| (i.name.clone(), Some(i.generation)));
    ensure!(found.eq(wanted), "{keys:?}\n{task:?}");
    Ok(())
}

/// One at the gate, `active` in service.
fn settle(host: &TestHost, active: u32) -> Result<()> {
    let active = active.to_string();
    host.cli().json(&["scale", "web", "--to", &active])?.ok()?;
    host.wait_for_armed("web", 1)
}

#[test]
#[ignore = "needs a built peer: make test-peers"]
fn an_activation_into_etcd_survives_a_kill_at_every_boundary() -> Result<()> {
    let (mut host, etcd) = start()?;
    let up = |host: &TestHost, n: usize| host.cli().activate("web", 1, &format!("up-{n}"));
    let operation = Operation {
        begins: Begins::WithRequest,
        before: &|host| {
            settle(host, 0)?;
            etcd.wait_for_instances(0).map(drop)
        },
        run: &|host, n| up(host, n).map(drop),
        after: &|host, n| assert_registered(&etcd, &up(host, n)?),
    };
    let boundaries = at_every_boundary(&mut host, crash_agent(), &operation)?;
    for boundary in ["before register 1", "after register 1"] {
        let passed = boundaries.iter().any(|passed| passed == boundary);
        ensure!(passed, "no {boundary:?} in {boundaries:?}");
    }
    host.remove_app("web")
}

#[test]
#[ignore = "needs a built peer: make test-peers"]
fn a_deactivation_out_of_etcd_survives_a_kill_at_every_boundary() -> Result<()> {
    let (mut host, etcd) = start()?;
    let down = |host: &TestHost, n: usize| host.cli().deactivate("web", 0, &format!("down-{n}"));
    let operation = Operation {
        begins: Begins::WithRequest,
        before: &|host| {
            settle(host, 1)?;
            etcd.wait_for_instances(1).map(drop)
        },
        run: &|host, n| down(host, n).map(drop),
        after: &|host, n| {
            let task = down(host, n)?;
            let keys = etcd.instances()?;
            ensure!(task.state == "done" && keys.is_empty(), "{task:?} {keys:?}");
            Ok(())
        },
    };
    let boundaries = at_every_boundary(&mut host, crash_agent(), &operation)?;
    for boundary in ["before deregister 1", "after deregister 1"] {
        let passed = boundaries.iter().any(|passed| passed == boundary);
        ensure!(passed, "no {boundary:?} in {boundaries:?}");
    }
    host.remove_app("web")
}
