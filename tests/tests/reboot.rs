//! After a reboot every instance comes back with its name, its address and its rootfs, and clients
//! find it when it is ready.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::crash::{Begins, Operation, at_every_boundary};
use nodeagent_tests::documents::{Instance, Pool};
use nodeagent_tests::wait::{Look, until};
use nodeagent_tests::{Image, Manifest, TestHost, http};

/// The app `web`, which writes down each of its starts.
fn host(active: u32, armed: u32) -> Result<TestHost> {
    let host = TestHost::start()?;
    host.push(&Image::web()?, "web:1")?;
    let script = "echo started >>/www/starts; exec httpd -f -p 8080 -h /www";
    let web = Manifest::script("web", script)
        .armed(armed)
        .ready_by_page(20);
    host.apply(&web)?;
    host.wait_for_armed("web", armed)?;
    host.cli().activate("web", active, "up")?;
    host.assert_exactly("web", active, armed)?;
    Ok(host)
}

/// Name, state and address of each.
fn identities(pool: &Pool) -> Vec<(&str, &str, Option<&str>)> {
    let identity = |i| {
        let Instance {
            name,
            state,
            address,
            ..
        }: &Instance = i;
        (name.as_str(), state.as_str(), address.as_deref())
    };
    pool.instances.iter().map(identity).collect()
}

/// Generation by `address:port` of what clients find.
fn found(host: &TestHost) -> Result<BTreeMap<String, u64>> {
    let text = std::fs::read_to_string(host.prometheus_file()).context("read the file")?;
    let groups: Vec<nodeagent_tests::documents::TargetGroup> = serde_json::from_str(&text)?;
    let mut found = BTreeMap::new();
    for group in groups {
        let generation = group.labels["generation"].parse()?;
        found.extend(group.targets.into_iter().map(|target| (target, generation)));
    }
    Ok(found)
}

#[test]
fn after_a_reboot_all_come_back_as_they_were_and_are_found_when_they_are_ready() -> Result<()> {
    let mut host = host(3, 2)?;
    let before = host.cli().pool("web")?;
    let generations = found(&host)?;
    host.reboot()?;
    assert_eq!(found(&host)?, generations, "clients know nothing of it");
    host.agent.start(&host.ground)?;
    until(
        "all three to be found again",
        Duration::from_secs(60),
        || {
            let now = found(&host)?;
            for (target, generation) in &now {
                if generations.get(target) != Some(generation) {
                    let page = http::get(host.ground.netns(), target.parse()?, "/")?;
                    ensure!(page.status == 200, "{target} was found before it was ready");
                }
            }
            let again = now.iter().filter(|(t, g)| generations.get(*t) < Some(g));
            Ok(match again.count() {
                3 => Look::Seen(()),
                _ => Look::NotYet(format!("{now:?}")),
            })
        },
    )
    .with_context(|| host.agent.tail(60))?;
    let after = host.assert_nothing_besides("web", 3, 2)?;
    assert_eq!(identities(&after), identities(&before));
    assert_eq!(
        (after.target, after.target_seq),
        (before.target, before.target_seq)
    );
    for instance in after.instances.iter().filter(|i| i.state == "active") {
        let starts = host.starts(instance)?;
        ensure!(
            starts == 2,
            "{}: {starts} starts on its rootfs",
            instance.name
        );
    }
    let again = host.cli().activate("web", 3, "up")?;
    ensure!(again.replayed, "{again:?}");
    // A second one, so that a rootfs is older than two containers.
    host.reboot()?;
    host.agent.start(&host.ground)?;
    let third = host.assert_nothing_besides("web", 3, 2)?;
    assert_eq!(identities(&third), identities(&before));
    host.remove_app("web")
}

#[test]
fn a_target_that_was_lowered_after_a_reboot_is_what_is_restored() -> Result<()> {
    let mut host = host(2, 1)?;
    host.reboot()?;
    host.agent.start(&host.ground)?;
    let down = host.cli().deactivate("web", 1, "down")?;
    ensure!(down.state == "done", "{down:?}");
    host.assert_nothing_besides("web", 1, 1)?;
    host.remove_app("web")
}

#[test]
fn a_restore_survives_a_kill_at_every_boundary() -> Result<()> {
    let mut host = host(1, 1)?;
    let before = host.cli().pool("web")?;
    let whole = |host: &TestHost| {
        let pool = host.assert_nothing_besides("web", 1, 1)?;
        ensure!(
            identities(&pool) == identities(&before),
            "{:?} instead of {:?}",
            identities(&pool),
            identities(&before)
        );
        Ok(())
    };
    let operation = Operation {
        begins: Begins::WithStart,
        before: &|host| {
            whole(host)?;
            host.reboot()
        },
        run: &|host, _| whole(host),
        after: &|host, _| whole(host),
    };
    let crash_agent = Path::new(env!("CARGO_BIN_EXE_crash-agent"));
    let boundaries = at_every_boundary(&mut host, crash_agent, &operation)?;
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
