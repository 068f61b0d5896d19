//! What processes wrote, as `nodeagent logs` shows it: by stream and time, from the end, followed
//! across rotation and beside an agent that is killed, and of large logs.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::wait::{Look, until};
use nodeagent_tests::{Image, Manifest, TestHost, cli, cri};

/// Longest wait for what should come at once.
const SOON: Duration = Duration::from_secs(20);

/// `nodeagent logs ARGUMENTS` under way.
fn begin(host: &TestHost, arguments: &[&str]) -> Result<Child> {
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

    until("the first lines", SOON, || {
        let whole = host.cli().run(&["logs", &instance])?.ok()?.stdout;
        Ok(match whole.starts_with("one\ntwo\nthree\n") {
            true => Look::Seen(()),
            false => Look::NotYet(whole),
        })
    })?;
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
    let status = until("the follower to end with the instance", SOON, || {
        Ok(match follower.try_wait()? {
            Some(status) => Look::Seen(status),
            None => Look::NotYet("it runs".to_owned()),
        })
    });
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
    // The log has 100 MB: each line comes with 40 bytes about it.
    let config = "[discovery.file]\npropagation_bound = \"100ms\"\n[logs]\nmax_size = \"200Mi\"\n";
    let host = TestHost::start_with(config)?;
    host.push(&Image::web()?, "web:1")?;
    let script = "yes 0123456789012345678901234567890123456789012345678901234567890 | head -c 59999942; \
                  mkdir -p /www; echo hello >/www/index.html; exec httpd -f -p 8080 -h /www";
    host.apply(&Manifest::script("web", script).armed(1).ready_by_page(30))?;
    host.wait_for_armed("web", 1)?;
    host.cli().activate("web", 1, "in")?;
    // The agent has nothing else to do: the next one is at the gate.
    host.wait_for_armed("web", 1)?;
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
    assert_eq!(rest + 65536, 59_999_942);
    host.remove_app("web")
}

/// A host with one instance in service whose app is this script.
fn host_with(config: &str, script: &str) -> Result<(TestHost, String)> {
    let config = format!("[discovery.file]\npropagation_bound = \"100ms\"\n{config}");
    let host = TestHost::start_with(&config)?;
    host.push(&Image::web()?, "web:1")?;
    let script = format!(
        "mkdir -p /www; echo hello >/www/index.html; httpd -p 8080 -h /www; {script}; \
         exec tail -f /dev/null"
    );
    host.apply(&Manifest::script("web", &script).armed(1).ready_by_page(30))?;
    host.wait_for_armed("web", 1)?;
    let task = host.cli().activate("web", 1, "in")?;
    let name = task.instances[0].name.clone();
    Ok((host, name))
}

fn logs(host: &TestHost, arguments: &[&str]) -> Result<String> {
    let all = [&["logs"], arguments].concat();
    Ok(host.cli().run(&all)?.ok()?.stdout)
}

/// Waits until the log has this line.
fn wait_for_line(host: &TestHost, instance: &str, line: &str) -> Result<()> {
    until(&format!("{line:?} in the log"), SOON, || {
        let end = logs(host, &[instance, "--tail", "3"])?;
        Ok(match end.lines().any(|told| told == line) {
            true => Look::Seen(()),
            false => Look::NotYet(end),
        })
    })
}

#[test]
fn lines_are_chosen_by_stream_and_time_and_plain_text_is_shown_as_it_is() -> Result<()> {
    // What comes by two streams is in the order of writing only if each line waits for the one before.
    let script = "after() { while [ ! -e /tmp/$1 ]; do sleep 0.05; done; }; \
                  echo one; after one; echo two >&2; after two; echo three; after three; \
                  echo four >&2; after four; printf fi; sleep 0.1; echo ve; echo end";
    let (host, web) = host_with("", script)?;
    let web = web.as_str();
    for line in ["one", "two", "three", "four"] {
        wait_for_line(&host, web, line)?;
        touch(&host, web, line)?;
    }
    wait_for_line(&host, web, "end")?;
    let of = |stream| logs(&host, &[web, "--stream", stream]);
    assert_eq!(of("stdout")?, "one\nthree\nfive\nend\n");
    assert_eq!(of("stderr")?, "two\nfour\n");
    assert_eq!(
        logs(&host, &[web, "--stream", "stdout", "--tail", "2"])?,
        "five\nend\n"
    );

    let timed = logs(&host, &[web, "--timestamps"])?;
    let lines: Vec<(&str, &str)> = timed.lines().filter_map(|l| l.split_once(' ')).collect();
    let container = host.containers()?.remove(0);
    let file = std::fs::read_to_string(host.log_files(&container, "app")?.remove(0))?;
    let expected: Vec<(&str, &str)> = cri::records(&file)?
        .iter()
        .map(|record| (record.time, record.text))
        .collect();
    assert_eq!(lines, expected);
    ensure!(lines.is_sorted_by_key(|(time, _)| *time), "{lines:?}");
    let (time, _) = lines
        .iter()
        .find(|(_, text)| *text == "four")
        .context("no four")?;
    assert_eq!(logs(&host, &[web, "--since", time])?, "four\nfive\nend\n");
    assert_eq!(logs(&host, &[web, "--since", "1h"])?.lines().count(), 6);
    assert_eq!(logs(&host, &[web, "--since", "0s"])?, "");
    host.cli()
        .run(&["logs", web, "--since", "yesterday"])
        .map(|answer| assert_eq!(answer.code, 2, "{answer:?}"))?;

    // As processes wrote under an older nodeagent, and as anybody in the container may write.
    let directory = host.agent.state().join("instances").join(&container);
    std::fs::write(directory.join("log/old.log"), "plain\ntext\n")?;
    assert_eq!(logs(&host, &[web, "old"])?, "plain\ntext\n");
    assert_eq!(logs(&host, &[web, "old", "--tail", "1"])?, "text\n");
    assert_eq!(
        logs(&host, &[web, "old", "--since", "1h"])?,
        "plain\ntext\n"
    );
    assert_eq!(logs(&host, &[web, "old", "--stream", "stdout"])?, "");
    host.remove_app("web")
}

/// Makes this file in `/tmp` of an instance, whose script waits for it.
fn touch(host: &TestHost, instance: &str, name: &str) -> Result<()> {
    let file = format!("/tmp/{name}");
    let words = ["exec", instance, "--", "touch", &file];
    host.cli().run(&words)?.ok().map(drop)
}

/// Follows the log of an instance whose script is [`when_followed`], from its first line on.
fn follow(host: &TestHost, instance: &str) -> Result<(Child, BufReader<ChildStdout>)> {
    let mut follower = begin(host, &["-f", instance])?;
    let mut out = BufReader::new(follower.stdout.take().context("no stdout")?);
    let mut line = String::new();
    out.read_line(&mut line)?;
    ensure!(line == "0\n", "{line:?}");
    touch(host, instance, "followed")?;
    Ok((follower, out))
}

/// A script that says 0, and goes on when it is followed.
fn when_followed(script: &str) -> String {
    format!("echo 0; while [ ! -e /tmp/followed ]; do sleep 0.05; done; {script}")
}

/// Reads lines until `last`, each of which has to be the number after the one before.
fn count(lines: impl BufRead, first: u64, last: u64) -> Result<()> {
    let mut expected = first;
    for line in lines.lines() {
        let line = line?;
        ensure!(
            line == expected.to_string(),
            "{line:?} in the place of {expected}"
        );
        if expected == last {
            return Ok(());
        }
        expected += 1;
    }
    anyhow::bail!("the log ended before {expected}")
}

#[test]
fn a_follower_loses_and_repeats_nothing_while_a_fast_writers_log_is_rotated() -> Result<()> {
    const BURST: u64 = 40_000;
    const LAST: u64 = 10 * BURST;
    // Ten bursts of 2 MB, of which all files together hold five; each waits until the one before was
    // followed to its end, so that the reader's speed does not matter.
    let script = format!(
        "i=0; while [ $i -lt {LAST} ]; do while [ ! -e /tmp/after-$i ]; do sleep 0.05; done; \
         seq $((i+1)) $((i+{BURST})); i=$((i+{BURST})); done"
    );
    let limits = "[logs]\nmax_size = \"1Mi\"\nmax_files = 10\n";
    let (host, web) = host_with(limits, &when_followed(&script))?;
    let (mut follower, mut out) = follow(&host, &web)?;
    let mut bursts = (0..LAST).step_by(BURST as usize);
    let counted = bursts.try_for_each(|read| {
        touch(&host, &web, &format!("after-{read}"))?;
        count(&mut out, read + 1, read + BURST)
    });
    follower.kill()?;
    follower.wait()?;
    counted?;

    let container = host.containers()?.remove(0);
    let files = host.log_files(&container, "app")?;
    assert_eq!(files.len(), 10, "{files:?}");
    for file in &files {
        let length = file.metadata()?.len();
        ensure!(length <= 1 << 20, "{} has {length} bytes", file.display());
    }
    let text = host.log_text(&container, "app")?;
    let kept = text.lines().count() as u64;
    ensure!(kept > 100_000 && kept < LAST, "{kept} lines are kept");
    ensure!(
        logs(&host, &[&web])? == text,
        "the log is not what its files have"
    );
    // From the middle of a file that is none of the last.
    let tail = logs(&host, &[&web, "--tail", "90001"])?;
    count(tail.as_bytes(), LAST - 90_000, LAST)?;
    host.remove_app("web")
}

#[test]
fn a_follower_that_is_too_slow_is_told_of_each_gap_and_repeats_nothing() -> Result<()> {
    const LAST: u64 = 1_000_000;
    // All files together hold a hundredth of a second of it.
    let limits = "[logs]\nmax_size = \"64Ki\"\nmax_files = 2\n";
    let (host, web) = host_with(limits, &when_followed("seq 1 1000000"))?;
    let (mut follower, out) = follow(&host, &web)?;
    let (mut last, mut gaps, mut is_gap) = (0, 0, false);
    let mut judge = |line: &str| -> Result<bool> {
        if line.starts_with("nodeagent: lines may be missing here: ") {
            (gaps, is_gap) = (gaps + 1, true);
            return Ok(false);
        }
        let number: u64 = line
            .parse()
            .with_context(|| format!("{line:?} after {last}"))?;
        ensure!(
            number == last + 1 || is_gap && number > last,
            "{number} after {last}, and no gap was told"
        );
        (last, is_gap) = (number, false);
        Ok(number == LAST)
    };
    let mut ended = Ok(false);
    for line in out.lines() {
        ended = line.map_err(Into::into).and_then(|line| judge(&line));
        if !matches!(ended, Ok(false)) {
            break;
        }
    }
    follower.kill()?;
    follower.wait()?;
    ensure!(ended?, "the log ended at {last}");
    ensure!(gaps > 0, "nothing was missed, which says nothing");
    host.remove_app("web")
}

#[test]
fn processes_write_on_while_the_agent_is_dead_and_nothing_is_lost() -> Result<()> {
    let script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done";
    let (mut host, web) = host_with("", script)?;
    let mut follower = begin(&host, &["-f", &web])?;
    let mut lines = BufReader::new(follower.stdout.take().context("no stdout")?);
    count(&mut lines, 1, 50)?;
    host.agent.kill()?;
    let status = follower.wait()?;
    ensure!(!status.success(), "a log that was broken off ended well");

    let container = host.containers()?.remove(0);
    let written = || -> Result<usize> { Ok(host.log_text(&container, "app")?.lines().count()) };
    let before = written()?;
    until("100 more lines without an agent", SOON, || {
        let now = written()?;
        Ok(match now >= before + 100 {
            true => Look::Seen(()),
            false => Look::NotYet(format!("{before} became {now}")),
        })
    })?;
    let TestHost { agent, ground, .. } = &mut host;
    agent.start(ground)?;
    let text = logs(&host, &[&web])?;
    let told = text.lines().count() as u64;
    ensure!(told >= before as u64 + 100, "{told} lines after {before}");
    count(text.as_bytes(), 1, told)?;
    host.remove_app("web")
}
