//! containerd down, killed and started again under the agent.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::documents::{Instance, Task};
use nodeagent_tests::wait::{Look, until};
use nodeagent_tests::{Image, Manifest, TestHost};
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn an_agent_without_containerd_is_ready_says_so_and_goes_on_when_it_comes() -> Result<()> {
    let mut host = TestHost::start()?;
    host.push(&Image::web()?, "web:1")?;
    host.apply(&Manifest::web("web"))?;
    host.agent.stop()?;
    host.containerd.stop()?;
    host.agent.start(&host.ground)?;
    let other = Manifest::web("other").text();
    let other = host.file("other.yaml", &other)?;
    let refused = host
        .cli()
        .json(&["app", "apply", "-f", &other.to_string_lossy()])?
        .problem(1)?;
    assert_eq!(
        (refused.code.as_str(), refused.status),
        ("unavailable", 503)
    );
    assert!(refused.detail.contains("containerd"), "{}", refused.detail);

    let cli = host.cli().clone();
    let early =
        thread::spawn(move || cli.json(&["activate", "web", "--to", "1", "--task-id", "early"]));
    host.containerd.start_again(&host.ground)?;
    let early = early
        .join()
        .map_err(|_| anyhow::anyhow!("the caller panicked"))??;
    ensure!(
        early.code == 0,
        "containerd was waited for in vain: {early}"
    );
    let pool = host.wait_for_pool("web", "one active", |pool| pool.active == 1)?;
    assert_eq!(pool.target, 1);
    host.remove_app("web")
}

#[test]
fn a_containerd_that_restarts_is_not_noticed_by_what_serves() -> Result<()> {
    let mut host = TestHost::start()?;
    host.warm_web(1)?;
    let task = host.cli().activate("web", 1, "in")?;
    host.wait_for_armed("web", 1)?;
    let namespace = host.agent.namespace().to_owned();
    let before = host.containerd.tasks(&namespace)?;
    let found = host.discovered()?;
    for kill in [true, false] {
        if kill {
            host.containerd.kill()?;
        } else {
            host.containerd.stop()?;
        }
        host.assert_serves(&task.instances[0])?;
        host.containerd.start_again(&host.ground)?;
        host.wait_for_pool("web", "the same pool", |pool| {
            pool.active == 1 && pool.armed == 1
        })?;
        assert_eq!(host.containerd.tasks(&namespace)?, before);
        assert_eq!(host.discovered()?, found);
    }
    host.remove_app("web")
}

#[test]
fn a_containerd_that_is_killed_in_the_middle_of_a_task_costs_time_and_nothing_else() -> Result<()> {
    let mut host = TestHost::start()?;
    host.push(&Image::web()?, "web:1")?;
    host.apply(&Manifest::web("web"))?;
    let cli = host.cli().clone();
    let cold =
        thread::spawn(move || cli.json(&["activate", "web", "--to", "8", "--task-id", "cold"]));
    // In the middle: something exists, not everything does.
    let namespace = host.agent.namespace().to_owned();
    until("the first container", Duration::from_secs(30), || {
        let containers = host.containerd.containers(&namespace)?;
        Ok(match containers.len() {
            0 => Look::NotYet("none".to_owned()),
            _ => Look::Seen(()),
        })
    })?;
    host.containerd.kill()?;
    host.containerd.start_again(&host.ground)?;

    let cold = cold
        .join()
        .map_err(|_| anyhow::anyhow!("the caller panicked"))??;
    ensure!(
        [0, 1, 8].contains(&cold.code),
        "neither done, failed nor partial: {cold}"
    );
    let task: Task = cold.document(cold.code)?;
    assert_eq!(task.target, 8);
    // Whatever the task could say in time, the target stays and the pool gets there.
    host.wait_for_pool("web", "8 active", |pool| pool.active == 8)?;
    assert_eq!(host.containers()?.len(), 8);
    assert_eq!(host.discovered()?.len(), 8);
    host.remove_app("web")
}

#[test]
fn what_died_while_containerd_was_down_is_replaced_when_it_is_back() -> Result<()> {
    let mut host = TestHost::start()?;
    host.warm_web(1)?;
    let task = host.cli().activate("web", 1, "in")?;
    host.wait_for_armed("web", 1)?;
    let before = &task.instances[0];
    let tasks = host.containerd.tasks(host.agent.namespace())?;
    let own = format!("{}.", before.name);
    let pid = tasks
        .iter()
        .find(|(id, _)| id.starts_with(&own))
        .map(|(_, pid)| *pid);
    let pid = pid.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    let pid = pid.with_context(|| format!("no container of {}", before.name))?;
    host.containerd.kill()?;
    kill_process(pid, Signal::KILL)?;
    host.containerd.start_again(&host.ground)?;
    host.wait_for_pool("web", "another incarnation in service", |pool| {
        let another = |instance: &Instance| {
            instance.state == "active"
                && (instance.name != before.name || instance.generation > before.generation)
        };
        pool.active == 1 && pool.instances.iter().any(another)
    })?;
    assert_eq!(host.discovered()?.len(), 1);
    host.remove_app("web")
}
