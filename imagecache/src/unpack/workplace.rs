//! Where trees are extracted before they are placed: a directory on the snapshots' file system.
//!
//! Each process has a directory of its own in it, and holds a flock(2) on it as long as it lives.
//! What a process left that was killed is removed by the next one that opens the place.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, FlockOperation, flock};

use super::UnpackError;
use crate::removal::remove_tree;

/// A place for trees. Clones share it.
#[derive(Debug, Clone)]
pub struct Workplace(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    /// Whoever holds it locked is alive.
    _lock: File,
    next: AtomicU64,
}

/// A tree that nobody else uses. Dropped without having been placed, it is removed in the
/// background.
#[derive(Debug)]
pub struct Tree {
    path: Option<PathBuf>,
    _workplace: Workplace,
}

impl Workplace {
    /// Opens the place at `root`, which is made when it is missing, and begins to remove what
    /// killed processes left. `root` has to be on the file system of the snapshots, and must not
    /// be a directory that the snapshotter itself looks into.
    pub fn open(root: &Path) -> Result<Self, UnpackError> {
        create(root)?;
        // Another process may take the empty directory for one that was left, before it is locked.
        for attempt in 0..100_u32 {
            let own = root.join(format!("{}-{attempt}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&own) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(UnpackError::io("create", own)(error)),
            }
            let lock = File::open(&own).map_err(UnpackError::io("open", &own))?;
            let locked = flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
            if !locked || !own.exists() {
                continue;
            }
            sweep(root)?;
            return Ok(Self(Arc::new(Inner {
                root: own,
                _lock: lock,
                next: AtomicU64::new(0),
            })));
        }
        let taken = io::Error::new(io::ErrorKind::AlreadyExists, "every name is taken");
        Err(UnpackError::io("make a directory of our own in", root)(
            taken,
        ))
    }

    /// The directory of this process.
    pub fn path(&self) -> &Path {
        &self.0.root
    }

    /// An empty tree with the mode of a root directory.
    pub(crate) fn tree(&self) -> Result<Tree, UnpackError> {
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        let path = self.0.root.join(number.to_string());
        create(&path)?;
        let mode = Permissions::from_mode(0o755);
        fs::set_permissions(&path, mode).map_err(UnpackError::io("set the mode of", &path))?;
        Ok(Tree {
            path: Some(path),
            _workplace: self.clone(),
        })
    }
}

impl Tree {
    /// Where it is.
    pub fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new(""))
    }

    /// Moves it over an empty directory on the same file system (rename(2)).
    pub(crate) fn place(mut self, target: &Path) -> Result<(), UnpackError> {
        if let Some(path) = self.path.take() {
            let moved = fs::rename(&path, target);
            if moved.is_err() {
                self.path = Some(path);
            }
            moved.map_err(UnpackError::io("place a layer as", target))?;
        }
        Ok(())
    }

    /// Removes it before it returns: whoever makes one tree after the other has one at a time.
    pub(crate) fn remove(mut self) -> Result<(), UnpackError> {
        if let Some(path) = self.path.take() {
            let removed = remove_tree(CWD, &path);
            removed.map_err(UnpackError::io("remove", path))?;
        }
        Ok(())
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            remove_in_background(path);
        }
    }
}

fn create(path: &Path) -> Result<(), UnpackError> {
    let mut builder = DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(path);
    made.map_err(UnpackError::io("create", path))
}

/// Removes the directories of processes that are gone.
fn sweep(root: &Path) -> Result<(), UnpackError> {
    let list = || UnpackError::io("list", root);
    for entry in fs::read_dir(root).map_err(list())? {
        let path = entry.map_err(list())?.path();
        let Ok(directory) = File::open(&path) else {
            continue;
        };
        if flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok() {
            remove_in_background(path);
        }
    }
    Ok(())
}

/// Trees have tens of thousands of files: nobody waits for their removal. What a killed process
/// did not remove goes with the next sweep.
fn remove_in_background(path: PathBuf) {
    let remove = move || {
        if let Err(error) = remove_tree(CWD, &path)
            && error.kind() != io::ErrorKind::NotFound
        {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, path = %path.display(), "a tree that nobody needs stays");
        }
    };
    let builder = std::thread::Builder::new().name("tree-removal".to_owned());
    if let Err(error) = builder.spawn(remove) {
        let error: &dyn std::error::Error = &error;
        tracing::warn!(error, "a tree that nobody needs stays until the next start");
    }
}
