//! The life of one instance, pure: `step(event) -> next effect`. No I/O, no clock, no log.
//!
//! ```text
//! absent ─create─► networking ─► creating ─► arming ─► armed
//!                       │            │          │        │ activate
//!                       └─ activate ─┴──────────┴──► starting ─► probing ─► registering ─► active
//!                                                        │          │            │           │
//!                                                        └──────────┴─deactivate─┴───────────┤
//!   reinstate: deregistering, draining ──► registering                                       ▼
//!   active ─withdraw─► withdrawing ──► unready ─reinstate─► registering
//!   registering, active, unready ─restart─► leaving ─► emptying ─► restarting ─► probing
//! absent ◄─ releasing ◄─ removing ◄─ stopping ◄─ draining ◄───────────────────────── deregistering
//!
//! any of the upper rows ── fail, exited ──► failed ── discard ──► deregistering | stopping
//! after a reboot: lost ── restore ──► networking (same rootfs and address) │ discard
//! ```
//! A phase that is not resting (`armed`, `failed`, `lost`, and `active` without probes) *is* its effect:
//! entering it means that the effect has to be performed, and `done` leaves it. `active` and
//! `unready` are left by an edge that the pool plans (its intent comes first), once their effect has
//! said that the app has stopped being ready, is ready again, or is not alive. Going down
//! never fails: an effect
//! that fails there, and a registration, is tried again until it succeeds; on the way to the gate
//! so is one whose failure says that waiting helps.
//!
//! What the operator reads is [`State`], the words of the design; what the machine needs is
//! [`Phase`].

use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use super::Revision;
use crate::app::{NetworkMode, Protocol, RegisteredAddress};
use crate::network::{Grant, HostPort};
use crate::task::TaskContext;

/// Failure of a readiness probe; while in service it passes.
pub const NOT_READY: &str = "not_ready";
/// Failure of a startup probe.
pub const NOT_STARTED: &str = "not_started";
/// Failure of a liveness probe.
pub const NOT_ALIVE: &str = "not_alive";

/// Where an instance is. Every phase but `Armed`, `Active`, `Failed` and `Lost` is an effect under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Network namespace, veth and address are being made.
    Networking,
    /// Snapshot, container and task are being created.
    Creating,
    /// The container is being started, container-init starts the in-container agents.
    Arming,
    /// Rests at the gate.
    Armed,
    /// `start` went to container-init.
    Starting,
    /// The app runs and is not ready yet.
    Probing,
    /// Ready; every required discovery backend has to acknowledge this generation.
    Registering,
    /// Rests in service, watched by its probes.
    Active,
    /// Stopped being ready: being taken out of discovery, the app goes on.
    Withdrawing,
    /// Out of discovery until it is ready again.
    Unready,
    /// Being taken out of discovery for a restart in place; the app goes on.
    Leaving,
    /// Out of discovery for a restart in place; clients may still come until the propagation bound is
    /// over.
    Emptying,
    /// The app is being ended and executed again in its container.
    Restarting,
    /// Being taken out of discovery.
    Deregistering,
    /// Deregistered; clients may still come until the propagation bound is over.
    Draining,
    /// The app and the in-container agents are being ended.
    Stopping,
    /// Task, container, snapshot and directories are being removed.
    Removing,
    /// Network namespace and address are being given back.
    Releasing,
    /// Rests until it is discarded; the reason is in [`Instance::failure`].
    Failed,
    /// The host was rebooted: nothing runs of it, its rootfs and its address are kept. Rests until
    /// it is restored or discarded.
    Lost,
}

impl Phase {
    /// All phases, in the order of an undisturbed life.
    pub const ALL: [Self; 20] = [
        Self::Networking,
        Self::Creating,
        Self::Arming,
        Self::Armed,
        Self::Starting,
        Self::Probing,
        Self::Registering,
        Self::Active,
        Self::Withdrawing,
        Self::Unready,
        Self::Leaving,
        Self::Emptying,
        Self::Restarting,
        Self::Deregistering,
        Self::Draining,
        Self::Stopping,
        Self::Removing,
        Self::Releasing,
        Self::Failed,
        Self::Lost,
    ];

    /// Stable word for the journal and the trail.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Networking => "networking",
            Self::Creating => "creating",
            Self::Arming => "arming",
            Self::Armed => "armed",
            Self::Starting => "starting",
            Self::Probing => "probing",
            Self::Registering => "registering",
            Self::Active => "active",
            Self::Withdrawing => "withdrawing",
            Self::Unready => "unready",
            Self::Leaving => "leaving",
            Self::Emptying => "emptying",
            Self::Restarting => "restarting",
            Self::Deregistering => "deregistering",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
            Self::Removing => "removing",
            Self::Releasing => "releasing",
            Self::Failed => "failed",
            Self::Lost => "lost",
        }
    }

    /// The phase that [`as_str`](Self::as_str) names.
    pub fn from_name(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.as_str() == word)
    }

    /// The effect that this phase waits for; `None` for the resting ones. That of `Active` depends
    /// on the app: [`Instance::effect`].
    fn effect(self) -> Option<EffectKind> {
        Some(match self {
            Self::Withdrawing => EffectKind::Deregister,
            Self::Unready => EffectKind::Recover,
            Self::Leaving => EffectKind::Deregister,
            Self::Emptying => EffectKind::Drain,
            Self::Restarting => EffectKind::Restart,
            Self::Networking => EffectKind::Network,
            Self::Creating => EffectKind::Create,
            Self::Arming => EffectKind::Arm,
            Self::Starting => EffectKind::Start,
            Self::Probing => EffectKind::Ready,
            Self::Registering => EffectKind::Register,
            Self::Deregistering => EffectKind::Deregister,
            Self::Draining => EffectKind::Drain,
            Self::Stopping => EffectKind::Stop,
            Self::Removing => EffectKind::Remove,
            Self::Releasing => EffectKind::Release,
            Self::Armed | Self::Active | Self::Failed | Self::Lost => return None,
        })
    }

    /// On its way to `absent`, with no way back but `reinstate`.
    pub fn going_down(self) -> bool {
        matches!(
            self,
            Self::Deregistering
                | Self::Draining
                | Self::Stopping
                | Self::Removing
                | Self::Releasing
        )
    }

    /// On its way to the gate.
    pub fn on_the_way_to_armed(self) -> bool {
        matches!(self, Self::Networking | Self::Creating | Self::Arming)
    }

    /// The app runs and clients may find it, or would if it were ready: it can be started again in
    /// its container.
    pub fn in_service(self) -> bool {
        matches!(
            self,
            Self::Registering | Self::Active | Self::Withdrawing | Self::Unready
        )
    }

    /// On its way out of service to be started again, which was not begun yet.
    pub fn before_restart(self) -> bool {
        matches!(self, Self::Leaving | Self::Emptying)
    }

    /// The operator's word.
    pub fn state(self) -> State {
        match self {
            Self::Networking | Self::Creating | Self::Arming => State::Arming,
            Self::Armed => State::Armed,
            Self::Starting | Self::Probing => State::Starting,
            Self::Registering => State::Ready,
            Self::Active => State::Active,
            Self::Withdrawing | Self::Unready => State::Unready,
            Self::Leaving | Self::Emptying | Self::Restarting => State::Restarting,
            Self::Deregistering | Self::Draining => State::Draining,
            Self::Stopping => State::Stopping,
            Self::Removing | Self::Releasing | Self::Lost => State::Stopped,
            Self::Failed => State::Failed,
        }
    }
}

/// What is done to the host for one instance; also the name of the step in the trail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EffectKind {
    /// Network namespace, veth, address.
    Network,
    /// Snapshot, container, task.
    Create,
    /// Task started, in-container agents up, container-init at the gate.
    Arm,
    /// `start` to container-init, the app's process exists.
    Start,
    /// The app is ready by its readiness.
    Ready,
    /// Every required discovery backend acknowledged.
    Register,
    /// In service: fails when it is not ready (for now) or not alive (for good); never succeeds.
    Watch,
    /// It is ready again.
    Recover,
    /// The app was ended with all that belonged to it, what it left was removed, and it was executed
    /// again in its container.
    Restart,
    /// As `Restart` for an in-container agent, which is ready again; the app does not notice.
    RestartAgent,
    /// Out of discovery.
    Deregister,
    /// The propagation bound has passed.
    Drain,
    /// Nobody is left in the container.
    Stop,
    /// Task, container, snapshot, directories are absent.
    Remove,
    /// Network namespace and veth are absent.
    Release,
}

impl EffectKind {
    /// Every kind, in the order of a life.
    pub const ALL: [Self; 13] = [
        Self::Network,
        Self::Create,
        Self::Arm,
        Self::Start,
        Self::Ready,
        Self::Register,
        Self::Restart,
        Self::RestartAgent,
        Self::Deregister,
        Self::Drain,
        Self::Stop,
        Self::Remove,
        Self::Release,
    ];

    /// Stable word for the trail.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Create => "create",
            Self::Arm => "arm",
            Self::Start => "start",
            Self::Ready => "ready",
            Self::Register => "register",
            Self::Watch => "watch",
            Self::Recover => "recover",
            Self::Restart => "restart",
            Self::RestartAgent => "restart-agent",
            Self::Deregister => "deregister",
            Self::Drain => "drain",
            Self::Stop => "stop",
            Self::Remove => "remove",
            Self::Release => "release",
        }
    }
}

/// What an operator reads: the words of the design's picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// On its way to the gate.
    Arming,
    /// At the gate.
    Armed,
    /// The app was let go and is not ready.
    Starting,
    /// Ready, not yet acknowledged by discovery.
    Ready,
    /// In service.
    Active,
    /// It stopped being ready: out of discovery until it is again.
    Unready,
    /// Being started again in its container: leaving discovery, out of it, or not ready yet.
    Restarting,
    /// Out of discovery, still serving.
    Draining,
    /// Being ended.
    Stopping,
    /// Ended, being removed.
    Stopped,
    /// Failed, waits to be discarded.
    Failed,
}

impl State {
    /// Word for documents and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Arming => "arming",
            Self::Armed => "armed",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Active => "active",
            Self::Unready => "unready",
            Self::Restarting => "restarting",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

/// Why something did not work, for people and programs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Failure {
    /// Stable word: `addresses_exhausted`, `not_ready`, `exited`, `runtime_unavailable`, ...
    pub code: &'static str,
    /// A sentence with the object, the value and what is true now.
    pub detail: String,
    /// Whether the same effect may succeed later although nobody changes anything here.
    pub retry: Retry,
}

/// Whether waiting helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// What was asked is away (containerd, a disk that is full): the effect is tried again.
    Later,
    /// The instance has failed.
    Never,
}

/// Code of an app that ended by itself, with code 0.
pub const COMPLETED: &str = "completed";
/// Code of an instance that was stopped although discovery had not acknowledged that it is out.
pub const UNACKNOWLEDGED: &str = "unacknowledged";

impl Failure {
    /// A failure with its stable code and its sentence.
    pub fn new(code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            retry: Retry::Never,
        }
    }

    /// The same failure, of something that is away for now.
    pub fn passing(self) -> Self {
        Self {
            retry: Retry::Later,
            ..self
        }
    }
}

/// How much of the start was paid when an activation took the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Warmth {
    /// Waited at the gate.
    Armed,
    /// Only the image was there.
    Cached,
}

impl Warmth {
    /// Word for documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Armed => "armed",
            Self::Cached => "cached",
        }
    }

    /// The warmth that [`as_str`](Self::as_str) names.
    pub fn from_name(word: &str) -> Option<Self> {
        [Self::Armed, Self::Cached]
            .into_iter()
            .find(|w| w.as_str() == word)
    }
}

/// Whether clients may be using the instance when it is taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// Deregister, wait the bound, then stop.
    Drain,
    /// Deregister and stop at once: the app is gone.
    Now,
    /// As `Now`, and no longer than one attempt: the caller said `--force`.
    Force,
}

/// One instance of the pool.
#[derive(Debug, Clone)]
pub struct Instance {
    /// Position in the pool.
    pub ordinal: u32,
    /// Where it is.
    pub phase: Phase,
    /// Present incarnation.
    pub generation: u64,
    /// Generation of the create: part of the container's id.
    pub create_generation: u64,
    /// Generation of the create that made the rootfs: part of the snapshot's key. Older than
    /// `create_generation` when the rootfs was kept.
    pub rootfs_generation: u64,
    /// What it was made from.
    pub revision: Arc<Revision>,
    /// Its address; `None` in the host's network.
    pub address: Option<Ipv4Addr>,
    /// Its ports of the host.
    pub host_ports: Vec<HostPort>,
    /// Meant to be in service, as opposed to waiting.
    pub serving: bool,
    /// How warm it was when it was taken into service.
    pub from: Option<Warmth>,
    /// The task that put it into service, for its environment and its registration.
    pub task: Option<TaskContext>,
    /// A backend may know it: set before the first registration is sent.
    pub registered: bool,
    /// How it is being taken out.
    pub urgency: Urgency,
    /// Why it failed, or why it is being removed.
    pub failure: Option<Failure>,
    /// Times that its app was started again in this container.
    pub reuses: u32,
    /// Attempts at the present effect, from 1.
    pub attempt: u32,
    /// Its liveness probe failed: it is on its way out and is not taken back.
    pub unhealthy: bool,
    /// `terminationGracePeriodSeconds` of the probe that failed, when it has one.
    pub probe_grace: Option<Duration>,
}

/// What an instance that is in service, or was until its readiness was lost, should do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Leave discovery: it is not ready.
    Withdraw,
    /// Come back into discovery: it is ready again.
    Return,
    /// Be ended: it is not alive.
    End,
}

/// What happens to an instance. Named like the edges of the picture.
#[derive(Debug, Clone)]
pub enum Event {
    /// The effect of the present phase succeeded.
    Done,
    /// The effect of the present phase failed.
    Fail(Failure),
    /// The app or an essential process ended, or the whole container did.
    Exited(Failure),
    /// An activation takes it; the generation is the activation's.
    Activate {
        /// The instance's new generation.
        generation: u64,
        /// The task, when one asked (else the pool heals itself).
        task: Option<TaskContext>,
    },
    /// It is no longer wanted in service, nobody used it yet: it goes on waiting.
    Unserve,
    /// It is taken out of service.
    Deactivate {
        /// Whether clients are waited for.
        urgency: Urgency,
        /// The task that takes it out, when one did: the trail is its.
        task: Option<TaskContext>,
    },
    /// It has stopped being ready.
    Withdraw,
    /// Its app is started again in its container.
    Restart {
        /// The instance's new generation.
        generation: u64,
        /// Whether clients are waited for.
        urgency: Urgency,
        /// The task that asked.
        task: TaskContext,
    },
    /// It is wanted again before `stop` was sent, is ready again, or is not restarted after all.
    Reinstate {
        /// The instance's new generation.
        generation: u64,
        /// The task that wants it.
        task: Option<TaskContext>,
    },
    /// It is removed: failed, superfluous or of an old revision.
    Discard,
    /// A new container on its kept rootfs, with its address.
    Restore {
        /// The instance's new generation.
        generation: u64,
    },
}

/// What a step leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing to do now.
    Rest,
    /// Perform the effect of the (new) phase.
    Perform(EffectKind),
    /// Perform the same effect again, after a pause.
    Again(EffectKind),
    /// Nothing is left of it.
    Gone,
}

/// An event that has no edge in the present phase. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denied {
    /// The phase that has no such edge.
    pub phase: Phase,
    /// The event.
    pub event: &'static str,
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "an instance that is {} has no edge {:?}",
            self.phase.as_str(),
            self.event
        )
    }
}

impl Event {
    /// The edge's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Fail(_) => "fail",
            Self::Exited(_) => "exited",
            Self::Activate { .. } => "activate",
            Self::Unserve => "unserve",
            Self::Deactivate { .. } => "deactivate",
            Self::Withdraw => "withdraw",
            Self::Restart { .. } => "restart",
            Self::Reinstate { .. } => "reinstate",
            Self::Discard => "discard",
            Self::Restore { .. } => "restore",
        }
    }
}

impl Instance {
    /// A new incarnation, in its first phase.
    pub fn create(ordinal: u32, generation: u64, revision: Arc<Revision>, grant: Grant) -> Self {
        Self {
            ordinal,
            phase: Self::first_phase(grant.address),
            generation,
            create_generation: generation,
            rootfs_generation: generation,
            revision,
            address: grant.address,
            host_ports: grant.host_ports,
            serving: false,
            from: None,
            task: None,
            registered: false,
            urgency: Urgency::Drain,
            failure: None,
            reuses: 0,
            attempt: 1,
            unhealthy: false,
            probe_grace: None,
        }
    }

    /// The effect of its phase; `None` when it rests. In service only who has probes is watched.
    pub fn effect(&self) -> Option<EffectKind> {
        let app = &self.revision.app;
        let probed = app.steady_readiness().is_some() || app.liveness.is_some();
        match self.phase {
            Phase::Active => probed.then_some(EffectKind::Watch),
            phase => phase.effect(),
        }
    }

    /// What its probes have found and nothing was done about yet.
    pub fn wish(&self) -> Option<Wish> {
        let retry = self.failure.as_ref().map(|failure| failure.retry);
        match (self.phase, retry) {
            (Phase::Active | Phase::Unready, _) if self.unhealthy => Some(Wish::End),
            (Phase::Active, Some(_)) => Some(Wish::Withdraw),
            (Phase::Unready, None) => Some(Wish::Return),
            _ => None,
        }
    }

    /// Budget of its stop.
    pub fn termination_grace(&self) -> Duration {
        self.probe_grace
            .unwrap_or(self.revision.app.termination_grace)
    }

    fn first_phase(address: Option<Ipv4Addr>) -> Phase {
        if address.is_some() {
            Phase::Networking
        } else {
            Phase::Creating
        }
    }

    /// Address and port that clients are told; `None` while the address is not known.
    pub fn endpoint(&self, host_address: Option<Ipv4Addr>) -> Option<(Ipv4Addr, u16)> {
        let app = &self.revision.app;
        let port = app.registration.port;
        if app.network == NetworkMode::Host {
            return Some((host_address?, port));
        }
        if app.registration.address != Some(RegisteredAddress::Host) {
            return Some((self.address?, port));
        }
        let leads_there = |p: &&HostPort| (p.protocol, p.container_port) == (Protocol::Tcp, port);
        let host_port = self.host_ports.iter().find(leads_there)?;
        Some((host_port.address.or(host_address)?, host_port.port))
    }

    /// One edge of the picture.
    ///
    /// # Errors
    /// [`Denied`] when the phase has no such edge; the instance is unchanged.
    pub fn step(&mut self, event: Event) -> Result<Next, Denied> {
        let denied = Denied {
            phase: self.phase,
            event: event.name(),
        };
        match event {
            Event::Done => self.done().ok_or(denied),
            Event::Fail(failure) => self.fail(failure).ok_or(denied),
            Event::Exited(failure) => self.exited(failure).ok_or(denied),
            Event::Activate { generation, task } => {
                let from = match self.phase {
                    Phase::Armed => Warmth::Armed,
                    phase if phase.on_the_way_to_armed() && !self.serving => Warmth::Cached,
                    _ => return Err(denied),
                };
                self.serving = true;
                self.generation = generation;
                self.task = task;
                self.from = Some(from);
                Ok(match self.phase {
                    Phase::Armed => self.enter(Phase::Starting),
                    _ => Next::Rest,
                })
            }
            Event::Unserve => {
                let waits = self.phase.on_the_way_to_armed() || self.phase == Phase::Lost;
                if !(waits && self.serving) {
                    return Err(denied);
                }
                self.serving = false;
                self.task = None;
                self.from = None;
                Ok(Next::Rest)
            }
            Event::Deactivate { urgency, task } => match self.phase {
                Phase::Starting
                | Phase::Probing
                | Phase::Registering
                | Phase::Active
                | Phase::Withdrawing
                | Phase::Unready
                | Phase::Leaving
                | Phase::Emptying
                | Phase::Restarting => {
                    self.serving = false;
                    self.task = task;
                    Ok(self.take_out(urgency))
                }
                Phase::Deregistering | Phase::Draining if urgency != Urgency::Drain => {
                    self.urgency = urgency;
                    Ok(match self.phase {
                        Phase::Draining => self.enter(Phase::Stopping),
                        _ => Next::Rest,
                    })
                }
                _ => Err(denied),
            },
            Event::Withdraw => match self.phase {
                Phase::Active if self.registered => Ok(self.enter(Phase::Withdrawing)),
                Phase::Active => Ok(self.enter(Phase::Unready)),
                _ => Err(denied),
            },
            Event::Restart {
                generation,
                urgency,
                task,
            } => {
                if !self.phase.in_service() || self.unhealthy {
                    return Err(denied);
                }
                self.generation = generation;
                self.urgency = urgency;
                self.task = Some(task);
                self.failure = None;
                self.reuses += 1;
                Ok(self.enter(match self.registered {
                    true => Phase::Leaving,
                    false => Phase::Restarting,
                }))
            }
            Event::Reinstate { generation, task } => {
                let back = match self.phase {
                    phase if phase.before_restart() => {
                        self.reuses = self.reuses.saturating_sub(1);
                        true
                    }
                    Phase::Deregistering | Phase::Draining => {
                        self.urgency == Urgency::Drain && !self.unhealthy
                    }
                    Phase::Unready => !self.unhealthy,
                    _ => false,
                };
                if !back {
                    return Err(denied);
                }
                self.serving = true;
                self.generation = generation;
                self.task = task;
                Ok(self.go_into_service())
            }
            Event::Discard => match self.phase {
                Phase::Failed | Phase::Lost => Ok(self.take_out(Urgency::Now)),
                Phase::Armed => Ok(self.enter(Phase::Stopping)),
                phase if phase.on_the_way_to_armed() => Ok(self.enter(Phase::Stopping)),
                _ => Err(denied),
            },
            Event::Restore { generation } => {
                if self.phase != Phase::Lost {
                    return Err(denied);
                }
                self.generation = generation;
                self.create_generation = generation;
                self.from = self.serving.then_some(Warmth::Cached);
                Ok(self.enter(Self::first_phase(self.address)))
            }
        }
    }

    fn done(&mut self) -> Option<Next> {
        Some(match self.phase {
            Phase::Networking => self.enter(Phase::Creating),
            Phase::Creating => self.enter(Phase::Arming),
            Phase::Arming if self.serving => self.enter(Phase::Starting),
            Phase::Arming => self.enter(Phase::Armed),
            Phase::Starting => self.enter(Phase::Probing),
            Phase::Probing => self.go_into_service(),
            Phase::Registering => self.enter(Phase::Active),
            // Still `registered`: who takes it out waits for clients that found it a moment ago.
            Phase::Withdrawing => self.enter(Phase::Unready),
            Phase::Unready => {
                self.failure = None;
                Next::Rest
            }
            Phase::Leaving if self.urgency == Urgency::Drain => self.enter(Phase::Emptying),
            Phase::Leaving | Phase::Emptying => {
                self.registered = false;
                self.failure = None;
                self.enter(Phase::Restarting)
            }
            Phase::Restarting => self.enter(Phase::Probing),
            Phase::Deregistering => {
                self.registered = false;
                self.failure.take_if(|failure| failure.code == "discovery");
                self.enter(match self.urgency {
                    Urgency::Drain => Phase::Draining,
                    Urgency::Now | Urgency::Force => Phase::Stopping,
                })
            }
            Phase::Draining => self.enter(Phase::Stopping),
            Phase::Stopping => self.enter(Phase::Removing),
            Phase::Removing if self.address.is_some() => self.enter(Phase::Releasing),
            Phase::Removing | Phase::Releasing => Next::Gone,
            Phase::Armed | Phase::Active | Phase::Failed | Phase::Lost => return None,
        })
    }

    fn fail(&mut self, failure: Failure) -> Option<Next> {
        match self.phase {
            // The caller would not wait: discovery forgets it without being asked again.
            Phase::Deregistering if self.urgency == Urgency::Force => {
                let detail = format!("stopped by --force all the same: {}", failure.detail);
                self.failure = Some(Failure::new(UNACKNOWLEDGED, detail));
                Some(self.enter(Phase::Stopping))
            }
            // As there, but it is registered anew.
            Phase::Leaving if self.urgency != Urgency::Drain => Some(self.enter(Phase::Restarting)),
            Phase::Armed | Phase::Failed | Phase::Lost => None,
            Phase::Active | Phase::Unready => {
                if failure.retry == Retry::Never {
                    self.unhealthy = true;
                    self.note_grace(&failure);
                }
                self.failure = Some(failure);
                Some(Next::Rest)
            }
            // The app is well; discovery is not. It serves whoever knows it, and is not counted.
            phase
                if matches!(phase, Phase::Registering | Phase::Withdrawing)
                    || phase.before_restart()
                    || phase.going_down() =>
            {
                self.again(failure)
            }
            phase
                if (phase.on_the_way_to_armed() || phase == Phase::Restarting)
                    && failure.retry == Retry::Later =>
            {
                self.again(failure)
            }
            _ => {
                self.note_grace(&failure);
                self.failure = Some(failure);
                Some(self.enter(Phase::Failed))
            }
        }
    }

    /// A probe may have a grace of its own for the stop after its failure.
    fn note_grace(&mut self, failure: &Failure) {
        let app = &self.revision.app;
        let vital = match failure.code {
            NOT_ALIVE => &app.liveness,
            NOT_STARTED => &app.startup,
            _ => &None,
        };
        self.probe_grace = vital.as_ref().and_then(|vital| vital.termination_grace);
    }

    fn go_into_service(&mut self) -> Next {
        if self.revision.app.registration.enabled {
            self.registered = true;
            self.enter(Phase::Registering)
        } else {
            self.enter(Phase::Active)
        }
    }

    fn again(&mut self, failure: Failure) -> Option<Next> {
        self.failure = Some(failure);
        self.attempt += 1;
        self.effect().map(Next::Again)
    }

    fn exited(&mut self, failure: Failure) -> Option<Next> {
        match self.phase {
            Phase::Failed | Phase::Lost | Phase::Stopping | Phase::Removing | Phase::Releasing => {
                None
            }
            Phase::Deregistering => {
                if self.urgency == Urgency::Drain {
                    self.urgency = Urgency::Now;
                }
                self.failure = Some(failure);
                Some(Next::Rest)
            }
            Phase::Draining => {
                self.failure = Some(failure);
                Some(self.enter(Phase::Stopping))
            }
            _ => {
                self.failure = Some(failure);
                Some(self.enter(Phase::Failed))
            }
        }
    }

    fn take_out(&mut self, urgency: Urgency) -> Next {
        self.urgency = urgency;
        self.enter(if self.registered {
            Phase::Deregistering
        } else {
            Phase::Stopping
        })
    }

    fn enter(&mut self, phase: Phase) -> Next {
        self.phase = phase;
        self.attempt = 1;
        match phase {
            Phase::Active | Phase::Armed | Phase::Starting | Phase::Probing => self.failure = None,
            Phase::Failed => self.serving = false,
            _ => {}
        }
        self.effect().map_or(Next::Rest, Next::Perform)
    }
}
