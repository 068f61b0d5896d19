//! The loop: waits, turns what happened into inputs, performs the actions that come back.

use core::ffi::CStr;

use container_init::exits::{ExitRecord, ShortName};
use container_init::link::Outbox;
use container_init::plan::{List, MAX_PROCESSES, Plan, Process, ProcessKind, Readiness};
use container_init::protocol::{
    AgentStatus, EventKind, ExitStatus, Hello, LookKind, MAX_FRAME, Memory, Processes, Refusal,
    Report, Request, RequestKind, Start, first_frame,
};
use container_init::supervisor::{self, Action, Input, Supervisor, Target};

use super::alone::{self, Command};
use super::cgroup::Cgroups;
use super::clean;
use super::crowd::{self, Scope, Whose};
use super::disk::Disk;
use super::link::{Link, Outbound};
use super::memory::OomKills;
use super::notify::{Newline, Notify, Said, newline};
use super::prepared::{self, Prepared};
use super::say::{Number, say};
use super::spawn::{self, Order, Purpose};
use super::sys::{self, Errno, Fd, Infos, Inherited, Poll, Reaped, Received};

const SIGCHLD: u8 = 17;
const SIGKILL: u8 = 9;
/// Raised by terminal reads and writes of a background group; theirs, not the app's.
const SIGTTIN: u8 = 21;
const SIGTTOU: u8 = 22;

/// How many children, signals and datagrams of one kind are taken in one turn, so that a flood of
/// one cannot keep the others waiting.
const AT_ONCE: usize = 256;

/// Room for the loop.
pub struct Buffers {
    inbound: [u8; MAX_FRAME],
    outbound: Outbound,
    spawn: spawn::Buffers,
    frame: prepared::Frame,
    kept: prepared::Frame,
    infos: Infos,
    alone: alone::Buffers,
}

impl Buffers {
    pub const fn new() -> Self {
        Self {
            inbound: [0; MAX_FRAME],
            outbound: Outbound::new(),
            spawn: spawn::Buffers::new(),
            frame: [0; MAX_FRAME],
            kept: [0; MAX_FRAME],
            infos: [0; size_of::<Infos>()],
            alone: alone::Buffers::new(),
        }
    }
}

/// What the loop is about.
pub struct Task {
    pub plan: Plan<'static>,
    pub scope: Scope,
    pub inherited: Inherited,
    /// The app, where it is a command of the command line.
    pub command: Option<Command>,
    pub disk: Disk,
}

/// What every execution of a process is given.
#[derive(Clone, Copy)]
struct With {
    inherited: Inherited,
    cgroups: Option<Cgroups>,
}

/// How a process of the plan can tell that it is ready, and how we look.
#[derive(Default)]
struct Ears {
    notify: Option<Notify>,
    newline: Option<Fd>,
    tcp: Option<Fd>,
}

impl Ears {
    /// Makes what the process will say through; for a descriptor, our end to hand over. A process
    /// that cannot be given its way runs, and its gate tells that readiness never came.
    fn prepare(&mut self, process: &Process<'_>, run_dir: &CStr) -> Option<(Fd, u32)> {
        let failed = |errno: Errno| {
            say(&[
                process.name.as_bytes(),
                b": no way to say ready: errno ",
                Number::new(errno.0).as_bytes(),
            ]);
        };
        match process.readiness {
            Readiness::Notify { .. } if self.notify.is_none() => {
                self.notify = Notify::make(run_dir, process).map_err(failed).ok();
                None
            }
            Readiness::Notify { .. } => {
                self.forget();
                None
            }
            Readiness::NewlineFd { fd, .. } => {
                let (reading, writing) = sys::pipe().map_err(failed).ok()?;
                self.newline = Some(reading);
                Some((writing, fd))
            }
            _ => None,
        }
    }

    /// How the process itself is executed.
    fn order<'a>(
        &'a self,
        process: &Process<'static>,
        start: Option<Start<'a>>,
        newline: Option<&'a (Fd, u32)>,
        with: With,
    ) -> Order<'a> {
        Order {
            argv: process.argv,
            start,
            notify: self.notify.as_ref().map(Notify::path),
            newline: newline.map(|(writing, fd)| (writing, *fd)),
            log: None,
            purpose: Purpose::Run,
            inherited: with.inherited,
            cgroups: with.cgroups,
        }
    }

    /// What was said before a process runs does not count for it.
    fn forget(&self) {
        while self.notify.as_ref().and_then(Notify::receive).is_some() {}
    }
}

struct Pid1<'b> {
    plan: Plan<'static>,
    scope: Scope,
    inherited: Inherited,
    command: Option<Command>,
    disk: Disk,
    supervisor: &'b mut Supervisor<'static>,
    outbox: &'b mut Outbox<'static>,
    link: Link,
    cgroups: Cgroups,
    /// The container's.
    oom_kills: OomKills,
    /// Those of processes with a cgroup of their own.
    own_oom_kills: [OomKills; MAX_PROCESSES],
    ears: [Ears; MAX_PROCESSES],
    /// What waits to become the app.
    prepared: Option<Prepared>,
    /// There may be more to reap.
    reaping: bool,
    spawn: &'b mut spawn::Buffers,
    frame: &'b mut prepared::Frame,
    /// The start that a restart in place will need.
    kept: &'b mut prepared::Frame,
    kept_length: usize,
    alone: &'b mut alone::Buffers,
}

/// Runs the container. Ends the program when the supervisor says so.
pub fn turn(task: Task, signals: Fd, buffers: &'static mut Buffers) -> ! {
    let plan = task.plan;
    // Their places, so that neither is on the stack a second time on its way into one.
    let mut supervisor = Supervisor::new(plan);
    let mut outbox = Outbox::new();
    let mut pid1 = Pid1 {
        plan,
        scope: task.scope,
        inherited: task.inherited,
        command: task.command,
        disk: task.disk,
        supervisor: &mut supervisor,
        outbox: &mut outbox,
        link: Link::new(plan.ctl_socket, &mut buffers.outbound),
        cgroups: Cgroups::make(&plan),
        oom_kills: OomKills::open(None),
        own_oom_kills: Default::default(),
        ears: Default::default(),
        prepared: None,
        reaping: false,
        spawn: &mut buffers.spawn,
        frame: &mut buffers.frame,
        kept: &mut buffers.kept,
        kept_length: 0,
        alone: &mut buffers.alone,
    };
    let infos = &mut buffers.infos;
    let mut inbound = Inbound {
        bytes: &mut buffers.inbound,
        length: 0,
    };
    for (index, process) in plan.processes.iter().enumerate() {
        if pid1.cgroups.has(index)
            && let Some(kills) = pid1.own_oom_kills.get_mut(index)
        {
            *kills = OomKills::open(Some(process.name));
        }
    }
    pid1.feed(Input::Begin);
    if pid1.command.is_some() {
        // What the command was to inherit it has; we hold neither files nor a mount.
        pid1.close_inherited(&signals);
        sys::chdir(c"/").ok();
    }
    loop {
        let now = sys::now();
        if pid1.link.dial(now) {
            inbound.length = 0;
            pid1.greet(now);
        }
        pid1.link.flush(now);
        pid1.sleep(&signals);
        pid1.listen();
        pid1.signals(&signals, infos);
        pid1.reap();
        inbound.serve(&mut pid1);
        if pid1.supervisor.due().is_some_and(|due| due <= sys::now()) {
            pid1.feed(Input::Tick);
        }
    }
}

/// Bytes from the agent that are not a whole frame yet.
struct Inbound {
    bytes: &'static mut [u8; MAX_FRAME],
    length: usize,
}

impl Inbound {
    /// Reads what there is and obeys every whole frame.
    fn serve(&mut self, pid1: &mut Pid1<'_>) {
        while let Some(more) = pid1.link.read(
            self.bytes.get_mut(self.length..).unwrap_or_default(),
            sys::now(),
        ) {
            self.length += more;
            let mut used = 0;
            loop {
                match first_frame(self.bytes.get(used..self.length).unwrap_or_default()) {
                    Ok(Some(frame)) => {
                        pid1.obey(frame.body);
                        used += frame.length;
                    }
                    Ok(None) => break,
                    Err(_) => {
                        // Nobody knows where the next frame would begin.
                        pid1.refuse(None, Refusal::Malformed);
                        pid1.link.flush(sys::now());
                        pid1.link.hang_up(sys::now());
                        self.length = 0;
                        return;
                    }
                }
            }
            self.bytes.copy_within(used..self.length, 0);
            self.length -= used;
        }
    }
}

// What is apart from it (`inline(never)`) is on the stack while it runs, and not for ever.
impl Pid1<'_> {
    /// The inputs that an action leads to follow it, until there are none.
    fn feed(&mut self, input: Input<'_>) {
        let mut waiting = [None; 4 * MAX_PROCESSES];
        let (mut first, mut end) = (0, 1);
        waiting[0] = Some(input);
        while let Some(input) = waiting.get(first).copied().flatten() {
            first += 1;
            let mut room = supervisor::room();
            let actions = self.supervisor.step(input, sys::now(), &mut room);
            for action in actions.iter() {
                let Some(next) = self.perform(action) else {
                    continue;
                };
                if let Some(room) = waiting.get_mut(end) {
                    *room = Some(next);
                    end += 1;
                }
            }
        }
    }

    fn perform(&mut self, action: Action<'static, '_>) -> Option<Input<'static>> {
        match action {
            Action::Spawn { process, start } => return self.spawn(process, start),
            Action::Keep(start) => {
                self.kept_length = Request::Start(start).encode(self.kept).unwrap_or(0);
            }
            Action::SpawnAgain { process } => return self.spawn_again(process),
            Action::Sweep { process, leader } => return Some(self.sweep(process, leader)),
            Action::Clean { process } => {
                let plan = self.process(process)?;
                let pid = clean::begin(&plan).ok();
                return Some(Input::Cleaning { process, pid });
            }
            Action::RestartFailed { process } => {
                let name = self.process(process).map_or("", |process| process.name);
                say(&[name.as_bytes(), b": cannot be restarted in place"]);
            }
            Action::Prepare { process } => self.prepare(process),
            Action::EndPrepared => {
                if let Some(prepared) = self.prepared.take() {
                    prepared.end();
                }
            }
            Action::Probe { process } => return self.probe(process),
            Action::EndProbe { process, pid } => {
                if let Some(ears) = self.ears.get_mut(process) {
                    ears.tcp = None;
                }
                self.signal(Target::Group(pid), SIGKILL, None);
            }
            Action::Look { kind } => return self.look(kind),
            Action::Looked(looked) => self.link.write(&Report::Looked(looked), sys::now()),
            Action::Signal {
                target,
                signal: number,
            } => {
                if number == SIGKILL {
                    // An older kill for memory must not be taken for the cause of this one.
                    self.oom_kills.rose();
                }
                self.signal(target, number, None);
            }
            Action::Forward {
                target,
                signal,
                value,
            } => self.signal(target, signal, value),
            Action::Report(kind) => self.report(kind),
            Action::Answer => self.answer(),
            Action::AnswerProcesses => self.answer_processes(),
            Action::Refuse { request, code } => self.refuse(Some(request), code),
            Action::Exit { code } => {
                if !matches!(sys::wait_any(), Reaped::Childless) {
                    say(&[b"ends, although what was killed is not gone"]);
                }
                self.link.flush(sys::now());
                self.disk.drain();
                sys::exit(code)
            }
        }
        None
    }

    fn process(&self, index: usize) -> Option<Process<'static>> {
        self.plan.processes.iter().nth(index)
    }

    /// Without its cgroup a process has no limits: it is not executed then.
    fn with(&self, index: usize) -> With {
        With {
            inherited: self.inherited,
            cgroups: self.cgroups.has(index).then_some(self.cgroups),
        }
    }

    /// Without a prepared process the start makes one, so that a failure is no fault yet.
    #[inline(never)]
    fn prepare(&mut self, index: usize) {
        let with = self.with(index);
        let (Some(process), Some(ears)) = (self.process(index), self.ears.get_mut(index)) else {
            return;
        };
        let newline = ears.prepare(&process, self.plan.run_dir);
        let order = Order {
            log: self.disk.pipes(index),
            ..ears.order(&process, None, newline.as_ref(), with)
        };
        match Prepared::make(&process, order, self.spawn, self.frame) {
            Ok(prepared) => self.prepared = Some(prepared),
            Err(errno) => say(&[
                process.name.as_bytes(),
                b": cannot be prepared: errno ",
                Number::new(errno.0).as_bytes(),
            ]),
        }
    }

    fn spawn(&mut self, index: usize, start: Option<Start<'_>>) -> Option<Input<'static>> {
        let process = self.process(index)?;
        if !self.cgroups.suffice(index, &process) {
            let step = b"cannot have a cgroup of its own";
            let not = spawn::not_spawned(process.name, step, Errno::EROFS, 0);
            return Some(spawned(index, Err(not)));
        }
        let with = self.with(index);
        let ears = self.ears.get_mut(index)?;
        if let (Some(start), Some(prepared)) = (start, self.prepared.take()) {
            ears.forget();
            if let Some(pid) = prepared.start(start, self.frame) {
                return Some(Input::Spawned {
                    process: index,
                    pid,
                });
            }
        }
        if let (Some(command), ProcessKind::App) = (self.command, process.kind) {
            return Some(spawned(index, command.spawn(process.name, self.alone)));
        }
        let newline = ears.prepare(&process, self.plan.run_dir);
        let order = Order {
            log: self.disk.pipes(index),
            ..ears.order(&process, start, newline.as_ref(), with)
        };
        Some(spawned(index, spawn::spawn(&process, order, self.spawn)))
    }

    #[inline(never)]
    fn spawn_again(&mut self, index: usize) -> Option<Input<'static>> {
        let process = self.process(index)?;
        if process.kind == ProcessKind::Agent {
            return self.spawn(index, None);
        }
        // Copied, because what is executed may be prepared in the same room.
        let kept = self.kept.get(..self.kept_length)?;
        self.frame.get_mut(..kept.len())?.copy_from_slice(kept);
        let with = self.with(index);
        let ears = self.ears.get_mut(index)?;
        let newline = ears.prepare(&process, self.plan.run_dir);
        let frame = first_frame(self.frame.get(..self.kept_length)?).ok()??;
        let Ok(Request::Start(start)) = Request::decode(frame.body) else {
            return None;
        };
        let order = Order {
            log: self.disk.pipes(index),
            ..ears.order(&process, Some(start), newline.as_ref(), with)
        };
        Some(spawned(index, spawn::spawn(&process, order, self.spawn)))
    }

    /// Whom the signals of a process of the plan are for.
    fn whose(&self, index: usize, leader: u32) -> Whose {
        let is_app = index + 1 == self.plan.processes.len();
        if !is_app {
            return Whose::Session(leader);
        }
        let mut agents = [0; MAX_PROCESSES];
        for (room, pid) in agents.iter_mut().zip(self.supervisor.agent_pids()) {
            *room = pid;
        }
        Whose::AllButAgents(agents)
    }

    fn sweep(&self, process: usize, leader: u32) -> Input<'static> {
        let swept = self.signal_all(process, leader, SIGKILL);
        // Where nobody can be told apart nothing is proven.
        let found = swept.unwrap_or(true);
        Input::Swept { process, found }
    }

    #[inline(never)]
    fn probe(&mut self, index: usize) -> Option<Input<'static>> {
        let process = self.process(index)?;
        let failed = Input::Probed {
            process: index,
            passed: false,
        };
        match process.readiness {
            Readiness::TcpLoopback { port, .. } => Some(match sys::connect_loopback(port) {
                Ok((_, true)) => Input::Probed {
                    process: index,
                    passed: true,
                },
                Ok((socket, false)) => {
                    self.ears.get_mut(index)?.tcp = Some(socket);
                    Input::Probing {
                        process: index,
                        pid: None,
                    }
                }
                Err(_) => failed,
            }),
            Readiness::Exec { argv, .. } => {
                let order = Order {
                    argv,
                    start: None,
                    notify: None,
                    newline: None,
                    log: None,
                    purpose: Purpose::Probe,
                    inherited: self.inherited,
                    cgroups: self.with(index).cgroups,
                };
                Some(match spawn::spawn(&process, order, self.spawn) {
                    Ok(pid) => Input::Probing {
                        process: index,
                        pid: Some(pid),
                    },
                    Err(_) => failed,
                })
            }
            _ => Some(failed),
        }
    }

    #[inline(never)]
    fn look(&mut self, kind: LookKind) -> Option<Input<'static>> {
        let app = self.plan.processes.iter().last()?;
        let order = Order {
            argv: self.plan.looks.argv(kind)?,
            start: None,
            notify: None,
            newline: None,
            log: None,
            purpose: Purpose::Look,
            inherited: self.inherited,
            cgroups: self
                .with(self.plan.processes.len().saturating_sub(1))
                .cgroups,
        };
        Some(match spawn::spawn(&app, order, self.spawn) {
            Ok(pid) => Input::Looking { kind, pid },
            Err(not) => Input::NotLooking {
                kind,
                errno: not.errno.0.unsigned_abs(),
            },
        })
    }

    fn report(&mut self, kind: EventKind<'static>) {
        let app = self.plan.processes.iter().last().map_or("", |app| app.name);
        let event = self.outbox.push(kind, app);
        let now = sys::now();
        // First the agent, who waits.
        self.link.write_event(event, now);
        self.link.flush(now);
        if let EventKind::LeftBehind { name, pid } = kind {
            say(&[
                name.as_bytes(),
                b": killed and does not go, pid ",
                Number::new(pid.cast_signed()).as_bytes(),
            ]);
        }
        if let EventKind::Exited {
            name,
            pid,
            status,
            oom,
            generation,
        } = kind
        {
            let create_generation = self.plan.create_generation;
            let name = ShortName::cut(name);
            self.disk.record(&ExitRecord {
                seq: event.seq,
                create_generation,
                generation,
                pid,
                status,
                oom,
                name,
            });
        }
    }

    #[inline(never)]
    fn answer(&mut self) {
        let mut agents = [AgentStatus::default(); MAX_PROCESSES];
        let status = self.supervisor.status(&mut agents);
        self.link.write(&Report::Status(status), sys::now());
    }

    #[inline(never)]
    fn answer_processes(&mut self) {
        let mut room = Default::default();
        let now = sys::now();
        let list = List::new(self.supervisor.processes(now, &mut room));
        let memory = self.oom_kills.memory(None);
        let processes = Processes { memory, list };
        self.link.write(&Report::Processes(processes), now);
    }

    fn refuse(&mut self, request: Option<RequestKind>, code: Refusal) {
        self.link
            .write(&Report::Refused { request, code }, sys::now());
    }

    /// Hello, then every event that was not acked.
    fn greet(&mut self, now: u64) {
        let hello = Hello {
            version: self.link.version(),
            container_id: self.plan.container_id,
            create_generation: self.plan.create_generation,
            generation: self.supervisor.generation(),
            started: self.supervisor.started(),
            first_unacked_seq: self.outbox.first_unacked_seq(),
        };
        self.link.write(&Report::Hello(hello), now);
        for event in self.outbox.iter() {
            self.link.write_event(event, now);
        }
        self.feed(Input::Connected);
    }

    fn obey(&mut self, frame: &[u8]) {
        match Request::decode(frame) {
            Ok(request) => {
                self.link.heard();
                if let Request::Ack { seq } = request {
                    self.outbox.ack(seq);
                }
                self.feed(Input::Asked(request));
            }
            Err(_) => {
                let kind = frame.first().and_then(|kind| RequestKind::from_wire(*kind));
                self.refuse(kind, Refusal::Malformed);
            }
        }
    }

    /// Waits until something happens or is due. Without either it sleeps for ever.
    fn sleep(&self, signals: &Fd) {
        let mut polls = [Poll::default(); 2 + 3 * MAX_PROCESSES];
        let ears = self.ears.iter().flat_map(|ears| {
            let notify = ears
                .notify
                .as_ref()
                .map(|notify| Poll::readable(notify.socket()));
            let newline = ears.newline.as_ref().map(Poll::readable);
            [notify, newline, ears.tcp.as_ref().map(Poll::writable)]
        });
        let wanted = [Some(Poll::readable(signals)), self.link.poll()]
            .into_iter()
            .chain(ears)
            .flatten();
        let mut count = 0;
        for (room, poll) in polls.iter_mut().zip(wanted) {
            *room = poll;
            count += 1;
        }
        let due = [self.supervisor.due(), self.link.due()]
            .into_iter()
            .flatten()
            .min();
        let timeout = match due {
            _ if self.reaping => Some(0),
            due => due.map(|due| due.saturating_sub(sys::now())),
        };
        sys::wait(polls.get_mut(..count).unwrap_or_default(), timeout);
    }

    /// Hears what the processes say of themselves, before their ends are read: a process that was
    /// ready and left was ready.
    fn listen(&mut self) {
        for process in 0..MAX_PROCESSES {
            for _ in 0..AT_ONCE {
                let notify = self.ears.get(process).and_then(|ears| ears.notify.as_ref());
                let Some(said) = notify.and_then(Notify::receive) else {
                    break;
                };
                if said == Said::Ready {
                    self.feed(Input::Ready { process });
                }
            }
            let Some(ears) = self.ears.get_mut(process) else {
                continue;
            };
            let said = ears.newline.as_ref().map(newline);
            if matches!(said, Some(Newline::Ready | Newline::Closed)) {
                ears.newline = None;
            }
            let connected = ears
                .tcp
                .take_if(|socket| is_decided(socket))
                .map(|socket| sys::connection_error(&socket).is_ok());
            if said == Some(Newline::Ready) {
                self.feed(Input::Ready { process });
            }
            if let Some(passed) = connected {
                self.feed(Input::Probed { process, passed });
            }
        }
    }

    fn signals(&mut self, signals: &Fd, room: &mut Infos) {
        for Received {
            signal,
            sent,
            value,
        } in sys::received(sys::next_signals(signals, room))
        {
            match signal {
                SIGCHLD => {
                    self.reaping = true;
                    if sent {
                        self.feed(Input::Signalled { signal, value });
                    }
                }
                SIGTTIN | SIGTTOU if !sent => {}
                signal => self.feed(Input::Signalled { signal, value }),
            }
        }
    }

    /// One end is held back until it is known whether anybody is left: after the last one nobody has
    /// to be looked for.
    fn reap(&mut self) {
        let mut held = None;
        for _ in 0..AT_ONCE {
            if !self.reaping {
                break;
            }
            match sys::wait_any() {
                Reaped::Child(pid, status) => {
                    if let Some((pid, status)) = held.replace((pid, status)) {
                        self.reaped(pid, status);
                    }
                }
                Reaped::NoneEnded => self.reaping = false,
                Reaped::Childless => {
                    self.reaping = false;
                    self.feed(Input::Childless);
                }
            }
        }
        if let Some((pid, status)) = held {
            self.reaped(pid, status);
        }
    }

    fn reaped(&mut self, pid: u32, status: ExitStatus) {
        self.prepared.take_if(|prepared| prepared.pid() == pid);
        let index = self.supervisor.index_of(pid);
        let process = index.and_then(|index| self.process(index));
        let name = process.map_or("", |process| process.name);
        if let Some(index) = index {
            self.disk.ended(index);
        }
        let oom = status == ExitStatus::Signal(SIGKILL) && self.ran_out_of_memory(index);
        if oom {
            let memory = self.memory_of(index);
            self.report(EventKind::OutOfMemory { name, pid, memory });
            say(&[
                name.as_bytes(),
                b": killed by the kernel: out of memory, pid ",
                Number::new(pid.cast_signed()).as_bytes(),
            ]);
        }
        if self.supervisor.knows(pid) {
            self.feed(Input::Reaped { pid, status, oom });
        }
    }

    /// Whether its own counter or the container's rose. Version 2 counts in both, version 1 in that of
    /// the victim only.
    fn ran_out_of_memory(&mut self, index: Option<usize>) -> bool {
        let own = index.and_then(|index| self.own_oom_kills.get_mut(index));
        let own = own.is_some_and(OomKills::rose);
        self.oom_kills.rose() || own
    }

    fn memory_of(&self, index: Option<usize>) -> Memory {
        let own = index.filter(|index| self.cgroups.has(*index));
        let counter = own.and_then(|index| self.own_oom_kills.get(index));
        let name = own
            .and_then(|index| self.process(index))
            .map(|process| process.name);
        counter.unwrap_or(&self.oom_kills).memory(name)
    }

    /// Sends a signal to all that belongs to a process; whether there was anybody.
    fn signal_all(&self, index: usize, leader: u32, number: u8) -> sys::Result<bool> {
        match self.process(index) {
            Some(process) if self.cgroups.has(index) => self.cgroups.signal(process.name, number),
            _ => crowd::signal(self.whose(index, leader), self.scope, number),
        }
    }

    /// Sends a signal. A process that is gone, or that we may not signal, is no reason to end.
    fn signal(&self, target: Target, number: u8, value: Option<u64>) {
        let sent = match (target, value) {
            // 0 would be our own group.
            (Target::Process(0) | Target::Group(0), _) => return,
            (Target::Process(pid), Some(value)) => sys::queue(pid.cast_signed(), number, value),
            (Target::Process(pid), None) => sys::kill(pid.cast_signed(), number),
            (Target::Group(pid), _) => sys::kill(-pid.cast_signed(), number),
            (Target::All { process, leader }, _) => {
                match self.signal_all(process, leader, number) {
                    Ok(_) => Ok(()),
                    // Without /proc its group is what we know.
                    Err(_) => sys::kill(-leader.cast_signed(), number),
                }
            }
            (Target::Everybody, _) if self.scope == Scope::Namespace => sys::kill(-1, number),
            (Target::Everybody, _) => self.signal_descendants(number),
        };
        if let Err(errno) = sent {
            say(&[
                b"cannot send signal ",
                Number::new(i32::from(number)).as_bytes(),
                b": errno ",
                Number::new(errno.0).as_bytes(),
            ]);
        }
    }

    /// All below us, in a pid namespace that is not ours.
    fn signal_descendants(&self, number: u8) -> sys::Result<()> {
        if crowd::signal(Whose::Everybody, self.scope, number).is_ok() {
            return Ok(());
        }
        let mut room = Default::default();
        let known = self.supervisor.processes(0, &mut room);
        for process in known.iter().filter(|process| process.pid != 0) {
            sys::kill(-process.pid.cast_signed(), number)?;
        }
        Ok(())
    }

    /// Closes what only the command was to inherit.
    fn close_inherited(&self, signals: &Fd) {
        let kept = signals.raw().cast_unsigned();
        let counter = self.oom_kills.descriptor().unwrap_or(kept);
        sys::close_others([kept, counter]);
    }
}

fn spawned(process: usize, result: Result<u32, spawn::NotSpawned>) -> Input<'static> {
    match result {
        Ok(pid) => Input::Spawned { process, pid },
        Err(not) => Input::NotSpawned {
            process,
            pid: not.pid,
            code: not.code,
        },
    }
}

/// Whether a connection that was begun stands or failed.
fn is_decided(socket: &Fd) -> bool {
    let mut poll = [Poll::writable(socket)];
    sys::wait(&mut poll, Some(0));
    poll.iter().any(Poll::happened)
}
