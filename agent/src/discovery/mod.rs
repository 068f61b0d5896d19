//! Where clients find instances: one trait, and the backends that implement it.
//!
//! Owns what a registration is ([`RegistrationRecord`]) and which write wins ([`Table`]): a write of
//! an older generation than the registered one changes nothing, and a generation that was
//! deregistered never comes back, by no late register, update or renewal.
//!
//! Refusals by generation are values ([`Outcome`]), one for each record of a batch; an error means
//! that the whole batch is not acknowledged and may be sent again.
//!
//! Deliberately absent: when to register, the ramp and the drain (the pool decides), and anything
//! that touches the host (DESIGN, "The privilege seam").

mod backends;
mod change;
mod eds;
mod etcd;
mod file;
mod health;
mod memory;
mod metered;
mod prometheus;
mod record;
mod table;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;

pub use backends::{Backends, Unacknowledged};
pub use etcd::{EtcdDiscovery, EtcdError};
pub use file::{FileDiscovery, SetAside};
pub use health::{Health, LeaseHealth, Reach};
pub use memory::MemoryDiscovery;
pub use metered::Metered;
pub use record::{InvalidRecord, RegistrationRecord};
pub use table::{Outcome, Table};

use crate::instance::InstanceName;
use change::Change;

/// What a backend can do beyond registering and deregistering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Clients spread load by the weight of a record; the ramp goes by weights.
    pub weights: bool,
    /// A record can be marked as draining before it goes.
    pub status: bool,
    /// A batch of many costs about as much as one.
    pub batch: bool,
    /// The backend itself refuses a write of an older generation. Where it cannot, fencing is local
    /// to the agent.
    pub compare_and_put: bool,
}

/// A place where clients find instances. The set of backends is open and chosen by configuration,
/// so the trait is made for `Arc<dyn Discovery>`.
///
/// A call is atomic for its caller: on `Ok` everything in the batch that was not refused by its
/// [`Outcome`] is in place; on `Err` nothing of it counts as done.
pub trait Discovery: Send + Sync {
    /// Name in configuration, logs and the trail.
    fn name(&self) -> &str;

    /// What the backend can do.
    fn capabilities(&self) -> Capabilities;

    /// How long clients may go on using what was removed, at most.
    fn propagation_bound(&self) -> Duration;

    /// Puts records in place. One outcome for each record, in order.
    fn register<'a>(
        &'a self,
        batch: &'a [RegistrationRecord],
    ) -> BoxFuture<'a, Result<Vec<Outcome>, DiscoveryError>>;

    /// Changes weight or metadata of registered instances; it never registers one. One outcome for
    /// each record, in order.
    fn update<'a>(
        &'a self,
        batch: &'a [RegistrationRecord],
    ) -> BoxFuture<'a, Result<Vec<Outcome>, DiscoveryError>>;

    /// Takes instances out, each up to a generation. One outcome for each, in order.
    fn deregister<'a>(
        &'a self,
        batch: &'a [(InstanceName, u64)],
    ) -> BoxFuture<'a, Result<Vec<Outcome>, DiscoveryError>>;

    /// Keeps everything registered alive for another TTL, where the backend has one.
    fn renew(&self) -> BoxFuture<'_, Result<(), DiscoveryError>>;

    /// What is registered by this host, ordered by instance: the observation after a restart.
    fn registered(&self) -> BoxFuture<'_, Result<Vec<RegistrationRecord>, DiscoveryError>>;

    /// How the backend is at this moment.
    fn health(&self) -> Health {
        Health::serving()
    }

    /// Wakes after every attempt that changes whether it serves; `None` where nothing watches the
    /// backend.
    fn health_changes(&self) -> Option<watch::Receiver<Health>> {
        None
    }
}

/// Why a batch was not acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// A record that the backend cannot express; the batch changed nothing.
    #[error(transparent)]
    Invalid(#[from] InvalidRecord),
    /// A file or directory of the backend.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// etcd has not acknowledged it.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// The backend's writer is gone. It ends only by a panic, which is in the log.
    #[error("the writer of discovery backend {backend} has ended")]
    WriterEnded {
        /// Name of the backend.
        backend: &'static str,
    },
    /// The backend did not answer in time; the write may still take place.
    #[error("discovery backend {backend} took longer than {} s", after.as_secs())]
    Deadline {
        /// Name of the backend.
        backend: &'static str,
        /// How long was waited.
        after: Duration,
    },
}

impl DiscoveryError {
    /// Whether the same call can succeed later without anybody changing the request.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Invalid(_) | Self::WriterEnded { .. } => false,
            Self::File { .. } | Self::Etcd(_) | Self::Deadline { .. } => true,
        }
    }
}
