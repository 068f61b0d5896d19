//! Apps that misbehave: a clear answer, and everything of them gone when they are.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nodeagent_tests::documents::{Task, TaskInstance};
use nodeagent_tests::wait::{Look, until};
use nodeagent_tests::{Image, Manifest, TestHost};
use serde_json::json;

const CONFIG: &str =
    "[discovery.file]\npropagation_bound = \"100ms\"\n[tasks]\nactivation_deadline = \"20s\"\n";

fn host_with(manifest: &Manifest) -> Result<TestHost> {
    let host = TestHost::start_with(CONFIG)?;
    host.push(&Image::web()?, "web:1")?;
    host.apply(manifest)?;
    Ok(host)
}

/// The only instance of an activation that has to fail.
fn failing(host: &TestHost, task: &str) -> Result<TaskInstance> {
    let answer = host
        .cli()
        .json(&["activate", "web", "--to", "1", "--task-id", task])?;
    let task: Task = answer.document(1)?;
    ensure!(task.state == "failed" && task.active == 0, "{task:?}");
    task.instances
        .into_iter()
        .next()
        .context("no instance was chosen")
}

#[test]
fn an_app_that_exits_at_once_is_said_with_its_exit_code_and_never_registered() -> Result<()> {
    let host = host_with(&Manifest::script("web", "exit 7").armed(1).ready_by_page(5))?;
    host.wait_for_armed("web", 1)?;
    let instance = failing(&host, "t")?;
    let error = instance.error.context("no error")?;
    assert!(error.detail.contains('7'), "{error:?}");
    assert_eq!(host.discovered()?, Vec::<String>::new());
    host.remove_app("web")
}

#[test]
fn a_program_that_is_not_in_the_image_is_named() -> Result<()> {
    let manifest = Manifest::new("web", "web:1").with("command", json!(["/bin/nothing"]));
    let host = host_with(&manifest.armed(1).ready_by_page(5))?;
    host.wait_for_armed("web", 1)?;
    let error = failing(&host, "t")?.error.context("no error")?;
    assert!(error.detail.contains("127"), "{error:?}");
    host.remove_app("web")
}

#[test]
fn an_app_that_never_becomes_ready_is_given_up_at_its_deadline_and_never_registered() -> Result<()>
{
    let host = host_with(
        &Manifest::script("web", "exec sleep 1000")
            .armed(1)
            .ready_by_page(2),
    )?;
    host.wait_for_armed("web", 1)?;
    let instance = failing(&host, "t")?;
    let error = instance.error.context("no error")?;
    assert_eq!(error.code, "not_ready", "{error:?}");
    assert_eq!(host.discovered()?, Vec::<String>::new());
    host.remove_app("web")
}

#[test]
fn an_app_that_ignores_term_is_killed_when_its_grace_is_over() -> Result<()> {
    let script = "trap '' TERM; httpd -p 8080 -h /www; while true; do sleep 1; done";
    let host = host_with(&Manifest::script("web", script).armed(1).ready_by_page(5))?;
    host.wait_for_armed("web", 1)?;
    host.cli().activate("web", 1, "in")?;
    let start = Instant::now();
    let task = host.cli().deactivate("web", 0, "out")?;
    assert_eq!((task.state.as_str(), task.active), ("done", 0));
    let took = start.elapsed();
    ensure!(
        took >= Duration::from_secs(3),
        "killed within its grace, after {took:?}"
    );
    ensure!(
        took < Duration::from_secs(15),
        "stopped after {took:?} only"
    );
    host.remove_app("web")
}

#[test]
fn an_active_app_that_dies_is_taken_out_and_started_again() -> Result<()> {
    let script = "httpd -p 8080 -h /www; while [ ! -e /tmp/die ]; do sleep 0.1; done; exit 3";
    let host = host_with(&Manifest::script("web", script).armed(1).ready_by_page(5))?;
    host.wait_for_armed("web", 1)?;
    let task = host.cli().activate("web", 1, "in")?;
    let first = &task.instances[0];
    let namespace = host.agent.namespace().to_owned();
    let pids = host.containerd.tasks(&namespace)?;
    let container = pids
        .keys()
        .find(|id| id.starts_with(&format!("{}.", first.name)));
    let pid = pids[container.context("no container of the instance")?];
    std::fs::write(format!("/proc/{pid}/root/tmp/die"), "")?;
    let again = host.wait_for_pool("web", "a new generation in service", |pool| {
        let started_again = |i: &nodeagent_tests::documents::Instance| {
            i.state == "active" && (i.name != first.name || i.generation > first.generation)
        };
        pool.active == 1 && pool.instances.iter().any(started_again)
    })?;
    assert_eq!(host.discovered()?.len(), 1);
    let target = again.target;
    assert_eq!(target, 1, "a death moved the target");
    host.remove_app("web")
}

#[test]
fn a_container_that_runs_out_of_memory_is_its_own_problem() -> Result<()> {
    let script = "httpd -p 8080 -h /www; while [ ! -e /tmp/eat ]; do sleep 0.1; done; x=x; while true; do x=$x$x; done";
    let limits = json!({ "limits": { "memory": "32Mi", "pids": 32 } });
    let manifest = Manifest::script("web", script).armed(1).ready_by_page(5);
    let host = host_with(&manifest.with("resources", limits))?;
    host.wait_for_armed("web", 1)?;
    let task = host.cli().activate("web", 1, "in")?;
    let namespace = host.agent.namespace().to_owned();
    let tasks = host.containerd.tasks(&namespace)?;
    let own = format!("{}.", task.instances[0].name);
    let (_, pid) = tasks
        .iter()
        .find(|(id, _)| id.starts_with(&own))
        .context("no container")?;
    std::fs::write(format!("/proc/{pid}/root/tmp/eat"), "")?;
    until(
        "the instance to be replaced",
        Duration::from_secs(30),
        || {
            let pool = host.cli().pool("web")?;
            let newer = pool.instances.iter().any(|instance| {
                instance.state == "active"
                    && (instance.name != task.instances[0].name
                        || instance.generation > task.instances[0].generation)
            });
            Ok(if newer {
                Look::Seen(())
            } else {
                Look::NotYet(format!("{pool:?}"))
            })
        },
    )?;
    host.remove_app("web")
}
