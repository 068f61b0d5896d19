//! The directories that a container shares with the agent, below `<state>/instances/<container id>`:
//! `bin` (container-init, the plan, the activation; read-only inside) and `log` (the exit ring and
//! the logs; writable inside and therefore untrusted).
//!
//! container-init itself is kept once as `<state>/init/<sha256>` and linked from there, so that
//! every container keeps the version it was made with. Everything here may be repeated. Nothing
//! is written through a name that a container can change.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use container_init::exits::FILE_SIZE;
use rustix::fs::{FallocateFlags, fallocate};
use sha2::{Digest, Sha256};

use super::exits::RING;
use crate::hex::hex;
use crate::instance::ContainerId;

/// Why a directory could not be made, filled or removed.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// container-init cannot be read.
    #[error("cannot read container-init {}", path.display())]
    Init {
        /// The configured path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory or file of ours cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The directory or file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
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
    /// A container's directory cannot be removed.
    #[error("cannot remove {}", path.display())]
    Remove {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A value of an activation has a line break, which its file cannot carry.
    #[error("the activation's {field} has a line break: {value:?}")]
    Activation {
        /// Which value.
        field: &'static str,
        /// The value.
        value: String,
    },
}

/// The host's side of a container's mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceDirectories {
    /// Mounted read-only at `/.nodeagent/bin`.
    pub bin: PathBuf,
    /// Mounted writable at `/.nodeagent/log`.
    pub log: PathBuf,
}

/// An activation's context as a running app can read it: `KEY=value` lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Activation {
    /// `NODEAGENT_GENERATION`.
    pub generation: u64,
    /// `NODEAGENT_TASK_ID`.
    pub task_id: String,
    /// `TRACEPARENT`.
    pub traceparent: String,
}

/// Makes and removes the directories of containers. Cheap to clone; blocks on the disk.
#[derive(Debug, Clone)]
pub struct Directories {
    instances: PathBuf,
    init: PathBuf,
}

impl Directories {
    /// Prepares `<state>/instances` and keeps the present container-init as `<state>/init/<sha256>`;
    /// kept versions that no container has any more are removed.
    pub fn open(state: &Path, container_init: &Path) -> Result<Self, DirectoryError> {
        let instances = state.join("instances");
        let versions = state.join("init");
        for directory in [&instances, &versions] {
            make_directory(directory, 0o700)?;
        }
        let program = fs::read(container_init).map_err(|source| DirectoryError::Init {
            path: container_init.to_owned(),
            source,
        })?;
        let init = versions.join(hex(&Sha256::digest(&program)));
        // A copy, not a link: a package's file may be written in place, or be on another device.
        if fs::read(&init).ok().as_ref() != Some(&program) {
            replace(&init, &program, 0o555)?;
        }
        remove_unused_versions(&versions, &init)?;
        Ok(Self { instances, init })
    }

    /// Where the directories of a container are, made or not.
    pub fn of(&self, id: &ContainerId) -> InstanceDirectories {
        let root = self.instances.join(id.to_string());
        InstanceDirectories {
            bin: root.join("bin"),
            log: root.join("log"),
        }
    }

    /// Makes the directories of a container that is about to be created. Repeated, it replaces the
    /// plan and keeps the version of container-init and the exit ring.
    pub fn prepare(
        &self,
        id: &ContainerId,
        plan: &[u8],
    ) -> Result<InstanceDirectories, DirectoryError> {
        let directories = self.of(id);
        make_directory(&directories.bin, 0o755)?;
        make_directory(&directories.log, 0o755)?;
        let program = directories.bin.join("container-init");
        match fs::hard_link(&self.init, &program) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(unwritable(&program, e)),
            _ => {}
        }
        // Init reads the plan as root; the environment in it is not for every user in there.
        replace(&directories.bin.join("plan"), plan, 0o400)?;
        preallocate(&directories.log.join(RING))?;
        Ok(directories)
    }

    /// Writes the activation's context where a running app finds it, in one step.
    pub fn activate(
        &self,
        id: &ContainerId,
        activation: &Activation,
    ) -> Result<(), DirectoryError> {
        let Activation {
            generation,
            task_id,
            traceparent,
        } = activation;
        for (field, value) in [("task id", task_id), ("traceparent", traceparent)] {
            if value.contains(['\n', '\0']) {
                return Err(DirectoryError::Activation {
                    field,
                    value: value.clone(),
                });
            }
        }
        let text = format!(
            "NODEAGENT_GENERATION={generation}\nNODEAGENT_TASK_ID={task_id}\nTRACEPARENT={traceparent}\n"
        );
        replace(&self.of(id).bin.join("activation"), text.as_bytes(), 0o444)
    }

    /// Removes everything of a container that is gone.
    pub fn remove(&self, id: &ContainerId) -> Result<(), DirectoryError> {
        let path = self.instances.join(id.to_string());
        match fs::remove_dir_all(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(DirectoryError::Remove { path, source: e })
            }
            _ => Ok(()),
        }
    }

    /// The containers that have a directory, in order. What is not named like a container is not
    /// ours and left out.
    pub fn existing(&self) -> Result<Vec<ContainerId>, DirectoryError> {
        let mut found = Vec::new();
        for entry in list(&self.instances)? {
            if let Some(id) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            {
                found.push(id);
            }
        }
        found.sort();
        Ok(found)
    }
}

fn make_directory(path: &Path, mode: u32) -> Result<(), DirectoryError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
        .map_err(|e| unwritable(path, e))
}

/// Puts a file in the place of another in one step; both are in directories that only we write.
fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), DirectoryError> {
    let fresh = path.with_extension("new");
    let written = remove_if_there(&fresh).and_then(|()| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(content)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        drop(file);
        fs::rename(&fresh, path)
    });
    written.map_err(|e| unwritable(path, e))
}

/// Makes the exit ring before the container can be there; one that exists is the container's.
fn preallocate(ring: &Path) -> Result<(), DirectoryError> {
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(ring);
    let file = match made {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => return Ok(()),
        answer => answer.map_err(|e| unwritable(ring, e))?,
    };
    reserve(&file).map_err(|e| unwritable(ring, e))
}

fn reserve(mut file: &File) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, FILE_SIZE as u64) {
        Err(rustix::io::Errno::OPNOTSUPP) => file.write_all(&[0; FILE_SIZE]),
        answer => Ok(answer?),
    }
}

fn remove_unused_versions(versions: &Path, present: &Path) -> Result<(), DirectoryError> {
    for entry in list(versions)? {
        let path = entry.path();
        let unused = entry.metadata().is_ok_and(|file| file.nlink() == 1);
        if unused && path != present {
            remove_if_there(&path).map_err(|source| DirectoryError::Remove { path, source })?;
        }
    }
    Ok(())
}

fn list(path: &Path) -> Result<Vec<fs::DirEntry>, DirectoryError> {
    fs::read_dir(path)
        .and_then(Iterator::collect)
        .map_err(|source| DirectoryError::List {
            path: path.to_owned(),
            source,
        })
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn unwritable(path: &Path, source: io::Error) -> DirectoryError {
    DirectoryError::Write {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Host {
        root: tempfile::TempDir,
    }

    impl Host {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            fs::write(root.path().join("package"), b"version one").unwrap();
            Self { root }
        }

        fn open(&self) -> Directories {
            Directories::open(
                &self.root.path().join("state"),
                &self.root.path().join("package"),
            )
            .unwrap()
        }

        fn upgrade(&self) {
            fs::write(self.root.path().join("package"), b"version two").unwrap();
        }
    }

    fn id(text: &str) -> ContainerId {
        text.parse().unwrap()
    }

    fn init_of(directories: &InstanceDirectories) -> Vec<u8> {
        fs::read(directories.bin.join("container-init")).unwrap()
    }

    #[test]
    fn preparing_twice_changes_only_the_plan() {
        let host = Host::new();
        let directories = host.open();
        let made = directories.prepare(&id("web-0.g1"), b"plan one").unwrap();
        fs::write(made.log.join(RING), b"an exit").unwrap();
        assert_eq!(
            directories.prepare(&id("web-0.g1"), b"plan two").unwrap(),
            made
        );
        assert_eq!(fs::read(made.bin.join("plan")).unwrap(), b"plan two");
        assert_eq!(fs::read(made.log.join(RING)).unwrap(), b"an exit");
        assert_eq!(
            fs::metadata(made.bin.join("container-init"))
                .unwrap()
                .mode()
                & 0o777,
            0o555
        );
    }

    #[test]
    fn the_ring_is_allocated_before_the_disk_is_full() {
        let host = Host::new();
        let made = host.open().prepare(&id("web-0.g1"), b"").unwrap();
        let ring = fs::metadata(made.log.join(RING)).unwrap();
        assert_eq!(ring.len(), FILE_SIZE as u64);
        assert!(ring.blocks() > 0, "no block was allocated");
    }

    #[test]
    fn a_container_keeps_its_version_through_an_upgrade_and_the_last_one_takes_it_along() {
        let host = Host::new();
        let old = host.open().prepare(&id("web-0.g1"), b"").unwrap();
        host.upgrade();
        let directories = host.open();
        let new = directories.prepare(&id("web-1.g1"), b"").unwrap();
        assert_eq!(
            (init_of(&old), init_of(&new)),
            (b"version one".to_vec(), b"version two".to_vec())
        );
        let versions = || {
            fs::read_dir(host.root.path().join("state/init"))
                .unwrap()
                .count()
        };
        assert_eq!(versions(), 2);
        directories.remove(&id("web-0.g1")).unwrap();
        host.open();
        assert_eq!(versions(), 1);
    }

    #[test]
    fn a_damaged_copy_is_made_anew() {
        let host = Host::new();
        let kept = host.open().init;
        fs::remove_file(&kept).unwrap();
        fs::write(&kept, b"half").unwrap();
        let made = host.open().prepare(&id("web-0.g1"), b"").unwrap();
        assert_eq!(init_of(&made), b"version one");
    }

    #[test]
    fn existing_lists_containers_and_remove_may_be_repeated() {
        let host = Host::new();
        let directories = host.open();
        for name in ["web-1.g2", "web-0.g1"] {
            directories.prepare(&id(name), b"").unwrap();
        }
        fs::create_dir(host.root.path().join("state/instances/lost+found")).unwrap();
        assert_eq!(
            directories.existing().unwrap(),
            [id("web-0.g1"), id("web-1.g2")]
        );
        directories.remove(&id("web-0.g1")).unwrap();
        directories.remove(&id("web-0.g1")).unwrap();
        assert_eq!(directories.existing().unwrap(), [id("web-1.g2")]);
    }

    #[test]
    fn an_activation_is_replaced_whole() {
        let host = Host::new();
        let directories = host.open();
        let made = directories.prepare(&id("web-0.g1"), b"").unwrap();
        let mut activation = Activation {
            generation: 4,
            task_id: "peak-7".into(),
            traceparent: String::new(),
        };
        directories.activate(&id("web-0.g1"), &activation).unwrap();
        activation.generation = 5;
        directories.activate(&id("web-0.g1"), &activation).unwrap();
        let text = fs::read_to_string(made.bin.join("activation")).unwrap();
        assert_eq!(
            text,
            "NODEAGENT_GENERATION=5\nNODEAGENT_TASK_ID=peak-7\nTRACEPARENT=\n"
        );
        activation.task_id = "a\nTRACEPARENT=forged".into();
        let refused = directories
            .activate(&id("web-0.g1"), &activation)
            .unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the activation's task id has a line break: \"a\\nTRACEPARENT=forged\""
        );
    }

    #[test]
    fn a_missing_container_init_is_named() {
        let host = Host::new();
        let missing = host.root.path().join("nowhere");
        let refused = Directories::open(host.root.path(), &missing).unwrap_err();
        assert_eq!(
            refused.to_string(),
            format!("cannot read container-init {}", missing.display())
        );
    }
}
