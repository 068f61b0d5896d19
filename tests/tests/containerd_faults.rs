//! containerd down, killed and started again under the agent.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::documents::{Instance, Task};
use nodeagent_tests::wait::{Look, until};
use nodeagent_tests::{Image, Manifest, TestHost, leaks};
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
fn a_containerd_that_is_killed_in_a_burst_of_cold_activations_costs_time_and_nothing_else()
-> Result<()> {
    const APPS: [&str; 3] = ["web", "shop", "mail"];
    const EACH: u32 = 4;
    let mut host = TestHost::start()?;
    host.push(&Image::web()?, "web:1")?;
    for app in APPS {
        host.apply(&Manifest::new(app, "web:1").ready_by_page(10))?;
    }
    let burst = APPS.map(|app| {
        let cli = host.cli().clone();
        let to = EACH.to_string();
        thread::spawn(move || cli.json(&["activate", app, "--to", &to, "--task-id", app]))
    });
    // In the middle, twice: something exists, not everything does.
    let namespace = host.agent.namespace().to_owned();
    for some in [1, 5] {
        let what = format!("{some} containers");
        until(&what, Duration::from_secs(60), || {
            let containers = host.containerd.containers(&namespace)?;
            Ok(if containers.len() < some {
                Look::NotYet(format!("{containers:?}"))
            } else {
                Look::Seen(())
            })
        })?;
        host.containerd.kill()?;
        host.containerd.start_again(&host.ground)?;
    }
    for answer in burst {
        let answer = answer
            .join()
            .map_err(|_| anyhow::anyhow!("the caller panicked"))??;
        ensure!(
            [0, 1, 8].contains(&answer.code),
            "neither done, failed nor partial: {answer}"
        );
        let task: Task = answer.document(answer.code)?;
        assert_eq!(task.target, EACH);
    }
    // Whatever the tasks could say in time, the targets stay and the pools get there.
    for app in APPS {
        host.wait_for_pool(app, "all active", |pool| pool.active == EACH)?;
    }
    let all = EACH as usize * APPS.len();
    assert_eq!(host.discovered()?.len(), all);
    until(
        "one of each for each instance",
        Duration::from_secs(15),
        || {
            let there = leaks::look(&host.ground, &host.containerd, &host.agent)?;
            let kinds = [
                "containers",
                "tasks",
                "shims",
                "snapshots",
                "netns",
                "links",
            ];
            let right = kinds.iter().all(|kind| there.of(kind).len() == all);
            Ok(if right && there.of("leases").is_empty() {
                Look::Seen(())
            } else {
                Look::NotYet(there.to_string())
            })
        },
    )?;
    for app in APPS {
        host.remove_app_only(app)?;
    }
    host.assert_nothing_left()
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

#[test]
fn how_an_app_ended_is_known_although_agent_and_containerd_were_away() -> Result<()> {
    let mut host = TestHost::start()?;
    host.push(&Image::web()?, "web:1")?;
    let script = "trap 'exit 7' TERM; httpd -p 8080 -h /www; while :; do sleep 1 & wait; done";
    host.apply(&Manifest::script("web", script).ready_by_page(10))?;
    host.cli().activate("web", 1, "in")?;
    let tasks = host.containerd.tasks(host.agent.namespace())?;
    let (container, init) = tasks.first_key_value().context("no task")?;
    let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children"))?;
    let app = children.split_whitespace().next().context("no app")?;
    let app = Pid::from_raw(app.parse()?).context("no pid")?;
    host.agent.kill()?;
    host.containerd.kill()?;
    kill_process(app, Signal::TERM)?;
    let gone = Path::new("/proc").join(init.to_string());
    until("the container to end", Duration::from_secs(10), || {
        Ok(if gone.exists() {
            Look::NotYet("it is there".to_owned())
        } else {
            Look::Seen(())
        })
    })?;
    host.containerd.start_again(&host.ground)?;
    host.agent.start(&host.ground)?;
    host.wait_for_pool("web", "another one active", |pool| {
        let another = |instance: &Instance| instance.state == "active";
        pool.active == 1 && pool.instances.iter().any(another)
    })?;
    let log = host.agent.tail(100);
    let said = log
        .lines()
        .find(|line| line.contains("ended while the agent was away"))
        .with_context(|| log.clone())?;
    for part in [container.as_str(), "exited with code 7"] {
        ensure!(said.contains(part), "no {part:?} in {said}");
    }
    host.remove_app("web")
}
