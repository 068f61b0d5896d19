//! One process of the plan in time: gate, probes, back-off.

use super::actions::{Action, Actions, Target};
use super::{Millis, SIGKILL};
use crate::plan::{Essential, Process, ProcessKind, Readiness};
use crate::protocol::{AgentState, AgentStatus};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Waiting,
    Spawning,
    Starting,
    Ready,
    BackingOff { until: Millis },
    Ended,
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
    pub(super) told_to_stop: bool,
    started_at: Millis,
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
            told_to_stop: false,
            started_at: 0,
            gate: None,
            probe: Probe::Off,
            backoff_ms: spec.restart.backoff_min_ms,
        }
    }

    pub(super) fn run(&mut self, pid: u32, now: Millis) {
        self.pid = pid;
        self.life = Life::Starting;
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

    /// The process is gone: again after a pause, or for good.
    pub(super) fn end(
        &mut self,
        again: bool,
        now: Millis,
        out: &mut Actions<'p, '_>,
        index: usize,
    ) {
        self.give_up_waiting(index, out);
        let restart = self.spec.restart;
        if now.saturating_sub(self.started_at) > u64::from(restart.backoff_max_ms) && self.pid != 0
        {
            self.backoff_ms = restart.backoff_min_ms;
        }
        self.pid = 0;
        self.failed_before = true;
        self.life = Life::Ended;
        if again {
            self.life = Life::BackingOff {
                until: now + u64::from(self.backoff_ms),
            };
            self.backoff_ms = self
                .backoff_ms
                .saturating_mul(2)
                .clamp(1, restart.backoff_max_ms.max(1));
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

    /// Does what is due; true when an essential agent missed its gate.
    pub(super) fn timers(&mut self, index: usize, now: Millis, out: &mut Actions<'p, '_>) -> bool {
        if matches!(self.life, Life::BackingOff { until } if until <= now) {
            self.life = Life::Spawning;
            out.push(Action::Spawn {
                process: index,
                start: None,
            });
        }
        if self.gate.is_some_and(|deadline| deadline <= now) {
            self.give_up_waiting(index, out);
            match (self.spec.kind, self.spec.essential) {
                // Whether the app took too long is judged outside.
                (ProcessKind::App, _) => {}
                (ProcessKind::Agent, Essential::Yes) => return true,
                (ProcessKind::Agent, Essential::No) => {
                    self.failed_before = true;
                    out.push(Action::Signal {
                        target: Target::Group(self.pid),
                        signal: SIGKILL,
                    });
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
        [life, probe, self.gate].into_iter().flatten().min()
    }

    pub(super) fn status(&self) -> AgentStatus<'p> {
        let state = match self.life {
            Life::Waiting => AgentState::Waiting,
            Life::Spawning | Life::Starting | Life::Ready if self.told_to_stop => {
                AgentState::Stopping
            }
            Life::Spawning | Life::Starting => AgentState::Starting,
            Life::Ready => AgentState::Ready,
            Life::BackingOff { .. } => AgentState::BackingOff,
            Life::Ended => AgentState::Ended,
        };
        AgentStatus {
            name: self.spec.name,
            state,
            pid: self.pid,
        }
    }
}
