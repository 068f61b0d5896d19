//! `nodeagent exec`: what a command is beside a real app, its streams, and that nothing of it stays.

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::wait::{Look, until};
use nodeagent_tests::{Image, Manifest, TestHost, cli};
use serde_json::json;

/// Tells what it may and where it is, as a command does that runs the same lines. Not the soft limit
/// of files: runc 1.1.5 sets it, and its Go runtime may raise it again at the same time.
const TELL: &str = "id; pwd; echo $PLACE; ulimit -Hn; \
    grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; readlink /proc/self/ns/net; \
    cat /proc/self/cgroup | grep -E '(pids|0::)' | sort";

/// `nodeagent exec WORDS` that has not begun.
fn exec(host: &TestHost, words: &[&str]) -> Result<Command> {
    let mut command = Command::new(cli::nodeagent()?);
    command
        .arg("exec")
        .args(words)
        .env("NODEAGENT_SOCKET", host.agent.socket())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Ok(command)
}

fn ran(host: &TestHost, words: &[&str]) -> Result<Output> {
    let output = exec(host, words)?.output();
    output.with_context(|| format!("run nodeagent exec {words:?}"))
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// A command of `web-0` that says `begun` and would go on for an hour.
fn begin_long(host: &TestHost) -> Result<Child> {
    let words = ["web-0", "--", "sh", "-c", "echo begun; sleep 3607"];
    let mut child = exec(host, &words)?.spawn().context("run nodeagent exec")?;
    let mut begun = [0; 6];
    let stdout = child.stdout.as_mut().context("no stdout")?;
    stdout.read_exact(&mut begun).context("hear the command")?;
    wait_until(host, "the command to begin", |host| {
        Ok(!sleeping(host)?.is_empty())
    })?;
    Ok(child)
}

/// Processes of this machine that are such a command's, by pid.
fn sleeping(host: &TestHost) -> Result<Vec<u32>> {
    let parent = host.ground.cgroup_parent();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?.file_name();
        let Some(pid) = entry.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // Another test's command is in another host's cgroup.
        let of = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let ours = String::from_utf8_lossy(&of("cgroup")).contains(&parent);
        if ours && of("cmdline") == b"sleep\x003607\0" {
            found.push(pid);
        }
    }
    Ok(found)
}

fn wait_until(
    host: &TestHost,
    what: &str,
    holds: impl Fn(&TestHost) -> Result<bool>,
) -> Result<()> {
    until(what, Duration::from_secs(20), || {
        Ok(match holds(host)? {
            true => Look::Seen(()),
            false => Look::NotYet(format!("{:?} sleep", sleeping(host)?)),
        })
    })
}

/// Neither a process nor a FIFO of any command is left.
fn assert_no_trace(host: &TestHost) -> Result<()> {
    wait_until(host, "the commands to be gone", |host| {
        let root = host.agent.runtime().join("exec");
        let left = fs::read_dir(root).into_iter().flatten().count();
        Ok(left == 0 && sleeping(host)?.is_empty())
    })
}

fn host_with(manifest: &Manifest) -> Result<TestHost> {
    let host = TestHost::start_with("[discovery.file]\npropagation_bound = \"100ms\"\n")?;
    host.push(&Image::web()?, "web:1")?;
    host.apply(manifest)?;
    host.wait_for_armed("web", 1)?;
    host.cli().activate("web", 1, "in")?;
    Ok(host)
}

#[test]
fn a_command_is_what_the_app_is() -> Result<()> {
    for user in [0, 1234] {
        let script = format!("{{ {TELL}; }} >/www/index.html 2>&1; exec httpd -f -p 8080 -h /www");
        let manifest = Manifest::script("web", &script)
            .armed(1)
            .ready_by_page(10)
            .with("env", json!([{"name": "PLACE", "value": "a b"}]))
            .with("workingDir", json!("/tmp"))
            .with("ulimits", json!({"nofile": {"soft": 100, "hard": 200}}))
            .with(
                "volumes",
                json!([{"name": "www", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]),
            )
            .with(
                "volumeMounts",
                json!([{"name": "www", "mountPath": "/www"}]),
            )
            .with(
                "securityContext",
                json!({"runAsUser": user, "runAsGroup": user, "fsGroup": 5}),
            );
        let host = host_with(&manifest)?;
        let app = ran(&host, &["web-0", "cat", "/www/index.html"])?;
        let (code, app, complaints) = said(&app);
        assert_eq!((code, complaints.as_str()), (Some(0), ""), "{app}");
        let command = said(&ran(&host, &["web-0", "--", "sh", "-c", TELL])?);
        assert_eq!(command, (Some(0), app.clone(), String::new()));
        for told in [
            format!("uid={user}"),
            "a b\n200\n".to_owned(),
            "/tmp\n".to_owned(),
        ] {
            ensure!(app.contains(&told), "no {told:?} in {app}");
        }
        assert_no_trace(&host)?;
        host.remove_app("web")?;
    }
    Ok(())
}

#[test]
fn streams_are_whole_in_both_directions_and_codes_are_the_commands() -> Result<()> {
    let host = host_with(&Manifest::web("web").armed(1))?;
    // Larger than everything that is buffered on the way, and no text.
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut cat = exec(&host, &["-i", "web-0", "cat"])?
        .stdin(Stdio::piped())
        .spawn()?;
    let mut stdin = cat.stdin.take().context("no stdin")?;
    let input = sent.clone();
    let feeding = thread::spawn(move || stdin.write_all(&input));
    let output = cat.wait_with_output()?;
    feeding.join().map_err(|_| anyhow::anyhow!("panicked"))??;
    ensure!(
        output.stdout == sent,
        "{} bytes came back",
        output.stdout.len()
    );
    assert_eq!(output.status.code(), Some(0));

    for (script, wanted) in [
        (
            "echo out; echo err >&2; exit 7",
            (Some(7), "out\n", "err\n"),
        ),
        // Without -i there is no input.
        ("cat; echo end", (Some(0), "end\n", "")),
        ("kill -9 $$", (Some(137), "", "")),
        // A child that keeps the streams does not keep the caller.
        ("sleep 5 & echo last", (Some(0), "last\n", "")),
    ] {
        let (code, out, err) = said(&ran(&host, &["web-0", "--", "sh", "-c", script])?);
        assert_eq!((code, out.as_str(), err.as_str()), wanted, "{script}");
    }
    // Nobody reads on: it ends, as in any pipe.
    let first = "nodeagent exec web-0 busybox yes | head -n 1"
        .replace("nodeagent", &cli::nodeagent()?.display().to_string());
    let first = Command::new("sh")
        .args(["-c", &first])
        .env("NODEAGENT_SOCKET", host.agent.socket())
        .output()?;
    assert_eq!(first.stdout, b"y\n");
    // A terminal: of this size, and without a standard error of its own.
    let terminal = format!(
        "stty cols 97 rows 31; {} exec -it web-0 -- sh -c 'busybox stty size; busybox tty; echo $TERM; echo err >&2; exit 5'",
        cli::nodeagent()?.display()
    );
    let terminal = Command::new("script")
        .args(["-qec", &terminal, "/dev/null"])
        .env("NODEAGENT_SOCKET", host.agent.socket())
        .output()
        .context("run script (util-linux)")?;
    let (code, out, _) = said(&terminal);
    assert_eq!(
        (code, out.as_str()),
        (Some(5), "31 97\r\n/dev/pts/0\r\nxterm\r\nerr\r\n")
    );
    assert_no_trace(&host)?;
    host.remove_app("web")
}

#[test]
fn what_cannot_be_executed_is_said_and_leaves_nothing() -> Result<()> {
    let host = host_with(&Manifest::web("web").armed(1))?;
    host.wait_for_armed("web", 1)?;
    for (words, code, told) in [
        (["web-0", "nothing"], 3, "nothing"),
        (["web-0", "/etc"], 3, "permission denied"),
        (["web-77", "ls"], 4, "no instance is named \"web-77\""),
        (["other-0", "ls"], 4, "no instance is named \"other-0\""),
    ] {
        let (exit, out, err) = said(&ran(&host, &words)?);
        assert_eq!((exit, out.as_str()), (Some(code), ""), "{words:?}: {err}");
        ensure!(err.to_lowercase().contains(told), "{words:?}: {err}");
    }
    // One that waits at the gate has all that an app finds.
    let at_the_gate = said(&ran(&host, &["web-1", "hostname"])?);
    assert_eq!(at_the_gate, (Some(0), "web-1\n".to_owned(), String::new()));
    assert_no_trace(&host)?;
    // One that failed runs nothing.
    let script = "echo broken >&2; exit 3";
    host.apply(&Manifest::script("bad", script).armed(0).ready_by_page(3))?;
    host.cli().activate_in_vain("bad", "in-vain", "5")?;
    let (exit, _, err) = said(&ran(&host, &["bad-0", "ls"])?);
    ensure!(matches!(exit, Some(1 | 4)), "{exit:?}: {err}");
    host.remove_app_only("bad")?;
    host.remove_app("web")
}

#[test]
fn a_command_goes_with_its_caller_its_instance_and_its_agent() -> Result<()> {
    let mut host = host_with(&Manifest::web("web").armed(1))?;
    // Its caller.
    let mut caller = begin_long(&host)?;
    caller.kill()?;
    caller.wait()?;
    assert_no_trace(&host)?;

    // The agent: killed, it leaves the command to the next one; told to end, as well.
    type Ending = fn(&mut TestHost) -> Result<()>;
    let endings: [Ending; 2] = [|host| host.agent.kill(), |host| host.agent.stop()];
    for end in endings {
        let caller = begin_long(&host)?;
        end(&mut host)?;
        let (code, _, err) = said(&caller.wait_with_output()?);
        assert_eq!(code, Some(1), "{err}");
        ensure!(err.contains("the agent"), "{err}");
        host.agent.start(&host.ground)?;
        assert_no_trace(&host)?;
        host.wait_for_armed("web", 1)?;
    }

    // Its instance.
    let caller = begin_long(&host)?;
    host.cli().deactivate("web", 0, "out")?;
    let (code, _, err) = said(&caller.wait_with_output()?);
    // By the signal that ends all of the container.
    ensure!(matches!(code, Some(137 | 143)), "{code:?}: {err}");
    assert_no_trace(&host)?;
    host.remove_app("web")
}
