//! etcd discovery on real etcd 3.6.6. `make test-peers` builds it and runs these.

#![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::fleet::discovery;
use nodeagent_tests::{Etcd, Ground, TestHost};

/// Both backends, with a lease that outlives every test.
const CONFIG: &str = r#"
[discovery.file]
propagation_bound = "100ms"
[discovery.etcd]
enabled = true
endpoints = ["http://127.0.0.1:2379"]
ttl = "1h"
dial_timeout = "500ms"
request_timeout = "1s"
propagation_bound = "100ms"
"#;

/// A host with etcd, ready.
fn start() -> (TestHost, Etcd) {
    let mut host = TestHost::without_agent(CONFIG).unwrap();
    let etcd = Etcd::start(&host.ground).unwrap();
    host.agent.start(&host.ground).unwrap();
    (host, etcd)
}

#[test]
#[ignore = "needs a built peer: make test-peers"]
fn an_activated_instance_is_a_key_and_a_deactivated_one_is_none() {
    let (host, etcd) = start();
    host.warm_web(2).unwrap();
    let task = host.cli().activate("web", 2, "peak").unwrap();
    assert_eq!((task.state.as_str(), task.active), ("done", 2));
    let keys = etcd.instances().unwrap();
    let id = format!("test-{}", host.ground.id());
    let names: Vec<_> = keys.iter().map(|key| key.key.clone()).collect();
    let expected = [0, 1].map(|n| format!("/nodeagent/default/web/{id}/{n}"));
    assert_eq!(names, expected);
    for (key, instance) in keys.iter().zip(&task.instances) {
        assert_eq!(key.value["instance"], *instance.name);
        assert_eq!(key.value["generation"], instance.generation);
        assert_eq!(key.value["address"].as_str(), instance.address.as_deref());
        assert_eq!(key.value["metadata"]["task_id"], "peak");
        assert_eq!(key.lease, keys[0].lease);
    }
    assert_ne!(keys[0].lease, 0);
    assert_eq!(
        host.discovered().unwrap().len(),
        2,
        "the files have them, too"
    );

    host.cli().deactivate("web", 1, "less").unwrap();
    assert_eq!(etcd.instances().unwrap().len(), 1);
    host.remove_app("web").unwrap();
    assert_eq!(etcd.instances().unwrap(), []);
}

#[test]
#[ignore = "needs a built peer: make test-peers"]
fn an_agent_that_is_killed_and_comes_back_deregisters_nobody() {
    let (mut host, etcd) = start();
    host.warm_web(2).unwrap();
    host.cli().activate("web", 2, "peak").unwrap();
    let before = etcd.instances().unwrap();
    for round in 0..3 {
        host.agent.kill().unwrap();
        host.agent.start(&host.ground).unwrap();
        host.wait_for_pool("web", "2 active", |pool| pool.active == 2)
            .unwrap();
        // Made once and never again, on the lease of before.
        assert_eq!(etcd.instances().unwrap(), before, "round {round}");
    }
    host.remove_app("web").unwrap();
}

#[test]
#[ignore = "needs a built peer: make test-peers"]
fn the_harness_has_an_etcd_of_three_that_survives_its_leader() {
    let ground = Ground::new().unwrap();
    let mut etcd = Etcd::cluster(&ground).unwrap();
    etcd.put("/nodeagent/a", "\"1\"").unwrap();
    let leader = etcd.leader().unwrap();
    etcd.kill(leader).unwrap();
    etcd.wait_until_serving().unwrap();
    assert_ne!(etcd.leader().unwrap(), leader);
    let keys = etcd.keys("/nodeagent/").unwrap();
    assert_eq!((keys.len(), keys[0].value.as_str()), (1, Some("1")));
    etcd.start_again(&ground).unwrap();
    etcd.compact().unwrap();
    etcd.delete("/nodeagent/a").unwrap();
    assert_eq!(etcd.keys("/nodeagent/").unwrap(), []);
}

/// The blocks of a language in docs/operations/discovery.md.
fn blocks(language: &str) -> Result<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations/discovery.md");
    let page = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let fence = format!("```{language}\n");
    let blocks = page.split(&fence).skip(1);
    Ok(blocks
        .filter_map(|block| Some(block.split_once("```")?.0.to_owned()))
        .collect())
}

#[test]
#[ignore = "needs a built peer: make test-peers"]
fn every_command_of_the_discovery_page_works_and_its_user_is_enough() -> Result<()> {
    let mut host = TestHost::without_agent("")?;
    let mut etcd = Etcd::start(&host.ground)?;
    let password = host.file("password", "secret\n")?;
    fs::set_permissions(&password, Permissions::from_mode(0o600))?;
    let place = password.to_string_lossy().into_owned();
    let sh = |line: &str, user: &str| -> Result<String> {
        let mut command = Command::new("sh");
        let line = line.replace("/etc/nodeagent/etcd-password", &place);
        command.args(["-c", &line]).env("ETCDCTL_USER", user);
        let programs = etcdctl()?;
        command.env("PATH", format!("{}:/usr/bin:/bin", programs.display()));
        let output = host
            .ground
            .netns()
            .run(|| command.output().context("run sh"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{line}: {said}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let blocks = blocks("sh")?;
    let [make_user, look] = &blocks[..] else {
        anyhow::bail!("{} blocks of commands", blocks.len());
    };
    for line in make_user.lines() {
        sh(line, "")?;
    }
    etcd.require_root()?;

    let user = format!("username = \"nodeagent\"\npassword_file = {place:?}");
    host.agent
        .configure(&discovery(&std::net::Ipv4Addr::LOCALHOST, &user))?;
    host.agent.start(&host.ground)?;
    host.warm_web(1)?;
    host.cli().activate("web", 1, "peak")?;
    let backend = host.wait_for_backend("etcd", "serving", |b| b.state == "serving")?;
    let lease = backend.lease.context("no lease")?.id;
    let keys = etcd.instances()?;
    for line in look.lines() {
        let said = sh(&line.replace("LEASE", &lease), "root:root")?;
        ensure!(said.contains(&keys[0].key), "{line}: {said}");
    }
    host.remove_app("web")
}

fn etcdctl() -> Result<std::path::PathBuf> {
    let programs = nodeagent_tests::peers::programs("etcdctl-3.6.6");
    let there = programs.join("etcdctl").exists();
    ensure!(
        there,
        "etcdctl is missing; build it by `tests/peers/build etcdctl-3.6.6`"
    );
    Ok(programs)
}

#[test]
fn every_configuration_of_the_discovery_page_is_accepted() -> Result<()> {
    let ground = Ground::new()?;
    let blocks = blocks("toml")?;
    ensure!(blocks.len() >= 3, "only {} blocks", blocks.len());
    for (n, block) in blocks.iter().enumerate() {
        let directory = ground.path(&format!("config-{n}"));
        fs::create_dir(&directory)?;
        fs::write(directory.join("10.toml"), format!("version = 1\n{block}"))?;
        let mut command = Command::new(nodeagent_tests::cli::nodeagent()?);
        command
            .args(["config", "check", "--config-dir"])
            .arg(&directory);
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{block}\n{said}");
    }
    Ok(())
}
