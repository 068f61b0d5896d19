//! What containers know of names, read inside of them: their own, other hosts', where to ask.

use std::fs;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::documents::TaskInstance;
use nodeagent_tests::{Manifest, TestHost};
use serde_json::json;

/// Tells everything, and whether it can be changed.
const SCRIPT: &str = "{ hostname; echo \"$HOSTNAME\"; for f in hostname hosts resolv.conf; do echo \"[$f]\"; \
    cat /etc/$f; echo x 2>/dev/null >>/etc/$f && echo written; done; } >/www/index.html; \
    exec httpd -f -p 8080 -h /www";

/// A host whose own resolver configuration is `resolv_conf`.
fn host(resolv_conf: &str) -> Result<TestHost> {
    let mut host = TestHost::without_agent("[discovery.file]\npropagation_bound = \"100ms\"\n")?;
    let file = host.file("resolv.conf", resolv_conf)?;
    let config = format!("[network]\nresolv_conf = \"{}\"\n", file.display());
    host.start_beside(&config)?;
    Ok(host)
}

/// What one instance says of itself: its hostname twice, and its files.
struct Told {
    hostnames: [String; 2],
    page: String,
}

impl Told {
    fn by(host: &TestHost, instance: &TaskInstance) -> Result<Self> {
        let page = host.fetch(instance)?.text();
        let mut lines = page.lines().map(str::to_owned);
        let mut next = || lines.next().unwrap_or_default();
        let hostnames = [next(), next()];
        ensure!(!page.contains("written"), "a file can be written:\n{page}");
        Ok(Self { hostnames, page })
    }

    fn file(&self, name: &str) -> Result<&str> {
        let (_, rest) = self
            .page
            .split_once(&format!("[{name}]\n"))
            .with_context(|| format!("no {name} in:\n{}", self.page))?;
        Ok(rest.split_once("[").map_or(rest, |(file, _)| file))
    }
}

#[test]
fn a_container_knows_its_name_its_address_and_where_to_ask() -> Result<()> {
    let mut host = host("nameserver 10.9.9.9\nsearch lan\noptions ndots:1\n")?;
    let manifest = Manifest::script("web", SCRIPT)
        .ready_by_page(10)
        .with(
            "hostAliases",
            json!([{ "ip": "10.0.0.9", "hostnames": ["db", "db.lan"] }]),
        )
        .with(
            "dnsConfig",
            json!({
                "nameservers": ["10.9.9.10"],
                "searches": ["shop.lan"],
                "options": [{ "name": "ndots", "value": "3" }],
            }),
        );
    host.apply(&manifest)?;
    let task = host.cli().activate("web", 1, "in")?;
    let instance = &task.instances[0];
    let address = instance.address.clone().context("no address")?;
    let told = Told::by(&host, instance)?;
    assert_eq!(told.hostnames, ["web-0", "web-0"]);
    assert_eq!(told.file("hostname")?, "web-0\n");
    let hosts = told.file("hosts")?;
    for entry in [
        "127.0.0.1\tlocalhost\n",
        &format!("{address}\tweb-0\n"),
        "10.0.0.9\tdb\tdb.lan\n",
    ] {
        ensure!(hosts.contains(entry), "{entry:?} is not in:\n{hosts}");
    }
    assert_eq!(
        told.file("resolv.conf")?,
        "search lan shop.lan\nnameserver 10.9.9.9\nnameserver 10.9.9.10\noptions ndots:3\n"
    );

    // A new agent and a new container: the instance's address and name are what they were.
    host.agent.kill()?;
    host.agent.start(&host.ground)?;
    let pool = host.wait_for_pool("web", "it in service", |pool| pool.active == 1)?;
    assert_eq!(pool.instances[0].address.as_deref(), Some(address.as_str()));
    host.cli().deactivate("web", 0, "out")?;
    let task = host.cli().activate("web", 1, "again")?;
    assert_eq!(task.instances[0].address.as_deref(), Some(address.as_str()));
    let told = Told::by(&host, &task.instances[0])?;
    ensure!(told.file("hosts")?.contains(&format!("{address}\tweb-0\n")));
    host.remove_app("web")
}

#[test]
fn a_name_server_on_loopback_is_the_hosts_alone() -> Result<()> {
    let host = host("nameserver 127.0.0.1\nnameserver 10.9.9.9\n")?;
    let named = |app: &str| Manifest::script(app, SCRIPT).ready_by_page(10);
    host.apply(&named("own").with("hostname", "shop".into()))?;
    let task = host.cli().activate("own", 1, "own")?;
    let told = Told::by(&host, &task.instances[0])?;
    assert_eq!(told.hostnames, ["shop", "shop"]);
    assert_eq!(told.file("resolv.conf")?, "nameserver 10.9.9.9\n");
    host.remove_app_only("own")?;

    host.apply(&named("hosts").with("network", "host".into()))?;
    let task = host.cli().activate("hosts", 1, "hosts")?;
    let told = Told::by(&host, &task.instances[0])?;
    let hostname = fs::read_to_string("/proc/sys/kernel/hostname")?;
    assert_eq!(told.hostnames, [hostname.trim(), hostname.trim()]);
    assert_eq!(
        told.file("resolv.conf")?,
        "nameserver 127.0.0.1\nnameserver 10.9.9.9\n"
    );
    let own = fs::read_to_string("/etc/hosts")?;
    ensure!(
        own.lines().all(|line| told.page.contains(line)),
        "the host's /etc/hosts is not in:\n{}",
        told.page
    );
    host.remove_app("hosts")
}

#[test]
fn a_volume_in_the_place_of_a_file_wins() -> Result<()> {
    let host = host("nameserver 10.9.9.9\n")?;
    let script = "cat /proc/mounts >/www/index.html; exec httpd -f -p 8080 -h /www";
    let manifest = Manifest::script("web", script)
        .ready_by_page(10)
        .with(
            "volumes",
            json!([{ "name": "etc", "emptyDir": { "medium": "Memory" } }]),
        )
        .with(
            "volumeMounts",
            json!([{ "name": "etc", "mountPath": "/etc" }]),
        );
    host.apply(&manifest)?;
    let task = host.cli().activate("web", 1, "in")?;
    let mounts = host.fetch(&task.instances[0])?.text();
    ensure!(
        mounts.contains("tmpfs /etc ") && !mounts.contains(" /etc/hosts "),
        "{mounts}"
    );
    host.remove_app("web")
}
