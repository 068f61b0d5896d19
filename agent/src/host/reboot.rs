//! After a reboot: what ran is gone; rootfs, addresses and targets are kept.
//!
//! What the journal has as alive is written down as lost, together with the new boot id, in one
//! commit; from then on it is an ordinary state of which every pool knows the way back. Clients
//! must not find what does not run: discovery is cleaned before, as far as it answers.

use std::collections::HashMap;

use super::adopt::container_of;
use crate::instance::{ContainerId, InstanceName, Phase};
use crate::journal::InstanceRow;
use crate::pool::Observation;

/// The rows of those that the reboot ended, as they are from now on.
pub(super) fn lost(
    rows: &[InstanceRow],
    observations: &HashMap<ContainerId, Observation>,
) -> Vec<InstanceRow> {
    let ended = |row: &&InstanceRow| {
        row.released_ms.is_none()
            && !row.phase.going_down()
            && row.phase != Phase::Failed
            && observations.get(&container_of(row)) == Some(&Observation::Absent)
    };
    let lost = |row: &InstanceRow| InstanceRow {
        phase: Phase::Lost,
        registered: false,
        ..row.clone()
    };
    rows.iter().filter(ended).map(lost).collect()
}

/// The generations that a backend which could not be asked may list still.
pub(super) fn ended(rows: &[InstanceRow]) -> Vec<(InstanceName, u64)> {
    let lost = rows.iter().filter(|row| row.phase == Phase::Lost);
    lost.map(|row| (row.instance.clone(), row.generation))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::Urgency;

    #[test]
    fn what_ran_is_lost_and_what_was_going_goes_on_going() {
        let row = |ordinal, phase| InstanceRow {
            instance: InstanceName::new("web".parse().unwrap(), ordinal),
            generation: 7,
            create_generation: 6,
            rootfs_generation: 6,
            revision: "r1".into(),
            phase,
            serving: true,
            from: None,
            task: None,
            host_ports: Vec::new(),
            reuses: 0,
            address: None,
            registered: true,
            urgency: Urgency::Drain,
            released_ms: None,
        };
        let rows: Vec<InstanceRow> = (0..).zip(Phase::ALL).map(|(n, p)| row(n, p)).collect();
        let absent = rows
            .iter()
            .map(|row| (container_of(row), Observation::Absent))
            .collect();
        let lost = lost(&rows, &absent);
        for row in &rows {
            let expected = !row.phase.going_down() && row.phase != Phase::Failed;
            let found = lost.iter().find(|l| l.instance == row.instance);
            assert_eq!(found.is_some(), expected, "{:?}", row.phase);
            if let Some(found) = found {
                assert_eq!(
                    (found.phase, found.serving, found.registered),
                    (Phase::Lost, true, false)
                );
                assert_eq!((found.generation, found.rootfs_generation), (7, 6));
            }
        }
        assert!(super::lost(&rows, &HashMap::new()).is_empty());
    }
}
