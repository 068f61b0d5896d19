//! The loop: waits, turns what happened into inputs, performs the actions that come back.

use core::ffi::CStr;

use container_init::exits::{ExitRecord, ShortName};
use container_init::link::Outbox;
use container_init::plan::{MAX_PROCESSES, Plan, Process, Readiness};
use container_init::protocol::{
    AgentStatus, EventKind, ExitStatus, Hello, LookKind, MAX_FRAME, Refusal, Report, Request,
    RequestKind, Start, VERSION, first_frame,
};
use container_init::supervisor::{Action, Input, Scope, Supervisor, Target};

use super::cgroup::OomKills;
use super::link::{Link, Outbound};
use super::notify::{Newline, Notify, Said, newline};
use super::prepared::{self, Prepared};
use super::ring::Ring;
use super::say::{Number, say};
use super::spawn::{self, Order, Purpose};
use super::sys::{self, Errno, Fd, Poll, Reaped};

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
}

impl Buffers {
    pub const fn new() -> Self {
        Self {
            inbound: [0; MAX_FRAME],
            outbound: Outbound::new(),
            spawn: spawn::Buffers::new(),
            frame: [0; MAX_FRAME],
        }
    }
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
    ) -> Order<'a> {
        Order {
            argv: process.argv,
            start,
            notify: self.notify.as_ref().map(Notify::path),
            newline: newline.map(|(writing, fd)| (writing, *fd)),
            purpose: Purpose::Run,
        }
    }

    /// What was said before a process runs does not count for it.
    fn forget(&self) {
        while self.notify.as_ref().and_then(Notify::receive).is_some() {}
    }
}

struct Pid1<'b> {
    plan: Plan<'static>,
    supervisor: Supervisor<'static>,
    outbox: Outbox<'static>,
    link: Link,
    ring: Ring,
    oom_kills: OomKills,
    ears: [Ears; MAX_PROCESSES],
    /// What waits to become the app.
    prepared: Option<Prepared>,
    /// There may be more to reap.
    reaping: bool,
    spawn: &'b mut spawn::Buffers,
    frame: &'b mut prepared::Frame,
}

/// Runs the container. Ends the program when the supervisor says so.
pub fn turn(plan: Plan<'static>, scope: Scope, signals: Fd, buffers: &'static mut Buffers) -> ! {
    let mut pid1 = Pid1 {
        plan,
        supervisor: Supervisor::new(plan, scope),
        outbox: Outbox::new(),
        link: Link::new(plan.ctl_socket, &mut buffers.outbound),
        ring: Ring::open(plan.exits),
        oom_kills: OomKills::open(),
        ears: Default::default(),
        prepared: None,
        reaping: false,
        spawn: &mut buffers.spawn,
        frame: &mut buffers.frame,
    };
    let mut inbound = Inbound {
        bytes: &mut buffers.inbound,
        length: 0,
    };
    pid1.feed(Input::Begin);
    loop {
        let now = sys::now();
        if pid1.link.dial(now) {
            inbound.length = 0;
            pid1.greet(now);
        }
        pid1.link.flush(now);
        pid1.sleep(&signals);
        pid1.listen();
        pid1.signals(&signals);
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

impl Pid1<'_> {
    /// The inputs that an action leads to follow it, until there are none.
    fn feed(&mut self, input: Input<'_>) {
        let mut waiting = [None; 4 * MAX_PROCESSES];
        let (mut first, mut end) = (0, 1);
        waiting[0] = Some(input);
        while let Some(input) = waiting.get(first).copied().flatten() {
            first += 1;
            for action in self.supervisor.step(input, sys::now()).iter() {
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
                signal(Target::Group(pid), SIGKILL);
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
                signal(target, number);
            }
            Action::Report(kind) => self.report(kind),
            Action::Answer => self.answer(),
            Action::Refuse { request, code } => self.refuse(Some(request), code),
            Action::Exit { code } => {
                self.link.flush(sys::now());
                sys::exit(code)
            }
        }
        None
    }

    fn process(&self, index: usize) -> Option<Process<'static>> {
        self.plan.processes.iter().nth(index)
    }

    /// Without a prepared process the start makes one, so that a failure is no fault yet.
    fn prepare(&mut self, index: usize) {
        let (Some(process), Some(ears)) = (self.process(index), self.ears.get_mut(index)) else {
            return;
        };
        let newline = ears.prepare(&process, self.plan.run_dir);
        let order = ears.order(&process, None, newline.as_ref());
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
        let newline = ears.prepare(&process, self.plan.run_dir);
        let order = ears.order(&process, start, newline.as_ref());
        Some(match spawn::spawn(&process, order, self.spawn) {
            Ok(pid) => Input::Spawned {
                process: index,
                pid,
            },
            Err(not) => Input::NotSpawned {
                process: index,
                pid: not.pid,
                code: not.code,
            },
        })
    }

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
                    purpose: Purpose::Probe,
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

    fn look(&mut self, kind: LookKind) -> Option<Input<'static>> {
        let app = self.plan.processes.iter().last()?;
        let order = Order {
            argv: self.plan.looks.argv(kind)?,
            start: None,
            notify: None,
            newline: None,
            purpose: Purpose::Look,
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
        // First the agent, who waits; then the disk.
        self.link.write(&Report::Event(event), now);
        self.link.flush(now);
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
            self.ring.record(&ExitRecord {
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

    fn answer(&mut self) {
        let mut agents = [AgentStatus::default(); MAX_PROCESSES];
        let status = self.supervisor.status(&mut agents);
        self.link.write(&Report::Status(status), sys::now());
    }

    fn refuse(&mut self, request: Option<RequestKind>, code: Refusal) {
        self.link
            .write(&Report::Refused { request, code }, sys::now());
    }

    /// Hello, then every event that was not acked.
    fn greet(&mut self, now: u64) {
        let hello = Hello {
            version: VERSION,
            container_id: self.plan.container_id,
            create_generation: self.plan.create_generation,
            generation: self.supervisor.generation(),
            started: self.supervisor.started(),
            first_unacked_seq: self.outbox.first_unacked_seq(),
        };
        self.link.write(&Report::Hello(hello), now);
        for event in self.outbox.iter() {
            self.link.write(&Report::Event(event), now);
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

    fn signals(&mut self, signals: &Fd) {
        for _ in 0..AT_ONCE {
            let Some(number) = sys::next_signal(signals) else {
                return;
            };
            match number {
                SIGCHLD => self.reaping = true,
                SIGTTIN | SIGTTOU => {}
                number => self.feed(Input::Signalled(number)),
            }
        }
    }

    fn reap(&mut self) {
        for _ in 0..AT_ONCE {
            if !self.reaping {
                return;
            }
            match sys::wait_any() {
                Reaped::Child(pid, status) => {
                    self.prepared.take_if(|prepared| prepared.pid() == pid);
                    let oom = status == ExitStatus::Signal(SIGKILL) && self.oom_kills.rose();
                    self.feed(Input::Reaped { pid, status, oom });
                }
                Reaped::NoneEnded => self.reaping = false,
                Reaped::Childless => {
                    self.reaping = false;
                    self.feed(Input::Childless);
                }
            }
        }
    }
}

/// Whether a connection that was begun stands or failed.
fn is_decided(socket: &Fd) -> bool {
    let mut poll = [Poll::writable(socket)];
    sys::wait(&mut poll, Some(0));
    poll.iter().any(Poll::happened)
}

fn signal(target: Target, number: u8) {
    let (pid, sign) = match target {
        // 0 would be our own group.
        Target::Process(0) | Target::Group(0) => return,
        Target::Process(pid) => (pid, 1),
        Target::Group(pid) => (pid, -1),
        Target::Everybody => (1, -1),
    };
    let sent = i32::try_from(pid).map(|pid| sys::kill(sign * pid, number));
    if let Ok(Err(errno)) = sent {
        let number = Number::new(i32::from(number));
        say(&[
            b"cannot send signal ",
            number.as_bytes(),
            b": errno ",
            Number::new(errno.0).as_bytes(),
        ]);
    }
}
