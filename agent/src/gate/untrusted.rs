//! Opening files that a container could have put anything in the place of.
//!
//! The directory itself is ours: containers have it mounted and cannot replace it. What lies in it
//! is opened without following anything out of it, and only when it is a regular file of one name.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};
use rustix::io::Errno;

/// Why a file below a container's directory is not opened.
#[derive(Debug, thiserror::Error)]
pub enum UntrustedError {
    /// The directory or the file cannot be opened; `NotFound` when there is none.
    #[error("it cannot be opened")]
    Open(#[source] io::Error),
    /// The container has put something else in its place.
    #[error("it {0}")]
    Forged(&'static str),
}

/// Opens `name` in `directory` for reading. May block on the disk.
pub fn open_untrusted(directory: &Path, name: &str) -> Result<File, UntrustedError> {
    let failed = |errno: Errno| UntrustedError::Open(errno.into());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = open(directory, flags, Mode::empty()).map_err(failed)?;
    let beneath = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_XDEV
        | ResolveFlags::NO_MAGICLINKS;
    // A look without opening first: opening a device or a fifo has effects of its own.
    let look = OFlags::PATH | OFlags::CLOEXEC;
    let found = openat2(&directory, name, look, Mode::empty(), beneath).map_err(|e| match e {
        Errno::LOOP => UntrustedError::Forged("is a symbolic link"),
        Errno::XDEV => UntrustedError::Forged("leads out of its directory"),
        other => failed(other),
    })?;
    let stat = fstat(&found).map_err(failed)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(UntrustedError::Forged("is not a regular file"));
    }
    if stat.st_nlink > 1 {
        return Err(UntrustedError::Forged("has another name"));
    }
    // The same file, whatever its name is by now; non-blocking because of leases (fcntl(2)).
    let same = format!("/proc/self/fd/{}", found.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    open(same, flags, Mode::empty())
        .map(File::from)
        .map_err(failed)
}
