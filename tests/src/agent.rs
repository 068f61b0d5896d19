//! The real `nodeagent run`, with configuration, directories and socket of the host's own.

use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::mount::{MountFlags, mount};

use crate::cli::{Cli, container_init, nodeagent};
use crate::exposition::Exposition;
use crate::ground::Ground;
use crate::http;
use crate::manager::{self, Named};
use crate::netns::HOST;
use crate::process::{Process, tail};
use crate::wait::{Look, until};

const STARTS: Duration = Duration::from_secs(20);
const STOPS: Duration = Duration::from_secs(20);

/// The agent of a test host. Dropped, it is killed; its containers stay until the host goes.
#[derive(Debug)]
pub struct Agent {
    name: &'static str,
    directory: PathBuf,
    config: PathBuf,
    socket: PathBuf,
    namespace: String,
    process: Option<Process>,
    cli: Cli,
    environment: Vec<(String, String)>,
    program: Option<PathBuf>,
    // Bound as long as the agent may say something.
    notifications: Option<UnixDatagram>,
    /// Passed at every start; with what the agent stores when `keeps` says so.
    sockets: Vec<Named>,
    keeps: Stored,
}

/// What becomes of sockets that the agent stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    Closed,
    Kept,
}

impl Agent {
    /// Writes the configuration (`extra` is appended to it) without starting the agent.
    pub fn prepare(ground: &Ground, containerd: &Path, extra: &str) -> Result<Self> {
        Self::prepare_as(ground, "agent", containerd, extra)
    }

    /// The same for one of several agents of a host; `name` is that of its directory and its log.
    pub fn prepare_as(
        ground: &Ground,
        name: &'static str,
        containerd: &Path,
        extra: &str,
    ) -> Result<Self> {
        let directory = ground.path(name);
        let config = directory.join("config.d");
        fs::create_dir_all(&config).with_context(|| format!("create {}", config.display()))?;
        // As /run of a real host: what is renamed there waits for no disk.
        let run = directory.join("run");
        fs::create_dir_all(&run).with_context(|| format!("create {}", run.display()))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount("tmpfs", &run, "tmpfs", flags, Some(c"mode=0755,size=64m"))
            .with_context(|| format!("mount a tmpfs at {}", run.display()))?;
        let socket = run.join("api.sock");
        let namespace = match name {
            "agent" => format!("nodeagent.{}", ground.id()),
            name => format!("{name}.{}", ground.id()),
        };
        let text = format!(
            r#"version = 1
[host]
id = "test-{id}"
[paths]
state = "{directory}/state"
runtime = "{directory}/run"
[containerd]
socket = "{containerd}"
namespace = "{namespace}"
[runtime]
cgroup_parent = "{cgroup}"
container_init = "{init}"
{runtime}
[network]
reachable = true
host_address = "{address}"
"#,
            id = ground.id(),
            address = HOST,
            directory = directory.display(),
            containerd = containerd.display(),
            cgroup = ground.cgroup_parent(),
            init = container_init()?.display(),
            runtime = runtime(),
        );
        let base = config.join("10-test-host.toml");
        fs::write(&base, text).with_context(|| format!("write {}", base.display()))?;
        let agent = Self {
            name,
            config,
            namespace,
            process: None,
            cli: Cli::new(ground.netns().clone(), socket.clone()),
            environment: Vec::new(),
            program: None,
            notifications: None,
            sockets: Vec::new(),
            keeps: Stored::Closed,
            directory,
            socket,
        };
        agent.configure(extra)?;
        Ok(agent)
    }

    /// Puts `extra` in the place of what was added to the configuration, from the next start on.
    pub fn configure(&self, extra: &str) -> Result<()> {
        let more = self.config.join("20-test.toml");
        fs::write(&more, format!("version = 1\n{extra}"))
            .with_context(|| format!("write {}", more.display()))
    }

    /// Adds a variable to the agent's environment, from the next start on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Passes these sockets, two at most, at every start from now on, as a socket unit does.
    pub fn pass(&mut self, sockets: Vec<Named>) {
        self.sockets = sockets;
    }

    /// From the next start on, what the agent stores is kept and passed to the next one, as systemd
    /// does while it restarts a service.
    pub fn keep_stored(&mut self) {
        self.keeps = Stored::Kept;
    }

    /// Names of the sockets that the next agent gets.
    pub fn kept(&self) -> Vec<&str> {
        self.sockets
            .iter()
            .map(|named| named.name.as_str())
            .collect()
    }

    /// From the next start on the agent is this program; `None` is the real one.
    pub fn run_as(&mut self, program: Option<PathBuf>) {
        self.program = program;
    }

    /// Starts it and waits for `READY=1`; returns the time from just before fork to READY.
    pub fn start(&mut self, ground: &Ground) -> Result<Duration> {
        let start = Instant::now();
        self.launch(ground)?;
        until("the agent's READY=1", STARTS, || {
            if let Some(status) = self.ended()? {
                bail!("the agent ended ({status}):\n{}", self.tail(40));
            }
            let Some(notifications) = &self.notifications else {
                bail!("nobody listens to the agent");
            };
            match manager::receive(notifications) {
                Ok((said, descriptors)) => {
                    if self.keeps == Stored::Kept {
                        self.sockets.extend(manager::stored(&said, descriptors));
                    }
                    Ok(if said.lines().any(|line| line == "READY=1") {
                        Look::Seen(())
                    } else {
                        Look::NotYet(format!("it said {said:?}"))
                    })
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
                {
                    Ok(Look::NotYet("silence".to_owned()))
                }
                Err(error) => Err(error).context("receive a notification"),
            }
        })?;
        Ok(start.elapsed())
    }

    /// Starts it and does not wait.
    pub fn launch(&mut self, ground: &Ground) -> Result<()> {
        ensure!(self.process.is_none(), "the agent runs already");
        // With what it stored and nobody received: a queued descriptor keeps its socket listening.
        self.notifications = None;
        let notify = ground.path(&format!("{}-notify.sock", self.name));
        let _ = fs::remove_file(&notify);
        let notifications =
            UnixDatagram::bind(&notify).with_context(|| format!("bind {}", notify.display()))?;
        // Short: between two datagrams the wait looks whether the agent still lives.
        notifications
            .set_read_timeout(Some(Duration::from_millis(100)))
            .context("set a deadline")?;
        let program = match &self.program {
            Some(program) => program.clone(),
            None => nodeagent()?,
        };
        let mut command = match self.sockets.len() {
            0 => Command::new(program),
            1 => passing("exec 3<&0 </dev/null", &program),
            2 => passing("exec 3<&0 4<&1 </dev/null >&2", &program),
            more => bail!("{more} sockets cannot be passed: {:?}", self.kept()),
        };
        if !self.sockets.is_empty() {
            command
                .env("LISTEN_FDS", self.sockets.len().to_string())
                .env("LISTEN_FDNAMES", self.kept().join(":"));
        }
        let mut passed = [None, None];
        for (place, named) in passed.iter_mut().zip(&self.sockets) {
            *place = Some(named.duplicate()?.socket);
        }
        command
            .arg("run")
            .arg("--config-dir")
            .arg(&self.config)
            .env("NOTIFY_SOCKET", &notify)
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        self.process = Some(Process::start_with(ground, self.name, command, passed)?);
        self.notifications = Some(notifications);
        Ok(())
    }

    /// Pid of the running agent.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Whether it has ended by itself, and how.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        match &mut self.process {
            Some(process) => process.ended(),
            None => Ok(None),
        }
    }

    /// Waits until it has ended by itself.
    pub fn wait_ended(&mut self, within: Duration) -> Result<ExitStatus> {
        let status = until("the agent to end", within, || {
            Ok(match self.ended()? {
                Some(status) => Look::Seen(status),
                None => Look::NotYet("it runs".to_owned()),
            })
        })?;
        self.process = None;
        Ok(status)
    }

    /// Ends it by SIGKILL; containers go on.
    pub fn kill(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.kill(),
            None => Ok(()),
        }
    }

    /// Ends it by SIGTERM; containers go on.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            let status = process.terminate(STOPS)?;
            ensure!(
                status.success(),
                "the agent ended with {status} after SIGTERM:\n{}",
                process.tail(40)
            );
        }
        Ok(())
    }

    /// Its CLI.
    pub fn cli(&self) -> &Cli {
        &self.cli
    }

    /// containerd namespace of its containers.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its API socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The directory of its configuration.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// What `/metrics` says now.
    pub fn metrics(&self) -> Result<Exposition> {
        let patience = Duration::from_secs(10);
        let (answer, _) = http::request_unix(self.socket(), "GET", "/metrics", &[], patience)?;
        ensure!(answer.status == 200, "{}", answer.text());
        let kind = answer.header("content-type").context("no content type")?;
        ensure!(
            kind == "text/plain; version=0.0.4; charset=utf-8",
            "{kind:?}"
        );
        let page = Exposition::parse(&answer.text())?;
        page.check_histograms()?;
        Ok(page)
    }

    /// Its durable state.
    pub fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// Its volatile state.
    pub fn runtime(&self) -> PathBuf {
        self.directory.join("run")
    }

    /// Its journal.
    pub fn journal(&self) -> PathBuf {
        self.state().join("journal.db")
    }

    /// The last `lines` of its log.
    pub fn tail(&self, lines: usize) -> String {
        let log = self.directory.with_extension("log");
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}:", log.display());
        text.push_str(&tail(&log, lines));
        text
    }
}

/// Names another OCI runtime than runc, when `NODEAGENT_TESTS_RUNTIME` does.
fn runtime() -> String {
    let named = std::env::var("NODEAGENT_TESTS_RUNTIME").ok();
    named.map_or(String::new(), |name| format!("binary = {name:?}"))
}

/// The program behind a shell that puts descriptors where `LISTEN_FDS` says they are; the process
/// stays the same one.
fn passing(order: &str, program: &Path) -> Command {
    let mut command = Command::new("/bin/sh");
    let script = format!(r#"{order}; export LISTEN_PID=$$; exec "$0" "$@""#);
    command.arg("-c").arg(script).arg(program);
    command
}
