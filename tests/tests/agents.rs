//! In-container agents: started in order before the app, seen in their logs, and what their end means.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::documents::{Instance, Task};
use nodeagent_tests::wait::{Look, until};
use nodeagent_tests::{Image, Manifest, TestHost};
use serde_json::json;

const CONFIG: &str =
    "[discovery.file]\npropagation_bound = \"100ms\"\n[tasks]\nactivation_deadline = \"20s\"\n";
const LOGS_SETTLE: Duration = Duration::from_secs(20);

fn host_with(manifest: &Manifest) -> Result<TestHost> {
    let host = TestHost::start_with(CONFIG)?;
    host.push(&Image::web()?, "web:1")?;
    host.apply(manifest)?;
    Ok(host)
}

fn shell(script: &str) -> serde_json::Value {
    json!(["/bin/sh", "-c", script])
}

/// A file that the container shows, through its first process.
fn inside(host: &TestHost, path: &str) -> Result<PathBuf> {
    let tasks = host.containerd.tasks(host.agent.namespace())?;
    let pid = tasks.values().next().context("no container runs")?;
    Ok(PathBuf::from(format!("/proc/{pid}/root{path}")))
}

/// Waits until the log of a process of the only container has `text`; returns the log.
fn log_with(host: &TestHost, process: &str, text: &str) -> Result<String> {
    until(
        &format!("{text:?} in the log of {process}"),
        LOGS_SETTLE,
        || {
            let containers = host.containers()?;
            let log = containers.first().map(|id| host.log_text(id, process));
            let log = match log {
                Some(Ok(log)) => log,
                other => return Ok(Look::NotYet(format!("{other:?}"))),
            };
            Ok(if log.contains(text) {
                Look::Seen(log)
            } else {
                Look::NotYet(log)
            })
        },
    )
}

#[test]
fn an_instance_is_armed_when_its_agent_is_ready_and_not_before() -> Result<()> {
    let agent = json!({
        "name": "sidecar",
        "command": shell("echo up; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo gone; exec sleep 1000"),
        "readiness": {
            "exec": { "command": shell("[ -e /tmp/go ]") },
            "periodSeconds": 1,
            "failureThreshold": 60,
        },
    });
    let host = host_with(&Manifest::web("web").armed(1).with("agents", json!([agent])))?;
    log_with(&host, "sidecar", "up")?;
    let pool = host.cli().pool("web")?;
    assert_eq!((pool.arming, pool.armed), (1, 0), "{pool:?}");
    fs::write(inside(&host, "/tmp/go")?, "")?;
    host.wait_for_armed("web", 1)?;
    log_with(&host, "sidecar", "gone")?;
    host.remove_app("web")
}

#[test]
fn agents_start_in_order_before_the_app_with_the_environment_of_both() -> Result<()> {
    let said = "echo $NAME $LEVEL task=$NODEAGENT_TASK_ID >>/tmp/order; echo logged $NAME; ";
    let agent = |name: &str, readiness: serde_json::Value| {
        json!({
            "name": name,
            "command": shell(&format!("{said} touch /tmp/{name}; exec sleep 1000")),
            "env": [{ "name": "NAME", "value": name }],
            "readiness": readiness,
        })
    };
    let written = json!({
        "exec": { "command": shell("[ -e /tmp/first ]") },
        "periodSeconds": 1,
        "failureThreshold": 30,
    });
    let agents = json!([
        agent("first", written),
        agent("second", json!({ "none": {} }))
    ]);
    let serve = "cat /tmp/order >/www/index.html; echo app >>/www/index.html; exec httpd -f -p 8080 -h /www";
    let env = json!([{ "name": "LEVEL", "value": "high" }, { "name": "NAME", "value": "app" }]);
    let manifest = Manifest::script("web", serve).ready_by_page(10);
    let host = host_with(&manifest.armed(1).with("env", env).with("agents", agents))?;
    host.wait_for_armed("web", 1)?;
    for name in ["first", "second"] {
        let log = log_with(&host, name, "logged")?;
        assert_eq!(log, format!("logged {name}\n"));
    }
    let task = host.cli().activate("web", 1, "t-1")?;
    // Agents run before any task.
    assert_eq!(
        host.fetch(&task.instances[0])?.text(),
        "first high task=\nsecond high task=\napp\n"
    );
    host.remove_app("web")
}

#[test]
fn the_end_of_an_essential_agent_takes_its_instance_out_and_another_comes() -> Result<()> {
    let agent = json!({
        "name": "sidecar",
        "command": shell("while [ ! -e /tmp/die ]; do sleep 0.05; done; exit 5"),
    });
    let host = host_with(&Manifest::web("web").armed(1).with("agents", json!([agent])))?;
    host.wait_for_armed("web", 1)?;
    let task = host.cli().activate("web", 1, "in")?;
    let first = task.instances[0].clone();
    let own = format!("{}.", first.name);
    let mut ids = host.containers()?.into_iter();
    let id = ids
        .find(|id| id.starts_with(&own))
        .context("no container")?;
    let pid = host.containerd.tasks(host.agent.namespace())?[&id];
    fs::write(format!("/proc/{pid}/root/tmp/die"), "")?;
    let replaced = |i: &Instance| {
        i.state == "active" && (i.name != first.name || i.generation > first.generation)
    };
    host.wait_for_pool("web", "another in service", |pool| {
        pool.active == 1 && pool.instances.iter().any(replaced)
    })?;
    assert_eq!(host.discovered()?.len(), 1);
    let log = host.agent.tail(200);
    let said = |line: &str| line.contains("ended by itself") && line.contains("sidecar");
    ensure!(
        log.lines().any(said),
        "no sentence about the sidecar:\n{log}"
    );
    host.remove_app("web")
}

#[test]
fn an_essential_agent_that_fails_before_the_gate_is_named_to_who_activates() -> Result<()> {
    let agent = json!({ "name": "sidecar", "command": shell("echo no config >&2; exit 9") });
    let host = host_with(&Manifest::web("web").with("agents", json!([agent])))?;
    let answer = host
        .cli()
        .json(&["activate", "web", "--to", "1", "--task-id", "t"])?;
    let task: Task = answer.document(1)?;
    let error = task.instances[0].error.clone().context("no error")?;
    assert_eq!(error.code, "exited");
    assert_eq!(error.detail, "process \"sidecar\" exited with code 9");
    host.wait_for_pool("web", "an alarm", |pool| pool.alarm.is_some())?;
    host.remove_app("web")
}

#[test]
fn the_end_of_an_optional_agent_leaves_the_app_alone_and_it_comes_again() -> Result<()> {
    let agent = json!({
        "name": "sidecar",
        "command": shell("echo began; while [ ! -e /tmp/die ]; do sleep 0.05; done; rm /tmp/die; exit 5"),
        "essential": false,
    });
    let host = host_with(&Manifest::web("web").with("agents", json!([agent])))?;
    let task = host.cli().activate("web", 1, "in")?;
    log_with(&host, "sidecar", "began")?;
    fs::write(inside(&host, "/tmp/die")?, "")?;
    log_with(&host, "sidecar", "began\nbegan\n")?;
    host.assert_serves(&task.instances[0])?;
    let pool = host.cli().pool("web")?;
    assert_eq!(pool.instances[0].generation, task.instances[0].generation);
    host.remove_app("web")
}

/// `nice`, `oom_score_adj`, directory and soft limit of open files of who says it.
const SAYS: &str =
    "$(cut -d' ' -f19 /proc/self/stat) $(cat /proc/self/oom_score_adj) $PWD $(ulimit -Sn)";

#[test]
fn agents_start_when_those_they_depend_on_are_ready_and_run_as_the_manifest_says() -> Result<()> {
    let agents = json!([
        {
            "name": "shipper",
            "command": shell(&format!("echo shipper {SAYS} >>/tmp/said; echo >&3; exec sleep 1000")),
            "dependsOn": ["cache"],
            "readiness": { "notificationFd": 3, "timeoutSeconds": 10 },
            "nice": 3,
            "oomScoreAdj": 700,
        },
        {
            "name": "cache",
            // Readable only by the time it says that it is ready.
            "command": shell(&format!("sleep 0.3; echo cache {SAYS} >>/tmp/said; echo >&3; exec sleep 1000")),
            "dependsOn": [],
            "readiness": { "notificationFd": 3, "timeoutSeconds": 10 },
            "workingDir": "/bin",
            "nice": -5,
            "ulimits": { "nofile": { "soft": 100, "hard": 200 } },
        },
    ]);
    let serve = format!(
        "cat /tmp/said >/www/index.html; echo app {SAYS} >>/www/index.html; exec httpd -f -p 8080 -h /www"
    );
    let manifest = Manifest::script("web", &serve)
        .ready_by_page(10)
        .with("nice", json!(7))
        .with("oomScoreAdj", json!(400))
        .with("workingDir", json!("/etc"))
        .with("ulimits", json!({ "nofile": { "soft": 50, "hard": 300 } }))
        .with("agents", agents);

    let host = TestHost::start_with(CONFIG)?;
    host.push(&Image::web()?, "web:1")?;
    let file = host.file("web.json", &manifest.text())?;
    let refused = host
        .cli()
        .run(&["app", "apply", "-f", &file.to_string_lossy()])?;
    let said = refused.stderr;
    ensure!(
        refused.code == 3
            && said.contains("spec.agents[1].nice: -5 is not allowed; allowed: on this host 0 to 19; less where security.allowed_capabilities names SYS_NICE"),
        "{said}"
    );
    drop(host);

    let allowed = format!("{CONFIG}[security]\nallowed_capabilities = [\"SYS_NICE\"]\n");
    let host = TestHost::start_with(&allowed)?;
    host.push(&Image::web()?, "web:1")?;
    host.apply(&manifest)?;
    let task = host.cli().activate("web", 1, "in")?;
    let page = host.fetch(&task.instances[0])?.text();
    let own = fs::read_to_string("/proc/self/oom_score_adj")?;
    let lines: Vec<&str> = page.lines().collect();
    let [cache, shipper, app] = lines.as_slice() else {
        anyhow::bail!("three processes were to say something: {page:?}, {own}")
    };
    ensure!(
        cache.starts_with("cache -5 ") && cache.ends_with(" /bin 100"),
        "{page}"
    );
    assert_eq!(*shipper, "shipper 3 700 /etc 50");
    assert_eq!(*app, "app 7 400 /etc 50");
    host.remove_app("web")
}

#[test]
fn an_essential_agent_comes_again_as_often_as_it_may_and_then_its_instance_ends() -> Result<()> {
    let script = "echo began; while [ ! -e /tmp/die ]; do sleep 0.05; done; rm /tmp/die; exit 5";
    let agent = json!({
        "name": "sidecar",
        "command": shell(script),
        "restartPolicy": "OnFailure",
        "maxRestarts": 2,
        "exitCode": 70,
    });
    let host = host_with(&Manifest::web("web").with("agents", json!([agent])))?;
    let task = host.cli().activate("web", 1, "in")?;
    let first = task.instances[0].clone();
    for restarts in 1..=2 {
        log_with(&host, "sidecar", &"began\n".repeat(restarts))?;
        fs::write(inside(&host, "/tmp/die")?, "")?;
    }
    log_with(&host, "sidecar", &"began\n".repeat(3))?;
    host.assert_serves(&first)?;
    let pool = host.cli().pool("web")?;
    assert_eq!(pool.instances[0].generation, first.generation);
    assert_eq!(pool.instances[0].state, "active");

    fs::write(inside(&host, "/tmp/die")?, "")?;
    let replaced = |i: &Instance| {
        i.state == "active" && (i.name != first.name || i.generation > first.generation)
    };
    host.wait_for_pool("web", "another in service", |pool| {
        pool.instances.iter().any(replaced)
    })?;
    let log = host.agent.tail(200);
    let said = |line: &str| line.contains("ended by itself") && line.contains("sidecar");
    ensure!(
        log.lines().any(said),
        "no sentence about the sidecar:\n{log}"
    );
    host.remove_app("web")
}

#[test]
fn an_agent_with_limits_of_its_own_runs_out_of_memory_alone() -> Result<()> {
    let grows = "while [ ! -e /tmp/grow ]; do sleep 0.05; done; rm /tmp/grow; exec tail /dev/zero";
    let agent = json!({
        "name": "greedy",
        "command": shell(&format!("echo began; {grows}")),
        "essential": false,
        "resources": { "limits": { "memory": "16Mi", "cpu": "500m", "pids": 20 } },
    });
    let host = host_with(&Manifest::web("web").with("agents", json!([agent])))?;
    let task = host.cli().activate("web", 1, "in")?;
    log_with(&host, "greedy", "began")?;
    let limit = |process: &str| -> Result<String> {
        // cgroup version 2, and 1.
        let (two, one) = ("memory.max", "memory.limit_in_bytes");
        let file = inside(&host, &format!("/sys/fs/cgroup/p-{process}/{two}"))?;
        let file = match file.exists() {
            true => file,
            false => inside(&host, &format!("/sys/fs/cgroup/memory/p-{process}/{one}"))?,
        };
        fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))
    };
    assert_eq!(limit("greedy")?, format!("{}\n", 16 << 20));
    ensure!(limit("app")? != limit("greedy")?);
    fs::write(inside(&host, "/tmp/grow")?, "")?;
    log_with(&host, "greedy", "began\nbegan\n")?;
    host.assert_serves(&task.instances[0])?;
    let pool = host.cli().pool("web")?;
    assert_eq!(pool.instances[0].generation, task.instances[0].generation);
    host.remove_app("web")
}
