//! What etcd did not do, and what follows from it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tonic::Code;

use crate::discovery::Reach;

/// Why etcd has not acknowledged something. Several callers of one batch get the same.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EtcdError {
    /// No connection to a member.
    #[error("cannot connect to etcd at {endpoint}")]
    Connect {
        /// The member.
        endpoint: String,
        /// Why.
        #[source]
        source: Arc<tonic::transport::Error>,
    },
    /// A member let a deadline pass; a write may still take place.
    #[error("etcd at {endpoint} did not {operation} within {} ms", after.as_millis())]
    Deadline {
        /// The member.
        endpoint: String,
        /// What was tried.
        operation: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// A member answered with an error.
    #[error("etcd at {endpoint} did not {operation}")]
    Request {
        /// The member.
        endpoint: String,
        /// What was tried.
        operation: &'static str,
        /// What it said.
        #[source]
        source: Arc<etcd_client::Error>,
    },
    /// A value cannot be spelt.
    #[error("a value for etcd cannot be encoded")]
    Encode(#[source] Arc<serde_json::Error>),
    /// A password or certificate cannot be used.
    #[error("cannot read {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Arc<io::Error>,
    },
    /// Others could read the password.
    #[error("{} has mode {mode:04o}; a password is readable by its owner alone: chmod 600", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Another agent is this host in this fleet.
    #[error(
        "host id {host_id:?} of fleet {fleet:?} belongs to another agent, {agent}, as long as that renews lease {lease:x}; give this one a host.id of its own, or end the other"
    )]
    Owned {
        /// Our host id.
        host_id: String,
        /// Our fleet.
        fleet: String,
        /// The other agent, as it calls itself.
        agent: String,
        /// Its lease.
        lease: i64,
    },
    /// The host's lease has expired or was revoked.
    #[error("the lease {lease:x} is gone")]
    LeaseGone {
        /// The lease.
        lease: i64,
    },
    /// The host's key was removed.
    #[error(
        "the host's key is gone: lease {lease:x} has expired or was revoked, or somebody deleted the key"
    )]
    HostKeyGone {
        /// The lease that it was on.
        lease: i64,
    },
    /// A member ended the watch of the host's key.
    #[error("etcd at {endpoint} no longer watches the host's key: {said}")]
    WatchEnded {
        /// The member.
        endpoint: String,
        /// What it said.
        said: String,
    },
    /// The session was overtaken: what it would write counts no more.
    #[error("another session has taken over from ours")]
    Overtaken,
    /// Etcd is away, or closed to us, since an attempt that ended before.
    #[error("{said}")]
    Away {
        /// Which of the two.
        reach: Reach,
        /// What became of the last attempt, with the whole chain.
        said: String,
    },
    /// No attempt has been made yet, or none has ended.
    #[error("not connected to etcd yet")]
    NotYet,
}

/// What a failed request means for the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// etcd has decided: nothing was written, and asking again changes nothing by itself.
    Refused,
    /// Whether it was written is unknown, or the session is no more: a new session finds out.
    Broken,
}

impl EtcdError {
    /// What it says of etcd, for people and alarms: away, or closed to this agent.
    pub(super) fn reach(&self) -> Reach {
        let source = match self {
            Self::Owned { .. } => return Reach::Fenced,
            Self::File { .. } | Self::Exposed { .. } => return Reach::Refused,
            Self::Request { source, .. } => source,
            _ => return Reach::Away,
        };
        match source.as_ref() {
            // Wrong user or password, none where one is wanted, one where none is, no rights (etcd:
            // api/v3rpc/rpctypes). An old token is none of these: the next session gets a new one.
            etcd_client::Error::GRpcStatus(status) => match status.code() {
                Code::InvalidArgument | Code::FailedPrecondition | Code::PermissionDenied => {
                    Reach::Refused
                }
                _ => Reach::Away,
            },
            _ => Reach::Away,
        }
    }

    /// Whether the member is well, and only the session is over.
    pub(super) fn begins_anew(&self) -> bool {
        matches!(
            self,
            Self::LeaseGone { .. } | Self::HostKeyGone { .. } | Self::Overtaken
        )
    }

    pub(super) fn meaning(&self) -> Meaning {
        let source = match self {
            Self::Encode(_) => return Meaning::Refused,
            Self::Request { source, .. } => source,
            _ => return Meaning::Broken,
        };
        match source.as_ref() {
            etcd_client::Error::GRpcStatus(status) => match status.code() {
                Code::PermissionDenied | Code::InvalidArgument | Code::ResourceExhausted => {
                    Meaning::Refused
                }
                _ => Meaning::Broken,
            },
            _ => Meaning::Broken,
        }
    }
}
