//! The socket file: made with its mode, replaced only when it is stale.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixListener;

use crate::api::role;
use crate::config;

/// Why the socket could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody accepts connections there.
    #[error("another agent is serving {}", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// A file that is no socket is in the way; it is not ours to remove.
    #[error("{} exists and is not a socket", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// `api.socket_group` names nobody.
    #[error(
        "api.socket_group: no group is named {name:?} in /etc/group; make it, or give its number"
    )]
    NoSuchGroup {
        /// The name.
        name: String,
    },
    /// A step failed.
    #[error("cannot {action} {}", path.display())]
    Failed {
        /// What was tried: `look at`, `bind`, ...
        action: &'static str,
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 1024;

pub(super) fn bind(path: &Path) -> Result<UnixListener, BindError> {
    let failed = |action: &'static str| {
        move |source: io::Error| BindError::Failed {
            action,
            path: path.to_owned(),
            source,
        }
    };
    clear(path)?;
    let address = SocketAddrUnix::new(path).map_err(|e| failed("use the path")(e.into()))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|e| failed("make a socket for")(e.into()))?;
    rustix::net::bind(&socket, &address).map_err(|e| failed("bind")(e.into()))?;
    // Before listen(2) nobody can connect, so there is no instant with a wider mode.
    rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR)
        .map_err(|e| failed("set the mode of")(e.into()))?;
    rustix::net::listen(&socket, BACKLOG).map_err(|e| failed("listen on")(e.into()))?;
    UnixListener::from_std(StdListener::from(socket)).map_err(failed("listen on"))
}

/// Gives the file of a socket that listens its group and mode. Until then only its owner connects.
pub(super) fn open_to(path: &Path, api: &config::Api) -> Result<(), BindError> {
    let failed = |action: &'static str| {
        move |source| BindError::Failed {
            action,
            path: path.to_owned(),
            source,
        }
    };
    if let Some(group) = &api.socket_group {
        let Some(gid) = role::group_id(group) else {
            return Err(BindError::NoSuchGroup {
                name: group.to_string(),
            });
        };
        std::os::unix::fs::chown(path, None, Some(gid)).map_err(failed("set the group of"))?;
    }
    rustix::fs::chmod(path, Mode::from_raw_mode(api.socket_mode))
        .map_err(|e| failed("set the mode of")(e.into()))
}

/// Serves on a socket that listens already, at `path`.
pub(super) fn inherit(socket: StdListener, path: &Path) -> Result<UnixListener, BindError> {
    socket
        .set_nonblocking(true)
        .and_then(|()| UnixListener::from_std(socket))
        .map_err(|source| BindError::Failed {
            action: "serve",
            path: path.to_owned(),
            source,
        })
}

/// Removes a stale socket; refuses to touch anything else.
fn clear(path: &Path) -> Result<(), BindError> {
    let failed = |action: &'static str| {
        move |source| BindError::Failed {
            action,
            path: path.to_owned(),
            source,
        }
    };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at")(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(BindError::NotASocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => {}
    }
    match StdStream::connect(path) {
        Ok(_) => Err(BindError::InUse {
            path: path.to_owned(),
        }),
        // Nobody listens: unix(7), connect(2).
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed("remove the stale socket"))
        }
        Err(error) => Err(failed("ask for an agent at")(error)),
    }
}
