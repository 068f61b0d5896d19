//! A whole test host: ground, containerd, registry, agent.

use std::ffi::CString;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, mount};

use crate::agent::Agent;
use crate::cli::Cli;
use crate::containerd::Containerd;
use crate::documents::{Alarm, Backend, Pool, TargetGroup, TaskInstance};
use crate::ground::Ground;
use crate::http::{self, Response};
use crate::image::{Image, PAGE, Pushed};
use crate::leaks;
use crate::manifest::Manifest;
use crate::registry::Registry;
use crate::wait::{Look, until};

/// How long a pool may take until it is as wanted: pull, unpack, arm.
const SETTLES: Duration = Duration::from_secs(60);

/// One host with everything on it. Dropped, it is removed; when the test panics, it first shows
/// the agent's log.
#[derive(Debug)]
pub struct TestHost {
    // Fields are dropped in this order: the agent goes before what it talks to, the ground last.
    /// The agent.
    pub agent: Agent,
    /// containerd.
    pub containerd: Containerd,
    /// The registry.
    pub registry: Registry,
    /// What it all stands on.
    pub ground: Ground,
}

impl TestHost {
    /// A host whose agent is ready; the drain's bound is short, so that tests are.
    pub fn start() -> Result<Self> {
        Self::start_with("[discovery.file]\npropagation_bound = \"100ms\"\n")
    }

    /// The same with this addition to the agent's configuration instead.
    pub fn start_with(config: &str) -> Result<Self> {
        let mut host = Self::without_agent(config)?;
        host.agent.start(&host.ground)?;
        Ok(host)
    }

    /// containerd and registry run, the agent is configured and not started.
    pub fn without_agent(config: &str) -> Result<Self> {
        Self::on(Ground::new()?, config)
    }

    fn on(ground: Ground, config: &str) -> Result<Self> {
        let containerd = Containerd::start(&ground)?;
        let registry = Registry::start(&ground)?;
        let agent = Agent::prepare(&ground, containerd.socket(), config)?;
        Ok(Self {
            agent,
            containerd,
            registry,
            ground,
        })
    }

    /// The same with a file system of its own for containerd's root: so many bytes, so many inodes.
    pub fn with_small_containerd(config: &str, bytes: u64, inodes: u32) -> Result<Self> {
        let ground = Ground::new()?;
        small_disk(&ground.path("containerd/root"), bytes, inodes)?;
        let mut host = Self::on(ground, config)?;
        host.agent.start(&host.ground)?;
        Ok(host)
    }

    /// The first start of the agent, with this drop-in (behind `version = 1`) beside its
    /// configuration; the web image is there.
    pub fn start_beside(&mut self, drop_in: &str) -> Result<()> {
        let file = self.agent.config().join("30-beside.toml");
        let text = format!("version = 1\n{drop_in}");
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        self.agent.start(&self.ground)?;
        self.push(&Image::web()?, "web:1").map(drop)
    }

    /// The agent's CLI.
    pub fn cli(&self) -> &Cli {
        self.agent.cli()
    }

    /// Pushes `image` as `name` (`web:1`).
    pub fn push(&self, image: &Image, name: &str) -> Result<Pushed> {
        image.push(&self.registry, name)
    }

    /// Writes a file into the host's directory.
    pub fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let file = self.ground.path(name);
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        Ok(file)
    }

    /// Applies a manifest that has to be accepted.
    pub fn apply(&self, manifest: &Manifest) -> Result<()> {
        let name = format!("{}.yaml", manifest.app());
        self.cli().apply(&self.file(&name, &manifest.text())?)
    }

    /// Pushes the web image, applies its manifest with `armed` warm instances, and waits for them.
    pub fn warm_web(&self, armed: u32) -> Result<()> {
        self.push(&Image::web()?, "web:1")?;
        self.apply(&Manifest::web("web").armed(armed))?;
        self.wait_for_armed("web", armed)
    }

    /// Waits until `app` has `armed` instances at the gate and nothing is on its way.
    pub fn wait_for_armed(&self, app: &str, armed: u32) -> Result<()> {
        self.wait_for_pool(app, &format!("{armed} armed and quiet"), |pool| {
            pool.armed == armed && pool.arming + pool.starting + pool.draining == 0
        })
        .map(drop)
    }

    /// Waits until the pool of `app` is as `wanted` says.
    pub fn wait_for_pool(
        &self,
        app: &str,
        what: &str,
        wanted: impl Fn(&Pool) -> bool,
    ) -> Result<Pool> {
        let waited = until(&format!("{what} in the pool of {app}"), SETTLES, || {
            let status = self.cli().status()?;
            // Until an agent that was started has observed its host, it has no pools to show.
            let pool = status.pools.iter().find(|pool| pool.app == app);
            Ok(match pool {
                Some(pool) if wanted(pool) => Look::Seen(pool.clone()),
                _ => Look::NotYet(format!("{status:?}")),
            })
        });
        waited.with_context(|| self.agent.tail(30))
    }

    /// Waits until the discovery backend `name` is as `wanted` says.
    pub fn wait_for_backend(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&Backend) -> bool,
    ) -> Result<Backend> {
        let waited = until(&format!("{name} to be {what}"), SETTLES, || {
            let backends = self.cli().status()?.host.discovery;
            let backend = backends.into_iter().find(|backend| backend.name == name);
            Ok(match backend {
                Some(backend) if wanted(&backend) => Look::Seen(backend),
                other => Look::NotYet(format!("{other:?}")),
            })
        });
        waited.with_context(|| self.agent.tail(30))
    }

    /// Waits until the alarms about the discovery backend `name` have exactly these codes.
    pub fn wait_for_backend_alarms(&self, name: &str, codes: &[&str]) -> Result<Vec<Alarm>> {
        let waited = until(&format!("alarms {codes:?} about {name}"), SETTLES, || {
            let mut alarms = self.cli().status()?.alarms;
            alarms.retain(|alarm| alarm.backend.as_deref() == Some(name));
            Ok(if alarms.iter().map(|alarm| &alarm.code).eq(codes) {
                Look::Seen(alarms)
            } else {
                Look::NotYet(format!("{alarms:?}"))
            })
        });
        waited.with_context(|| self.agent.tail(30))
    }

    /// GETs `/` of an instance.
    pub fn fetch(&self, instance: &TaskInstance) -> Result<Response> {
        http::get(self.ground.netns(), address_of(instance)?, "/")
    }

    /// Fails unless the instance serves the page of [`Image::web`].
    pub fn assert_serves(&self, instance: &TaskInstance) -> Result<()> {
        let page = self.fetch(instance)?;
        ensure!(
            page.status == 200,
            "{}: status {}",
            instance.name,
            page.status
        );
        let text = page.text();
        ensure!(text.contains(PAGE), "{} serves {text:?}", instance.name);
        Ok(())
    }

    /// The Prometheus discovery file.
    pub fn prometheus_file(&self) -> PathBuf {
        self.agent.runtime().join("discovery/prometheus.json")
    }

    /// The Envoy discovery file of a service.
    pub fn envoy_file(&self, service: &str) -> PathBuf {
        let file = format!("discovery/eds/{service}.json");
        self.agent.runtime().join(file)
    }

    /// `address:port` of what the Prometheus file offers, sorted.
    pub fn discovered(&self) -> Result<Vec<String>> {
        let mut targets: Vec<String> = read_groups(&self.prometheus_file())?
            .into_iter()
            .flat_map(|group| group.targets)
            .collect();
        targets.sort();
        Ok(targets)
    }

    /// Ids of the agent's containers, sorted.
    pub fn containers(&self) -> Result<Vec<String>> {
        let mut ids = self.containerd.containers(self.agent.namespace())?;
        ids.sort();
        Ok(ids)
    }

    /// Fails unless soon nothing of any instance is left.
    pub fn assert_nothing_left(&self) -> Result<()> {
        leaks::assert_none(&self.ground, &self.containerd, &self.agent)
            .with_context(|| self.agent.tail(30))
    }

    /// Takes `app`, the last one, out of service, deletes it, and fails if anything is left.
    pub fn remove_app(&self, app: &str) -> Result<()> {
        self.remove_app_only(app)?;
        self.assert_nothing_left()
    }

    /// Takes `app` out of service and deletes it, beside others that stay.
    pub fn remove_app_only(&self, app: &str) -> Result<()> {
        // An id of its own each time: an app may come and go more than once.
        self.cli().json(&["deactivate", app, "--to", "0"])?.ok()?;
        self.cli().json(&["app", "delete", app])?.ok().map(drop)
    }

    /// Mounts a small file system of its own at `name` below the host's directory.
    pub fn small_disk(&self, name: &str, bytes: u64) -> Result<PathBuf> {
        self.small_disk_of(name, bytes, 100_000)
    }

    /// The same with room for so many inodes.
    pub fn small_disk_of(&self, name: &str, bytes: u64, inodes: u32) -> Result<PathBuf> {
        let point = self.ground.path(name);
        small_disk(&point, bytes, inodes)?;
        Ok(point)
    }
}

impl Drop for TestHost {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.agent.tail(60));
        }
    }
}

/// Mounts a small file system of its own at `point`, which is made.
pub fn small_disk(point: &Path, bytes: u64, inodes: u32) -> Result<()> {
    fs::create_dir_all(point).with_context(|| format!("create {}", point.display()))?;
    let options =
        CString::new(format!("size={bytes},nr_inodes={inodes}")).context("options of a mount")?;
    let options = Some(options.as_c_str());
    mount("tmpfs", point, "tmpfs", MountFlags::empty(), options)
        .with_context(|| format!("mount a tmpfs at {}", point.display()))
}

/// Where an instance of a task serves.
pub fn address_of(instance: &TaskInstance) -> Result<SocketAddr> {
    let address = instance.address.as_deref();
    let address = address.with_context(|| format!("{} has no address", instance.name))?;
    let ip: IpAddr = address
        .parse()
        .with_context(|| format!("{} has address {address:?}", instance.name))?;
    let port = instance
        .port
        .with_context(|| format!("{} has no port", instance.name))?;
    Ok(SocketAddr::new(ip, port))
}

fn read_groups(file: &Path) -> Result<Vec<TargetGroup>> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("parse {}", file.display()))
}
