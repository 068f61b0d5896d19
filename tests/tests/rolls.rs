//! Rolling to a new revision: nobody notices but by the new page.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::documents::Pool;
use nodeagent_tests::wait::{Look, until};
use nodeagent_tests::{Image, Manifest, TestHost, http};
use serde_json::json;

/// An app whose page is `page`.
fn paged(page: &str) -> Manifest {
    let script = format!("echo {page} >/www/index.html; exec httpd -f -p 8080 -h /www");
    let manifest = Manifest::script("web", &script).armed(1).ready_by_page(20);
    // At least the longest propagation bound here.
    manifest.with("drainSeconds", json!(5))
}

/// A host with `count` in service that answer `one`.
fn serving(config: &str, count: u32) -> Result<TestHost> {
    let host = TestHost::start_with(config)?;
    host.push(&Image::web()?, "web:1")?;
    host.apply(&paged("one"))?;
    host.wait_for_armed("web", 1)?;
    host.cli().activate("web", count, "up")?;
    Ok(host)
}

const QUICK: &str = "[discovery.file]\npropagation_bound = \"100ms\"\n";

fn in_service(pool: &Pool) -> impl Iterator<Item = &str> {
    let active = pool.instances.iter().filter(|i| i.state == "active");
    active.map(|i| i.revision.as_str())
}

/// Fetches from whatever discovery says until `over`: answers and the pages that were seen.
fn fetch_all_the_while(host: &TestHost, over: &AtomicBool) -> Result<(usize, Vec<String>)> {
    let (mut fetched, mut pages) = (0, Vec::new());
    while !over.load(Ordering::Relaxed) {
        let found = host.discovered()?;
        ensure!(found.len() >= 3, "clients find only {found:?}");
        let target = &found[fetched % found.len()];
        let server = target.parse().with_context(|| format!("parse {target}"))?;
        let answer = http::get(host.ground.netns(), server, "/")
            .with_context(|| format!("fetch number {fetched} of {found:?}"))?;
        ensure!(answer.status == 200, "{target}: {}", answer.status);
        let page = answer.text().trim().to_owned();
        if pages.last() != Some(&page) {
            pages.push(page);
        }
        fetched += 1;
    }
    Ok((fetched, pages))
}

#[test]
fn clients_that_fetch_all_the_while_see_no_failure_during_a_roll() -> Result<()> {
    let host = serving("[discovery.file]\npropagation_bound = \"3s\"\n", 3)?;
    host.apply(&paged("two"))?;
    let over = AtomicBool::new(false);
    let (rolled, clients) = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| fetch_all_the_while(&host, &over)))
            .collect();
        let rolled = host.cli().roll("web", "1", "to-two");
        over.store(true, Ordering::Relaxed);
        (
            rolled,
            clients.into_iter().map(|c| c.join()).collect::<Vec<_>>(),
        )
    });
    let task = rolled?;
    ensure!(
        (task.state.as_str(), task.active) == ("done", 3),
        "{task:?}"
    );
    for client in clients {
        let client = client.map_err(|_| anyhow::anyhow!("a client panicked"))?;
        let (fetched, pages) = client.context("a client saw a failure")?;
        ensure!(fetched > 20, "only {fetched} fetches");
        ensure!(pages.contains(&"one".to_owned()), "{pages:?}");
        ensure!(pages.contains(&"two".to_owned()), "{pages:?}");
    }
    let pool = host.cli().pool("web")?;
    assert!(
        in_service(&pool).all(|revision| revision == pool.revision),
        "{pool:?}"
    );
    let trail = host.cli().trace("to-two")?;
    for step in [
        "intent",
        "start",
        "ready",
        "register",
        "deregister",
        "drain",
        "stop",
        "outcome",
    ] {
        let found = trail
            .steps
            .iter()
            .any(|s| s.name == step && s.outcome == "ok");
        assert!(found, "no {step} in {:?}", trail.steps);
    }
    let again = host.cli().roll("web", "1", "to-two")?;
    assert!(
        again.replayed && again.instances == task.instances,
        "{again:?}"
    );
    host.remove_app("web")
}

#[test]
fn a_roll_whose_new_instance_does_not_become_ready_leaves_the_old_ones_serving() -> Result<()> {
    let host = serving(QUICK, 2)?;
    let found = host.discovered()?;
    // It fails only when it is let go: the gate tells nothing of it.
    host.apply(&Manifest::script("web", "exit 3").armed(1).ready_by_page(5))?;
    let answer = host
        .cli()
        .json(&["roll", "web", "--task-id", "to-broken"])?;
    let task: nodeagent_tests::documents::Task = answer.document(1)?;
    assert_eq!((task.state.as_str(), task.active), ("failed", 2));
    let detail = task.detail.clone().unwrap_or_default();
    assert!(
        detail.starts_with("2 of 2 in service are still of another revision than"),
        "{detail}"
    );
    assert!(
        detail.contains("exit code 3") || detail.contains("code 3"),
        "{detail}"
    );
    assert_eq!(host.discovered()?, found);
    // And it stays so: mended, the next roll does it.
    host.apply(&paged("three"))?;
    let task = host.cli().roll("web", "100%", "mended")?;
    assert_eq!((task.state.as_str(), task.active), ("done", 2));
    host.remove_app("web")
}

#[test]
fn a_roll_is_over_when_another_manifest_is_applied() -> Result<()> {
    let host = serving(QUICK, 2)?;
    host.apply(
        &Manifest::script("web", "sleep 60; httpd -f -p 8080")
            .armed(1)
            .ready_by_page(90),
    )?;
    host.cli().begin(&["roll", "web", "--task-id", "r"], "1s")?;
    host.apply(&paged("other"))?;
    let ended = until("the end of the roll", Duration::from_secs(30), || {
        let answer = host
            .cli()
            .json(&["roll", "web", "--task-id", "r", "--timeout", "0s"])?;
        Ok(match answer.code {
            6 => Look::NotYet(answer.to_string()),
            _ => Look::Seen(answer),
        })
    })?;
    let task: nodeagent_tests::documents::Task = ended.document(5)?;
    assert_eq!(task.state, "superseded");
    let detail = task.detail.unwrap_or_default();
    assert!(detail.contains("was applied meanwhile"), "{detail}");
    host.wait_for_pool("web", "two old ones, as before", |pool| {
        pool.active == 2 && pool.armed == 1 && pool.instances.len() == 3
    })?;
    host.remove_app("web")
}

#[test]
fn a_roll_that_cannot_be_is_refused_and_says_what_is_allowed() -> Result<()> {
    let host = serving(QUICK, 1)?;
    for (arguments, code) in [
        (vec!["roll", "web", "--step", "0"], 2),
        (vec!["roll", "web", "--step", "101%"], 2),
        (vec!["roll", "none"], 4),
        (vec!["roll", "web", "--expect-seq", "99"], 5),
    ] {
        let answer = host.cli().json(&arguments)?;
        ensure!(answer.code == code, "{answer}");
    }
    let socket = host.agent.socket();
    let body = json!({ "to": 3, "step": "0%", "force": true }).to_string();
    let wait = Duration::from_secs(10);
    let (answer, _) =
        http::request_unix(socket, "POST", "/v1/apps/web/roll", body.as_bytes(), wait)?;
    assert_eq!(answer.status, 400);
    for named in [
        "it keeps the target",
        "\\\"1%\\\" to \\\"100%\\\"",
        "a roll drains",
    ] {
        assert!(answer.text().contains(named), "{named}: {}", answer.text());
    }
    host.remove_app("web")
}
