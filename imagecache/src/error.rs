//! Why a pull failed, and whether trying again can help.

use std::path::PathBuf;
use std::time::Duration;

use crate::blobs::BlobsError;
use crate::policy::Refusal;
use crate::registry::HostsError;
use crate::{Digest, InvalidReference, StoreError, UnpackError};

/// Whether the same request can succeed later, with nothing changed by the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The cause may pass.
    Later,
    /// It will fail again until somebody changes something.
    Never,
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a pull failed. `object` names what was being fetched, for example `manifest 1` or
/// `layer sha256:…`.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The reference is no reference.
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    /// The registry answers, and has no such thing.
    #[error("registry {registry} has no {object} in repository {repository}")]
    NotFound {
        /// `host[:port]`.
        registry: String,
        /// Repository.
        repository: String,
        /// What is missing.
        object: String,
    },
    /// It is unpacked from what is here, and this is not.
    #[error("{object} is not in this host's store, and no registry may be asked for it")]
    NotHere {
        /// What is missing.
        object: String,
    },
    /// The registry could not be reached, or the connection broke.
    #[error("registry {registry} could not be reached for {object}")]
    Unreachable {
        /// `host[:port]`.
        registry: String,
        /// What was being fetched.
        object: String,
        /// What the network said.
        #[source]
        source: Cause,
    },
    /// No byte came for the stall timeout.
    #[error("registry {registry} stalled: no byte of {object} for {} s", .stalled.as_secs_f64())]
    Stalled {
        /// `host[:port]`.
        registry: String,
        /// What was being fetched.
        object: String,
        /// The stall timeout.
        stalled: Duration,
    },
    /// The whole pull took longer than its deadline.
    #[error("pull of {reference} was not finished after {} s", .deadline.as_secs_f64())]
    TooSlow {
        /// The image.
        reference: String,
        /// Deadline of the whole pull.
        deadline: Duration,
    },
    /// The registry sent other bytes than the digest names. Nothing of it was kept.
    #[error("registry {registry} sent a wrong {object}: expected {expected}, got {got}")]
    WrongDigest {
        /// `host[:port]`.
        registry: String,
        /// What was being fetched.
        object: String,
        /// Digest asked for.
        expected: String,
        /// Digest of what came.
        got: String,
    },
    /// The registry sent more or fewer bytes than the manifest says. Nothing of it was kept.
    #[error("registry {registry} sent a wrong {object}: expected {expected} bytes, got {got}")]
    WrongSize {
        /// `host[:port]`.
        registry: String,
        /// What was being fetched.
        object: String,
        /// Bytes announced by the manifest.
        expected: u64,
        /// Bytes that came before we stopped reading.
        got: u64,
    },
    /// The registry wants other credentials.
    #[error("registry {registry} does not let us read repository {repository}: {message}")]
    Unauthorised {
        /// `host[:port]`.
        registry: String,
        /// Repository.
        repository: String,
        /// What it said, or what we sent.
        message: String,
    },
    /// The registry answered with another error.
    #[error("registry {registry} failed on {object}")]
    Registry {
        /// `host[:port]`.
        registry: String,
        /// What was being fetched.
        object: String,
        /// Whether it may pass (5xx, 429).
        retry: Retry,
        /// What it said.
        #[source]
        source: Cause,
    },
    /// A media type that we do not unpack.
    #[error("{object} has media type {media_type:?}: {allowed} is allowed")]
    UnsupportedMediaType {
        /// What has it.
        object: String,
        /// The media type found.
        media_type: String,
        /// What would have been accepted.
        allowed: &'static str,
    },
    /// The image is not for this machine.
    #[error("{reference} is for {offered}, this host needs {wanted}")]
    UnsupportedPlatform {
        /// The image.
        reference: String,
        /// `os/architecture` of this host.
        wanted: String,
        /// `os/architecture` of the image, or of all entries of its index.
        offered: String,
    },
    /// A document of the image cannot be understood.
    #[error("{object} is malformed: {why}")]
    Malformed {
        /// Manifest, index or config, with its digest.
        object: String,
        /// What is wrong.
        why: String,
    },
    /// The credentials file cannot be used.
    #[error("credentials file {} cannot be used: {why}", .path.display())]
    Credentials {
        /// `config.json`.
        path: PathBuf,
        /// What is wrong; never a secret.
        why: String,
    },
    /// The HTTP client could not be made (certificates, proxy settings).
    #[error("HTTP client for registry {registry} could not be made")]
    Client {
        /// `host[:port]`.
        registry: String,
        /// What it said.
        #[source]
        source: Cause,
    },
    /// The image policy is against it. Nothing of its layers was fetched.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A file of the hosts directory cannot be used.
    #[error(transparent)]
    Hosts(#[from] HostsError),
    /// Our own store of blobs failed.
    #[error(transparent)]
    Blobs(#[from] BlobsError),
    /// The content store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The unpacker failed.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
}

impl PullError {
    /// Whether the same pull can succeed later.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Unreachable { .. }
            | Self::Stalled { .. }
            | Self::TooSlow { .. }
            | Self::WrongDigest { .. }
            | Self::WrongSize { .. } => Retry::Later,
            Self::Registry { retry, .. } => *retry,
            Self::Refused(refusal) => refusal.retry(),
            Self::Store(error) => error.retry(),
            Self::Blobs(error) => error.retry(),
            Self::Unpack(error) => error.retry(),
            Self::Reference(_)
            | Self::NotFound { .. }
            | Self::NotHere { .. }
            | Self::Unauthorised { .. }
            | Self::UnsupportedMediaType { .. }
            | Self::UnsupportedPlatform { .. }
            | Self::Malformed { .. }
            | Self::Credentials { .. }
            | Self::Hosts(_)
            | Self::Client { .. } => Retry::Never,
        }
    }
}

/// `layer sha256:…`: how objects are spelt in errors.
pub(crate) fn named(kind: &str, digest: &Digest) -> String {
    format!("{kind} {digest}")
}
