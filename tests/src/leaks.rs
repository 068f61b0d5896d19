//! What may not be left when all apps are gone.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::agent::Agent;
use crate::containerd::Containerd;
use crate::ground::Ground;
use crate::neighbour::WIRE;
use crate::teardown::{self, cgroups_below, mounts_below};
use crate::wait::{Look, until};

/// Removal is asynchronous in part (containerd's collector, the kernel's network namespaces).
const SETTLES: Duration = Duration::from_secs(15);

/// Kind of a thing -> the names of those that are left. Empty kinds are not listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leaks(BTreeMap<&'static str, Vec<String>>);

impl Leaks {
    fn add(&mut self, kind: &'static str, mut names: Vec<String>) {
        names.sort();
        if !names.is_empty() {
            self.0.insert(kind, names);
        }
    }

    /// Whether nothing is left.
    pub fn none(&self) -> bool {
        self.0.is_empty()
    }

    /// Those of one kind.
    pub fn of(&self, kind: &str) -> &[String] {
        self.0.get(kind).map_or(&[], Vec::as_slice)
    }
}

impl fmt::Display for Leaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, names) in &self.0 {
            write!(f, "{kind}: {}; ", names.join(", "))?;
        }
        Ok(())
    }
}

/// Everything of instances that is there now, with running apps as well as without.
pub fn look(ground: &Ground, containerd: &Containerd, agent: &Agent) -> Result<Leaks> {
    let namespace = agent.namespace();
    let mut leaks = Leaks::default();
    leaks.add("containers", containerd.containers(namespace)?);
    leaks.add("tasks", containerd.tasks(namespace)?.into_keys().collect());
    leaks.add("shims", shims(ground, namespace)?);
    leaks.add("snapshots", containerd.active_snapshots(namespace)?);
    leaks.add("leases", containerd.leases(namespace)?);
    leaks.add("netns", names_in(&agent.runtime().join("netns"))?);
    leaks.add("links", links(ground)?);
    leaks.add("routes", routes(ground)?);
    leaks.add("host ports", host_ports(ground)?);
    leaks.add("cgroups", cgroups(ground));
    leaks.add(
        "instance directories",
        names_in(&agent.state().join("instances"))?,
    );
    leaks.add("mounts", mounts(agent)?);
    leaks.add("discovery", discovered(&agent.runtime().join("discovery"))?);
    Ok(leaks)
}

/// Fails unless soon nothing of any instance is left.
pub fn assert_none(ground: &Ground, containerd: &Containerd, agent: &Agent) -> Result<()> {
    until("nothing to be left of any instance", SETTLES, || {
        let leaks = look(ground, containerd, agent)?;
        Ok(if leaks.none() {
            Look::Seen(())
        } else {
            Look::NotYet(leaks.to_string())
        })
    })
}

/// Shims of the agent's namespace, each by its pid and arguments.
fn shims(ground: &Ground, namespace: &str) -> Result<Vec<String>> {
    let of_agent = |arguments: &[String]| arguments.iter().any(|word| word == namespace);
    let shims = teardown::shims(ground.directory())?.into_iter();
    let shims = shims.filter(|(_, arguments)| of_agent(arguments));
    Ok(shims
        .map(|(pid, arguments)| format!("{pid} {}", arguments.join(" ")))
        .collect())
}

fn names_in(directory: &Path) -> Result<Vec<String>> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(directory);
    let entries = entries.with_context(|| format!("read {}", directory.display()))?;
    Ok(entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect())
}

/// Elements of the agent's maps in the packet filter.
fn host_ports(ground: &Ground) -> Result<Vec<String>> {
    let rules = packet_filter(ground)?;
    let elements = rules.lines().filter(|line| {
        let line = line.trim_start_matches([' ', '\t']);
        !line.starts_with("type") && (line.contains("tcp . ") || line.contains("udp . "))
    });
    Ok(elements.map(|line| line.trim().to_owned()).collect())
}

/// All rules in the host's network, as nft prints them.
pub fn packet_filter(ground: &Ground) -> Result<String> {
    let shown = ground.netns().run(|| {
        let mut command = Command::new("nft");
        command.args(["list", "ruleset"]);
        command.output().context("run nft")
    })?;
    ensure!(
        shown.status.success(),
        "nft list ruleset: {}",
        String::from_utf8_lossy(&shown.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&shown.stdout).into_owned())
}

/// Links in the host's network besides loopback.
fn links(ground: &Ground) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Link {
        ifname: String,
    }
    let links: Vec<Link> = ip(ground, &["link", "show"])?;
    let names = links.into_iter().map(|link| link.ifname);
    Ok(names.filter(|name| name != "lo" && name != WIRE).collect())
}

fn routes(ground: &Ground) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Route {
        dst: String,
        dev: Option<String>,
    }
    let routes: Vec<Route> = ip(ground, &["route", "show"])?;
    let ours = routes
        .into_iter()
        .filter(|route| route.dev.as_deref() != Some(WIRE));
    Ok(ours.map(|route| route.dst).collect())
}

fn ip<T: serde::de::DeserializeOwned>(ground: &Ground, arguments: &[&str]) -> Result<Vec<T>> {
    let shown = ground.netns().run(|| {
        let mut command = Command::new("ip");
        command.arg("-json").args(arguments);
        command.output().context("run ip")
    })?;
    let text = String::from_utf8_lossy(&shown.stdout);
    // ip prints nothing at all when there is nothing.
    let text = if text.trim().is_empty() { "[]" } else { &text };
    serde_json::from_str(text).with_context(|| format!("read ip's {text:?}"))
}

/// Groups below the host's cgroup parent; the parent itself may stay.
fn cgroups(ground: &Ground) -> Vec<String> {
    let parent = ground.cgroup_parent();
    let parent = parent.trim_start_matches('/');
    let groups = cgroups_below(parent).into_iter();
    let below = groups.filter(|group| !group.ends_with(parent));
    below.map(|group| group.display().to_string()).collect()
}

fn mounts(agent: &Agent) -> Result<Vec<String>> {
    let mut points = mounts_below(&agent.state())?;
    points.extend(mounts_below(&agent.runtime())?);
    // The host's own tmpfs is there before the agent and after it.
    points.retain(|point| *point != agent.runtime());
    Ok(points.iter().map(|p| p.display().to_string()).collect())
}

/// Targets that clients would still find.
fn discovered(directory: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let prometheus = directory.join("prometheus.json");
    if let Some(document) = read_json(&prometheus)? {
        found.extend(targets(&document));
    }
    let mut names = names_in(&directory.join("eds"))?;
    // A file that is being written is nobody's yet.
    names.retain(|name| !name.starts_with('.'));
    for name in names {
        let document = read_json(&directory.join("eds").join(&name))?;
        let count = document.as_ref().map_or(0, endpoints);
        if count > 0 {
            found.push(format!("{count} endpoints in {name}"));
        }
    }
    Ok(found)
}

/// `None` when there is no such file, or none any more.
fn read_json(file: &Path) -> Result<Option<Value>> {
    let text = match fs::read_to_string(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| format!("read {}", file.display()))?,
    };
    let document = serde_json::from_str(&text);
    document.with_context(|| format!("parse {}", file.display()))
}

/// Every target of a Prometheus file_sd document.
pub fn targets(document: &Value) -> Vec<String> {
    let groups = document.as_array().into_iter().flatten();
    let targets = groups
        .filter_map(|group| group["targets"].as_array())
        .flatten();
    targets
        .map(|t| t.as_str().unwrap_or("?").to_owned())
        .collect()
}

/// Number of endpoints (`socket_address`) anywhere in an Envoy EDS document.
pub fn endpoints(document: &Value) -> usize {
    match document {
        Value::Object(fields) => {
            let here = usize::from(fields.contains_key("socket_address"));
            here + fields.values().map(endpoints).sum::<usize>()
        }
        Value::Array(items) => items.iter().map(endpoints).sum(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn endpoints_are_counted_wherever_envoy_nests_them() {
        let one = json!({"endpoint": {"address": {"socket_address": {"port_value": 80}}}});
        let eds = json!({"resources": [{"endpoints": [{"lb_endpoints": [one, one]}]}]});
        assert_eq!(endpoints(&eds), 2);
        assert_eq!(endpoints(&json!({"resources": []})), 0);
    }

    #[test]
    fn targets_are_found_in_every_group() {
        let sd = json!([{"targets": ["a:1"]}, {"targets": ["b:2"], "labels": {}}, {}]);
        assert_eq!(targets(&sd), ["a:1", "b:2"]);
    }
}
