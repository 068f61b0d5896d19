//! A firewall that drops what is forwarded: what fails, who says why, and that the mend mends it.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::neighbour::{Neighbour, WIRE_HOST};
use nodeagent_tests::{Image, Manifest, TestHost, http};
use serde_json::{Value, json};

const CONFIG: &str = "[network]\nreachable = false\nhost_address = \"198.51.100.1\"\nforwarding = \"enable\"\n[discovery.file]\npropagation_bound = \"100ms\"\n";

/// What `nodeagent check` says of the firewall.
fn firewall(host: &TestHost) -> Result<Value> {
    let config = host.agent.config().to_string_lossy().into_owned();
    let answer = host.cli().json(&["check", "--config-dir", &config])?;
    let document: Value =
        serde_json::from_str(&answer.stdout).with_context(|| answer.to_string())?;
    let findings = document["findings"].as_array().context("no findings")?;
    let found = findings.iter().find(|f| f["check"] == "network.firewall");
    found.cloned().context("nothing of a firewall")
}

#[test]
fn a_firewall_that_drops_is_named_and_its_mend_lets_clients_through_again() -> Result<()> {
    let mut host = TestHost::without_agent(CONFIG)?;
    let neighbour = Neighbour::connect(&host.ground)?;
    host.agent.start(&host.ground)?;
    host.push(&Image::web()?, "web:1")?;
    let port = json!({ "name": "http", "containerPort": 8080, "hostPort": 8081 });
    let web = Manifest::web("web").with("ports", json!([port]));
    host.apply(&web.with("registration", json!({ "address": "instance" })))?;
    let task = host.cli().activate("web", 1, "up")?;
    let server = SocketAddr::from((WIRE_HOST, 8081));
    let fetch = || http::get(neighbour.netns(), server, "/");
    assert_eq!(fetch()?.status, 200);
    let found = firewall(&host)?;
    assert_eq!(found["works"], "full", "{found}");

    // As docker, firewalld and an administrator leave them.
    let netns = host.ground.netns();
    let forward = "hook forward priority filter";
    let firewalls = [
        (
            "iptables -P FORWARD DROP".to_owned(),
            "chain FORWARD of table ip filter has the policy drop",
        ),
        (
            format!(
                "nft 'add table inet firewalld; add chain inet firewalld filter_FORWARD {{ type filter {forward} + 10; }}; add rule inet firewalld filter_FORWARD ct state established,related accept; add rule inet firewalld filter_FORWARD counter reject with icmpx admin-prohibited'"
            ),
            "chain filter_FORWARD of table inet firewalld drops or rejects whatever comes",
        ),
        (
            format!(
                "nft 'add table inet admin; add chain inet admin forward {{ type filter {forward}; policy drop; }}; add rule inet admin forward iifname other0 accept'"
            ),
            "chain forward of table inet admin has the policy drop",
        ),
    ];
    for (drops, says) in firewalls {
        netns.command("sh", &["-c", &drops])?;
        ensure!(
            fetch().is_err(),
            "{drops}: clients get through all the same"
        );
        host.assert_serves(&task.instances[0])
            .context("from the host itself")?;
        let found = firewall(&host)?;
        assert_eq!(found["works"], "part", "{drops}: {found}");
        let text = found["found"].as_str().unwrap_or_default();
        ensure!(text.contains(says), "{drops}: {text}");
        let mend = found["mend"].as_str().context("no mend")?;
        netns.command("sh", &["-ec", mend])?;
        assert_eq!(fetch().context(mend.to_owned())?.status, 200);
        let found = firewall(&host)?;
        assert_eq!(found["works"], "full", "after {mend}: {found}");
    }
    host.remove_app("web")
}
