//! Effects on the real host. Each observes before it acts, so that a second time changes nothing.
//!
//! The warm path is `start`, `ready`, `register`: a frame to container-init, a probe, a write to
//! discovery. Containerd, runc and netlink are reached from nowhere else than `network`, `create`,
//! `arm`, `remove` and `release`, and from `stop` when container-init does not answer.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::commands::Command;
use super::failure::failure;
use super::predecessors::Predecessors;
use super::volumes;
use crate::app::{App, Probe};
use crate::chain::chain;
use crate::config::Settings;
use crate::discovery::{Backends, RegistrationRecord};
use crate::gate::{Adopt, Directories, Exit, Gate, GateError, LookKind, Memory, Start, Status};
use crate::images::Images;
use crate::instance::machine::{COMPLETED, NOT_ALIVE, NOT_READY, NOT_STARTED};
use crate::instance::probe::{AttemptFailed, Inside, Place};
use crate::instance::spec::HostFacts;
use crate::instance::{ContainerId, EffectKind, Failure, Instance, InstanceName, Phase, probe};
use crate::journal::{Journal, Write};
use crate::network::{Network, SlotGrant};
use crate::pool::{Effect, Effects};
use crate::runtime::{Containerd, TaskStatus};

/// How long container-init may take to say that it executed the app.
pub(super) const START_DEADLINE: Duration = Duration::from_secs(10);
/// How long an init that should be at the gate may take to dial (again).
const DIAL_DEADLINE: Duration = Duration::from_secs(3);
/// Beyond the grace of a stop: container-init's own work.
const STOP_MARGIN: Duration = Duration::from_secs(2);
/// Beyond the readiness of the in-container agents: runc's and container-init's own work.
const ARM_MARGIN: Duration = Duration::from_secs(30);

/// Performs effects on this host.
#[derive(Clone)]
pub struct Executor {
    pub(super) settings: Arc<Settings>,
    pub(super) journal: Arc<Journal>,
    pub(super) runtime: Containerd,
    pub(super) images: Images,
    pub(super) gate: Gate,
    pub(super) directories: Arc<Directories>,
    pub(super) network: Arc<Network>,
    pub(super) discovery: Arc<Backends>,
    pub(super) facts: HostFacts,
    pub(super) predecessors: Arc<Predecessors>,
    /// Address under which clients reach the host, when it is known.
    pub(super) host_address: Option<Ipv4Addr>,
}

impl Effects for Executor {
    fn commit(
        &self,
        writes: Vec<Write>,
    ) -> impl Future<Output = Result<(), Failure>> + Send + 'static {
        let durable = self.journal.commit(writes);
        async move { Ok(durable.await?) }
    }

    async fn get_ready(&self, effect: &Effect, cancel: &CancellationToken) -> Result<(), Failure> {
        match effect.kind {
            // Boxed: see below.
            EffectKind::Create => {
                let image = self.image_of(&effect.instance);
                Box::pin(until_cancelled(cancel, image)).await
            }
            _ => Ok(()),
        }
    }

    async fn perform(&self, effect: &Effect, cancel: &CancellationToken) -> Result<(), Failure> {
        let instance = &effect.instance;
        let name = InstanceName::new(instance.revision.app.name.clone(), instance.ordinal);
        let id = ContainerId::new(name.clone(), instance.create_generation);
        match effect.kind {
            EffectKind::Network => self.network(&name, instance).await,
            // Boxed: a watch of each instance in service must not be as large as a creation.
            EffectKind::Create => Box::pin(self.create(&id, instance)).await,
            EffectKind::Arm => Box::pin(self.arm(&id, instance, cancel)).await,
            EffectKind::Start => self.start(&id, instance).await,
            EffectKind::Ready => until_cancelled(cancel, self.ready(&id, instance)).await,
            EffectKind::Watch => until_cancelled(cancel, self.watch(&id, instance)).await,
            EffectKind::Recover => until_cancelled(cancel, self.recover(&id, instance)).await,
            EffectKind::Restart => self.restart(&id, instance, cancel).await,
            EffectKind::RestartAgent => match &effect.agent {
                Some(agent) => {
                    let restart = self.restart_agent(&id, instance, agent);
                    until_cancelled(cancel, restart).await
                }
                None => Err(Failure::new("internal", "no in-container agent was named")),
            },
            EffectKind::Register => self.register(&id, instance).await,
            EffectKind::Deregister => self.deregister(&name, instance).await,
            EffectKind::Drain => until_cancelled(cancel, self.drain()).await,
            EffectKind::Stop => Box::pin(self.stop(&id, instance)).await,
            EffectKind::Remove => Box::pin(self.remove(&id, instance)).await,
            EffectKind::Release => Ok(self.network.remove_slot(&name, instance.address).await?),
        }
    }
}

impl Executor {
    async fn network(&self, name: &InstanceName, instance: &Instance) -> Result<(), Failure> {
        if let Some(address) = instance.address {
            let grant = SlotGrant {
                address,
                host_ports: instance.host_ports.clone(),
            };
            self.network.ensure_slot(name, grant).await?;
        }
        Ok(())
    }

    async fn arm(
        &self,
        id: &ContainerId,
        instance: &Instance,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        self.runtime.start_task(id).await?;
        let app = &instance.revision.app;
        let agents: Duration = app
            .agents
            .iter()
            .map(|agent| agent.readiness.deadline())
            .sum();
        let deadline = Instant::now() + agents + ARM_MARGIN;
        let wait = self.gate.wait(id, "reaching the gate", deadline, |s| {
            s.armed || alive(s, app).is_err()
        });
        let status = until_cancelled(cancel, async { Ok(wait.await?) }).await?;
        alive(&status, app)
    }

    async fn start(&self, id: &ContainerId, instance: &Instance) -> Result<(), Failure> {
        let (app, generation) = (&instance.revision.app, instance.generation);
        let (task_id, traceparent) = context(instance);
        let start = Start {
            generation,
            task_id,
            traceparent,
            env: Vec::new(),
        };
        self.let_go(id, app, start).await?;
        let deadline = Instant::now() + START_DEADLINE;
        let started =
            |s: &Status| (s.started && s.generation >= generation) || alive(s, app).is_err();
        let status = self
            .gate
            .wait(id, "starting the app", deadline, started)
            .await?;
        alive(&status, app)
    }

    /// An init that does not hear it dials again or has ended, and what it said last tells why.
    async fn let_go(&self, id: &ContainerId, app: &App, start: Start) -> Result<(), Failure> {
        let deadline = Instant::now() + DIAL_DEADLINE;
        loop {
            let before = self.gate.status(id);
            match self.gate.start(id, start.clone()).await {
                Err(GateError::NotConnected { .. } | GateError::Write { .. }) => {}
                heard => return Ok(heard?),
            }
            let news = |s: &Status| before.as_ref() != Some(s) || alive(s, app).is_err();
            let status = self
                .gate
                .wait(id, "coming to the gate", deadline, news)
                .await?;
            alive(&status, app)?;
        }
    }

    /// The startup probe first: it holds the others.
    async fn ready(&self, id: &ContainerId, instance: &Instance) -> Result<(), Failure> {
        let app = &instance.revision.app;
        let over = |s: &Status| alive(s, app).is_err();
        let address = probed_at(instance);
        if let Some((_, timing)) = app.startup_command() {
            self.ready_by_init(id, app, timing.deadline(), NOT_STARTED)
                .await?;
        }
        let startup = app.startup.as_ref().map(|vital| &vital.probe);
        let startup = startup.filter(|probe| !probe.look.is_command());
        let readiness = app.steady_readiness().filter(|_| !app.is_ready_by_init());
        let startup = startup.map(|probe| (probe, NOT_STARTED));
        let readiness = readiness.map(|probe| (probe, NOT_READY));
        for (probe, code) in startup.into_iter().chain(readiness) {
            let deadline = Instant::now() + probe.timing.deadline();
            let inside = &Command::new(&self.gate, id, LookKind::Readiness);
            let place = Place { address, inside };
            tokio::select! {
                probed = probe::until_passed(probe, place, deadline) => probed.map_err(|e| failure(code, &e))?,
                over = self.gate.wait(id, "becoming ready", deadline + DIAL_DEADLINE, over) => {
                    alive(&over?, app)?;
                }
            }
        }
        if app.is_ready_by_init() {
            self.ready_by_init(id, app, app.readiness.deadline(), NOT_READY)
                .await?;
        }
        Ok(())
    }

    /// container-init bounds a command itself; its verdict comes as the app's state.
    async fn ready_by_init(
        &self,
        id: &ContainerId,
        app: &App,
        within: Duration,
        code: &'static str,
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + within;
        let told = |s: &Status| s.ready || alive(s, app).is_err();
        let wait = self.gate.wait(id, "becoming ready", deadline, told);
        match wait.await {
            Ok(status) => alive(&status, app),
            Err(error) => {
                let failed = failure(code, &error);
                let startup = app.startup.as_ref().map(|vital| &vital.probe);
                let (kind, probe) = match code {
                    NOT_STARTED => (LookKind::Startup, startup),
                    _ => (LookKind::Readiness, app.steady_readiness()),
                };
                match probe {
                    Some(probe) => self.last_look(id, kind, probe, failed).await,
                    None => Err(failed),
                }
            }
        }
    }

    /// A last chance for a command when the time was over, and why it does not pass.
    async fn last_look(
        &self,
        id: &ContainerId,
        kind: LookKind,
        probe: &Probe,
        failed: Failure,
    ) -> Result<(), Failure> {
        let command = Command::new(&self.gate, id, kind);
        match command.look(probe.timing.timeout).await {
            Ok(()) => Ok(()),
            Err(AttemptFailed::NotKnown(_)) => Err(failed),
            Err(why) => {
                let detail = format!("{}: the command {}", failed.detail, chain(&why));
                Err(Failure::new(failed.code, detail))
            }
        }
    }

    /// In service, as long as its probes pass.
    async fn watch(&self, id: &ContainerId, instance: &Instance) -> Result<(), Failure> {
        let app = &instance.revision.app;
        let (address, seed) = (probed_at(instance), seed(id));
        let inside = &Command::new(&self.gate, id, LookKind::Readiness);
        tokio::select! {
            lost = failing(app.steady_readiness(), Place { address, inside }, seed) => Err(failure(NOT_READY, &lost).passing()),
            dead = self.dying(id, instance) => Err(dead),
        }
    }

    /// Out of discovery, until it is ready again.
    async fn recover(&self, id: &ContainerId, instance: &Instance) -> Result<(), Failure> {
        let app = &instance.revision.app;
        let (address, seed) = (probed_at(instance), seed(id));
        let again = async {
            if let Some(probe) = app.steady_readiness() {
                let inside = &Command::new(&self.gate, id, LookKind::Readiness);
                probe::until_again(probe, Place { address, inside }, seed).await;
            }
        };
        tokio::select! {
            () = again => Ok(()),
            dead = self.dying(id, instance) => Err(dead),
        }
    }

    /// Until its liveness probe has failed; for ever without one.
    async fn dying(&self, id: &ContainerId, instance: &Instance) -> Failure {
        let liveness = instance.revision.app.liveness.as_ref();
        let inside = &Command::new(&self.gate, id, LookKind::Liveness);
        let address = probed_at(instance);
        let place = Place { address, inside };
        let lost = failing(liveness.map(|vital| &vital.probe), place, seed(id)).await;
        failure(NOT_ALIVE, &lost)
    }

    async fn register(&self, id: &ContainerId, instance: &Instance) -> Result<(), Failure> {
        if self
            .gate
            .status(id)
            .is_some_and(|s| s.connected && s.generation < instance.generation)
        {
            self.adopt(id, instance).await?;
        }
        let record = self.record(&id.instance, instance)?;
        Ok(self.discovery.register(record).await?)
    }

    /// The app runs already; container-init learns for which activation.
    async fn adopt(&self, id: &ContainerId, instance: &Instance) -> Result<(), Failure> {
        let (task_id, traceparent) = context(instance);
        let adopt = Adopt {
            generation: instance.generation,
            task_id,
            traceparent,
        };
        Ok(self.gate.adopt(id, adopt).await?)
    }

    fn record(
        &self,
        name: &InstanceName,
        instance: &Instance,
    ) -> Result<RegistrationRecord, Failure> {
        let (address, port) = instance.endpoint(self.host_address).ok_or_else(|| {
            Failure::new(
                "host_address",
                format!("{name} is registered with the host's address, and there is none: no default route, no network.host_address"),
            )
        })?;
        let app = &instance.revision.app;
        let mut metadata = app.labels.clone();
        metadata.extend(app.registration.metadata.clone());
        metadata.insert("revision".to_owned(), instance.revision.id.clone());
        if let Some(task) = &instance.task {
            metadata.insert("task_id".to_owned(), task.task_id.to_string());
        }
        Ok(RegistrationRecord {
            service: app.registration.service.clone(),
            instance: name.clone(),
            host_id: self.settings.host.id.clone(),
            fleet: self.settings.host.fleet.clone(),
            hostname: name.to_string(),
            address: IpAddr::V4(address),
            port,
            weight: app.registration.weight,
            generation: instance.generation,
            metadata,
        })
    }

    async fn deregister(&self, name: &InstanceName, instance: &Instance) -> Result<(), Failure> {
        let generation = match instance.phase {
            // It comes back with the generation that it has already: only earlier ones are gone for good.
            Phase::Leaving => instance.generation.saturating_sub(1),
            _ => instance.generation,
        };
        Ok(self.discovery.deregister(name, generation).await?)
    }

    /// The propagation bound of the slowest backend; proof never shortens it.
    async fn drain(&self) -> Result<(), Failure> {
        tokio::time::sleep(self.discovery.propagation_bound()).await;
        Ok(())
    }

    async fn stop(&self, id: &ContainerId, instance: &Instance) -> Result<(), Failure> {
        let grace = instance.termination_grace();
        let deadline = Instant::now() + grace + STOP_MARGIN;
        let mut sent = self.gate.stop(id, grace).await;
        if let Err(GateError::NotConnected { .. }) = sent
            && self.task_runs(id).await?
        {
            let dial = Instant::now() + DIAL_DEADLINE;
            sent = match self
                .gate
                .wait(id, "coming to the gate", dial, |s| s.connected || s.stopped)
                .await
            {
                Ok(_) => self.gate.stop(id, grace).await,
                Err(error) => Err(error),
            };
        }
        match sent {
            Ok(()) => {
                let stopped = self
                    .gate
                    .wait(id, "stopping", deadline, |s| s.stopped)
                    .await;
                match stopped {
                    Ok(_) | Err(GateError::Forgotten { .. }) => Ok(()),
                    Err(_) => Ok(self.runtime.kill_task(id, SIGKILL).await?),
                }
            }
            // Never at the gate: container-init takes TERM for a stop within the plan's own grace.
            Err(_) if self.task_runs(id).await? => {
                self.runtime.kill_task(id, SIGTERM).await?;
                while Instant::now() < deadline {
                    if !self.task_runs(id).await? {
                        return Ok(());
                    }
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                Ok(self.runtime.kill_task(id, SIGKILL).await?)
            }
            Err(_) => Ok(()),
        }
    }

    async fn task_runs(&self, id: &ContainerId) -> Result<bool, Failure> {
        let status = self.task_status(id).await?;
        Ok(matches!(
            status,
            Some(TaskStatus::Running | TaskStatus::Unknown)
        ))
    }

    /// What containerd says of the container's task; `None` without one.
    pub(super) async fn task_status(
        &self,
        id: &ContainerId,
    ) -> Result<Option<TaskStatus>, Failure> {
        let name = id.to_string();
        let containers = self.runtime.list().await?;
        let container = containers.into_iter().find(|c| c.id == name);
        Ok(container.and_then(|c| c.task).map(|task| task.status))
    }

    async fn remove(&self, id: &ContainerId, instance: &Instance) -> Result<(), Failure> {
        self.runtime.delete_container(id).await?;
        self.runtime
            .remove_snapshot(&rootfs(id, instance).to_string())
            .await?;
        let (directories, container) = (self.directories.clone(), id.clone());
        blocking(move || directories.remove(&container)).await??;
        volumes::remove(id, &self.settings)?;
        self.gate.forget(id);
        self.predecessors.forget(id);
        Ok(())
    }
}

/// `SIGKILL` and `SIGTERM` of signal(7).
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
/// Between two looks at a task that is ending, or being created.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The key of an instance's rootfs is the id of the container that it was made for.
pub(super) fn rootfs(id: &ContainerId, instance: &Instance) -> ContainerId {
    ContainerId::new(id.instance.clone(), instance.rootfs_generation)
}

/// Runs file work where it may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| failure("internal", &e))
}

pub(super) async fn until_cancelled<T>(
    cancel: &CancellationToken,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let cancelled = || Failure::new("cancelled", "overtaken by a later change");
    cancel
        .run_until_cancelled(work)
        .await
        .unwrap_or_else(|| Err(cancelled()))
}

/// Task id and trace context for container-init; empty when no task asked.
pub(super) fn context(instance: &Instance) -> (String, String) {
    let task = instance.task.as_ref();
    task.map(|task| (task.task_id.to_string(), task.traceparent.clone()))
        .unwrap_or_default()
}

/// Where the agent's probes find the instance.
fn probed_at(instance: &Instance) -> IpAddr {
    IpAddr::V4(instance.address.unwrap_or(Ipv4Addr::LOCALHOST))
}

/// Spreads the probes of instances over their period, always in the same way.
fn seed(id: &ContainerId) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.to_string().hash(&mut hasher);
    hasher.finish()
}

/// Never ends without a probe.
async fn failing(probe: Option<&Probe>, place: Place<'_, Command<'_>>, seed: u64) -> probe::Lost {
    match probe {
        Some(probe) => probe::until_failed(probe, place, seed).await,
        None => std::future::pending().await,
    }
}

/// Fails when the container is over, or about to be: the first essential process that ended for good
/// says why.
pub(super) fn alive(status: &Status, app: &App) -> Result<(), Failure> {
    let over = status.stopped || status.stopping;
    let mut agents = status.agents_ended.iter().filter(|_| over);
    let first = agents.find(|exit| app.is_essential_agent(&exit.name));
    match first.or(status.app_exit.as_ref()) {
        Some(exit) => Err(exited(exit)),
        None if over => Err(Failure::new(
            "exited",
            "an essential process of the container ended",
        )),
        None => Ok(()),
    }
}

fn out_of_memory(
    Memory {
        kills,
        limit_bytes,
        peak_bytes,
    }: Memory,
) -> String {
    let limit = match limit_bytes {
        u64::MAX => "no limit".to_owned(),
        limit => format!("a limit of {limit} bytes"),
    };
    format!(
        "out of memory: its container has {limit}, used {peak_bytes} bytes at most, and had {kills} kills for memory"
    )
}

/// How a process ended, as a failure.
pub(super) fn exited(exit: &Exit) -> Failure {
    use crate::gate::ExitStatus;
    let how = match exit.status {
        ExitStatus::Code(code) => format!("exited with code {code}"),
        ExitStatus::Signal(signal) => format!("was ended by signal {signal}"),
    };
    let memory = match (exit.oom, exit.memory) {
        (false, _) => String::new(),
        (true, None) => ", out of memory".to_owned(),
        (true, Some(memory)) => format!(", {}", out_of_memory(memory)),
    };
    let code = match exit.status {
        _ if exit.oom => "out_of_memory",
        ExitStatus::Code(0) if exit.is_app() => COMPLETED,
        _ => "exited",
    };
    Failure::new(code, format!("process {:?} {how}{memory}", exit.name))
}
