//! Making what an entry says, at a place that is free.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid, XattrFlags, chownat, linkat, makedev, mkdirat,
    mknodat, openat, setxattr, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::metadata::Metadata;
use super::names::Marker;
use super::tree::{Directory, Spot};
use super::{LayerError, shown};
use crate::archive::{ArchiveError, Entry, Extent, Kind, Reader};
use crate::removal::remove_tree;

/// The attribute of a directory that hides all below it (overlayfs, Documentation/filesystems).
const OPAQUE: &str = "trusted.overlay.opaque";

/// Why a file was not written.
pub(super) enum Unwritten {
    Archive(ArchiveError),
    Io(&'static str, io::Error),
}

impl Unwritten {
    pub fn into_error(self, path: &[u8]) -> LayerError {
        match self {
            Self::Archive(error) => LayerError::Archive(error),
            Self::Io(operation, source) => LayerError::Io {
                path: shown(path),
                operation,
                source,
            },
        }
    }
}

impl From<ArchiveError> for Unwritten {
    fn from(error: ArchiveError) -> Self {
        Self::Archive(error)
    }
}

fn look(spot: &Spot) -> io::Result<Option<Stat>> {
    match statat(&spot.directory, &spot.name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

pub(super) fn exists(spot: &Spot) -> io::Result<bool> {
    Ok(look(spot)?.is_some())
}

pub(super) fn is_directory(spot: &Spot) -> io::Result<bool> {
    let kind = look(spot)?.map(|found| FileType::from_raw_mode(found.st_mode));
    Ok(kind == Some(FileType::Directory))
}

/// Removes what is at the place, with all below it. Nothing is fine.
pub(super) fn remove(spot: &Spot) -> io::Result<()> {
    match unlinkat(&spot.directory, &spot.name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => remove_tree(&spot.directory, &*spot.name),
        Err(errno) => Err(errno.into()),
    }
}

/// In the lowest layer: what the marker names goes, as far as this layer brought it before.
pub(super) fn remove_marked(parent: &Arc<Directory>, marker: Marker<'_>) -> io::Result<()> {
    match marker {
        Marker::Name(name) => remove(&Spot::new(Arc::clone(parent), name)),
        // All that is there came with this layer, and stays.
        Marker::Directory => Ok(()),
    }
}

/// In any other: overlayfs's own marks.
pub(super) fn mark(parent: &Arc<Directory>, marker: Marker<'_>, entry: &Entry) -> io::Result<()> {
    match marker {
        Marker::Name(name) => {
            let name = OsStr::from_bytes(name);
            let none = makedev(0, 0);
            mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), none)?;
            let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
            let at = AtFlags::SYMLINK_NOFOLLOW;
            Ok(chownat(parent, name, Some(uid), Some(gid), at)?)
        }
        Marker::Directory => {
            let path = format!("/proc/self/fd/{}", parent.as_fd().as_raw_fd());
            Ok(setxattr(path, OPAQUE, b"y", XattrFlags::empty())?)
        }
    }
}

/// A new file that only we may open until it is whole.
pub(super) fn new_file(spot: &Spot) -> io::Result<fs::File> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd: OwnedFd = openat(&spot.directory, &spot.name, flags, Mode::RUSR | Mode::WUSR)?;
    Ok(fs::File::from(fd))
}

/// A file that is too large to be read ahead, or has holes.
pub(super) fn large_file<R: Read>(
    spot: &Spot,
    size: u64,
    extents: Option<&[Extent]>,
    archive: &mut Reader<R>,
    metadata: &Metadata,
) -> Result<(), Unwritten> {
    let create = |source| Unwritten::Io("create", source);
    let write = |source| Unwritten::Io("write", source);
    let mut file = new_file(spot).map_err(create)?;
    let mut buffer = vec![0; 256 * 1024];
    match extents {
        None => loop {
            match archive.read_data(&mut buffer)? {
                0 => break,
                read => file.write_all(&buffer[..read]).map_err(write)?,
            }
        },
        Some(extents) => {
            file.set_len(size).map_err(write)?;
            for Extent { offset, length } in extents {
                let (mut at, end) = (*offset, offset + length);
                while at < end {
                    let left = usize::try_from(end - at).unwrap_or(usize::MAX);
                    let most = left.min(buffer.len());
                    let read = archive.read_data(&mut buffer[..most])?;
                    if read == 0 {
                        break;
                    }
                    file.write_all_at(&buffer[..read], at).map_err(write)?;
                    at += read as u64;
                }
            }
        }
    }
    let set = |source| Unwritten::Io("set owner, mode, attributes or times", source);
    metadata.set_open(file.as_fd()).map_err(set)
}

pub(super) fn directory(spot: &Spot) -> io::Result<()> {
    Ok(mkdirat(&spot.directory, &spot.name, Mode::RWXU)?)
}

pub(super) fn symlink(spot: &Spot, target: &[u8]) -> io::Result<()> {
    Ok(symlinkat(
        OsStr::from_bytes(target),
        &spot.directory,
        &spot.name,
    )?)
}

pub(super) fn hard_link(from: &Spot, to: &Spot) -> io::Result<()> {
    let at = AtFlags::empty();
    Ok(linkat(
        &from.directory,
        &from.name,
        &to.directory,
        &to.name,
        at,
    )?)
}

pub(super) fn node(spot: &Spot, kind: &Kind) -> io::Result<()> {
    let (file_type, device) = match kind {
        Kind::CharacterDevice(major, minor) => (FileType::CharacterDevice, makedev(*major, *minor)),
        Kind::BlockDevice(major, minor) => (FileType::BlockDevice, makedev(*major, *minor)),
        _ => (FileType::Fifo, 0),
    };
    let mode = Mode::RUSR | Mode::WUSR;
    Ok(mknodat(
        &spot.directory,
        &spot.name,
        file_type,
        mode,
        device,
    )?)
}
