//! A real kubelet 1.34 (`tests/peers/build kubelet-1.34.4`) on a host of its own: no API server, pods
//! from manifests in a directory.
//!
//! What a kubelet does to a machine, it does here to the host: its directories are the host's, pods
//! are in the host's cgroup, and a mount namespace of its own hides the machine's kernel settings,
//! `/var/log` and `/var/lib`, which have no flags.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::containerd::Containerd;
use crate::ground::Ground;
use crate::http;
use crate::netns::{HOST, Netns};
use crate::peers;
use crate::process::Process;
use crate::wait::{Look, until};

const PEER: &str = "kubelet-1.34.4";
const STARTS: Duration = Duration::from_secs(60);
/// From the manifest to a running container, and back.
const PODS: Duration = Duration::from_secs(60);
/// Where it tells its pods without asking who calls.
const PORT: u16 = 10255;

/// Settings of the kernel that a kubelet sets, and to what (kubelet,
/// `cm/container_manager_linux.go`, `setupKernelTunables`).
const TUNABLES: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// A kubelet; dropped, it is killed, and its containers stay until the host goes.
#[derive(Debug)]
pub struct Kubelet {
    netns: Netns,
    directory: PathBuf,
    process: Process,
}

/// What a pod's container was made from, and how it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodContainer {
    /// The image's name by digest.
    pub image_id: String,
    /// The state's name: `running`.
    pub state: String,
    /// Why it waits, when it does.
    pub reason: String,
}

impl Kubelet {
    /// Starts it; `collection` is what its configuration says about collecting images.
    pub fn start(ground: &Ground, containerd: &Containerd, collection: &str) -> Result<Self> {
        let directory = ground.path("kubelet");
        for below in [
            "manifests",
            "root",
            "certificates",
            "logs",
            "plugins",
            "lib",
        ] {
            let below = directory.join(below);
            fs::create_dir_all(&below).with_context(|| format!("create {}", below.display()))?;
        }
        let at = directory.display();
        let config = directory.join("config.yaml");
        let text = format!(
            "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
staticPodPath: {at}/manifests
fileCheckFrequency: 1s
syncFrequency: 1s
containerRuntimeEndpoint: unix://{socket}
address: {HOST}
port: 10250
readOnlyPort: {PORT}
authentication: {{ anonymous: {{ enabled: true }}, webhook: {{ enabled: false }} }}
authorization: {{ mode: AlwaysAllow }}
registerNode: false
failCgroupV1: false
failSwapOn: false
cgroupDriver: cgroupfs
cgroupRoot: {cgroup}
cgroupsPerQOS: false
enforceNodeAllocatable: []
makeIPTablesUtilChains: false
oomScoreAdj: 0
maxOpenFiles: 4096
volumePluginDir: {at}/plugins
podLogsDir: {at}/logs
{collection}",
            socket = containerd.socket().display(),
            cgroup = ground.cgroup_parent(),
        );
        fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
        let program = peers::programs(PEER).join("kubelet");
        ensure!(
            program.exists(),
            "{} is missing; build it by `tests/peers/build {PEER}`",
            program.display()
        );
        let mut script = String::from("set -e\n");
        for (name, value) in TUNABLES {
            let file = directory.join(name.replace('/', "-"));
            fs::write(&file, format!("{value}\n"))
                .with_context(|| format!("write {}", file.display()))?;
            script.push_str(&format!(
                "mount --bind {} /proc/sys/{name}\n",
                file.display()
            ));
        }
        script.push_str(&format!(
            "mount --bind {at}/logs /var/log\nmount --bind {at}/lib /var/lib\nexec \"$0\" \"$@\""
        ));
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "slave", "sh", "-c", &script])
            .arg(&program)
            .arg(format!("--config={}", config.display()))
            .arg(format!("--root-dir={at}/root"))
            .arg(format!("--cert-dir={at}/certificates"))
            .arg(format!("--node-ip={HOST}"))
            .args(["--hostname-override=test-host", "--v=5"]);
        let mut process = Process::start(ground, "kubelet", command)?;
        let netns = ground.netns().clone();
        until("the kubelet to answer", STARTS, || {
            if let Some(status) = process.ended()? {
                bail!("the kubelet ended ({status}):\n{}", process.tail(30));
            }
            Ok(match http::get(&netns, (HOST, PORT).into(), "/pods") {
                Ok(answer) if answer.status == 200 => Look::Seen(()),
                Ok(answer) => Look::NotYet(answer.text()),
                Err(error) => Look::NotYet(format!("{error:#}")),
            })
        })?;
        Ok(Self {
            netns,
            directory,
            process,
        })
    }

    /// Its configuration.
    pub fn config(&self) -> PathBuf {
        self.directory.join("config.yaml")
    }

    /// Runs a pod of one container in the host's network.
    pub fn run(&self, name: &str, image: &str, policy: &str) -> Result<()> {
        let manifest = self.directory.join(format!("manifests/{name}.yaml"));
        let text = format!(
            "apiVersion: v1
kind: Pod
metadata: {{ name: {name}, namespace: default }}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  containers:
  - {{ name: main, image: {image:?}, imagePullPolicy: {policy} }}
"
        );
        fs::write(&manifest, text).with_context(|| format!("write {}", manifest.display()))
    }

    /// Waits until the container of the pod is as `wanted` says.
    pub fn wait_for(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&PodContainer) -> bool,
    ) -> Result<PodContainer> {
        // A static pod is named after its node, too.
        let name = format!("{name}-test-host");
        let waited = until(&format!("{name} to be {what}"), PODS, || {
            let answer = http::get(&self.netns, (HOST, PORT).into(), "/pods")?;
            let pods: Value = serde_json::from_str(&answer.text()).context("read /pods")?;
            let pods = pods["items"].as_array().cloned().unwrap_or_default();
            let pod = pods
                .iter()
                .find(|pod| pod["metadata"]["name"] == name.as_str());
            let Some(status) = pod.map(|pod| &pod["status"]) else {
                return Ok(Look::NotYet("there is no such pod".to_owned()));
            };
            let container = container(&status["containerStatuses"][0]);
            Ok(match wanted(&container) {
                true => Look::Seen(container),
                false => Look::NotYet(status.to_string()),
            })
        });
        waited.with_context(|| self.tail(40))
    }

    /// Waits until its log has a line with all of these.
    pub fn wait_for_log(&self, parts: &[&str], within: Duration) -> Result<String> {
        let waited = until(&format!("{parts:?} in the kubelet's log"), within, || {
            let log = fs::read_to_string(self.process.log()).context("read the kubelet's log")?;
            let line = log
                .lines()
                .find(|line| parts.iter().all(|part| line.contains(part)));
            Ok(match line {
                Some(line) => Look::Seen(line.to_owned()),
                None => Look::NotYet("it is not there".to_owned()),
            })
        });
        waited.with_context(|| self.tail(40))
    }

    /// The last `lines` of its log.
    pub fn tail(&self, lines: usize) -> String {
        self.process.tail(lines)
    }
}

fn container(status: &Value) -> PodContainer {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let state = status["state"].as_object();
    let state = state.and_then(|state| state.iter().next());
    PodContainer {
        image_id: text(&status["imageID"]),
        state: state.map(|(name, _)| name.clone()).unwrap_or_default(),
        reason: state
            .map(|(_, state)| text(&state["reason"]))
            .unwrap_or_default(),
    }
}
