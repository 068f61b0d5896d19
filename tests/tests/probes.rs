//! Probes in service: a real app that stops being ready, hangs, and comes back.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::documents::TaskInstance;
use nodeagent_tests::wait::{Look, until};
use nodeagent_tests::{Image, Manifest, TestHost};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);
const CONFIG: &str = "[discovery.file]\npropagation_bound = \"100ms\"\n";

fn get(path: &str) -> Value {
    json!({
        "httpGet": { "path": path, "port": "http" },
        "periodSeconds": 1,
        "failureThreshold": 2,
    })
}

/// An app whose pages `/ready` and `/alive` can be taken away.
fn app() -> Manifest {
    let script = "touch /www/ready /www/alive; exec httpd -f -p 8080 -h /www";
    Manifest::script("web", script).with("readiness", get("/ready"))
}

fn host_with(manifest: &Manifest) -> Result<TestHost> {
    let host = TestHost::start_with(CONFIG)?;
    host.push(&Image::web()?, "web:1")?;
    host.apply(manifest)?;
    Ok(host)
}

/// A file of the instance's container.
fn inside(host: &TestHost, instance: &TaskInstance, path: &str) -> Result<PathBuf> {
    let tasks = host.containerd.tasks(host.agent.namespace())?;
    let own = format!("{}.", instance.name);
    let (_, pid) = tasks
        .iter()
        .find(|(id, _)| id.starts_with(&own))
        .context("no container of the instance")?;
    Ok(PathBuf::from(format!("/proc/{pid}/root{path}")))
}

#[test]
fn an_app_that_stops_being_ready_leaves_discovery_serves_on_and_comes_back() -> Result<()> {
    let mut host = host_with(&app())?;
    let task = host.cli().activate("web", 1, "in")?;
    let instance = &task.instances[0];
    let ready = inside(&host, instance, "/www/ready")?;
    fs::remove_file(&ready)?;
    let pool = host.wait_for_pool("web", "an unready instance", |pool| {
        pool.instances.iter().any(|i| i.state == "unready")
    })?;
    assert_eq!((pool.active, pool.starting), (0, 1), "{pool:?}");
    let error = pool.instances[0].error.as_ref().context("no reason")?;
    assert_eq!(error.code, "not_ready");
    ensure!(error.detail.contains("404"), "{error:?}");
    assert_eq!(host.discovered()?, Vec::<String>::new());
    host.assert_serves(instance)?;

    // A new agent knows as much and takes nobody in who is not ready.
    host.agent.kill()?;
    host.agent.start(&host.ground)?;
    host.wait_for_pool("web", "the unready instance", |pool| {
        pool.instances.iter().any(|i| i.state == "unready")
    })?;
    assert_eq!(host.discovered()?, Vec::<String>::new());

    fs::write(&ready, "")?;
    let pool = host.wait_for_pool("web", "it in service again", |pool| pool.active == 1)?;
    let again = &pool.instances[0];
    assert_eq!(again.name, instance.name);
    ensure!(again.generation > instance.generation, "{again:?}");
    assert_eq!(host.discovered()?.len(), 1);
    host.remove_app("web")
}

/// Fails unless an instance whose /www/alive is gone is replaced; the end of the agent's log.
fn replaced_when_dead(manifest: &Manifest) -> Result<String> {
    let host = host_with(&manifest.clone().armed(1))?;
    host.wait_for_armed("web", 1)?;
    let task = host.cli().activate("web", 1, "in")?;
    let first = &task.instances[0];
    host.wait_for_armed("web", 1)?;
    fs::remove_file(inside(&host, first, "/www/alive")?)?;
    let pool = host.wait_for_pool("web", "another in service", |pool| {
        let newer = |i: &nodeagent_tests::documents::Instance| {
            i.state == "active" && (i.name != first.name || i.generation > first.generation)
        };
        pool.active == 1 && pool.instances.iter().any(newer)
    })?;
    assert_eq!(pool.target, 1);
    assert_eq!(host.discovered()?.len(), 1);
    let log = host.agent.tail(100);
    host.remove_app("web")?;
    Ok(log)
}

#[test]
fn an_app_that_is_not_alive_is_taken_out_and_another_comes() -> Result<()> {
    let mut liveness = get("/alive");
    liveness["terminationGracePeriodSeconds"] = json!(1);
    let log = replaced_when_dead(&app().with("liveness", liveness))?;
    ensure!(log.contains("not_alive"), "no sentence about it:\n{log}");
    Ok(())
}

#[test]
fn the_startup_probe_holds_readiness_and_bounds_the_start() -> Result<()> {
    let mut startup = get("/started");
    startup["failureThreshold"] = json!(20);
    let script = "touch /www/ready; (sleep 2; touch /www/started) & exec httpd -f -p 8080 -h /www";
    let manifest = Manifest::script("web", script)
        .with("readiness", get("/ready"))
        .with("startup", startup);
    let host = host_with(&manifest)?;
    let task = host.cli().activate("web", 1, "in")?;
    ensure!(
        task.elapsed_ms >= 2000.0,
        "active after {} ms, before it had started",
        task.elapsed_ms
    );
    host.remove_app("web")?;

    let manifest = Manifest::script("web", script).with("startup", get("/never"));
    host.apply(&manifest)?;
    let error = host.cli().activate_in_vain("web", "never", "20s")?;
    assert_eq!(error.code, "not_started", "{error:?}");
    assert_eq!(host.discovered()?, Vec::<String>::new());
    host.remove_app("web")
}

#[test]
fn a_startup_command_runs_inside_and_holds_readiness() -> Result<()> {
    let command = |file: &str| {
        json!({
            "exec": { "command": ["/bin/cat", file] },
            "periodSeconds": 1,
            "failureThreshold": 4,
        })
    };
    let script = "touch /www/ready; (sleep 2; touch /www/started) & exec httpd -f -p 8080 -h /www";
    let manifest = Manifest::script("web", script)
        .with("readiness", get("/ready"))
        .with("startup", command("/www/started"))
        .armed(1);
    let host = host_with(&manifest)?;
    host.wait_for_armed("web", 1)?;
    let task = host.cli().activate("web", 1, "in")?;
    ensure!(
        task.elapsed_ms >= 2000.0,
        "active after {} ms, before it had started",
        task.elapsed_ms
    );
    host.assert_serves(&task.instances[0])?;
    host.remove_app("web")?;

    host.apply(&Manifest::script("web", script).with("startup", command("/www/never")))?;
    let error = host.cli().activate_in_vain("web", "never", "8s")?;
    assert_eq!(error.code, "not_started", "{error:?}");
    assert_eq!(host.discovered()?, Vec::<String>::new());
    host.remove_app("web")
}

fn command(argv: &[&str]) -> Value {
    json!({
        "exec": { "command": argv },
        "periodSeconds": 1,
        "failureThreshold": 2,
    })
}

/// An app whose files `/www/ready` and `/www/alive` can be taken away.
fn files() -> Manifest {
    let script = "touch /www/ready /www/alive; exec httpd -f -p 8080 -h /www";
    Manifest::script("web", script)
}

/// Processes of the host with this argument.
fn with_argument(argument: &str) -> usize {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_it = |process: &fs::DirEntry| {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0)
            .any(|word| word == argument.as_bytes())
    };
    processes.filter(is_it).count()
}

fn process_of(host: &TestHost, instance: &TaskInstance) -> Result<PathBuf> {
    inside(host, instance, "")
}

#[test]
fn a_readiness_command_takes_an_instance_out_and_brings_it_back_without_a_restart() -> Result<()> {
    let mut readiness = command(&["cat", "/www/ready"]);
    readiness["successThreshold"] = json!(2);
    let mut startup = command(&["cat", "/www/alive"]);
    startup["failureThreshold"] = json!(20);
    let manifest = files()
        .with("readiness", readiness)
        .with("startup", startup);
    let mut host = host_with(&manifest)?;
    let task = host.cli().activate("web", 1, "in")?;
    let instance = &task.instances[0];
    let (process, ready) = (
        process_of(&host, instance)?,
        inside(&host, instance, "/www/ready")?,
    );
    fs::remove_file(&ready)?;
    let unready = |pool: &nodeagent_tests::documents::Pool| {
        pool.instances.iter().any(|i| i.state == "unready")
    };
    let pool = host.wait_for_pool("web", "an unready instance", unready)?;
    let error = pool.instances[0].error.as_ref().context("no reason")?;
    assert_eq!(error.code, "not_ready");
    assert_eq!(
        error.detail,
        "the command \"cat\" failed 2 probes in a row: exited with code 1"
    );
    assert_eq!(host.discovered()?, Vec::<String>::new());
    host.assert_serves(instance)?;

    host.agent.kill()?;
    host.agent.start(&host.ground)?;
    host.wait_for_pool("web", "the unready instance", unready)?;
    assert_eq!(host.discovered()?, Vec::<String>::new());

    fs::write(&ready, "")?;
    let pool = host.wait_for_pool("web", "it in service again", |pool| pool.active == 1)?;
    assert_eq!(pool.instances[0].name, instance.name);
    assert_eq!(process_of(&host, instance)?, process, "the same container");
    assert_eq!(host.discovered()?.len(), 1);
    host.remove_app("web")
}

#[test]
fn an_app_that_a_liveness_command_finds_dead_is_replaced() -> Result<()> {
    let mut liveness = command(&["cat", "/www/alive"]);
    liveness["terminationGracePeriodSeconds"] = json!(1);
    let log = replaced_when_dead(&files().with("liveness", liveness))?;
    let told = log.contains("not_alive") && log.contains("exited with code 1");
    ensure!(told, "no sentence about it:\n{log}");
    Ok(())
}

#[test]
fn a_command_that_hangs_is_killed_counts_as_failed_and_leaves_nothing() -> Result<()> {
    let mark = format!("4{}", std::process::id());
    let script = format!("test -e /www/ready || {{ sleep {mark} & sleep {mark}; }}");
    let readiness = command(&["/bin/sh", "-c", &script]);
    let host = host_with(&files().with("readiness", readiness))?;
    let task = host.cli().activate("web", 1, "in")?;
    let instance = &task.instances[0];
    let ready = inside(&host, instance, "/www/ready")?;
    fs::remove_file(&ready)?;
    let hanging = || -> Result<usize> { Ok(with_argument(&mark)) };
    until("a command that hangs", PATIENCE, || {
        Ok(match hanging()? {
            0 => Look::NotYet("none".to_owned()),
            count => Look::Seen(count),
        })
    })?;
    let pool = host.wait_for_pool("web", "an unready instance", |pool| {
        pool.instances.iter().any(|i| i.state == "unready")
    })?;
    let error = pool.instances[0].error.as_ref().context("no reason")?;
    ensure!(
        error
            .detail
            .ends_with("had not ended within 1s and was killed"),
        "{error:?}"
    );
    fs::write(&ready, "")?;
    host.wait_for_pool("web", "it in service again", |pool| pool.active == 1)?;
    until("none of the commands left", PATIENCE, || {
        Ok(match hanging()? {
            0 => Look::Seen(()),
            count => Look::NotYet(format!("{count} left")),
        })
    })?;
    host.assert_serves(instance)?;
    host.remove_app("web")
}

#[test]
fn a_probe_command_that_is_not_there_is_named_in_the_error() -> Result<()> {
    let host = host_with(&files().with("readiness", command(&["/bin/no-such"])))?;
    let missing = "cannot be executed: No such file or directory (os error 2)";
    let error = host.cli().activate_in_vain("web", "missing", "8s")?;
    assert_eq!(error.code, "not_ready", "{error:?}");
    ensure!(error.detail.contains(missing), "{error:?}");
    host.remove_app("web")?;

    host.apply(&files().with("startup", command(&["/bin/no-such"])))?;
    let error = host.cli().activate_in_vain("web", "unstarted", "8s")?;
    assert_eq!(error.code, "not_started", "{error:?}");
    ensure!(error.detail.contains(missing), "{error:?}");
    host.remove_app("web")?;

    host.apply(&files().with("liveness", command(&["no-such"])))?;
    host.cli().activate("web", 1, "in")?;
    until("the log to name the command", PATIENCE, || {
        let log = host.agent.tail(200);
        let named = |line: &str| line.contains("not_alive") && line.contains(missing);
        Ok(match log.lines().any(named) {
            true => Look::Seen(()),
            false => Look::NotYet(log),
        })
    })?;
    host.remove_app("web")
}
