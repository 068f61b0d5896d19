//! Registrations as keys in etcd, all on one lease of the host.
//!
//! Owns the connection, the lease and the owner key; one task does everything, so that who registers
//! waits for etcd and nobody else does. The keys and their JSON are in `keys`, what a session is and
//! how it fences late writes in `session`, when a lease is over in `lease`.
//!
//! Promises: an acknowledged record is in etcd, on a lease that is renewed at a third of its time to
//! live; a lease that is lost is replaced, and everything that should be registered is put again; a
//! restarted agent finds its lease through the owner key and goes on with it; another agent with the
//! same host id and fleet is kept out as long as the first one's lease lives. Keys outlive the agent
//! by the time to live, then they lapse: ending the agent revokes nothing.
//!
//! Deliberately absent: watching other hosts (that is the fleet's), and any use of the wall clock.

mod agree;
mod backoff;
mod connection;
mod error;
mod keys;
mod lease;
mod session;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};

pub use error::EtcdError;

use super::{
    Capabilities, Change, Discovery, DiscoveryError, Health, Outcome, Reach, RegistrationRecord,
};
use crate::config;
use crate::instance::InstanceName;
use crate::metrics;
use keys::Keys;
use worker::{Job, Worker};

const NAME: &str = "etcd";

/// Writes that may wait for the worker; who finds it full waits before it.
const QUEUE: usize = 1024;

/// The etcd backend.
pub struct EtcdDiscovery {
    jobs: mpsc::Sender<Job>,
    health: watch::Receiver<Health>,
    bound: Duration,
    patience: Duration,
}

impl EtcdDiscovery {
    /// Starts the worker, which connects by itself: an etcd that is away keeps nobody from starting.
    /// `agent_id` tells this agent from another one with the same host id, and is the same after
    /// every start. Renewals are counted by `instruments`.
    ///
    /// Needs a tokio runtime.
    pub fn open(
        settings: &config::EtcdDiscovery,
        host: &config::Host,
        agent_id: &str,
        instruments: Arc<metrics::Backend>,
    ) -> Self {
        let (jobs, to_do) = mpsc::channel(QUEUE);
        let (told, health) = watch::channel(Health {
            reach: Reach::Connecting,
            ..Health::serving()
        });
        let worker = Worker::new(
            settings.clone(),
            Keys::new(&settings.prefix, &host.fleet, &host.id),
            agent_id.to_owned(),
            to_do,
            told,
            instruments,
        );
        tokio::spawn(worker.run());
        Self {
            jobs,
            health,
            bound: settings.propagation_bound,
            patience: settings.dial_timeout + settings.request_timeout,
        }
    }

    async fn ask<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, DiscoveryError>>) -> Job,
    ) -> Result<T, DiscoveryError> {
        let ended = || DiscoveryError::WriterEnded { backend: NAME };
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.jobs.send(job(answer)).await.map_err(|_| ended())?;
            answered.await.unwrap_or_else(|_| Err(ended()))
        };
        match tokio::time::timeout(self.patience, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(self.late()),
        }
    }

    /// Nothing was acknowledged in time: because etcd is away, or slow.
    fn late(&self) -> DiscoveryError {
        let health = self.health();
        match health.error {
            Some(said) => EtcdError::Away {
                reach: health.reach,
                said,
            }
            .into(),
            None => DiscoveryError::Deadline {
                backend: NAME,
                after: self.patience,
            },
        }
    }

    async fn write(&self, changes: Vec<Change>) -> Result<Vec<Outcome>, DiscoveryError> {
        self.ask(|answer| Job::Write { changes, answer }).await
    }
}

impl Discovery for EtcdDiscovery {
    fn name(&self) -> &str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            weights: true,
            status: true,
            batch: true,
            compare_and_put: true,
        }
    }

    fn propagation_bound(&self) -> Duration {
        self.bound
    }

    fn register<'a>(
        &'a self,
        batch: &'a [RegistrationRecord],
    ) -> BoxFuture<'a, Result<Vec<Outcome>, DiscoveryError>> {
        async { self.write(Change::each(batch, Change::Register)?).await }.boxed()
    }

    fn update<'a>(
        &'a self,
        batch: &'a [RegistrationRecord],
    ) -> BoxFuture<'a, Result<Vec<Outcome>, DiscoveryError>> {
        async { self.write(Change::each(batch, Change::Update)?).await }.boxed()
    }

    fn deregister<'a>(
        &'a self,
        batch: &'a [(InstanceName, u64)],
    ) -> BoxFuture<'a, Result<Vec<Outcome>, DiscoveryError>> {
        self.write(Change::deregister_each(batch)).boxed()
    }

    fn renew(&self) -> BoxFuture<'_, Result<(), DiscoveryError>> {
        self.ask(|answer| Job::Renew { answer }).boxed()
    }

    fn registered(&self) -> BoxFuture<'_, Result<Vec<RegistrationRecord>, DiscoveryError>> {
        self.ask(|answer| Job::List { answer }).boxed()
    }

    fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    fn health_changes(&self) -> Option<watch::Receiver<Health>> {
        Some(self.health.clone())
    }
}
