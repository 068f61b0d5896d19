//! Restarts in place: which one may be, what it does to its instance, and how it ends. Pure.
//!
//! ```text
//!   the app:   in service ─► leaving ─► emptying ─► restarting ─► probing ─► registering ─► active
//!   an agent:  the instance goes on as it is; one effect beside its own
//! ```
//! The app's restart is an edge of its instance: what fails there is the end of the instance, and
//! what comes then is what comes after every end. Before the app was asked to end it can be taken
//! back: a restart that nobody waits for any more is, and the instance goes back into service. An
//! in-container agent's restart changes nothing but the agent; by the pid that the intent has it is
//! seen whether it was done.

use std::fmt;
use std::time::Duration;

use crate::instance::machine::Wish;
use crate::instance::{EffectKind, Failure, InstanceName, Phase, State, Urgency};
use crate::task::{EndState, Request, Restart, RestartWish, TaskId};

use super::clock::Now;
use super::intent::{Change, Intent};
use super::machine::{Action, Command, Effect, OpenTask, Pool, Refusal, Slot};

/// How often an app is started again in one container: what it leaks there has an end.
pub const MOST_REUSES: u32 = 100;

/// A restart whose task has not been answered.
#[derive(Debug, Clone)]
pub(super) struct OpenRestart {
    pub what: Restart,
    /// The effect under way for an in-container agent.
    pub effect: Option<u64>,
    /// How that ended.
    pub ended: Option<Result<(), Failure>>,
}

impl OpenRestart {
    pub(super) fn new(what: Restart) -> Self {
        Self {
            what,
            effect: None,
            ended: None,
        }
    }
}

/// Why an instance is not restarted in place. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotRestarted {
    /// There is none of this number.
    NoInstance {
        /// As asked.
        instance: InstanceName,
        /// Those that there are.
        there: Vec<u32>,
    },
    /// It has no in-container agent of this name.
    NoProcess {
        /// The instance.
        instance: InstanceName,
        /// As asked.
        process: String,
        /// Its in-container agents.
        there: Vec<String>,
    },
    /// Its app does not serve.
    NotInService {
        /// The instance.
        instance: InstanceName,
        /// What it is now.
        state: State,
    },
    /// It is of another revision than the pool's.
    Stale {
        /// The instance.
        instance: InstanceName,
        /// Its revision.
        revision: String,
        /// The pool's.
        current: String,
    },
    /// Something of it is being restarted.
    UnderWay {
        /// The instance.
        instance: InstanceName,
        /// By this task.
        task: TaskId,
    },
    /// It was restarted in its container as often as is allowed.
    UsedUp {
        /// The instance.
        instance: InstanceName,
    },
}

impl fmt::Display for NotRestarted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoInstance { instance, there } => {
                let app = &instance.app;
                let names: Vec<String> = there.iter().map(|n| format!("{app}-{n}")).collect();
                match names.as_slice() {
                    [] => write!(f, "there is no instance {instance}, and none of {app}"),
                    names => write!(
                        f,
                        "there is no instance {instance}; there are {}",
                        names.join(", ")
                    ),
                }
            }
            Self::NoProcess {
                instance,
                process,
                there,
            } => {
                let agents = match there.as_slice() {
                    [] => "no in-container agents".to_owned(),
                    there => format!("the in-container agents {}", there.join(", ")),
                };
                write!(
                    f,
                    "{instance} has no process {process:?}; it has app and {agents}"
                )
            }
            Self::NotInService { instance, state } => {
                let state_word = state.as_str();
                match state {
                    State::Armed => write!(
                        f,
                        "{instance} is {state_word}: its app was not started yet, and there is nothing to restart"
                    ),
                    _ => write!(
                        f,
                        "{instance} is {state_word}: what is restarted has to be in service (ready, active or unready)"
                    ),
                }
            }
            Self::Stale {
                instance,
                revision,
                current,
            } => write!(
                f,
                "{instance} is of revision {revision}, and {current} was applied since: to be restarted it would have to be made anew; nodeagent roll {} does that",
                instance.app
            ),
            Self::UnderWay { instance, task } => {
                write!(f, "{instance} is being restarted by task {task}")
            }
            Self::UsedUp { instance } => write!(
                f,
                "the app of {instance} was started again in its container {MOST_REUSES} times, which is the most; nodeagent deactivate and activate make another container"
            ),
        }
    }
}

impl Pool {
    /// What a request to restart is to the journal and to the task: `None` for other requests.
    pub(super) fn restart_of(&self, request: &Request) -> Option<Restart> {
        let wish = request.restart.as_ref()?;
        let instance = &self.slots.get(&wish.ordinal)?.instance;
        Some(Restart {
            ordinal: wish.ordinal,
            create_generation: instance.create_generation,
            reuses: instance.reuses + u32::from(wish.agent.is_none()),
            agent: wish.agent.clone(),
        })
    }

    /// Why a restart cannot be.
    pub(super) fn restart_refusal(&self, wish: &RestartWish) -> Option<Refusal> {
        self.not_restarted(wish).map(Refusal::Restart)
    }

    fn not_restarted(&self, wish: &RestartWish) -> Option<NotRestarted> {
        let instance = self.instance_name(wish.ordinal);
        let Some(slot) = self.slots.get(&wish.ordinal) else {
            let there = self.slots.keys().copied().collect();
            return Some(NotRestarted::NoInstance { instance, there });
        };
        let of = &slot.instance;
        let agents = || of.revision.app.agents.iter().map(|agent| &agent.name);
        if let Some(agent) = &wish.agent
            && !agents().any(|name| *name == agent.name)
        {
            return Some(NotRestarted::NoProcess {
                instance,
                process: agent.name.clone(),
                there: agents().cloned().collect(),
            });
        }
        let mut open = self.tasks.values().filter(|task| {
            let restart = task.restart.as_ref();
            restart.is_some_and(|restart| restart.what.ordinal == wish.ordinal)
        });
        if let Some(task) = open.next() {
            let task = task.context.task_id.clone();
            return Some(NotRestarted::UnderWay { instance, task });
        }
        if !of.phase.in_service() || of.wish() == Some(Wish::End) {
            let state = of.phase.state();
            return Some(NotRestarted::NotInService { instance, state });
        }
        if of.revision.id != self.revision.id {
            return Some(NotRestarted::Stale {
                instance,
                revision: of.revision.id.clone(),
                current: self.revision.id.clone(),
            });
        }
        if wish.agent.is_none() && of.reuses >= MOST_REUSES {
            return Some(NotRestarted::UsedUp { instance });
        }
        None
    }

    /// The restart of an app, as a change of its instance.
    pub(super) fn plan_restart(&self, intent: &mut Intent) {
        if let Some(Command::Target(request)) = &intent.command
            && let Some(wish) = &request.restart
            && wish.agent.is_none()
        {
            intent.changes.push(Change::Restart {
                ordinal: wish.ordinal,
                generation: self.next_generation(wish.ordinal),
                urgency: match request.force {
                    true => Urgency::Force,
                    false => Urgency::Drain,
                },
                task: request.context.clone(),
            });
        }
    }

    /// Restarts that were not begun and that nobody waits for any more.
    pub(super) fn deserted(&self) -> impl Iterator<Item = (u32, &Slot)> {
        let waits = |slot: &Slot| {
            let task = slot.instance.task.as_ref();
            let task = task.and_then(|task| self.tasks.get(&task.task_id));
            task.is_some_and(|task| task.restart.is_some() && task.end.is_none())
        };
        let slots = self.slots.iter().map(|(&ordinal, slot)| (ordinal, slot));
        slots.filter(move |(_, slot)| slot.instance.phase.before_restart() && !waits(slot))
    }

    /// Performs the restart of an in-container agent beside what its instance does.
    pub(super) fn restart_agent(&mut self, task_id: &TaskId, out: &mut Vec<Action>) {
        let id = self.id();
        let Some(task) = self.tasks.get_mut(task_id) else {
            return;
        };
        let Some(restart) = &mut task.restart else {
            return;
        };
        let Some(agent) = restart.what.agent.clone() else {
            return;
        };
        if let Some(slot) = self.slots.get(&restart.what.ordinal) {
            restart.effect = Some(id);
            let mut instance = slot.instance.clone();
            instance.task = Some(task.context.clone());
            instance.attempt = 1;
            out.push(Action::Perform(Effect {
                id,
                instance,
                kind: EffectKind::RestartAgent,
                agent: Some(agent),
                after: Duration::ZERO,
            }));
        }
    }

    /// Whether the effect was that of an in-container agent's restart.
    pub(super) fn agent_restarted(&mut self, id: u64, result: &Result<(), Failure>) -> bool {
        let restarts = self.tasks.values_mut();
        let mut restarts = restarts.filter_map(|task| task.restart.as_mut());
        match restarts.find(|restart| restart.effect == Some(id)) {
            Some(restart) => {
                restart.effect = None;
                restart.ended = Some(result.clone());
                true
            }
            None => false,
        }
    }

    /// How a restart ends, once it does.
    pub(super) fn restart_ends(
        &self,
        task: &OpenTask,
        restart: &OpenRestart,
        now: Now,
    ) -> Option<EndState> {
        let what = &restart.what;
        let Some(slot) = self.restarted(what) else {
            return Some(EndState::Failed);
        };
        let phase = slot.instance.phase;
        if phase == Phase::Failed || task.failed.contains_key(&what.ordinal) {
            return Some(EndState::Failed);
        }
        match &restart.ended {
            Some(Ok(())) => return Some(EndState::Done),
            Some(Err(_)) => return Some(EndState::Failed),
            None => {}
        }
        if phase.going_down() {
            return Some(EndState::Superseded);
        }
        let again = what.agent.is_none() && slot.instance.reuses >= what.reuses;
        if again && phase == Phase::Active {
            return Some(EndState::Done);
        }
        if now.at < task.deadline {
            return None;
        }
        Some(match again && phase.in_service() {
            true => EndState::Partial,
            false => EndState::Failed,
        })
    }

    /// What a restart that did not end well leaves, and why.
    pub(super) fn restart_shortfall(
        &self,
        task: &OpenTask,
        restart: &OpenRestart,
        state: EndState,
    ) -> String {
        let what = &restart.what;
        let name = self.instance_name(what.ordinal);
        let slot = self.restarted(what);
        let failed = task.failed.get(&what.ordinal).map(|(_, failure)| failure);
        let of_agent = restart
            .ended
            .as_ref()
            .and_then(|ended| ended.as_ref().err());
        let present = slot.and_then(|slot| slot.instance.failure.as_ref());
        let cause = of_agent.or(failed).or(present);
        let cause = cause.map(|failure| failure.detail.as_str());
        let phase = slot.map(|slot| slot.instance.phase);
        match (state, &what.agent, phase) {
            (EndState::Superseded, ..) => {
                format!("{name} was taken out of service meanwhile")
            }
            (EndState::Partial, ..) => format!(
                "the app of {name} was started again, but is not in discovery: {}; it goes on",
                cause.unwrap_or("the deadline passed")
            ),
            (_, Some(agent), Some(Phase::Failed) | None) => format!(
                "{name} ended while {} was restarted: {}; what takes its place is by its restartPolicy",
                agent.name,
                cause.unwrap_or("it is not there any more")
            ),
            (_, Some(agent), Some(_)) => format!(
                "{} of {name} was not restarted: {}; the app goes on",
                agent.name,
                cause.unwrap_or("the deadline passed")
            ),
            (_, None, Some(phase)) if phase.before_restart() => format!(
                "{name} was not restarted: {}; it goes back into service",
                cause.unwrap_or("the deadline passed before clients could be taken away")
            ),
            (_, None, Some(phase)) if phase != Phase::Failed => format!(
                "the restart of {name} was not done: {}; it goes on",
                cause.unwrap_or("the deadline passed")
            ),
            (_, None, _) => format!(
                "{name} could not be restarted in its container: {}; what takes its place is by its restartPolicy",
                cause.unwrap_or("it is not there any more")
            ),
        }
    }

    /// The instance, if its container is still the one.
    fn restarted(&self, what: &Restart) -> Option<&Slot> {
        self.container(what.ordinal, what.create_generation)
    }
}
