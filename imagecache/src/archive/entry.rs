//! One entry of an archive: what it is, and what it should look like in a tree.

use super::header::Header;
use super::sparse::Extent;

/// Seconds since the epoch, and nanoseconds behind them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// 0..1_000_000_000.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// A whole second.
    pub fn seconds(seconds: i64) -> Self {
        Self {
            seconds,
            nanoseconds: 0,
        }
    }
}

/// An extended attribute: name and value.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File {
        /// Its bytes, holes included.
        size: u64,
        /// Where its data belongs, when it has holes.
        extents: Option<Vec<Extent>>,
    },
    /// A directory.
    Directory,
    /// A symbolic link, with what it says.
    Symlink(Vec<u8>),
    /// Another name of an entry before.
    HardLink(Vec<u8>),
    /// A character device: major and minor number.
    CharacterDevice(u32, u32),
    /// A block device: major and minor number.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
    /// What no layer contains; its typeflag.
    Unknown(u8),
}

/// An entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// As written: it may be absolute, and contain `.` and `..`.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permissions with set-user-id, set-group-id and sticky bit.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When it was changed.
    pub mtime: Timestamp,
    /// When it was read, where the archive says.
    pub atime: Option<Timestamp>,
    /// Extended attributes by name.
    pub xattrs: Vec<Xattr>,
    stored: u64,
}

impl Entry {
    pub(super) fn of(header: Header, xattrs: Vec<Xattr>) -> Result<Self, String> {
        let (major, minor) = header.device;
        let kind = match header.typeflag {
            // A V7 archive knows a directory by its name.
            0 if header.name.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'S' => Kind::File {
                size: header.size,
                extents: None,
            },
            b'1' => Kind::HardLink(header.link),
            b'2' => Kind::Symlink(header.link),
            b'3' => Kind::CharacterDevice(major, minor),
            b'4' => Kind::BlockDevice(major, minor),
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => Kind::Unknown(other),
        };
        if [&header.name[..], link(&kind)]
            .iter()
            .any(|name| name.contains(&0))
        {
            return Err("a name contains NUL".to_owned());
        }
        // What is not a file has no data, whatever its size says.
        let stored = match kind {
            Kind::File { .. } | Kind::Unknown(_) => header.size,
            _ => 0,
        };
        Ok(Self {
            path: header.name,
            kind,
            mode: header.mode,
            uid: header.uid,
            gid: header.gid,
            mtime: header.mtime,
            atime: header.atime,
            xattrs,
            stored,
        })
    }

    /// Bytes of its data in the archive.
    pub(super) fn stored_size(&self) -> u64 {
        self.stored
    }
}

fn link(kind: &Kind) -> &[u8] {
    match kind {
        Kind::HardLink(target) | Kind::Symlink(target) => target,
        _ => &[],
    }
}
