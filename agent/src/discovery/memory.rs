//! The twin of the real backends: registrations in memory, for tests of everything above.
//!
//! It passes the same conformance suite as the real ones. Nobody outside of the process can see it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{Capabilities, Discovery, DiscoveryError, Outcome, RegistrationRecord, Table};
use crate::instance::InstanceName;

/// Registrations in memory.
#[derive(Debug, Default)]
pub struct MemoryDiscovery {
    table: Mutex<Table>,
    bound: Duration,
}

impl MemoryDiscovery {
    /// An empty backend with the given propagation bound.
    pub fn new(propagation_bound: Duration) -> Self {
        Self { table: Mutex::default(), bound: propagation_bound }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Table) -> T) -> T {
        change(&mut self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(
        &self,
        batch: &[RegistrationRecord],
        apply: fn(&mut Table, Arc<RegistrationRecord>) -> Outcome,
    ) -> Result<Vec<Outcome>, DiscoveryError> {
        batch.iter().try_for_each(RegistrationRecord::check)?;
        let records = batch.iter().cloned().map(Arc::new);
        Ok(self.with(|table| records.map(|record| apply(table, record)).collect()))
    }
}

impl Discovery for MemoryDiscovery {
    fn name(&self) -> &str {
        "memory"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { weights: true, status: true, batch: true, compare_and_put: true }
    }

    fn propagation_bound(&self) -> Duration {
        self.bound
    }

    fn register<'a>(
        &'a self,
        batch: &'a [RegistrationRecord],
    ) -> BoxFuture<'a, Result<Vec<Outcome>, DiscoveryError>> {
        async { self.write(batch, Table::register) }.boxed()
    }

    fn update<'a>(
        &'a self,
        batch: &'a [RegistrationRecord],
    ) -> BoxFuture<'a, Result<Vec<Outcome>, DiscoveryError>> {
        async { self.write(batch, Table::update) }.boxed()
    }

    fn deregister<'a>(
        &'a self,
        batch: &'a [(InstanceName, u64)],
    ) -> BoxFuture<'a, Result<Vec<Outcome>, DiscoveryError>> {
        async {
            Ok(self.with(|table| {
                batch.iter().map(|(name, generation)| table.deregister(name, *generation)).collect()
            }))
        }
        .boxed()
    }

    fn renew(&self) -> BoxFuture<'_, Result<(), DiscoveryError>> {
        async { Ok(()) }.boxed()
    }

    fn registered(&self) -> BoxFuture<'_, Result<Vec<RegistrationRecord>, DiscoveryError>> {
        async { Ok(self.with(|table| table.records().map(|r| r.as_ref().clone()).collect())) }.boxed()
    }
}
