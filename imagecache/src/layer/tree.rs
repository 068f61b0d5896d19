//! Finding places below a root without ever leaving it.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, fstat, mkdirat, openat, readlinkat};
use rustix::io::Errno;

use super::names::Clean;
use super::{LayerError, Limits, shown};

/// Symbolic links on one way, as Go's resolver and the kernel's have it, more or less.
const LINKS: usize = 255;

/// A directory of the layer.
#[derive(Debug)]
pub(super) struct Directory {
    fd: OwnedFd,
    inode: u64,
    /// From the root, links resolved.
    path: Vec<u8>,
    /// Names in it.
    depth: usize,
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Directory {
    fn new(fd: OwnedFd, path: Vec<u8>, depth: usize) -> io::Result<Arc<Self>> {
        let inode = fstat(&fd)?.st_ino;
        Ok(Arc::new(Self {
            fd,
            inode,
            path,
            depth,
        }))
    }

    fn path_of(&self, name: &[u8]) -> Vec<u8> {
        match self.path.is_empty() {
            true => name.to_vec(),
            false => [&self.path, &b"/"[..], name].concat(),
        }
    }

    /// The one that it is in.
    fn above(&self) -> io::Result<Arc<Self>> {
        let end = self.path.iter().rposition(|byte| *byte == b'/');
        let path = self.path[..end.unwrap_or(0)].to_vec();
        let fd = open_directory(self.as_fd(), OsStr::new(".."))?;
        Self::new(fd, path, self.depth.saturating_sub(1))
    }
}

/// A name in a directory, taken or not.
#[derive(Debug, Clone)]
pub(super) struct Spot {
    pub directory: Arc<Directory>,
    pub name: OsString,
}

impl Spot {
    pub fn new(directory: Arc<Directory>, name: &[u8]) -> Self {
        Self {
            directory,
            name: OsString::from_vec(name.to_vec()),
        }
    }

    /// The same for each way to this place.
    pub fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.directory.inode, &self.name).hash(&mut hasher);
        hasher.finish()
    }

    /// From the root, links resolved.
    pub fn path(&self) -> OsString {
        OsString::from_vec(self.directory.path_of(self.name.as_bytes()))
    }
}

/// Why there is no way to a place.
#[derive(Debug)]
pub(super) enum NoWay {
    /// It leads further down than [`Limits`] allow.
    Refused(String),
    /// The file system refused.
    Io(io::Error),
}

impl NoWay {
    pub fn into_error(self, path: &[u8], operation: &'static str) -> LayerError {
        let path = shown(path);
        match self {
            Self::Refused(why) => LayerError::Refused { path, why },
            Self::Io(source) => LayerError::Io {
                path,
                operation,
                source,
            },
        }
    }
}

impl From<io::Error> for NoWay {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The tree of a layer.
#[derive(Debug)]
pub(super) struct Tree {
    root: Arc<Directory>,
    limits: Limits,
    /// Where the last entry was: most come directory by directory.
    last: Option<(Vec<Vec<u8>>, Arc<Directory>)>,
}

/// Makes a directory that is missing.
type Make<'m> = &'m mut dyn FnMut(&Arc<Directory>, &[u8]) -> io::Result<()>;

/// What a way leads to.
enum Step {
    Down(Arc<Directory>),
    Through(Vec<u8>),
    Missing,
}

impl Tree {
    pub fn open(root: BorrowedFd<'_>, limits: &Limits) -> io::Result<Self> {
        let root = Directory::new(open_directory(root, OsStr::new("."))?, Vec::new(), 0)?;
        Ok(Self {
            root,
            limits: *limits,
            last: None,
        })
    }

    /// What was a directory may be none any more.
    pub fn forget(&mut self) {
        self.last = None;
    }

    /// The directory of an entry. Those that are missing are made and added to `made`.
    pub fn parent(&mut self, of: &Clean, made: &mut Vec<PathBuf>) -> Result<Arc<Directory>, NoWay> {
        if let Some((names, directory)) = &self.last
            && names == of.above()
        {
            return Ok(Arc::clone(directory));
        }
        let mut make = |at: &Arc<Directory>, name: &[u8]| -> io::Result<()> {
            mkdirat(at, OsStr::from_bytes(name), Mode::from_raw_mode(0o755))?;
            made.push(PathBuf::from(OsString::from_vec(at.path_of(name))));
            Ok(())
        };
        let Some(directory) = self.walk(of.above(), Some(&mut make))? else {
            return Err(io::Error::from(io::ErrorKind::NotFound).into());
        };
        self.last = Some((of.above().to_vec(), Arc::clone(&directory)));
        Ok(directory)
    }

    /// The place of an entry, when its directory is there.
    pub fn find(&self, path: &Clean) -> Result<Option<Spot>, NoWay> {
        let Some(name) = path.name() else {
            return Ok(None);
        };
        let directory = self.walk(path.above(), None)?;
        Ok(directory.map(|directory| Spot::new(directory, name)))
    }

    /// Goes down name by name. Symbolic links are followed as if the root were `/`.
    fn walk(
        &self,
        names: &[Vec<u8>],
        mut make: Option<Make<'_>>,
    ) -> Result<Option<Arc<Directory>>, NoWay> {
        let mut at = Arc::clone(&self.root);
        let mut ahead: VecDeque<Vec<u8>> = names.iter().cloned().collect();
        let mut links = 0;
        while let Some(name) = ahead.pop_front() {
            match &name[..] {
                b"" | b"." => continue,
                b".." => {
                    if at.depth > 0 {
                        at = at.above()?;
                    }
                    continue;
                }
                _ => {}
            }
            match step(&at, &name)? {
                Step::Down(directory) => {
                    self.permit(&at, &name)?;
                    at = directory;
                }
                Step::Through(target) => {
                    links += 1;
                    if links > LINKS {
                        return Err(io::Error::from(Errno::LOOP).into());
                    }
                    if target.starts_with(b"/") {
                        at = Arc::clone(&self.root);
                    }
                    let target: Vec<&[u8]> = target.split(|byte| *byte == b'/').collect();
                    for name in target.into_iter().rev() {
                        ahead.push_front(name.to_vec());
                    }
                }
                Step::Missing => {
                    let Some(make) = make.as_mut() else {
                        return Ok(None);
                    };
                    self.permit(&at, &name)?;
                    make(&at, &name)?;
                    ahead.push_front(name);
                }
            }
        }
        Ok(Some(at))
    }

    /// Whether something may be in the directory `name` of `at`: links make a way longer than the
    /// path of an entry is.
    fn permit(&self, at: &Directory, name: &[u8]) -> Result<(), NoWay> {
        let (depth, bytes) = (at.depth + 1, at.path.len() + 1 + name.len());
        if depth > self.limits.depth {
            return Err(NoWay::Refused(format!(
                "with links followed it lies in {depth} directories; at most {}",
                self.limits.depth
            )));
        }
        if bytes > self.limits.path {
            return Err(NoWay::Refused(format!(
                "with links followed the path of its directory has {bytes} bytes; at most {}",
                self.limits.path
            )));
        }
        Ok(())
    }
}

fn step(at: &Arc<Directory>, name: &[u8]) -> io::Result<Step> {
    let os_name = OsStr::from_bytes(name);
    match open_directory(at.as_fd(), os_name) {
        Ok(fd) => Directory::new(fd, at.path_of(name), at.depth + 1).map(Step::Down),
        Err(Errno::NOENT) => Ok(Step::Missing),
        // O_NOFOLLOW with O_DIRECTORY says ENOTDIR of a link.
        Err(errno @ (Errno::NOTDIR | Errno::LOOP)) => match readlinkat(at, os_name, Vec::new()) {
            Ok(target) => Ok(Step::Through(target.into_bytes())),
            Err(_) => Err(errno.into()),
        },
        Err(errno) => Err(errno.into()),
    }
}

fn open_directory(at: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty())
}
