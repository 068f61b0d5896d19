//! The agent's side of the container-init contract (DESIGN section 6).
//!
//! Owns the listening socket that every container sees, the sessions of the inits that dialled,
//! what is known of each ([`Status`]), the news for the pools ([`Notice`]), and the directories
//! that a container shares with the agent ([`Directories`], [`recorded_exits`]).
//!
//! Promises: who a peer is comes from the kernel, never from a message; an event is acked only
//! after its notice was handed over; memory per peer is bounded; a command costs one write on the
//! wire; every wait has a named deadline. Deliberately decides nothing: which container is started
//! when, and what an exit means, is the pool's.

mod directory;
mod entry;
mod error;
mod exits;
mod listener;
mod look;
mod pace;
mod peer;
mod processes;
mod restart;
mod session;
mod status;
mod untrusted;

use std::collections::HashMap;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use container_init::protocol::{self, EnvList, MAX_FRAME, Request};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::instance::ContainerId;
use entry::Entry;

pub use container_init::protocol::{LookKind, ProcessState, Refusal, RequestKind};
pub use directory::{Activation, Directories, DirectoryError, InstanceDirectories};
pub use error::GateError;
pub use exits::{ExitsError, RecordedExit, recorded_exits};
pub use look::Seen;
pub use processes::Supervised;
pub use restart::Restart;
pub use status::{Exit, ExitStatus, Memory, Notice, NoticeKind, Refused, Status};
pub use untrusted::{UntrustedError, open_untrusted};

/// Lets an app go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// Generation of the activation; an older one than init's is refused.
    pub generation: u64,
    /// `NODEAGENT_TASK_ID` of the app; left out when empty.
    pub task_id: String,
    /// `TRACEPARENT` of the app; left out when empty.
    pub traceparent: String,
    /// Added to the app's environment; a key that the plan has is replaced.
    pub env: Vec<(String, String)>,
}

impl Start {
    fn pairs(&self) -> Vec<(&str, &str)> {
        self.env
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect()
    }

    /// As init is told; `env` is [`Self::pairs`].
    fn told<'a>(&'a self, env: &'a [(&'a str, &'a str)]) -> protocol::Start<'a> {
        protocol::Start {
            generation: self.generation,
            task_id: &self.task_id,
            traceparent: &self.traceparent,
            env: EnvList::new(env),
        }
    }
}

/// As much as the protocol can say of a time.
fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

/// Gives a running app to another activation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopt {
    /// Generation that the app belongs to from now on.
    pub generation: u64,
    /// Task that adopts it.
    pub task_id: String,
    /// Its trace context.
    pub traceparent: String,
}

/// The gate; clones share one socket and one table. The last clone closes the socket's descriptor
/// and every session; the socket's path stays for the next agent.
#[derive(Clone)]
pub struct Gate {
    shared: Arc<Shared>,
    _closing: Arc<DropGuard>,
}

/// What the listener, the sessions and the callers share.
struct Shared {
    cgroup_parents: Vec<String>,
    notices: mpsc::UnboundedSender<Notice>,
    expected: Mutex<HashMap<ContainerId, Arc<Entry>>>,
    /// Wakes verified peers that dialled before they were expected.
    expectation: Notify,
    closing: CancellationToken,
}

/// The socket in the directory that every container has mounted.
pub fn socket_path(ctl_dir: &Path) -> PathBuf {
    ctl_dir.join(listener::SOCKET)
}

/// Listens at `<ctl_dir>/gate.sock`. The directory is made when it is missing (0755) and never
/// removed: containers have it mounted. A socket that a former agent left is replaced.
pub fn bind(ctl_dir: &Path) -> Result<UnixListener, GateError> {
    listener::bind(ctl_dir)
}

impl Gate {
    /// Accepts inits in cgroups `<one of cgroup_parents>/<container id>` from a socket that listens at
    /// [`socket_path`]; news goes to `notices`.
    ///
    /// Must be called within a tokio runtime.
    pub fn open(
        socket: UnixListener,
        cgroup_parents: &[&str],
        notices: mpsc::UnboundedSender<Notice>,
    ) -> Result<Self, GateError> {
        let socket = listener::ready(socket)?;
        let closing = CancellationToken::new();
        let shared = Arc::new(Shared {
            cgroup_parents: cgroup_parents
                .iter()
                .map(|parent| parent.trim_end_matches('/').to_owned())
                .collect(),
            notices,
            expected: Mutex::default(),
            expectation: Notify::new(),
            closing: closing.clone(),
        });
        tokio::spawn(listener::accept(socket, Arc::clone(&shared)));
        Ok(Self {
            shared,
            _closing: Arc::new(closing.drop_guard()),
        })
    }

    /// From now on the init of this container may dial. Changes nothing when it may already.
    pub fn expect(&self, id: &ContainerId) {
        self.shared
            .table()
            .entry(id.clone())
            .or_insert_with(|| Arc::new(Entry::new(id.clone())));
        self.shared.expectation.notify_waiters();
    }

    /// The container is gone: closes its session and ends every wait for it.
    pub fn forget(&self, id: &ContainerId) {
        let entry = self.shared.table().remove(id);
        if let Some(entry) = entry {
            entry.close();
        }
    }

    /// How many inits are connected.
    pub fn sessions(&self) -> usize {
        let table = self.shared.table();
        table
            .values()
            .filter(|entry| entry.status().connected)
            .count()
    }

    /// What is known of an expected container.
    pub fn status(&self, id: &ContainerId) -> Option<Status> {
        Some(self.shared.entry(id)?.status())
    }

    /// Returns as soon as `until` holds, which may be at once. A refusal of the newest command ends
    /// the wait, and so does [`Gate::forget`]; `what` names the wait when the deadline ends it.
    pub async fn wait(
        &self,
        id: &ContainerId,
        what: &'static str,
        deadline: Instant,
        until: impl Fn(&Status) -> bool,
    ) -> Result<Status, GateError> {
        let began = Instant::now();
        let mut statuses = self.expected(id)?.subscribe();
        let settled = statuses.wait_for(|status| until(status) || status.refused.is_some());
        let status = match tokio::time::timeout_at(deadline, settled).await {
            Ok(Ok(status)) => status.clone(),
            Ok(Err(_)) => {
                return Err(GateError::Forgotten {
                    container: id.clone(),
                });
            }
            Err(_) => {
                return Err(GateError::Deadline {
                    what,
                    container: id.clone(),
                    waited: began.elapsed(),
                });
            }
        };
        match status.refused {
            Some(Refused { request, code }) if !until(&status) => Err(GateError::Refused {
                container: id.clone(),
                request,
                code,
            }),
            _ => Ok(status),
        }
    }

    /// Lets the app go. Returns when the frame is on its way; what comes of it is read from the
    /// status. Repeating it with the same generation changes nothing.
    pub async fn start(&self, id: &ContainerId, start: Start) -> Result<(), GateError> {
        self.send(id, Request::Start(start.told(&start.pairs())))
    }

    /// Gives the running app to another generation; answered by a change of the status.
    pub async fn adopt(&self, id: &ContainerId, adopt: Adopt) -> Result<(), GateError> {
        self.send(
            id,
            Request::Adopt(protocol::Adopt {
                generation: adopt.generation,
                task_id: &adopt.task_id,
                traceparent: &adopt.traceparent,
            }),
        )
    }

    /// Stops the app and then the agents, all within `budget`; what is left then is killed.
    pub async fn stop(&self, id: &ContainerId, budget: Duration) -> Result<(), GateError> {
        let budget_ms = millis(budget);
        self.send(id, Request::Stop { budget_ms })
    }

    /// Sends a signal, 1..=64, to the app.
    pub async fn signal(&self, id: &ContainerId, signal: u8) -> Result<(), GateError> {
        self.send(id, Request::Signal { signal })
    }

    /// Encodes, checks by decoding as init will, and writes from here: no task in between.
    fn send(&self, id: &ContainerId, request: Request<'_>) -> Result<(), GateError> {
        let kind = request.kind();
        let mut frame = [0; MAX_FRAME];
        let length = request
            .encode(&mut frame)
            .map_err(|source| GateError::TooLarge { kind, source })?;
        let body = frame.get(4..length).unwrap_or_default();
        Request::decode(body).map_err(|source| GateError::Invalid { kind, source })?;
        self.expected(id)?
            .command(frame.get(..length).unwrap_or_default())
    }

    fn expected(&self, id: &ContainerId) -> Result<Arc<Entry>, GateError> {
        self.shared.entry(id).ok_or_else(|| GateError::NotExpected {
            container: id.clone(),
        })
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, HashMap<ContainerId, Arc<Entry>>> {
        // Every change of the table is one call: a panic elsewhere leaves it whole.
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, id: &ContainerId) -> Option<Arc<Entry>> {
        self.table().get(id).cloned()
    }

    /// The entry of `id`, waiting for it to be expected: after a restart inits dial before the
    /// journal is read.
    async fn entry_once_expected(&self, id: &ContainerId) -> Arc<Entry> {
        loop {
            let change = self.expectation.notified();
            tokio::pin!(change);
            change.as_mut().enable();
            if let Some(entry) = self.entry(id) {
                return entry;
            }
            change.await;
        }
    }
}
