//! Files of the host that manifests name and root vouches for: secrets, environment files, seccomp
//! profiles. Opened without following a symbolic link; regular, root's, not too large, and not for
//! others to write, or even to read.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;

/// The largest such file.
const MAX_BYTES: u64 = 1 << 20;

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum TrustedError {
    /// The host's configuration does not allow it.
    #[error(
        "{path} is not allowed on this host; allowed: {}",
        listed(allowed, key)
    )]
    Outside {
        /// As in the manifest.
        path: String,
        /// Directories.
        allowed: Vec<PathBuf>,
        /// Key of the configuration that names them.
        key: &'static str,
    },
    /// A part of the path is a symbolic link.
    #[error("{path} leads through a symbolic link; allowed: a path without one")]
    Link {
        /// As in the manifest.
        path: String,
    },
    /// It cannot be opened or read.
    #[error("cannot open {path}")]
    Open {
        /// As in the manifest.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no file, or a large one.
    #[error("{path} is {found}; allowed: a regular file of at most 1 MiB")]
    Kind {
        /// As in the manifest.
        path: String,
        /// What it is.
        found: String,
    },
    /// Others than root can replace it, or read what only root may.
    #[error("{path} has owner {owner} and mode {mode:04o}; allowed: owner 0 (root) and {allowed}")]
    Exposed {
        /// As in the manifest.
        path: String,
        /// Uid.
        owner: u32,
        /// Permission bits.
        mode: u32,
        /// What they may be.
        allowed: &'static str,
    },
}

/// Directories as a sentence names them.
pub(super) fn listed(allowed: &[PathBuf], key: &str) -> String {
    if allowed.is_empty() {
        return format!("none ({key} is empty)");
    }
    let listed: Vec<String> = allowed
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    format!("below {} ({key})", listed.join(", "))
}

/// Where such a file may lie.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place<'a> {
    Anywhere,
    Below {
        directories: &'a [PathBuf],
        key: &'static str,
    },
}

/// Who beside root may read it. Nobody else may write it in any case.
#[derive(Debug, Clone, Copy)]
pub(super) enum Readers {
    Root,
    Anybody,
}

/// The content of the file at `path`, which is absolute and without `.` and `..`.
pub(super) fn read(
    path: &str,
    place: Place<'_>,
    readers: Readers,
) -> Result<Vec<u8>, TrustedError> {
    let path_of = || path.to_owned();
    if let Place::Below { directories, key } = place
        && !directories
            .iter()
            .any(|allowed| Path::new(path).starts_with(allowed))
    {
        return Err(TrustedError::Outside {
            path: path_of(),
            allowed: directories.to_vec(),
            key,
        });
    }
    let failed = |errno: Errno| match errno {
        // Where a symbolic link may not be, the kernel says ELOOP.
        Errno::LOOP => TrustedError::Link { path: path_of() },
        errno => TrustedError::Open {
            path: path_of(),
            source: errno.into(),
        },
    };
    // NONBLOCK: a FIFO must not hold us.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let opened =
        openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS).map_err(failed)?;
    let facts = fstat(&opened).map_err(failed)?;
    let found = FileType::from_raw_mode(facts.st_mode);
    if found != FileType::RegularFile {
        return Err(TrustedError::Kind {
            path: path_of(),
            found: format!("a {found:?}").to_lowercase(),
        });
    }
    let (forbidden, allowed) = match readers {
        Readers::Root => (
            0o077,
            "no permission for group and others, for example 0400",
        ),
        Readers::Anybody => (0o022, "not writable by group and others, for example 0644"),
    };
    if facts.st_uid != 0 || facts.st_mode & forbidden != 0 {
        return Err(TrustedError::Exposed {
            path: path_of(),
            owner: facts.st_uid,
            mode: facts.st_mode & 0o7777,
            allowed,
        });
    }
    let mut content = Vec::new();
    let read = File::from(opened)
        .take(MAX_BYTES + 1)
        .read_to_end(&mut content);
    read.map_err(|source| TrustedError::Open {
        path: path_of(),
        source,
    })?;
    if content.len() as u64 > MAX_BYTES {
        return Err(TrustedError::Kind {
            path: path_of(),
            found: "larger".to_owned(),
        });
    }
    Ok(content)
}
