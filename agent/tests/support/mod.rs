//! A private containerd and registry for one test: own network namespace, directories, sockets and
//! cgroups, all gone afterwards, also when the test fails.

#![allow(dead_code, reason = "each test program uses its part of the support")]

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nodeagent::config;
use nodeagent::runtime::Containerd;
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub mod etcd;
pub mod image;

/// Longest that anything in a test may take to come true.
pub const SOON: Duration = Duration::from_secs(20);

/// Moves this thread, and all that it starts, into a network namespace of its own.
pub fn enter_own_network() {
    let mut holder = Command::new("unshare")
        .args([
            "--net",
            "sh",
            "-c",
            "ip link set lo up && echo up && exec sleep 1000",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 3];
    std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut said).unwrap();
    let namespace = fs::File::open(format!("/proc/{}/ns/net", holder.id())).unwrap();
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    holder.kill().unwrap();
    holder.wait().unwrap();
}

/// Waits until `look` finds something, and says what was waited for when it does not come.
pub async fn until<T, F>(what: &str, mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let begin = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begin.elapsed() < SOON, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A machine as far as one test sees it.
pub struct Host {
    pub directory: tempfile::TempDir,
    pub cgroup_parent: String,
    /// Of its own: runc keeps its state in `/run/containerd/runc/<namespace>/<id>`, whichever
    /// containerd it works for.
    pub namespace: String,
    containerd: Option<Child>,
    registry: Option<Child>,
}

impl Host {
    /// A host with containerd running, in a network namespace of its own.
    pub fn start() -> Self {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        enter_own_network();
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut host = Self {
            directory: tempfile::Builder::new()
                .prefix("nodeagent-rt")
                .tempdir()
                .unwrap(),
            cgroup_parent: format!("/nodeagent-rt-{}-{count}", std::process::id()),
            namespace: format!("nodeagent-rt-{}-{count}", std::process::id()),
            containerd: None,
            registry: None,
        };
        host.start_containerd();
        host
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn settings(&self) -> config::Containerd {
        config::Containerd {
            socket: self.path("c.sock"),
            namespace: self.namespace.clone(),
            snapshotter: "overlayfs".to_owned(),
            timeout: Duration::from_secs(10),
        }
    }

    pub fn runtime(&self) -> config::Runtime {
        config::Runtime {
            shim: "io.containerd.runc.v2".to_owned(),
            binary: None,
            scope: config::UseScope::Never,
            cgroup_parent: self.cgroup_parent.clone(),
            container_init: PathBuf::from("/nonexistent"),
        }
    }

    pub fn images(&self) -> config::Images {
        config::Images {
            insecure_registries: Vec::new(),
            pull_timeout: Duration::from_secs(60),
            stall_timeout: Duration::from_secs(10),
            auth_file: None,
            root: self.path("images"),
            hosts_dir: None,
            ca_file: None,
            bandwidth: 0,
            keep_blobs: true,
            stable_file: None,
            check_interval: Duration::from_secs(600),
            max_size: 0,
            max_files: 0,
            kubelet_config: "/var/lib/kubelet/config.yaml".into(),
            connections: 12,
            connections_per_blob: 4,
            chunk: 16 << 20,
            retries: 32,
            hedge_after: Duration::from_secs(3),
            proxy: imagecache::fetch::ProxySettings::Environment,
            credential_helpers: None,
            policy: imagecache::policy::PolicySettings::default(),
            peers: None,
        }
    }

    /// An OCI runtime that never ends its `create`, and leaves a process in the cgroup of `id`.
    pub fn hanging_runc(&self, id: &str) -> PathBuf {
        let path = self.path("hanging-runc");
        let cgroup = format!("/sys/fs/cgroup/pids{}/{id}", self.cgroup_parent);
        let script = format!(
            "#!/bin/sh\nfor word; do [ \"$word\" = create ] || continue\n\
             mkdir -p {cgroup}; sleep 1000 </dev/null >/dev/null 2>&1 & echo $! > {cgroup}/cgroup.procs\n\
             exec sleep 1000\ndone\nexec runc \"$@\"\n"
        );
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        path
    }

    /// Pids in the cgroup of `id`.
    pub fn pids_of(&self, id: &str) -> Vec<String> {
        let procs = format!(
            "/sys/fs/cgroup/pids{}/{id}/cgroup.procs",
            self.cgroup_parent
        );
        fs::read_to_string(procs)
            .unwrap_or_default()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    pub async fn connect(&self) -> Containerd {
        Containerd::connect(&self.settings(), &self.runtime(), None)
            .await
            .unwrap()
    }

    pub fn start_containerd(&mut self) {
        let at = |name: &str| self.path(name).display().to_string();
        let config = format!(
            r#"version = 2
root = "{}"
state = "{}"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.nri.v1.nri", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
address = "{}"
[plugins."io.containerd.internal.v1.opt"]
path = "{}"
"#,
            at("root"),
            at("state"),
            at("c.sock"),
            at("opt")
        );
        fs::write(self.path("containerd.toml"), config).unwrap();
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("containerd.log"));
        let child = Command::new("containerd")
            .arg("-c")
            .arg(self.path("containerd.toml"))
            .stdout(Stdio::null())
            .stderr(log.unwrap())
            .spawn()
            .unwrap();
        self.containerd = Some(child);
        let begin = Instant::now();
        while !self.ctr_raw(&["version"]).status.success() {
            let log = fs::read_to_string(self.path("containerd.log")).unwrap();
            assert!(
                begin.elapsed() < SOON,
                "containerd does not come up:\n{log}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn stop_containerd(&mut self) {
        stop(self.containerd.take());
    }

    /// Starts the registry at `127.0.0.1:5000` of this test's network.
    pub fn start_registry(&mut self) {
        let config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:5000'}}\n",
            self.path("registry").display()
        );
        fs::write(self.path("registry.yml"), config).unwrap();
        let log = fs::File::create(self.path("registry.log")).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(self.path("registry.yml"))
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.registry = Some(child);
        let begin = Instant::now();
        while std::net::TcpStream::connect("127.0.0.1:5000").is_err() {
            assert!(begin.elapsed() < SOON, "the registry does not come up");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn stop_registry(&mut self) {
        stop(self.registry.take());
    }

    fn ctr_raw(&self, arguments: &[&str]) -> std::process::Output {
        Command::new("ctr")
            .args(["--address", &self.path("c.sock").display().to_string()])
            .args(["--namespace", &self.namespace, "--connect-timeout", "5s"])
            .args(arguments)
            .output()
            .unwrap()
    }

    /// What ctr prints.
    pub fn ctr(&self, arguments: &[&str]) -> String {
        let output = self.ctr_raw(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ctr {arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Containers, tasks, leases, blobs, half-written blobs and snapshots that are there.
    pub fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (what, arguments, titles) in [
            ("container", &["containers", "ls", "-q"][..], 0),
            ("task", &["tasks", "ls", "-q"], 0),
            ("lease", &["leases", "ls", "-q"], 0),
            ("blob", &["content", "ls", "-q"], 0),
            ("half a blob", &["content", "active"], 1),
            ("snapshot", &["snapshots", "ls"], 1),
        ] {
            let listed = self.ctr(arguments);
            found.extend(
                listed
                    .lines()
                    .skip(titles)
                    .map(|line| format!("{what}: {line}")),
            );
        }
        found
    }

    /// Removes all images and asserts that nothing else was keeping anything.
    pub fn assert_nothing_remains(&self) {
        let images = self.ctr(&["images", "ls", "-q"]);
        let mut remove = vec!["images", "rm", "--sync"];
        remove.extend(images.lines());
        if remove.len() > 3 {
            self.ctr(&remove);
        }
        assert_eq!(self.leftovers(), [""; 0]);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.containerd.is_some() {
            let listed = self.ctr_raw(&["tasks", "ls", "-q"]);
            for task in String::from_utf8_lossy(&listed.stdout).lines() {
                self.ctr_raw(&["tasks", "rm", "-f", task]);
            }
        }
        stop(self.registry.take());
        stop(self.containerd.take());
        for pid in shims(&self.path("c.sock")) {
            kill_process(pid, Signal::KILL).ok();
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for mount in mounts
            .lines()
            .rev()
            .filter_map(|line| line.split(' ').nth(4))
        {
            if Path::new(mount).starts_with(self.directory.path()) {
                rustix::mount::unmount(mount, rustix::mount::UnmountFlags::DETACH).ok();
            }
        }
        fs::remove_dir_all(Path::new("/run/containerd/runc").join(&self.namespace)).ok();
        remove_cgroups(self.cgroup_parent.trim_start_matches('/'));
        if std::thread::panicking() {
            let log = fs::read_to_string(self.path("containerd.log")).unwrap_or_default();
            let errors: Vec<&str> = log
                .lines()
                .filter(|line| !line.contains("level=info"))
                .collect();
            eprintln!("containerd said:\n{}", errors.join("\n"));
        }
    }
}

/// Pids of the shims that belong to the containerd at `socket`.
pub fn shims(socket: &Path) -> Vec<Pid> {
    let needle = socket.display().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_string_lossy()
            .parse()
            .ok()
            .and_then(Pid::from_raw)
        else {
            continue;
        };
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        if command.contains("containerd-shim") && command.split('\0').any(|word| word == needle) {
            found.push(pid);
        }
    }
    found
}

fn remove_cgroups(name: &str) {
    for hierarchy in fs::read_dir("/sys/fs/cgroup")
        .into_iter()
        .flatten()
        .flatten()
    {
        let parent = hierarchy.path().join(name);
        for child in fs::read_dir(&parent).into_iter().flatten().flatten() {
            drop(fs::remove_dir(child.path()));
        }
        drop(fs::remove_dir(parent));
    }
}

fn stop(child: Option<Child>) {
    let Some(mut child) = child else { return };
    if let Some(pid) = Pid::from_raw(child.id().cast_signed()) {
        kill_process(pid, Signal::TERM).ok();
    }
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() > SOON {
            drop(child.kill());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
