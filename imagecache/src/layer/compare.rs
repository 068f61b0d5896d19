//! Whether two trees are the same: names, kinds, owners, modes, times, attributes, targets of
//! links, device numbers, which names are one file, and content.
//!
//! Everything a container could see is compared, and nothing else: not how a file lies on its disk
//! (holes), not times of access, not the times of overlayfs's marks of deletions. Follows no link, opens no device, crosses no mount, and changes
//! nothing but the times of access of symbolic links, which readlink(2) sets. Of memory it takes the
//! names of one directory at a time, and an entry for each file that has several names.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{
    Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, getxattr, listxattr, major, minor,
    openat2, readlinkat,
};
use rustix::io::Errno;

/// Bytes of two files that are compared at a time.
const PIECE: usize = 256 * 1024;
/// Most that the kernel gives for names, and for a value, of attributes (xattr(7)).
const XATTRS: usize = 64 * 1024;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Comparison {
    /// Differences, directory by directory; at most as many as were asked for.
    pub differences: Vec<Difference>,
    /// Whether there were more, so that the rest was not looked at.
    pub is_cut: bool,
    /// Names that both trees have.
    pub compared: u64,
}

/// A difference, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// From the root, which is `.`.
    pub path: PathBuf,
    /// What it is.
    pub what: What,
}

/// What differs; the first tree's comes first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Only the first tree has the name.
    OnlyFirst,
    /// Only the second tree has it.
    OnlySecond,
    /// One is a file, the other a directory, and so on.
    Kind(&'static str, &'static str),
    /// Permission bits.
    Mode(u32, u32),
    /// User and group.
    Owner((u32, u32), (u32, u32)),
    /// Last change, seconds and nanoseconds since 1970.
    Modified((i64, u64), (i64, u64)),
    /// Bytes of a file.
    Size(u64, u64),
    /// Files of one size whose content differs.
    Content,
    /// Where a symbolic link leads.
    Target(PathBuf, PathBuf),
    /// Major and minor number.
    Device((u32, u32), (u32, u32)),
    /// The extended attribute of this name: another value, or only one of them has it.
    Attribute(String),
    /// In one of the trees this name and one before it are the same file, in the other they are two.
    HardLinks,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: ", self.path)?;
        match &self.what {
            What::OnlyFirst => f.write_str("only the first tree has it"),
            What::OnlySecond => f.write_str("only the second tree has it"),
            What::Kind(first, second) => write!(f, "{first} / {second}"),
            What::Mode(first, second) => write!(f, "mode {first:04o} / {second:04o}"),
            What::Owner(first, second) => {
                let ((user, group), (other_user, other_group)) = (first, second);
                write!(f, "owner {user}:{group} / {other_user}:{other_group}")
            }
            What::Modified(first, second) => write!(
                f,
                "modified {}.{:09} / {}.{:09}",
                first.0, first.1, second.0, second.1
            ),
            What::Size(first, second) => write!(f, "{first} bytes / {second} bytes"),
            What::Content => f.write_str("other content"),
            What::Target(first, second) => write!(f, "leads to {first:?} / {second:?}"),
            What::Device(first, second) => {
                let ((major, minor), (other_major, other_minor)) = (first, second);
                write!(f, "device {major}:{minor} / {other_major}:{other_minor}")
            }
            What::Attribute(name) => write!(f, "attribute {name:?}"),
            What::HardLinks => f.write_str("one file with another name in one of the trees only"),
        }
    }
}

/// Why two trees cannot be compared.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {path:?} of the {tree} tree")]
pub struct CompareError {
    /// `first`, `second`.
    pub tree: &'static str,
    /// From the root.
    pub path: PathBuf,
    /// What was being done.
    pub operation: &'static str,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// Compares what is below the directories `first` and `second`, and these themselves but for their
/// times, which are those of whoever made them. Lists at most `most` differences. Blocks.
pub fn compare(
    first: BorrowedFd<'_>,
    second: BorrowedFd<'_>,
    most: usize,
) -> Result<Comparison, CompareError> {
    let mut walk = Walk {
        roots: [first, second],
        most,
        found: Comparison::default(),
        linked: [HashMap::new(), HashMap::new()],
        pending: VecDeque::new(),
    };
    walk.root()?;
    while let Some(path) = walk.pending.pop_front() {
        if walk.found.is_cut {
            break;
        }
        walk.directory(&path)?;
    }
    Ok(walk.found)
}

type Inode = (u64, u64);

struct Walk<'a> {
    roots: [BorrowedFd<'a>; 2],
    most: usize,
    found: Comparison,
    /// Files with several names: for each of one tree, the one of the other.
    linked: [HashMap<Inode, Inode>; 2],
    /// Directories that both have.
    pending: VecDeque<PathBuf>,
}

/// A name that was looked at: held by a descriptor that reads and writes nothing.
struct Node {
    fd: OwnedFd,
    about: Stat,
}

impl Node {
    fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.about.st_mode)
    }

    fn inode(&self) -> Inode {
        (self.about.st_dev, self.about.st_ino)
    }

    /// The way to what the descriptor holds, also when that is a link: the kernel jumps there.
    fn way(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }
}

impl Walk<'_> {
    fn root(&mut self) -> Result<(), CompareError> {
        let path = Path::new(".");
        let nodes = [self.node(0, path)?, self.node(1, path)?];
        self.metadata(path, &nodes)?;
        self.pending.push_back(path.to_owned());
        Ok(())
    }

    fn directory(&mut self, path: &Path) -> Result<(), CompareError> {
        let (first, second) = (self.names(0, path)?, self.names(1, path)?);
        for name in first.union(&second) {
            if self.found.is_cut {
                return Ok(());
            }
            let path = match path == Path::new(".") {
                true => PathBuf::from(name),
                false => path.join(name),
            };
            match (first.contains(name), second.contains(name)) {
                (true, true) => self.entry(path)?,
                (true, false) => self.differs(&path, What::OnlyFirst),
                _ => self.differs(&path, What::OnlySecond),
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: PathBuf) -> Result<(), CompareError> {
        self.found.compared += 1;
        let nodes = [self.node(0, &path)?, self.node(1, &path)?];
        let [first, second] = &nodes;
        if first.kind() != second.kind() {
            let what = What::Kind(called(first.kind()), called(second.kind()));
            self.differs(&path, what);
            return Ok(());
        }
        self.metadata(&path, &nodes)?;
        let [one, other] = nodes.each_ref().map(|node| &node.about);
        let times = [one, other].map(|about| (about.st_mtime, about.st_mtime_nsec));
        // overlayfs's mark of a deletion has the time at which it was made, and nobody sees it.
        let is_mark = first.kind() == FileType::CharacterDevice && one.st_rdev == 0;
        if times[0] != times[1] && !is_mark {
            self.differs(&path, What::Modified(times[0], times[1]));
        }
        match first.kind() {
            FileType::Directory => self.pending.push_back(path),
            FileType::RegularFile => {
                let is_known = self.links(&path, &nodes);
                let sizes = [one, other].map(|about| u64::try_from(about.st_size).unwrap_or(0));
                if sizes[0] != sizes[1] {
                    self.differs(&path, What::Size(sizes[0], sizes[1]));
                } else if !is_known && !self.is_same_content(&path, &nodes)? {
                    self.differs(&path, What::Content);
                }
            }
            FileType::Symlink => {
                self.links(&path, &nodes);
                let targets = [
                    self.target(0, &path, first)?,
                    self.target(1, &path, second)?,
                ];
                if targets[0] != targets[1] {
                    let [first, second] = targets;
                    self.differs(&path, What::Target(first, second));
                }
            }
            FileType::CharacterDevice | FileType::BlockDevice => {
                self.links(&path, &nodes);
                let devices =
                    [one, other].map(|about| (major(about.st_rdev), minor(about.st_rdev)));
                if devices[0] != devices[1] {
                    self.differs(&path, What::Device(devices[0], devices[1]));
                }
            }
            _ => {
                self.links(&path, &nodes);
            }
        }
        Ok(())
    }

    /// Owner, mode and attributes: what directories have like everything else.
    fn metadata(&mut self, path: &Path, nodes: &[Node; 2]) -> Result<(), CompareError> {
        let modes = nodes.each_ref().map(|node| node.about.st_mode & 0o7777);
        if modes[0] != modes[1] {
            self.differs(path, What::Mode(modes[0], modes[1]));
        }
        let owners = nodes
            .each_ref()
            .map(|node| (node.about.st_uid, node.about.st_gid));
        if owners[0] != owners[1] {
            self.differs(path, What::Owner(owners[0], owners[1]));
        }
        let first = attributes(&nodes[0]).map_err(failed(0, path, "read the attributes of"))?;
        let second = attributes(&nodes[1]).map_err(failed(1, path, "read the attributes of"))?;
        let names: BTreeSet<_> = first.keys().chain(second.keys()).collect();
        for name in names {
            if first.get(name) != second.get(name) {
                let name = String::from_utf8_lossy(name).into_owned();
                self.differs(path, What::Attribute(name));
            }
        }
        Ok(())
    }

    /// Compares which names are one file. True when these two were compared under another name.
    fn links(&mut self, path: &Path, nodes: &[Node; 2]) -> bool {
        let [first, second] = nodes.each_ref().map(Node::inode);
        if nodes.iter().all(|node| node.about.st_nlink == 1) {
            return false;
        }
        let [to_second, to_first] = &mut self.linked;
        match (to_second.get(&first), to_first.get(&second)) {
            (None, None) => {
                to_second.insert(first, second);
                to_first.insert(second, first);
                false
            }
            (Some(known), _) if *known == second => true,
            _ => {
                self.differs(path, What::HardLinks);
                false
            }
        }
    }

    fn differs(&mut self, path: &Path, what: What) {
        if self.found.differences.len() < self.most {
            let path = path.to_owned();
            self.found.differences.push(Difference { path, what });
        } else {
            self.found.is_cut = true;
        }
    }

    fn node(&self, tree: usize, path: &Path) -> Result<Node, CompareError> {
        let look = || -> io::Result<Node> {
            let fd = open(self.roots[tree], path, OFlags::PATH)?;
            let about = fstat(&fd)?;
            Ok(Node { fd, about })
        };
        look().map_err(failed(tree, path, "look at"))
    }

    fn names(&self, tree: usize, path: &Path) -> Result<BTreeSet<OsString>, CompareError> {
        let list = || -> io::Result<BTreeSet<OsString>> {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOATIME;
            let mut names = BTreeSet::new();
            for entry in Dir::new(open(self.roots[tree], path, flags)?)? {
                match entry?.file_name().to_bytes() {
                    b"." | b".." => {}
                    name => {
                        names.insert(OsStr::from_bytes(name).to_owned());
                    }
                }
            }
            Ok(names)
        };
        list().map_err(failed(tree, path, "list"))
    }

    fn target(&self, tree: usize, path: &Path, node: &Node) -> Result<PathBuf, CompareError> {
        let target = readlinkat(&node.fd, "", Vec::new());
        let target =
            target.map_err(|errno| failed(tree, path, "read the link")(io::Error::from(errno)))?;
        Ok(PathBuf::from(OsString::from_vec(target.into_bytes())))
    }

    fn is_same_content(&self, path: &Path, nodes: &[Node; 2]) -> Result<bool, CompareError> {
        let mut files = Vec::with_capacity(2);
        for (tree, node) in nodes.iter().enumerate() {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOATIME;
            // What was looked at and no other: nothing is opened by its name twice.
            let file = rustix::fs::open(node.way(), flags, Mode::empty());
            let file = file.map_err(|errno| failed(tree, path, "open")(errno.into()))?;
            files.push(File::from(file));
        }
        let mut pieces = [vec![0; PIECE], vec![0; PIECE]];
        loop {
            let mut lengths = [0; 2];
            for (tree, file) in files.iter_mut().enumerate() {
                lengths[tree] =
                    fill(file, &mut pieces[tree]).map_err(failed(tree, path, "read"))?;
            }
            let [first, second] = lengths;
            if pieces[0][..first] != pieces[1][..second] {
                return Ok(false);
            }
            if first == 0 {
                return Ok(true);
            }
        }
    }
}

/// Opens without leaving the tree, following nothing and staying on its file system.
fn open(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    openat2(root, path, flags, Mode::empty(), resolve)
}

fn failed(
    tree: usize,
    path: &Path,
    operation: &'static str,
) -> impl FnOnce(io::Error) -> CompareError {
    let path = path.to_owned();
    move |source| CompareError {
        tree: ["first", "second"][tree],
        path,
        operation,
        source,
    }
}

fn called(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        FileType::Fifo => "a pipe",
        FileType::Socket => "a socket",
        FileType::Unknown => "of an unknown kind",
    }
}

fn attributes(node: &Node) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let way = node.way();
    let mut names = vec![0; XATTRS];
    let length = match listxattr(&way, &mut names[..]) {
        // A file system that has none.
        Err(Errno::NOTSUP) => 0,
        listed => listed?,
    };
    let mut found = BTreeMap::new();
    for name in names[..length].split(|byte| *byte == 0) {
        if !name.is_empty() {
            let mut value = vec![0; XATTRS];
            let length = getxattr(&way, OsStr::from_bytes(name), &mut value[..])?;
            value.truncate(length);
            found.insert(name.to_vec(), value);
        }
    }
    Ok(found)
}

/// Fills the buffer, unless the file ends before.
fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
