//! The picture walked edge by edge in a small simulated container; a property test for the rest.

use super::*;
use crate::plan::{
    Delivery, Looks, Ports, Process, Processes, Readiness, Restart, RestartPolicy, Rewrite,
    Rewrites, Strings, after_previous,
};
use crate::protocol::{self, Adopt, AgentState, EnvList, LookKind, ProcessState};
use core::ffi::CStr;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

const STOP_SIGNAL: u8 = 3;
const GATE: Readiness<'static> = Readiness::Notify { timeout_ms: 500 };

fn process(
    name: &'static str,
    kind: ProcessKind,
    essential: Essential,
    readiness: Readiness<'static>,
) -> Process<'static> {
    Process {
        readiness,
        essential,
        restart: Restart {
            policy: match essential {
                Essential::Yes => RestartPolicy::Never,
                Essential::No => RestartPolicy::Always,
            },
            max: u32::MAX,
            backoff_min_ms: 100,
            backoff_max_ms: 400,
            reset_after_ms: 400,
        },
        stop_signal: STOP_SIGNAL,
        ..Process::plain(name, kind, Strings::new(&[c"/bin/true"]))
    }
}

fn agent(name: &'static str, readiness: Readiness<'static>) -> Process<'static> {
    process(name, ProcessKind::Agent, Essential::Yes, readiness)
}

fn optional(name: &'static str, readiness: Readiness<'static>) -> Process<'static> {
    process(name, ProcessKind::Agent, Essential::No, readiness)
}

fn app(readiness: Readiness<'static>) -> Process<'static> {
    process("app", ProcessKind::App, Essential::Yes, readiness)
}

/// Where the world keeps the processes of looks: behind those of the plan.
const LOOK: usize = 100;
/// And what cleans.
const CLEANER: usize = 200;
/// For a process that waits for no other.
const AFTER_NOBODY: u16 = u16::MAX;
/// 40 is dropped, 41 becomes 10.
const REWRITES: &[Rewrite] = &[Rewrite { from: 40, to: 0 }, Rewrite { from: 41, to: 10 }];

/// A container without a kernel: spawns succeed at once, a signal is only written down.
struct World<'p> {
    supervisor: Supervisor<'p>,
    now: Millis,
    next_pid: u32,
    alive: BTreeMap<u32, usize>,
    reports: Vec<EventKind<'p>>,
    signals: Vec<(Target, u8)>,
    refusals: Vec<Refusal>,
    spawned: Vec<usize>,
    prepared: Vec<usize>,
    ended_prepared: usize,
    probes: Vec<usize>,
    ended_probes: usize,
    answers: usize,
    looks: Vec<LookKind>,
    looked: Vec<(u32, LookOutcome)>,
    /// How many passes find something.
    clinging: usize,
    sweeps: usize,
    cleans: Vec<usize>,
    failed_restarts: Vec<usize>,
    exit: Option<u8>,
}

impl<'p> World<'p> {
    fn begin(processes: &'p [Process<'p>]) -> Self {
        Self::begin_with(processes, c"/gate.sock")
    }

    fn begin_with(processes: &'p [Process<'p>], ctl_socket: &'p CStr) -> Self {
        let count = processes.len();
        let in_order = processes
            .iter()
            .enumerate()
            .map(|(index, process)| Process {
                after: match process.after {
                    AFTER_NOBODY => 0,
                    0 => after_previous(index, count),
                    after => after,
                },
                ..*process
            });
        let in_order: Vec<Process<'p>> = in_order.collect();
        let plan = Plan {
            container_id: "web-1.g7",
            create_generation: 7,
            ctl_socket,
            run_dir: c"",
            exits: c"",
            stop_grace_ms: 10_000,
            signals: Rewrites::new(REWRITES),
            exit_codes: Rewrites::new(&[Rewrite { from: 143, to: 0 }]),
            processes: Processes::new(Vec::leak(in_order)),
            looks: Looks {
                readiness: Strings::new(&[c"/bin/ready"]),
                liveness: Strings::new(&[c"/bin/alive"]),
                startup: Strings::new(&[c"/bin/started"]),
            },
        };
        let mut world = Self {
            supervisor: Supervisor::new(plan),
            now: 1000,
            next_pid: 10,
            alive: BTreeMap::new(),
            reports: Vec::new(),
            signals: Vec::new(),
            refusals: Vec::new(),
            spawned: Vec::new(),
            prepared: Vec::new(),
            ended_prepared: 0,
            probes: Vec::new(),
            ended_probes: 0,
            answers: 0,
            looks: Vec::new(),
            looked: Vec::new(),
            clinging: 0,
            sweeps: 0,
            cleans: Vec::new(),
            failed_restarts: Vec::new(),
            exit: None,
        };
        world.feed(Input::Begin);
        world
    }

    fn feed(&mut self, input: Input<'_>) {
        assert_eq!(self.exit, None, "nothing happens after the exit");
        let mut follow_up = Vec::new();
        for action in self.supervisor.step(input, self.now, &mut room()).iter() {
            match action {
                Action::Spawn { process, .. } | Action::SpawnAgain { process } => {
                    self.next_pid += 1;
                    self.alive.insert(self.next_pid, process);
                    self.spawned.push(process);
                    follow_up.push(Input::Spawned {
                        process,
                        pid: self.next_pid,
                    });
                }
                Action::Prepare { process } => self.prepared.push(process),
                Action::EndPrepared => self.ended_prepared += 1,
                Action::Probe { process } => {
                    self.probes.push(process);
                    follow_up.push(Input::Probing { process, pid: None });
                }
                Action::EndProbe { .. } => self.ended_probes += 1,
                // Follows every request to end.
                Action::Signal {
                    signal: SIGCONT, ..
                } => {}
                Action::Signal { target, signal } | Action::Forward { target, signal, .. } => {
                    self.signals.push((target, signal));
                }
                Action::Keep(_) | Action::AnswerProcesses => {}
                Action::Sweep { process, .. } => {
                    self.sweeps += 1;
                    let found = self.clinging > 0;
                    self.clinging = self.clinging.saturating_sub(1);
                    follow_up.push(Input::Swept { process, found });
                }
                Action::Clean { process } => {
                    self.next_pid += 1;
                    self.alive.insert(self.next_pid, CLEANER);
                    self.cleans.push(process);
                    let pid = Some(self.next_pid);
                    follow_up.push(Input::Cleaning { process, pid });
                }
                Action::RestartFailed { process } => self.failed_restarts.push(process),
                Action::Report(kind) => self.reports.push(kind),
                Action::Answer => self.answers += 1,
                Action::Refuse { code, .. } => self.refusals.push(code),
                Action::Look { kind } => {
                    self.next_pid += 1;
                    let pid = self.next_pid;
                    self.alive.insert(pid, LOOK + kind as usize);
                    self.looks.push(kind);
                    follow_up.push(Input::Looking { kind, pid });
                }
                Action::Looked(looked) => self.looked.push((looked.id, looked.outcome)),
                Action::Exit { code } => self.exit = Some(code),
            }
        }
        for input in follow_up {
            self.feed(input);
        }
    }

    fn pid(&self, process: usize) -> u32 {
        self.alive
            .iter()
            .find(|(_, index)| **index == process)
            .map_or(0, |(pid, _)| *pid)
    }

    /// The process ends; with the last one the kernel says that there are no children.
    fn end(&mut self, process: usize, status: ExitStatus) {
        let pid = self.pid(process);
        assert_ne!(pid, 0, "process {process} runs");
        // What cleans is forgotten by a stop.
        let told = self.supervisor.knows(pid) || process == CLEANER;
        assert!(told, "its end would not be told");
        self.alive.remove(&pid);
        self.feed(Input::Reaped {
            pid,
            status,
            oom: false,
        });
        if self.alive.is_empty() && self.exit.is_none() {
            self.feed(Input::Childless);
        }
    }

    /// Moves to when something is due, and says so.
    fn sleep(&mut self) {
        self.now = self
            .supervisor
            .due()
            .expect("something is due")
            .max(self.now);
        self.feed(Input::Tick);
    }

    fn start(&mut self, generation: u64) {
        self.feed(Input::Asked(Request::Start(Start {
            generation,
            task_id: "t",
            traceparent: "",
            env: EnvList::new(&[]),
        })));
    }

    fn look(&mut self, id: u32, kind: LookKind, timeout_ms: u32) {
        self.feed(Input::Asked(Request::Look(Look {
            id,
            kind,
            timeout_ms,
        })));
    }

    fn state(&self, agent: usize) -> AgentState {
        self.supervisor
            .status(&mut Default::default())
            .agents
            .iter()
            .nth(agent)
            .unwrap()
            .state
    }
}

fn signalled(signal: u8) -> Input<'static> {
    Input::Signalled {
        signal,
        value: None,
    }
}

fn restart(process: &str, generation: u64) -> Input<'_> {
    Input::Asked(Request::Restart(protocol::Restart {
        process,
        budget_ms: 1000,
        start: Start {
            generation,
            task_id: "t",
            traceparent: "",
            env: EnvList::new(&[]),
        },
    }))
}

fn all(process: usize, leader: u32) -> Target {
    Target::All { process, leader }
}

fn exited(name: &str, pid: u32, status: ExitStatus, generation: u64) -> EventKind<'_> {
    EventKind::Exited {
        name,
        pid,
        status,
        oom: false,
        generation,
    }
}

#[test]
fn agents_start_one_after_the_other_and_the_app_is_held() {
    let plan = [agent("a", GATE), agent("b", GATE), app(Readiness::None)];
    let mut world = World::begin(&plan);
    assert_eq!(world.spawned, [0]);
    world.feed(Input::Ready { process: 0 });
    assert_eq!(world.spawned, [0, 1]);
    world.start(8);
    assert_eq!(world.refusals, [Refusal::NotArmed]);
    world.feed(Input::Ready { process: 1 });
    assert_eq!(
        world.reports,
        [
            EventKind::AgentReady { name: "a" },
            EventKind::AgentReady { name: "b" },
            EventKind::Armed
        ]
    );
    assert_eq!(world.spawned, [0, 1], "the app is held");
    assert_eq!(world.prepared, [2], "and made ready");
    assert_eq!(world.supervisor.due(), None, "an armed container sleeps");
}

#[test]
fn a_start_lets_the_app_go_once() {
    let plan = [app(GATE)];
    let mut world = World::begin(&plan);
    world.start(9);
    let pid = world.pid(0);
    world.start(9);
    world.start(8);
    world.start(10);
    assert_eq!(world.spawned, [0]);
    assert_eq!(world.answers, 1, "the repetition is answered by a status");
    assert_eq!(
        world.refusals,
        [Refusal::StaleGeneration, Refusal::AlreadyStarted]
    );
    world.feed(Input::Ready { process: 0 });
    world.feed(Input::Ready { process: 0 });
    let generation = 9;
    assert_eq!(
        world.reports,
        [
            EventKind::Armed,
            EventKind::AppStarted { generation, pid },
            EventKind::AppReady { generation }
        ]
    );
}

#[test]
fn an_adopted_app_works_for_the_new_generation() {
    let plan = [app(Readiness::External)];
    let mut world = World::begin(&plan);
    let adopt = |generation| {
        Input::Asked(Request::Adopt(Adopt {
            generation,
            task_id: "",
            traceparent: "",
        }))
    };
    world.feed(adopt(9));
    world.start(8);
    world.feed(adopt(7));
    world.feed(adopt(9));
    assert_eq!(
        world.refusals,
        [Refusal::NotStarted, Refusal::StaleGeneration]
    );
    assert_eq!((world.answers, world.supervisor.generation()), (1, 9));
}

#[test]
fn an_app_that_is_probed_from_outside_is_never_reported_ready() {
    let plan = [app(Readiness::External)];
    let mut world = World::begin(&plan);
    world.start(8);
    assert!(
        !world
            .reports
            .contains(&EventKind::AppReady { generation: 8 })
    );
    assert_eq!(world.supervisor.due(), None);
}

#[test]
fn the_container_ends_with_the_apps_code_after_its_agents() {
    let plan = [
        agent("a", Readiness::None),
        agent("b", Readiness::None),
        app(Readiness::None),
    ];
    let mut world = World::begin(&plan);
    world.start(8);
    world.end(2, ExitStatus::Signal(11));
    assert_eq!(
        world.signals,
        [(Target::Process(world.pid(1)), STOP_SIGNAL)]
    );
    world.end(1, ExitStatus::Code(0));
    assert_eq!(
        world.signals[1..],
        [(Target::Process(world.pid(0)), STOP_SIGNAL)]
    );
    world.end(0, ExitStatus::Code(0));
    assert_eq!(world.exit, Some(139));
    assert_eq!(world.reports.last(), Some(&EventKind::Stopped));
}

#[test]
fn a_command_that_cannot_be_executed_is_126_or_127() {
    let plan = [app(Readiness::None)];
    for code in [126, 127] {
        let mut supervisor = World::begin(&plan).supervisor;
        let start = Start {
            generation: 8,
            task_id: "",
            traceparent: "",
            env: EnvList::new(&[]),
        };
        supervisor.step(Input::Asked(Request::Start(start)), 1, &mut room());
        let mut room = room();
        let actions = supervisor.step(
            Input::NotSpawned {
                process: 0,
                pid: 30,
                code,
            },
            1,
            &mut room,
        );
        let report = Action::Report(exited("app", 30, ExitStatus::Code(code), 8));
        assert_eq!(actions.iter().next(), Some(report));
        assert_eq!(actions.iter().last(), Some(Action::Exit { code }));
    }
}

#[test]
fn an_essential_agent_takes_the_container_with_it() {
    let plan = [agent("a", Readiness::None), app(Readiness::None)];
    let mut world = World::begin(&plan);
    world.start(8);
    world.end(0, ExitStatus::Code(0));
    assert_eq!(
        world.signals,
        [(Target::Process(world.pid(1)), STOP_SIGNAL)]
    );
    world.end(1, ExitStatus::Code(0));
    assert_eq!(
        world.exit,
        Some(1),
        "an essential agent that leaves is a failure even with code 0"
    );
}

#[test]
fn an_essential_agent_that_misses_its_gate_ends_the_container() {
    let plan = [agent("a", GATE), app(Readiness::None)];
    let mut world = World::begin(&plan);
    world.sleep();
    assert_eq!(world.now, 1500);
    assert_eq!(
        world.signals,
        [(Target::Process(world.pid(0)), STOP_SIGNAL)]
    );
    world.end(0, ExitStatus::Signal(STOP_SIGNAL));
    assert_eq!(world.exit, Some(1));
}

#[test]
fn an_optional_agent_comes_back_with_back_off_and_holds_nobody() {
    let plan = [optional("a", GATE), app(Readiness::None)];
    let mut world = World::begin(&plan);
    let mut pauses = Vec::new();
    for _ in 0..5 {
        world.end(0, ExitStatus::Code(1));
        assert_eq!(world.state(0), AgentState::BackingOff);
        let ended = world.now;
        world.sleep();
        pauses.push(world.now - ended);
    }
    assert_eq!(pauses, [100, 200, 400, 400, 400]);
    assert!(
        world.reports.contains(&EventKind::Armed),
        "the order went on without it"
    );
    world.feed(Input::Ready { process: 0 });
    world.now += 401;
    world.end(0, ExitStatus::Code(1));
    assert_eq!(
        world.supervisor.due(),
        Some(world.now + 100),
        "a long run forgives"
    );
}

#[test]
fn an_optional_agent_that_misses_its_gate_is_killed_and_started_again() {
    let plan = [optional("a", GATE), app(Readiness::None)];
    let mut world = World::begin(&plan);
    let pid = world.pid(0);
    world.sleep();
    assert_eq!(world.signals, [(all(0, pid), SIGKILL)]);
    assert!(world.reports.contains(&EventKind::Armed));
    world.end(0, ExitStatus::Signal(SIGKILL));
    world.sleep();
    assert_eq!(world.spawned, [0, 0]);
}

#[test]
fn an_essential_agent_that_is_started_again_holds_the_others_until_it_is_ready() {
    let stubborn = Process {
        restart: Restart {
            policy: RestartPolicy::OnFailure,
            ..optional("a", GATE).restart
        },
        ..agent("a", GATE)
    };
    let plan = [stubborn, agent("b", Readiness::None), app(Readiness::None)];
    let mut world = World::begin(&plan);
    world.end(0, ExitStatus::Code(3));
    assert_eq!(world.spawned, [0], "nobody comes while it pauses");
    world.sleep();
    assert_eq!(world.spawned, [0, 0]);
    assert!(!world.reports.contains(&EventKind::Armed));
    world.feed(Input::Ready { process: 0 });
    assert_eq!(world.spawned, [0, 0, 1]);
    assert!(world.reports.contains(&EventKind::Armed));
}

#[test]
fn probes_slow_down_from_one_millisecond_to_the_period() {
    let probe = Readiness::TcpLoopback {
        port: 80,
        period_ms: 10,
        timeout_ms: 5,
        deadline_ms: 60,
    };
    let plan = [agent("a", probe), app(Readiness::None)];
    let mut world = World::begin(&plan);
    let mut at = Vec::new();
    for _ in 0..7 {
        at.push(world.now - 1000);
        world.feed(Input::Probed {
            process: 0,
            passed: false,
        });
        world.sleep();
    }
    assert_eq!(at, [0, 1, 3, 7, 15, 25, 35]);
    world.feed(Input::Probed {
        process: 0,
        passed: true,
    });
    assert_eq!(
        world.reports,
        [EventKind::AgentReady { name: "a" }, EventKind::Armed]
    );
    assert_eq!(world.supervisor.due(), None);
}

#[test]
fn a_probe_that_hangs_is_ended_and_counts_as_failed() {
    let probe = Readiness::TcpLoopback {
        port: 80,
        period_ms: 10,
        timeout_ms: 5,
        deadline_ms: 60,
    };
    let plan = [agent("a", probe), app(Readiness::None)];
    let mut world = World::begin(&plan);
    assert_eq!(world.supervisor.due(), Some(1005));
    world.sleep();
    assert_eq!(world.ended_probes, 1);
    world.sleep();
    assert_eq!((world.now, world.probes.len()), (1006, 2));
}

#[test]
fn an_exec_probe_is_judged_by_its_exit_code() {
    let probe = Readiness::Exec {
        argv: Strings::new(&[c"check"]),
        initial_delay_ms: 20,
        period_ms: 10,
        timeout_ms: 5,
        failure_threshold: 3,
    };
    let plan = [agent("a", probe), app(Readiness::None)];
    let mut world = World::begin(&plan);
    world.sleep();
    assert_eq!(world.now, 1020, "not before the initial delay");
    for status in [
        ExitStatus::Code(1),
        ExitStatus::Signal(9),
        ExitStatus::Code(0),
    ] {
        world.feed(Input::Probing {
            process: 0,
            pid: Some(77),
        });
        world.feed(Input::Reaped {
            pid: 77,
            status,
            oom: false,
        });
        if status != ExitStatus::Code(0) {
            world.sleep();
        }
    }
    assert_eq!(
        world.reports,
        [EventKind::AgentReady { name: "a" }, EventKind::Armed]
    );
}

#[test]
fn an_app_that_ignores_its_signal_is_killed_before_its_agents_lose_their_turn() {
    let plan = [agent("a", Readiness::None), app(Readiness::None)];
    let mut world = World::begin(&plan);
    world.start(8);
    let app = world.pid(1);
    world.feed(Input::Asked(Request::Stop { budget_ms: 1000 }));
    world.sleep();
    assert_eq!(world.now, 1900);
    assert_eq!(
        world.signals,
        [(Target::Process(app), STOP_SIGNAL), (all(1, app), SIGKILL)]
    );
    world.end(1, ExitStatus::Signal(SIGKILL));
    assert_eq!(
        world.signals.last(),
        Some(&(Target::Process(world.pid(0)), STOP_SIGNAL))
    );
    world.sleep();
    assert_eq!(
        (world.now, world.signals.last()),
        (2000, Some(&(Target::Everybody, SIGKILL)))
    );
    while world.exit.is_none() {
        world.sleep();
    }
    assert_eq!(
        (world.now, world.exit),
        (3000, Some(137)),
        "what cannot die does not hold us"
    );
}

#[test]
fn a_second_stop_shortens_and_never_lengthens() {
    let plan = [app(Readiness::None)];
    let mut world = World::begin(&plan);
    world.start(8);
    for (budget_ms, due) in [(5000, 6000), (9000, 6000), (100, 1100)] {
        world.feed(Input::Asked(Request::Stop { budget_ms }));
        assert_eq!(world.supervisor.due(), Some(due));
    }
    world.start(9);
    assert_eq!(world.refusals, [Refusal::Stopping]);
    world.feed(Input::Asked(Request::Stop { budget_ms: 0 }));
    assert_eq!(world.signals.last(), Some(&(Target::Everybody, SIGKILL)));
    world.end(0, ExitStatus::Signal(SIGKILL));
    assert_eq!(world.exit, Some(137));
}

#[test]
fn strangers_are_asked_to_end_after_the_plan() {
    let plan = [app(Readiness::None)];
    let mut world = World::begin(&plan);
    world.start(8);
    world.alive.insert(999, usize::MAX);
    world.end(0, ExitStatus::Code(4));
    assert_eq!(world.signals, [(Target::Everybody, SIGTERM)]);
    assert_eq!(world.exit, None, "PID 1 waits for them");
    world.feed(Input::Reaped {
        pid: 999,
        status: ExitStatus::Code(0),
        oom: false,
    });
    world.feed(Input::Childless);
    assert_eq!(world.exit, Some(4));
}

#[test]
fn strangers_that_outrun_a_kill_are_killed_again_until_nobody_waits_for_them() {
    let plan = [app(Readiness::None)];
    let mut world = World::begin(&plan);
    world.start(8);
    world.alive.insert(999, usize::MAX);
    world.end(0, ExitStatus::Code(4));
    let ended = world.now;
    let mut kills = 0;
    while world.exit.is_none() {
        world.sleep();
        let killed = (Target::Everybody, SIGKILL);
        kills = world
            .signals
            .iter()
            .filter(|signal| **signal == killed)
            .count();
    }
    assert_eq!((world.exit, world.now), (Some(4), ended + 11_000));
    assert_eq!(kills, 100, "every 10 ms of a second");
}

#[test]
fn signals_from_outside_go_to_the_app_and_term_also_stops() {
    let plan = [app(Readiness::None)];
    let mut world = World::begin(&plan);
    world.feed(signalled(1));
    world.start(8);
    let app = Target::Process(world.pid(0));
    for signal in [1, 10, SIGINT, 64] {
        world.feed(signalled(signal));
    }
    assert_eq!(
        world.signals,
        [(app, 1), (app, 10), (app, SIGINT), (app, 64)]
    );
    world.feed(signalled(SIGTERM));
    assert_eq!(
        world.signals[4..],
        [(app, SIGTERM)],
        "as it came, not the app's stop signal"
    );
    assert_eq!(world.supervisor.due(), Some(world.now + 10_000));
    world.feed(signalled(SIGTERM));
    assert_eq!(
        world.signals[5..],
        [(Target::Everybody, SIGKILL)],
        "the second TERM ends it"
    );
    world.end(0, ExitStatus::Code(0));
    assert_eq!(world.exit, Some(0));
}

#[test]
fn term_before_the_start_ends_the_container() {
    for signal in [SIGTERM, SIGINT] {
        let plan = [agent("a", Readiness::None), app(Readiness::None)];
        let mut world = World::begin(&plan);
        world.feed(signalled(signal));
        world.end(0, ExitStatus::Code(0));
        // 143 is rewritten by the plan.
        let code = if signal == SIGTERM { 0 } else { 130 };
        assert_eq!(world.exit, Some(code));
        assert_eq!(world.spawned, [0]);
    }
}

#[test]
fn a_stop_before_the_start_is_no_failure() {
    let plan = [app(Readiness::None)];
    let mut world = World::begin(&plan);
    world.feed(Input::Asked(Request::Stop { budget_ms: 1000 }));
    assert_eq!(
        world.exit,
        Some(0),
        "nothing ever ran, so nothing is waited for"
    );
    assert_eq!((world.prepared.len(), world.ended_prepared), (1, 1));
}

#[test]
fn what_cannot_be_done_is_refused() {
    let plan = [app(Readiness::None)];
    let mut world = World::begin(&plan);
    world.feed(Input::Asked(Request::Signal { signal: 10 }));
    world.feed(restart("app", 8));
    world.feed(restart("app", 1));
    world.feed(restart("nobody", 8));
    assert_eq!(
        world.refusals,
        [
            Refusal::NotStarted,
            Refusal::NotStarted,
            Refusal::StaleGeneration,
            Refusal::UnknownProcess
        ]
    );
}

#[test]
fn agents_start_when_those_they_depend_on_are_ready() {
    let plan = [
        Process {
            after: AFTER_NOBODY,
            ..agent("a", GATE)
        },
        Process {
            after: AFTER_NOBODY,
            ..agent("b", GATE)
        },
        Process {
            after: 0b01,
            ..agent("c", GATE)
        },
        app(Readiness::None),
    ];
    let mut world = World::begin(&plan);
    assert_eq!(world.spawned, [0, 1], "nobody waits without a reason");
    world.feed(Input::Ready { process: 0 });
    assert_eq!(world.spawned, [0, 1, 2]);
    world.feed(Input::Ready { process: 2 });
    assert!(!world.reports.contains(&EventKind::Armed));
    world.feed(Input::Ready { process: 1 });
    assert!(world.reports.contains(&EventKind::Armed));
    world.start(8);
    world.end(3, ExitStatus::Code(0));
    let asked = |world: &World<'_>, process| {
        let is_it = |(target, _): &(Target, u8)| *target == Target::Process(world.pid(process));
        world.signals.iter().any(is_it)
    };
    assert!(asked(&world, 2) && asked(&world, 1) && !asked(&world, 0));
    world.end(2, ExitStatus::Code(0));
    assert!(asked(&world, 0), "nobody needs it any more");
}

#[test]
fn an_agent_may_be_started_again_so_often_and_after_these_ends() {
    let bounded = Process {
        restart: Restart {
            policy: RestartPolicy::OnFailure,
            max: 2,
            ..agent("", GATE).restart
        },
        exit_code: Some(70),
        ..agent("a", Readiness::None)
    };
    let plan = [bounded, app(Readiness::None)];
    let mut world = World::begin(&plan);
    world.start(8);
    for _ in 0..2 {
        world.end(0, ExitStatus::Code(3));
        assert_eq!(world.state(0), AgentState::BackingOff);
        world.sleep();
    }
    world.end(0, ExitStatus::Signal(11));
    assert_eq!(
        world.signals.last(),
        Some(&(Target::Process(world.pid(1)), STOP_SIGNAL))
    );
    world.end(1, ExitStatus::Code(0));
    assert_eq!(world.exit, Some(70), "the code that the plan declares");

    let plan = [
        Process {
            essential: Essential::No,
            ..bounded
        },
        app(Readiness::None),
    ];
    let mut world = World::begin(&plan);
    world.end(0, ExitStatus::Code(0));
    assert_eq!(world.state(0), AgentState::Ended, "0 is no failure");
    assert_eq!(world.supervisor.due(), None);
    world.start(8);
    assert_ne!(world.pid(1), 0, "the app does not mind");
}

#[test]
fn a_process_that_uses_up_its_own_grace_is_killed_with_all_that_is_its() {
    let stubborn = Process {
        stop_grace_ms: 200,
        ..agent("a", Readiness::None)
    };
    let plan = [stubborn, app(Readiness::None)];
    let mut world = World::begin(&plan);
    world.start(8);
    world.end(1, ExitStatus::Code(0));
    let pid = world.pid(0);
    world.sleep();
    assert_eq!(world.now, 1200);
    assert_eq!(world.signals.last(), Some(&(all(0, pid), SIGKILL)));
    world.sleep();
    let left = EventKind::LeftBehind { name: "a", pid };
    assert_eq!(
        (world.now, world.reports.contains(&left)),
        (2200, true),
        "stuck in the kernel: said, and not waited for"
    );
    assert_eq!(
        world.reports.iter().filter(|kind| **kind == left).count(),
        1
    );
}

#[test]
fn signals_are_rewritten_and_reach_whom_the_plan_says() {
    let plan = [Process {
        delivery: Delivery::Group,
        ..app(Readiness::None)
    }];
    let mut world = World::begin(&plan);
    world.start(8);
    let app = Target::Group(world.pid(0));
    for signal in [40, 41, 42] {
        world.feed(signalled(signal));
    }
    assert_eq!(world.signals, [(app, 10), (app, 42)]);
}

#[test]
fn without_anybody_to_ask_the_app_starts_when_its_agents_are_ready() {
    let plan = [agent("a", GATE), app(Readiness::None)];
    let mut world = World::begin_with(&plan, c"");
    assert_eq!(world.spawned, [0]);
    world.feed(Input::Ready { process: 0 });
    assert_eq!(world.spawned, [0, 1]);
    assert_eq!(world.prepared, []);
    world.end(1, ExitStatus::Code(9));
    world.end(0, ExitStatus::Code(0));
    assert_eq!(world.exit, Some(9));
}

#[test]
fn an_app_is_restarted_in_place_when_nothing_of_it_is_left() {
    let plan = [
        agent("a", Readiness::None),
        Process {
            clean: Strings::new(&[c"/tmp"]),
            ..app(GATE)
        },
    ];
    let mut world = World::begin(&plan);
    world.start(8);
    let first = world.pid(1);
    world.clinging = 3;
    world.feed(restart("app", 9));
    world.feed(restart("app", 9));
    assert_eq!(world.answers, 2, "the repetition changes nothing");
    assert_eq!(world.signals, [(Target::Process(first), STOP_SIGNAL)]);
    let mut room = Default::default();
    let status = world.supervisor.status(&mut room);
    assert_eq!(
        (status.generation, status.app_pid, status.app_ready),
        (9, 0, false),
        "none runs for it yet"
    );
    world.end(1, ExitStatus::Signal(STOP_SIGNAL));
    for _ in 0..3 {
        assert_eq!(world.cleans, []);
        world.sleep();
    }
    assert_eq!(world.sweeps, 5, "three found something, two did not");
    assert_eq!(world.cleans, [1]);
    world.end(CLEANER, ExitStatus::Code(0));
    let (generation, pid) = (9, world.pid(1));
    assert_eq!(
        world.reports[3..],
        [
            EventKind::Replaced {
                name: "app",
                pid: first,
                status: ExitStatus::Signal(STOP_SIGNAL),
                generation
            },
            EventKind::AppStarted { generation, pid },
        ]
    );
    let mut room = Default::default();
    let known = world.supervisor.processes(world.now, &mut room);
    assert_eq!((known[1].restarts, known[0].restarts), (1, 0));
    assert_eq!(known[1].state, ProcessState::Starting);
    assert_ne!(world.pid(0), 0, "the agent does not notice");
    world.end(1, ExitStatus::Code(5));
    world.end(0, ExitStatus::Code(0));
    assert_eq!(world.exit, Some(5));
}

#[test]
fn an_agent_is_restarted_without_a_pause_and_the_app_does_not_notice() {
    let plan = [agent("a", Readiness::None), app(Readiness::None)];
    let mut world = World::begin(&plan);
    world.start(8);
    let (agent, app) = (world.pid(0), world.pid(1));
    world.feed(restart("a", 8));
    world.end(0, ExitStatus::Code(0));
    assert_ne!(world.pid(0), agent);
    assert_ne!(world.pid(0), 0);
    assert_eq!(world.pid(1), app);
    let replaced = EventKind::Replaced {
        name: "a",
        pid: agent,
        status: ExitStatus::Code(0),
        generation: 8,
    };
    let ready = EventKind::AgentReady { name: "a" };
    assert!(
        world.reports.ends_with(&[replaced, ready]),
        "{:?}",
        world.reports
    );
    assert_eq!(world.exit, None);
}

#[test]
fn a_restart_that_cannot_be_done_in_its_budget_ends_the_container() {
    let plan = [app(Readiness::None)];
    let mut world = World::begin(&plan);
    world.start(8);
    let pid = world.pid(0);
    world.feed(restart("app", 9));
    world.sleep();
    assert_eq!(
        (world.now, world.signals.last()),
        (1500, Some(&(all(0, pid), SIGKILL))),
        "killed after half of the budget"
    );
    world.clinging = usize::MAX;
    world.end(0, ExitStatus::Signal(SIGKILL));
    while world.failed_restarts.is_empty() {
        world.sleep();
    }
    assert_eq!(world.now, 2000);
    assert_eq!(world.exit, Some(1), "nothing else ran");

    let plan = [Process {
        ports: Ports::new(&[80]),
        ..app(Readiness::None)
    }];
    let mut world = World::begin(&plan);
    world.start(8);
    world.feed(restart("app", 9));
    world.end(0, ExitStatus::Code(0));
    world.end(CLEANER, ExitStatus::Code(1));
    assert_eq!(
        (world.failed_restarts.as_slice(), world.exit),
        (&[0][..], Some(1))
    );
}

#[test]
fn a_stop_ends_a_restart() {
    let plan = [Process {
        clean: Strings::new(&[c"/tmp"]),
        ..app(Readiness::None)
    }];
    let mut world = World::begin(&plan);
    world.start(8);
    world.feed(restart("app", 9));
    world.end(0, ExitStatus::Code(0));
    let cleaner = world.pid(CLEANER);
    world.feed(Input::Asked(Request::Stop { budget_ms: 1000 }));
    assert!(world.signals.contains(&(Target::Process(cleaner), SIGKILL)));
    world.end(CLEANER, ExitStatus::Signal(SIGKILL));
    assert_eq!(world.spawned, [0]);
    assert_eq!(world.exit, Some(0));
}

const READINESS: LookKind = LookKind::Readiness;
const LIVENESS: LookKind = LookKind::Liveness;

#[test]
fn a_look_is_answered_with_how_its_command_ended() {
    let plan = [app(Readiness::None)];
    let mut world = World::begin(&plan);
    world.start(8);
    for (id, status) in [
        (1, ExitStatus::Code(0)),
        (2, ExitStatus::Code(3)),
        (3, ExitStatus::Signal(11)),
    ] {
        world.look(id, READINESS, 1000);
        assert_eq!(world.supervisor.due(), Some(world.now + 1000));
        world.end(LOOK + READINESS as usize, status);
        assert_eq!(world.looked.last(), Some(&(id, LookOutcome::Ended(status))));
    }
    assert_eq!(world.supervisor.due(), None, "nobody wakes between looks");
    assert_eq!(world.exit, None, "the end of a look is nobody's end");
    assert_eq!(
        world.reports.len(),
        3,
        "armed, started, ready: {:?}",
        world.reports
    );
}

#[test]
fn a_look_that_takes_too_long_is_killed_with_its_group_and_answered_at_once() {
    let plan = [app(Readiness::None)];
    let mut world = World::begin(&plan);
    world.start(8);
    world.look(1, LIVENESS, 700);
    let pid = world.pid(LOOK + LIVENESS as usize);
    world.sleep();
    assert_eq!(world.now, 1700);
    assert_eq!(world.signals, [(Target::Group(pid), SIGKILL)]);
    assert_eq!(world.looked, [(1, LookOutcome::TimedOut)]);
    assert_eq!(world.supervisor.due(), None);
    world.end(LOOK + LIVENESS as usize, ExitStatus::Signal(SIGKILL));
    assert_eq!(world.looked.len(), 1, "one answer for one look");
}

#[test]
fn a_command_that_cannot_die_is_not_joined_by_another_of_its_kind() {
    let plan = [app(Readiness::None)];
    let mut world = World::begin(&plan);
    world.start(8);
    world.look(1, LIVENESS, 700);
    world.sleep();
    world.look(2, LIVENESS, 700);
    world.look(3, READINESS, 700);
    assert_eq!(world.looks, [LIVENESS, READINESS]);
    world.sleep();
    let timed_out = |id| (id, LookOutcome::TimedOut);
    assert_eq!(world.looked, [timed_out(1), timed_out(3), timed_out(2)]);
    world.look(4, LIVENESS, 700);
    world.end(LOOK + LIVENESS as usize, ExitStatus::Signal(SIGKILL));
    assert_eq!(
        world.looks,
        [LIVENESS, READINESS, LIVENESS],
        "when it is gone the next one runs"
    );
    world.end(LOOK + LIVENESS as usize, ExitStatus::Code(0));
    assert_eq!(
        world.looked.last(),
        Some(&(4, LookOutcome::Ended(ExitStatus::Code(0))))
    );
}

#[test]
fn another_agent_waits_for_no_look_of_the_one_before() {
    let plan = [app(Readiness::None)];
    let mut world = World::begin(&plan);
    world.start(8);
    world.look(1, LIVENESS, 700);
    let pid = world.pid(LOOK + LIVENESS as usize);
    world.feed(Input::Connected);
    assert_eq!(world.signals, [(Target::Group(pid), SIGKILL)]);
    world.look(1, LIVENESS, 500);
    world.end(LOOK + LIVENESS as usize, ExitStatus::Signal(SIGKILL));
    assert_eq!(
        world.looked,
        [],
        "the answer to the former look is not the new one's"
    );
    assert_eq!(world.looks.len(), 2);
    world.end(LOOK + LIVENESS as usize, ExitStatus::Code(5));
    assert_eq!(world.looked, [(1, LookOutcome::Ended(ExitStatus::Code(5)))]);
}

#[test]
fn a_look_that_is_asked_again_gives_way() {
    let plan = [app(Readiness::None)];
    let mut world = World::begin(&plan);
    world.start(8);
    world.look(1, LIVENESS, 700);
    world.look(2, LIVENESS, 700);
    assert_eq!(world.looks.len(), 1, "one process at a time");
    world.end(LOOK + LIVENESS as usize, ExitStatus::Signal(SIGKILL));
    world.end(LOOK + LIVENESS as usize, ExitStatus::Code(0));
    assert_eq!(world.looked, [(2, LookOutcome::Ended(ExitStatus::Code(0)))]);
}

#[test]
fn an_orphan_is_nobody_and_its_end_changes_nothing() {
    let plan = [agent("proxy", Readiness::None), app(Readiness::None)];
    let mut world = World::begin(&plan);
    world.start(8);
    world.look(1, LIVENESS, 60_000);
    let orphan = world.next_pid + 1;
    assert!(!world.supervisor.knows(orphan));
    let due = world.supervisor.due();
    let status = ExitStatus::Code(7);
    let input = Input::Reaped {
        pid: orphan,
        status,
        oom: true,
    };
    let mut room = room();
    let actions = world.supervisor.step(input, world.now, &mut room);
    assert_eq!(actions.iter().next(), None);
    assert_eq!(world.supervisor.due(), due);
}

#[test]
fn looks_end_with_the_app_they_look_at() {
    let plan = [app(Readiness::None)];
    let mut world = World::begin(&plan);
    world.start(8);
    world.look(1, LIVENESS, 60_000);
    let pid = world.pid(LOOK + LIVENESS as usize);
    world.feed(Input::Asked(Request::Stop { budget_ms: 1000 }));
    let stopping = LookOutcome::Refused(Refusal::Stopping);
    assert_eq!(world.looked, [(1, stopping)]);
    assert!(world.signals.contains(&(Target::Group(pid), SIGKILL)));
    world.look(2, LIVENESS, 1000);
    assert_eq!(world.looked.last(), Some(&(2, stopping)));
    world.end(0, ExitStatus::Code(0));
    assert_eq!(world.exit, None, "it is waited for");
    world.end(LOOK + LIVENESS as usize, ExitStatus::Signal(SIGKILL));
    assert_eq!(world.exit, Some(0));
}

#[test]
fn a_look_at_what_does_not_run_or_by_no_command_is_refused() {
    let plan = [app(Readiness::None)];
    let mut world = World::begin(&plan);
    world.look(1, LIVENESS, 1000);
    world.supervisor.plan.looks = Looks::default();
    world.look(2, LIVENESS, 1000);
    assert_eq!(
        world.looked,
        [
            (1, LookOutcome::Refused(Refusal::NotStarted)),
            (2, LookOutcome::Refused(Refusal::Unsupported)),
        ]
    );
    world.start(8);
    world.supervisor.plan.looks.liveness = Strings::new(&[c"/bin/none"]);
    world.looked.clear();
    let look = |id| {
        Input::Asked(Request::Look(Look {
            id,
            kind: LIVENESS,
            timeout_ms: 9,
        }))
    };
    for action in world.supervisor.step(look(3), 1000, &mut room()).iter() {
        assert_eq!(action, Action::Look { kind: LIVENESS });
    }
    let errno = 2;
    world.feed(Input::NotLooking {
        kind: LIVENESS,
        errno,
    });
    assert_eq!(world.looked, [(3, LookOutcome::NotExecuted { errno })]);
    assert_eq!(world.supervisor.due(), None);
}

proptest! {
    /// Whatever happens in whatever order: the app runs at most once and only when it was let go,
    /// and a stop ends everything inside budget and kill wait.
    #[test]
    fn the_rules_hold_in_every_order(
        kinds in proptest::collection::vec((any::<bool>(), 0usize..4), 0..4),
        steps in proptest::collection::vec((0u8..12, 0usize..5, 0u64..12, 0u64..700), 0..80),
    ) {
        let tcp = Readiness::TcpLoopback { port: 80, period_ms: 10, timeout_ms: 5, deadline_ms: 60 };
        let exec = Readiness::Exec {
            argv: Strings::new(&[c"check"]), initial_delay_ms: 3, period_ms: 10, timeout_ms: 5, failure_threshold: 3,
        };
        let gates = [Readiness::None, GATE, tcp, exec];
        let names = ["a", "b", "c", "d"];
        let mut plan = vec![];
        for ((essential, gate), name) in kinds.iter().zip(names) {
            plan.push(if *essential { agent(name, gates[*gate]) } else { optional(name, gates[*gate]) });
        }
        plan.push(app(Readiness::None));
        let app_index = plan.len() - 1;
        let mut world = World::begin(&plan);
        let mut allowed = false;
        let mut restarts = 0;
        for (step, process, number, passes) in steps {
            if world.exit.is_some() { break; }
            let running = world.pid(process.min(app_index)) != 0;
            match step {
                0 => world.feed(Input::Ready { process }),
                1 => world.feed(Input::Probed { process, passed: number > 5 }),
                2 if running => world.end(process.min(app_index), ExitStatus::Code(number as u8)),
                3 => {
                    allowed |= world.reports.contains(&EventKind::Armed);
                    world.start(number);
                }
                4 if number == 0 => world.feed(Input::Asked(Request::Stop { budget_ms: passes as u32 })),
                5 => world.feed(signalled(number as u8 + 1)),
                7 => world.look(number as u32, LookKind::ALL[process % 3], passes as u32 + 1),
                8 if world.pid(LOOK + 1 + process % 3) != 0 => world.end(LOOK + 1 + process % 3, ExitStatus::Code(0)),
                9 => world.feed(Input::Connected),
                10 => {
                    let starts = world.supervisor.started() && number > world.supervisor.generation();
                    let fresh = !world.supervisor.status(&mut Default::default()).stopping;
                    let busy = world.pid(app_index) == 0;
                    world.feed(restart("app", number));
                    restarts += usize::from(starts && fresh && !busy);
                }
                11 if world.pid(CLEANER) != 0 => world.end(CLEANER, ExitStatus::Code(0)),
                6 => world.feed(Input::Reaped { pid: 5000 + number as u32, status: ExitStatus::Code(0), oom: false }),
                _ => {
                    world.now += passes;
                    world.feed(Input::Tick);
                }
            }
            let starts = world.spawned.iter().filter(|index| **index == app_index).count();
            prop_assert!(starts <= usize::from(allowed) + restarts, "the app starts when it was asked for, and only when it may");
            for kind in LookKind::ALL {
                let looking = world.alive.values().filter(|index| **index == LOOK + kind as usize).count();
                prop_assert!(looking <= 1, "one look of a kind at a time");
            }
            let is_armed = world.reports.contains(&EventKind::Armed);
            prop_assert_eq!(world.prepared.len(), usize::from(is_armed), "it is prepared once, at the gate");
            let stopping = world.supervisor.status(&mut Default::default()).stopping;
            let unused = is_armed && stopping && starts == 0;
            prop_assert_eq!(world.ended_prepared, usize::from(unused), "and ends unused only by a stop");
            if let Some(due) = world.supervisor.due() {
                prop_assert!(due >= world.now, "nothing that is due was left undone");
            }
        }
        if world.exit.is_none() {
            let asked_at = world.now;
            world.feed(Input::Asked(Request::Stop { budget_ms: 1000 }));
            while world.exit.is_none() {
                world.sleep();
            }
            prop_assert!(world.now <= asked_at + 2000, "a stop ends inside its budget and the kill wait");
        }
        prop_assert_eq!(world.reports.last(), Some(&EventKind::Stopped));
        prop_assert_eq!(world.reports.iter().filter(|kind| **kind == EventKind::Stopped).count(), 1);
    }
}
