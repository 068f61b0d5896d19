//! sd_notify(3): what the service says about its own state.
//!
//! Owns one unix datagram socket towards the service manager. A notification is one datagram of
//! `NAME=value` lines. Promises never to block the caller for longer than a second, and not at all
//! where it says so, and never to let a value smuggle in a line of its own.

use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::net::{
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, sendmsg_addr, sendto,
};

/// The environment variable that names the socket (sd_notify(3)).
const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";

/// How long a notification may wait for room in the manager's queue.
const SEND_DEADLINE: Duration = Duration::from_secs(1);

/// One line of a notification; meanings as in sd_notify(3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State<'a> {
    /// The service has started and serves.
    Ready,
    /// The service is on its way out.
    Stopping,
    /// A sentence for the operator, shown by `systemctl status`. Line breaks become spaces.
    Status(&'a str),
    /// The service is alive; due within `WatchdogSec=`.
    Watchdog,
    /// The main process of the service, where it is not the one that was started.
    MainPid(u32),
    /// The stored descriptors of this name are to be closed (sd_pid_notify_with_fds(3)).
    ForgetStored(&'a str),
}

impl State<'_> {
    fn line(&self) -> String {
        match self {
            Self::Ready => "READY=1".to_owned(),
            Self::Stopping => "STOPPING=1".to_owned(),
            Self::Status(text) => format!("STATUS={}", text.replace(['\n', '\r', '\0'], " ")),
            Self::Watchdog => "WATCHDOG=1".to_owned(),
            Self::MainPid(pid) => format!("MAINPID={pid}"),
            Self::ForgetStored(name) => format!("FDSTOREREMOVE=1\nFDNAME={name}"),
        }
    }
}

/// Why the manager could not be told.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// `NOTIFY_SOCKET` is neither an absolute path nor an abstract name, or is too long for one.
    #[error("NOTIFY_SOCKET={} is not an absolute path or an abstract name (@...)", value.display())]
    Address {
        /// The variable's value.
        value: OsString,
        /// What is wrong with it, where the system said so.
        #[source]
        source: Option<io::Error>,
    },
    /// No socket could be made.
    #[error("cannot make a socket for NOTIFY_SOCKET={}", value.display())]
    Socket {
        /// The variable's value.
        value: OsString,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The datagram was not taken.
    #[error("cannot notify the service manager at NOTIFY_SOCKET={}", value.display())]
    Send {
        /// The variable's value.
        value: OsString,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// The way to the service manager, or to nobody.
#[derive(Debug)]
pub struct Notifier {
    manager: Option<Manager>,
}

#[derive(Debug)]
struct Manager {
    value: OsString,
    address: SocketAddr,
    socket: UnixDatagram,
}

impl Notifier {
    /// The manager that `NOTIFY_SOCKET` names; nobody when it is unset or empty.
    ///
    /// # Errors
    /// [`NotifyError::Address`] for a value that is no socket's name, [`NotifyError::Socket`].
    pub fn from_environment() -> Result<Self, NotifyError> {
        match std::env::var_os(SOCKET_VARIABLE) {
            Some(value) if !value.is_empty() => Self::to(&value),
            _ => Ok(Self::to_nobody()),
        }
    }

    /// A notifier whose notifications go nowhere.
    pub fn to_nobody() -> Self {
        Self { manager: None }
    }

    /// The manager at `name`: an absolute path, or `@` and an abstract name.
    ///
    /// # Errors
    /// As [`Notifier::from_environment`].
    pub fn to(name: &OsStr) -> Result<Self, NotifyError> {
        let refused = |source| NotifyError::Address {
            value: name.to_owned(),
            source,
        };
        let address = match name.as_bytes() {
            [b'/', ..] => SocketAddr::from_pathname(name),
            [b'@', rest @ ..] if !rest.is_empty() => SocketAddr::from_abstract_name(rest),
            _ => return Err(refused(None)),
        }
        .map_err(|source| refused(Some(source)))?;
        let socket = UnixDatagram::unbound()
            .and_then(|socket| {
                socket
                    .set_write_timeout(Some(SEND_DEADLINE))
                    .map(|()| socket)
            })
            .map_err(|source| NotifyError::Socket {
                value: name.to_owned(),
                source,
            })?;
        Ok(Self {
            manager: Some(Manager {
                value: name.to_owned(),
                address,
                socket,
            }),
        })
    }

    /// Whether anybody listens, as far as the environment says.
    pub fn is_heard(&self) -> bool {
        self.manager.is_some()
    }

    /// Gives the manager a copy of `descriptor`, to be passed under `name` to the next process of
    /// the service (`FDSTORE=1`, sd_pid_notify_with_fds(3)). It is kept while the service is
    /// restarted and closed when the service stops; how many there may be is
    /// `FileDescriptorStoreMax=` of the unit, and one too many is closed without a word. Nothing
    /// happens without a manager.
    ///
    /// # Errors
    /// [`NotifyError::Send`].
    pub fn store(&self, name: &str, descriptor: impl AsFd) -> Result<(), NotifyError> {
        let Some(manager) = &self.manager else {
            return Ok(());
        };
        let text = format!("FDSTORE=1\nFDNAME={name}");
        manager
            .pass(&text, descriptor.as_fd())
            .map_err(|source| NotifyError::Send {
                value: manager.value.clone(),
                source,
            })
    }

    /// Sends the states in one datagram; waits up to a second for room in the manager's queue.
    /// Nothing happens without a manager.
    ///
    /// # Errors
    /// [`NotifyError::Send`]. The service can go on: systemd's own deadlines decide.
    pub fn notify(&self, states: &[State<'_>]) -> Result<(), NotifyError> {
        self.send(states, SendFlags::NOSIGNAL)
    }

    /// As [`Notifier::notify`], and never waits: a manager that does not read for a while must not
    /// hold up the thread that serves.
    ///
    /// # Errors
    /// [`NotifyError::Send`], also when the queue is full; what was said is not said later.
    pub fn notify_at_once(&self, states: &[State<'_>]) -> Result<(), NotifyError> {
        self.send(states, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
    }

    fn send(&self, states: &[State<'_>], flags: SendFlags) -> Result<(), NotifyError> {
        let Some(manager) = &self.manager else {
            return Ok(());
        };
        let lines: Vec<String> = states.iter().map(State::line).collect();
        manager
            .send(lines.join("\n").as_bytes(), flags)
            .map_err(|source| NotifyError::Send {
                value: manager.value.clone(),
                source,
            })
    }
}

impl Manager {
    fn address(&self) -> io::Result<SocketAddrUnix> {
        Ok(
            match (self.address.as_pathname(), self.address.as_abstract_name()) {
                (Some(path), _) => SocketAddrUnix::new(path)?,
                (None, name) => SocketAddrUnix::new_abstract_name(name.unwrap_or_default())?,
            },
        )
    }

    fn send(&self, text: &[u8], flags: SendFlags) -> io::Result<()> {
        sendto(&self.socket, text, flags, &self.address()?)?;
        Ok(())
    }

    /// One datagram that carries a descriptor.
    fn pass(&self, text: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let address = self.address()?;
        let descriptors = [descriptor];
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut room);
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        let text = [IoSlice::new(text.as_bytes())];
        let flags = SendFlags::NOSIGNAL;
        sendmsg_addr(&self.socket, &address, &text, &mut ancillary, flags)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::error::Error;
    use std::os::fd::AsRawFd;

    const DEADLINE: Duration = Duration::from_secs(5);

    fn received_text(socket: &UnixDatagram) -> String {
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut datagram = [0; 512];
        let length = socket.recv(&mut datagram).unwrap();
        String::from_utf8(datagram[..length].to_vec()).unwrap()
    }

    #[test]
    fn states_arrive_in_one_datagram_at_a_path() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::to(path.as_os_str()).unwrap();
        assert!(notifier.is_heard());
        notifier
            .notify(&[State::Ready, State::Status("3 pools, 60 active")])
            .unwrap();
        assert_eq!(
            received_text(&manager),
            "READY=1\nSTATUS=3 pools, 60 active"
        );
        notifier.notify(&[State::Watchdog]).unwrap();
        assert_eq!(received_text(&manager), "WATCHDOG=1");
        notifier
            .notify(&[State::Stopping, State::MainPid(42)])
            .unwrap();
        assert_eq!(received_text(&manager), "STOPPING=1\nMAINPID=42");
    }

    #[test]
    fn a_manager_that_does_not_read_holds_nobody_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::to(path.as_os_str()).unwrap();
        // Longer than any queue (net.unix.max_dgram_qlen, and the sender's buffer).
        let begun = std::time::Instant::now();
        let full = (0..1_000_000).find_map(|_| notifier.notify_at_once(&[State::Watchdog]).err());
        let cause = full.unwrap();
        let cause = cause.source().unwrap().downcast_ref::<io::Error>().unwrap();
        assert_eq!(cause.kind(), io::ErrorKind::WouldBlock);
        for _ in 0..10 {
            notifier.notify_at_once(&[State::Watchdog]).unwrap_err();
        }
        // Ten that wait would take ten seconds.
        assert!(begun.elapsed() < SEND_DEADLINE * 5);
        assert_eq!(received_text(&manager), "WATCHDOG=1");
        notifier.notify_at_once(&[State::Ready]).unwrap();
    }

    #[test]
    fn an_abstract_name_is_reached() {
        let name = format!("nodeagent-notify-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        Notifier::to(OsStr::new(&format!("@{name}")))
            .unwrap()
            .notify(&[State::Ready])
            .unwrap();
        assert_eq!(received_text(&manager), "READY=1");
    }

    #[test]
    fn a_stored_descriptor_arrives_with_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_read_timeout(Some(DEADLINE)).unwrap();
        let stored = UnixDatagram::bind(directory.path().join("stored")).unwrap();
        let notifier = Notifier::to(path.as_os_str()).unwrap();
        notifier.store("gate", &stored).unwrap();

        let mut datagram = [0; 512];
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = rustix::net::RecvAncillaryBuffer::new(&mut room);
        let received = rustix::net::recvmsg(
            &manager,
            &mut [io::IoSliceMut::new(&mut datagram)],
            &mut ancillary,
            rustix::net::RecvFlags::empty(),
        )
        .unwrap();
        assert_eq!(&datagram[..received.bytes], b"FDSTORE=1\nFDNAME=gate");
        let descriptors: Vec<_> = ancillary
            .drain()
            .flat_map(|message| match message {
                rustix::net::RecvAncillaryMessage::ScmRights(descriptors) => {
                    descriptors.collect::<Vec<_>>()
                }
                _ => Vec::new(),
            })
            .collect();
        assert_eq!(descriptors.len(), 1);
        let named = UnixDatagram::from(descriptors.into_iter().next().unwrap());
        assert_ne!(named.as_raw_fd(), stored.as_raw_fd());
        assert_eq!(
            named.local_addr().unwrap().as_pathname(),
            stored.local_addr().unwrap().as_pathname()
        );

        notifier.notify(&[State::ForgetStored("gate")]).unwrap();
        assert_eq!(received_text(&manager), "FDSTOREREMOVE=1\nFDNAME=gate");
    }

    #[test]
    fn a_status_cannot_smuggle_in_another_line() {
        assert_eq!(
            State::Status("a\nMAINPID=1\r\0b").line(),
            "STATUS=a MAINPID=1  b"
        );
    }

    #[test]
    fn without_a_manager_nothing_happens() {
        let nobody = Notifier::to_nobody();
        assert!(!nobody.is_heard());
        nobody.notify(&[State::Ready]).unwrap();
    }

    #[test]
    fn a_name_that_is_no_socket_is_refused() {
        for bad in ["notify.sock", "@", "vsock:2:9"] {
            let refused = Notifier::to(OsStr::new(bad)).unwrap_err();
            assert_eq!(
                refused.to_string(),
                format!("NOTIFY_SOCKET={bad} is not an absolute path or an abstract name (@...)")
            );
        }
        let long = format!("/{}", "x".repeat(200));
        let refused = Notifier::to(OsStr::new(&long)).unwrap_err();
        assert!(
            matches!(
                refused,
                NotifyError::Address {
                    source: Some(_),
                    ..
                }
            ),
            "{refused:?}"
        );
    }

    #[test]
    fn a_manager_that_is_gone_is_an_error_with_its_cause() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gone");
        let notifier = Notifier::to(path.as_os_str()).unwrap();
        let error = notifier.notify(&[State::Ready]).unwrap_err();
        assert!(matches!(error, NotifyError::Send { .. }), "{error:?}");
        assert!(error.to_string().contains("gone"), "{error}");
        assert!(error.source().unwrap().to_string().contains("No such file"));
    }
}
