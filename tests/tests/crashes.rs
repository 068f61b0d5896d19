//! kill -9 of the agent at every effect boundary: exactly the right instances afterwards, the same
//! result for the same task, no orphan, and no container that was started twice.

use std::path::Path;

use anyhow::{Result, ensure};
use nodeagent_tests::crash::{Begins, Operation, at_boundary, at_every_boundary};
use nodeagent_tests::documents::Instance;
use nodeagent_tests::host::address_of;
use nodeagent_tests::{Image, Manifest, TestHost};
use serde_json::json;

const WANTED: u32 = 2;

/// The app `web`, which writes down each of its starts and has a port of the host.
fn web(armed: u32) -> Manifest {
    let port = json!({ "name": "http", "containerPort": 8080, "hostPort": "auto" });
    let script = "echo started >>/www/starts; exec httpd -f -p 8080 -h /www";
    Manifest::script("web", script)
        .armed(armed)
        .ready_by_page(20)
        .with("ports", json!([port]))
}

/// The same with another environment: another revision.
fn changed(armed: u32, number: usize) -> Manifest {
    let env = json!([{ "name": "NUMBER", "value": number.to_string() }]);
    web(armed).with("env", env)
}

fn host(armed: u32) -> Result<TestHost> {
    let host = TestHost::start()?;
    host.push(&Image::web()?, "web:1")?;
    host.apply(&web(armed))?;
    host.wait_for_armed("web", armed)?;
    Ok(host)
}

fn crash_agent() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_crash-agent"))
}

/// Fails unless each of `effects` was a boundary.
fn assert_passed(boundaries: &[String], effects: &[&str]) -> Result<()> {
    for boundary in effects.iter().map(|effect| format!("after {effect} 1")) {
        ensure!(
            boundaries.contains(&boundary),
            "no {boundary:?} in {boundaries:?}"
        );
    }
    Ok(())
}

/// Nothing in service, `armed` at the gate.
fn reset(host: &TestHost, armed: u32) -> Result<()> {
    let target = host.cli().pool("web")?.target;
    if target > 0 {
        host.cli().json(&["deactivate", "web", "--to", "0"])?.ok()?;
    }
    host.assert_exactly("web", 0, armed).map(drop)
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
    host.assert_exactly("web", WANTED, armed).map(drop)
}

#[test]
fn an_activation_from_the_gate_survives_a_kill_at_every_boundary() -> Result<()> {
    let mut host = host(WANTED)?;
    let operation = Operation {
        begins: Begins::WithRequest,
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
        begins: Begins::WithRequest,
        before: &|host| reset(host, 0),
        run: &|host, n| {
            host.cli()
                .activate("web", WANTED, &format!("up-{n}"))
                .map(drop)
        },
        after: &|host, n| assert_activated(host, n, 0),
    };
    let boundaries = at_every_boundary(&mut host, crash_agent(), &operation)?;
    let passed = [
        "commit", "network", "create", "arm", "start", "ready", "register",
    ];
    assert_passed(&boundaries, &passed)?;
    host.remove_app("web")
}

#[test]
fn a_creation_that_was_killed_is_made_anew_where_its_container_would_be_another_now() -> Result<()>
{
    let mut host = host(0)?;
    let operation = Operation {
        begins: Begins::WithRequest,
        before: &|host| reset(host, 0),
        run: &|host, _| {
            // From the next start on: what was begun is not what would be made then.
            let parent = format!("{}/other", host.ground.cgroup_parent());
            let runtime = format!("[runtime]\ncgroup_parent = \"{parent}\"\n");
            let bound = "[discovery.file]\npropagation_bound = \"100ms\"\n";
            host.agent.configure(&format!("{runtime}{bound}"))?;
            host.cli().activate("web", 1, "up").map(drop)
        },
        after: &|host, _| {
            let task = host.cli().activate("web", 1, "up")?;
            ensure!(task.state == "done", "{task:?}");
            let pool = host.assert_exactly("web", 1, 0)?;
            // One that had failed would have been replaced by another.
            let names: Vec<_> = pool.instances.iter().map(|i| &i.name).collect();
            ensure!(names == ["web-0"], "{task:?}, {names:?}");
            let trail = host.cli().trace("up")?;
            let failed: Vec<_> = trail.steps.iter().filter(|s| s.outcome != "ok").collect();
            ensure!(failed.is_empty(), "{failed:?}");
            Ok(())
        },
    };
    at_boundary(&mut host, crash_agent(), &operation, "before arm 1")?;
    // The other parent's own directory stays, as that of the first does: the host's end removes both.
    host.remove_app_only("web")
}

#[test]
fn a_deactivation_survives_a_kill_at_every_boundary() -> Result<()> {
    let mut host = host(WANTED)?;
    let down = |host: &TestHost, n: usize| host.cli().deactivate("web", 0, &format!("down-{n}"));
    let operation = Operation {
        begins: Begins::WithRequest,
        before: &|host| {
            host.cli().json(&["activate", "web", "--to", "2"])?.ok()?;
            host.assert_exactly("web", WANTED, WANTED).map(drop)
        },
        run: &|host, n| down(host, n).map(drop),
        after: &|host, n| {
            let task = down(host, n)?;
            ensure!(
                (task.state.as_str(), task.active) == ("done", 0),
                "{task:?}"
            );
            ensure!(down(host, n)?.replayed, "done twice");
            host.assert_exactly("web", 0, WANTED).map(drop)
        },
    };
    let boundaries = at_every_boundary(&mut host, crash_agent(), &operation)?;
    let passed = ["commit", "deregister", "drain", "stop", "remove", "release"];
    assert_passed(&boundaries, &passed)?;
    host.remove_app("web")
}

/// The number of instances that a scale began with, and ended with.
fn survives_a_scale(from: u32, to: u32) -> Result<Vec<String>> {
    let mut host = host(1)?;
    let scale = |host: &TestHost, n: usize| host.cli().scale("web", to, &format!("scale-{n}"));
    let from_text = from.to_string();
    let operation = Operation {
        begins: Begins::WithRequest,
        before: &|host| {
            host.cli()
                .json(&["scale", "web", "--to", &from_text])?
                .ok()?;
            host.assert_exactly("web", from, 1).map(drop)
        },
        run: &|host, n| scale(host, n).map(drop),
        after: &|host, n| {
            let task = scale(host, n)?;
            ensure!(
                (task.state.as_str(), task.active) == ("done", to),
                "{task:?}"
            );
            ensure!(scale(host, n)?.replayed, "done twice");
            host.assert_exactly("web", to, 1).map(drop)
        },
    };
    let boundaries = at_every_boundary(&mut host, crash_agent(), &operation)?;
    host.remove_app("web")?;
    Ok(boundaries)
}

#[test]
fn a_scale_up_survives_a_kill_at_every_boundary() -> Result<()> {
    // One from the gate, one that has to be made.
    let boundaries = survives_a_scale(1, 3)?;
    let passed = [
        "commit", "network", "create", "arm", "start", "ready", "register",
    ];
    assert_passed(&boundaries, &passed)
}

#[test]
fn a_scale_down_survives_a_kill_at_every_boundary() -> Result<()> {
    let boundaries = survives_a_scale(3, 1)?;
    let passed = ["commit", "deregister", "drain", "stop", "remove", "release"];
    assert_passed(&boundaries, &passed)
}

#[test]
fn a_new_revision_survives_a_kill_at_every_boundary() -> Result<()> {
    let mut host = host(WANTED)?;
    host.cli().activate("web", 1, "up")?;
    let serving = host.assert_exactly("web", 1, WANTED)?.instances;
    let serving = serving.iter().find(|instance| instance.state == "active");
    let operation = Operation {
        begins: Begins::WithRequest,
        before: &|host| host.assert_exactly("web", 1, WANTED).map(drop),
        run: &|host, n| {
            host.apply(&changed(WANTED, n))?;
            // Replacing the waiting ones goes on behind the answer.
            host.wait_for_armed("web", WANTED)
        },
        after: &|host, n| {
            host.apply(&changed(WANTED, n))?;
            let pool = host.wait_for_pool("web", "only the new revision at the gate", |pool| {
                let armed = pool.instances.iter().filter(|i| i.state == "armed");
                let fresh = armed.filter(|i| i.revision == pool.revision).count();
                fresh == WANTED as usize && pool.instances.len() == fresh + 1
            })?;
            let still = pool.instances.iter().find(|i| i.state == "active");
            ensure!(
                still.map(|i| (&i.name, &i.revision, i.create_generation))
                    == serving.map(|i| (&i.name, &i.revision, i.create_generation)),
                "{still:?} instead of {serving:?}"
            );
            host.assert_exactly("web", 1, WANTED).map(drop)
        },
    };
    let boundaries = at_every_boundary(&mut host, crash_agent(), &operation)?;
    let passed = [
        "commit", "stop", "remove", "release", "network", "create", "arm",
    ];
    assert_passed(&boundaries, &passed)?;
    host.remove_app("web")
}

#[test]
fn a_roll_survives_a_kill_at_every_boundary() -> Result<()> {
    let mut host = host(1)?;
    host.cli().activate("web", WANTED, "up")?;
    host.wait_for_armed("web", 1)?;
    let roll = |host: &TestHost, n: usize| host.cli().roll("web", "1", &format!("roll-{n}"));
    let revisions = std::cell::Cell::new(0);
    let operation = Operation {
        begins: Begins::WithRequest,
        before: &|host| {
            revisions.set(revisions.get() + 1);
            host.apply(&changed(1, revisions.get()))?;
            host.wait_for_pool("web", "one of the new revision at the gate", |pool| {
                let fresh = |i: &&Instance| i.state == "armed" && i.revision == pool.revision;
                pool.instances.iter().filter(fresh).count() == 1 && pool.instances.len() == 3
            })?;
            host.assert_exactly("web", WANTED, 1).map(drop)
        },
        run: &|host, n| {
            roll(host, n)?;
            host.wait_for_armed("web", 1)
        },
        after: &|host, n| {
            let task = roll(host, n)?;
            ensure!(
                (task.state.as_str(), task.active) == ("done", WANTED),
                "{task:?}"
            );
            ensure!(roll(host, n)?.replayed, "done twice");
            let pool = host.assert_exactly("web", WANTED, 1)?;
            let stale = pool.instances.iter().find(|i| i.revision != pool.revision);
            ensure!(stale.is_none(), "{stale:?} of {}", pool.revision);
            Ok(())
        },
    };
    let boundaries = at_every_boundary(&mut host, crash_agent(), &operation)?;
    let passed = [
        "commit",
        "start",
        "ready",
        "register",
        "deregister",
        "drain",
        "stop",
        "remove",
        "release",
        "network",
        "create",
        "arm",
    ];
    assert_passed(&boundaries, &passed)?;
    host.remove_app("web")
}

#[test]
fn a_restart_in_place_survives_a_kill_at_every_boundary() -> Result<()> {
    let mut host = host(0)?;
    let up = host.cli().activate("web", 1, "up")?;
    let serving = host.assert_exactly("web", 1, 0)?.instances[0].create_generation;
    // Each start of the app adds a line.
    let starts = |host: &TestHost| -> Result<usize> {
        let address = address_of(&up.instances[0])?;
        let answer = nodeagent_tests::http::get(host.ground.netns(), address, "/starts")?;
        Ok(answer.text().lines().count())
    };
    let restart = |host: &TestHost, n: usize| -> Result<nodeagent_tests::documents::Task> {
        let id = format!("again-{n}");
        let words = ["restart", "web-0", "--strategy", "reuse", "--task-id", &id];
        host.cli().json(&words)?.document(0)
    };
    // One instance, in the container that it had, found by clients.
    let serves = |host: &TestHost| -> Result<()> {
        let pool = host.wait_for_pool("web", "one in service", |pool| pool.active == 1);
        let found: Vec<_> = pool?
            .instances
            .iter()
            .map(|i| i.create_generation)
            .collect();
        ensure!(found == [serving], "{found:?} instead of {serving:?}");
        ensure!(host.discovered()?.len() == 1, "{:?}", host.discovered()?);
        ensure!(host.containers()?.len() == 1, "{:?}", host.containers()?);
        Ok(())
    };
    let before = std::cell::Cell::new(0);
    let operation = Operation {
        begins: Begins::WithRequest,
        before: &|host| {
            serves(host)?;
            before.set(starts(host)?);
            Ok(())
        },
        run: &|host, n| {
            // The agent has just come: until it has looked, nothing is in service.
            serves(host)?;
            restart(host, n).map(drop)
        },
        after: &|host, n| {
            serves(host)?;
            let task = restart(host, n)?;
            ensure!(
                (task.state.as_str(), task.active) == ("done", 1),
                "{task:?}"
            );
            ensure!(restart(host, n)?.replayed, "done twice");
            let (before, now) = (before.get(), starts(host)?);
            ensure!(now == before + 1, "started {} times", now - before);
            serves(host)
        },
    };
    let boundaries = at_every_boundary(&mut host, crash_agent(), &operation)?;
    let passed = [
        "commit",
        "deregister",
        "drain",
        "restart",
        "ready",
        "register",
    ];
    assert_passed(&boundaries, &passed)?;
    host.remove_app("web")
}

#[test]
fn a_deletion_survives_a_kill_at_every_boundary() -> Result<()> {
    let mut host = host(WANTED)?;
    let operation = Operation {
        begins: Begins::WithRequest,
        before: &|host| {
            host.apply(&web(WANTED))?;
            host.assert_exactly("web", 0, WANTED).map(drop)
        },
        run: &|host, _| host.cli().json(&["app", "delete", "web"])?.ok().map(drop),
        after: &|host, _| {
            // Either it is gone, or the command is repeated and waits until it is.
            let again = host.cli().json(&["app", "delete", "web"])?;
            ensure!([0, 4].contains(&again.code), "{again}");
            let pools = host.cli().status()?.pools;
            ensure!(pools.is_empty(), "{pools:?}");
            host.assert_nothing_left()
        },
    };
    let boundaries = at_every_boundary(&mut host, crash_agent(), &operation)?;
    assert_passed(&boundaries, &["commit", "stop", "remove", "release"])
}
