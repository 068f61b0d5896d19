//! The socket that containers see, and the way of a connection from accept to its session.
//!
//! accept -> verified by the kernel's word -> expected -> hello -> session. Up to the session there
//! are at most [`UNVERIFIED_LIMIT`] connections, each with a deadline; more wait in the kernel. A
//! storm of peers that are turned away is paced ([`Refusals`]).

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use container_init::protocol::{Report, Request};
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::Shared;
use super::entry::{Entry, Taken};
use super::error::GateError;
use super::pace::{Complaints, Known, Refusals, TurnedAwayAfter};
use super::peer::{self, Peer, TurnedAway};
use super::session::{Inbox, Read, Session};
use crate::sys;

/// Name of the socket in its directory; what containers dial ends in it.
pub(super) const SOCKET: &str = "gate.sock";
/// Connections between accept and session.
const UNVERIFIED_LIMIT: usize = 64;
/// From accept to a hello of an expected container.
const HELLO_DEADLINE: Duration = Duration::from_secs(2);
/// Pause after an accept that failed for lack of descriptors or memory.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// Makes the directory and listens in the place of a socket that a former agent left.
pub(super) fn bind(ctl_dir: &Path) -> Result<StdListener, GateError> {
    directory(ctl_dir).map_err(|source| GateError::Directory {
        path: ctl_dir.to_owned(),
        source,
    })?;
    let path = ctl_dir.join(SOCKET);
    listen(&path).map_err(|source| GateError::Listen { path, source })
}

fn directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(path)?;
    // The umask is the process's, the mode is the contract's.
    fs::set_permissions(path, Permissions::from_mode(0o755))
}

/// Makes ready to accept from a socket that listens, ours or one that was passed.
pub(super) fn ready(socket: StdListener) -> Result<UnixListener, GateError> {
    if !peer::proc_is_ours().map_err(GateError::Proc)? {
        return Err(GateError::ForeignProc);
    }
    socket
        .set_nonblocking(true)
        .and_then(|()| UnixListener::from_std(socket))
        .map_err(GateError::Accept)
}

/// An init that dials between the two steps dials again. Bound under its own name, not renamed: by
/// that name (getsockname(2)) a later agent knows a socket that was kept for it.
fn listen(path: &Path) -> io::Result<StdListener> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = StdListener::bind(path)?;
    // Whoever is in the container may connect; who stays is decided by verification.
    fs::set_permissions(path, Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// Accepts until the gate closes.
pub(super) async fn accept(listener: UnixListener, shared: Arc<Shared>) {
    let unverified = Arc::new(Semaphore::new(UNVERIFIED_LIMIT));
    let complaints = Arc::new(Complaints::default());
    let refusals = Arc::new(Refusals::default());
    let own = pidfd_open(getpid(), PidfdFlags::empty()).map_err(io::Error::from);
    let own_cgroup = own.and_then(|pidfd| sys::cgroup_id(&pidfd)).ok();
    loop {
        let admitted = async {
            if let Some(paid) = refusals.shut_until(Instant::now()) {
                sleep_until(paid).await;
            }
            // The semaphore is never closed.
            let permit = Arc::clone(&unverified).acquire_owned().await.ok();
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            () = shared.closing.cancelled() => return,
            admitted = admitted => admitted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(e) => {
                if let Some(left_out) = complaints.admit(Instant::now()) {
                    tracing::error!(
                        error = &e as &dyn std::error::Error,
                        left_out,
                        "the gate cannot accept a connection"
                    );
                }
                sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        let now = Instant::now();
        let peer = match refusals.are_owed(now) {
            true => known_as(&stream, own_cgroup),
            false => Some(Vec::new()),
        };
        let peer = peer.filter(|peer| !refusals.knows(peer, now));
        let Some(peer) = peer else {
            refusals.turned_away(TurnedAwayAfter::Glance, [], now);
            continue;
        };
        let (shared, complaints) = (Arc::clone(&shared), Arc::clone(&complaints));
        let refusals = Arc::clone(&refusals);
        tokio::spawn(async move {
            let introduced = introduce(stream, &shared).await;
            drop(permit);
            match introduced {
                Ok(introduced) => serve(introduced, &shared).await,
                Err(why @ TurnedAway::Older { .. }) => tracing::debug!("{why}"),
                Err(why) => {
                    // An init may come again at once; who is none has nothing to say here.
                    let known = peer.into_iter().filter(|_| !why.is_of_an_init());
                    refusals.turned_away(TurnedAwayAfter::Look, known, Instant::now());
                    if let Some(left_out) = complaints.admit(Instant::now()) {
                        let why = &why as &dyn std::error::Error;
                        tracing::warn!(
                            error = why,
                            left_out,
                            "a peer was turned away from the gate"
                        );
                    }
                }
            }
        });
    }
}

/// By what the peer would be known again, `None` when it has ended already: two system calls, and
/// none of `/proc`. `own` is our cgroup: where it has everybody in it, it tells nobody apart.
fn known_as(stream: &UnixStream, own: Option<u64>) -> Option<Vec<Known>> {
    let process = stream.peer_cred().ok().and_then(|peer| peer.pid());
    let cgroup = sys::peer_pidfd(stream).and_then(|pidfd| sys::cgroup_id(&pidfd));
    if let Err(error) = &cgroup
        && matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EINVAL))
    {
        return None;
    }
    let process = process.map(Known::Process);
    let cgroup = cgroup.ok().filter(|id| own.is_some_and(|own| *id != own));
    let known = process.into_iter().chain(cgroup.map(Known::Cgroup));
    Some(known.collect())
}

/// A session whose hello was heard.
struct Introduced {
    entry: Arc<Entry>,
    session: Arc<Session>,
    /// What was read behind the hello.
    inbox: Inbox,
}

async fn introduce(stream: UnixStream, shared: &Arc<Shared>) -> Result<Introduced, TurnedAway> {
    let parent = Arc::clone(shared);
    let verified = tokio::task::spawn_blocking(move || {
        let peer = Peer::verify(&stream, &parent.cgroup_parents);
        (stream, peer)
    });
    let (stream, peer) = verified
        .await
        .map_err(|e| TurnedAway::Credentials(io::Error::other(e)))?;
    let peer = peer?;
    let container = peer.container.clone();
    let deadline = Instant::now() + HELLO_DEADLINE;
    let entry = timeout_at(deadline, shared.entry_once_expected(&container))
        .await
        .map_err(|_| TurnedAway::Unexpected(container.clone()))?;
    let hello = timeout_at(deadline, first_frame(&stream)).await;
    let mut inbox = match hello {
        Err(_) => return Err(TurnedAway::Silent(container)),
        Ok(Err(source)) => return Err(TurnedAway::Connection { container, source }),
        Ok(Ok(inbox)) => inbox,
    };
    let session = Arc::new(Session::new(stream, shared.closing.child_token()));
    match greet(&mut inbox, peer, &entry, &session, shared) {
        Ok(()) => Ok(Introduced {
            entry,
            session,
            inbox,
        }),
        Err(why) => {
            entry.detach(&session, &shared.notices);
            Err(why)
        }
    }
}

/// Checks the hello, makes the session the container's, and asks for the status.
fn greet(
    inbox: &mut Inbox,
    peer: Peer,
    entry: &Entry,
    session: &Arc<Session>,
    shared: &Shared,
) -> Result<(), TurnedAway> {
    let container = peer.container.clone();
    let no_hello = |said: String| TurnedAway::NoHello {
        container: container.clone(),
        said,
    };
    let body = inbox
        .next_frame()
        .map_err(|e| no_hello(e.to_string()))?
        .unwrap_or_default();
    let report = Report::decode(body).map_err(|e| no_hello(e.to_string()))?;
    let Report::Hello(hello) = report else {
        return Err(no_hello("another report".to_owned()));
    };
    if hello.container_id != container.to_string()
        || hello.create_generation != container.create_generation
    {
        return Err(TurnedAway::OtherName {
            container,
            claimed: hello.container_id.chars().take(128).collect(),
        });
    }
    if entry.asks_for_newer(hello.version) {
        let version = hello.version;
        return Err(TurnedAway::Older { container, version });
    }
    entry.attach(peer, Arc::clone(session))?;
    if let Taken::Superseded = entry.take(session, &report, &shared.notices) {
        return Err(TurnedAway::Unexpected(container));
    }
    inbox.compact();
    // The answer makes the status whole, and only then the container counts as connected.
    if let Err(unsent) = session.say(&Request::Status) {
        // It has ended already: what it said before is read, and then the end of the connection.
        let error = unsent.of(&container);
        tracing::debug!(%error, "a container-init is gone as soon as it came");
    }
    Ok(())
}

/// Reads until a frame is whole. A frame is bounded, so this is, too.
async fn first_frame(stream: &UnixStream) -> io::Result<Inbox> {
    let mut inbox = Inbox::default();
    loop {
        stream.readable().await?;
        match inbox.read(stream)? {
            Read::Bytes if inbox.has_frame() => return Ok(inbox),
            Read::Bytes | Read::Nothing => {}
            Read::End => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

async fn serve(introduced: Introduced, shared: &Shared) {
    let Introduced {
        entry,
        session,
        inbox,
    } = introduced;
    let ended = session.run(inbox, &entry, shared).await;
    entry.detach(&session, &shared.notices);
    if let Err(why) = ended {
        // An init that ends with its container resets the connection: no news to anybody.
        let why = &why as &dyn std::error::Error;
        tracing::debug!(container = %entry.container(), error = why, "the session of a container-init ended");
    }
    // The peer sees the end of the connection now, not when its process has ended.
    drop(session);
    shared
        .closing
        .run_until_cancelled(watch_end(&entry, shared))
        .await;
}

/// Until the init that left dials again, is forgotten, or ends: then its pid namespace, and so the
/// whole container, has ended, whatever containerd can say about it now.
async fn watch_end(entry: &Entry, shared: &Shared) {
    let Some(pidfd) = entry.init_pidfd() else {
        return;
    };
    let pidfd = match sys::watch_readable(pidfd) {
        Ok(pidfd) => pidfd,
        Err(error) => {
            tracing::warn!(container = %entry.container(), %error, "the end of a container-init cannot be watched");
            return;
        }
    };
    let mut status = entry.subscribe();
    tokio::select! {
        _ = status.wait_for(|status| status.connected) => {}
        _ = pidfd.readable() => entry.init_ended(&shared.notices),
    }
}
