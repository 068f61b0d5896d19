//! Owner, mode, attributes and times of what an entry made.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod,
    fchown, fsetxattr, fstat, futimens, lsetxattr, statat, utimensat,
};
use rustix::io::Errno;

use super::tree::Spot;
use crate::archive::{Entry, Timestamp, Xattr};

/// Attributes with this prefix are the host's: overlayfs believes them.
const TRUSTED: &[u8] = b"trusted.";

/// Times of access and change, within what every file system takes.
#[derive(Debug, Clone)]
pub(super) struct Times(Timestamps);

impl Times {
    fn of(entry: &Entry) -> Self {
        // As containerd has it: never read before it was changed, nothing before 1970.
        let access = entry.atime.unwrap_or_default().max(entry.mtime);
        let bound = |time: Timestamp| match time.seconds < 0 {
            true => Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            false => Timespec {
                tv_sec: time.seconds,
                tv_nsec: time.nanoseconds.into(),
            },
        };
        Self(Timestamps {
            last_access: bound(access),
            last_modification: bound(entry.mtime),
        })
    }

    pub fn set(&self, spot: &Spot) -> io::Result<()> {
        let at = AtFlags::SYMLINK_NOFOLLOW;
        Ok(utimensat(&spot.directory, &spot.name, &self.0, at)?)
    }
}

/// All that is set of what an entry made.
#[derive(Debug, Clone)]
pub(super) struct Metadata {
    uid: u32,
    gid: u32,
    mode: u32,
    xattrs: Vec<Xattr>,
    pub times: Times,
}

impl Metadata {
    pub fn of(entry: &Entry) -> Self {
        let xattrs = entry.xattrs.iter();
        let xattrs = xattrs.filter(|(name, _)| !name.starts_with(TRUSTED));
        Self {
            uid: entry.uid,
            gid: entry.gid,
            mode: entry.mode,
            xattrs: xattrs.cloned().collect(),
            times: Times::of(entry),
        }
    }

    /// Of a regular file that is open; its times are set last, nothing is written after it.
    pub fn set_open(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        // Each change of an inode goes through the journal: most files are root's from the start.
        let made = fstat(file)?;
        if (made.st_uid, made.st_gid) != (self.uid, self.gid) {
            let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
            fchown(file, Some(uid), Some(gid))?;
        }
        for (name, value) in &self.xattrs {
            known(fsetxattr(
                file,
                OsStr::from_bytes(name),
                value,
                XattrFlags::empty(),
            ))?;
        }
        // After the owner, which takes the set-user-id bit away.
        fchmod(file, Mode::from_raw_mode(self.mode))?;
        Ok(futimens(file, &self.times.0)?)
    }

    /// Of a directory, but for its times.
    pub fn set_directory(&self, spot: &Spot) -> io::Result<()> {
        self.set_owner(spot)?;
        self.set_xattrs(spot)?;
        self.set_mode(spot)
    }

    /// Of anything else, by its name. A hard link whose owner is right keeps its capabilities,
    /// which chown(2) takes away; containerd's loses them where its entry does not repeat them.
    pub fn set(&self, spot: &Spot) -> io::Result<()> {
        let found = statat(&spot.directory, &spot.name, AtFlags::SYMLINK_NOFOLLOW)?;
        if (found.st_uid, found.st_gid) != (self.uid, self.gid) {
            self.set_owner(spot)?;
        }
        self.set_xattrs(spot)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::Symlink {
            self.set_mode(spot)?;
        }
        self.times.set(spot)
    }

    fn set_mode(&self, spot: &Spot) -> io::Result<()> {
        let mode = Mode::from_raw_mode(self.mode);
        // It is no link: that was looked at, and nobody else is here.
        Ok(chmodat(
            &spot.directory,
            &spot.name,
            mode,
            AtFlags::empty(),
        )?)
    }

    fn set_owner(&self, spot: &Spot) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        let at = AtFlags::SYMLINK_NOFOLLOW;
        let owned = chownat(&spot.directory, &spot.name, Some(uid), Some(gid), at);
        Ok(owned?)
    }

    fn set_xattrs(&self, spot: &Spot) -> io::Result<()> {
        if self.xattrs.is_empty() {
            return Ok(());
        }
        // There is no lsetxattrat before Linux 6.13.
        let fd = spot.directory.as_fd().as_raw_fd();
        let path = PathBuf::from(format!("/proc/self/fd/{fd}")).join(&spot.name);
        for (name, value) in &self.xattrs {
            known(lsetxattr(
                &path,
                OsStr::from_bytes(name),
                value,
                XattrFlags::empty(),
            ))?;
        }
        Ok(())
    }
}

/// An attribute that the file system does not know is left out, as containerd does.
fn known(set: Result<(), Errno>) -> io::Result<()> {
    match set {
        Err(Errno::NOTSUP) => Ok(()),
        set => Ok(set?),
    }
}
