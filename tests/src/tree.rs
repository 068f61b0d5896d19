//! A directory tree as data: everything that an unpacked image is judged by.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{lgetxattr, llistxattr};

use crate::image::digest;

/// What one name in a tree is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it is, with content, target or device number.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
    /// Last change: seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// The kinds of nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A file: its size, the digest of its content, and the first of its names.
    File {
        /// Bytes.
        size: u64,
        /// `sha256:<hex>`.
        digest: String,
        /// The first name, in order, of the same file: itself without hard links.
        first: PathBuf,
    },
    /// A directory.
    Directory,
    /// A symbolic link and its target.
    Symlink(PathBuf),
    /// A character device.
    Character(u64),
    /// A block device.
    Block(u64),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// All that is below a directory, the directory itself as the empty path, its time as 0: whoever
/// unpacks leaves the time of unpacking there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree(pub BTreeMap<PathBuf, Node>);

impl Tree {
    /// Reads the tree below `root`, without crossing what is mounted there.
    pub fn read(root: &Path) -> Result<Self> {
        let mut paths = vec![PathBuf::new()];
        let mut at = 0;
        while let Some(path) = paths.get(at) {
            let full = root.join(path);
            at += 1;
            let about = || format!("read {}", full.display());
            if fs::symlink_metadata(&full).with_context(about)?.is_dir() {
                let parent = path.clone();
                for entry in fs::read_dir(&full).with_context(about)? {
                    paths.push(parent.join(entry.with_context(about)?.file_name()));
                }
            }
        }
        paths.sort();
        let mut tree = BTreeMap::new();
        let mut first_names = BTreeMap::new();
        for path in paths {
            // `join` of nothing would add a slash, which follows a link.
            let full = if path.as_os_str().is_empty() {
                root.to_owned()
            } else {
                root.join(&path)
            };
            let node = node(&full, &path, &mut first_names);
            let mut node = node.with_context(|| format!("look at {}", full.display()))?;
            if path.as_os_str().is_empty() {
                node.mtime = (0, 0);
            }
            tree.insert(path, node);
        }
        Ok(Self(tree))
    }

    /// The node at `path`.
    pub fn at(&self, path: &str) -> Option<&Node> {
        self.0.get(Path::new(path))
    }

    /// What differs: one line for each name, `mine` and `other` beside each other.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut names: Vec<&PathBuf> = self.0.keys().chain(other.0.keys()).collect();
        names.sort();
        names.dedup();
        let differing = names.into_iter().filter_map(|name| {
            let (mine, other) = (self.0.get(name), other.0.get(name));
            let said = |node: Option<&Node>| node.map_or("nothing".to_owned(), Node::to_string);
            (mine != other).then(|| format!("{name:?}: {} / {}", said(mine), said(other)))
        });
        differing.collect()
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            mode,
            owner,
            mtime,
            xattrs,
        } = self;
        write!(f, "{kind:?} {mode:o} {owner:?} {mtime:?}")?;
        for (name, value) in xattrs {
            write!(f, " {}={value:?}", String::from_utf8_lossy(name))?;
        }
        Ok(())
    }
}

fn node(full: &Path, path: &Path, first_names: &mut BTreeMap<(u64, u64), PathBuf>) -> Result<Node> {
    let about = fs::symlink_metadata(full)?;
    let kind = about.file_type();
    let kind = if kind.is_dir() {
        Kind::Directory
    } else if kind.is_symlink() {
        Kind::Symlink(fs::read_link(full)?)
    } else if kind.is_char_device() {
        Kind::Character(about.rdev())
    } else if kind.is_block_device() {
        Kind::Block(about.rdev())
    } else if kind.is_fifo() {
        Kind::Fifo
    } else if kind.is_socket() {
        Kind::Socket
    } else {
        let inode = (about.dev(), about.ino());
        let first = first_names.entry(inode).or_insert_with(|| path.to_owned());
        Kind::File {
            size: about.len(),
            digest: digest(&fs::read(full)?),
            first: first.clone(),
        }
    };
    Ok(Node {
        kind,
        mode: about.mode() & 0o7777,
        owner: (about.uid(), about.gid()),
        mtime: (about.mtime(), about.mtime_nsec()),
        xattrs: xattrs(full)?,
    })
}

fn xattrs(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = vec![0; 64 << 10];
    let length = llistxattr(path, &mut names[..]).context("list extended attributes")?;
    let names = names[..length].split(|byte| *byte == 0);
    let mut found = BTreeMap::new();
    for name in names.filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10];
        let name = std::ffi::OsString::from_vec(name.to_vec());
        let length = lgetxattr(path, &name, &mut value[..])
            .with_context(|| format!("read the attribute {}", name.display()))?;
        value.truncate(length);
        found.insert(name.as_bytes().to_vec(), value);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_is_told_by_its_name() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("one"), "content").unwrap();
        fs::hard_link(root.path().join("one"), root.path().join("two")).unwrap();
        let before = Tree::read(root.path()).unwrap();
        assert_eq!(before.differences(&before), Vec::<String>::new());

        // The same names and contents, but two files now.
        let copy = fs::read(root.path().join("two")).unwrap();
        let mtime = before.at("one").unwrap().mtime;
        fs::remove_file(root.path().join("two")).unwrap();
        fs::write(root.path().join("two"), copy).unwrap();
        let mut after = Tree::read(root.path()).unwrap();
        for node in after.0.values_mut() {
            node.mtime = mtime;
        }
        let mut before = before;
        for node in before.0.values_mut() {
            node.mtime = mtime;
        }
        let differences = before.differences(&after);
        assert_eq!(differences.len(), 1, "{differences:?}");
        assert!(
            differences[0].starts_with("\"two\": File"),
            "{differences:?}"
        );
    }
}
