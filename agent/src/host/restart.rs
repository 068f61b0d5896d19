//! Restarts in place on the real host: what is looked at before one is accepted, and the two effects.
//!
//! Nothing here touches containerd, the network or the rootfs: container, address and files stay.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::executor::{Executor, START_DEADLINE, alive, context, until_cancelled};
use super::failure::failure;
use super::node::Node;
use crate::api::v1::{Problem, ProblemCode};
use crate::gate::{GateError, Restart, Start, Status};
use crate::instance::plan::APP_PROCESS;
use crate::instance::{AppName, ContainerId, Failure, Instance, InstanceName};
use crate::pool::Effects;
use crate::task::{Request, RestartedAgent};

/// How long an init may take to dial (again) before the effect is tried again.
const DIAL_DEADLINE: Duration = Duration::from_secs(3);
/// The shortest time that a process has to end, and as much again for what is done after.
const SHORTEST_GRACE: Duration = Duration::from_secs(5);

impl<E: Effects> Node<E> {
    /// What only container-init knows: whether it can, and which process an in-container agent is now.
    /// What the pool knows, it says itself.
    pub(super) async fn look_before_restart(
        &self,
        app: &AppName,
        request: &mut Request,
    ) -> Result<(), Problem> {
        let Some(wish) = &mut request.restart else {
            return Ok(());
        };
        let snapshot = self.snapshot(app);
        let found = snapshot.as_ref().and_then(|snapshot| {
            let mut instances = snapshot.instances.iter();
            instances.find(|instance| instance.ordinal == wish.ordinal)
        });
        let Some(found) = found.filter(|instance| instance.phase.in_service()) else {
            return Ok(());
        };
        let name = InstanceName::new(app.clone(), wish.ordinal);
        let about = format!("/v1/instances/{name}");
        let id = ContainerId::new(name, found.create_generation);
        let status = match self.gate.ask_status(&id).await {
            Ok(status) => status,
            Err(error) => {
                let detail = failure("init", &error).detail;
                return Err(Problem::new(ProblemCode::Unavailable, detail).about(about));
            }
        };
        if !status.can_restart() {
            let detail = GateError::RestartsUnknown { container: id }.to_string();
            return Err(Problem::new(ProblemCode::NotRestartable, detail).about(about));
        }
        if let Some(agent) = &mut wish.agent {
            agent.pid = status.agent_pids.get(&agent.name).copied();
        }
        Ok(())
    }
}

impl Executor {
    /// The app, again and only once for the instance's generation.
    pub(super) async fn restart(
        &self,
        id: &ContainerId,
        instance: &Instance,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        let (app, generation) = (&instance.revision.app, instance.generation);
        let (task_id, traceparent) = context(instance);
        let restart = Restart {
            process: APP_PROCESS.to_owned(),
            budget: budget(instance),
            start: Start {
                generation,
                task_id,
                traceparent,
                env: Vec::new(),
            },
        };
        let deadline = Instant::now() + restart.budget + START_DEADLINE;
        let runs = |s: &Status| s.generation >= generation && s.app_pid.is_some();
        until_cancelled(cancel, async {
            loop {
                let status = self.connected(id).await?;
                alive(&status, app)?;
                let before = status.reports;
                match self.gate.restart(id, restart.clone()).await {
                    Err(GateError::NotConnected { .. }) => continue,
                    other => other?,
                }
                // A later status of an older generation: the request was lost with its connection.
                let unheard = |s: &Status| s.reports > before && s.generation < generation;
                let over = |s: &Status| runs(s) || unheard(s) || alive(s, app).is_err();
                let wait = self.gate.wait(id, "starting the app again", deadline, over);
                let status = wait.await?;
                alive(&status, app)?;
                if runs(&status) {
                    return Ok(());
                }
            }
        })
        .await
    }

    /// One of its in-container agents, unless it is not the process any more that was meant.
    pub(super) async fn restart_agent(
        &self,
        id: &ContainerId,
        instance: &Instance,
        agent: &RestartedAgent,
    ) -> Result<(), Failure> {
        let app = &instance.revision.app;
        self.connected(id).await?;
        let present = self.gate.ask_status(id).await?;
        let budget = budget(instance);
        let gate = app.agents.iter().find(|known| known.name == agent.name);
        let gate = gate.map_or(Duration::ZERO, |known| known.readiness.deadline());
        if present.agent_pids.get(&agent.name).copied() == agent.pid {
            let restart = Restart {
                process: agent.name.clone(),
                budget,
                start: Start {
                    generation: present.generation,
                    task_id: String::new(),
                    traceparent: String::new(),
                    env: Vec::new(),
                },
            };
            self.gate.restart(id, restart).await?;
        }
        let deadline = Instant::now() + budget + gate + START_DEADLINE;
        let again = |s: &Status| {
            let pid = s.agent_pids.get(&agent.name).copied();
            let other = agent.pid.is_none() || pid != agent.pid;
            other && s.agents_ready.contains(&agent.name)
        };
        let over = |s: &Status| again(s) || alive(s, app).is_err();
        let wait = self.gate.wait(id, "becoming ready again", deadline, over);
        alive(&wait.await?, app)
    }

    /// Once init is connected. One that is not for now is worth another try.
    async fn connected(&self, id: &ContainerId) -> Result<Status, Failure> {
        let deadline = Instant::now() + DIAL_DEADLINE;
        let over = |s: &Status| s.connected || s.stopped;
        let wait = self.gate.wait(id, "coming to the gate", deadline, over);
        match wait.await {
            Err(error @ GateError::Deadline { .. }) => Err(Failure::from(error).passing()),
            other => Ok(other?),
        }
    }
}

/// Killed after half of it: the whole grace for the app, and as much for what is done after.
fn budget(instance: &Instance) -> Duration {
    instance.termination_grace().max(SHORTEST_GRACE) * 2
}
