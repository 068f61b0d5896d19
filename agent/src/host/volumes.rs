//! Volumes and secret files on this host: where their content is, and who may have it.
//!
//! What a manifest names on the host is opened without following a symbolic link. The runtime
//! mounts it by its path, so once the container is made, and before anything runs in it, what is
//! mounted is held against what was opened: whoever put something else in its place meanwhile has
//! an instance that fails. `check` looks without making anything, for who applies an app.
//!
//! `<state>/volumes/<instance>/<volume>` are the directories that stay with an instance's name;
//! they are never removed here. `<state>/instances/<container>/volumes` and
//! `<runtime>/secrets/<container>` go with the container.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, ResolveFlags, fstat, fstatfs, openat2};
use rustix::io::Errno;

use super::trusted::{self, Place, Readers, TrustedError, listed};
use crate::app::{Access, App, HostPathKind, SECRETS, SecretFile, Volume};
use crate::chain::chain;
use crate::config::Settings;
use crate::document::Finding;
use crate::instance::ContainerId;
use crate::instance::plan::ProcessIds;
use crate::instance::spec::{Content, VolumeSource};

/// `TMPFS_MAGIC` and `RAMFS_MAGIC` of statfs(2).
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// Why a volume or a secret file cannot be given to a container.
#[derive(Debug, thiserror::Error)]
pub(super) enum VolumeError {
    /// The host's configuration does not allow it.
    #[error(
        "host path {path} is not allowed on this host; allowed: {}",
        listed(allowed, "volumes.allowed_host_paths")
    )]
    NotAllowed {
        /// As in the manifest.
        path: String,
        /// `volumes.allowed_host_paths`.
        allowed: Vec<PathBuf>,
    },
    /// A part of the path is a symbolic link.
    #[error("{path} leads through a symbolic link; allowed: a path without one")]
    Link {
        /// As in the manifest.
        path: String,
    },
    /// It cannot be opened.
    #[error("cannot open {path}")]
    Open {
        /// As in the manifest.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("{path} is {found}; allowed: {allowed}")]
    Kind {
        /// As in the manifest.
        path: String,
        /// What it is.
        found: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// A secret's file is not as it has to be.
    #[error("secret file {0}")]
    Secret(#[from] TrustedError),
    /// Somebody exchanged it between the look and the mount.
    #[error("{path} was replaced while the container was being made; nothing was started")]
    Replaced {
        /// As in the manifest.
        path: String,
    },
    /// The directory for secrets is on a disk.
    #[error("{} is not in memory; secret files need paths.runtime on a tmpfs", path.display())]
    OnDisk {
        /// The directory.
        path: PathBuf,
    },
    /// A directory of ours cannot be listed.
    #[error("cannot list {}", path.display())]
    List {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory of ours cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The directory or file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What a container mounts; the host's paths stay open as long as this lives.
#[derive(Debug, Default)]
pub(super) struct Prepared {
    pub(super) sources: Vec<VolumeSource>,
    held: Vec<Held>,
    in_memory: Vec<InMemory>,
}

/// A path of the host that was looked at.
#[derive(Debug)]
struct Held {
    path: String,
    destination: String,
    opened: OwnedFd,
}

/// A file system in memory that may be written.
#[derive(Debug)]
struct InMemory {
    destination: String,
    group: Option<u32>,
}

impl Prepared {
    /// In the container whose first process is `pid`, before anything runs in it: whether it has
    /// mounted what was looked at; and memory becomes everybody's, because runc 1.1 gives it the
    /// mode of the image's directory below.
    pub(super) fn settle(&self, pid: u32) -> Result<(), VolumeError> {
        self.verify(pid)?;
        for InMemory { destination, group } in &self.in_memory {
            let failed = |errno| unopened(destination, errno);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let mounted = open_inside(pid, destination, flags).map_err(failed)?;
            let facts = fstatfs(&mounted).map_err(failed)?;
            if !IN_MEMORY.contains(&u64::try_from(facts.f_type).unwrap_or(0)) {
                return Err(VolumeError::Replaced {
                    path: destination.clone(),
                });
            }
            let mode = match group {
                None => 0o1777,
                Some(group) => {
                    let group = Some(Gid::from_raw(*group));
                    rustix::fs::fchown(&mounted, None, group).map_err(failed)?;
                    0o3777
                }
            };
            rustix::fs::fchmod(&mounted, Mode::from_raw_mode(mode)).map_err(failed)?;
        }
        Ok(())
    }

    fn verify(&self, pid: u32) -> Result<(), VolumeError> {
        for held in &self.held {
            let failed = |errno| unopened(&held.path, errno);
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let mounted = open_inside(pid, &held.destination, flags).map_err(failed)?;
            let mounted = fstat(mounted).map_err(failed)?;
            let opened = fstat(&held.opened).map_err(failed)?;
            if (mounted.st_dev, mounted.st_ino) != (opened.st_dev, opened.st_ino) {
                return Err(VolumeError::Replaced {
                    path: held.path.clone(),
                });
            }
        }
        Ok(())
    }
}

/// What the first process of a container finds at `path`.
fn open_inside(pid: u32, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let root = format!("/proc/{pid}/root");
    let root_flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = openat2(CWD, root, root_flags, Mode::empty(), ResolveFlags::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(&root, path, flags, Mode::empty(), resolve)
}

/// Everything that the volumes and secret files of `app` ask for and this host does not give.
pub(super) fn check(app: &App, settings: &Settings) -> Vec<Finding> {
    let mut findings = Vec::new();
    for mount in &app.mounts {
        if let Volume::HostPath { path, kind } = &mount.volume
            && let Err(error) = open_host_path(path, *kind, &settings.volumes.allowed_host_paths)
        {
            let sentence = format!("volume {}: {}", mount.name, chain(&error));
            findings.push(Finding::new("spec.volumes", None, sentence));
        }
    }
    for (index, secret) in app.secret_files.iter().enumerate() {
        if let Err(error) = trusted::read(&secret.source, Place::Anywhere, Readers::Root) {
            let field = format!("spec.secretFiles[{index}].source");
            findings.push(Finding::new(field, None, chain(&error)));
        }
    }
    findings
}

/// Makes what the container needs. Repeated, it keeps what is there and writes secrets anew.
pub(super) fn prepare(
    app: &App,
    id: &ContainerId,
    settings: &Settings,
    ids: &ProcessIds,
) -> Result<Prepared, VolumeError> {
    let mut prepared = Prepared::default();
    let state = &settings.paths.state;
    for mount in &app.mounts {
        if matches!(mount.volume, Volume::Memory { .. }) && mount.access == Access::ReadWrite {
            prepared.in_memory.push(InMemory {
                destination: mount.path.clone(),
                group: app.security.fs_group,
            });
        }
        let content = match &mount.volume {
            Volume::HostPath { path, kind } => {
                let opened = open_host_path(path, *kind, &settings.volumes.allowed_host_paths)?;
                prepared.held.push(Held {
                    path: path.clone(),
                    destination: mount.path.clone(),
                    opened,
                });
                Content::Host(path.into())
            }
            Volume::EmptyDir => {
                let own = state.join("instances").join(id.to_string()).join("volumes");
                Content::Host(open_to_all(&own, &mount.name, app.security.fs_group)?)
            }
            Volume::InstanceDirectory => {
                let own = state.join("volumes").join(id.instance.to_string());
                Content::Host(open_to_all(&own, &mount.name, app.security.fs_group)?)
            }
            Volume::Memory { size } => Content::Memory {
                size: size.unwrap_or(app.resources.memory_bytes),
                group: app.security.fs_group,
            },
        };
        prepared.sources.push(VolumeSource {
            destination: mount.path.clone(),
            content,
            access: mount.access,
        });
    }
    if !app.secret_files.is_empty() {
        let directory = secrets_of(id, settings);
        write_secrets(&directory, &app.secret_files, ids)?;
        prepared.sources.push(VolumeSource {
            destination: SECRETS.to_owned(),
            content: Content::Host(directory),
            access: Access::ReadOnly,
        });
    }
    Ok(prepared)
}

/// Removes the secrets of a container that is gone; its other volumes went with its directories.
pub(super) fn remove(id: &ContainerId, settings: &Settings) -> Result<(), VolumeError> {
    let path = secrets_of(id, settings);
    match fs::remove_dir_all(&path) {
        Err(source) if source.kind() != ErrorKind::NotFound => {
            Err(VolumeError::Write { path, source })
        }
        _ => Ok(()),
    }
}

/// The containers that have a directory of secrets. What is not named like a container is left out.
pub(super) fn existing(settings: &Settings) -> Result<Vec<ContainerId>, VolumeError> {
    let path = settings.paths.runtime.join("secrets");
    let entries = match fs::read_dir(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.and_then(Iterator::collect::<io::Result<Vec<_>>>),
    };
    let entries = entries.map_err(|source| VolumeError::List { path, source })?;
    let id = |entry: &fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    Ok(entries.iter().filter_map(id).collect())
}

fn secrets_of(id: &ContainerId, settings: &Settings) -> PathBuf {
    settings.paths.runtime.join("secrets").join(id.to_string())
}

fn open_host_path(
    path: &str,
    kind: Option<HostPathKind>,
    allowed: &[PathBuf],
) -> Result<OwnedFd, VolumeError> {
    let below = allowed.iter().find_map(|root| {
        let rest = Path::new(path).strip_prefix(root).ok()?;
        Some((root, rest))
    });
    let Some((root, rest)) = below else {
        return Err(VolumeError::NotAllowed {
            path: path.to_owned(),
            allowed: allowed.to_vec(),
        });
    };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let failed = |errno| unopened(path, errno);
    let root =
        openat2(CWD, root, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS).map_err(failed)?;
    let opened = if rest.as_os_str().is_empty() {
        root
    } else {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        openat2(&root, rest, flags, Mode::empty(), resolve).map_err(failed)?
    };
    let facts = fstat(&opened).map_err(failed)?;
    let found = FileType::from_raw_mode(facts.st_mode);
    let (fits, allowed) = match kind {
        Some(HostPathKind::Directory) => (found == FileType::Directory, "a directory"),
        Some(HostPathKind::File) => (found == FileType::RegularFile, "a regular file"),
        None => (
            matches!(found, FileType::Directory | FileType::RegularFile),
            "a directory or a regular file",
        ),
    };
    if !fits {
        return Err(VolumeError::Kind {
            path: path.to_owned(),
            found: format!("a {found:?}").to_lowercase(),
            allowed,
        });
    }
    Ok(opened)
}

/// Where a symbolic link may not be, the kernel says ELOOP.
fn unopened(path: &str, errno: Errno) -> VolumeError {
    let path = path.to_owned();
    match errno {
        Errno::LOOP => VolumeError::Link { path },
        errno => VolumeError::Open {
            path,
            source: errno.into(),
        },
    }
}

fn write_secrets(
    directory: &Path,
    secrets: &[SecretFile],
    ids: &ProcessIds,
) -> Result<(), VolumeError> {
    // The parent is for root alone; inside, the app has to be able to enter.
    if let Some(parent) = directory.parent() {
        make(parent, 0o700)?;
    }
    make(directory, 0o755)?;
    in_memory(directory)?;
    for secret in secrets {
        let content = trusted::read(&secret.source, Place::Anywhere, Readers::Root)?;
        let path = directory.join(&secret.name);
        write_secret(&path, &content, secret.mode, ids)
            .map_err(|source| VolumeError::Write { path, source })?;
    }
    Ok(())
}

/// In one step, and never readable by anybody else meanwhile.
fn write_secret(path: &Path, content: &[u8], mode: u32, ids: &ProcessIds) -> io::Result<()> {
    let fresh = path.with_file_name(".new");
    let _ = fs::remove_file(&fresh);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)?;
    file.write_all(content)?;
    fchown(&file, Some(ids.uid), Some(ids.gid))?;
    file.set_permissions(Permissions::from_mode(mode))?;
    fs::rename(&fresh, path)
}

fn in_memory(directory: &Path) -> Result<(), VolumeError> {
    let failed = |source: io::Error| VolumeError::Write {
        path: directory.to_owned(),
        source,
    };
    let opened = File::open(directory).map_err(failed)?;
    let facts = fstatfs(opened.as_fd()).map_err(|errno| failed(errno.into()))?;
    let magic = u64::try_from(facts.f_type).unwrap_or(0);
    if IN_MEMORY.contains(&magic) {
        Ok(())
    } else {
        Err(VolumeError::OnDisk {
            path: directory.to_owned(),
        })
    }
}

/// A directory that every user of the container may write, in one that no user of the host enters.
/// With a group it is that group's, and what is made in it as well; what is in it is not changed.
fn open_to_all(parent: &Path, name: &str, group: Option<u32>) -> Result<PathBuf, VolumeError> {
    make(parent, 0o700)?;
    let path = parent.join(name);
    let open = |mode| fs::set_permissions(&path, Permissions::from_mode(mode));
    let made = match (fs::create_dir(&path), group) {
        (Err(e), _) if e.kind() != ErrorKind::AlreadyExists => Err(e),
        (Err(_), None) => Ok(()),
        (Ok(()), None) => open(0o777),
        (_, Some(group)) => chown(&path, None, Some(group)).and_then(|()| open(0o2777)),
    };
    match made {
        Ok(()) => Ok(path),
        Err(source) => Err(VolumeError::Write { path, source }),
    }
}

fn make(path: &Path, mode: u32) -> Result<(), VolumeError> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|source| VolumeError::Write {
            path: path.to_owned(),
            source,
        })
}
