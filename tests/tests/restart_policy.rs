//! `restartPolicy` on real containers.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::wait::{Look, until};
use nodeagent_tests::{Image, Manifest, TestHost, http};
use serde_json::json;

/// An app that is in service as soon as it runs, and that ends with the code in `/code` on request.
fn ending(policy: &str) -> Manifest {
    let script = "mkdir -p /www/cgi-bin; \
        printf '#!/bin/sh\\necho \"$QUERY_STRING\" >/code\\n' >/www/cgi-bin/end; \
        chmod +x /www/cgi-bin/end; \
        httpd -p 8080 -h /www; \
        until test -s /code; do sleep 0.1; done; exit $(cat /code)";
    Manifest::script("web", script)
        .ready_by_page(20)
        .with("restartPolicy", json!(policy))
}

fn serving(policy: &str, count: u32) -> Result<TestHost> {
    let host = TestHost::start()?;
    host.push(&Image::web()?, "web:1")?;
    host.apply(&ending(policy))?;
    host.cli().activate("web", count, "up")?;
    Ok(host)
}

/// Asks the app of `web-ORDINAL` to end with this code.
fn end(host: &TestHost, ordinal: u32, code: u32) -> Result<()> {
    let pool = host.cli().pool("web")?;
    let name = format!("web-{ordinal}");
    let instance = pool.instances.iter().find(|i| i.name == name);
    let address = instance.and_then(|i| i.address.clone()).unwrap_or_default();
    let server = format!("{address}:8080").parse()?;
    let page = format!("/cgi-bin/end?{code}");
    // The app may end before its answer is out.
    let _ = http::get(host.ground.netns(), server, &page);
    Ok(())
}

#[test]
fn an_app_that_has_done_its_work_lowers_the_target_and_one_that_failed_is_replaced() -> Result<()> {
    let mut host = serving("OnFailure", 2)?;
    end(&host, 0, 3)?;
    host.wait_for_pool(
        "web",
        "another in the place of the one that failed",
        |pool| {
            let others = pool.instances.iter().filter(|i| i.name != "web-0");
            (
                pool.active,
                pool.target,
                pool.instances.len(),
                others.count(),
            ) == (2, 2, 2, 2)
        },
    )?;
    end(&host, 1, 0)?;
    host.wait_for_pool("web", "one in service, and one wanted", |pool| {
        (pool.active, pool.target, pool.instances.len()) == (1, 1, 1)
    })?;
    ensure!(host.discovered()?.len() == 1);
    // What ends while the agent is away counts as well, and once.
    let tasks = host.containerd.tasks(host.agent.namespace())?;
    let (_, init) = tasks.first_key_value().context("no task")?;
    let gone = Path::new("/proc").join(init.to_string());
    let server = host.discovered()?[0].parse()?;
    host.agent.kill()?;
    // The app may end before its answer is out.
    let _ = http::get(host.ground.netns(), server, "/cgi-bin/end?0");
    until("the container to end", Duration::from_secs(10), || {
        Ok(match gone.exists() {
            true => Look::NotYet("it is there".to_owned()),
            false => Look::Seen(()),
        })
    })?;
    host.agent.start(&host.ground)?;
    let pool = host.wait_for_pool("web", "nothing is left, nothing is wanted", |pool| {
        (pool.active, pool.target, pool.instances.len()) == (0, 0, 0)
    })?;
    let seq = pool.target_seq;
    host.agent.kill()?;
    host.agent.start(&host.ground)?;
    let pool = host.wait_for_pool("web", "the same", |pool| pool.instances.is_empty())?;
    assert_eq!((pool.target, pool.target_seq), (0, seq));
    let again = host.cli().activate("web", 1, "again")?;
    assert_eq!((again.state.as_str(), again.active), ("done", 1));
    host.remove_app("web")
}

#[test]
fn an_app_that_never_comes_again_ends_its_activation_with_the_reason() -> Result<()> {
    let host = TestHost::start()?;
    host.push(&Image::web()?, "web:1")?;
    let never = Manifest::script("web", "exit 3").ready_by_page(20);
    host.apply(&never.with("restartPolicy", json!("Never")))?;
    let answer = host
        .cli()
        .json(&["activate", "web", "--to", "1", "--task-id", "up"])?;
    let task: nodeagent_tests::documents::Task = answer.document(1)?;
    let detail = task.detail.unwrap_or_default();
    assert!(
        detail.contains("exited with code 3; restartPolicy is Never: the target is 0 now"),
        "{detail}"
    );
    let pool = host.wait_for_pool("web", "nothing", |pool| pool.instances.is_empty())?;
    assert_eq!((pool.target, pool.alarm), (0, None));
    let trail = host.cli().trace("up")?;
    let starts = trail
        .steps
        .iter()
        .filter(|step| step.name == "start")
        .count();
    assert_eq!(starts, 1, "{:?}", trail.steps);
    host.remove_app("web")
}
