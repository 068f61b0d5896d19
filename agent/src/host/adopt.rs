//! At start: the journal, held against containerd, container-init, network and discovery.
//!
//! Observes first, removes what belongs to nobody, then lets the pools go on. Nothing of a known
//! instance is touched here. Without containerd the pools go on with what their inits say, and what
//! containerd has to say is brought later.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::{join, join_all};
use tokio::time::Instant;

use super::ended::recorded_end;
use super::epoch::Epoch;
use super::executor::{Executor, exited};
use super::node::{Entry, Node, Pools};
use super::registrations::{self, Listing};
use super::strays;
use super::{reboot, rebuild};
use crate::app::{self, HostTerms};
use crate::chain::chain;
use crate::instance::{AppName, ContainerId, Failure, InstanceName, Revision};
use crate::journal::{InstanceRow, Loss, Recovered, Write};
use crate::network::{Lease, LeaseState, Ledger};
use crate::pool::{
    Adopted, Effects, Event, Limits, Listed, Message, Observation, Pool, Shared, Stable,
    begin_steady_time, driver, read_clocks,
};
use crate::runtime::{Observed, RuntimeError, TaskStatus};

/// How long containerd may take to answer before the pools go on without it.
const CONTAINERD_PATIENCE: Duration = Duration::from_secs(2);
/// How long inits of running containers may take to dial again.
const DIAL_PATIENCE: Duration = Duration::from_secs(3);
/// Between two questions to a containerd that does not answer.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// The containers of ours that containerd has, by id; `None` when it does not answer.
type Seen = Option<HashMap<String, Observed>>;

/// What is true of the journal's instances.
struct Found {
    observations: HashMap<ContainerId, Observation>,
    /// How those ended that nobody asked to end.
    ends: HashMap<ContainerId, Failure>,
    /// Instances that any backend lists; `None` when one cannot be asked.
    listed: Option<BTreeSet<InstanceName>>,
}

/// Brings every pool of the journal back to life.
pub(super) async fn adopt<E: Effects>(
    executor: &Executor,
    shared: &Arc<Shared<E>>,
    pools: &Arc<Pools>,
    terms: &HostTerms,
    epoch: &Epoch,
    boot_id: &str,
    mut recovered: Recovered,
) {
    if recovered.loss.as_ref().is_some_and(|loss| !loss.rebuilt) {
        return adopt_observed(executor, shared, pools, terms, epoch, boot_id, recovered).await;
    }
    let rebooted = recovered
        .boot_id
        .as_deref()
        .is_some_and(|known| known != boot_id);
    let live = alive(&recovered.instances);
    let asked = Listing::ask(&executor.discovery);
    let (seen, mut listing) = join(containers(executor), asked).await;
    let seen = match seen {
        // Nobody knows yet whether the journal is new or lost: only containerd can tell.
        None if recovered.boot_id.is_none() && recovered.loss.is_none() && live.is_empty() => {
            Some(by_id(ask_until_answered(executor).await))
        }
        seen => seen,
    };
    let silent = seen.is_none();
    if let Some(seen) = seen.as_ref().filter(|seen| !seen.is_empty())
        && recovered.boot_id.is_none()
        && recovered.loss.is_none()
        && live.is_empty()
    {
        let reason = format!(
            "the state directory is new, but {} containers are here",
            seen.len()
        );
        let loss = Loss {
            reason,
            set_aside: None,
            since_ms: read_clocks().wall_ms,
            rebuilt: false,
        };
        epoch.lose(loss.clone(), &shared.alarms);
        recovered.loss = Some(loss);
        return adopt_observed(executor, shared, pools, terms, epoch, boot_id, recovered).await;
    }
    let observations = observe(executor, &live, seen.as_ref(), rebooted).await;
    if rebooted {
        // Clients must not find what does not run.
        listing.sweep(|_| false).await;
    }
    // Before anything is removed: the evidence lies with the containers. A reboot is no end of
    // theirs.
    let ends = match rebooted {
        true => HashMap::new(),
        false => ends(executor, &live, &observations).await,
    };
    let listed = listing.all();
    // A new or rebuilt journal knows nothing of what the packet filter may still serve.
    let knows_ports = recovered.loss.is_none()
        && (recovered.boot_id.is_some() || seen.as_ref().is_some_and(HashMap::is_empty));
    let knows_strays = recovered.loss.is_none();
    if let Some(seen) = seen.filter(|_| knows_strays) {
        let containers = seen.into_values().collect();
        let heard = listing.heard.clone();
        strays::sweep(executor, &shared.ledger, containers, heard).await;
    }
    if knows_ports {
        restore_ports(executor, &live).await;
    }
    let unheard: Vec<ContainerId> = observations
        .iter()
        .filter(|(_, observation)| **observation == Observation::Unknown)
        .map(|(id, _)| id.clone())
        .filter(|id| {
            live.iter()
                .any(|row| container_of(row) == *id && !row.phase.on_the_way_to_armed())
        })
        .collect();
    if recovered.boot_id.as_deref() != Some(boot_id) || recovered.clock_offset_ms.is_none() {
        let lost = match rebooted {
            true => reboot::lost(&recovered.instances, &observations),
            false => Vec::new(),
        };
        begin_boot(shared, boot_id, &lost).await;
        for row in lost {
            let former = recovered
                .instances
                .iter_mut()
                .find(|former| former.instance == row.instance);
            if let Some(former) = former {
                *former = row;
            }
        }
    }
    // A journal that was lost removes nothing until that is accepted.
    let unheard_backends = match recovered.loss {
        Some(_) => Vec::new(),
        None => std::mem::take(&mut listing.unheard),
    };
    let ended = match rebooted {
        true => reboot::ended(&recovered.instances),
        false => Vec::new(),
    };
    restore_leases(shared, &recovered.instances);
    revive(
        shared,
        pools,
        Node::<E>::limits(&executor.settings, terms, epoch),
        recovered,
        &Found {
            observations,
            ends,
            listed,
        },
    );
    for backend in unheard_backends {
        let later = registrations::sweep_later(backend, ended.clone(), pools.clone());
        let shutdown = shared.shutdown.clone();
        shared
            .tracker
            .spawn(async move { shutdown.run_until_cancelled(later).await });
    }
    if silent {
        let sweep = match knows_strays {
            true => Sweep::Strays(shared.ledger.clone()),
            false => Sweep::Nothing,
        };
        let later = hear_later(executor.clone(), pools.clone(), unheard, sweep);
        let shutdown = shared.shutdown.clone();
        shared
            .tracker
            .spawn(async move { shutdown.run_until_cancelled(later).await });
    }
}

/// The same for a journal that was lost: it begins with what is observed. Nothing is removed.
async fn adopt_observed<E: Effects>(
    executor: &Executor,
    shared: &Arc<Shared<E>>,
    pools: &Arc<Pools>,
    terms: &HostTerms,
    epoch: &Epoch,
    boot_id: &str,
    mut recovered: Recovered,
) {
    // Only containerd knows what is here.
    let containers = ask_until_answered(executor).await;
    let heard = Listing::ask(&executor.discovery).await.heard;
    let found = strays::find(executor, containers, heard).await;
    let observations = rebuild::rebuild(executor, shared, epoch, &mut recovered, &found).await;
    begin_boot(shared, boot_id, &[]).await;
    restore_leases(shared, &recovered.instances);
    let listed = found.records.iter().flat_map(|(_, records)| records);
    let listed = listed.map(|record| record.instance.clone()).collect();
    revive(
        shared,
        pools,
        Node::<E>::limits(&executor.settings, terms, epoch),
        recovered,
        &Found {
            observations,
            ends: HashMap::new(),
            listed: Some(listed),
        },
    );
}

fn alive(rows: &[InstanceRow]) -> Vec<&InstanceRow> {
    rows.iter()
        .filter(|row| row.released_ms.is_none())
        .collect()
}

/// From now on the journal is of this boot.
async fn begin_boot<E: Effects>(shared: &Shared<E>, boot_id: &str, lost: &[InstanceRow]) {
    if !lost.is_empty() {
        tracing::warn!(
            instances = lost.len(),
            "the host was rebooted; they are restored on their rootfs"
        );
    }
    let rows = lost.iter().cloned().map(Write::Instance);
    let writes = rows
        .chain([Write::Boot {
            id: boot_id.to_owned(),
            clock_offset_ms: begin_steady_time(None),
        }])
        .collect();
    if let Err(failure) = shared.effects.commit(writes).await {
        tracing::error!(
            error = failure.detail,
            "the boot id is not in the journal; the next start takes this for another boot"
        );
    }
}

pub(super) fn container_of(row: &InstanceRow) -> ContainerId {
    ContainerId::new(row.instance.clone(), row.create_generation)
}

async fn containers(executor: &Executor) -> Seen {
    let deadline = Instant::now() + CONTAINERD_PATIENCE;
    loop {
        match tokio::time::timeout_at(deadline, executor.runtime.list()).await {
            Ok(Ok(list)) => return Some(by_id(list)),
            Ok(Err(error @ RuntimeError::Unavailable { .. }))
                if Instant::now() + ASK_AGAIN < deadline =>
            {
                tracing::debug!(error = chain(&error), "containerd does not answer yet");
                tokio::time::sleep(ASK_AGAIN).await;
            }
            Ok(Err(error)) => {
                tracing::warn!(
                    error = chain(&error),
                    "containerd cannot be asked; pools go on with what container-init says"
                );
                return None;
            }
            Err(_) => {
                tracing::warn!(
                    "containerd does not answer; pools go on with what container-init says"
                );
                return None;
            }
        }
    }
}

/// The containers of ours, from a containerd that may come late.
async fn ask_until_answered(executor: &Executor) -> Vec<Observed> {
    loop {
        match executor.runtime.list().await {
            Ok(list) => return list,
            Err(error) => tracing::debug!(error = chain(&error), "containerd does not answer yet"),
        }
        tokio::time::sleep(ASK_AGAIN * 5).await;
    }
}

fn by_id(containers: Vec<Observed>) -> HashMap<String, Observed> {
    let by_id = containers.into_iter().map(|c| (c.id.clone(), c));
    by_id.collect()
}

fn running(seen: Option<&HashMap<String, Observed>>, id: &ContainerId) -> Option<bool> {
    let task = seen?
        .get(&id.to_string())
        .and_then(|container| container.task.as_ref());
    Some(task.is_some_and(|task| matches!(task.status, TaskStatus::Running | TaskStatus::Unknown)))
}

pub(super) async fn observe(
    executor: &Executor,
    live: &[&InstanceRow],
    seen: Option<&HashMap<String, Observed>>,
    rebooted: bool,
) -> HashMap<ContainerId, Observation> {
    let deadline = Instant::now() + DIAL_PATIENCE;
    let each = live.iter().map(|row| async move {
        let id = container_of(row);
        // After a reboot nothing runs of what ran before, whoever can be asked.
        let runs = running(seen, &id).or(rebooted.then_some(false));
        // What is not running does not dial; who never came to the gate is not waited for.
        let patience = if runs == Some(false) {
            Instant::now()
        } else {
            deadline
        };
        let observation = match executor
            .gate
            .wait(&id, "coming back to the gate", patience, |s| s.connected)
            .await
        {
            Ok(status) => Observation::Connected {
                generation: status.generation,
                armed: status.armed,
                started: status.started,
                over: status.stopped || status.stopping || status.app_exit.is_some(),
            },
            Err(_) => match runs {
                Some(true) => Observation::Silent,
                Some(false) => Observation::Absent,
                None => Observation::Unknown,
            },
        };
        (id, observation)
    });
    join_all(each).await.into_iter().collect()
}

/// How those ended that nobody asked to, where they or their inits say it.
async fn ends(
    executor: &Executor,
    live: &[&InstanceRow],
    observations: &HashMap<ContainerId, Observation>,
) -> HashMap<ContainerId, Failure> {
    let wanted = live.iter().filter(|row| !row.phase.going_down());
    let mut ends = HashMap::new();
    for id in wanted.map(|row| container_of(row)) {
        let over = matches!(
            observations.get(&id),
            Some(Observation::Absent | Observation::Connected { over: true, .. })
        );
        if !over {
            continue;
        }
        let said = executor.gate.status(&id).and_then(|status| status.app_exit);
        let end = match said {
            Some(exit) => Some(exited(&exit)),
            None => recorded_end(&executor.directories, &id, None).await,
        };
        if let Some(failure) = end {
            tracing::warn!(container = %id, code = failure.code, end = failure.detail, "ended while the agent was away");
            ends.insert(id, failure);
        }
    }
    ends
}

/// The packet filter as the journal says. Without it instances go on; only their host ports and the
/// masquerade do not work.
async fn restore_ports(executor: &Executor, live: &[&InstanceRow]) {
    let ports = live.iter().filter_map(|row| {
        let ports = row.host_ports.clone();
        Some((row.instance.clone(), row.address?, ports))
    });
    if let Err(error) = executor.network.restore_ports(ports.collect()).await {
        tracing::error!(
            error = chain(&error),
            "the packet filter cannot be set up: host ports and masquerade do not work"
        );
    }
}

fn restore_leases<E>(shared: &Shared<E>, instances: &[InstanceRow]) {
    let held: BTreeSet<_> = instances
        .iter()
        .filter(|row| row.released_ms.is_none())
        .filter_map(|row| row.address)
        .collect();
    let lease = |row: &InstanceRow| {
        let address = row.address?;
        let state = match row.released_ms {
            None => LeaseState::Held,
            // Somebody else has it since: the old claim is void.
            Some(_) if held.contains(&address) => return None,
            Some(at_ms) => LeaseState::Released { at_ms },
        };
        Some(Lease {
            instance: row.instance.clone(),
            address,
            state,
        })
    };
    let mut released = BTreeMap::new();
    let mut leases = Vec::new();
    for lease in instances.iter().filter_map(lease) {
        match lease.state {
            LeaseState::Held => leases.push(lease),
            // Of two former holders the later one keeps its claim.
            LeaseState::Released { at_ms } => {
                let newest = released
                    .entry(lease.address)
                    .or_insert((at_ms, lease.clone()));
                if at_ms > newest.0 {
                    *newest = (at_ms, lease);
                }
            }
        }
    }
    leases.extend(released.into_values().map(|(_, lease)| lease));
    let mut ledger = shared
        .ledger
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    for row in instances {
        ledger.restore_ports(&row.instance, row.host_ports.clone(), row.released_ms);
    }
    for lease in leases {
        if let Err(conflict) = ledger.restore([lease]) {
            tracing::error!(
                error = chain(&conflict),
                "the journal's addresses contradict each other"
            );
        }
    }
}

fn revive<E: Effects>(
    shared: &Arc<Shared<E>>,
    pools: &Pools,
    limits: Limits,
    recovered: Recovered,
    found: &Found,
) {
    let mut revisions: BTreeMap<AppName, BTreeMap<String, Arc<Revision>>> = BTreeMap::new();
    for row in recovered.revisions {
        match app::parse(&row.manifest) {
            Ok(app) => {
                let revision = Revision {
                    id: row.id.clone(),
                    app,
                    manifest: row.manifest,
                    image: row.image,
                };
                revisions
                    .entry(row.app)
                    .or_default()
                    .insert(row.id, Arc::new(revision));
            }
            Err(refused) => {
                tracing::error!(app = %row.app, revision = row.id, %refused, "a manifest of the journal is refused by this nodeagent");
            }
        }
    }
    for pool in recovered.pools {
        let all = revisions.remove(&pool.app).unwrap_or_default();
        let Some(revision) = all.get(&pool.revision).cloned() else {
            tracing::error!(app = %pool.app, revision = pool.revision, "the app's revision is missing; its instances are left alone");
            continue;
        };
        let name = pool.app.clone();
        let applied_ms = pool.applied_ms;
        let of_app = |row: &&InstanceRow| row.instance.app == name;
        let observed = |row: &InstanceRow| {
            let observation = found
                .observations
                .get(&container_of(row))
                .copied()
                .unwrap_or(Observation::Absent);
            let listed = match &found.listed {
                Some(all) if !all.contains(&row.instance) => Listed::No,
                _ => Listed::Yes,
            };
            (row.clone(), observation, listed)
        };
        let instances = recovered
            .instances
            .iter()
            .filter(of_app)
            .map(observed)
            .collect();
        let ends = recovered
            .instances
            .iter()
            .filter(of_app)
            .filter_map(|row| {
                let end = found.ends.get(&container_of(row))?;
                Some((row.instance.ordinal, end.clone()))
            })
            .collect();
        let tasks = recovered
            .open_tasks
            .iter()
            .filter(|task| task.app == name)
            .cloned()
            .collect();
        let stable = recovered.stable.get(&name).and_then(|row| {
            Some(Stable {
                revision: all.get(&row.revision)?.clone(),
                evidence: row.evidence.clone(),
                since_ms: row.since_ms,
            })
        });
        let adopted = Adopted {
            pool,
            revision: revision.clone(),
            stable,
            revisions: all,
            instances,
            ends,
            tasks,
        };
        let (pool, actions) = {
            let mut ledger = shared
                .ledger
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            Pool::adopt(adopted, limits, read_clocks(), &mut ledger)
        };
        let handle = driver::spawn(pool, actions, shared.clone());
        pools.put(Entry {
            handle,
            revision,
            applied_ms,
        });
    }
}

/// What is removed when containerd answers at last.
enum Sweep {
    /// What belongs to no instance.
    Strays(Arc<Mutex<Ledger>>),
    /// The journal was lost: it does not know what belongs to nobody.
    Nothing,
}

/// Containerd is asked until it answers; of `unheard`, what it does not know has ended.
async fn hear_later(
    executor: Executor,
    pools: Arc<Pools>,
    unheard: Vec<ContainerId>,
    sweep: Sweep,
) {
    let containers = ask_until_answered(&executor).await;
    let seen = by_id(containers.clone());
    for id in unheard {
        let gone = running(Some(&seen), &id) == Some(false);
        if let Some(handle) = pools.handle(&id.instance.app).filter(|_| gone) {
            let gone = || {
                let detail = format!("{id} was not there any more when containerd came back");
                Failure::new("gone", detail)
            };
            let recorded = recorded_end(&executor.directories, &id, None).await;
            let failure = recorded.unwrap_or_else(gone);
            tracing::warn!(container = %id, code = failure.code, end = failure.detail, "ended while containerd was away");
            let event = Event::Exited {
                ordinal: id.instance.ordinal,
                create_generation: id.create_generation,
                failure,
            };
            // A pool that has ended has no instances.
            let _ = handle.messages.send(Message::Happened(event));
        }
    }
    match sweep {
        Sweep::Strays(ledger) => {
            let heard = Listing::ask(&executor.discovery).await.heard;
            strays::sweep(&executor, &ledger, containers, heard).await;
        }
        Sweep::Nothing => {}
    }
}
