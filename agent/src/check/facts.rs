//! Everything that is looked at, at one moment.

use std::path::{Path, PathBuf};

use super::{
    cgroups, clock, containerd, discovery, disk, forwarding, images, init, kernel, kubelet, limits,
    namespaces, oci_runtime, sockets,
};
use crate::config::Settings;

/// The host as it is, for the configuration that the agent runs with.
#[derive(Debug, Clone)]
pub struct Facts {
    pub(super) kernel: kernel::Kernel,
    pub(super) cgroups: cgroups::Cgroups,
    pub(super) namespaces: namespaces::Namespaces,
    pub(super) containerd: containerd::Containerd,
    pub(super) oci_runtime: oci_runtime::OciRuntime,
    pub(super) init: init::Init,
    pub(super) limits: limits::Limits,
    pub(super) forwarding: forwarding::Forwarding,
    pub(super) disk: disk::Disk,
    pub(super) clock: clock::Clock,
    pub(super) sockets: sockets::Sockets,
    pub(super) discovery: discovery::Discovery,
    pub(super) images: images::Images,
    pub(super) kubelet: kubelet::Kubelet,
}

impl Facts {
    /// Looks at the host. Takes some seconds at most, when everything is slow.
    pub async fn read(settings: &Settings) -> Self {
        let containerd = containerd::read(&settings.containerd, &settings.runtime).await;
        let sockets = sockets::read(&settings.paths).await;
        let blocking = settings.clone();
        let agent = sockets.agent_pid();
        let content = containerd.snapshotter_root();
        // The disk is measured on a thread of its own; nothing else runs meanwhile.
        let disk = tokio::task::spawn_blocking(move || disk::read(&blocking, content)).await;
        Self {
            kernel: kernel::read(),
            cgroups: cgroups::read(&settings.runtime.cgroup_parent),
            namespaces: namespaces::read(),
            oci_runtime: oci_runtime::read(settings.runtime.binary.as_deref()).await,
            init: init::read(&settings.runtime.container_init),
            limits: limits::read(agent),
            forwarding: forwarding::read(&settings.network),
            disk: disk.unwrap_or_default(),
            clock: clock::read(),
            discovery: discovery::read(&settings.discovery),
            images: images::read(&settings.images),
            kubelet: kubelet::read(&settings.images),
            containerd,
            sockets,
        }
    }
}

/// A one-line file, or why there is none.
pub(super) fn line_of(path: &str) -> Result<String, String> {
    std::fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .map_err(|error| format!("{path}: {error}"))
}

/// A number in a file of its own, as sysctls are.
pub(super) fn number_of(path: &str) -> Result<u64, String> {
    let text = line_of(path)?;
    text.parse()
        .map_err(|_| format!("{path} says {text:?}, which is no number"))
}

/// The path, or the nearest directory above it that exists.
pub(super) fn nearest(path: &Path) -> PathBuf {
    let there = path.ancestors().find(|path| path.exists());
    there.unwrap_or_else(|| Path::new("/")).to_owned()
}

/// Whether the directory, or the one in which it would be made, can be written to; or why not.
pub(super) fn writable(directory: &Path) -> Result<(), String> {
    use rustix::fs::{Access, AtFlags, CWD, accessat};
    let nearest = nearest(directory);
    if !nearest.is_dir() {
        return Err(format!("{} is not a directory", nearest.display()));
    }
    accessat(
        CWD,
        &nearest,
        Access::WRITE_OK | Access::EXEC_OK,
        AtFlags::EACCESS,
    )
    .map_err(|errno| format!("{}: {}", nearest.display(), std::io::Error::from(errno)))
}
