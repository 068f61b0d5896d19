//! Restarts in place: the same container, address and files, and nothing of the process before.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::documents::{Pool, Task};
use nodeagent_tests::wait::{Look, until};
use nodeagent_tests::{Image, Manifest, TestHost};
use serde_json::json;

const CONFIG: &str = "[discovery.file]\npropagation_bound = \"500ms\"\n";
/// Longest wait for what should come at once.
const SOON: Duration = Duration::from_secs(20);

/// An app whose page tells how often it was started in this rootfs, how many processes of an earlier
/// start it found, and whether it found what that left in /tmp. It leaves all of it.
const TELLING: &str = "page=/www/index.html; [ -e /www/mine ] || { touch /www/mine; : >$page; }
echo \"started $(pidof sleep | wc -w) $(ls /tmp | wc -l)\" >>$page
mkdir -p /tmp/a/b; touch /tmp/a/b/left /dev/shm/left
for n in 1 2 3; do setsid sh -c 'trap \"\" TERM; exec sleep 1234' & done
exec httpd -f -p 8080 -h /www";

fn host_with(manifest: &Manifest) -> Result<TestHost> {
    let host = TestHost::start_with(CONFIG)?;
    host.push(&Image::web()?, "web:1")?;
    host.apply(manifest)?;
    Ok(host)
}

fn restart(host: &TestHost, words: &[&str]) -> Result<Task> {
    let all = [&["restart", "web-0", "--strategy", "reuse"], words].concat();
    host.cli().json(&all)?.document(0)
}

fn only(pool: &Pool) -> Result<&nodeagent_tests::documents::Instance> {
    pool.instances.first().context("no instance")
}

#[test]
fn an_app_is_started_again_in_its_container_and_nothing_of_it_survives() -> Result<()> {
    let host = host_with(&Manifest::script("web", TELLING).ready_by_page(20))?;
    let up = host.cli().activate("web", 1, "up")?;
    let (before, container) = (up.instances[0].clone(), host.containers()?);
    let found = host.discovered()?;
    ensure!(host.fetch(&before)?.text() == "started 0 0\n");

    let over = AtomicBool::new(false);
    let (task, withdrawn) = std::thread::scope(|scope| {
        let look = scope.spawn(|| {
            let mut withdrawn = false;
            while !over.load(Ordering::Relaxed) {
                withdrawn |= host.discovered()?.is_empty();
            }
            anyhow::Ok(withdrawn)
        });
        let task = restart(&host, &["--task-id", "again"]);
        over.store(true, Ordering::Relaxed);
        (task, look.join())
    });
    let task = task?;
    let withdrawn = withdrawn.map_err(|_| anyhow::anyhow!("the look panicked"))??;
    ensure!(withdrawn, "clients found it all the while");
    ensure!(
        (task.state.as_str(), task.active) == ("done", 1),
        "{task:?}"
    );
    let after = &task.instances[0];
    assert_eq!(
        (&after.name, &after.address, after.port),
        (&before.name, &before.address, before.port)
    );
    assert_eq!(after.generation, before.generation + 1);
    assert_eq!(host.containers()?, container);
    assert_eq!(host.discovered()?, found);
    // The second start found the file of the first, and neither its processes nor its /tmp.
    assert_eq!(host.fetch(after)?.text(), "started 0 0\nstarted 0 0\n");

    let trail = host.cli().trace("again")?;
    let steps: Vec<&str> = trail.steps.iter().map(|s| s.name.as_str()).collect();
    for step in ["deregister", "drain", "restart", "ready", "register"] {
        ensure!(steps.contains(&step), "no {step} in {steps:?}");
    }

    let again = restart(&host, &["--task-id", "again"])?;
    ensure!(
        again.replayed && again.instances == task.instances,
        "{again:?}"
    );
    assert_eq!(host.fetch(after)?.text(), "started 0 0\nstarted 0 0\n");
    host.remove_app("web")
}

#[test]
fn an_agent_is_started_again_and_the_app_does_not_notice() -> Result<()> {
    let shell = |script: &str| json!(["/bin/sh", "-c", script]);
    let agents = json!([
        { "name": "log", "command": shell("echo began >>/www/log; exec tail -f /dev/null") },
        { "name": "other", "command": shell("echo began >>/www/other; exec tail -f /dev/null") },
    ]);
    let manifest = Manifest::script("web", TELLING).ready_by_page(20);
    let host = host_with(&manifest.with("agents", agents))?;
    let up = host.cli().activate("web", 1, "up")?;
    let serving = only(&host.cli().pool("web")?)?.clone();
    let pid = *host
        .containerd
        .tasks(host.agent.namespace())?
        .values()
        .next()
        .context("no container runs")?;
    let said = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/root/www/{file}"));
    let wait_for = |file: &str, text: &str| {
        until(&format!("{text:?} in {file}"), SOON, || {
            let said = said(file).unwrap_or_default();
            Ok(match said == text {
                true => Look::Seen(()),
                false => Look::NotYet(format!("{said:?}")),
            })
        })
    };
    wait_for("log", "began\n")?;
    wait_for("other", "began\n")?;

    let words = ["--process", "log", "--task-id", "log-again"];
    let task = restart(&host, &words)?;
    assert_eq!(task.state, "done", "{task:?}");
    wait_for("log", "began\nbegan\n")?;
    assert_eq!(said("other")?, "began\n");
    let now = only(&host.cli().pool("web")?)?.clone();
    assert_eq!(
        (&now.state, now.generation, now.create_generation),
        (
            &serving.state,
            serving.generation,
            serving.create_generation
        )
    );
    assert_eq!(host.fetch(&up.instances[0])?.text(), "started 0 0\n");
    ensure!(restart(&host, &words)?.replayed);
    assert_eq!(said("log")?, "began\nbegan\n");
    let trail = host.cli().trace("log-again")?;
    let steps: Vec<&str> = trail.steps.iter().map(|s| s.name.as_str()).collect();
    ensure!(steps.contains(&"restart-agent"), "{steps:?}");
    ensure!(!steps.contains(&"deregister"), "{steps:?}");
    host.remove_app("web")
}

#[test]
fn an_app_that_does_not_come_again_is_told_of_and_replaced() -> Result<()> {
    let once = "[ -e /www/once ] && exit 7; touch /www/once; exec httpd -f -p 8080 -h /www";
    let host = host_with(&Manifest::script("web", once).ready_by_page(20))?;
    host.cli().activate("web", 1, "up")?;
    let words = ["restart", "web-0", "--strategy", "reuse", "--force"];
    let answer = host.cli().json(&words)?;
    let task: Task = answer.document(1)?;
    assert_eq!(task.state, "failed");
    let detail = task.detail.unwrap_or_default();
    ensure!(detail.contains("exited with code 7"), "{detail}");
    host.wait_for_pool("web", "another in its place", |pool| pool.active == 1)?;
    host.remove_app("web")
}

#[test]
fn what_cannot_be_restarted_is_refused_with_what_is_true() -> Result<()> {
    let manifest = Manifest::script("web", TELLING).armed(1).ready_by_page(20);
    let host = host_with(&manifest)?;
    host.wait_for_armed("web", 1)?;
    let refused = |words: &[&str], code: i32, said: &str| {
        let answer = host
            .cli()
            .run(&[&["restart"], words, &["--strategy", "reuse"]].concat())?;
        let told = format!("{}{}", answer.stdout, answer.stderr);
        ensure!(answer.code == code && told.contains(said), "{answer}");
        Ok(())
    };
    refused(&["web-0"], 5, "web-0 is armed: its app was not started yet")?;
    host.cli().activate("web", 1, "up")?;
    host.wait_for_armed("web", 1)?;
    refused(&["web-7"], 4, "there are web-0, web-1")?;
    refused(&["none-0"], 4, "none")?;
    refused(&["web"], 4, "no instance is named \"web\"")?;
    refused(
        &["web-0", "--process", "log"],
        4,
        "web-0 has no process \"log\"; it has app and no in-container agents",
    )?;
    refused(&["web-0", "--expect-seq", "99"], 5, "99")?;
    let answer = host
        .cli()
        .run(&["restart", "web-0", "--strategy", "rebuild"])?;
    ensure!(
        answer.code == 2 && answer.stderr.contains("possible values: reuse"),
        "{answer}"
    );
    let env = json!([{ "name": "OTHER", "value": "1" }]);
    host.apply(
        &Manifest::script("web", TELLING)
            .armed(1)
            .ready_by_page(20)
            .with("env", env),
    )?;
    refused(&["web-0"], 5, "nodeagent roll web does that")?;
    host.remove_app("web")
}
