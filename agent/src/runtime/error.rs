//! What can go wrong between us and containerd.

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
        source: Status,
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
    #[error("the connection failed")]
    Connection(#[source] Status),
    /// Our own task that waited for the answer ended without one.
    #[error("the task that waited for the answer ended: {0}")]
    Ended(String),
}

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
    pub(super) fn of(status: Status) -> Self {
        match status.code() {
            Code::AlreadyExists => Self::Exists,
            Code::NotFound => Self::NotFound,
            Code::FailedPrecondition => Self::Precondition(status),
            Code::Unavailable => Self::Unavailable(Unanswered::Connection(status)),
            // tonic reports a transport that breaks in mid-call as `Unknown` with a cause; what
            // containerd itself calls unknown has none.
            Code::Unknown | Code::Internal if broke(&status) => {
                Self::Unavailable(Unanswered::Connection(status))
            }
            _ => Self::Other(status),
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
                source,
            },
        }
    }
}

fn broke(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
        || status.message().starts_with("Service was not ready")
}

/// A failed pull is containerd's unavailability when it was containerd that did not answer.
pub(super) fn of_pull(reference: &str, error: PullError) -> RuntimeError {
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
