//! What was verified and may not be on the disk yet.
//!
//! A mark is a file whose name says what it is about, in a directory with the name of the boot. It
//! is made before what it is about appears, so that no order of writes on the way to the disk lets
//! one survive without the other (file systems with a journal keep the order of names). Marks go
//! when the file system was synced; those of a former boot tell that power was lost in between.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustix::fs::syncfs;

use super::error::{BlobsError, io as failed};
use super::remove;

/// Marks of one store.
#[derive(Debug, Clone)]
pub struct Unsettled {
    /// Marks of all boots.
    all: Arc<Path>,
    /// Marks of this one.
    present: Arc<Path>,
    suspects: Arc<Mutex<HashSet<String>>>,
}

impl Unsettled {
    pub(super) fn open(all: &Path, boot: &str) -> Result<Self, BlobsError> {
        let present = all.join(boot);
        fs::create_dir_all(&present).map_err(failed("create", &present))?;
        let mut suspects = HashSet::new();
        for boot in directories(all)? {
            if boot != present {
                suspects.extend(names(&boot)?);
            }
        }
        Ok(Self {
            all: Arc::from(all),
            present: Arc::from(present),
            suspects: Arc::new(Mutex::new(suspects)),
        })
    }

    /// Says that `name` is about to appear and is not on the disk. `name` is part of a path.
    pub fn mark(&self, name: &str) -> Result<(), BlobsError> {
        let path = self.present.join(name);
        File::create(&path).map_err(failed("create", &path))?;
        // What is made anew is not what a former boot left.
        self.forget_suspect(name)
    }

    /// Whether `name` was left by a former boot that did not bring it to the disk for sure.
    pub fn is_suspect(&self, name: &str) -> bool {
        self.suspects().contains(name)
    }

    /// All that a former boot left, and nobody looked at since.
    pub fn all_suspects(&self) -> Vec<String> {
        let mut names: Vec<String> = self.suspects().iter().cloned().collect();
        names.sort();
        names
    }

    /// Says that what a former boot left was looked at and is right.
    pub fn trust(&self, name: &str) -> Result<(), BlobsError> {
        self.forget_suspect(name)
    }

    /// Says that `name` is gone.
    pub fn clear(&self, name: &str) -> Result<(), BlobsError> {
        remove(&self.present.join(name))?;
        self.forget_suspect(name)
    }

    /// Brings what was marked before this call to the disk: the store's file system, and those of
    /// `others`. Blocks for as long as that takes. Returns how many marks went.
    pub fn settle(&self, others: &[BorrowedFd<'_>]) -> Result<usize, BlobsError> {
        let marked = names(&self.present)?.into_iter();
        let marked: Vec<_> = marked
            .filter_map(|name| marked_at(&self.present.join(&name)).map(|when| (name, when)))
            .collect();
        if marked.is_empty() {
            return Ok(0);
        }
        let store = File::open(&self.all).map_err(failed("open", &self.all))?;
        let sync = |fd: BorrowedFd<'_>| syncfs(fd).map_err(io::Error::from);
        for other in others {
            sync(*other).map_err(failed("sync the file system beside", &self.all))?;
        }
        use std::os::fd::AsFd as _;
        sync(store.as_fd()).map_err(failed("sync the file system of", &self.all))?;
        let mut settled = 0;
        for (name, when) in &marked {
            // Made anew meanwhile: that is not on the disk.
            if marked_at(&self.present.join(name)) == Some(*when) {
                remove(&self.present.join(name))?;
                settled += 1;
            }
        }
        Ok(settled)
    }

    fn forget_suspect(&self, name: &str) -> Result<(), BlobsError> {
        if !self.suspects().remove(name) {
            return Ok(());
        }
        for boot in directories(&self.all)? {
            if boot != *self.present {
                remove(&boot.join(name))?;
                // The last one takes the directory with it; another one keeps it.
                if let Err(error) = fs::remove_dir(&boot)
                    && !matches!(
                        error.kind(),
                        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound
                    )
                {
                    return Err(failed("remove", &boot)(error));
                }
            }
        }
        Ok(())
    }

    fn suspects(&self) -> MutexGuard<'_, HashSet<String>> {
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When a mark was made, or made again.
fn marked_at(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|mark| mark.modified()).ok()
}

fn directories(of: &Path) -> Result<Vec<PathBuf>, BlobsError> {
    let entries = fs::read_dir(of).map_err(failed("list", of))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    paths.collect::<Result<_, _>>().map_err(failed("list", of))
}

fn names(of: &Path) -> Result<Vec<String>, BlobsError> {
    let entries = match fs::read_dir(of) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("list", of)(error)),
    };
    let name = |entry: io::Result<fs::DirEntry>| {
        entry.map(|e| e.file_name().to_string_lossy().into_owned())
    };
    entries
        .map(name)
        .collect::<Result<_, _>>()
        .map_err(failed("list", of))
}
