//! Named network namespaces: a file below the netns directory with a namespace mounted on it.
//!
//! The mount is made in the agent's own mount namespace, the one that containerd lives in too; what
//! is mounted there stays when the agent dies. Propagation of the machine's mounts is left as it is:
//! on a systemd host `/run` is shared, so that mount and unmount reach the copies that services
//! with private mounts have.
//!
//! Promises that the calling thread never changes its namespace: what has to happen inside one is
//! done by a short-lived thread of its own, which ends there.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::statfs;
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::error::NetworkError;
use super::netlink::Netlink;
use crate::sys;

/// The calling thread's network namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// `NSFS_MAGIC` of linux/magic.h: the file system of a mounted namespace.
const NSFS: i64 = 0x6e73_6673;

/// What lies at a namespace's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetnsFile {
    /// Nothing.
    Absent,
    /// A file without a namespace: a start that was cut off, or somebody unmounted it.
    Empty,
    /// The namespace.
    Mounted,
}

/// Whether a namespace was made just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    /// Made just now: only `lo` is in it.
    New,
    /// It was there before.
    Old,
}

/// A namespace that is held open, and a routing socket in it.
pub(super) struct Inside {
    handle: File,
    pub(super) netlink: Netlink,
    pub(super) age: Age,
}

impl Inside {
    /// The namespace as a descriptor.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

/// Makes the directory of namespaces; its parent must exist.
pub(super) fn prepare_directory(directory: &Path) -> Result<(), NetworkError> {
    match fs::DirBuilder::new().mode(0o755).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => Ok(()),
        other => other.map_err(|source| failed("make the netns directory", directory, source)),
    }
}

/// Looks at a namespace's path.
pub(super) fn inspect(path: &Path) -> Result<NetnsFile, NetworkError> {
    match statfs(path) {
        #[allow(clippy::unnecessary_cast, reason = "f_type has other widths on other targets")]
        Ok(stat) if stat.f_type as i64 == NSFS => Ok(NetnsFile::Mounted),
        Ok(_) => Ok(NetnsFile::Empty),
        Err(Errno::NOENT) => Ok(NetnsFile::Absent),
        Err(error) => Err(failed("look at the netns file", path, error.into())),
    }
}

/// Opens the namespace at `path`, or makes it.
pub(super) fn ensure(path: &Path) -> Result<Inside, NetworkError> {
    match inspect(path)? {
        NetnsFile::Mounted => open(path),
        NetnsFile::Absent | NetnsFile::Empty => create(path),
    }
}

/// Unmounts and unlinks the namespace at `path`; nothing there is fine. The namespace itself lives
/// on while a process or a socket is in it.
pub(super) fn remove(path: &Path) -> Result<(), NetworkError> {
    // Two starts that raced could have mounted twice.
    while inspect(path)? == NetnsFile::Mounted {
        unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .map_err(|error| failed("unmount the netns", path, error.into()))?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|source| failed("remove the netns file", path, source)),
    }
}

/// Names in the directory with what lies there.
pub(super) fn list(directory: &Path) -> Result<Vec<(String, NetnsFile)>, NetworkError> {
    let unreadable = |source| failed("list the netns directory", directory, source);
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        if let Ok(name) = entry.file_name().into_string() {
            found.push((name, inspect(&entry.path())?));
        }
    }
    Ok(found)
}

fn create(path: &Path) -> Result<Inside, NetworkError> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o444)
        .open(path)
        .map_err(|source| failed("create the netns file", path, source))?;
    let target = path.to_owned();
    in_own_thread(path, move || {
        sys::unshare_network()
            .map_err(|source| failed("make a network namespace for", &target, source))?;
        let inside = here(&target, Age::New)?;
        mount_bind(OWN, &target)
            .map_err(|error| failed("mount the network namespace on", &target, error.into()))?;
        Ok(inside)
    })
    .inspect_err(|_| {
        // The file says nothing without its mount; the first error is the one to report.
        let _ = fs::remove_file(path);
    })
}

fn open(path: &Path) -> Result<Inside, NetworkError> {
    let target = path.to_owned();
    in_own_thread(path, move || {
        let namespace =
            File::open(&target).map_err(|source| failed("open the netns", &target, source))?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|error| failed("enter the netns", &target, error.into()))?;
        here(&target, Age::Old)
    })
}

/// Handle and routing socket of the calling thread's namespace.
fn here(path: &Path, age: Age) -> Result<Inside, NetworkError> {
    let handle = File::open(OWN).map_err(|source| failed("open the netns of", path, source))?;
    let netlink = Netlink::open().map_err(|source| NetworkError::Kernel {
        operation: "open a routing socket in the netns",
        object: path.display().to_string(),
        source,
    })?;
    Ok(Inside { handle, netlink, age })
}

fn in_own_thread<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    let thread = thread::Builder::new()
        .name("netns".to_owned())
        .stack_size(64 * 1024)
        .spawn(work)
        .map_err(|source| failed("start a thread for the netns", path, source))?;
    thread.join().unwrap_or(Err(NetworkError::WorkerEnded))
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> NetworkError {
    NetworkError::Netns { operation, path: PathBuf::from(path), source }
}
