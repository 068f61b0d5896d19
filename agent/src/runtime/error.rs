//! What can go wrong between us and containerd.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use imagecache::{PullError, Retry, StoreError, UnpackError};
use tonic::{Code, Status};

/// Why a verb failed: `operation` and `object` read as a sentence, for example `create task` of
/// `web-1.g7`.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RuntimeError {
    /// containerd is down, went away in mid-call, or did not answer in time. Nothing is known
    /// about the effect; the verb may be repeated.
    #[error("containerd did not answer: {operation} {object}")]
    Unavailable {
        /// The verb.
        operation: &'static str,
        /// What it was about.
        object: String,
        /// How it failed to answer.
        #[source]
        source: Unanswered,
    },
    /// A create did not end in time. What it may have left was looked for and ended. The id is
    /// spent: containerd 1.6 cleans up behind a dead shim when it comes to it, by path, and would
    /// unmount the rootfs of a new task of that id. The next create has the next generation.
    #[error("containerd did not {operation} {object} in time; {}", if *.undone { "what it left was removed" } else { "something of it may remain" })]
    Abandoned {
        /// The verb.
        operation: &'static str,
        /// What it was about.
        object: String,
        /// Whether nothing of it remains.
        undone: bool,
        /// How it failed to answer.
        #[source]
        source: Unanswered,
    },
    /// There is no such thing, and the verb needs it.
    #[error("containerd has no {object}, needed to {operation}")]
    NotFound {
        /// The verb.
        operation: &'static str,
        /// What is missing.
        object: String,
    },
    /// There is a thing of this name, and it is another.
    #[error("cannot {operation} {object}: {why}")]
    Conflict {
        /// The verb.
        operation: &'static str,
        /// What it was about.
        object: String,
        /// In what it differs.
        why: String,
    },
    /// containerd answered with an error.
    #[error("containerd failed: {operation} {object}")]
    Failed {
        /// The verb.
        operation: &'static str,
        /// What it was about.
        object: String,
        /// What it said.
        #[source]
        source: Said,
    },
    /// The image could not be had.
    #[error("image {reference} could not be pulled")]
    Image {
        /// As asked for.
        reference: String,
        /// Why.
        #[source]
        source: Arc<PullError>,
    },
    /// A setting that no call could be made with.
    #[error("setting {setting} = {value:?} cannot be used: {allowed} is allowed")]
    Setting {
        /// Name in the configuration.
        setting: &'static str,
        /// Its value.
        value: String,
        /// What would have been accepted.
        allowed: &'static str,
    },
}

/// How containerd failed to answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Unanswered {
    /// Nothing came before the deadline.
    #[error("no answer within {} s ({name})", .deadline.as_secs_f64())]
    Overdue {
        /// Name of the deadline.
        name: &'static str,
        /// Its length.
        deadline: Duration,
    },
    /// The connection could not be made or broke.
    #[error("{why}")]
    Connection {
        /// A sentence: the socket, what is true of it, and how to mend it.
        why: String,
    },
    /// Our own task that waited for the answer ended without one.
    #[error("the task that waited for the answer ended: {0}")]
    Ended(String),
}

/// What containerd said; its words alone, without gRPC's.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", if .0.message().is_empty() { .0.code().description() } else { .0.message() })]
pub struct Said(pub(super) Status);

impl RuntimeError {
    /// Whether the same call can succeed later with nothing changed.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unavailable { .. } | Self::Abandoned { .. } => true,
            Self::Image { source, .. } => source.retry() == Retry::Later,
            Self::NotFound { .. }
            | Self::Conflict { .. }
            | Self::Failed { .. }
            | Self::Setting { .. } => false,
        }
    }
}

/// What containerd said to a call, before anybody decided what it means for the verb.
pub(super) enum Answer {
    Exists,
    NotFound,
    Precondition(Status),
    Unavailable(Unanswered),
    Other(Status),
}

impl Answer {
    /// `socket` is where containerd was spoken to.
    pub(super) fn of(status: Status, socket: &Path) -> Self {
        match status.code() {
            Code::AlreadyExists => Self::Exists,
            Code::NotFound => Self::NotFound,
            Code::FailedPrecondition => Self::Precondition(status),
            Code::Unavailable => Self::Unavailable(disconnected(&status, socket)),
            // tonic reports a transport that breaks in mid-call as `Unknown` with a cause; what
            // containerd itself calls unknown has none.
            Code::Unknown | Code::Internal if broke(&status) => {
                Self::Unavailable(disconnected(&status, socket))
            }
            _ => Self::Other(status),
        }
    }

    /// Whether a create was refused for what an earlier one of that id made: its task, or its
    /// bundle, for which containerd has but the system's words.
    pub(super) fn is_in_the_way(&self) -> bool {
        match self {
            Self::Exists => true,
            Self::Other(status) => status.message().contains(": file exists"),
            _ => false,
        }
    }

    pub(super) fn into_error(self, operation: &'static str, object: &str) -> RuntimeError {
        let object = object.to_owned();
        match self {
            Self::Unavailable(source) => RuntimeError::Unavailable {
                operation,
                object,
                source,
            },
            Self::NotFound => RuntimeError::NotFound { operation, object },
            Self::Exists => RuntimeError::Conflict {
                operation,
                object,
                why: "it exists already".to_owned(),
            },
            Self::Precondition(source) | Self::Other(source) => RuntimeError::Failed {
                operation,
                object,
                source: Said(source),
            },
        }
    }
}

/// What is true of the socket, from the system's error below gRPC's.
fn disconnected(status: &Status, socket: &Path) -> Unanswered {
    let mut cause = std::error::Error::source(status);
    let mut system = None;
    while let Some(error) = cause {
        system = error.downcast_ref::<io::Error>().or(system);
        cause = error.source();
    }
    let at = socket.display();
    let what = match system.map(io::Error::kind) {
        Some(io::ErrorKind::NotFound) => format!("there is no socket {at}"),
        Some(io::ErrorKind::ConnectionRefused) => format!("nobody listens on {at}"),
        Some(io::ErrorKind::PermissionDenied) => format!("{at} may not be used"),
        _ => format!("the connection to {at} broke"),
    };
    Unanswered::Connection {
        why: format!("{what} (systemctl status containerd; its socket: containerd.socket)"),
    }
}

fn broke(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
        || status.message().starts_with("Service was not ready")
}

/// A failed pull is containerd's unavailability when it was containerd that did not answer.
pub(crate) fn of_pull(reference: &str, error: PullError) -> RuntimeError {
    match error {
        PullError::Store(StoreError::Unavailable {
            operation,
            object,
            source,
        })
        | PullError::Unpack(UnpackError::Unavailable {
            operation,
            object,
            source,
        }) => match source.downcast::<Unanswered>() {
            Ok(unanswered) => RuntimeError::Unavailable {
                operation,
                object,
                source: *unanswered,
            },
            Err(source) => RuntimeError::Unavailable {
                operation,
                object,
                source: Unanswered::Ended(source.to_string()),
            },
        },
        other => RuntimeError::Image {
            reference: reference.to_owned(),
            source: Arc::new(other),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_containerd_said_is_told_without_grpcs_words() {
        let said = |status| {
            Answer::of(status, Path::new("/run/c.sock")).into_error("create task", "web-1.g7")
        };
        let error = said(Status::internal("no space left"));
        let source = std::error::Error::source(&error).map(ToString::to_string);
        assert_eq!(error.to_string(), "containerd failed: create task web-1.g7");
        assert_eq!(source.as_deref(), Some("no space left"));
        let error = said(Status::new(Code::ResourceExhausted, ""));
        let source = std::error::Error::source(&error).map(ToString::to_string);
        assert_eq!(
            source.as_deref(),
            Some(Code::ResourceExhausted.description())
        );
    }

    #[tokio::test]
    async fn a_containerd_that_is_down_is_told_by_its_socket_and_how_to_mend_it() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("c.sock");
        let settings = crate::config::Containerd {
            socket: socket.clone(),
            namespace: "x".to_owned(),
            snapshotter: "overlayfs".to_owned(),
            timeout: Duration::from_secs(5),
        };
        let runtime = crate::config::Runtime {
            shim: "io.containerd.runc.v2".to_owned(),
            binary: None,
            cgroup_parent: "/nodeagent".to_owned(),
            scope: crate::config::UseScope::Never,
            container_init: "/x".into(),
        };
        let said = async || {
            let containerd = crate::runtime::Containerd::connect(&settings, &runtime, None)
                .await
                .unwrap();
            let error = containerd.version().await.unwrap_err();
            let cause = std::error::Error::source(&error).unwrap().to_string();
            format!("{error}: {cause}")
        };
        let at = socket.display();
        let mend = "(systemctl status containerd; its socket: containerd.socket)";
        assert_eq!(
            said().await,
            format!(
                "containerd did not answer: ask for the version of containerd: there is no socket {at} {mend}"
            )
        );
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        assert_eq!(
            said().await,
            format!(
                "containerd did not answer: ask for the version of containerd: nobody listens on {at} {mend}"
            )
        );
    }
}
