//! One process of the plan in time: gate, probes, back-off, grace.

use super::actions::{Action, Actions, Target};
use super::restart::Again;
use super::{Millis, SIGCONT, SIGKILL};
use crate::plan::{Delivery, Essential, Process, ProcessKind, Readiness, RestartPolicy};
use crate::protocol::{AgentState, AgentStatus, ExitStatus, ProcessState, ProcessStatus};

/// How long a killed process may take to be gone; one that is stuck in the kernel does not hold the
/// others longer.
pub(super) const KILL_WAIT_MS: u64 = 1_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Waiting,
    Spawning,
    Starting,
    Ready,
    BackingOff { until: Millis },
    Ended,
}

/// From being asked to end until it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Farewell {
    No,
    /// Killed at this time; `None` when only the end of the whole budget kills it.
    Asked {
        kill_at: Option<Millis>,
    },
    Killed {
        give_up_at: Millis,
    },
    /// Stuck in the kernel: nobody waits for it any more.
    Stuck,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Probe {
    Off,
    Due { at: Millis, pause: u32 },
    Busy { pid: u32, until: Millis, pause: u32 },
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Slot<'p> {
    pub(super) spec: Process<'p>,
    pub(super) life: Life,
    /// 0 when it does not run.
    pub(super) pid: u32,
    /// It ended or missed its gate at least once.
    pub(super) failed_before: bool,
    /// It is ended to be started again.
    pub(super) again: Option<Again>,
    farewell: Farewell,
    /// 0 when it was never started.
    started_at: Millis,
    /// How often it was started again, and how often in a row by itself.
    restarts: u32,
    in_a_row: u32,
    last_exit: Option<ExitStatus>,
    gate: Option<Millis>,
    probe: Probe,
    backoff_ms: u32,
}

impl<'p> Slot<'p> {
    pub(super) fn new(spec: Process<'p>) -> Self {
        Self {
            spec,
            life: Life::Waiting,
            pid: 0,
            failed_before: false,
            again: None,
            farewell: Farewell::No,
            started_at: 0,
            restarts: 0,
            in_a_row: 0,
            last_exit: None,
            gate: None,
            probe: Probe::Off,
            backoff_ms: spec.restart.backoff_min_ms,
        }
    }

    pub(super) fn run(&mut self, pid: u32, now: Millis) {
        self.pid = pid;
        self.life = Life::Starting;
        if self.last_exit.is_some() {
            self.restarts = self.restarts.saturating_add(1);
        }
        self.farewell = Farewell::No;
        self.started_at = now;
        let (gate_ms, first_probe_ms) = match self.spec.readiness {
            Readiness::None | Readiness::External => (None, None),
            Readiness::Notify { timeout_ms } | Readiness::NewlineFd { timeout_ms, .. } => {
                (Some(u64::from(timeout_ms)), None)
            }
            Readiness::TcpLoopback { deadline_ms, .. } => (Some(u64::from(deadline_ms)), Some(0)),
            Readiness::Exec {
                initial_delay_ms,
                period_ms,
                failure_threshold,
                ..
            } => {
                let all = u64::from(period_ms) * u64::from(failure_threshold);
                (
                    Some(u64::from(initial_delay_ms) + all),
                    Some(u64::from(initial_delay_ms)),
                )
            }
        };
        self.gate = gate_ms.map(|ms| now + ms);
        self.probe = first_probe_ms.map_or(Probe::Off, |ms| Probe::Due {
            at: now + ms,
            pause: 1,
        });
    }

    pub(super) fn is_ready_at_once(&self) -> bool {
        self.spec.readiness == Readiness::None
    }

    /// Ready from now on; false when that is no news.
    pub(super) fn pass_gate(&mut self) -> bool {
        if self.life != Life::Starting {
            return false;
        }
        self.life = Life::Ready;
        self.gate = None;
        self.probe = Probe::Off;
        true
    }

    /// The process is gone. Returns whether it comes again by itself, after a pause.
    pub(super) fn end(
        &mut self,
        status: ExitStatus,
        stopping: bool,
        now: Millis,
        out: &mut Actions<'p, '_>,
        index: usize,
    ) -> bool {
        self.give_up_waiting(index, out);
        let restart = self.spec.restart;
        let run_ms = now.saturating_sub(self.started_at);
        if self.pid != 0 && run_ms > u64::from(restart.reset_after_ms) {
            self.backoff_ms = restart.backoff_min_ms;
            self.in_a_row = 0;
        }
        self.pid = 0;
        self.failed_before = true;
        self.farewell = Farewell::No;
        self.last_exit = Some(status);
        self.life = Life::Ended;
        let wanted = match restart.policy {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => status != ExitStatus::Code(0),
            RestartPolicy::Never => false,
        };
        let again = wanted
            && !stopping
            && self.again.is_none()
            && self.spec.kind == ProcessKind::Agent
            && self.in_a_row < restart.max;
        if again {
            self.in_a_row = self.in_a_row.saturating_add(1);
            self.life = Life::BackingOff {
                until: now + u64::from(self.backoff_ms),
            };
            self.backoff_ms = self
                .backoff_ms
                .saturating_mul(2)
                .clamp(1, restart.backoff_max_ms.max(1));
        }
        again
    }

    /// Whom a signal reaches that is meant for it.
    pub(super) fn target(&self, index: usize) -> Target {
        match self.spec.delivery {
            Delivery::Process => Target::Process(self.pid),
            Delivery::Group => Target::Group(self.pid),
            Delivery::All => Target::All {
                process: index,
                leader: self.pid,
            },
        }
    }

    /// Asks it to end, once: by `signal`, or by its own. A stopped process is continued, so that it
    /// can hear.
    pub(super) fn ask_to_end(
        &mut self,
        index: usize,
        signal: Option<u8>,
        grace_ms: u32,
        now: Millis,
        out: &mut Actions<'p, '_>,
    ) {
        if self.farewell != Farewell::No {
            return;
        }
        self.farewell = Farewell::Asked {
            kill_at: (grace_ms != u32::MAX).then(|| now + u64::from(grace_ms)),
        };
        let target = self.target(index);
        for signal in [signal.unwrap_or(self.spec.stop_signal), SIGCONT] {
            out.push(Action::Signal { target, signal });
        }
    }

    /// Kills it and all that belongs to it.
    pub(super) fn kill(&mut self, index: usize, now: Millis, out: &mut Actions<'p, '_>) {
        self.farewell = Farewell::Killed {
            give_up_at: now + KILL_WAIT_MS,
        };
        out.push(Action::Signal {
            target: Target::All {
                process: index,
                leader: self.pid,
            },
            signal: SIGKILL,
        });
    }

    /// Whether it was asked to end and still runs.
    pub(super) fn is_ending(&self) -> bool {
        self.farewell != Farewell::No
    }

    /// Whether it was killed and does not go.
    pub(super) fn is_stuck(&self) -> bool {
        self.farewell == Farewell::Stuck
    }

    /// Kills what used up its grace; true when it turned out to be stuck.
    pub(super) fn farewell(
        &mut self,
        index: usize,
        now: Millis,
        out: &mut Actions<'p, '_>,
    ) -> bool {
        match self.farewell {
            Farewell::Asked {
                kill_at: Some(kill_at),
            } if kill_at <= now => {
                self.kill(index, now, out);
                false
            }
            Farewell::Killed { give_up_at } if give_up_at <= now => {
                self.farewell = Farewell::Stuck;
                true
            }
            _ => false,
        }
    }

    /// When its grace, or the wait for its end, is over.
    pub(super) fn farewell_due(&self) -> Option<Millis> {
        match self.farewell {
            Farewell::Asked { kill_at } => kill_at,
            Farewell::Killed { give_up_at } => Some(give_up_at),
            Farewell::No | Farewell::Stuck => None,
        }
    }

    /// It is not started again on request any more.
    pub(super) fn give_up_restart(&mut self, out: &mut Actions<'p, '_>) {
        if let Some(again) = self.again.take()
            && again.cleaner() != 0
        {
            out.push(Action::Signal {
                target: Target::Process(again.cleaner()),
                signal: SIGKILL,
            });
        }
    }

    /// Its readiness does not matter any more.
    pub(super) fn give_up_waiting(&mut self, index: usize, out: &mut Actions<'p, '_>) {
        self.gate = None;
        if let Probe::Busy { pid, .. } = self.probe {
            out.push(Action::EndProbe {
                process: index,
                pid,
            });
        }
        self.probe = Probe::Off;
        if matches!(self.life, Life::BackingOff { .. } | Life::Waiting) {
            self.life = Life::Ended;
        }
    }

    pub(super) fn probing(&mut self, probe_pid: Option<u32>) {
        if let Probe::Busy { pid, .. } = &mut self.probe {
            *pid = probe_pid.unwrap_or(0);
        }
    }

    pub(super) fn probe_pid(&self) -> u32 {
        match self.probe {
            Probe::Busy { pid, .. } => pid,
            _ => 0,
        }
    }

    /// Plans the next probe, 1, 2, 4, ... ms later up to the period; false when none was begun.
    pub(super) fn probe_ended(&mut self, now: Millis) -> bool {
        let Probe::Busy { pause, .. } = self.probe else {
            return false;
        };
        let period = match self.spec.readiness {
            Readiness::TcpLoopback { period_ms, .. } | Readiness::Exec { period_ms, .. } => {
                period_ms
            }
            _ => return false,
        };
        let pause = pause.min(period);
        self.probe = Probe::Due {
            at: now + u64::from(pause),
            pause: pause.saturating_mul(2),
        };
        true
    }

    /// Executes it, without a start.
    pub(super) fn spawn(&mut self, index: usize, out: &mut Actions<'p, '_>) {
        self.life = Life::Spawning;
        out.push(Action::Spawn {
            process: index,
            start: None,
        });
    }

    /// Does what is due; true when an essential agent missed its gate.
    pub(super) fn timers(&mut self, index: usize, now: Millis, out: &mut Actions<'p, '_>) -> bool {
        if matches!(self.life, Life::BackingOff { until } if until <= now) {
            self.spawn(index, out);
        }
        if self.gate.is_some_and(|deadline| deadline <= now) {
            self.give_up_waiting(index, out);
            match (self.spec.kind, self.spec.essential) {
                // Whether the app took too long is judged outside.
                (ProcessKind::App, _) => {}
                (ProcessKind::Agent, Essential::Yes) => return true,
                (ProcessKind::Agent, Essential::No) => {
                    self.failed_before = true;
                    self.kill(index, now, out);
                }
            }
        }
        let timeout = match self.spec.readiness {
            Readiness::TcpLoopback { timeout_ms, .. } | Readiness::Exec { timeout_ms, .. } => {
                u64::from(timeout_ms)
            }
            _ => return false,
        };
        match self.probe {
            Probe::Due { at, pause } if at <= now => {
                self.probe = Probe::Busy {
                    pid: 0,
                    until: now + timeout,
                    pause,
                };
                out.push(Action::Probe { process: index });
            }
            Probe::Busy { pid, until, .. } if until <= now => {
                out.push(Action::EndProbe {
                    process: index,
                    pid,
                });
                self.probe_ended(now);
            }
            _ => {}
        }
        false
    }

    pub(super) fn due(&self) -> Option<Millis> {
        let life = match self.life {
            Life::BackingOff { until } => Some(until),
            _ => None,
        };
        let probe = match self.probe {
            Probe::Off => None,
            Probe::Due { at, .. } => Some(at),
            Probe::Busy { until, .. } => Some(until),
        };
        let again = self.again.as_ref().and_then(Again::due);
        [life, probe, self.gate, self.farewell_due(), again]
            .into_iter()
            .flatten()
            .min()
    }

    /// As the first version of the protocol says it.
    pub(super) fn status(&self) -> AgentStatus<'p> {
        AgentStatus {
            name: self.spec.name,
            state: match self.state() {
                ProcessState::Waiting => AgentState::Waiting,
                ProcessState::Starting | ProcessState::Restarting => AgentState::Starting,
                ProcessState::Ready => AgentState::Ready,
                ProcessState::BackingOff => AgentState::BackingOff,
                ProcessState::Stopping => AgentState::Stopping,
                ProcessState::Ended => AgentState::Ended,
            },
            pid: self.pid,
        }
    }

    /// All that is known of it.
    pub(super) fn process_status(&self, now: Millis) -> ProcessStatus<'p> {
        ProcessStatus {
            name: self.spec.name,
            state: self.state(),
            pid: self.pid,
            restarts: self.restarts,
            since_ms: match self.started_at {
                0 => 0,
                started_at => now.saturating_sub(started_at),
            },
            last_exit: self.last_exit,
        }
    }

    fn state(&self) -> ProcessState {
        match self.life {
            _ if self.again.is_some() => ProcessState::Restarting,
            Life::Waiting => ProcessState::Waiting,
            Life::Spawning | Life::Starting | Life::Ready if self.is_ending() => {
                ProcessState::Stopping
            }
            Life::Spawning | Life::Starting => ProcessState::Starting,
            Life::Ready => ProcessState::Ready,
            Life::BackingOff { .. } => ProcessState::BackingOff,
            Life::Ended => ProcessState::Ended,
        }
    }
}
