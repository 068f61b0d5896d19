//! What init says: hello, status, refusals, events, answers.

use core::fmt;

use super::request::RequestKind;
use super::{Event, EventKind, Looked, MAX_FRAME_BODY, OLDEST_VERSION, Processes, VERSION};
use crate::wire::{Malformed, Reader, TooLarge, Writer};

/// A message from init.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report<'a> {
    /// The first message of a connection; every event that is not acked follows it.
    Hello(Hello<'a>),
    /// Answer to status, to adopt, and to a start that changed nothing.
    Status(Status<'a>),
    /// A request that had no effect.
    Refused {
        /// The request; `None` when its kind could not be read.
        request: Option<RequestKind>,
        /// Why.
        code: Refusal,
    },
    /// Something happened; kept and sent again until acked.
    Event(Event<'a>),
    /// Answer to a look.
    Looked(Looked),
    /// Answer to the question for processes.
    Processes(Processes<'a>),
}

/// Body of [`Report::Hello`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello<'a> {
    /// Protocol version, [`OLDEST_VERSION`]..=[`VERSION`].
    pub version: u16,
    /// Container id from the plan; a claim, which the agent checks against the peer's cgroup.
    pub container_id: &'a str,
    /// Generation that created the container.
    pub create_generation: u64,
    /// Generation that init works for: of the create, or of the last start or adopt.
    pub generation: u64,
    /// Whether the app was started at any time.
    pub started: bool,
    /// Sequence number of the oldest event that is kept, or of the next one when none is. Greater
    /// than the agent's last ack + 1 when events were dropped while it was away.
    pub first_unacked_seq: u64,
}

/// Body of [`Report::Status`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status<'a> {
    /// As in [`Hello::generation`].
    pub generation: u64,
    /// Whether the app was started at any time.
    pub started: bool,
    /// Whether the app said that it is ready; stays false when the agent probes it.
    pub app_ready: bool,
    /// Whether every agent passed its gate.
    pub armed: bool,
    /// Whether a stop is under way.
    pub stopping: bool,
    /// Pid inside the container; 0 when the app does not run.
    pub app_pid: u32,
    /// The in-container agents, in the plan's order.
    pub agents: Agents<'a>,
}

/// An in-container agent in a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AgentStatus<'a> {
    /// Name from the plan.
    pub name: &'a str,
    /// What it does.
    pub state: AgentState,
    /// Pid inside the container; 0 when it does not run.
    pub pid: u32,
}

/// What an in-container agent does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum AgentState {
    /// Its turn has not come.
    #[default]
    Waiting = 0,
    /// It runs and has not passed its gate.
    Starting = 1,
    /// It runs and is ready.
    Ready = 2,
    /// It ended and will be started again.
    BackingOff = 3,
    /// It was told to stop and still runs.
    Stopping = 4,
    /// It ended for good.
    Ended = 5,
}

/// Why a request had no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Refusal {
    /// Its generation is older than the one init works for.
    StaleGeneration = 1,
    /// Not every agent passed its gate yet.
    NotArmed = 2,
    /// The app runs, or ran, for another generation.
    AlreadyStarted = 3,
    /// A stop is under way.
    Stopping = 4,
    /// The frame could not be read.
    Malformed = 5,
    /// This version cannot do it.
    Unsupported = 6,
    /// The app does not run.
    NotStarted = 7,
    /// The plan has no process of this name.
    UnknownProcess = 8,
}

const HELLO: u8 = 129;
const STATUS: u8 = 130;
const REFUSED: u8 = 131;
const EVENT: u8 = 132;
const LOOKED: u8 = 133;
const PROCESSES: u8 = 134;

impl<'a> Report<'a> {
    /// Writes the whole frame into `buf` and returns its length on the wire.
    pub fn encode(&self, buf: &mut [u8]) -> Result<usize, TooLarge> {
        let mut w = Writer::new(buf);
        let frame = w.open();
        match self {
            Self::Hello(hello) => {
                w.u8(HELLO);
                w.u16(hello.version);
                w.text(hello.container_id);
                w.u64(hello.create_generation);
                w.u64(hello.generation);
                w.flag(hello.started);
                w.u64(hello.first_unacked_seq);
            }
            Self::Status(status) => {
                w.u8(STATUS);
                w.u64(status.generation);
                w.flag(status.started);
                w.flag(status.app_ready);
                w.flag(status.armed);
                w.flag(status.stopping);
                w.u32(status.app_pid);
                status.agents.encode(&mut w);
            }
            Self::Refused { request, code } => {
                w.u8(REFUSED);
                w.u8(request.map_or(0, |kind| kind as u8));
                w.u8(*code as u8);
            }
            Self::Event(event) => {
                w.u8(EVENT);
                w.u64(event.seq);
                event.kind.encode(&mut w);
            }
            Self::Looked(looked) => {
                w.u8(LOOKED);
                looked.encode(&mut w);
            }
            Self::Processes(processes) => {
                w.u8(PROCESSES);
                processes.encode(&mut w);
            }
        }
        w.close(frame);
        match w.finish() {
            Ok(length) if length <= MAX_FRAME_BODY + 4 => Ok(length),
            _ => Err(TooLarge),
        }
    }

    /// Reads kind and body as [`super::first_frame`] hands them out.
    pub fn decode(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(body);
        let report = match r.u8("report kind") {
            HELLO => Self::Hello(Hello {
                version: match r.u16("version") {
                    version @ OLDEST_VERSION..=VERSION => version,
                    _ => r.known("version", None, VERSION),
                },
                container_id: r.text("container id"),
                create_generation: r.u64("create generation"),
                generation: r.u64("generation"),
                started: r.flag("started"),
                first_unacked_seq: r.u64("first unacked seq"),
            }),
            STATUS => Self::Status(Status {
                generation: r.u64("generation"),
                started: r.flag("started"),
                app_ready: r.flag("app ready"),
                armed: r.flag("armed"),
                stopping: r.flag("stopping"),
                app_pid: r.u32("app pid"),
                agents: Agents::decode(&mut r),
            }),
            REFUSED => Self::Refused {
                request: match r.u8("refused request") {
                    0 => None,
                    kind => {
                        let kind = RequestKind::from_wire(kind).map(Some);
                        r.known("refused request", kind, None)
                    }
                },
                code: Refusal::decode(&mut r, "refusal"),
            },
            EVENT => Self::Event(Event {
                seq: r.u64("seq"),
                kind: EventKind::decode(&mut r),
            }),
            LOOKED => Self::Looked(Looked::decode(&mut r)),
            PROCESSES => Self::Processes(Processes::decode(&mut r)),
            _ => {
                r.invalid("report kind");
                Self::Refused {
                    request: None,
                    code: Refusal::Malformed,
                }
            }
        };
        r.end("report")?;
        Ok(report)
    }
}

impl Refusal {
    pub(super) fn from_wire(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::StaleGeneration,
            2 => Self::NotArmed,
            3 => Self::AlreadyStarted,
            4 => Self::Stopping,
            5 => Self::Malformed,
            6 => Self::Unsupported,
            7 => Self::NotStarted,
            8 => Self::UnknownProcess,
            _ => return None,
        })
    }

    pub(super) fn decode(r: &mut Reader<'_>, what: &'static str) -> Self {
        let code = Self::from_wire(r.u8(what));
        r.known(what, code, Self::Malformed)
    }
}

impl AgentState {
    /// Every state, in the order of their numbers.
    const ALL: [Self; 6] = [
        Self::Waiting,
        Self::Starting,
        Self::Ready,
        Self::BackingOff,
        Self::Stopping,
        Self::Ended,
    ];
}

/// The agents of a status, built from a slice or borrowed from a frame.
#[derive(Clone, Copy)]
pub struct Agents<'a>(Source<'a>);

#[derive(Clone, Copy)]
enum Source<'a> {
    Given(&'a [AgentStatus<'a>]),
    /// Count, then agents; checked when it was decoded.
    Encoded(u16, &'a [u8]),
}

impl<'a> Agents<'a> {
    /// A list of these agents.
    pub fn new(agents: &'a [AgentStatus<'a>]) -> Self {
        Self(Source::Given(agents))
    }

    /// The agents in order.
    pub fn iter(&self) -> impl Iterator<Item = AgentStatus<'a>> + use<'a> {
        let (given, count, bytes) = match self.0 {
            Source::Given(agents) => (agents, 0, &[][..]),
            Source::Encoded(count, bytes) => (&[][..], count, bytes),
        };
        let mut r = Reader::new(bytes);
        given
            .iter()
            .copied()
            .chain((0..count).map(move |_| agent(&mut r)))
    }

    fn encode(&self, w: &mut Writer<'_>) {
        w.count(self.iter().count());
        for agent in self.iter() {
            w.text(agent.name);
            w.u8(agent.state as u8);
            w.u32(agent.pid);
        }
    }

    fn decode(r: &mut Reader<'a>) -> Self {
        let count = r.u16("agents");
        // The agents are the last of a status, so that what is left is their bytes.
        let bytes = r.rest();
        let mut check = Reader::new(bytes);
        for _ in 0..count {
            if check.is_sound() {
                agent(&mut check);
            }
        }
        r.end_of(&check, "agents");
        Self(Source::Encoded(count, bytes))
    }
}

impl fmt::Debug for Agents<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl PartialEq for Agents<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Agents<'_> {}

fn agent<'a>(r: &mut Reader<'a>) -> AgentStatus<'a> {
    AgentStatus {
        name: r.text("agent name"),
        state: r.one_of("agent state", AgentState::ALL),
        pid: r.u32("agent pid"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        ExitStatus, LookOutcome, MAX_FRAME, Memory, ProcessState, ProcessStatus, first_frame,
    };
    use super::*;
    use crate::plan::List;
    use proptest::prelude::*;
    use std::vec;

    fn assert_survives(report: Report<'_>) {
        let mut buf = vec![0; MAX_FRAME];
        let length = report.encode(&mut buf).unwrap();
        let frame = first_frame(&buf[..length]).unwrap().unwrap();
        assert_eq!(Report::decode(frame.body), Ok(report));
    }

    proptest! {
        #[test]
        fn every_report_survives_the_wire(
            generation: u64, seq: u64, pid: u32, a: bool, b: bool, c: bool, d: bool, value: u8,
            name in ".{0,40}", state in 0u8..=5, code in 1u8..=8, kind in 0u8..=9, limit_bytes: u64,
        ) {
            let name = name.as_str();
            assert_survives(Report::Hello(Hello {
                version: VERSION, container_id: name, create_generation: seq, generation, started: a, first_unacked_seq: seq,
            }));
            let state = AgentState::ALL[usize::from(state)];
            let agents = [AgentStatus { name, state, pid }, AgentStatus { name: "b", state, pid: 0 }];
            assert_survives(Report::Status(Status {
                generation, started: a, app_ready: b, armed: c, stopping: d, app_pid: pid, agents: Agents::new(&agents),
            }));
            assert_survives(Report::Refused {
                request: RequestKind::from_wire(kind),
                code: Refusal::from_wire(code).unwrap(),
            });
            for kind in [
                EventKind::AgentReady { name },
                EventKind::Armed,
                EventKind::AppStarted { generation, pid },
                EventKind::AppReady { generation },
                EventKind::Exited { name, pid, status: ExitStatus::Code(value), oom: a, generation },
                EventKind::Exited { name, pid, status: ExitStatus::Signal(value), oom: b, generation },
                EventKind::Stopped,
                EventKind::Replaced { name, pid, status: ExitStatus::Signal(value), generation },
                EventKind::OutOfMemory { name, pid, memory: Memory { kills: seq, limit_bytes, peak_bytes: generation } },
                EventKind::LeftBehind { name, pid },
            ] {
                assert_survives(Report::Event(Event { seq, kind }));
            }
            for outcome in [
                LookOutcome::Ended(ExitStatus::Code(value)),
                LookOutcome::Ended(ExitStatus::Signal(value)),
                LookOutcome::TimedOut,
                LookOutcome::NotExecuted { errno: pid },
                LookOutcome::Refused(Refusal::from_wire(code).unwrap()),
            ] {
                assert_survives(Report::Looked(Looked { id: pid, outcome }));
            }
            let process = ProcessStatus {
                name, state: ProcessState::Restarting, pid, restarts: pid, since_ms: seq,
                last_exit: a.then_some(ExitStatus::Code(value)),
            };
            let memory = Memory { kills: seq, limit_bytes, peak_bytes: generation };
            let list = [process, ProcessStatus { name: "b", ..process }];
            assert_survives(Report::Processes(Processes { memory, list: List::new(&list) }));
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Report::Status(status)) = Report::decode(&bytes) {
                prop_assert!(status.agents.iter().count() <= bytes.len());
            }
        }
    }

    #[test]
    fn a_hello_of_another_version_is_refused_by_name() {
        let hello = Hello {
            version: 3,
            container_id: "web-1.g7",
            create_generation: 7,
            generation: 7,
            started: false,
            first_unacked_seq: 1,
        };
        let mut buf = [0; 128];
        let length = Report::Hello(hello).encode(&mut buf).unwrap();
        assert_eq!(
            Report::decode(&buf[4..length]),
            Err(Malformed::Invalid("version"))
        );
    }
}
