//! One change of one registration, as a batch carries it.

use std::sync::Arc;

use super::record::{InvalidRecord, RegistrationRecord};
use super::table::{Outcome, Table};
use crate::instance::InstanceName;

/// One change of a [`Table`].
#[derive(Debug, Clone)]
pub(super) enum Change {
    Register(Arc<RegistrationRecord>),
    Update(Arc<RegistrationRecord>),
    Deregister(InstanceName, u64),
}

impl Change {
    /// Checked changes for a batch of records.
    pub(super) fn each(
        batch: &[RegistrationRecord],
        change: fn(Arc<RegistrationRecord>) -> Self,
    ) -> Result<Vec<Self>, InvalidRecord> {
        batch.iter().try_for_each(RegistrationRecord::check)?;
        Ok(batch.iter().cloned().map(Arc::new).map(change).collect())
    }

    /// Changes that deregister a batch.
    pub(super) fn deregister_each(batch: &[(InstanceName, u64)]) -> Vec<Self> {
        batch
            .iter()
            .cloned()
            .map(|(name, generation)| Self::Deregister(name, generation))
            .collect()
    }

    pub(super) fn instance(&self) -> &InstanceName {
        match self {
            Self::Register(record) | Self::Update(record) => &record.instance,
            Self::Deregister(instance, _) => instance,
        }
    }

    pub(super) fn apply(self, table: &mut Table) -> Outcome {
        match self {
            Self::Register(record) => table.register(record),
            Self::Update(record) => table.update(record),
            Self::Deregister(instance, generation) => table.deregister(&instance, generation),
        }
    }
}
