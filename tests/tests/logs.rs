//! What an app wrote, as `nodeagent logs` shows it: from the end, followed, and of large logs.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::wait::{Look, until};
use nodeagent_tests::{Image, Manifest, TestHost, cli};

/// `nodeagent logs ARGUMENTS` under way.
fn begin(host: &TestHost, arguments: &[&str]) -> Result<std::process::Child> {
    Command::new(cli::nodeagent()?)
        .arg("logs")
        .args(arguments)
        .env("NODEAGENT_SOCKET", host.agent.socket())
        .stdout(Stdio::piped())
        .spawn()
        .context("run nodeagent logs")
}

#[test]
fn a_log_is_shown_followed_and_ends_with_its_instance() -> Result<()> {
    let host = TestHost::start()?;
    host.push(&Image::web()?, "web:1")?;
    let script = "echo one; echo two; echo three >&2; mkdir -p /www; echo hello >/www/index.html; \
                  httpd -p 8080 -h /www; i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.2; done";
    host.apply(&Manifest::script("web", script).armed(1).ready_by_page(10))?;
    host.wait_for_armed("web", 1)?;
    // Nothing was written yet.
    let early = host.cli().run(&["logs", "web-0"])?.ok()?;
    assert_eq!(early.stdout, "");
    let task = host.cli().activate("web", 1, "in")?;
    let instance = task.instances[0].name.clone();

    let whole = host.cli().run(&["logs", &instance])?.ok()?.stdout;
    ensure!(whole.starts_with("one\ntwo\nthree\n"), "{whole}");
    let old = host
        .cli()
        .run(&["logs", &instance, "--since", "1h", "--tail", "1"])?;
    assert_eq!(old.ok()?.stdout.lines().count(), 1);
    let none = host
        .cli()
        .json(&["logs", &instance, "nobody"])?
        .problem(4)?;
    ensure!(none.detail.contains("there are: app"), "{}", none.detail);
    host.cli().json(&["logs", "web-77"])?.problem(4)?;

    let mut follower = begin(&host, &["-f", &instance, "--tail", "0"])?;
    let mut lines = BufReader::new(follower.stdout.take().context("no stdout")?).lines();
    for _ in 0..5 {
        let line = lines.next().context("the follower ended")??;
        ensure!(line.starts_with("tick "), "{line:?}");
    }
    let rest = thread::spawn(move || lines.count());
    host.remove_app("web")?;
    let status = until(
        "the follower to end with the instance",
        Duration::from_secs(20),
        || {
            Ok(match follower.try_wait()? {
                Some(status) => Look::Seen(status),
                None => Look::NotYet("it runs".to_owned()),
            })
        },
    );
    if status.is_err() {
        follower.kill()?;
        follower.wait()?;
    }
    ensure!(status?.success(), "the follower failed");
    rest.join()
        .map_err(|_| anyhow::anyhow!("the reader panicked"))?;
    Ok(())
}

#[test]
fn a_large_log_is_read_by_a_slow_reader_without_growing_the_agent() -> Result<()> {
    let host = TestHost::start()?;
    host.push(&Image::web()?, "web:1")?;
    let script = "yes 0123456789012345678901234567890123456789012345678901234567890 | head -c 60000000; \
                  mkdir -p /www; echo hello >/www/index.html; exec httpd -f -p 8080 -h /www";
    host.apply(&Manifest::script("web", script).armed(1).ready_by_page(30))?;
    host.wait_for_armed("web", 1)?;
    host.cli().activate("web", 1, "in")?;
    let pid = host.agent.pid().context("no agent")?;
    let resident = || -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.context("no VmRSS")?.parse()?)
    };
    let before = resident()?;
    let mut reader = begin(&host, &["web-0"])?;
    let mut out = reader.stdout.take().context("no stdout")?;
    let mut piece = [0; 65536];
    out.read_exact(&mut piece)?;
    // The reader has stopped, 60 MB are still to come.
    ensure!(
        resident()? < before + 4096,
        "{before} KiB became {} KiB",
        resident()?
    );
    let rest = std::io::copy(&mut out, &mut std::io::sink())?;
    ensure!(reader.wait()?.success(), "the reader failed");
    assert_eq!(rest + 65536, 60_000_000);
    host.remove_app("web")
}
