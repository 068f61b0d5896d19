//! The rules of PID 1 as a state machine: `step(input, now)` returns the actions to take.
//!
//! ```text
//!            every agent passed     start        app exits, essential agent ends,
//!   Arming ───────────────────► Armed ─────► Running     stop, TERM
//!     │                           │             │
//!     └───────────────────────────┴─────────────┴──────► Stopping ──► Ended (exit)
//!        stop, TERM, INT, essential agent ends or misses its gate
//! ```
//!
//! Owns order, gates, probes' timing, back-off, the looks under way, the one budget of a stop, and
//! the exit code.
//! Promises: no I/O, no clock, no allocation, no panic; nothing is due when [`Supervisor::due`] is
//! `None`, so that an idle PID 1 sleeps without a timer. Where there is an agent to ask, the app is
//! started only by its start, and again only by its restart. Deliberately does not kill an app that never becomes ready: that is judged
//! outside.

mod actions;
mod looks;
mod process;
mod restart;
mod stop;

pub use actions::{Action, Actions, Input, Room, Target, room};
use looks::Looks;
use process::{Life, Slot};
use stop::Stop;

use crate::plan::{Essential, MAX_PROCESSES, Plan, ProcessKind};
use crate::protocol::{
    AgentStatus, Agents, EventKind, ExitStatus, Look, LookOutcome, Looked, ProcessStatus, Refusal,
    Request, RequestKind, Start, Status,
};

/// Milliseconds on a clock that never goes back.
pub type Millis = u64;

const SIGINT: u8 = 2;
const SIGKILL: u8 = 9;
const SIGTERM: u8 = 15;
const SIGCONT: u8 = 18;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Arming,
    Armed,
    Running,
    Stopping(Stop),
    Ended,
}

/// The state of PID 1.
#[derive(Debug)]
pub struct Supervisor<'p> {
    plan: Plan<'p>,
    phase: Phase,
    slots: [Option<Slot<'p>>; MAX_PROCESSES],
    looks: Looks,
    /// Index of the app: the last process.
    app: usize,
    generation: u64,
    started: bool,
    /// First cause of the end; the app's code when there is none.
    exit_code: Option<u8>,
    childless: bool,
}

impl<'p> Supervisor<'p> {
    /// Nothing runs yet; [`Input::Begin`] starts the first process.
    // What it is made of is not to be on the stack of the loop a second time.
    #[inline(never)]
    pub fn new(plan: Plan<'p>) -> Self {
        let mut slots = [None; MAX_PROCESSES];
        let mut count = 0;
        for (slot, process) in slots.iter_mut().zip(plan.processes.iter()) {
            *slot = Some(Slot::new(process));
            count += 1;
        }
        Self {
            plan,
            phase: Phase::Arming,
            slots,
            looks: Looks::default(),
            app: usize::saturating_sub(count, 1),
            generation: plan.create_generation,
            started: false,
            exit_code: None,
            childless: true,
        }
    }

    /// Takes one input and returns what to do, in order; `room` is where that is put.
    // What it is decided with is not to be on the stack while it is done.
    #[inline(never)]
    pub fn step<'r>(
        &mut self,
        input: Input<'r>,
        now: Millis,
        room: &'r mut Room<'p, 'r>,
    ) -> Actions<'p, 'r> {
        let mut out = Actions::new(room);
        match input {
            Input::Begin | Input::Tick => {}
            Input::Spawned { process, pid } => self.spawned(process, pid, now, &mut out),
            Input::NotSpawned { process, pid, code } => {
                self.ended(process, pid, ExitStatus::Code(code), false, now, &mut out)
            }
            Input::Swept { process, found } => self.swept(process, found, now, &mut out),
            Input::Cleaning { process, pid } => {
                self.childless &= pid.is_none();
                self.cleaning(process, pid, now, &mut out);
            }
            Input::Probing { process, pid } => {
                self.childless &= pid.is_none();
                if let Some(slot) = self.slot(process) {
                    slot.probing(pid);
                }
            }
            Input::Probed { process, passed } => self.probed(process, passed, now, &mut out),
            Input::Ready { process } => self.ready(process, &mut out),
            Input::Reaped { pid, status, oom } => self.reaped(pid, status, oom, now, &mut out),
            Input::Looking { kind, pid } => {
                self.childless = false;
                self.looks.looking(kind, pid, &mut out);
            }
            Input::NotLooking { kind, errno } => self.looks.not_looking(kind, errno, &mut out),
            Input::Connected => self.looks.forget(&mut out),
            Input::Childless => self.childless = true,
            Input::Asked(request) => self.asked(request, now, &mut out),
            Input::Signalled { signal, value } => self.signalled(signal, value, now, &mut out),
        }
        self.timers(now, &mut out);
        self.arm(&mut out);
        self.wind_down(now, &mut out);
        out
    }

    /// When the next [`Input::Tick`] is needed; `None` when only something from outside can
    /// change anything.
    pub fn due(&self) -> Option<Millis> {
        let stop = match &self.phase {
            Phase::Stopping(stop) => stop.due(),
            Phase::Ended => return None,
            _ => None,
        };
        self.slots
            .iter()
            .flatten()
            .filter_map(Slot::due)
            .chain(stop)
            .chain(self.looks.due())
            .min()
    }

    /// The generation that it works for.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether the app was started at any time.
    pub fn started(&self) -> bool {
        self.started
    }

    /// What is true now; `agents` is room for the list inside.
    pub fn status<'s>(&self, agents: &'s mut [AgentStatus<'p>; MAX_PROCESSES]) -> Status<'s>
    where
        'p: 's,
    {
        for (room, slot) in agents.iter_mut().zip(self.slots.iter().flatten()) {
            *room = slot.status();
        }
        let app = self.slots.get(self.app).and_then(Option::as_ref);
        // What is ended to be started again is not the app of this generation any more.
        let app = app.filter(|app| app.again.is_none());
        Status {
            generation: self.generation,
            started: self.started,
            app_ready: app.is_some_and(|app| app.life == Life::Ready),
            armed: matches!(self.phase, Phase::Armed | Phase::Running),
            stopping: matches!(self.phase, Phase::Stopping(_) | Phase::Ended),
            app_pid: app.map_or(0, |app| app.pid),
            agents: Agents::new(agents.get(..self.app).unwrap_or_default()),
        }
    }

    /// What is known of every process; `room` is for the list inside.
    pub fn processes<'s>(
        &self,
        now: Millis,
        room: &'s mut [ProcessStatus<'p>; MAX_PROCESSES],
    ) -> &'s [ProcessStatus<'p>] {
        for (room, slot) in room.iter_mut().zip(self.slots.iter().flatten()) {
            *room = slot.process_status(now);
        }
        room.get(..=self.app).unwrap_or_default()
    }

    /// The process of the plan that runs as `pid`.
    pub fn index_of(&self, pid: u32) -> Option<usize> {
        let is_it = |slot: &Option<Slot<'p>>| slot.as_ref().is_some_and(|slot| slot.pid == pid);
        self.slots.iter().position(is_it).filter(|_| pid != 0)
    }

    /// Whether the end of this child matters here: it is of the plan, a probe, a look or what
    /// cleans. Nothing follows from the end of anybody else, and orphans come by the thousand.
    pub fn knows(&self, pid: u32) -> bool {
        let is_its = |slot: &Slot<'p>| {
            let cleaner = slot.again.map_or(0, |again| again.cleaner());
            [slot.pid, slot.probe_pid(), cleaner].contains(&pid)
        };
        self.slots.iter().flatten().any(is_its) || self.looks.knows(pid)
    }

    /// Pids of the in-container agents that run.
    pub fn agent_pids(&self) -> impl Iterator<Item = u32> + '_ {
        let agents = self.slots.iter().take(self.app).flatten();
        agents.map(|slot| slot.pid).filter(|pid| *pid != 0)
    }

    fn slot(&mut self, index: usize) -> Option<&mut Slot<'p>> {
        self.slots.get_mut(index).and_then(Option::as_mut)
    }

    fn app_pid(&self) -> u32 {
        self.slots
            .get(self.app)
            .and_then(Option::as_ref)
            .map_or(0, |app| app.pid)
    }

    fn spawned(&mut self, index: usize, pid: u32, now: Millis, out: &mut Actions<'p, '_>) {
        let generation = self.generation;
        self.childless = false;
        let Some(slot) = self.slot(index) else { return };
        slot.run(pid, now);
        if slot.spec.kind == ProcessKind::App {
            out.push(Action::Report(EventKind::AppStarted { generation, pid }));
        }
        if slot.is_ready_at_once() {
            self.ready(index, out);
        }
    }

    fn ready(&mut self, index: usize, out: &mut Actions<'p, '_>) {
        let generation = self.generation;
        let Some(slot) = self.slot(index) else { return };
        if !slot.pass_gate() {
            return;
        }
        out.push(Action::Report(match slot.spec.kind {
            ProcessKind::App => EventKind::AppReady { generation },
            ProcessKind::Agent => EventKind::AgentReady {
                name: slot.spec.name,
            },
        }));
    }

    fn probed(&mut self, index: usize, passed: bool, now: Millis, out: &mut Actions<'p, '_>) {
        let Some(slot) = self.slot(index) else { return };
        if slot.probe_ended(now) && passed {
            self.ready(index, out);
        }
    }

    fn reaped(
        &mut self,
        pid: u32,
        status: ExitStatus,
        oom: bool,
        now: Millis,
        out: &mut Actions<'p, '_>,
    ) {
        let find = |pid_of: fn(&Slot<'p>) -> u32| {
            let is_it =
                |slot: &Option<Slot<'p>>| slot.as_ref().is_some_and(|slot| pid_of(slot) == pid);
            self.slots.iter().position(is_it)
        };
        if let Some(index) = find(|slot| slot.pid) {
            self.ended(index, pid, status, oom, now, out);
        } else if let Some(index) = find(|slot| slot.probe_pid()) {
            self.probed(index, status == ExitStatus::Code(0), now, out);
        } else if !self.cleaned(pid, status, now, out) {
            self.looks.reaped(pid, status, out);
        }
    }

    /// A process ended, or could not be executed at all.
    fn ended(
        &mut self,
        index: usize,
        pid: u32,
        status: ExitStatus,
        oom: bool,
        now: Millis,
        out: &mut Actions<'p, '_>,
    ) {
        let (generation, grace) = (self.generation, self.plan.stop_grace_ms);
        let stopping = matches!(self.phase, Phase::Stopping(_) | Phase::Ended);
        let Some(slot) = self.slot(index) else { return };
        let spec = slot.spec;
        let to_restart = slot.again.is_some() && !stopping;
        let again = slot.end(status, stopping, now, out, index);
        out.push(Action::Report(match to_restart {
            true => EventKind::Replaced {
                name: spec.name,
                pid,
                status,
                generation,
            },
            false => EventKind::Exited {
                name: spec.name,
                pid,
                status,
                oom,
                generation,
            },
        }));
        if to_restart {
            return self.gone_for_restart(index, out);
        }
        if again || (spec.kind == ProcessKind::Agent && spec.essential == Essential::No) {
            return;
        }
        let code = match spec.kind {
            ProcessKind::App => Some(spec.exit_code.unwrap_or(status.shell_code())),
            // The end of an essential agent is a failure, however it ended, unless it was asked.
            ProcessKind::Agent if stopping => None,
            ProcessKind::Agent => Some(spec.exit_code.unwrap_or(status.shell_code().max(1))),
        };
        self.exit_code = self.exit_code.or(code);
        if !stopping {
            self.begin_stop(grace, None, now);
        }
    }

    fn asked<'r>(&mut self, request: Request<'r>, now: Millis, out: &mut Actions<'p, 'r>) {
        let refuse = |request: RequestKind, code: Refusal| Action::Refuse { request, code };
        let kind = request.kind();
        match request {
            Request::Start(start) => self.asked_to_start(start, out),
            Request::Adopt(adopt) if adopt.generation < self.generation => {
                out.push(refuse(kind, Refusal::StaleGeneration))
            }
            Request::Adopt(_) if self.app_pid() == 0 => out.push(refuse(kind, Refusal::NotStarted)),
            Request::Adopt(_) if !matches!(self.phase, Phase::Running) => {
                out.push(refuse(kind, Refusal::Stopping))
            }
            Request::Adopt(adopt) => {
                self.generation = adopt.generation;
                out.push(Action::Answer);
            }
            Request::Stop { budget_ms } => self.begin_stop(budget_ms, None, now),
            Request::Restart(restart) => self.asked_to_restart(restart, now, out),
            Request::Signal { signal } => match self.app_pid() {
                0 => out.push(refuse(kind, Refusal::NotStarted)),
                pid => out.push(Action::Signal {
                    target: Target::Process(pid),
                    signal,
                }),
            },
            Request::Status => out.push(Action::Answer),
            Request::Processes => out.push(Action::AnswerProcesses),
            // What is kept for the agent belongs to the outbox.
            Request::Ack { .. } => {}
            Request::Look(look) => self.asked_to_look(look, now, out),
        }
    }

    fn asked_to_look(&mut self, look: Look, now: Millis, out: &mut Actions<'p, '_>) {
        let refusal = match self.phase {
            Phase::Stopping(_) | Phase::Ended => Refusal::Stopping,
            _ if self.plan.looks.argv(look.kind).is_none() => Refusal::Unsupported,
            _ if self.app_pid() == 0 => Refusal::NotStarted,
            _ => return self.looks.asked(look, now, out),
        };
        out.push(Action::Looked(Looked {
            id: look.id,
            outcome: LookOutcome::Refused(refusal),
        }));
    }

    fn asked_to_start<'r>(&mut self, start: Start<'r>, out: &mut Actions<'p, 'r>) {
        let refusal = match self.phase {
            _ if start.generation < self.generation => Refusal::StaleGeneration,
            _ if self.started && start.generation == self.generation => {
                out.push(Action::Answer);
                return;
            }
            Phase::Stopping(_) | Phase::Ended => Refusal::Stopping,
            _ if self.started => Refusal::AlreadyStarted,
            Phase::Arming => Refusal::NotArmed,
            Phase::Armed | Phase::Running => {
                self.started = true;
                self.generation = start.generation;
                self.phase = Phase::Running;
                let process = self.app;
                if let Some(app) = self.slot(process) {
                    app.life = Life::Spawning;
                }
                out.push(Action::Spawn {
                    process,
                    start: Some(start),
                });
                return;
            }
        };
        out.push(Action::Refuse {
            request: RequestKind::Start,
            code: refusal,
        });
    }

    /// A signal from outside. The first TERM begins a stop, the second one ends it.
    fn signalled(
        &mut self,
        received: u8,
        value: Option<u64>,
        now: Millis,
        out: &mut Actions<'p, '_>,
    ) {
        let mut rewrites = self.plan.signals.iter();
        let signal = rewrites
            .find(|rewrite| rewrite.from == received)
            .map_or(received, |rewrite| rewrite.to);
        if signal == 0 {
            return;
        }
        let grace = self.plan.stop_grace_ms;
        let app = self.app;
        let runs = self.app_pid() != 0;
        let is_second_term = match &mut self.phase {
            Phase::Stopping(stop) => received == SIGTERM && stop.term(now),
            _ => false,
        };
        match self.phase {
            Phase::Ended => return,
            Phase::Stopping(_) if is_second_term => return,
            Phase::Stopping(_) => {}
            _ if !runs && matches!(received, SIGTERM | SIGINT) => {
                self.exit_code = self.exit_code.or(Some(128 + received));
                return self.begin_stop(grace, Some(received), now);
            }
            _ if received == SIGTERM => return self.begin_stop(grace, Some(signal), now),
            _ => {}
        }
        if let Some(slot) = self.slot(app).filter(|slot| slot.pid != 0) {
            let target = slot.target(app);
            out.push(Action::Forward {
                target,
                signal,
                value,
            });
        }
    }

    fn timers(&mut self, now: Millis, out: &mut Actions<'p, '_>) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if let Some(slot) = slot
                && slot.farewell(index, now, out)
            {
                out.push(Action::Report(EventKind::LeftBehind {
                    name: slot.spec.name,
                    pid: slot.pid,
                }));
            }
        }
        if matches!(self.phase, Phase::Stopping(_) | Phase::Ended) {
            return;
        }
        self.looks.timers(now, out);
        self.restart_timers(now, out);
        let mut missed = None;
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let Some(slot) = slot else { continue };
            if slot.timers(index, now, out) {
                missed = missed.or(Some(slot.spec.exit_code.unwrap_or(1)));
            }
        }
        if missed.is_some() {
            self.exit_code = self.exit_code.or(missed);
            self.begin_stop(self.plan.stop_grace_ms, None, now);
        }
    }

    /// Starts every agent whose dependencies passed their gates; then the app is held, prepared, or
    /// started where there is nobody who could ask for it.
    fn arm(&mut self, out: &mut Actions<'p, '_>) {
        if self.phase != Phase::Arming {
            return;
        }
        let mut passed = 0u16;
        let mut all = true;
        for (index, slot) in self.slots.iter_mut().enumerate().take(self.app) {
            let Some(slot) = slot else { continue };
            if slot.life == Life::Waiting && slot.spec.after & !passed == 0 {
                slot.spawn(index, out);
            }
            let has = match slot.life {
                Life::Waiting | Life::Spawning => false,
                // An optional agent that failed once holds nobody.
                Life::Starting | Life::BackingOff { .. } => {
                    slot.failed_before && slot.spec.essential == Essential::No
                }
                _ => true,
            };
            all &= has;
            passed |= u16::from(has) << index;
        }
        if !all {
            return;
        }
        self.phase = Phase::Armed;
        out.push(Action::Report(EventKind::Armed));
        let app = self.app;
        if !self.plan.ctl_socket.is_empty() {
            out.push(Action::Prepare { process: app });
        } else if let Some(slot) = self.slot(app) {
            slot.spawn(app, out);
            self.started = true;
            self.phase = Phase::Running;
        }
    }
}

#[cfg(test)]
mod tests;
