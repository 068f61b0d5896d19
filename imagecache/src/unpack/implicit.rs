//! Directories that a layer needs and does not mention: they look like those below.
//!
//! As containerd has it (`pkg/archive`, `mkparent`): owner, mode, attributes and times of the first
//! lower layer that has something of that name; nothing where that is no directory.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{
    FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, fchmod,
    fchown, fgetxattr, flistxattr, fsetxattr, fstat, futimens, open, openat2,
};
use rustix::io::Errno;

use super::UnpackError;

/// Attributes of overlayfs itself say something about one layer only.
const OVERLAY: &[u8] = b"trusted.overlay.";
/// XATTR_SIZE_MAX and XATTR_LIST_MAX of linux/limits.h.
const XATTR_MAX: usize = 64 * 1024;

/// Makes the directories `implicit` of `tree` look like those of `lower`, the topmost first.
pub(super) fn inherit(
    tree: &Path,
    implicit: &BTreeSet<PathBuf>,
    lower: &[PathBuf],
) -> Result<(), UnpackError> {
    if implicit.is_empty() {
        return Ok(());
    }
    let open_root = |path: &Path| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = open(path, flags, Mode::empty()).map_err(io::Error::from);
        opened.map_err(UnpackError::io("open", path))
    };
    let root = open_root(tree)?;
    let lower: Vec<(&PathBuf, OwnedFd)> = lower
        .iter()
        .map(|path| Ok((path, open_root(path)?)))
        .collect::<Result<_, UnpackError>>()?;
    // From the top down: where nothing is below a directory, nothing is below those in it.
    let mut new: HashSet<&Path> = HashSet::new();
    for path in implicit {
        if path.parent().is_some_and(|above| new.contains(above)) {
            new.insert(path);
            continue;
        }
        let mut is_new = true;
        for (below, below_root) in &lower {
            let found = directory(below_root, path);
            match found.map_err(UnpackError::io("look below", below.join(path)))? {
                Found::Nothing => {}
                // What it replaces is no directory.
                Found::Other => break,
                Found::Directory(from, like) => {
                    let set = || -> io::Result<()> {
                        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
                        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                        match openat2(&root, path, flags, Mode::empty(), beneath) {
                            Ok(to) => copy(&from, &like, &to),
                            // A later entry of the layer replaced it, or what it was in.
                            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
                            Err(errno) => Err(errno.into()),
                        }
                    };
                    set().map_err(UnpackError::io("set owner and mode of", tree.join(path)))?;
                    is_new = false;
                    break;
                }
            }
        }
        if is_new {
            new.insert(path);
        }
    }
    Ok(())
}

enum Found {
    Nothing,
    Other,
    Directory(OwnedFd, Stat),
}

/// What a layer has at `path`, its links resolved as if the layer's root were `/`.
fn directory(root: &OwnedFd, path: &Path) -> io::Result<Found> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let found = match openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
        Ok(found) => found,
        Err(Errno::NOENT) => return Ok(Found::Nothing),
        // Something above it is no directory.
        Err(Errno::NOTDIR) => return Ok(Found::Other),
        Err(errno) => return Err(errno.into()),
    };
    let like = fstat(&found)?;
    if FileType::from_raw_mode(like.st_mode) != FileType::Directory {
        return Ok(Found::Other);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let readable = openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
    Ok(Found::Directory(readable, like))
}

fn copy(from: &OwnedFd, like: &Stat, to: &OwnedFd) -> io::Result<()> {
    fchown(
        to,
        Some(Uid::from_raw(like.st_uid)),
        Some(Gid::from_raw(like.st_gid)),
    )?;
    fchmod(to, Mode::from_raw_mode(like.st_mode))?;
    let mut names = vec![0_u8; XATTR_MAX];
    let length = match flistxattr(from, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => 0,
        Err(errno) => return Err(errno.into()),
    };
    let mut value = vec![0_u8; XATTR_MAX];
    for name in names[..length].split(|byte| *byte == 0) {
        if name.is_empty() || name.starts_with(OVERLAY) {
            continue;
        }
        let name: &OsStr = std::os::unix::ffi::OsStrExt::from_bytes(name);
        let length = fgetxattr(from, name, &mut value[..])?;
        fsetxattr(to, name, &value[..length], XattrFlags::empty())?;
    }
    let time = |seconds: i64, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    let times = Timestamps {
        last_access: time(like.st_atime, like.st_atime_nsec),
        last_modification: time(like.st_mtime, like.st_mtime_nsec),
    };
    Ok(futimens(to, &times)?)
}
