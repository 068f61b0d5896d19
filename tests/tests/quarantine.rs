//! A freed address is nobody's for a while, also across deaths of the agent.

use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nodeagent_tests::host::address_of;
use nodeagent_tests::neighbour::{Neighbour, WIRE_HOST};
use nodeagent_tests::wait::{Look, until};
use nodeagent_tests::{Image, Manifest, TestHost, http};
use serde_json::json;

/// Long enough for an activation in vain and two starts of the agent on a busy machine.
const QUARANTINE: Duration = Duration::from_secs(20);
/// It ends, and then the pool's pause between two tries, which is up to 60 s.
const TRIED_AGAIN: Duration = Duration::from_secs(120);

/// Two addresses in all.
const CONFIG: &str = "[network]\npools = [\"10.88.0.0/30\"]\nquarantine = \"20s\"\nreachable = false\nhost_address = \"198.51.100.1\"\nforwarding = \"enable\"\n[discovery.file]\npropagation_bound = \"100ms\"\n";

/// Connections from, to, or translated to the address, as the kernel tracks them.
fn tracked(host: &TestHost, address: Ipv4Addr) -> Result<Vec<String>> {
    let read = || {
        fs::read_to_string("/proc/thread-self/net/nf_conntrack").context("read tracked connections")
    };
    let all = host.ground.netns().run(read)?;
    let ends = [format!("src={address} "), format!("dst={address} ")];
    let of_it = all
        .lines()
        .filter(|line| ends.iter().any(|end| line.contains(end)));
    Ok(of_it.map(str::to_owned).collect())
}

#[test]
fn a_freed_address_rests_for_its_quarantine_also_over_two_kills_and_nothing_is_tracked_of_it()
-> Result<()> {
    let mut host = TestHost::without_agent(CONFIG)?;
    let neighbour = Neighbour::connect(&host.ground)?;
    host.agent.start(&host.ground)?;
    host.push(&Image::web()?, "web:1")?;
    let port = json!({ "name": "http", "containerPort": 8080, "hostPort": 8081 });
    let web = Manifest::web("web").with("ports", json!([port]));
    let instance = json!({ "address": "instance" });
    host.apply(&web.with("registration", instance.clone()))?;
    let task = host.cli().activate("web", 1, "web-up")?;
    let server = address_of(&task.instances[0])?;
    let freed: Ipv4Addr = server.ip().to_string().parse()?;
    let page = http::get(neighbour.netns(), (WIRE_HOST, 8081).into(), "/")?;
    assert_eq!(page.status, 200);
    let before = tracked(&host, freed)?;
    ensure!(!before.is_empty(), "no connection to {freed} is tracked");

    let not_freed_yet = Instant::now();
    host.remove_app("web")?;
    assert_eq!(tracked(&host, freed)?, Vec::<String>::new());

    // One address was never anybody's; the other rests.
    let shop = Manifest::web("shop").with("registration", instance);
    host.apply(&shop)?;
    let deadline = ["activate", "shop", "--to", "2", "--deadline", "10s"];
    let answer = host
        .cli()
        .json(&[&deadline[..], &["--task-id", "shop-up"]].concat())?;
    let task: nodeagent_tests::documents::Task = answer.document(8)?;
    assert_eq!((task.state.as_str(), task.active), ("partial", 1));
    for _ in 0..2 {
        host.agent.kill()?;
        host.agent.start(&host.ground)?;
    }
    let pool = until("two in service after all", TRIED_AGAIN, || {
        let status = host.cli().status()?;
        let early = not_freed_yet.elapsed() < QUARANTINE;
        let Some(pool) = status.pools.iter().find(|pool| pool.app == "shop") else {
            return Ok(Look::NotYet(format!("{status:?}")));
        };
        let has_it = pool
            .instances
            .iter()
            .any(|i| i.address.as_deref() == Some(&freed.to_string()));
        ensure!(!(early && has_it), "{freed} was given away early: {pool:?}");
        Ok(match pool.active {
            2 => Look::Seen(pool.clone()),
            _ => Look::NotYet(format!("{pool:?}")),
        })
    })?;
    ensure!(
        not_freed_yet.elapsed() >= QUARANTINE,
        "two addresses were free after {:?}",
        not_freed_yet.elapsed()
    );
    ensure!(
        pool.instances
            .iter()
            .any(|i| i.address.as_deref() == Some(&freed.to_string())),
        "{freed} is not used again: {pool:?}"
    );
    host.remove_app("shop")
}
