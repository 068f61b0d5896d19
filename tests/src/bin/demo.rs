//! `make demo`: the main job on real components, in front of the reader's eyes.
//!
//! Everything happens on a test host of its own (see the harness) and is removed at the end, also
//! after a failure and after Ctrl-C. Any surprise ends the demo with a non-zero exit code.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nodeagent_tests::ctr::Ctr;
use nodeagent_tests::documents::Task;
use nodeagent_tests::host::address_of;
use nodeagent_tests::{Answer, Image, TestHost, teardown};
use tokio::signal::unix::{SignalKind, signal};

const TASK: &str = "demo-1";
const PEER_RUNS: usize = 5;

fn main() -> ExitCode {
    match story() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nthe demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What the reader sees: headings with the time since the start, commands, their output.
struct Stage {
    host: TestHost,
    start: Instant,
}

impl Stage {
    fn heading(&self, text: &str) {
        println!("\n[{:5.1} s] {text}", self.start.elapsed().as_secs_f64());
    }

    /// Runs `nodeagent <arguments>` in the open.
    fn nodeagent(&self, arguments: &[&str]) -> Result<Answer> {
        println!("$ nodeagent {}", arguments.join(" "));
        let answer = self.host.cli().run(arguments)?;
        print!("{}", answer.stdout);
        eprint!("{}", answer.stderr);
        answer.ok()
    }

    fn show_file(&self, file: &Path) -> Result<()> {
        println!("$ cat {}", file.display());
        let text =
            std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        println!("{}", text.trim_end());
        Ok(())
    }

    /// The recorded result of the demo's task.
    fn result(&self) -> Result<Task> {
        self.host.cli().activate("web", 2, TASK)
    }
}

fn story() -> Result<()> {
    let start = Instant::now();
    println!("nodeagent demo: from a warm pool to two registered instances, by one request.");
    println!("Everything below is real and private: own directories, sockets, network namespace.");
    let host = TestHost::without_agent("")?;
    clean_up_on_signals(host.ground.id().to_owned())?;
    let mut stage = Stage { host, start };

    stage.heading("a private containerd and a private registry are up");
    println!("containerd {}", stage.host.containerd.version()?);
    println!("directory  {}", stage.host.ground.directory().display());

    stage.heading("pushing a small image: busybox's httpd and a page");
    let image = stage.host.push(&Image::web()?, "web:1")?;
    println!("pushed {}@{}", image.reference, image.digest);

    stage.heading("starting the agent");
    println!(
        "$ nodeagent run --config-dir {}",
        stage.host.agent.config().display()
    );
    let ready = stage.host.agent.start(&stage.host.ground)?;
    println!("READY=1 after {:.1} ms", milliseconds(ready));

    stage.heading("applying the app, and waiting for its two warm containers");
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs/examples/web.yaml")
        .canonicalize()
        .context("find docs/examples/web.yaml")?;
    stage.show_file(&manifest)?;
    stage.nodeagent(&["app", "apply", "-f", &manifest.to_string_lossy()])?;
    stage.host.wait_for_armed("web", 2)?;
    stage.nodeagent(&["status"])?;

    activation(&stage)?;
    beside_the_peer(&stage, &image.reference)?;
    repetition(&stage)?;
    removal(&stage)?;

    stage.heading("removing the test host");
    let directory = stage.host.ground.directory().to_owned();
    drop(stage);
    ensure!(
        !directory.exists(),
        "{} is still there",
        directory.display()
    );
    println!("\ndone in {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn activation(stage: &Stage) -> Result<()> {
    stage.heading("the peak is coming: two instances, now");
    stage.nodeagent(&["activate", "web", "--to", "2", "--task-id", TASK])?;

    stage.heading("where clients find them");
    stage.show_file(&stage.host.prometheus_file())?;
    let task = stage.result()?;
    ensure!(task.state == "done", "the task is {}", task.state);
    ensure!(
        task.instances.len() == 2,
        "{} instances",
        task.instances.len()
    );

    stage.heading("a page from each of them");
    let mut wanted = Vec::new();
    for instance in &task.instances {
        let address = address_of(instance)?;
        let page = stage.host.fetch(instance)?;
        println!(
            "GET http://{address}/ -> {} {:?}",
            page.status,
            page.text().trim_end()
        );
        stage.host.assert_serves(instance)?;
        wanted.push(address.to_string());
    }
    wanted.sort();
    let discovered = stage.host.discovered()?;
    ensure!(
        discovered == wanted,
        "discovery offers {discovered:?}, not {wanted:?}"
    );
    Ok(())
}

fn beside_the_peer(stage: &Stage, reference: &str) -> Result<()> {
    stage.heading("where the milliseconds went");
    stage.nodeagent(&["trace", TASK])?;

    stage.heading("the same image by `ctr run -d`, on the same containerd, image unpacked");
    let mut ctr = Ctr::new(&stage.host.ground, &stage.host.containerd);
    ctr.pull(reference)?;
    let mut times = Vec::new();
    for _ in 0..PEER_RUNS {
        let (id, took) = ctr.run_detached(reference)?;
        ctr.remove(&id)?;
        times.push(milliseconds(took));
    }
    times.sort_by(f64::total_cmp);
    let peer = times[PEER_RUNS / 2];
    let ours = stage.host.cli().trace(TASK)?.answer_ms;
    let ours = ours.context("the trail has no answer time")?;
    println!("ctr run -d            1 container          {peer:8.1} ms  (p50 of {PEER_RUNS})");
    println!("nodeagent activate    2 ready, registered  {ours:8.1} ms");
    println!(
        "                                           {:8.0} times faster",
        peer / ours
    );
    Ok(())
}

fn repetition(stage: &Stage) -> Result<()> {
    stage.heading("the same request again (the caller never saw the answer, say)");
    let containers = stage.host.containers()?;
    stage.nodeagent(&["activate", "web", "--to", "2", "--task-id", TASK])?;
    let again = stage.result()?;
    ensure!(again.replayed, "the task was done again");
    let now = stage.host.containers()?;
    ensure!(
        now == containers,
        "containers were {containers:?} and are {now:?}"
    );
    println!("the recorded answer; nothing was started");
    Ok(())
}

fn removal(stage: &Stage) -> Result<()> {
    stage.heading("the peak is over: deregister, drain, stop");
    stage.nodeagent(&["deactivate", "web", "--to", "0"])?;
    let discovered = stage.host.discovered()?;
    ensure!(
        discovered.is_empty(),
        "discovery still offers {discovered:?}"
    );
    stage.nodeagent(&["app", "delete", "web"])?;

    stage.heading("looking for leaks: containers, snapshots, leases, namespaces, links, cgroups");
    stage.host.assert_nothing_left()?;
    println!("nothing is left");
    Ok(())
}

/// Removes the host when the demo is interrupted; the story's thread ends with the process.
fn clean_up_on_signals(id: String) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("make a runtime for signals")?;
    let (mut interrupt, mut terminate) = runtime.block_on(async {
        let interrupt = signal(SignalKind::interrupt()).context("watch SIGINT")?;
        let terminate = signal(SignalKind::terminate()).context("watch SIGTERM")?;
        Ok::<_, anyhow::Error>((interrupt, terminate))
    })?;
    std::thread::spawn(move || {
        let code = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => 130,
                _ = terminate.recv() => 143,
            }
        });
        eprintln!("\ninterrupted; removing the test host");
        teardown::remove_now(&id);
        std::process::exit(code);
    });
    Ok(())
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
