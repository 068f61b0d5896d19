//! Hosts that share layers: agents, each with a containerd and a network of its own, and one
//! registry, all on one switch.
//!
//! ```text
//!                ┌─ registry (the switch's own network)
//!   switch br0 ──┼─ wire ── host 0: agent, containerd
//!                └─ wire ── host 1: agent, containerd
//! ```
//! What goes from host to host passes the switch; what the switch's own network sends is the
//! registry's.

use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result};
use nodeagent::api::v1::ImageDocument;

use crate::agent::Agent;
use crate::authority::Authority;
use crate::cli::Answer;
use crate::containerd::Containerd;
use crate::ground::Ground;
use crate::neighbour::lay_wire;
use crate::registry::{PORT, Registry};

/// Where agents serve their layers.
pub const PEERS: u16 = 7070;
/// What hosts know each other by.
pub const TOKEN: &str = "the-token-of-this-swarm";
/// The hierarchy of cgroup 1 that limits processor time, and how often it counts anew.
const CPU_CGROUPS: &str = "/sys/fs/cgroup/cpu";
const CPU_PERIOD_US: u64 = 20_000;
/// The switch.
const SWITCH: &str = "br0";

/// Whether hosts share layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// All with all, by a token.
    On,
    /// All with all, by certificates on both sides.
    Tls,
    /// Each host asks the registry.
    Off,
}

/// One host.
#[derive(Debug)]
pub struct Member {
    // Fields are dropped in this order.
    /// Its agent.
    pub agent: Agent,
    containerd: Containerd,
    /// What it stands on.
    pub ground: Ground,
    number: u8,
}

/// All of them. Dropped, they are removed.
#[derive(Debug)]
pub struct Swarm {
    /// The hosts, their agents started.
    pub hosts: Vec<Member>,
    /// What they pull from.
    pub registry: Registry,
    /// Where that is.
    pub center: Ground,
}

impl Swarm {
    /// `count` hosts (at most 100); `images` is added to each one's `[images]`.
    pub fn new(count: u8, sharing: Sharing, images: &str) -> Result<Self> {
        let mut swarm = Self::prepare(count, sharing, images)?;
        for host in &mut swarm.hosts {
            host.agent.start(&host.ground)?;
        }
        Ok(swarm)
    }

    /// The same with agents that are not started.
    pub fn prepare(count: u8, sharing: Sharing, images: &str) -> Result<Self> {
        let center = Ground::new()?;
        let netns = center.netns();
        netns.ip(&format!("link add {SWITCH} type bridge"))?;
        netns.ip(&format!("address add {}/24 dev {SWITCH}", center_address()))?;
        netns.ip(&format!("link set {SWITCH} up"))?;
        let registry = Registry::start_on(&center, Ipv4Addr::UNSPECIFIED)?;
        let authority = match sharing {
            Sharing::Tls => Some(Authority::create(&center.path("authority"))?),
            Sharing::On | Sharing::Off => None,
        };
        let mut hosts = Vec::new();
        for number in 0..count {
            let ground = Ground::new()?;
            connect(&center, &ground, number)?;
            let containerd = Containerd::start(&ground)?;
            let shared = match (sharing, &authority) {
                (Sharing::Off, _) => String::new(),
                (_, None) => peers(count, number, &token_of(&ground)?),
                (_, Some(by)) => peers(count, number, &certificate_of(&ground, number, by)?),
            };
            let config = format!(
                "[discovery.file]\npropagation_bound = \"100ms\"\n[images]\ninsecure_registries = [\"{}:{PORT}\"]\n{images}\n{shared}",
                center_address()
            );
            hosts.push(Member {
                agent: Agent::prepare(&ground, containerd.socket(), &config)?,
                containerd,
                ground,
                number,
            });
        }
        Ok(Self {
            hosts,
            registry,
            center,
        })
    }

    /// The reference of `name` (`web:1`) as hosts have it.
    pub fn reference(name: &str) -> String {
        format!("{}:{PORT}/{name}", center_address())
    }

    /// The registry sends no more than this, in Mbit/s.
    pub fn pace(&self, rate: u32) -> Result<()> {
        let rate = format!("{rate}mbit");
        let words = ["qdisc", "add", "dev", SWITCH, "root", "tbf", "rate", &rate];
        let more = ["burst", "1mb", "latency", "50ms"];
        let netns = self.center.netns();
        netns
            .command("tc", &[&words[..], &more[..]].concat())
            .map(drop)
    }

    /// Each host gets so many cores, less than one or several, as if it had them for itself: its
    /// agent and its containerd. Takes cgroup 1.
    pub fn limit_cores(&self, cores: f64) -> Result<()> {
        for host in &self.hosts {
            let parent = host.ground.cgroup_parent();
            let group = Path::new(CPU_CGROUPS).join(parent.trim_start_matches('/'));
            let write = |file: &str, value: u64| {
                let file = group.join(file);
                fs::write(&file, value.to_string()).with_context(|| format!("write {file:?}"))
            };
            fs::create_dir_all(&group).with_context(|| format!("create {group:?}"))?;
            write("cpu.cfs_period_us", CPU_PERIOD_US)?;
            write("cpu.cfs_quota_us", (cores * CPU_PERIOD_US as f64) as u64)?;
            let agent = host.agent.pid().context("no agent")?;
            let containerd = host.containerd.pid().context("no containerd")?;
            for pid in [agent, containerd] {
                write("cgroup.procs", pid.into())?;
            }
        }
        Ok(())
    }

    /// Bytes that the registry sent so far, with all that belongs to them.
    pub fn registry_sent(&self) -> Result<u64> {
        self.center.netns().run(|| {
            // Not /proc/net: that is the network of the process, not of this thread.
            let text = fs::read_to_string("/proc/thread-self/net/dev").context("read net/dev")?;
            let name = format!("{SWITCH}:");
            let mut lines = text.lines();
            let counters = lines.find_map(|line| line.trim().strip_prefix(&name));
            // Sixteen columns: those of what was received come first.
            let sent = counters.and_then(|line| line.split_whitespace().nth(8)?.parse().ok());
            sent.context("no counters of the switch")
        })
    }
}

impl Member {
    /// Takes a certificate of somebody else's for its own, before its agent is started.
    pub fn pose(&self, authority: &Authority) -> Result<()> {
        certificate_of(&self.ground, self.number, authority).map(drop)
    }

    /// `nodeagent image pull`.
    pub fn pull(&self, reference: &str) -> Result<ImageDocument> {
        self.image(&["pull", reference])?.document(0)
    }

    /// `nodeagent image`.
    pub fn image(&self, arguments: &[&str]) -> Result<Answer> {
        self.agent.cli().json(&[&["image"], arguments].concat())
    }

    /// Where it serves its layers.
    pub fn address(&self) -> SocketAddr {
        (address(self.number), PEERS).into()
    }

    /// containerd's version.
    pub fn containerd_version(&self) -> Result<String> {
        self.containerd.version()
    }
}

/// Everything is in TEST-NET-2 (RFC 5737).
fn center_address() -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, 1)
}

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, 10 + number)
}

fn token_of(host: &Ground) -> Result<String> {
    let token = host.path("peers.token");
    fs::write(&token, format!("{TOKEN}\n"))?;
    fs::set_permissions(&token, Permissions::from_mode(0o600))?;
    Ok(format!("token_file = {token:?}"))
}

/// Lays a certificate of `authority` beside the host's other files.
fn certificate_of(host: &Ground, number: u8, authority: &Authority) -> Result<String> {
    let names = format!(
        "subjectAltName=IP:{}\nextendedKeyUsage=serverAuth,clientAuth",
        address(number)
    );
    let signed = authority.sign(&format!("host-{number}"), &names)?;
    let place = |name: &str, from: &Path| -> Result<String> {
        let to = host.path(&format!("peers.{name}.pem"));
        fs::copy(from, &to).with_context(|| format!("copy {from:?}"))?;
        fs::set_permissions(&to, Permissions::from_mode(0o600))?;
        Ok(format!("{name} = {to:?}"))
    };
    let settings = [
        place("certificate", &signed.file)?,
        place("key", &signed.key)?,
        place("ca", &authority.file())?,
    ];
    Ok(settings.join("\n"))
}

/// The settings of a host: the list is the same for all, `secret` says how they know each other.
fn peers(count: u8, own: u8, secret: &str) -> String {
    let host = |number| format!("{{ address = \"{}:{PEERS}\" }}", address(number));
    let hosts: Vec<String> = (0..count).map(host).collect();
    format!(
        "[images.peers]\nlisten = \"{}:{PEERS}\"\nhosts = [{}]\n{secret}\n",
        address(own),
        hosts.join(", ")
    )
}

fn connect(center: &Ground, host: &Ground, number: u8) -> Result<()> {
    let (address, name) = (format!("{}/24", address(number)), format!("host{number}"));
    let center = center.netns();
    lay_wire(host.netns(), &address, center, &name)?;
    center.ip(&format!("link set {name} master {SWITCH}"))
}
