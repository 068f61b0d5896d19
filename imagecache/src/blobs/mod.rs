//! Our own store of blobs: a directory, content-addressed, shared by all that use the bytes.
//!
//! ```text
//! blobs/sha256/<hex>      whole and verified; nothing else ever has a name here
//! partial/<hex>           on its way; whoever writes it holds a flock(2) on it
//! partial/<hex>.map       which pieces of it are there: one byte for each, where there are several
//! unsettled/<boot>/<hex>  verified in this boot, and perhaps not on the disk yet
//! ```
//!
//! Promises: a blob is seen only after its size and sha256 were found right; a process that is
//! killed loses at most the pieces that it was writing; two processes never write one blob at a
//! time; what a boot left unsettled (power was lost) is hashed again before it is given to anybody.
//! Deliberately not here: where bytes come from, what a blob means, and how long it is kept.

mod error;
mod needed;
mod partial;
mod pieces;
mod unsettled;

pub use error::{BlobsError, CommitError};
pub use needed::NeededBlobs;
pub use partial::Partial;
pub use unsettled::Unsettled;

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::{Descriptor, Digest, Hasher};
use error::io as failed;
use needed::Needed;

/// Bytes hashed at a time.
const CHUNK: usize = 256 * 1024;

/// The store. Clones share it; any number of processes may have it open.
#[derive(Debug, Clone)]
pub struct Blobs {
    root: Arc<Path>,
    unsettled: Unsettled,
    needed: Needed,
}

/// A blob that is whole and verified. The file stays readable when the blob is removed.
#[derive(Debug)]
pub struct Blob {
    /// From its first byte; read it with offsets, or alone.
    pub file: File,
    /// In bytes.
    pub size: u64,
    /// Where it lies.
    pub path: PathBuf,
}

/// Result of [`Blobs::begin`].
#[derive(Debug)]
pub enum Begun {
    /// It is there.
    Present(Blob),
    /// Another process, or another part of this one, is writing it.
    Busy,
    /// Write what is missing.
    Partial(Box<Partial>),
}

/// Result of [`Blobs::check`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// There is no such blob.
    Absent,
    /// It is what its name says.
    Right {
        /// In bytes.
        size: u64,
    },
    /// It was not, and is gone.
    Damaged {
        /// What its bytes are.
        got: Digest,
    },
}

impl Blobs {
    /// Opens the store, and makes what is missing of it. What a former boot left unsettled is
    /// suspect from now on.
    pub fn open(root: &Path) -> Result<Self, BlobsError> {
        let path = Path::new("/proc/sys/kernel/random/boot_id");
        let boot = fs::read_to_string(path).map_err(failed("read", path))?;
        Self::open_in_boot(root, boot.trim())
    }

    /// The same where `boot` names the present boot: for whoever knows it, and for tests.
    pub fn open_in_boot(root: &Path, boot: &str) -> Result<Self, BlobsError> {
        for directory in ["blobs/sha256", "partial", "unsettled"] {
            let path = root.join(directory);
            let mut builder = DirBuilder::new();
            // Images may contain what not everybody should read.
            builder.recursive(true).mode(0o700);
            builder.create(&path).map_err(failed("create", &path))?;
        }
        let blobs = Self {
            root: Arc::from(root),
            unsettled: Unsettled::open(&root.join("unsettled"), boot)?,
            needed: Needed::default(),
        };
        blobs.sweep()?;
        Ok(blobs)
    }

    /// What was verified and may not be on the disk yet.
    pub fn unsettled(&self) -> &Unsettled {
        &self.unsettled
    }

    /// The directory of the store.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The blob, when it is there. One that is suspect is hashed first, and removed when it is not
    /// what it should be: that takes as long as reading it.
    pub fn find(&self, digest: &Digest) -> Result<Option<Blob>, BlobsError> {
        if self.unsettled.is_suspect(digest.hex())
            && !matches!(self.check(digest)?, Check::Right { .. })
        {
            return Ok(None);
        }
        let path = self.path(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open", &path)(error)),
        };
        let size = file.metadata().map_err(failed("look at", &path))?.len();
        Ok(Some(Blob { file, size, path }))
    }

    /// Begins to write a blob, or goes on with what was begun.
    pub fn begin(&self, blob: &Descriptor) -> Result<Begun, BlobsError> {
        loop {
            if let Some(blob) = self.find(&blob.digest)? {
                return Ok(Begun::Present(blob));
            }
            let path = self.partial(&blob.digest);
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false);
            let file = options.open(&path).map_err(failed("create", &path))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(Begun::Busy),
                Err(errno) => return Err(failed("lock", &path)(errno.into())),
            }
            // Whoever had it before us may have finished or given up in between.
            let ours = file.metadata().map_err(failed("look at", &path))?.ino();
            if fs::metadata(&path).is_ok_and(|there| there.ino() == ours) {
                let target = self.path(&blob.digest);
                let partial = Partial::open(file, path, target, blob, self.unsettled.clone())?;
                return Ok(Begun::Partial(Box::new(partial)));
            }
        }
    }

    /// All blobs with their sizes in bytes.
    pub fn list(&self) -> Result<Vec<(Digest, u64)>, BlobsError> {
        let mut blobs = Vec::new();
        let path = self.root.join("blobs/sha256");
        for entry in fs::read_dir(&path).map_err(failed("list", &path))? {
            let entry = entry.map_err(failed("list", &path))?;
            let name = format!("sha256:{}", entry.file_name().to_string_lossy());
            // What is no digest is not ours, and stays.
            let Ok(digest) = name.parse() else { continue };
            match entry.metadata() {
                Ok(metadata) => blobs.push((digest, metadata.len())),
                // Removed in between.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("look at", &entry.path())(error)),
            }
        }
        Ok(blobs)
    }

    /// Bytes on the disk of a blob that was begun, by whomever: about right, and grows while it is
    /// being written. None when there is nothing.
    pub fn begun(&self, digest: &Digest) -> Option<u64> {
        let metadata = fs::metadata(self.partial(digest)).ok()?;
        Some(metadata.blocks().saturating_mul(512))
    }

    /// These stay as long as what is returned is there, whoever wants to remove them: work under
    /// way needs them. To be called before they are looked for.
    pub fn need(&self, digests: impl Iterator<Item = Digest>) -> NeededBlobs {
        self.needed.hold(digests)
    }

    /// Removes a blob; whether it was there. Who reads it reads on, and one that work of this
    /// process needs stays.
    pub fn remove(&self, digest: &Digest) -> Result<bool, BlobsError> {
        let needed = self.needed.lock();
        if needed.contains_key(digest) {
            return Ok(false);
        }
        let removed = remove(&self.path(digest))?;
        self.unsettled.clear(digest.hex())?;
        Ok(removed)
    }

    /// Removes what no image names and what was not written to for `untouched`: blobs of a pull or an
    /// import that never became an image, and parts of blobs that nobody writes. Bytes that went.
    pub fn remove_unnamed(
        &self,
        named: &BTreeSet<Digest>,
        untouched: Duration,
    ) -> Result<u64, BlobsError> {
        let mut bytes = 0;
        for (digest, size) in self.list()? {
            if !named.contains(&digest)
                && is_untouched(&self.path(&digest), untouched)?
                && self.remove(&digest)?
            {
                bytes += size;
            }
        }
        let path = self.root.join("partial");
        for entry in fs::read_dir(&path).map_err(failed("list", &path))? {
            let path = entry.map_err(failed("list", &path))?.path();
            if path.extension().is_none() && is_untouched(&path, untouched)? {
                bytes += remove_partial(&path)?;
            }
        }
        Ok(bytes)
    }

    /// Removes what was begun of a blob and nobody is writing; whether there was something.
    pub fn give_up(&self, blob: &Descriptor) -> Result<bool, BlobsError> {
        match self.begin(blob)? {
            Begun::Partial(partial) => partial.remove(),
            Begun::Present(_) | Begun::Busy => Ok(false),
        }
    }

    /// Hashes what lies on the disk. A blob that is not what its name says is removed.
    pub fn check(&self, digest: &Digest) -> Result<Check, BlobsError> {
        let path = self.path(digest);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.unsettled.clear(digest.hex())?;
                return Ok(Check::Absent);
            }
            Err(error) => return Err(failed("open", &path)(error)),
        };
        let mut hasher = Hasher::default();
        let mut buffer = vec![0; CHUNK];
        let mut size = 0;
        loop {
            let read = match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed("read", &path)(error)),
            };
            size += read as u64;
            hasher.update(&buffer[..read]);
        }
        let got = hasher.finish();
        if got != *digest {
            self.remove(digest)?;
            return Ok(Check::Damaged { got });
        }
        self.unsettled.trust(digest.hex())?;
        Ok(Check::Right { size })
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    fn partial(&self, digest: &Digest) -> PathBuf {
        self.root.join("partial").join(digest.hex())
    }

    /// A map without its blob is what a kill between two steps of a commit left.
    fn sweep(&self) -> Result<(), BlobsError> {
        let path = self.root.join("partial");
        for entry in fs::read_dir(&path).map_err(failed("list", &path))? {
            let path = entry.map_err(failed("list", &path))?.path();
            if path.extension().is_some_and(|is| is == "map") && !path.with_extension("").exists() {
                remove(&path)?;
            }
        }
        Ok(())
    }
}

/// Whether a file was not written to for this long; not when it is gone, or when the clock was set back.
fn is_untouched(path: &Path, untouched: Duration) -> Result<bool, BlobsError> {
    let modified = match fs::metadata(path).and_then(|metadata| metadata.modified()) {
        Ok(modified) => modified,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed("look at", path)(error)),
    };
    Ok(modified.elapsed().is_ok_and(|age| age >= untouched))
}

/// Removes what was begun of a blob, with its map, unless somebody is writing it. Bytes of the disk
/// that went.
fn remove_partial(path: &Path) -> Result<u64, BlobsError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(failed("open", path)(error)),
    };
    // Whoever begins it looks, with the lock, whether the name is still that of its file.
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(0);
    }
    let bytes = file.metadata().map_err(failed("look at", path))?.blocks() * 512;
    remove(&path.with_extension("map"))?;
    Ok(if remove(path)? { bytes } else { 0 })
}

/// Removes a file; whether it was there.
fn remove(path: &Path) -> Result<bool, BlobsError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("remove", path)(error)),
    }
}
