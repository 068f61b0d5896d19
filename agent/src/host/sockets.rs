//! The sockets of API and gate: the service manager's where it passed them, else our own.
//!
//! Both must listen on while the agent is away: clients then wait instead of being refused, and
//! inits dial nobody else. What systemd opened (a socket unit) or keeps (its FD store) is taken by
//! its name; what the agent opens itself goes into the store, when there is a manager.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nodeagent_systemd::{Notifier, NotifyError, Passed, State};
use rustix::net::SocketType;
use rustix::net::sockopt;

use crate::api::{BindError, Limits, Server, TlsError};
use crate::config::Settings;
use crate::gate::{self, GateError};

/// Names of the sockets: `FileDescriptorName=` of a unit, and in the FD store.
const API: &str = "api";
const GATE: &str = "gate";

/// Why there are no sockets to serve on.
#[derive(Debug, thiserror::Error)]
pub enum SocketsError {
    /// A passed socket that is not what its name promises. Starting again does not help.
    #[error(
        "the service manager passed a socket named {name:?} that {what}; wanted: a listening unix stream socket at {} ({key})", wanted.display()
    )]
    Unfit {
        /// The socket's name.
        name: &'static str,
        /// What it is instead.
        what: String,
        /// Where it should listen.
        wanted: PathBuf,
        /// What says so.
        key: &'static str,
    },
    /// A passed socket could not be asked what it is.
    #[error("the socket {name:?} of the service manager cannot be looked at")]
    Look {
        /// The socket's name.
        name: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The API's socket.
    #[error(transparent)]
    Api(#[from] BindError),
    /// The API's port.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The gate's socket.
    #[error(transparent)]
    Gate(#[from] GateError),
}

/// Both sockets, listening, not yet served.
#[derive(Debug)]
pub(super) struct Sockets {
    pub api: Server,
    pub gate: UnixListener,
}

/// Takes what was passed and opens the rest. Must run inside a tokio runtime.
pub(super) fn open(
    settings: &Settings,
    passed: Vec<Passed>,
    notifier: &Notifier,
) -> Result<Sockets, SocketsError> {
    let mut passed = Received { passed, notifier };
    let path = &settings.paths.api_socket;
    let api = match passed.take(API, path, "paths.api_socket")? {
        Some(socket) => Server::inherit(socket, path, Limits::default())?,
        None => {
            let mut server = Server::bind(path, Limits::default())?;
            if kept(notifier, API, notifier.store(API, &server)) {
                server.leave_file();
            }
            server
        }
    };
    let mut api = api.open_to(path, &settings.api)?;
    if let Some(tls) = &settings.api.tls {
        api = api.with_tls(tls)?;
    }
    let ctl = settings.paths.runtime.join("ctl");
    let path = gate::socket_path(&ctl);
    let gate = match passed.take(GATE, &path, "paths.runtime")? {
        Some(socket) => socket,
        None => {
            let socket = gate::bind(&ctl)?;
            kept(notifier, GATE, notifier.store(GATE, &socket));
            socket
        }
    };
    for other in passed.passed {
        tracing::warn!(name = other.name, "a passed descriptor is not used");
    }
    Ok(Sockets { api, gate })
}

/// Whether the manager keeps it from now on.
fn kept(notifier: &Notifier, name: &str, stored: Result<(), NotifyError>) -> bool {
    match stored {
        Ok(()) => notifier.is_heard(),
        Err(error) => {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, name, "the socket will not be kept across a restart");
            false
        }
    }
}

/// What is left of that which was passed.
struct Received<'a> {
    passed: Vec<Passed>,
    notifier: &'a Notifier,
}

impl Received<'_> {
    /// The first of that name: a socket unit's comes before a stored one. One whose file is gone
    /// is no use to any client, and does not count.
    fn take(
        &mut self,
        name: &'static str,
        wanted: &Path,
        key: &'static str,
    ) -> Result<Option<UnixListener>, SocketsError> {
        let (named, others) = std::mem::take(&mut self.passed)
            .into_iter()
            .partition::<Vec<_>, _>(|passed| passed.name == name);
        self.passed = others;
        let mut named = named.into_iter();
        let Some(first) = named.next() else {
            return Ok(None);
        };
        let unfit = |what: String| SocketsError::Unfit {
            name,
            what,
            wanted: wanted.to_owned(),
            key,
        };
        let look = |source| SocketsError::Look { name, source };
        let socket = first.descriptor;
        if !listens(&socket).map_err(look)? {
            return Err(unfit("is none".to_owned()));
        }
        let socket = UnixListener::from(socket);
        let address = socket.local_addr().map_err(look)?;
        let Some(at) = address.as_pathname() else {
            return Err(unfit("has no path".to_owned()));
        };
        let missing = !at.exists();
        if missing || named.next().is_some() {
            // Otherwise the store would hand it out at every start from now on.
            let forget = self.notifier.notify(&[State::ForgetStored(name)]);
            if let Err(error) = forget {
                tracing::warn!(%error, name, "a superseded socket stays in the store");
            }
        }
        if missing {
            tracing::warn!(name, path = %at.display(), "the file of the passed socket is gone; opening another one");
            return Ok(None);
        }
        if !same_file(at, wanted) {
            return Err(unfit(format!("listens at {}", at.display())));
        }
        Ok(Some(socket))
    }
}

/// Whether it is a unix stream socket in the state of listening.
fn listens(socket: &OwnedFd) -> io::Result<bool> {
    let wrong = |error| match error {
        rustix::io::Errno::NOTSOCK => Ok(false),
        other => Err(io::Error::from(other)),
    };
    let is = || {
        Ok(
            sockopt::socket_domain(socket)? == rustix::net::AddressFamily::UNIX
                && sockopt::socket_type(socket)? == SocketType::STREAM
                && sockopt::socket_acceptconn(socket)?,
        )
    };
    is().or_else(wrong)
}

/// `/var/run` is `/run`: places are compared, not spellings.
fn same_file(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}
