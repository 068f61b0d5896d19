//! The command line, run as a process against an in-memory host: what a person sees, byte for byte
//! (golden files; `UPDATE_GOLDEN=1` writes them), and the exit codes.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nodeagent::api::Limits;
use nodeagent::api::v1::*;

use crate::twin::{Served, at};

/// What a command left behind, as one text for a golden file.
struct Ran {
    exit: i32,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn new(output: Output) -> Self {
        Self {
            exit: output.status.code().expect("ended by a signal"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nodeagent"));
    command.env_clear().stdin(Stdio::null());
    command
}

/// Runs `nodeagent` with `line`'s words against the served twin.
async fn run(served: &Served, line: &str) -> Ran {
    let mut command = program();
    command
        .args(["--socket".as_ref(), served.path()])
        .args(line.split_whitespace());
    finished(command).await
}

async fn finished(mut command: Command) -> Ran {
    let output = tokio::task::spawn_blocking(move || command.output());
    let output = tokio::time::timeout(Duration::from_secs(20), output).await;
    Ran::new(output.expect("still running after 20 s").unwrap().unwrap())
}

/// Compares with `tests/golden/cli/<name>.txt`; a path of this run is spelt `<socket>`.
fn golden(name: &str, line: &str, ran: &Ran, socket: &Path) {
    let mut text = format!("$ nodeagent {line}\n{}", ran.stdout);
    if !ran.stderr.is_empty() {
        text.push_str(&format!("--- stderr\n{}", ran.stderr));
    }
    text.push_str(&format!("--- exit {}\n", ran.exit));
    let text = text.replace(&socket.display().to_string(), "<socket>");
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/cli")
        .join(format!("{name}.txt"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, &text).unwrap();
    }
    let expected =
        std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    assert_eq!(
        text,
        expected,
        "{} differs; UPDATE_GOLDEN=1 writes it",
        file.display()
    );
}

async fn shows(served: &Served, name: &str, line: &str) {
    golden(name, line, &run(served, line).await, served.path());
}

#[test]
fn the_help_of_every_verb_is_as_written() {
    let verbs = [
        "",
        "run",
        "activate",
        "deactivate",
        "scale",
        "roll",
        "restart",
        "status",
        "trace",
        "tasks",
        "tasks show",
        "logs",
        "exec",
        "processes",
        "image",
        "image list",
        "image pull",
        "image pin",
        "image unpin",
        "image verify",
        "image evict",
        "image stable",
        "image import",
        "image export",
        "journal",
        "journal show",
        "journal accept",
        "app",
        "app apply",
        "app list",
        "app show",
        "app check",
        "app schema",
        "app delete",
        "config",
        "config show",
        "config check",
        "config schema",
        "check",
        "completions",
        "man",
    ];
    for verb in verbs {
        let line = format!("{verb} --help").trim_start().to_owned();
        // No terminal: clap then takes the width of `max_term_width`.
        let ran = Ran::new(program().args(line.split_whitespace()).output().unwrap());
        let name = format!(
            "help{}{}",
            if verb.is_empty() { "" } else { "-" },
            verb.replace(' ', "-")
        );
        golden(&name, &line, &ran, Path::new("/nowhere"));
        assert!(
            ran.stdout.lines().all(|l| l.chars().count() <= 100),
            "{verb}: wider than 100 columns"
        );
    }
}

#[test]
fn every_verb_has_a_help_page_in_the_golden_files() {
    fn walk(command: &clap::Command, name: String, names: &mut Vec<String>) {
        names.push(name.clone());
        for sub in command
            .get_subcommands()
            .filter(|sub| sub.get_name() != "help")
        {
            walk(sub, format!("{name}-{}", sub.get_name()), names);
        }
    }
    let mut names = Vec::new();
    walk(&nodeagent::cli::command(), "help".to_owned(), &mut names);
    for name in names {
        let file =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/cli/{name}.txt"));
        assert!(file.exists(), "no {}", file.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_and_documents_are_as_written() {
    let served = Served::start(&["web"], Limits::default());
    shows(&served, "status-idle", "status").await;
    shows(&served, "tasks-none", "tasks").await;
    shows(&served, "image-list-none", "image list").await;
    shows(&served, "image-pull", "image pull --pin r.lan/web:1").await;
    shows(&served, "image-pull-json", "image pull r.lan/api:1 -o json").await;
    shows(
        &served,
        "image-pull-refused",
        "image pull r.lan/web:missing",
    )
    .await;
    shows(&served, "image-list", "image ls").await;
    shows(&served, "image-unpin", "image unpin r.lan/web:1").await;
    shows(&served, "image-pin-unknown", "image pin r.lan/other:1").await;
    shows(&served, "image-verify", "image verify").await;
    shows(&served, "image-evict", "image evict --free 2Gi").await;
    shows(&served, "image-evict-dry", "image evict --dry-run").await;
    shows(&served, "image-stable", "image stable").await;
    shows(&served, "image-stable-app", "image stable web").await;
    shows(
        &served,
        "image-stable-set",
        "image stable web --set r.lan/web:1",
    )
    .await;
    shows(&served, "image-import", "image import --pin /srv/web.tar").await;
    shows(
        &served,
        "image-import-refused",
        "image import --name r.lan/web:1 /srv/broken.tar",
    )
    .await;
    shows(
        &served,
        "image-export",
        "image export r.lan/web:1 -f /srv/web.tar",
    )
    .await;
    shows(&served, "journal-lost", "journal show").await;
    shows(&served, "journal-accepted", "journal accept").await;
    shows(&served, "journal-json", "journal show -o json").await;
    shows(&served, "activate", "activate web --to 2 --task-id peak-7").await;
    shows(
        &served,
        "activate-repeated",
        "activate web --to 2 --task-id peak-7",
    )
    .await;
    shows(
        &served,
        "activate-json",
        "activate web --to 3 --task-id peak-8 -o json",
    )
    .await;
    served.twin.set_alarm(
        "web",
        "3 starts in a row failed; see nodeagent trace peak-8",
    );
    served.twin.raise(Alarm {
        code: "discovery_unreachable".to_owned(),
        app: None,
        backend: Some("etcd".to_owned()),
        detail: "http://10.0.0.9:2379 does not answer; registrations are kept for 60 s".to_owned(),
        since: at(2),
    });
    shows(&served, "status", "status").await;
    shows(&served, "status-app", "status web").await;
    shows(&served, "status-json", "status web -o json").await;
    shows(&served, "trace", "trace peak-7").await;
    shows(&served, "trace-json", "trace peak-8 -o json").await;
    shows(&served, "scale-down", "scale web --to 1 --task-id down-1").await;
    shows(&served, "roll", "roll web --step 25% --task-id roll-1").await;
    shows(
        &served,
        "restart",
        "restart web-0 --strategy reuse --task-id mend-1",
    )
    .await;
    shows(
        &served,
        "deactivate",
        "deactivate web --to 0 --task-id down-2 --force",
    )
    .await;
    shows(&served, "tasks", "tasks").await;
    shows(
        &served,
        "tasks-filtered",
        "tasks --app web --state done,partial --since 24h --limit 1",
    )
    .await;
    shows(&served, "tasks-none-such", "tasks --state failed").await;
    shows(&served, "tasks-refused", "tasks --app Web --limit 0").await;
    shows(&served, "tasks-show", "tasks show peak-7").await;
    shows(&served, "logs", "logs web-0 sidecar").await;
    shows(&served, "logs-refused", "logs web-0 .plan --tail 99999999").await;
    shows(&served, "processes", "processes web-0").await;
    shows(&served, "processes-json", "ps web-0 -o json").await;
    shows(&served, "processes-frozen", "ps web-1 --wide").await;
    shows(&served, "processes-older", "processes web-2").await;
    shows(&served, "app-list", "app list").await;
    shows(&served, "app-delete", "app delete web").await;
    shows(&served, "app-list-none", "app list").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_of_many_instances_is_summed_up_by_step() {
    let served = Served::start(&["web"], Limits::default());
    assert_eq!(
        run(&served, "activate web --to 100 --task-id wide")
            .await
            .exit,
        0
    );
    shows(&served, "trace-wide", "trace wide").await;
    let all = run(&served, "trace wide --all").await.stdout;
    assert_eq!(
        all.lines().filter(|l| l.starts_with("register")).count(),
        100
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_what_was_wrong_and_what_is_true() {
    let served = Served::start(&["web"], Limits::default());
    run(&served, "activate web --to 2 --task-id first").await;
    shows(
        &served,
        "refused-field",
        "activate web --to 10001 --task-id a/b",
    )
    .await;
    shows(
        &served,
        "refused-field-json",
        "activate web --to 10001 --task-id x -o json",
    )
    .await;
    shows(
        &served,
        "conflict-task",
        "activate web --to 3 --task-id first",
    )
    .await;
    shows(
        &served,
        "conflict-seq",
        "scale web --to 1 --task-id x --expect-seq 3",
    )
    .await;
    shows(&served, "conflict-in-use", "app delete web").await;
    shows(&served, "not-found-app", "activate wbe --to 1 --task-id x").await;
    shows(&served, "not-found-task", "trace nope").await;
    shows(&served, "not-found-pool", "status wbe").await;
    shows(&served, "usage", "activate web").await;
    shows(
        &served,
        "usage-duration",
        "activate web --to 1 --timeout soon",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_end_badly_show_each_instance() {
    let served = Served::start(
        &["broken", "halfway", "slow", "superseded"],
        Limits::default(),
    );
    shows(&served, "failed", "activate broken --to 2 --task-id f").await;
    shows(&served, "partial", "activate halfway --to 3 --task-id p").await;
    shows(&served, "trace-failed", "trace p").await;
    shows(
        &served,
        "superseded",
        "activate superseded --to 1 --task-id s",
    )
    .await;
    shows(
        &served,
        "still-running",
        "activate slow --to 1 --task-id r --timeout 0",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_documented_exit_code_is_reached() {
    let served = Served::start(
        &["web", "broken", "halfway", "slow", "superseded"],
        Limits::default(),
    );
    let cases = [
        ("activate web --to 1", 0),
        ("status", 0),
        ("--help", 0),
        ("--version", 0),
        ("activate broken --to 1", 1),
        ("activate web", 2),
        ("activate web --to many", 2),
        ("fly", 2),
        ("status -o xml", 2),
        ("app apply -f /does/not/exist", 2),
        ("activate web --to 10001", 3),
        ("app apply -f /dev/null", 3),
        ("app check /dev/null", 3),
        ("activate nope --to 1", 4),
        ("trace nope", 4),
        ("logs web-0", 0),
        ("logs web-9", 4),
        ("ps web-0", 0),
        ("ps web-2", 1),
        ("ps web-9", 4),
        ("logs web-0 ../plan", 3),
        ("scale web --to 2 --expect-seq 1", 5),
        ("activate superseded --to 1", 5),
        ("app delete web", 5),
        ("activate slow --to 1 --timeout 10ms", 6),
        ("status --socket /does/not/exist", 7),
        ("activate halfway --to 2", 8),
    ];
    for (line, exit) in cases {
        let ran = run(&served, line).await;
        assert_eq!(ran.exit, exit, "{line}: {}", ran.stderr);
        let quiet = [0, 1, 5, 8].contains(&exit);
        assert!(quiet || !ran.stderr.is_empty(), "{line} says nothing");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_made_up_task_id_is_told_and_can_be_repeated() {
    let served = Served::start(&["web"], Limits::default());
    let first = run(&served, "activate web --to 1 -o json").await;
    let id = first
        .stderr
        .strip_prefix("task id: ")
        .unwrap()
        .trim()
        .to_owned();
    let task: Task = serde_json::from_str(&first.stdout).unwrap();
    assert_eq!(task.task_id, id);
    let again = run(
        &served,
        &format!("activate web --to 1 -o json --task-id {id}"),
    )
    .await;
    let again: Task = serde_json::from_str(&again.stdout).unwrap();
    assert!(again.replayed);
    assert_eq!(again.instances, task.instances);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environments_trace_is_continued() {
    let served = Served::start(&["web"], Limits::default());
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for value in [traceparent, "nonsense\u{7f}"] {
        let mut command = program();
        command
            .env("NODEAGENT_SOCKET", served.path())
            .env("TRACEPARENT", value);
        command.args(["activate", "web", "--to", "1"]);
        assert_eq!(finished(command).await.exit, 0);
    }
    let seen: Vec<_> = served
        .twin
        .submitted()
        .into_iter()
        .map(|s| s.received.traceparent)
        .collect();
    assert_eq!(seen, [Some(traceparent.to_owned()), None]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_not_there_is_named_with_how_to_start_it() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("api.sock");
    let ask = |name: &'static str| {
        let output = program()
            .args(["status", "--socket"])
            .arg(&socket)
            .output()
            .unwrap();
        golden(name, "status --socket <socket>", &Ran::new(output), &socket);
    };
    ask("unreachable-absent");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    ask("unreachable-stale");
}

const MANIFEST: &str = "\
apiVersion: nodeagent/v1
kind: App
metadata:
  name: shop
spec:
  image: 127.0.0.1:5000/shop:1
  registration:
    enabled: false
";

#[tokio::test(flavor = "multi_thread")]
async fn manifests_are_applied_shown_and_checked() {
    let served = Served::start(&[], Limits::default());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("shop.yaml");
    let line = |verb: &str| format!("{verb} {}", file.display());
    std::fs::write(&file, MANIFEST).unwrap();
    let shows = async |name: &str, line: String| {
        let ran = run(&served, &line).await;
        let hide = |text: &str| text.replace(&file.display().to_string(), "shop.yaml");
        let ran = Ran {
            exit: ran.exit,
            stdout: hide(&ran.stdout),
            stderr: hide(&ran.stderr),
        };
        golden(name, &hide(&line), &ran, served.path());
    };
    shows("app-check", line("app check")).await;
    shows("app-apply", line("app apply -f")).await;
    shows("app-apply-unchanged", line("app apply -f")).await;
    std::fs::write(&file, format!("{MANIFEST}  args: [\"-v\"]\n")).unwrap();
    shows("app-apply-changed", line("app apply -o json -f")).await;
    shows("app-show", "app show shop".to_owned()).await;

    let shown = directory.path().join("shown.yaml");
    std::fs::write(&shown, run(&served, "app show shop").await.stdout).unwrap();
    let again = run(&served, &format!("app check {}", shown.display())).await;
    assert_eq!(
        again.exit, 0,
        "what show prints can be applied: {}",
        again.stderr
    );

    std::fs::write(&file, MANIFEST.replace("image:", "imgae:")).unwrap();
    shows("app-check-refused", line("app check")).await;
    shows("app-check-refused-json", line("app check -o json")).await;
    std::fs::write(&file, "kind: App\n").unwrap();
    shows("app-apply-refused", line("app apply -f")).await;
    std::fs::write(&file, vec![b'#'; 3 << 20]).unwrap();
    shows("app-apply-too-large", line("app apply -f")).await;
}

#[test]
fn configuration_is_shown_and_checked_without_an_agent() {
    let directory = tempfile::tempdir().unwrap();
    let good = directory.path().join("50-good.toml");
    std::fs::write(&good, "version = 1\n[host]\nid = \"h1\"\n").unwrap();
    let run = |words: &[&str]| {
        let output = program()
            .args(words)
            .arg("--config-dir")
            .arg(directory.path())
            .output()
            .unwrap();
        let ran = Ran::new(output);
        let hide = |text: &str| text.replace(&directory.path().display().to_string(), "config.d");
        Ran {
            exit: ran.exit,
            stdout: hide(&ran.stdout),
            stderr: hide(&ran.stderr),
        }
    };
    let shows = |name: &str, words: &[&str]| {
        let line = format!("{} --config-dir config.d", words.join(" "));
        golden(name, &line, &run(words), Path::new("/nowhere"));
    };
    shows("config-show", &["config", "show"]);
    shows("config-check", &["config", "check"]);
    let json: serde_json::Value =
        serde_json::from_str(&run(&["config", "show", "-o", "json"]).stdout).unwrap();
    assert_eq!(json["host"]["id"], "h1");
    std::fs::write(
        directory.path().join("60-bad.toml"),
        "version = 1\n[host]\nidd = \"h1\"\n",
    )
    .unwrap();
    shows("config-check-refused", &["config", "check"]);
    let run_refused = run(&["run"]);
    assert_eq!(run_refused.exit, 3, "{}", run_refused.stderr);
}
