//! What has to be written so that etcd says what it should. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::session::{Found, Operation};
use crate::discovery::{RegistrationRecord, Table};
use crate::instance::InstanceName;

/// Deregistrations that etcd has not acknowledged: the generation up to which each is to go.
pub(super) type Leaving = BTreeMap<InstanceName, u64>;

/// At the beginning of a session: what was found, held against what we know. Returns the table as it
/// is once the operations are written.
///
/// What we registered stands against what was found under the same generation; what was found and is
/// newer, or unknown to us, is taken over; what is leaving goes.
pub(super) fn agree(
    table: &Table,
    leaving: &Leaving,
    records: Vec<RegistrationRecord>,
    found: Found,
) -> (Table, Vec<Operation>) {
    let mut agreed = table.clone();
    let there: BTreeMap<InstanceName, Arc<RegistrationRecord>> = records
        .into_iter()
        .map(|record| (record.instance.clone(), Arc::new(record)))
        .collect();
    for (name, record) in &there {
        let known = table.get(name).map(|known| known.generation);
        if known.is_none_or(|known| known < record.generation) {
            agreed.register(Arc::clone(record));
        }
    }
    for (name, generation) in leaving {
        agreed.deregister(name, *generation);
    }
    let mut operations: Vec<Operation> = agreed
        .records()
        .filter(|record| {
            found == Found::OnAFormerLease || there.get(&record.instance) != Some(record)
        })
        .map(|record| Operation::Put(Arc::clone(record)))
        .collect();
    let gone = there.keys().filter(|name| agreed.get(name).is_none());
    operations.extend(gone.cloned().map(Operation::Delete));
    (agreed, operations)
}

/// What leads from one table to another for the instances that were touched.
pub(super) fn difference(
    before: &Table,
    after: &Table,
    touched: &BTreeSet<InstanceName>,
) -> Vec<Operation> {
    let change = |name: &InstanceName| match (before.get(name), after.get(name)) {
        (before, Some(after)) if before != Some(after) => Some(Operation::Put(Arc::clone(after))),
        (Some(_), None) => Some(Operation::Delete(name.clone())),
        _ => None,
    };
    touched.iter().filter_map(change).collect()
}

/// What leads from the keys that are on our lease to the table.
pub(super) fn amends(table: &Table, attached: &BTreeSet<InstanceName>) -> Vec<Operation> {
    let missing = table
        .records()
        .filter(|record| !attached.contains(&record.instance))
        .map(|record| Operation::Put(Arc::clone(record)));
    let unknown = attached
        .iter()
        .filter(|name| table.get(name).is_none())
        .cloned()
        .map(Operation::Delete);
    missing.chain(unknown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(ordinal: u32, generation: u64) -> RegistrationRecord {
        RegistrationRecord {
            service: "web".into(),
            instance: InstanceName::new("web".parse().unwrap(), ordinal),
            host_id: "host-a".into(),
            fleet: "default".into(),
            hostname: format!("web-{ordinal}"),
            address: std::net::Ipv4Addr::new(10, 88, 0, 1).into(),
            port: 80,
            weight: 100,
            generation,
            metadata: BTreeMap::new(),
        }
    }

    fn table(records: &[RegistrationRecord]) -> Table {
        let mut table = Table::default();
        for record in records {
            table.register(Arc::new(record.clone()));
        }
        table
    }

    fn put(ordinal: u32, generation: u64) -> Operation {
        Operation::Put(Arc::new(record(ordinal, generation)))
    }

    fn delete(ordinal: u32) -> Operation {
        Operation::Delete(record(ordinal, 1).instance)
    }

    #[test]
    fn a_restarted_agent_takes_over_what_it_finds_and_writes_nothing() {
        let found = vec![record(0, 3), record(1, 5)];
        let (agreed, operations) =
            agree(&Table::default(), &Leaving::new(), found, Found::OnOurLease);
        assert_eq!(operations, []);
        assert_eq!(agreed.records().count(), 2);
    }

    #[test]
    fn on_a_new_lease_everything_is_put_again() {
        let known = table(&[record(0, 3), record(1, 5)]);
        let (_, operations) = agree(&known, &Leaving::new(), vec![], Found::OnAFormerLease);
        assert_eq!(operations, [put(0, 3), put(1, 5)]);
    }

    #[test]
    fn what_is_leaving_goes_and_does_not_come_back_with_a_new_lease() {
        let known = table(&[record(0, 3), record(1, 5)]);
        let leaving = Leaving::from([(record(0, 3).instance, 3)]);
        let (agreed, operations) =
            agree(&known, &leaving, vec![record(0, 3)], Found::OnAFormerLease);
        assert_eq!(operations, [put(1, 5), delete(0)]);
        let (_, operations) = agree(&agreed, &Leaving::new(), vec![], Found::OnAFormerLease);
        assert_eq!(operations, [put(1, 5)]);
    }

    #[test]
    fn a_write_of_which_nobody_heard_is_found_and_kept_or_undone() {
        // The newer generation arrived at etcd, its answer did not arrive here.
        let (agreed, operations) = agree(
            &table(&[record(0, 3)]),
            &Leaving::new(),
            vec![record(0, 4)],
            Found::OnOurLease,
        );
        assert_eq!(operations, []);
        assert_eq!(
            agreed.get(&record(0, 4).instance).map(|r| r.generation),
            Some(4)
        );
        // Deregistered here, still there: it goes.
        let mut known = table(&[record(0, 3)]);
        known.deregister(&record(0, 3).instance, 3);
        let (_, operations) = agree(
            &known,
            &Leaving::new(),
            vec![record(0, 3)],
            Found::OnOurLease,
        );
        assert_eq!(operations, [delete(0)]);
    }

    #[test]
    fn what_somebody_removed_or_added_on_our_lease_is_amended() {
        let known = table(&[record(0, 3), record(1, 5)]);
        let attached = [record(1, 5).instance, record(2, 1).instance].into();
        assert_eq!(amends(&known, &attached), [put(0, 3), delete(2)]);
    }
}
