//! Readiness of every kind, on real containers: an activation is answered when the app is ready.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::documents::Task;
use nodeagent_tests::{Image, Manifest, TestHost};
use serde_json::json;

/// An app that is reached only after this much of its own start.
const SLOW: Duration = Duration::from_secs(1);

fn host_with(manifest: &Manifest) -> Result<TestHost> {
    let host = TestHost::start()?;
    host.push(&Image::web()?, "web:1")?;
    host.apply(manifest)?;
    Ok(host)
}

/// Activates one instance, which has to take as long as the app does and not much longer.
fn activated_when_ready(host: &TestHost) -> Result<()> {
    host.wait_for_armed("web", 1)?;
    let task = host.cli().activate("web", 1, "in")?;
    host.assert_serves(&task.instances[0])?;
    let took = Duration::from_secs_f64(task.elapsed_ms / 1000.0);
    ensure!(took >= SLOW, "answered after {took:?}, before it was ready");
    ensure!(
        took < SLOW * 8,
        "answered after {took:?}, long after it was ready"
    );
    Ok(())
}

const SERVE_LATE: &str = "sleep 1; touch /tmp/up; exec httpd -f -p 8080 -h /www";

#[test]
fn an_app_with_exec_readiness_is_active_when_its_command_succeeds() -> Result<()> {
    let script = "sleep 1; httpd -p 8080 -h /www; touch /tmp/up; exec sleep 1000";
    let manifest = Manifest::script("web", script).armed(1).with(
        "readiness",
        json!({
            "exec": { "command": ["/bin/sh", "-c", "[ -e /tmp/up ]"] },
            "periodSeconds": 1,
            "failureThreshold": 30,
        }),
    );
    let host = host_with(&manifest)?;
    activated_when_ready(&host)?;
    host.remove_app("web")
}

#[test]
fn an_app_with_tcp_readiness_is_active_when_its_port_is_open() -> Result<()> {
    let manifest = Manifest::script("web", SERVE_LATE).armed(1).with(
        "readiness",
        json!({ "tcpSocket": { "port": "http" }, "periodSeconds": 1, "failureThreshold": 30 }),
    );
    let host = host_with(&manifest)?;
    activated_when_ready(&host)?;
    host.remove_app("web")
}

#[test]
fn an_agent_with_tcp_readiness_is_looked_for_on_loopback() -> Result<()> {
    let agent = json!({
        "name": "sidecar",
        "command": ["/bin/sh", "-c", "sleep 1; exec httpd -f -p 127.0.0.1:9000 -h /www"],
        "readiness": { "tcpSocket": { "port": 9000 }, "periodSeconds": 1, "failureThreshold": 30 },
    });
    let script = "wget -q -O /tmp/page http://127.0.0.1:9000/ && exec httpd -f -p 8080 -h /www";
    let manifest = Manifest::script("web", script).ready_by_page(10).armed(1);
    let host = host_with(&manifest.with("agents", json!([agent])))?;
    host.wait_for_armed("web", 1)?;
    let task = host.cli().activate("web", 1, "in")?;
    host.assert_serves(&task.instances[0])?;
    host.remove_app("web")
}

#[test]
fn exec_readiness_that_never_succeeds_ends_at_its_bound() -> Result<()> {
    let manifest = Manifest::web("web").armed(1).with(
        "readiness",
        json!({
            "exec": { "command": ["/bin/sh", "-c", "exit 1"] },
            "periodSeconds": 1,
            "failureThreshold": 2,
        }),
    );
    let host = TestHost::start_with(
        "[discovery.file]\npropagation_bound = \"100ms\"\n[tasks]\nactivation_deadline = \"5s\"\n",
    )?;
    host.push(&Image::web()?, "web:1")?;
    host.apply(&manifest)?;
    host.wait_for_armed("web", 1)?;
    let answer = host
        .cli()
        .json(&["activate", "web", "--to", "1", "--task-id", "t"])?;
    let task: Task = answer.document(1)?;
    let error = task.instances[0].error.clone().context("no error")?;
    assert_eq!(error.code, "not_ready", "{error:?}");
    assert_eq!(host.discovered()?, Vec::<String>::new());
    host.remove_app("web")
}
