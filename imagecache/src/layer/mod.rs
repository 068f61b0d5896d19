//! Applying a layer: from the entries of an archive to a tree of files.
//!
//! A layer is applied by itself, into an empty directory that nobody else uses, so that all layers
//! of an image can be applied at a time; [`Applied::implicit`] tells what is left to be done when
//! it is placed on the ones below. The tree is the one that containerd makes (`pkg/archive`,
//! `applyNaive`, read in 1.6.20 and 2.2.0), its quirks included; where containerd fails, so does
//! this. Promises: nothing outside of the directory is created, changed or read, whatever the
//! archive says, and no file appears under a name before all entries before it in the archive that
//! touch the same name.
//!
//! Not durable when it returns: whoever calls syncs the file system.

mod compare;
mod metadata;
mod names;
mod place;
mod tree;
mod writers;

use std::collections::{BTreeSet, HashSet};
use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use crate::archive::{ArchiveError, Entry, Kind, Reader};

pub use compare::{CompareError, Comparison, Difference, What, compare};

use metadata::{Metadata, Times};
use names::{Clean, Marker};
use tree::{NoWay, Spot, Tree};
use writers::{File, Writers};

/// Files of at most so many bytes are read ahead and written beside the others.
const READ_AHEAD: u64 = 256 * 1024;

/// What marks of deletion become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marks {
    /// The lowest layer: what they name is removed, there is nothing below.
    Remove,
    /// Any other: overlayfs's own marks, a device 0/0 and the attribute `trusted.overlay.opaque`.
    Overlay,
}

/// What a layer may contain before it is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries.
    pub entries: u64,
    /// Bytes of all files, holes included.
    pub bytes: u64,
    /// Bytes of a path, as it stands in the archive and with symbolic links followed.
    pub path: usize,
    /// Directories that an entry lies in, with symbolic links followed.
    pub depth: usize,
    /// Bytes of the paths of directories: they are kept in memory until the layer is whole.
    pub directories: u64,
    /// Whether there may be device nodes.
    pub devices: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 10_000_000,
            bytes: 1 << 40,
            // PATH_MAX without the NUL; no container could open a longer one at once.
            path: 4095,
            // More than any path of that length can name.
            depth: 2048,
            // Some hundred thousand directories; large images have some ten thousand.
            directories: 64 << 20,
            devices: true,
        }
    }
}

/// What was applied.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// Directories that had to be made for others and have no entry of their own, each behind the
    /// one that it is in: owner, mode and attributes are those of the directory below, where there
    /// is one.
    pub implicit: BTreeSet<PathBuf>,
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of all files, holes included.
    pub bytes: u64,
}

/// Why a layer was not applied. What was made of it stays for the caller to remove.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The archive cannot be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// An entry asks for what no layer may have.
    #[error("entry {path:?} is refused: {why}")]
    Refused {
        /// The entry, as the archive names it.
        path: String,
        /// Why; what would have been allowed.
        why: String,
    },
    /// The layer is larger than [`Limits`] allow.
    #[error("the layer has more than {allowed} {what}; entry {path:?} is one too many")]
    TooLarge {
        /// What there is too much of, in the plural.
        what: &'static str,
        /// The limit.
        allowed: u64,
        /// The entry that exceeds it.
        path: String,
    },
    /// The file system refused.
    #[error("entry {path:?}: {operation} failed")]
    Io {
        /// The entry, as the archive names it.
        path: String,
        /// What was being done.
        operation: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Applies the layer that `archive` contains into the empty directory `root`, with `writers`
/// threads for its files beside the one that calls. Returns when all of it is there.
pub fn apply<R: Read>(
    archive: &mut Reader<R>,
    root: BorrowedFd<'_>,
    marks: Marks,
    limits: &Limits,
    writers: usize,
) -> Result<Applied, LayerError> {
    let tree = Tree::open(root, limits).map_err(|source| LayerError::Io {
        path: "/".to_owned(),
        operation: "open",
        source,
    })?;
    std::thread::scope(|scope| {
        let mut layer = Layer {
            tree,
            marks,
            limits,
            writers: Writers::start(scope, writers),
            files: HashSet::new(),
            directories: Vec::new(),
            remembered: 0,
            applied: Applied::default(),
        };
        while let Some(entry) = archive.next_entry()? {
            layer.add(entry, archive)?;
        }
        layer.finish()
    })
}

/// A layer of which some entries are there.
struct Layer<'scope, 'a> {
    tree: Tree,
    marks: Marks,
    limits: &'a Limits,
    writers: Writers<'scope>,
    /// Places of files that were handed to the writers, by a hash: one that is met again waits.
    files: HashSet<u64>,
    /// Directories get their times last: what is made in them changes it.
    directories: Vec<(Vec<u8>, Times)>,
    /// Bytes that the paths of directories take, those in `applied` included.
    remembered: u64,
    applied: Applied,
}

/// What an entry is called in errors.
fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

impl Layer<'_, '_> {
    fn add<R: Read>(&mut self, entry: Entry, archive: &mut Reader<R>) -> Result<(), LayerError> {
        self.count(&entry)?;
        let refused = |why: &str| LayerError::Refused {
            path: shown(&entry.path),
            why: why.to_owned(),
        };
        let io = |operation| {
            let path = shown(&entry.path);
            move |source: io::Error| LayerError::Io {
                path,
                operation,
                source,
            }
        };
        let no_way = |operation| {
            let path = &entry.path;
            move |why: NoWay| why.into_error(path, operation)
        };
        if entry.path.len() > self.limits.path {
            let why = format!(
                "its path has {} bytes; at most {}",
                entry.path.len(),
                self.limits.path
            );
            return Err(refused(&why));
        }
        let clean = Clean::of(&entry.path);
        // The root itself is the snapshotter's.
        let Some(name) = clean.name() else {
            return Ok(());
        };
        let marker = Marker::of(name).map_err(refused)?;
        let mut made = Vec::new();
        let parent = self.tree.parent(&clean, &mut made);
        let parent = parent.map_err(no_way("make the directories above"))?;
        for path in made {
            self.remember(path.as_os_str().len(), &entry)?;
            self.applied.implicit.insert(path);
        }
        if let Some(marker) = marker {
            self.writers.wait().map_err(|failed| failed.into_error())?;
            self.tree.forget();
            return match self.marks {
                Marks::Remove => place::remove_marked(&parent, marker),
                Marks::Overlay => place::mark(&parent, marker, &entry),
            }
            .map_err(io("delete what is below"));
        }
        let spot = Spot::new(parent, name);
        let metadata = Metadata::of(&entry);
        match &entry.kind {
            Kind::File { size, extents } => {
                let stored = extents
                    .as_ref()
                    .map_or(*size, |e| e.iter().map(|e| e.length).sum());
                self.make_way(&spot).map_err(io("replace"))?;
                if stored > READ_AHEAD || extents.is_some() {
                    let extents = extents.as_deref();
                    return place::large_file(&spot, *size, extents, archive, &metadata)
                        .map_err(|failed| failed.into_error(&entry.path));
                }
                self.files.insert(spot.hash());
                let file = File::read(spot, metadata, stored, archive, &entry.path)?;
                self.writers
                    .write(file)
                    .map_err(|failed| failed.into_error())
            }
            Kind::Directory => {
                if !place::is_directory(&spot).map_err(io("look"))? {
                    self.make_way(&spot).map_err(io("replace"))?;
                    place::directory(&spot).map_err(io("make a directory"))?;
                }
                self.applied.implicit.remove(Path::new(&spot.path()));
                metadata
                    .set_directory(&spot)
                    .map_err(io("set owner, mode or attributes"))?;
                let path = clean.path();
                self.remember(path.len(), &entry)?;
                self.directories.push((path, metadata.times));
                Ok(())
            }
            Kind::HardLink(target) => {
                let missing = || refused("it is a hard link to what is not in this layer");
                self.writers.wait().map_err(|failed| failed.into_error())?;
                let from = self
                    .tree
                    .find(&Clean::of(target))
                    .map_err(no_way("find what it links to"))?;
                let from = from.ok_or_else(missing)?;
                // A link to itself would remove what it links to.
                if from.hash() == spot.hash() {
                    return Err(refused("it is a hard link to itself"));
                }
                self.make_way(&spot).map_err(io("replace"))?;
                match place::hard_link(&from, &spot) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing()),
                    linked => linked.map_err(io("make a hard link"))?,
                }
                metadata
                    .set(&spot)
                    .map_err(io("set owner, mode or attributes"))
            }
            Kind::Symlink(target) => {
                self.make_way(&spot).map_err(io("replace"))?;
                self.tree.forget();
                place::symlink(&spot, target).map_err(io("make a symbolic link"))?;
                metadata
                    .set(&spot)
                    .map_err(io("set owner, mode or attributes"))
            }
            Kind::CharacterDevice(..) | Kind::BlockDevice(..) if !self.limits.devices => Err(
                refused("it is a device; layers of this source may have none"),
            ),
            Kind::CharacterDevice(..) | Kind::BlockDevice(..) | Kind::Fifo => {
                self.make_way(&spot).map_err(io("replace"))?;
                place::node(&spot, &entry.kind).map_err(io("make a device or pipe"))?;
                metadata
                    .set(&spot)
                    .map_err(io("set owner, mode or attributes"))
            }
            Kind::Unknown(typeflag) => Err(refused(&format!(
                "it is of type {:?}; files, directories, links, devices and pipes are known",
                char::from(*typeflag)
            ))),
        }
    }

    /// Counts a path of so many bytes that is kept, and what keeping it costs beside them.
    fn remember(&mut self, path: usize, entry: &Entry) -> Result<(), LayerError> {
        self.remembered += (path + size_of::<(Vec<u8>, Times)>()) as u64;
        match self.remembered > self.limits.directories {
            false => Ok(()),
            true => Err(LayerError::TooLarge {
                what: "bytes of paths of directories",
                allowed: self.limits.directories,
                path: shown(&entry.path),
            }),
        }
    }

    fn count(&mut self, entry: &Entry) -> Result<(), LayerError> {
        self.applied.entries += 1;
        if let Kind::File { size, .. } = entry.kind {
            self.applied.bytes = self.applied.bytes.saturating_add(size);
        }
        for (what, counted, allowed) in [
            ("entries", self.applied.entries, self.limits.entries),
            ("bytes", self.applied.bytes, self.limits.bytes),
        ] {
            if counted > allowed {
                return Err(LayerError::TooLarge {
                    what,
                    allowed,
                    path: shown(&entry.path),
                });
            }
        }
        Ok(())
    }

    /// Removes what has this name, when it may be there.
    fn make_way(&mut self, spot: &Spot) -> io::Result<()> {
        if !place::exists(spot)? && !self.files.contains(&spot.hash()) {
            return Ok(());
        }
        self.clear(spot)
    }

    fn clear(&mut self, spot: &Spot) -> io::Result<()> {
        self.writers.wait().map_err(|failed| failed.source)?;
        self.tree.forget();
        place::remove(spot)
    }

    fn finish(self) -> Result<Applied, LayerError> {
        self.writers.wait().map_err(|failed| failed.into_error())?;
        for (path, times) in &self.directories {
            let set = || -> Result<(), NoWay> {
                match self.tree.find(&Clean::of(path))? {
                    Some(spot) if place::is_directory(&spot)? => Ok(times.set(&spot)?),
                    // A later entry took it away.
                    _ => Ok(()),
                }
            };
            set().map_err(|why| why.into_error(path, "set the times of a directory"))?;
        }
        Ok(self.applied)
    }
}
