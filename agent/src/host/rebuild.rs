//! A journal that was lost: what can be observed becomes its beginning.
//!
//! Containers and their labels, container-init's word, network slots and discovery say what is
//! there; the manifests come from their copies. What serves goes on and is the target; what waits at
//! the gate waits; everything else of a known app becomes a failed instance, which is kept, with its
//! address, until the loss is accepted. Apps without a copy are left alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::adopt::{container_of, observe};
use super::epoch::Epoch;
use super::executor::Executor;
use super::strays::Found;
use crate::app;
use crate::discovery::RegistrationRecord;
use crate::instance::{AppName, ContainerId, InstanceName, Phase, Revision, Urgency, Warmth};
use crate::journal::{InstanceRow, PoolRow, Recovered, RevisionRow, Write};
use crate::pool::{Effects, Observation, Shared};
use crate::runtime::{self, Observed};

/// What is left of one instance on this host.
#[derive(Default)]
struct Trace<'a> {
    /// The newest container, one that runs before any that does not.
    container: Option<&'a Observed>,
    slot: Option<&'a crate::network::ObservedSlot>,
    record: Option<&'a RegistrationRecord>,
}

/// Fills `recovered` with what is observed, and writes it down; returns what was observed of each.
pub(super) async fn rebuild<E: Effects>(
    executor: &Executor,
    shared: &Shared<E>,
    epoch: &Epoch,
    recovered: &mut Recovered,
    found: &Found,
) -> HashMap<ContainerId, Observation> {
    let traces = traces(found, &recovered.pools);
    let candidates: Vec<InstanceRow> = traces
        .iter()
        .map(|(instance, trace)| candidate(instance, trace, recovered))
        .collect();
    for row in &candidates {
        executor.gate.expect(&container_of(row));
    }
    let seen = found.containers.iter().map(|c| (c.id.clone(), c.clone()));
    let seen = seen.collect();
    let live: Vec<&InstanceRow> = candidates.iter().collect();
    let observations = observe(executor, &live, Some(&seen), false).await;
    let rows: Vec<InstanceRow> = candidates
        .into_iter()
        .map(|row| {
            let observation = observations.get(&container_of(&row));
            let listed = traces[&row.instance].record.is_some();
            placed(row, observation.copied(), listed, &recovered.revisions)
        })
        .collect();
    let highest = rows.iter().map(|row| row.generation).max().unwrap_or(0);
    let floor = Epoch::first_floor(epoch.number, highest);
    epoch.set_floor(floor);
    recovered.floor = floor;
    for pool in &mut recovered.pools {
        let serves = |row: &&InstanceRow| row.instance.app == pool.app && row.serving;
        pool.target = u32::try_from(rows.iter().filter(serves).count()).unwrap_or(u32::MAX);
        pool.seq = floor;
    }
    recovered.instances = rows;
    write_down(shared, epoch, recovered).await;
    observations
}

/// By instance, of the apps that are known.
fn traces<'a>(found: &'a Found, pools: &[PoolRow]) -> BTreeMap<InstanceName, Trace<'a>> {
    let known: BTreeSet<&AppName> = pools.iter().map(|pool| &pool.app).collect();
    let mut traces: BTreeMap<InstanceName, Trace<'a>> = BTreeMap::new();
    for container in &found.containers {
        let Ok(id) = container.id.parse::<ContainerId>() else {
            continue;
        };
        if !known.contains(&id.instance.app) {
            tracing::error!(container = %id, "no manifest of its app is known; it is left alone");
            continue;
        }
        let rank = |container: &Observed| {
            let id = container.id.parse::<ContainerId>().ok();
            (
                container.task.is_some(),
                id.map_or(0, |id| id.create_generation),
            )
        };
        let trace = traces.entry(id.instance).or_default();
        if trace.container.is_none_or(|c| rank(c) < rank(container)) {
            trace.container = Some(container);
        }
    }
    for slot in found
        .slots
        .iter()
        .filter(|s| known.contains(&s.instance.app))
    {
        traces.entry(slot.instance.clone()).or_default().slot = Some(slot);
    }
    for record in found.records.iter().flat_map(|(_, records)| records) {
        if known.contains(&record.instance.app) {
            let trace = traces.entry(record.instance.clone()).or_default();
            if trace
                .record
                .is_none_or(|r| r.generation < record.generation)
            {
                trace.record = Some(record);
            }
        }
    }
    traces
}

/// The row of an instance as far as containerd, network and discovery know it.
fn candidate(instance: &InstanceName, trace: &Trace<'_>, recovered: &Recovered) -> InstanceRow {
    let id = trace
        .container
        .and_then(|c| c.id.parse::<ContainerId>().ok());
    let registered = trace.record.map_or(0, |record| record.generation);
    // Without a container there is none that could be mistaken for it.
    let create_generation = id.map_or(registered.max(1), |id| id.create_generation);
    let rootfs = trace.container.and_then(|c| c.snapshot_key.parse().ok());
    let label = trace
        .container
        .and_then(|c| c.labels.get(runtime::REVISION).cloned());
    let current = recovered.pools.iter().find(|p| p.app == instance.app);
    InstanceRow {
        instance: instance.clone(),
        generation: create_generation.max(registered),
        create_generation,
        rootfs_generation: rootfs.map_or(create_generation, |id: ContainerId| id.create_generation),
        revision: label
            .or_else(|| current.map(|pool| pool.revision.clone()))
            .unwrap_or_default(),
        phase: Phase::Failed,
        serving: false,
        from: None,
        task: None,
        address: trace.slot.and_then(|slot| slot.address()),
        registered: trace.record.is_some(),
        urgency: Urgency::Drain,
        released_ms: None,
        // The packet filter has them and goes on; who they belong to is lost with the journal.
        host_ports: Vec::new(),
        reuses: 0,
    }
}

/// Where it stands, by what container-init says.
fn placed(
    row: InstanceRow,
    observation: Option<Observation>,
    listed: bool,
    revisions: &[RevisionRow],
) -> InstanceRow {
    // What nobody registers serves as soon as it was let go.
    let unlisted = || {
        let revision = revisions
            .iter()
            .find(|r| r.app == row.instance.app && r.id == row.revision);
        let app = revision.and_then(|revision| app::parse(&revision.manifest).ok());
        app.is_some_and(|app| !app.registration.enabled)
    };
    match observation {
        Some(Observation::Connected {
            generation,
            started: true,
            over: false,
            ..
        }) if listed || unlisted() => InstanceRow {
            phase: Phase::Active,
            serving: true,
            from: Some(Warmth::Cached),
            generation: row.generation.max(generation),
            ..row
        },
        Some(Observation::Silent) if listed => InstanceRow {
            phase: Phase::Active,
            serving: true,
            ..row
        },
        Some(Observation::Connected {
            generation,
            started: false,
            armed: true,
            over: false,
        }) => InstanceRow {
            phase: Phase::Armed,
            generation: row.generation.max(generation),
            ..row
        },
        Some(Observation::Connected { generation, .. }) => InstanceRow {
            generation: row.generation.max(generation),
            ..row
        },
        _ => row,
    }
}

/// The new journal begins with what was observed.
async fn write_down<E: Effects>(shared: &Shared<E>, epoch: &Epoch, recovered: &Recovered) {
    let mut writes = Vec::new();
    for pool in &recovered.pools {
        let of_app = recovered.revisions.iter().filter(|r| r.app == pool.app);
        // The current one last: the last one that is written is the app's.
        let (current, former): (Vec<_>, Vec<_>) = of_app.partition(|r| r.id == pool.revision);
        for row in former.into_iter().chain(current) {
            let Ok(app) = app::parse(&row.manifest) else {
                continue;
            };
            let revision = Revision {
                id: row.id.clone(),
                app,
                manifest: row.manifest.clone(),
                image: row.image.clone(),
            };
            writes.push(Write::Revision(revision.into(), pool.applied_ms));
        }
        writes.push(Write::Target {
            app: pool.app.clone(),
            target: pool.target,
            seq: pool.seq,
        });
    }
    writes.extend(recovered.instances.iter().cloned().map(Write::Instance));
    writes.push(Write::Floor(recovered.floor));
    if let Some(loss) = epoch.loss() {
        writes.push(Write::Loss(crate::journal::Loss {
            rebuilt: true,
            ..loss
        }));
    }
    if let Err(failure) = shared.effects.commit(writes).await {
        tracing::error!(
            error = failure.detail,
            "what was observed is not in the journal; the next start observes again"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> InstanceRow {
        candidate(
            &InstanceName::new("web".parse().unwrap(), 3),
            &Trace::default(),
            &Recovered::default(),
        )
    }

    fn connected(armed: bool, started: bool, over: bool) -> Option<Observation> {
        Some(Observation::Connected {
            generation: 9,
            armed,
            started,
            over,
        })
    }

    #[test]
    fn what_serves_is_the_target_what_waits_waits_and_the_rest_is_kept_as_failed() {
        let place = |observation, listed| {
            let row = placed(row(), observation, listed, &[]);
            (row.phase, row.serving, row.generation)
        };
        assert_eq!(
            place(connected(true, true, false), true),
            (Phase::Active, true, 9)
        );
        assert_eq!(
            place(Some(Observation::Silent), true),
            (Phase::Active, true, 1)
        );
        assert_eq!(
            place(connected(true, false, false), false),
            (Phase::Armed, false, 9)
        );
        for (observation, listed) in [
            (connected(true, true, false), false),
            (connected(true, true, true), true),
            (connected(false, false, false), false),
            (Some(Observation::Silent), false),
            (Some(Observation::Absent), true),
            (None, false),
        ] {
            let (phase, serving, _) = place(observation, listed);
            assert_eq!(
                (phase, serving),
                (Phase::Failed, false),
                "{observation:?} {listed}"
            );
        }
    }
}
