//! A real containerd of the host's own: own configuration, root, state and socket; with the plugin
//! for the kubelet (CRI) where a test wants it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, ListSnapshotsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
    ViewSnapshotRequest, snapshots_client::SnapshotsClient,
};
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::version_client::VersionClient;
use containerd_client::services::v1::{
    DeleteContainerRequest, ListContainersRequest, ListTasksRequest,
    containers_client::ContainersClient,
};
use rustix::mount::{UnmountFlags, unmount};
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::faults::FaultyRegistry;
use crate::ground::Ground;
use crate::process::Process;
use crate::registry::Registry;
use crate::tree::Tree;
use crate::wait::{Look, until};

const STARTS: Duration = Duration::from_secs(20);
const STOPS: Duration = Duration::from_secs(20);
const ANSWERS: Duration = Duration::from_secs(10);

/// Snapshotter of all test hosts.
pub const SNAPSHOTTER: &str = "overlayfs";

/// Where that keeps the layers, below a host's directory.
const SNAPSHOTS: &str = "containerd/root/io.containerd.snapshotter.v1.overlayfs/snapshots";

/// What speaks with the kubelet: in 1.6, and in 2.x.
const CRI_PLUGINS: [&str; 3] = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
];

/// Registries of tests speak plain HTTP, which 2.x tries only after TLS.
fn plain_http(hosts: &Path, registry: &str) -> Result<()> {
    let directory = hosts.join(registry);
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    let file = directory.join("hosts.toml");
    fs::write(&file, format!("server = \"http://{registry}\"\n"))
        .with_context(|| format!("write {}", file.display()))
}

/// The CRI plugin's configuration, in the words of 1.6 that 2.x understands, too: nothing of it is
/// the machine's.
fn cri(ground: &Ground, sandbox: &str) -> String {
    let directory = ground.path("cri");
    let directory = directory.display();
    format!(
        r#"[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{sandbox}"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{directory}/cni-bin"
conf_dir = "{directory}/cni"
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{directory}/hosts"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
Root = "{directory}/runc"
"#
    )
}

/// The socket of the containerd of the host in `directory`.
pub(crate) fn socket(directory: &Path) -> PathBuf {
    directory.join("containerd.sock")
}

/// Bundles (`…/<namespace>/<id>`) of the tasks of the containerd of the host in `directory`.
pub(crate) fn bundles(directory: &Path) -> Vec<PathBuf> {
    let tasks = directory.join("containerd/state/io.containerd.runtime.v2.task");
    let below = |directory: PathBuf| {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.map(|entry| entry.path())
    };
    below(tasks).flat_map(below).collect()
}

/// A containerd; dropped, it is killed, and its containers stay until the host goes.
#[derive(Debug)]
pub struct Containerd {
    socket: PathBuf,
    config: PathBuf,
    process: Option<Process>,
    runtime: Runtime,
}

impl Containerd {
    /// Writes the configuration, starts containerd and waits until it answers.
    pub fn start(ground: &Ground) -> Result<Self> {
        let containerd = Self::prepare(ground)?;
        Ok(Self {
            process: Some(containerd.launch(ground)?),
            ..containerd
        })
    }

    /// Its process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// The same with the CRI plugin; pods' sandboxes are of the image `sandbox`.
    pub fn start_with_cri(ground: &Ground, sandbox: &str) -> Result<Self> {
        for registry in [Registry::address(), FaultyRegistry::address()] {
            plain_http(&ground.path("cri/hosts"), &registry.to_string())?;
        }
        let containerd = Self::prepare_with(ground, &[], &cri(ground, sandbox))?;
        Ok(Self {
            process: Some(containerd.launch(ground)?),
            ..containerd
        })
    }

    /// Writes the configuration without starting it.
    pub fn prepare(ground: &Ground) -> Result<Self> {
        Self::prepare_with(ground, &CRI_PLUGINS, "")
    }

    fn prepare_with(ground: &Ground, disabled: &[&str], more: &str) -> Result<Self> {
        let disabled: String = disabled
            .iter()
            .map(|name| format!("  {name:?},\n"))
            .collect();
        let socket = socket(ground.directory());
        let config = ground.path("containerd.toml");
        let directory = ground.directory().display();
        // /opt/containerd would be the machine's; the disabled plugins want devices or the machine's.
        // The names of 1.6 and of 2.2 together: a name that a containerd does not know is ignored.
        let text = format!(
            r#"version = 2
root = "{directory}/containerd/root"
state = "{directory}/containerd/state"
disabled_plugins = [
{disabled}  "io.containerd.nri.v1.nri",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
path = "{directory}/containerd/opt"
{more}"#,
            socket = socket.display(),
        );
        fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("make a runtime for containerd's client")?;
        Ok(Self {
            socket,
            config,
            process: None,
            runtime,
        })
    }

    fn launch(&self, ground: &Ground) -> Result<Process> {
        let mut command = Command::new("containerd");
        command.arg("--config").arg(&self.config);
        let mut process = Process::start(ground, "containerd", command)?;
        until("containerd to answer", STARTS, || {
            if let Some(status) = process.ended()? {
                anyhow::bail!("containerd ended ({status}):\n{}", process.tail(20));
            }
            Ok(match self.version() {
                Ok(_) => Look::Seen(()),
                Err(error) => Look::NotYet(format!("{error:#}")),
            })
        })?;
        Ok(process)
    }

    /// Starts it again after [`stop`](Self::stop) or [`kill`](Self::kill).
    pub fn start_again(&mut self, ground: &Ground) -> Result<()> {
        ensure!(self.process.is_none(), "containerd runs already");
        self.process = Some(self.launch(ground)?);
        Ok(())
    }

    /// Ends it in order; containers and shims go on.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.terminate(STOPS)?;
        }
        Ok(())
    }

    /// Ends it by SIGKILL; containers and shims go on.
    pub fn kill(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.kill(),
            None => Ok(()),
        }
    }

    /// The gRPC socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Version of the running program.
    pub fn version(&self) -> Result<String> {
        self.ask(async |channel| {
            let answer = VersionClient::new(channel).version(()).await?;
            Ok(answer.into_inner().version)
        })
        .context("ask containerd for its version")
    }

    /// Ids of the containers in `namespace`.
    pub fn containers(&self, namespace: &str) -> Result<Vec<String>> {
        self.ask(async |channel| {
            let request = within(namespace, ListContainersRequest::default())?;
            let answer = ContainersClient::new(channel).list(request).await?;
            let containers = answer.into_inner().containers;
            Ok(containers.into_iter().map(|c| c.id).collect())
        })
        .with_context(|| format!("list containers in {namespace}"))
    }

    /// Container id -> pid of the tasks in `namespace`.
    pub fn tasks(&self, namespace: &str) -> Result<BTreeMap<String, u32>> {
        self.ask(async |channel| {
            let request = within(namespace, ListTasksRequest::default())?;
            let answer = TasksClient::new(channel).list(request).await?;
            let tasks = answer.into_inner().tasks;
            Ok(tasks.into_iter().map(|t| (t.id, t.pid)).collect())
        })
        .with_context(|| format!("list tasks in {namespace}"))
    }

    /// Deletes the record of a container and nothing else: its task goes on, known to nobody.
    pub fn forget(&self, namespace: &str, id: &str) -> Result<()> {
        self.ask(async |channel| {
            let request = DeleteContainerRequest { id: id.to_owned() };
            let mut client = ContainersClient::new(channel);
            client.delete(within(namespace, request)?).await.map(drop)
        })
        .with_context(|| format!("delete the record of {id} in {namespace}"))
    }

    /// Keys of the active snapshots in `namespace`: the writable ones, not the images' layers.
    pub fn active_snapshots(&self, namespace: &str) -> Result<Vec<String>> {
        const ACTIVE: i32 = containerd_client::services::v1::snapshots::Kind::Active as i32;
        self.ask(async |channel| {
            let request = ListSnapshotsRequest {
                snapshotter: SNAPSHOTTER.to_owned(),
                filters: Vec::new(),
            };
            let mut client = SnapshotsClient::new(channel);
            let mut answers = match client.list(within(namespace, request)?).await {
                Ok(answers) => answers.into_inner(),
                Err(none) if none.code() == Code::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(error),
            };
            let mut keys = Vec::new();
            while let Some(page) = answers.message().await? {
                let active = page.info.into_iter().filter(|info| info.kind == ACTIVE);
                keys.extend(active.map(|info| info.name));
            }
            Ok(keys)
        })
        .with_context(|| format!("list snapshots in {namespace}"))
    }

    /// Makes `length` empty snapshots, each on the one before: what an image of so many layers takes
    /// of containerd alone. How long that took.
    pub fn chain(&self, namespace: &str, length: usize) -> Result<Duration> {
        let labels = || [("containerd.io/gc.root".to_owned(), "1".to_owned())].into();
        self.ask(async |channel| {
            let mut client = SnapshotsClient::new(channel);
            let start = Instant::now();
            let mut parent = String::new();
            for number in 0..length {
                let (key, name) = (format!("key-{number}"), format!("layer-{number}"));
                let prepare = PrepareSnapshotRequest {
                    snapshotter: SNAPSHOTTER.to_owned(),
                    key: key.clone(),
                    parent,
                    labels: labels(),
                };
                client.prepare(within(namespace, prepare)?).await?;
                let commit = CommitSnapshotRequest {
                    snapshotter: SNAPSHOTTER.to_owned(),
                    name: name.clone(),
                    key,
                    labels: labels(),
                };
                client.commit(within(namespace, commit)?).await?;
                parent = name;
            }
            Ok(start.elapsed())
        })
        .with_context(|| format!("make {length} snapshots in {namespace}"))
    }

    /// What a container of `namespace` would see of an image whose topmost layer is unpacked as
    /// `chain_id`. `ctr images mount` is not asked: that of 2.2 fails where it is the only layer.
    pub fn tree(&self, ground: &Ground, namespace: &str, chain_id: &str) -> Result<Tree> {
        let key = format!("{namespace}-{}", chain_id.trim_start_matches("sha256:"));
        let point = ground.path(&key);
        fs::create_dir_all(&point).with_context(|| format!("create {}", point.display()))?;
        let view = ViewSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            key: key.clone(),
            parent: chain_id.to_owned(),
            // Nobody else refers to it: the collector leaves it alone.
            labels: [("containerd.io/gc.root".to_owned(), "1".to_owned())].into(),
        };
        let mounts = self.ask(async |channel| {
            let mut client = SnapshotsClient::new(channel);
            let viewed = client.view(within(namespace, view)?).await?;
            Ok(viewed.into_inner().mounts)
        });
        for mount in mounts.with_context(|| format!("view {chain_id} in {namespace}"))? {
            // A hundred lower directories by their whole names are more than mount(2) takes.
            let snapshots = ground.path(SNAPSHOTS);
            let options = mount.options.join(",");
            let options = options.replace(&format!("{}/", snapshots.display()), "");
            let mut command = Command::new("mount");
            command.args(["-t", &mount.r#type, &mount.source, "-o", &options]);
            command.arg(&point).current_dir(&snapshots);
            let mounted = command.output().context("run mount(8)")?;
            let said = String::from_utf8_lossy(&mounted.stderr);
            ensure!(mounted.status.success(), "{command:?}: {}", said.trim());
        }
        let tree = Tree::read(&point);
        // Children that other tests fork meanwhile have our descriptors until they execute: the
        // mount ends with the last of them.
        unmount(&point, UnmountFlags::DETACH)
            .with_context(|| format!("unmount {}", point.display()))?;
        let remove = RemoveSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            key,
        };
        self.ask(async |channel| {
            let mut client = SnapshotsClient::new(channel);
            client.remove(within(namespace, remove)?).await.map(drop)
        })?;
        tree
    }

    /// Where `path` of an image lies on the disk, in the only layer that has it.
    pub fn unpacked(&self, ground: &Ground, path: &str) -> Result<PathBuf> {
        let snapshots = ground.path(SNAPSHOTS);
        let mut found = Vec::new();
        let list = || format!("list {}", snapshots.display());
        for entry in fs::read_dir(&snapshots).with_context(list)? {
            found.push(entry.with_context(list)?.path().join("fs").join(path));
        }
        found.retain(|file| file.symlink_metadata().is_ok());
        match &found[..] {
            [only] => Ok(only.clone()),
            _ => anyhow::bail!("{path} lies at {found:?}"),
        }
    }

    /// What lies in the directory in which agents extract layers, beside their own directories.
    pub fn half_unpacked(&self, ground: &Ground) -> Result<Vec<PathBuf>> {
        let workplace = ground.path(SNAPSHOTS).with_file_name("nodeagent");
        let mut found = Vec::new();
        let list = || format!("list {}", workplace.display());
        for agent in fs::read_dir(&workplace).with_context(list)? {
            for tree in fs::read_dir(agent.with_context(list)?.path()).with_context(list)? {
                found.push(tree.with_context(list)?.path());
            }
        }
        Ok(found)
    }

    /// Ids of the leases in `namespace`.
    pub fn leases(&self, namespace: &str) -> Result<Vec<String>> {
        self.ask(async |channel| {
            let request = containerd_client::services::v1::ListRequest::default();
            let answer = LeasesClient::new(channel)
                .list(within(namespace, request)?)
                .await?;
            let leases = answer.into_inner().leases;
            Ok(leases.into_iter().map(|lease| lease.id).collect())
        })
        .with_context(|| format!("list leases in {namespace}"))
    }

    pub(crate) fn ask<T>(
        &self,
        question: impl AsyncFnOnce(Channel) -> Result<T, Status>,
    ) -> Result<T> {
        self.runtime.block_on(async {
            let answer = tokio::time::timeout(ANSWERS, async {
                let channel = containerd_client::connect(&self.socket)
                    .await
                    .with_context(|| format!("connect to {}", self.socket.display()))?;
                Ok::<T, anyhow::Error>(question(channel).await?)
            });
            answer
                .await
                .with_context(|| format!("containerd did not answer within {ANSWERS:?}"))?
        })
    }
}

fn within<T>(namespace: &str, message: T) -> Result<Request<T>, Status> {
    let mut request = Request::new(message);
    let value = namespace
        .parse()
        .map_err(|_| Status::invalid_argument(format!("namespace {namespace:?}")))?;
    request.metadata_mut().insert("containerd-namespace", value);
    Ok(request)
}
