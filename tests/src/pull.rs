//! Pulls to be measured: one image or several, by the agent or by a peer, on a stage of its own with
//! an empty store, and what they cost.
//!
//! The registry's files are in the page cache, free memory was touched, and nothing waits to be
//! written when a pull begins.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::agent::Agent;
use crate::containerd::Containerd;
use crate::ground::Ground;
use crate::http::request_unix;
use crate::image::layout::Layout;
use crate::netns::Netns;
use crate::process::tail;
use crate::registry::Registry;

/// Bytes of free memory that are touched before a pull: more than any takes.
const TOUCHED: usize = 6 << 30;
/// Longest pull.
const LONGEST: Duration = Duration::from_secs(600);
/// Between two looks at a program that runs; part of the error of a measurement.
const LOOK: Duration = Duration::from_millis(1);

/// A command that is measured instead of the agent, with `{ref}` for the reference. It finds
/// containerd's socket in `PULL_CONTAINERD`, and a directory of its own in `PULL_STORE`.
pub const TOOL: &str = "PULL_TOOL";

/// Who pulls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Puller {
    /// The agent.
    Agent,
    /// The command of [`TOOL`].
    Tool(String),
    /// `ctr images pull`.
    Ctr,
    /// `podman pull`, its storage driver overlay.
    Podman,
}

impl Puller {
    /// What is measured: the agent, unless [`TOOL`] names a command.
    pub fn ours() -> Self {
        std::env::var(TOOL).map_or(Self::Agent, Self::Tool)
    }
}

/// Has the hypervisor put memory below free pages: a virtual machine gives back what is free, and
/// whoever takes such a page first pays for that, one puller today and another tomorrow.
fn touch_free_memory() -> Result<()> {
    let memory = fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    let free = memory.lines().find_map(|line| {
        let kib = line.strip_prefix("MemFree:")?.strip_suffix("kB")?;
        kib.trim().parse::<usize>().ok()
    });
    let free = free.context("no MemFree in /proc/meminfo")? << 10;
    // Not the last of it: the registry's files stay in the page cache. By a process of its own: what
    // a child is said to have taken at most includes what this one has when it forks.
    let bytes = TOUCHED.min(free / 4 * 3);
    let mut touch = Command::new("dd");
    touch.args(["if=/dev/zero", "of=/dev/null", "count=1", "iflag=fullblock"]);
    let touched = touch
        .arg(format!("bs={bytes}"))
        .output()
        .context("run dd")?;
    ensure!(
        touched.status.success(),
        "dd: {}",
        String::from_utf8_lossy(&touched.stderr)
    );
    Ok(())
}

/// What pulls cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// From the first request to the last answer.
    pub took: Duration,
    /// Until everything that was written is on the disk, after that.
    pub synced: Duration,
    /// Processor time of the puller: the programs that were run, the agent, containerd.
    pub cpu: Duration,
    /// Processor time of the registry.
    pub registry_cpu: Duration,
    /// Largest resident memory, in bytes: of the agent, or of containerd and the programs together.
    pub peak: u64,
    /// Bytes that came over the network, with all that belongs to it.
    pub fetched: u64,
}

/// A host on which nothing was pulled yet.
#[derive(Debug)]
pub struct Stage {
    // Fields are dropped in this order: the ground last.
    puller: Puller,
    /// The agent, where it is what pulls.
    pub agent: Option<Agent>,
    containerd: Option<Containerd>,
    /// The registry.
    pub registry: Registry,
    /// What it all stands on.
    pub ground: Ground,
}

impl Stage {
    /// A stage with what `puller` needs.
    pub fn new(puller: &Puller) -> Result<Self> {
        let ground = Ground::new()?;
        let registry = Registry::start(&ground)?;
        let containerd = match puller {
            Puller::Podman => None,
            _ => Some(Containerd::start(&ground)?),
        };
        let mut agent = None;
        if let (Puller::Agent, Some(containerd)) = (puller, &containerd) {
            let config = "[discovery.file]\npropagation_bound = \"100ms\"\n[images]\npull_timeout = \"10m\"\n";
            let mut prepared = Agent::prepare(&ground, containerd.socket(), config)?;
            prepared.start(&ground)?;
            agent = Some(prepared);
        }
        Ok(Self {
            puller: puller.clone(),
            agent,
            containerd,
            registry,
            ground,
        })
    }

    /// containerd's version, where there is one.
    pub fn containerd_version(&self) -> Result<String> {
        let containerd = self.containerd.as_ref();
        containerd.context("a stage without containerd")?.version()
    }

    /// Puts images into the registry, and their files into the page cache; returns references.
    pub fn offer(&self, images: &[Layout]) -> Result<Vec<String>> {
        let placed = images.iter().enumerate().map(|(number, image)| {
            image.warm()?;
            image.place(&self.registry, &format!("image-{number}:1"))
        });
        placed.collect()
    }

    /// Pulls all of `references` at once, and says what it cost.
    pub fn pull(&self, references: &[String]) -> Result<Cost> {
        rustix::fs::sync();
        touch_free_memory()?;
        let daemon = match &self.agent {
            Some(agent) => agent.pid(),
            None => self.containerd.as_ref().and_then(Containerd::pid),
        };
        if let Some(pid) = daemon {
            forget_peak(pid)?;
        }
        let before = self.counters()?;
        let start = Instant::now();
        let peaks = std::thread::scope(|scope| {
            let pulls: Vec<_> = references
                .iter()
                .map(|reference| scope.spawn(|| self.pull_one(reference)))
                .collect();
            let joined = pulls.into_iter().map(|pull| match pull.join() {
                Ok(peak) => peak,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            joined.collect::<Result<Vec<u64>>>()
        })?;
        let took = start.elapsed();
        let after = self.counters()?;
        let start = Instant::now();
        rustix::fs::sync();
        let synced = start.elapsed();
        let programs: u64 = match self.puller {
            // Its command line is not what is measured.
            Puller::Agent => 0,
            _ => peaks.iter().sum(),
        };
        Ok(Cost {
            took,
            synced,
            cpu: after.cpu.saturating_sub(before.cpu),
            registry_cpu: after.registry.saturating_sub(before.registry),
            peak: programs + daemon.map_or(Ok(0), peak_of)?,
            fetched: after.received - before.received,
        })
    }

    /// Returns the largest resident memory of the program that was run.
    fn pull_one(&self, reference: &str) -> Result<u64> {
        match &self.puller {
            Puller::Agent => self.pull_by_agent(reference).map(|()| 0),
            Puller::Tool(command) => {
                let command = command.replace("{ref}", reference);
                let mut tool = Command::new("/bin/sh");
                tool.args(["-c", &command])
                    .env("PULL_STORE", self.ground.path("pull-store"));
                if let Some(containerd) = &self.containerd {
                    tool.env("PULL_CONTAINERD", containerd.socket());
                }
                self.run("tool", tool)
            }
            Puller::Ctr => {
                let containerd = self.containerd.as_ref().context("no containerd")?;
                let mut ctr = Command::new("ctr");
                ctr.arg("--address").arg(containerd.socket());
                ctr.args(["--namespace", &self.namespace()]).args([
                    "images",
                    "pull",
                    "--plain-http",
                    reference,
                ]);
                self.run("ctr", ctr)
            }
            Puller::Podman => {
                let directory = self.ground.path("podman");
                let mut podman = Command::new("podman");
                podman
                    .arg("--root")
                    .arg(directory.join("root"))
                    .arg("--runroot")
                    .arg(directory.join("run"))
                    .arg("--tmpdir")
                    .arg(directory.join("tmp"))
                    .args(["--storage-driver", "overlay"])
                    .args(["--cgroup-manager", "cgroupfs"])
                    .args(["pull", "--quiet", "--tls-verify=false", reference]);
                self.run("podman", podman)
            }
        }
    }

    fn pull_by_agent(&self, reference: &str) -> Result<()> {
        let agent = self.agent.as_ref().context("no agent")?;
        agent.cli().run(&["image", "pull", reference])?.ok()?;
        Ok(())
    }

    /// Pulls what is here, so often, one after the other; returns how long each took, and the bytes
    /// that came over the network for all.
    pub fn pull_again(&self, reference: &str, times: usize) -> Result<(Vec<Duration>, u64)> {
        self.again(times, || {
            let start = Instant::now();
            self.pull_one(reference)?;
            Ok(start.elapsed())
        })
    }

    /// The same by requests to the agent, without a program that is started for each.
    pub fn ask_again(&self, reference: &str, times: usize) -> Result<(Vec<Duration>, u64)> {
        let agent = self.agent.as_ref().context("no agent")?;
        let body = serde_json::json!({ "reference": reference }).to_string();
        self.again(times, || {
            let (socket, target) = (agent.socket(), "/v1/images/pull");
            let (answer, elapsed) = request_unix(socket, "POST", target, body.as_bytes(), LONGEST)?;
            ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
            Ok(elapsed)
        })
    }

    fn again(
        &self,
        times: usize,
        pull: impl Fn() -> Result<Duration>,
    ) -> Result<(Vec<Duration>, u64)> {
        let before = received(self.ground.netns())?;
        let took: Result<Vec<Duration>> = (0..times).map(|_| pull()).collect();
        Ok((took?, received(self.ground.netns())? - before))
    }

    /// How long containerd takes for the empty snapshots of so many layers.
    pub fn chain(&self, layers: usize) -> Result<Duration> {
        let containerd = self.containerd.as_ref().context("no containerd")?;
        containerd.chain(&self.namespace(), layers)
    }

    /// Ends in the host's id, so that it is removed with the host.
    fn namespace(&self) -> String {
        format!("ctr.{}", self.ground.id())
    }

    /// Runs a program that has to succeed; returns its largest resident memory.
    fn run(&self, name: &str, mut command: Command) -> Result<u64> {
        let log = self.ground.path(&format!("{name}.log"));
        let output = fs::OpenOptions::new().create(true).append(true).open(&log);
        let output = output.with_context(|| format!("open {}", log.display()))?;
        let errors = output.try_clone().context("duplicate a descriptor")?;
        command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .current_dir("/");
        let mut child = self
            .ground
            .netns()
            .run(|| command.spawn().with_context(|| format!("start {name}")))?;
        let start = Instant::now();
        let mut peak = 0;
        loop {
            // It may be gone between the two looks.
            peak = peak.max(peak_of(child.id()).unwrap_or(0));
            if let Some(ended) = child
                .try_wait()
                .with_context(|| format!("wait for {name}"))?
            {
                ensure!(
                    ended.success(),
                    "{name} ended with {ended}:\n{}",
                    tail(&log, 20)
                );
                return Ok(peak);
            }
            if start.elapsed() > LONGEST {
                child.kill().with_context(|| format!("kill {name}"))?;
                bail!("{name} did not end within {LONGEST:?}");
            }
            std::thread::sleep(LOOK);
        }
    }

    fn counters(&self) -> Result<Counters> {
        let daemons = [
            self.agent.as_ref().and_then(Agent::pid),
            self.containerd.as_ref().and_then(Containerd::pid),
        ];
        let mut cpu = cpu_of("/proc/self/stat", &ENDED_CHILDREN)?;
        for pid in daemons.into_iter().flatten() {
            cpu += cpu_of(&format!("/proc/{pid}/stat"), &OWN_AND_CHILDREN)?;
        }
        let registry = self.registry.pid().context("no registry")?;
        Ok(Counters {
            cpu,
            registry: cpu_of(&format!("/proc/{registry}/stat"), &OWN_AND_CHILDREN)?,
            received: received(self.ground.netns())?,
        })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if self.puller == Puller::Podman {
            // A mount of its storage driver would be in the way of who removes the directory.
            let root = self.ground.path("podman/root/overlay");
            let _ = rustix::mount::unmount(&root, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

struct Counters {
    cpu: Duration,
    registry: Duration,
    received: u64,
}

/// Fields of proc_pid_stat(5), from 0: utime, stime, cutime, cstime.
const OWN_AND_CHILDREN: [usize; 4] = [13, 14, 15, 16];
const ENDED_CHILDREN: [usize; 2] = [15, 16];

fn cpu_of(file: &str, fields: &[usize]) -> Result<Duration> {
    let stat = fs::read_to_string(file).with_context(|| format!("read {file}"))?;
    // Field 2 is the name in parentheses and may contain anything.
    let rest = &stat[stat.rfind(')').context("a stat without a name")? + 2..];
    let numbers: Vec<u64> = rest
        .split(' ')
        .map(|word| word.trim().parse().unwrap_or(0))
        .collect();
    let ticks: u64 = fields
        .iter()
        .filter_map(|field| numbers.get(field - 2))
        .sum();
    Ok(Duration::from_millis(
        ticks * 1000 / rustix::param::clock_ticks_per_second(),
    ))
}

/// Sets the largest resident memory to the present one (proc_pid_clear_refs(5)).
fn forget_peak(pid: u32) -> Result<()> {
    let file = format!("/proc/{pid}/clear_refs");
    fs::write(&file, "5").with_context(|| format!("write {file}"))
}

fn peak_of(pid: u32) -> Result<u64> {
    let file = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = peak.and_then(|peak| peak.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kibibytes.context("no VmHWM")? * 1024)
}

/// Bytes that the network's loopback has received so far.
fn received(netns: &Netns) -> Result<u64> {
    netns.run(|| {
        // Not /proc/net: that is the network of the process, not of this thread.
        let file = "/proc/thread-self/net/dev";
        let text = fs::read_to_string(file).with_context(|| format!("read {file}"))?;
        let counters = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("lo:"));
        let bytes = counters.and_then(|line| line.split_whitespace().next()?.parse().ok());
        bytes.context("no counters of the loopback")
    })
}
