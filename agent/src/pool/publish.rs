//! What the outside may see of a pool: a snapshot after every turn of its driver.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::{Pool, Stable};
use crate::instance::{AppName, Failure, Phase, Warmth};
use crate::network::HostPort;
use crate::task::TaskId;

/// A pool at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// The app.
    pub app: AppName,
    /// Id of the revision that new instances are made from.
    pub revision: String,
    /// What is stable.
    pub stable: Option<Stable>,
    /// The image that scale-out uses now, by digest.
    pub scale_out: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Instances wanted in service.
    pub target: u32,
    /// Sequence number of the target.
    pub seq: u64,
    /// Instances wanted at the gate.
    pub warm_armed: u32,
    /// Why somebody should look.
    pub alarm: Option<String>,
    /// By ordinal.
    pub instances: Vec<InstanceSnapshot>,
}

/// An instance at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceSnapshot {
    /// Position in the pool.
    pub ordinal: u32,
    /// Where it is.
    pub phase: Phase,
    /// Present incarnation.
    pub generation: u64,
    /// Of its container.
    pub create_generation: u64,
    /// Revision id.
    pub revision: String,
    /// Its own address.
    pub address: Option<Ipv4Addr>,
    /// Its ports of the host.
    pub host_ports: Vec<HostPort>,
    /// Address and port that clients are told, when the app is registered.
    pub endpoint: Option<(Ipv4Addr, u16)>,
    /// How warm it was when it was taken.
    pub from: Option<Warmth>,
    /// The task that moved it last.
    pub task_id: Option<TaskId>,
    /// Unix milliseconds since when it is in this phase.
    pub since_ms: u64,
    /// Why it failed, or is not registered yet.
    pub failure: Option<Failure>,
}

impl Snapshot {
    /// Instances in the given phases.
    pub fn count(&self, phases: impl Fn(Phase) -> bool) -> u32 {
        super::machine::count(self.instances.iter().filter(|i| phases(i.phase)))
    }
}

impl Pool {
    /// The pool as the outside may see it.
    pub fn snapshot(&self) -> Snapshot {
        let instances = self.slots.values().map(|slot| {
            let instance = &slot.instance;
            let registration = &instance.revision.app.registration;
            let endpoint = instance.endpoint(self.limits.host_address);
            InstanceSnapshot {
                ordinal: instance.ordinal,
                phase: instance.phase,
                generation: instance.generation,
                create_generation: instance.create_generation,
                revision: instance.revision.id.clone(),
                address: instance.address,
                host_ports: instance.host_ports.clone(),
                endpoint: endpoint.filter(|_| registration.enabled),
                from: instance.from,
                task_id: instance.task.as_ref().map(|task| task.task_id.clone()),
                since_ms: slot.since_ms,
                failure: instance.failure.clone(),
            }
        });
        let scale_out = self.scale_out(&self.revision);
        Snapshot {
            app: self.app.clone(),
            revision: self.revision.id.clone(),
            stable: self.stable.clone(),
            labels: self.revision.app.labels.clone(),
            target: self.target,
            seq: self.seq,
            warm_armed: scale_out.app.warm.armed,
            scale_out: scale_out.image.reference.clone(),
            alarm: self.alarm.clone().or_else(|| self.discovery_alarm()),
            instances: instances.collect(),
        }
    }

    /// Discovery does not do what was asked of it more than once.
    fn discovery_alarm(&self) -> Option<String> {
        let behind = |phase: Phase| {
            let slots = self.slots.values().map(|slot| &slot.instance);
            slots.filter(move |i| i.phase == phase && i.attempt > 1)
        };
        let said = |phase, count: u32, what: &str| {
            let failure = behind(phase).find_map(|instance| instance.failure.as_ref())?;
            Some(format!("{what}: {count}. {}", failure.detail))
        };
        let leaving = super::machine::count(behind(Phase::Deregistering));
        let coming = super::machine::count(behind(Phase::Registering));
        said(
            Phase::Deregistering,
            leaving,
            "instances that stay until their deregistration is acknowledged or has lapsed",
        )
        .or_else(|| {
            said(
                Phase::Registering,
                coming,
                "instances that are ready and not registered",
            )
        })
    }
}
