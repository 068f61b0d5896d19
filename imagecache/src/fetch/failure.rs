//! Why a source did not give what it was asked for, and what follows from that.

use std::path::PathBuf;
use std::time::Duration;

use crate::{PullError, Retry};

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a source did not give a piece of content.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It has no such thing.
    #[error("it has no such thing")]
    NotFound,
    /// It wants other credentials.
    #[error("it does not let us read: {message}")]
    Unauthorised {
        /// What it said, or what we sent; never a secret.
        message: String,
    },
    /// It cannot now (408, 429, 5xx).
    #[error("it cannot now")]
    Unavailable {
        /// How long it asks us to wait (`Retry-After`).
        retry_after: Option<Duration>,
        /// What it said.
        #[source]
        source: Cause,
    },
    /// It answered with an error that will not pass.
    #[error("it refuses")]
    Refused {
        /// What it said.
        #[source]
        source: Cause,
    },
    /// It could not be reached, or the connection broke.
    #[error("it could not be reached")]
    Unreachable {
        /// What the network said.
        #[source]
        source: Cause,
    },
    /// No byte came for this long.
    #[error("no byte came for {} s", .0.as_secs_f64())]
    Stalled(Duration),
    /// It sent, or announced, another number of bytes.
    #[error("expected {expected} bytes, got {got}")]
    WrongSize {
        /// Bytes that the content has.
        expected: u64,
        /// Bytes that came, or were announced.
        got: u64,
    },
    /// It sent other bytes.
    #[error("expected {expected}, got {got}")]
    WrongDigest {
        /// Digest asked for.
        expected: String,
        /// Digest of what came.
        got: String,
    },
    /// Its answer makes no sense.
    #[error("{0}")]
    Malformed(String),
    /// The credentials for it cannot be used.
    #[error("credentials file {} cannot be used: {why}", .path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// What is wrong; never a secret.
        why: String,
    },
}

/// What follows from a [`Failure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The same source may do better later; not before this long, when it said so.
    Later(Option<Duration>),
    /// The source is of no use for this content.
    PutAside,
}

impl Failure {
    /// What follows.
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Unavailable { retry_after, .. } => Verdict::Later(*retry_after),
            Self::Unreachable { .. } | Self::Stalled(_) => Verdict::Later(None),
            Self::NotFound
            | Self::Unauthorised { .. }
            | Self::Refused { .. }
            | Self::WrongSize { .. }
            | Self::WrongDigest { .. }
            | Self::Malformed(_)
            | Self::Credentials { .. } => Verdict::PutAside,
        }
    }

    /// The error of the pull: `object` of `repository` did not come from `registry`.
    pub fn of(self, registry: &str, repository: &str, object: &str) -> PullError {
        let (registry, object) = (registry.to_owned(), object.to_owned());
        match self {
            Self::NotFound => PullError::NotFound {
                registry,
                repository: repository.to_owned(),
                object,
            },
            Self::Unauthorised { message } => PullError::Unauthorised {
                registry,
                repository: repository.to_owned(),
                message,
            },
            Self::Unavailable { source, .. } => PullError::Registry {
                registry,
                object,
                retry: Retry::Later,
                source,
            },
            Self::Refused { source } => PullError::Registry {
                registry,
                object,
                retry: Retry::Never,
                source,
            },
            Self::Unreachable { source } => PullError::Unreachable {
                registry,
                object,
                source,
            },
            Self::Stalled(stalled) => PullError::Stalled {
                registry,
                object,
                stalled,
            },
            Self::WrongSize { expected, got } => PullError::WrongSize {
                registry,
                object,
                expected,
                got,
            },
            Self::WrongDigest { expected, got } => PullError::WrongDigest {
                registry,
                object,
                expected,
                got,
            },
            Self::Malformed(why) => PullError::Malformed { object, why },
            Self::Credentials { path, why } => PullError::Credentials { path, why },
        }
    }
}
