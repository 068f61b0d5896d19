//! Looks at the running app that the agent asks for: one process of each kind at most.
//!
//! ```text
//!   Idle ── asked ──► Running ── ended (answered) ──► Idle
//!                        │ time over (answered), asked again, another agent, stop (answered)
//!                        ▼
//!                     Ending ── ended ──► Idle, or Running for who asked meanwhile
//! ```
//!
//! A command that was killed keeps its place until it is gone: one that cannot die is not joined by
//! more of its kind. Whether a look counts, and when the next one comes, is the agent's.

use super::actions::{Action, Actions, Target};
use super::{Millis, SIGKILL};
use crate::protocol::{ExitStatus, Look, LookKind, LookOutcome, Looked, Refusal};

/// Who waits for an answer, and how long the command may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asked {
    id: u32,
    until: Millis,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Idle,
    /// `pid` is 0 until it was executed.
    Running { pid: u32, asked: Asked },
    /// Killed and not gone.
    Ending { pid: u32, next: Option<Asked> },
}

impl State {
    fn is_of(&self, ended: u32) -> bool {
        match *self {
            Self::Running { pid, .. } | Self::Ending { pid, .. } => pid == ended,
            Self::Idle => false,
        }
    }
}

/// The looks under way.
#[derive(Debug, Default)]
pub(super) struct Looks([State; LookKind::ALL.len()]);

impl Looks {
    pub(super) fn asked(&mut self, look: Look, now: Millis, out: &mut Actions<'_, '_>) {
        let Some(state) = self.of(look.kind) else {
            return;
        };
        let asked = Asked {
            id: look.id,
            until: now + u64::from(look.timeout_ms),
        };
        match *state {
            State::Idle => begin(state, look.kind, asked, out),
            State::Running { pid, .. } => end(state, pid, Some(asked), out),
            State::Ending { pid, .. } => {
                *state = State::Ending {
                    pid,
                    next: Some(asked),
                };
            }
        }
    }

    /// The command was executed.
    pub(super) fn looking(&mut self, kind: LookKind, pid: u32, out: &mut Actions<'_, '_>) {
        let Some(state) = self.of(kind) else { return };
        match *state {
            State::Running { asked, .. } => *state = State::Running { pid, asked },
            // Its time was over before.
            State::Ending { next, .. } => end(state, pid, next, out),
            State::Idle => {}
        }
    }

    /// The command cannot be executed.
    pub(super) fn not_looking(&mut self, kind: LookKind, errno: u32, out: &mut Actions<'_, '_>) {
        self.over(kind, LookOutcome::NotExecuted { errno }, out);
    }

    /// A process ended that is none of the plan's: a look's, or nobody's.
    pub(super) fn reaped(&mut self, pid: u32, status: ExitStatus, out: &mut Actions<'_, '_>) {
        let mut kinds = LookKind::ALL.into_iter().zip(self.0);
        if let Some((kind, _)) = kinds.find(|(_, state)| state.is_of(pid)) {
            self.over(kind, LookOutcome::Ended(status), out);
        }
    }

    /// Whether this is the pid of a look.
    pub(super) fn knows(&self, pid: u32) -> bool {
        self.0.iter().any(|state| state.is_of(pid))
    }

    /// Kills and answers what takes too long.
    pub(super) fn timers(&mut self, now: Millis, out: &mut Actions<'_, '_>) {
        for state in &mut self.0 {
            match *state {
                State::Running { pid, asked } if asked.until <= now => {
                    answer(asked, LookOutcome::TimedOut, out);
                    end(state, pid, None, out);
                }
                State::Ending {
                    pid,
                    next: Some(asked),
                } if asked.until <= now => {
                    answer(asked, LookOutcome::TimedOut, out);
                    *state = State::Ending { pid, next: None };
                }
                _ => {}
            }
        }
    }

    /// Another agent, or the same one again: it waits for none of these.
    pub(super) fn forget(&mut self, out: &mut Actions<'_, '_>) {
        for state in &mut self.0 {
            match *state {
                State::Running { pid, .. } => end(state, pid, None, out),
                State::Ending { pid, .. } => *state = State::Ending { pid, next: None },
                State::Idle => {}
            }
        }
    }

    /// The app stops, and they with it.
    pub(super) fn stop(&mut self, out: &mut Actions<'_, '_>) {
        for state in &self.0 {
            if let State::Running { asked, .. }
            | State::Ending {
                next: Some(asked), ..
            } = *state
            {
                answer(asked, LookOutcome::Refused(Refusal::Stopping), out);
            }
        }
        self.forget(out);
    }

    pub(super) fn due(&self) -> Option<Millis> {
        let due = self.0.iter().filter_map(|state| match state {
            State::Running { asked, .. }
            | State::Ending {
                next: Some(asked), ..
            } => Some(asked.until),
            _ => None,
        });
        due.min()
    }

    fn of(&mut self, wanted: LookKind) -> Option<&mut State> {
        let at = LookKind::ALL.iter().position(|kind| *kind == wanted)?;
        self.0.get_mut(at)
    }

    fn over(&mut self, kind: LookKind, outcome: LookOutcome, out: &mut Actions<'_, '_>) {
        let Some(state) = self.of(kind) else { return };
        match core::mem::take(state) {
            State::Running { asked, .. } => answer(asked, outcome, out),
            State::Ending {
                next: Some(asked), ..
            } => begin(state, kind, asked, out),
            State::Ending { next: None, .. } | State::Idle => {}
        }
    }
}

fn begin(state: &mut State, kind: LookKind, asked: Asked, out: &mut Actions<'_, '_>) {
    *state = State::Running { pid: 0, asked };
    out.push(Action::Look { kind });
}

fn end(state: &mut State, pid: u32, next: Option<Asked>, out: &mut Actions<'_, '_>) {
    *state = State::Ending { pid, next };
    if pid != 0 {
        out.push(Action::Signal {
            target: Target::Group(pid),
            signal: SIGKILL,
        });
    }
}

fn answer(asked: Asked, outcome: LookOutcome, out: &mut Actions<'_, '_>) {
    out.push(Action::Looked(Looked {
        id: asked.id,
        outcome,
    }));
}
