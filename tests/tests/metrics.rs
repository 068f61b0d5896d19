//! `/metrics` of the real agent: strictly the format, and what happened is in it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::{TestHost, http};

#[test]
fn an_activation_is_counted_once_with_its_warmth_its_steps_and_its_time() -> Result<()> {
    let host = TestHost::start()?;
    host.warm_web(2)?;
    host.cli().activate("web", 2, "peak-7")?;
    let page = host.agent.metrics()?;
    let value = |metric: &str, labels: &[(&str, &str)]| {
        page.value(metric, labels)
            .with_context(|| format!("{metric} {labels:?} is missing"))
    };
    let armed = [("from", "armed"), ("outcome", "ok")];
    assert_eq!(value("nodeagent_activations_total", &armed)?, 2.0);
    let times = "nodeagent_activation_duration_seconds";
    assert_eq!(value(&format!("{times}_count"), &[("from", "armed")])?, 2.0);
    let sum = value(&format!("{times}_sum"), &[("from", "armed")])?;
    ensure!(sum > 0.0 && sum < 60.0, "two activations took {sum} s");
    for step in ["start", "ready", "register"] {
        let labels = [("step", step), ("outcome", "ok")];
        assert_eq!(
            value("nodeagent_step_duration_seconds_count", &labels)?,
            2.0,
            "{step}"
        );
    }
    assert_eq!(
        value(
            "nodeagent_instances",
            &[("app", "web"), ("state", "active")]
        )?,
        2.0
    );
    assert_eq!(value("nodeagent_target_instances", &[("app", "web")])?, 2.0);
    assert_eq!(value("nodeagent_containerd_up", &[])?, 1.0);
    let refilled = value("nodeagent_refill_total", &[("outcome", "ok")])?;
    ensure!(
        refilled >= 2.0,
        "{refilled} instances were made for the warm target"
    );
    let records = value("nodeagent_discovery_records_total", &[("backend", "file")])?;
    assert_eq!(records, 2.0);
    let sessions = value("nodeagent_gate_sessions", &[])?;
    ensure!(sessions >= 2.0, "{sessions} sessions");
    let commits = value(
        "nodeagent_journal_commit_duration_seconds_count",
        &[("outcome", "ok")],
    )?;
    ensure!(commits >= 2.0, "{commits} commits");
    for (metric, least) in [
        ("process_resident_memory_bytes", 1e6),
        ("process_open_fds", 5.0),
        ("process_start_time_seconds", 1e9),
    ] {
        let found = value(metric, &[])?;
        ensure!(found >= least, "{metric} is {found}");
    }
    host.remove_app("web")
}

#[test]
fn requests_are_counted_by_route_and_not_by_path() -> Result<()> {
    let host = TestHost::start()?;
    for path in ["/v1/tasks/a-1", "/v1/tasks/a-2", "/nowhere/1", "/nowhere/2"] {
        http::request_unix(
            host.agent.socket(),
            "GET",
            path,
            &[],
            Duration::from_secs(10),
        )?;
    }
    let page = host.agent.metrics()?;
    let requests = |route: &str, method: &str| {
        let labels = [("code", "404"), ("method", method), ("route", route)];
        page.value("nodeagent_api_requests_total", &labels)
    };
    assert_eq!(requests("/v1/tasks/{id}", "GET"), Some(2.0));
    assert_eq!(requests("none", "none"), Some(2.0));
    Ok(())
}

#[test]
fn a_dead_containerd_is_down_in_the_metrics_and_the_answer_comes_in_time() -> Result<()> {
    let mut host = TestHost::start()?;
    host.containerd.kill()?;
    let page = host.agent.metrics()?;
    assert_eq!(page.value("nodeagent_containerd_up", &[]), Some(0.0));
    host.containerd.start_again(&host.ground)
}
