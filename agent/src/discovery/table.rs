//! Which write wins: the registrations of one backend, fenced by generation. Pure.
//!
//! Promises: a generation only goes up; what was deregistered stays away until a higher generation
//! registers. Deregistered generations are remembered in memory only: after a restart of the agent
//! the journal's generations fence instead.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::record::RegistrationRecord;
use crate::instance::InstanceName;

/// What became of one record of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is in place, as of now or already before.
    Applied,
    /// Another generation stands; nothing was changed.
    Stale {
        /// The generation that is registered.
        registered: u64,
    },
    /// This generation, or a later one, was deregistered; nothing was changed.
    Gone {
        /// The highest generation that was deregistered.
        deregistered: u64,
    },
    /// Nothing is registered under that name. For a deregistration that is the aim.
    NotRegistered,
    /// A deregistration that the backend has not acknowledged, and that time has brought about: the
    /// registration's time to live is over without a renewal.
    Lapsed,
}

/// The registrations of one backend. A clone is cheap: a candidate that is dropped when it cannot
/// be written.
#[derive(Debug, Clone, Default)]
pub struct Table {
    records: BTreeMap<InstanceName, Arc<RegistrationRecord>>,
    deregistered: BTreeMap<InstanceName, u64>,
}

impl Table {
    /// Registers; see [`super::Discovery::register`].
    pub fn register(&mut self, record: Arc<RegistrationRecord>) -> Outcome {
        let known = self
            .records
            .get(&record.instance)
            .map(|present| present.generation);
        let gone = self.deregistered.get(&record.instance).copied();
        match (known, gone) {
            (Some(registered), _) if record.generation < registered => {
                Outcome::Stale { registered }
            }
            (None, Some(deregistered)) if record.generation <= deregistered => {
                Outcome::Gone { deregistered }
            }
            // What is registered is younger than what was deregistered before it.
            _ => {
                self.records.insert(record.instance.clone(), record);
                Outcome::Applied
            }
        }
    }

    /// Updates; see [`super::Discovery::update`].
    pub fn update(&mut self, record: Arc<RegistrationRecord>) -> Outcome {
        if self.records.contains_key(&record.instance) {
            return self.register(record);
        }
        match self.deregistered.get(&record.instance) {
            Some(deregistered) if record.generation <= *deregistered => Outcome::Gone {
                deregistered: *deregistered,
            },
            _ => Outcome::NotRegistered,
        }
    }

    /// Deregisters up to `generation`; see [`super::Discovery::deregister`].
    pub fn deregister(&mut self, instance: &InstanceName, generation: u64) -> Outcome {
        let outcome = match self.records.get(instance) {
            Some(present) if present.generation > generation => {
                return Outcome::Stale {
                    registered: present.generation,
                };
            }
            Some(_) => Outcome::Applied,
            None => Outcome::NotRegistered,
        };
        self.records.remove(instance);
        let highest = self
            .deregistered
            .entry(instance.clone())
            .or_insert(generation);
        *highest = (*highest).max(generation);
        outcome
    }

    /// The record of an instance.
    pub fn get(&self, instance: &InstanceName) -> Option<&Arc<RegistrationRecord>> {
        self.records.get(instance)
    }

    /// All records, ordered by instance.
    pub fn records(&self) -> impl Iterator<Item = &Arc<RegistrationRecord>> {
        self.records.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    fn record(ordinal: u32, generation: u64) -> Arc<RegistrationRecord> {
        Arc::new(RegistrationRecord {
            service: "web".into(),
            instance: InstanceName::new("web".parse().unwrap(), ordinal),
            host_id: "host-a".into(),
            fleet: "default".into(),
            hostname: format!("web-{ordinal}"),
            address: Ipv4Addr::new(10, 88, 0, 1).into(),
            port: 80,
            weight: 100,
            generation,
            metadata: BTreeMap::new(),
        })
    }

    proptest! {
        #[test]
        fn a_generation_only_goes_up_and_a_deregistered_one_never_returns(
            events in prop::collection::vec((0u8..3, 0u32..3, 1u64..8), 1..80)
        ) {
            let mut table = Table::default();
            let mut gone: BTreeMap<InstanceName, u64> = BTreeMap::new();
            for (kind, ordinal, generation) in events {
                let record = record(ordinal, generation);
                let name = record.instance.clone();
                let before = table.get(&name).map(|present| present.generation);
                match kind {
                    0 => {
                        table.register(record);
                    }
                    1 => {
                        let outcome = table.update(record);
                        prop_assert!(before.is_some() || outcome != Outcome::Applied);
                    }
                    _ => {
                        let outcome = table.deregister(&name, generation);
                        if !matches!(outcome, Outcome::Stale { .. }) {
                            let highest = gone.entry(name.clone()).or_default();
                            *highest = generation.max(*highest);
                            prop_assert!(table.get(&name).is_none());
                        }
                    }
                }
                let after = table.get(&name).map(|present| present.generation);
                if let (Some(before), Some(after)) = (before, after) {
                    prop_assert!(after >= before);
                }
                if let (Some(after), Some(gone)) = (after, gone.get(&name)) {
                    prop_assert!(after > *gone);
                }
            }
        }
    }
}
