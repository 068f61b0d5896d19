//! An agent that is stopped in the middle of its work, and disks without inodes: what serves goes on
//! serving, what was begun is ended, and nothing is left.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nodeagent_tests::wait::{Look, until};
use nodeagent_tests::{Image, Manifest, TestHost};
use rustix::process::{Pid, Signal, kill_process};

/// Longer than the deadline of every single effect, shorter than a task's.
const STOPPED: Duration = Duration::from_secs(60);
/// A task outlives that.
const CONFIG: &str =
    "[discovery.file]\npropagation_bound = \"100ms\"\n[tasks]\nactivation_deadline = \"150s\"\n";

/// The app `web`, which writes down each of its starts and takes its time to serve.
fn slow(armed: u32) -> Manifest {
    let script = "echo started >>/www/starts; sleep 2; exec httpd -f -p 8080 -h /www";
    Manifest::script("web", script)
        .armed(armed)
        .ready_by_page(30)
}

/// One in service, one at the gate.
fn host() -> Result<TestHost> {
    let host = TestHost::start_with(CONFIG)?;
    host.push(&Image::web()?, "web:1")?;
    host.apply(&slow(1))?;
    host.wait_for_armed("web", 1)?;
    host.cli().activate("web", 1, "first")?;
    host.assert_exactly("web", 1, 1)?;
    Ok(host)
}

/// Begins `activate web --to 2` and does not wait for its end.
fn begin(host: &TestHost) -> Result<()> {
    let second = ["activate", "web", "--to", "2", "--task-id", "second"];
    host.cli().begin(&second, "100ms")
}

fn signal(host: &TestHost, signal: Signal) -> Result<()> {
    let pid = host.agent.pid().context("the agent runs")?;
    let pid = Pid::from_raw(pid.try_into()?).context("a pid")?;
    kill_process(pid, signal).context("signal the agent")
}

#[test]
fn a_task_that_sigterm_interrupts_goes_on_after_the_start_and_starts_nothing_twice() -> Result<()> {
    let mut host = host()?;
    begin(&host)?;
    host.agent.stop()?;
    host.agent.start(&host.ground)?;
    let task = host.cli().activate("web", 2, "second")?;
    ensure!(
        (task.state.as_str(), task.active) == ("done", 2),
        "{task:?}"
    );
    host.assert_exactly("web", 2, 1)?;
    host.remove_app("web")
}

#[test]
fn an_agent_that_was_stopped_for_a_while_ends_its_task_and_disturbs_nobody() -> Result<()> {
    let host = host()?;
    let serving = host.cli().pool("web")?.instances;
    let serving = serving.iter().find(|i| i.state == "active");
    let serving = serving.context("one in service")?;
    begin(&host)?;
    signal(&host, Signal::STOP)?;
    let stopped = Instant::now();
    // Clients are served all the while.
    let served = until("the stop to have lasted", STOPPED * 2, || {
        let starts = host.starts(serving)?;
        ensure!(starts == 1, "{starts} starts");
        Ok(match stopped.elapsed() >= STOPPED {
            true => Look::Seen(()),
            false => Look::NotYet(format!("{:?}", stopped.elapsed())),
        })
    });
    signal(&host, Signal::CONT)?;
    served?;
    let task = host.cli().activate("web", 2, "second")?;
    ensure!(task.state == "done", "{task:?}");
    let pool = host.assert_exactly("web", 2, 1)?;
    let still = pool.instances.iter().find(|i| i.name == serving.name);
    assert_eq!(
        still.map(|i| (i.generation, i.create_generation)),
        Some((serving.generation, serving.create_generation))
    );
    host.remove_app("web")
}

/// Makes files below `directory` until it has no inode for another one.
fn use_up_inodes(directory: &Path) -> Result<PathBuf> {
    let ballast = directory.join("ballast");
    fs::create_dir(&ballast).context("make the ballast")?;
    for n in 0..100_000 {
        if File::create(ballast.join(n.to_string())).is_err() {
            return Ok(ballast);
        }
    }
    anyhow::bail!("inodes do not run out")
}

#[test]
fn a_state_directory_without_inodes_fails_what_is_new_says_so_and_recovers() -> Result<()> {
    let mut host = TestHost::without_agent("[discovery.file]\npropagation_bound = \"100ms\"\n")?;
    let small = host.small_disk_of("small", 64 << 20, 300)?;
    let state = format!("version = 1\n[paths]\nstate = \"{}\"\n", small.display());
    fs::write(host.agent.config().join("30-state.toml"), state)?;
    host.agent.start(&host.ground)?;
    host.push(&Image::web()?, "web:1")?;
    host.apply(&Manifest::web("web"))?;
    host.cli().activate("web", 1, "first")?;

    let ballast = use_up_inodes(&small)?;
    let more = ["activate", "web", "--to", "2", "--task-id", "second"];
    let answer = host
        .cli()
        .json(&[&more[..], &["--deadline", "5s"]].concat())?;
    ensure!([1, 8].contains(&answer.code), "{answer}");
    ensure!(answer.stdout.contains("No space left"), "{answer}");
    // A start without inodes: what serves is found again.
    host.agent.kill()?;
    host.agent.start(&host.ground)?;
    host.wait_for_pool("web", "the first one in service", |pool| pool.active == 1)?;

    fs::remove_dir_all(&ballast).context("remove the ballast")?;
    host.wait_for_pool("web", "the target reached", |pool| pool.active == 2)?;
    assert_eq!(host.discovered()?.len(), 2);
    assert_eq!(host.containers()?.len(), 2);
    host.remove_app("web")
}

/// A runtime that says when it makes a container, and waits as long as the file `hold` exists.
fn held_runtime(host: &TestHost) -> Result<PathBuf> {
    let real = std::env::var("NODEAGENT_TESTS_RUNTIME").unwrap_or_else(|_| "runc".to_owned());
    let directory = host.ground.path("");
    let at = directory.display();
    let wait = format!("echo >>{at}/creates; while [ -e {at}/hold ]; do sleep 0.02; done");
    let script =
        format!("#!/bin/sh\ncase \" $* \" in *' create '*) {wait};; esac\nexec {real} \"$@\"\n");
    let program = host.file("held-runtime", &script)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    Ok(program)
}

#[test]
fn a_create_that_is_cut_off_inside_the_runtime_is_taken_back_and_made_anew() -> Result<()> {
    let mut host = TestHost::without_agent("")?;
    let runtime = held_runtime(&host)?;
    let bound = "[discovery.file]\npropagation_bound = \"100ms\"\n";
    let binary = format!("[runtime]\nbinary = {:?}\n", runtime.display());
    host.start_beside(&format!("{bound}{binary}"))?;
    host.apply(&slow(0))?;
    let hold = host.file("hold", "")?;
    let first = ["activate", "web", "--to", "1", "--task-id", "first"];
    host.cli().begin(&first, "100ms")?;
    let creates = host.ground.path("creates");
    until("the runtime at work", Duration::from_secs(30), || {
        Ok(match creates.exists() {
            true => Look::Seen(()),
            false => Look::NotYet("no create yet".to_owned()),
        })
    })?;
    host.agent.kill()?;
    host.agent.start(&host.ground)?;
    // The next agent asks for the same container, which containerd has not let go of.
    until("the agent to wait", Duration::from_secs(30), || {
        let log = host.agent.tail(50);
        Ok(
            match log.contains("waiting for a create that was cut off") {
                true => Look::Seen(()),
                false => Look::NotYet(log),
            },
        )
    })?;
    fs::remove_file(hold)?;
    let task = host.cli().activate("web", 1, "first")?;
    ensure!(
        (task.state.as_str(), task.active) == ("done", 1),
        "{task:?}"
    );
    // One that had failed would have been replaced by another.
    let pool = host.assert_exactly("web", 1, 0)?;
    ensure!(pool.instances[0].name == "web-0", "{pool:?}");
    let trail = host.cli().trace("first")?;
    let failed: Vec<_> = trail.steps.iter().filter(|s| s.outcome != "ok").collect();
    ensure!(failed.is_empty(), "{failed:?}");
    host.remove_app("web")
}

#[test]
fn an_agent_that_is_stopped_while_it_makes_containers_goes_on_with_each_of_them() -> Result<()> {
    const ROUNDS: usize = 8;
    let mut host = TestHost::start_with("[discovery.file]\npropagation_bound = \"100ms\"\n")?;
    host.warm_web(1)?;
    for round in 0..ROUNDS {
        let id = format!("up-{round}");
        let up = ["activate", "web", "--to", "5", "--task-id", id.as_str()];
        host.cli().begin(&up, "10ms")?;
        let made = 1 + round % 4;
        until("some of the containers", Duration::from_secs(30), || {
            let there = host.containers()?.len();
            Ok(match there > made {
                true => Look::Seen(()),
                false => Look::NotYet(format!("{there} containers")),
            })
        })?;
        host.agent.stop()?;
        host.agent.start(&host.ground)?;
        let task = host.cli().activate("web", 5, &id)?;
        ensure!(
            task.state == "done",
            "round {round}: {task:?}\n{}",
            host.agent.tail(60)
        );
        host.cli().json(&["deactivate", "web", "--to", "0"])?.ok()?;
        host.assert_exactly("web", 0, 1)?;
    }
    host.remove_app("web")
}
