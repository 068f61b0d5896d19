//! What `nodeagent processes` says of real containers: armed, in service, frozen, gone.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::documents::{Process, ProcessList};
use nodeagent_tests::wait::{Look, until};
use nodeagent_tests::{Image, Manifest, TestHost};
use serde_json::json;

const CONFIG: &str = "[discovery.file]\npropagation_bound = \"100ms\"\n";
const SETTLE: Duration = Duration::from_secs(20);

/// An app with two children, an agent that is ready, and one that ends again and again.
fn host() -> Result<TestHost> {
    let shell = |script: &str| json!(["/bin/sh", "-c", script]);
    let agents = json!([
        { "name": "cache", "command": shell("exec sleep 1000") },
        { "name": "shipper", "command": shell("exit 5"), "essential": false },
    ]);
    let serve = "sleep 1001 & sleep 1002 & while [ ! -e /tmp/burn ]; do sleep 0.01; done & \
        echo web >/www/index.html; exec httpd -f -p 8080 -h /www";
    let manifest = Manifest::script("web", serve)
        .ready_by_page(10)
        .armed(1)
        .with("agents", agents);
    let host = TestHost::start_with(CONFIG)?;
    host.push(&Image::web()?, "web:1")?;
    host.apply(&manifest)?;
    host.wait_for_armed("web", 1)?;
    Ok(host)
}

fn processes(host: &TestHost, instance: &str) -> Result<ProcessList> {
    host.cli().json(&["processes", instance])?.document(0)
}

fn named<'a>(list: &'a ProcessList, name: &str) -> Result<&'a Process> {
    let mut all = list.processes.iter();
    all.find(|process| process.name.as_deref() == Some(name))
        .with_context(|| format!("no {name} runs: {list:?}"))
}

/// `/sys/fs/cgroup/freezer/...` or the unified group of the only container.
fn freezer(host: &TestHost, host_pid: u32) -> Result<(PathBuf, &'static str, &'static str)> {
    let text = fs::read_to_string(format!("/proc/{host_pid}/cgroup"))?;
    let line = |controller: &str| {
        let mut lines = text.lines().filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            Some((parts.nth(1)?, parts.next()?))
        });
        lines
            .find(|(names, _)| names.split(',').any(|name| name == controller))
            .map(|(_, path)| path.trim_start_matches('/').to_owned())
    };
    if let Some(path) = line("freezer") {
        let file = PathBuf::from("/sys/fs/cgroup/freezer").join(path);
        return Ok((file.join("freezer.state"), "FROZEN", "THAWED"));
    }
    let path = line("")
        .with_context(|| format!("no cgroup of {host_pid} on {}", host.agent.namespace()))?;
    let file = PathBuf::from("/sys/fs/cgroup").join(path);
    Ok((file.join("cgroup.freeze"), "1", "0"))
}

#[test]
fn the_tree_of_an_instance_has_what_runs_and_what_container_init_knows_of_it() -> Result<()> {
    let host = host()?;
    let pool = host.cli().pool("web")?;
    let name = pool.instances[0].name.clone();
    let armed = processes(&host, &name)?;
    assert_eq!(armed.state, "armed");
    let of = |list: &ProcessList, name: &str| -> Result<(String, u32, bool)> {
        let mut all = list.supervised.iter();
        let found = all.find(|process| process.name == name).context("none")?;
        Ok((found.state.clone(), found.restarts, found.pid.is_some()))
    };
    assert_eq!(of(&armed, "cache")?, ("ready".to_owned(), 0, true));
    assert_eq!(of(&armed, "app")?, ("waiting".to_owned(), 0, false));
    ensure!(named(&armed, "app").is_err(), "{armed:?}");

    let task = host.cli().activate("web", 1, "in")?;
    ensure!(task.instances[0].name == name, "{task:?}");
    let again = until("a restart of the shipper", SETTLE, || {
        let list = processes(&host, &name)?;
        Ok(match of(&list, "shipper")? {
            (_, restarts, _) if restarts >= 2 => Look::Seen(list),
            other => Look::NotYet(format!("{other:?}")),
        })
    })?;
    let shipper = again.supervised.iter().find(|p| p.name == "shipper");
    assert_eq!(
        shipper.and_then(|p| p.last_exit.clone()),
        Some(json!({"code": 5}))
    );
    assert_eq!(again.state, "active");
    assert_eq!(of(&again, "app")?.0, "ready");
    assert_eq!(
        again.supervised.last().map(|p| p.name.as_str()),
        Some("app")
    );

    let (init, app) = (named(&again, "container-init")?, named(&again, "app")?);
    assert_eq!((init.pid, init.parent_host_pid), (Some(1), None));
    assert_eq!(app.parent_host_pid, Some(init.host_pid));
    ensure!(app.command.contains("httpd"), "{app:?}");
    let children = |parent: &Process| -> Vec<&Process> {
        let mut all: Vec<&Process> = again.processes.iter().collect();
        all.retain(|process| process.parent_host_pid == Some(parent.host_pid));
        all
    };
    let sleeps = children(app);
    for second in ["sleep 1001", "sleep 1002"] {
        let found = sleeps.iter().find(|process| process.command == second);
        let found = found.with_context(|| format!("no {second} below the app: {again:?}"))?;
        let real = fs::read_to_string(format!("/proc/{}/status", found.host_pid))?;
        let inside = format!("\t{}\n", found.pid.context("no pid inside")?);
        ensure!(real.contains(&inside), "{found:?} is not {real}");
        ensure!(found.name.is_none() && found.threads == 1, "{found:?}");
        ensure!(found.rss_bytes > 0, "{found:?}");
        ensure!(
            found.pss_bytes.is_some_and(|pss| pss <= found.rss_bytes),
            "{found:?}"
        );
    }
    let burner = sleeps
        .iter()
        .any(|process| process.cpu_ms > 0 || process.command.contains("burn"));
    ensure!(burner, "nobody that works: {again:?}");
    let memory = again.memory.context("no memory is counted")?;
    assert_eq!(memory.limit_bytes, Some(64 << 20));
    ensure!(memory.current_bytes > 0 && memory.peak_bytes >= Some(memory.current_bytes / 2));

    let table = host.cli().run(&["ps", &name])?.ok()?;
    let line = |start: &str| table.stdout.lines().any(|line| line.contains(start));
    ensure!(
        line("├─ cache") && line("├─ shipper") && line("└─ app") && line("   ├─ "),
        "{table}"
    );
    ensure!(line("memory ") && line(" of 64.0 MiB"), "{table}");
    host.remove_app("web")
}

#[test]
fn a_frozen_instance_shows_what_it_holds_and_an_absent_one_is_not_found() -> Result<()> {
    let host = host()?;
    let name = host.cli().pool("web")?.instances[0].name.clone();
    let init = named(&processes(&host, &name)?, "container-init")?.host_pid;
    let (file, freeze, thaw) = freezer(&host, init)?;
    fs::write(&file, freeze)?;
    let answer = until("frozen", SETTLE, || {
        let list = processes(&host, &name)?;
        // Who froze in the middle of an answer still gave it.
        Ok(match list.frozen && list.supervised.is_empty() {
            true => Look::Seen(list),
            false => Look::NotYet(format!("{list:?}")),
        })
    });
    fs::write(&file, thaw)?;
    let frozen = answer?;
    ensure!(frozen.processes.len() >= 2, "{frozen:?}");
    ensure!(named(&frozen, "cache").is_err(), "{frozen:?}");
    let thawed = processes(&host, &name)?;
    ensure!(
        !thawed.frozen && named(&thawed, "cache").is_ok(),
        "{thawed:?}"
    );

    for (unknown, code) in [("web-77", 4), ("nothing", 4)] {
        let answer = host.cli().run(&["processes", unknown])?;
        assert_eq!(answer.code, code, "{answer}");
    }
    host.remove_app("web")
}
