//! A discovery backend whose calls are counted. Renewals are counted by the backend that makes them,
//! when it makes them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::watch;

use super::{Capabilities, Discovery, DiscoveryError, Health, Outcome, RegistrationRecord};
use crate::instance::InstanceName;
use crate::metrics::{Backend, Call, Verdict};

/// Counts what is asked of the backend behind it, and changes nothing.
pub struct Metered {
    backend: Arc<dyn Discovery>,
    instruments: Arc<Backend>,
}

impl Metered {
    /// `backend`, counted by `instruments`.
    pub fn new(backend: Arc<dyn Discovery>, instruments: Arc<Backend>) -> Self {
        Self {
            backend,
            instruments,
        }
    }

    fn counted<'a, T>(
        &'a self,
        call: Call,
        records: usize,
        answer: BoxFuture<'a, Result<T, DiscoveryError>>,
    ) -> BoxFuture<'a, Result<T, DiscoveryError>>
    where
        T: Send + 'a,
    {
        async move {
            let start = Instant::now();
            let answer = answer.await;
            let verdict = Verdict::of(&answer);
            self.instruments
                .called(call, verdict, records, start.elapsed());
            answer
        }
        .boxed()
    }
}

impl Discovery for Metered {
    fn name(&self) -> &str {
        self.backend.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.backend.capabilities()
    }

    fn propagation_bound(&self) -> Duration {
        self.backend.propagation_bound()
    }

    fn register<'a>(
        &'a self,
        batch: &'a [RegistrationRecord],
    ) -> BoxFuture<'a, Result<Vec<Outcome>, DiscoveryError>> {
        self.counted(Call::Register, batch.len(), self.backend.register(batch))
    }

    fn update<'a>(
        &'a self,
        batch: &'a [RegistrationRecord],
    ) -> BoxFuture<'a, Result<Vec<Outcome>, DiscoveryError>> {
        self.counted(Call::Update, batch.len(), self.backend.update(batch))
    }

    fn deregister<'a>(
        &'a self,
        batch: &'a [(InstanceName, u64)],
    ) -> BoxFuture<'a, Result<Vec<Outcome>, DiscoveryError>> {
        self.counted(
            Call::Deregister,
            batch.len(),
            self.backend.deregister(batch),
        )
    }

    fn renew(&self) -> BoxFuture<'_, Result<(), DiscoveryError>> {
        self.backend.renew()
    }

    fn registered(&self) -> BoxFuture<'_, Result<Vec<RegistrationRecord>, DiscoveryError>> {
        self.backend.registered()
    }

    fn health(&self) -> Health {
        self.backend.health()
    }

    fn health_changes(&self) -> Option<watch::Receiver<Health>> {
        self.backend.health_changes()
    }
}
