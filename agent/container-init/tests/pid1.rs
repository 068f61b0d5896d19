//! The real program as pid 1 of a real pid namespace. Needs root (or CAP_SYS_ADMIN), unshare(1)
//! and busybox.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod container;

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::time::{Duration, Instant};

use container::{Agent, Container, PATIENCE, Settings, Spec, children, until};
use container_init::exits;
use container_init::plan::{Looks, Readiness, Rlimit, Strings};
use container_init::protocol::{
    EnvList, ExitStatus, Look, LookKind, LookOutcome, Looked, MAX_FRAME, Refusal, Report, Request,
    Start,
};
use rustix::process::Signal;

const FOREVER: &str = "exec busybox sleep 1000";

fn app() -> Spec {
    Spec::app(&[])
}

fn agent(name: &'static str) -> Spec {
    Spec::agent(name, &[])
}

/// Pid of container-init, as we see it.
fn outer(agent: &Agent) -> u32 {
    agent.pid.as_raw_pid().cast_unsigned()
}

/// A container that is armed, and the agent's connection to it.
fn armed(specs: &[Spec]) -> (Container, UnixListener, Agent) {
    let (container, listener) = Container::run(specs);
    let mut agent = Agent::accept(&listener);
    agent.wait_for("Armed");
    (container, listener, agent)
}

#[test]
fn the_gate_holds_the_app_until_start_and_start_gives_it_its_context() {
    let print =
        "echo $$ $NODEAGENT_TASK_ID $TRACEPARENT $EXTRA $FROM_PLAN; exec busybox sleep 1000";
    let (container, listener) = Container::run(&[app().script(print)]);
    let mut agent = Agent::accept(&listener);
    assert_eq!(
        agent.said().unwrap(),
        "Hello(Hello { version: 2, container_id: \"web-1.g7\", create_generation: 7, generation: 7, started: false, first_unacked_seq: 1 })"
    );
    assert_eq!(agent.said().unwrap(), "Armed");
    container.assert_silent(Duration::from_millis(200));
    agent.start_with(
        8,
        &[
            ("EXTRA", "extra"),
            ("FROM_PLAN", "replaced"),
            ("NODEAGENT_TASK_ID", "forged"),
        ],
    );
    assert_eq!(
        agent.said().unwrap(),
        "AppStarted { generation: 8, pid: 3 }"
    );
    assert_eq!(agent.said().unwrap(), "AppReady { generation: 8 }");
    assert_eq!(
        container.line(),
        "3 peak-7 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01 extra replaced"
    );
}

/// A container whose app runs, and the agent's connection to it.
fn running_with(app: Spec, looks: Looks<'static>) -> (Container, UnixListener, Agent) {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("gate.sock")).unwrap();
    let settings = Settings {
        looks,
        ..Settings::default()
    };
    let container = Container::run_in(directory, &[app], settings);
    let mut agent = Agent::accept(&listener);
    agent.wait_for("Armed");
    agent.start(8);
    agent.wait_for("AppReady");
    (container, listener, agent)
}

fn look(agent: &mut Agent, id: u32, kind: LookKind, timeout_ms: u32) {
    agent.ask(Request::Look(Look {
        id,
        kind,
        timeout_ms,
    }));
}

fn looked(agent: &mut Agent) -> Looked {
    let next = agent.next(|report| match report {
        Report::Looked(looked) => looked,
        other => panic!("{other:?}"),
    });
    next.expect("an answer to a look")
}

#[test]
fn a_look_is_the_plans_command_as_the_apps_user_in_its_environment_and_silent() {
    let looks = Looks {
        readiness: Strings::new(&[
            c"busybox",
            c"sh",
            c"-c",
            c"echo heard; echo heard >&2; test $(busybox id -u) = 1234 && test $FROM_PLAN = plan && test $PWD = /",
        ]),
        liveness: Strings::new(&[c"busybox", c"sh", c"-c", c"exit 3"]),
        ..Looks::default()
    };
    let app = Spec {
        uid: 1234,
        ..app().script(FOREVER)
    };
    let (container, _listener, mut agent) = running_with(app, looks);
    for id in 1..=20 {
        look(&mut agent, 2 * id, LookKind::Readiness, 20_000);
        look(&mut agent, 2 * id + 1, LookKind::Liveness, 20_000);
        let mut both = [looked(&mut agent), looked(&mut agent)];
        both.sort_by_key(|looked| looked.id);
        let ended = |id, code| Looked {
            id,
            outcome: LookOutcome::Ended(ExitStatus::Code(code)),
        };
        assert_eq!(both, [ended(2 * id, 0), ended(2 * id + 1, 3)]);
    }
    until("only the app is left", || {
        children(outer(&agent)).len() == 1
    });
    container.assert_silent(Duration::from_millis(100));
    agent.ask(Request::Status);
    let status = agent.said().unwrap();
    assert!(status.contains("stopping: false"), "{status}");
}

#[test]
fn a_look_that_hangs_is_killed_at_its_timeout_with_what_it_started() {
    let looks = Looks {
        liveness: Strings::new(&[
            c"busybox",
            c"sh",
            c"-c",
            c"trap '' TERM; busybox sleep 1000 & busybox sleep 1000; wait",
        ]),
        ..Looks::default()
    };
    let (_container, _listener, mut agent) = running_with(app().script(FOREVER), looks);
    let began = Instant::now();
    look(&mut agent, 7, LookKind::Liveness, 300);
    let outcome = LookOutcome::TimedOut;
    assert_eq!(looked(&mut agent), Looked { id: 7, outcome });
    // PID 1 counts whole milliseconds: the one that it began in was not whole.
    assert!(began.elapsed() > Duration::from_millis(299));
    until("nothing of it is left", || {
        children(outer(&agent)).len() == 1
    });
}

#[test]
fn a_look_that_cannot_be_executed_says_why() {
    let looks = Looks {
        readiness: Strings::new(&[c"/no/such/program"]),
        liveness: Strings::new(&[c"/etc/passwd"]),
        ..Looks::default()
    };
    let (container, _listener, mut agent) = running_with(app().script(FOREVER), looks);
    for (id, kind, errno) in [(1, LookKind::Readiness, 2), (2, LookKind::Liveness, 13)] {
        look(&mut agent, id, kind, 1000);
        let outcome = LookOutcome::NotExecuted { errno };
        assert_eq!(looked(&mut agent), Looked { id, outcome });
    }
    until("only the app is left", || {
        children(outer(&agent)).len() == 1
    });
    container.assert_silent(Duration::from_millis(100));
}

#[test]
fn a_look_under_way_does_not_hold_up_a_stop() {
    let looks = Looks {
        liveness: Strings::new(&[c"busybox", c"sleep", c"1000"]),
        ..Looks::default()
    };
    let script = "trap 'exit 6' TERM; echo set; while :; do busybox sleep 0.05; done";
    let (mut container, _listener, mut agent) = running_with(app().script(script), looks);
    container.wait_for_line("set");
    look(&mut agent, 1, LookKind::Liveness, 600_000);
    until("the look runs", || children(outer(&agent)).len() == 2);
    let began = Instant::now();
    agent.ask(Request::Stop { budget_ms: 60_000 });
    let outcome = LookOutcome::Refused(Refusal::Stopping);
    assert_eq!(looked(&mut agent), Looked { id: 1, outcome });
    assert_eq!(container.exit_code(), 6);
    assert!(began.elapsed() < PATIENCE);
}

#[test]
fn looks_are_asked_for_anew_by_another_agent() {
    let looks = Looks {
        liveness: Strings::new(&[c"busybox", c"sleep", c"1000"]),
        ..Looks::default()
    };
    let (_container, listener, mut agent) = running_with(app().script(FOREVER), looks);
    look(&mut agent, 1, LookKind::Liveness, 600_000);
    until("the look runs", || children(outer(&agent)).len() == 2);
    drop(agent);
    let mut agent = Agent::accept(&listener);
    until("the former look is gone", || {
        children(outer(&agent)).len() == 1
    });
    look(&mut agent, 1, LookKind::Liveness, 200);
    agent.wait_for("Looked(Looked { id: 1, outcome: TimedOut })");
}

#[test]
fn to_an_agent_that_does_not_know_its_hello_it_speaks_the_version_before() {
    let (mut container, listener) = Container::run(&[app().script(FOREVER)]);
    let hello = |version: u16| format!("Hello(Hello {{ version: {version},");
    // An agent of version 1 hangs up on a hello that it does not know.
    let mut agent = Agent::accept(&listener);
    assert!(agent.said().unwrap().starts_with(&hello(2)));
    drop(agent);
    let mut agent = Agent::accept(&listener);
    assert!(agent.said().unwrap().starts_with(&hello(1)));
    agent.wait_for("Armed");
    agent.start(8);
    agent.wait_for("AppReady");
    drop(agent);
    // It was understood: the same again.
    let mut agent = Agent::accept(&listener);
    assert!(agent.said().unwrap().starts_with(&hello(1)));
    agent.wait_for("AppReady");
    drop(agent);
    // Nothing was said to it this time: it may be a newer one now.
    let mut agent = Agent::accept(&listener);
    assert!(agent.said().unwrap().starts_with(&hello(2)));
    agent.ask(Request::Stop { budget_ms: 1000 });
    agent.wait_for("Stopped");
    assert_eq!(container.exit_code(), 143);
}

#[test]
fn a_repeated_start_has_no_second_effect_and_an_older_one_is_refused() {
    let (container, _listener, mut agent) =
        armed(&[app().script("echo started; exec busybox sleep 1000")]);
    agent.start(9);
    agent.start(9);
    agent.start(8);
    agent.start(10);
    agent.wait_for("AppReady");
    let status = agent.said().unwrap();
    assert!(
        status.starts_with(
            "Status(Status { generation: 9, started: true, app_ready: true, armed: true"
        ),
        "{status}"
    );
    assert_eq!(
        agent.said().unwrap(),
        "Refused { request: Some(Start), code: StaleGeneration }"
    );
    assert_eq!(
        agent.said().unwrap(),
        "Refused { request: Some(Start), code: AlreadyStarted }"
    );
    assert_eq!(container.line(), "started");
    container.assert_silent(Duration::from_millis(100));
}

#[test]
fn agents_start_in_order_each_behind_the_gate_of_the_one_before() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let directory = tempfile::tempdir().unwrap();
    let flag = directory.path().join("flag");
    let check: &'static str = format!("test -e {}", flag.display()).leak();
    let check = std::ffi::CString::new(check).unwrap().into_boxed_c_str();
    let argv: &'static [&'static std::ffi::CStr] =
        vec![c"busybox", c"sh", c"-c", Box::leak(check) as &_].leak();
    let exec = Readiness::Exec {
        argv: Strings::new(argv),
        initial_delay_ms: 0,
        period_ms: 20,
        timeout_ms: 5000,
        failure_threshold: 1000,
    };
    let newline = Spec {
        readiness: Readiness::NewlineFd {
            fd: 7,
            timeout_ms: 20_000,
        },
        ..agent("newline").script("echo begun newline; echo >&7; exec busybox sleep 1000")
    };
    let notify = Spec {
        readiness: Readiness::Notify { timeout_ms: 20_000 },
        uid: 1234,
        ..agent("notify").workload("workload_that_notifies")
    };
    let tcp = Spec {
        readiness: Readiness::TcpLoopback {
            port,
            period_ms: 50,
            timeout_ms: 1000,
            deadline_ms: 20_000,
        },
        ..agent("tcp").script(&format!(
            "echo begun tcp; exec busybox httpd -f -p 127.0.0.1:{port} -h /bin"
        ))
    };
    let script = format!(
        "echo begun exec; >{}; exec busybox sleep 1000",
        flag.display()
    );
    let exec = Spec {
        readiness: exec,
        ..agent("exec").script(&script)
    };
    let last = agent("none").script("echo begun none; exec busybox sleep 1000");
    let (container, listener) =
        Container::run(&[newline, notify, tcp, exec, last, app().script(FOREVER)]);
    let mut agent = Agent::accept(&listener);
    agent.said().unwrap();
    for name in ["newline", "notify", "tcp", "exec", "none"] {
        assert_eq!(
            agent.said().unwrap(),
            format!("AgentReady {{ name: {name:?} }}")
        );
    }
    assert_eq!(agent.said().unwrap(), "Armed");
    for name in ["newline", "notify", "tcp", "exec", "none"] {
        container.wait_for_line(&format!("begun {name}"));
    }
}

#[test]
#[ignore = "run as a process of a container"]
fn workload_that_notifies() {
    println!("\nbegun notify");
    let socket = UnixDatagram::unbound().unwrap();
    let path = std::env::var_os("NOTIFY_SOCKET").unwrap();
    for message in ["STATUS=starting", "READY=0", "STATUS=there\nREADY=1\n"] {
        socket.send_to(message.as_bytes(), &path).unwrap();
    }
    loop {
        std::thread::park();
    }
}

#[test]
fn an_app_that_notifies_is_reported_ready_only_then() {
    let notifies = Spec {
        readiness: Readiness::Notify { timeout_ms: 20_000 },
        ..app().workload("workload_that_notifies")
    };
    let (_container, _listener, mut agent) = armed(&[notifies]);
    agent.start(8);
    assert_eq!(
        agent.said().unwrap(),
        "AppStarted { generation: 8, pid: 3 }"
    );
    assert_eq!(agent.said().unwrap(), "AppReady { generation: 8 }");
}

#[test]
fn readiness_claimed_by_another_user_is_not_believed() {
    let liar = Spec {
        uid: 1234,
        readiness: Readiness::External,
        ..app().workload("workload_that_lies")
    };
    let victim = Spec {
        readiness: Readiness::Notify { timeout_ms: 300 },
        uid: 4321,
        ..agent("victim")
            .optional()
            .script("echo $NOTIFY_SOCKET; exec busybox sleep 1000")
    };
    let (container, listener) = Container::run(&[victim, liar]);
    let mut agent = Agent::accept(&listener);
    // The victim misses its gate, holds nobody, and comes back.
    agent.wait_for("Armed");
    let path = container.line();
    agent.start_with(8, &[("VICTIM", &path)]);
    agent.wait_for("AppStarted");
    container.wait_for_line("lied");
    agent.ask(Request::Status);
    let status = agent.wait_for("Status");
    assert!(!status.contains("state: Ready"), "{status}");
}

#[test]
#[ignore = "run as a process of a container"]
fn workload_that_lies() {
    let socket = UnixDatagram::unbound().unwrap();
    let path = std::env::var_os("VICTIM").unwrap();
    socket.send_to(b"READY=1", path).unwrap();
    println!("\nlied");
    loop {
        std::thread::park();
    }
}

#[test]
fn signals_reach_the_app() {
    let script = "for s in HUP INT QUIT USR1 USR2 WINCH CONT; do trap \"echo got $s\" $s; done; echo set; while :; do busybox sleep 1000 & wait; done";
    let (container, _listener, mut agent) = armed(&[app().script(script)]);
    agent.start(8);
    container.wait_for_line("set");
    for (signal, name) in [
        (Signal::HUP, "HUP"),
        (Signal::INT, "INT"),
        (Signal::QUIT, "QUIT"),
        (Signal::USR1, "USR1"),
        (Signal::USR2, "USR2"),
        (Signal::WINCH, "WINCH"),
        (Signal::CONT, "CONT"),
    ] {
        agent.kill(signal);
        container.wait_for_line(&format!("got {name}"));
    }
    agent.ask(Request::Signal { signal: 10 });
    container.wait_for_line("got USR1");
}

#[test]
fn a_thousand_orphans_are_reaped() {
    let script = "i=0; while [ $i -lt 1000 ]; do (busybox true &); i=$((i+1)); done; echo made; exec busybox sleep 1000";
    let (container, _listener, mut agent) = armed(&[app().script(script)]);
    agent.start(8);
    container.wait_for_line("made");
    until("one child is left", || children(outer(&agent)).len() == 1);
    agent.ask(Request::Status);
    agent.wait_for("Status(Status { generation: 8, started: true");
}

#[test]
fn a_stop_goes_from_the_app_to_the_first_agent() {
    let polite = |name: &str| {
        format!(
            "trap 'echo stopped {name}; exit 0' TERM; echo set {name}; busybox sleep 1000 & wait"
        )
    };
    let specs = [
        agent("a").script(&polite("a")),
        agent("b").script(&polite("b")),
        app().script(&polite("app")),
    ];
    let (mut container, _listener, mut agent) = armed(&specs);
    agent.start(8);
    let mut set: Vec<String> = (0..3).map(|_| container.line()).collect();
    set.sort();
    assert_eq!(set, ["set a", "set app", "set b"]);
    agent.ask(Request::Stop { budget_ms: 10_000 });
    for name in ["app", "b", "a"] {
        container.wait_for_line(&format!("stopped {name}"));
        assert!(
            agent
                .wait_for("Exited")
                .starts_with(&format!("Exited {{ name: {name:?}"))
        );
    }
    assert_eq!(agent.said().unwrap(), "Stopped");
    assert_eq!(agent.said(), None);
    assert_eq!(container.exit_code(), 0);
}

#[test]
fn an_app_that_ignores_term_is_killed_when_the_budget_ends() {
    let (mut container, _listener, mut agent) =
        armed(&[app().script("trap '' TERM; echo deaf; while :; do busybox sleep 1; done")]);
    agent.start(8);
    container.wait_for_line("deaf");
    let asked = Instant::now();
    agent.ask(Request::Stop { budget_ms: 400 });
    let exited = agent.wait_for("Exited");
    let took = asked.elapsed();
    assert!(
        exited.contains("Signal(9)") && exited.contains("oom: false"),
        "{exited}"
    );
    assert!(
        took >= Duration::from_millis(400) && took < PATIENCE / 2,
        "{took:?}"
    );
    assert_eq!(container.exit_code(), 137);
}

#[test]
fn a_second_stop_shortens_the_first() {
    let (mut container, _listener, mut agent) =
        armed(&[app().script("trap '' TERM; echo deaf; while :; do busybox sleep 1; done")]);
    agent.start(8);
    container.wait_for_line("deaf");
    agent.ask(Request::Stop { budget_ms: 600_000 });
    agent.ask(Request::Stop { budget_ms: 0 });
    agent.wait_for("Exited");
    assert_eq!(container.exit_code(), 137);
}

#[test]
fn what_the_app_left_behind_is_asked_to_end_and_waited_for() {
    let script = "(trap 'echo daemon ended; exit' TERM; echo daemon set; while :; do busybox sleep 0.1; done) & busybox sleep 0.3; exit 3";
    let (mut container, _listener, mut agent) = armed(&[app().script(script)]);
    agent.start(8);
    container.wait_for_line("daemon ended");
    assert_eq!(container.exit_code(), 3);
}

#[test]
fn the_containers_exit_code_is_the_apps() {
    for code in [0, 1, 2, 42, 125, 126, 127, 128, 200, 255] {
        let (mut container, _listener, mut agent) = armed(&[app().script(&format!("exit {code}"))]);
        agent.start(8);
        assert!(
            agent
                .wait_for("Exited")
                .contains(&format!("status: Code({code}), oom: false, generation: 8"))
        );
        assert_eq!(agent.said().unwrap(), "Stopped");
        assert_eq!(container.exit_code(), code);
    }
    for signal in [1, 6, 9, 11, 15, 34, 64] {
        let (mut container, _listener, mut agent) =
            armed(&[app().script(&format!("kill -{signal} $$"))]);
        agent.start(8);
        assert!(
            agent
                .wait_for("Exited")
                .contains(&format!("status: Signal({signal})")),
            "{signal}"
        );
        assert_eq!(container.exit_code(), 128 + signal);
    }
}

#[test]
fn a_command_that_is_not_there_is_127_and_one_that_cannot_run_is_126() {
    for (command, code) in [
        ("/no/such/command", 127),
        ("no-such-command", 127),
        ("/etc/passwd", 126),
        ("/bin", 126),
    ] {
        let (mut container, _listener, mut agent) = armed(&[Spec::app(&[command])]);
        agent.start(8);
        assert!(
            agent
                .wait_for("Exited")
                .contains(&format!("status: Code({code})")),
            "{command}"
        );
        assert!(
            container
                .line()
                .starts_with("container-init: app: cannot execute: errno ")
        );
        assert_eq!(container.exit_code(), code, "{command}");
    }
}

#[test]
fn an_essential_agent_takes_the_container_with_it_and_an_optional_one_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let once = format!(
        "echo up; test -e {0}/x && exec busybox sleep 1000; >{0}/x; exit 9",
        directory.path().display()
    );
    let optional = agent("optional").optional().script(&once);
    let essential =
        agent("essential").script("trap 'exit 5' USR1; echo set; busybox sleep 1000 & wait");
    let (mut container, listener) = Container::run(&[optional, essential, app().script(FOREVER)]);
    let mut agent = Agent::accept(&listener);
    agent.wait_for("AgentReady { name: \"optional\" }");
    assert!(
        agent
            .wait_for("Exited")
            .contains("name: \"optional\", pid: 3, status: Code(9)")
    );
    agent.wait_for("AgentReady { name: \"optional\" }");
    agent.start(8);
    container.wait_for_line("set");
    agent.ask(Request::Status);
    let status = agent.wait_for("Status");
    let pid = status
        .split("name: \"essential\", state: Ready, pid: ")
        .nth(1)
        .unwrap();
    let pid: u32 = pid.split(' ').next().unwrap().parse().unwrap();
    let outside = outside_pid(agent.pid.as_raw_pid(), pid);
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(outside).unwrap(),
        Signal::USR1,
    )
    .unwrap();
    assert!(agent.wait_for("Exited").contains("name: \"essential\""));
    assert_eq!(container.exit_code(), 5);
}

/// Pid outside of the child of `init` that is `inside` in its namespace (`NSpid`, proc_pid_status(5)).
fn outside_pid(init: i32, inside: u32) -> i32 {
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(status) = std::fs::read_to_string(entry.path().join("status")) else {
            continue;
        };
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let is_child = field("PPid:").is_some_and(|pid| pid.trim() == init.to_string());
        let pids: Vec<&str> = field("NSpid:").unwrap_or("").split_whitespace().collect();
        if is_child && pids.last() == Some(&inside.to_string().as_str()) {
            return entry.file_name().to_str().unwrap().parse().unwrap();
        }
    }
    panic!("no child {inside} of {init}");
}

#[test]
fn events_are_sent_again_on_every_connection_until_acked() {
    let (container, listener, mut agent) = armed(&[app().script(FOREVER)]);
    agent.start(8);
    agent.wait_for("AppReady");
    drop(agent);

    let numbered = |agent: &mut Agent, count: usize| -> Vec<u64> {
        let hello = agent.next(|report| matches!(report, Report::Hello(hello) if hello.started && hello.generation == 8));
        assert_eq!(hello, Some(true));
        (0..count)
            .map(|_| {
                agent
                    .next(|report| {
                        if let Report::Event(event) = report {
                            event.seq
                        } else {
                            0
                        }
                    })
                    .unwrap()
            })
            .collect()
    };
    let mut agent = Agent::accept(&listener);
    assert_eq!(numbered(&mut agent, 3), [1, 2, 3]);
    agent.ask(Request::Ack { seq: 2 });
    agent.ask(Request::Status);
    agent.wait_for("Status");

    // The agent is away altogether, its socket too.
    drop((agent, listener));
    std::fs::remove_file(&container.ctl).unwrap();
    let listener = UnixListener::bind(&container.ctl).unwrap();
    let mut agent = Agent::accept(&listener);
    assert_eq!(numbered(&mut agent, 1), [3]);
    agent.ask(Request::Ack { seq: 3 });
    agent.ask(Request::Stop { budget_ms: 5000 });
    assert_eq!(
        agent.next(|report| if let Report::Event(event) = report {
            event.seq
        } else {
            0
        }),
        Some(4)
    );
}

#[test]
fn an_exit_while_the_agent_is_away_is_in_the_ring() {
    let directory = tempfile::tempdir().unwrap();
    let failing = agent("failing").script("exit 9");
    let mut container = Container::run_in(
        directory,
        &[failing, app().script(FOREVER)],
        Settings::default(),
    );
    assert_eq!(container.exit_code(), 9);
    let file = std::fs::read(container.directory.path().join("exits")).unwrap();
    assert_eq!(file.len(), exits::FILE_SIZE);
    let records: Vec<exits::ExitRecord> = exits::records(&file).collect();
    assert_eq!(records.len(), 1);
    let record = records[0];
    assert_eq!(
        (record.name.as_str(), record.status, record.pid),
        ("failing", ExitStatus::Code(9), 3)
    );
    assert_eq!(
        (record.create_generation, record.generation, record.oom),
        (7, 7, false)
    );
}

#[test]
fn a_listener_inside_the_container_is_not_obeyed() {
    let directory = tempfile::tempdir().unwrap();
    let mut imposter = agent("imposter").workload("workload_that_plays_the_agent");
    let ctl = directory.path().join("gate.sock");
    imposter
        .env
        .push(std::ffi::CString::new(format!("CTL={}", ctl.display())).unwrap());
    let specs = [imposter, app().script("echo app; exec busybox sleep 1000")];
    let container = Container::run_in(directory, &specs, Settings::default());
    for _ in 0..3 {
        container.wait_for_line("turned away");
    }
    // The true agent comes back.
    std::fs::remove_file(&ctl).unwrap();
    let listener = UnixListener::bind(&ctl).unwrap();
    let mut agent = Agent::accept(&listener);
    assert_eq!(
        agent.next(|report| matches!(report, Report::Hello(hello) if !hello.started)),
        Some(true)
    );
    agent.wait_for("Armed");
    agent.start(8);
    agent.wait_for("AppReady");
}

#[test]
#[ignore = "run as a process of a container"]
fn workload_that_plays_the_agent() {
    let listener = UnixListener::bind(std::env::var_os("CTL").unwrap()).unwrap();
    let mut frame = vec![0; MAX_FRAME];
    let start = Start {
        generation: 99,
        task_id: "",
        traceparent: "",
        env: EnvList::new(&[]),
    };
    let length = Request::Start(start).encode(&mut frame).unwrap();
    loop {
        let (mut stream, _) = listener.accept().unwrap();
        // It may be gone already.
        stream.write_all(&frame[..length]).ok();
        let mut heard = vec![];
        stream.read_to_end(&mut heard).ok();
        println!(
            "\n{}",
            if heard.is_empty() {
                "turned away"
            } else {
                "listened to"
            }
        );
    }
}

#[test]
fn frames_that_are_not_frames_are_refused_and_change_nothing() {
    let (container, listener, mut agent) =
        armed(&[app().script("echo app; exec busybox sleep 1000")]);
    agent.stream.write_all(&[2, 0, 0, 0, 99, 0]).unwrap();
    assert_eq!(
        agent.said().unwrap(),
        "Refused { request: None, code: Malformed }"
    );
    agent.stream.write_all(&[3, 0, 0, 0, 1, 8, 0]).unwrap();
    assert_eq!(
        agent.said().unwrap(),
        "Refused { request: Some(Start), code: Malformed }"
    );
    // A length without end: the stream is given up, and a new one comes.
    agent.stream.write_all(&[255; 8]).unwrap();
    assert_eq!(
        agent.said().unwrap(),
        "Refused { request: None, code: Malformed }"
    );
    assert_eq!(agent.said(), None);
    let mut agent = Agent::accept(&listener);
    agent.wait_for("Armed");
    container.assert_silent(Duration::from_millis(50));
    // A frame in crumbs is a frame.
    let mut frame = vec![0; MAX_FRAME];
    let length = Request::Status.encode(&mut frame).unwrap();
    for byte in &frame[..length] {
        agent.stream.write_all(&[*byte]).unwrap();
    }
    assert!(
        agent
            .said()
            .unwrap()
            .starts_with("Status(Status { generation: 7, started: false")
    );
}

#[test]
fn the_app_gets_its_user_its_limits_and_nothing_of_ours() {
    let script = "busybox id -u; busybox id -G; ulimit -n; busybox grep -E '^(Cap|SigBlk|SigIgn)' /proc/self/status; busybox ls /proc/self/fd | busybox tr '\\n' ' '; echo; touch /.nodeagent-must-fail 2>/dev/null || echo denied";
    let mut user = app().script(script);
    user.uid = 1234;
    user.groups = vec![1234, 4321];
    user.capabilities = 1 << 10;
    user.rlimits = vec![Rlimit {
        resource: 7,
        soft: 77,
        hard: 88,
    }];
    let (container, _listener, mut agent) = armed(&[user]);
    agent.start(8);
    let zero = "0000000000000000";
    let expected = [
        "1234".into(),
        "1234 4321".into(),
        "77".into(),
        format!("SigBlk:\t{zero}"),
        container.ignored_signals(),
        format!("CapInh:\t{zero}"),
        format!("CapPrm:\t{zero}"),
        format!("CapEff:\t{zero}"),
        "CapBnd:\t0000000000000400".into(),
        format!("CapAmb:\t{zero}"),
        // The last is the directory that ls reads.
        "0 1 2 3 ".into(),
        "denied".to_owned(),
    ];
    for line in expected {
        assert_eq!(container.line(), line);
    }
}

#[test]
fn root_in_the_container_has_the_plans_capabilities_and_no_others() {
    let mut root = app().script("busybox grep -E '^Cap(Prm|Eff|Bnd)' /proc/self/status");
    root.capabilities = 1 << 10 | 1 << 5;
    let (container, _listener, mut agent) = armed(&[root]);
    agent.start(8);
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(container.line(), format!("{set}:\t0000000000000420"));
    }
}

#[test]
fn output_goes_to_its_log_and_never_through_a_link() {
    let directory = tempfile::tempdir().unwrap();
    let (log, link, target) = (
        directory.path().join("log"),
        directory.path().join("link"),
        directory.path().join("target"),
    );
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let mut logged = app().script("echo to the log");
    logged.stdout = Some(log.clone());
    let (mut container, _listener, mut agent) = armed(std::slice::from_ref(&logged));
    agent.start(8);
    assert_eq!(container.exit_code(), 0);
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "to the log\n");
    assert_eq!(
        std::fs::metadata(&log).unwrap().permissions().mode() & 0o777,
        0o640
    );

    logged.stdout = Some(link);
    let (mut container, _listener, mut agent) = armed(&[logged]);
    agent.start(8);
    assert_eq!(
        container.line(),
        "container-init: app: cannot set up its streams: errno 40"
    );
    assert_eq!(container.exit_code(), 126);
    assert!(!target.exists());
}

#[test]
fn term_from_outside_stops_within_the_plans_grace() {
    let (mut container, _listener, agent) =
        armed(&[agent("a").script(FOREVER), app().script(FOREVER)]);
    agent.kill(Signal::TERM);
    assert_eq!(container.exit_code(), 143);

    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("gate.sock")).unwrap();
    let deaf = app().script("trap '' TERM; echo deaf; while :; do busybox sleep 1; done");
    let mut container = Container::run_in(
        directory,
        &[deaf],
        Settings {
            stop_grace_ms: 200,
            ..Settings::default()
        },
    );
    let mut agent = Agent::accept(&listener);
    agent.wait_for("Armed");
    agent.start(8);
    container.wait_for_line("deaf");
    agent.kill(Signal::TERM);
    assert_eq!(container.exit_code(), 137);
}

#[test]
fn a_plan_that_cannot_be_read_is_125_and_named() {
    for (content, said) in [
        (&b""[..], "plan magic is cut off"),
        (
            b"#!/bin/sh\nexit 0\n",
            "plan magic has a value that is not allowed",
        ),
        (
            b"\x7fnaplan\n\x09\0\0\0\0\0\0\0",
            "plan version has a value that is not allowed",
        ),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let plan = directory.path().join("plan");
        std::fs::write(&plan, content).unwrap();
        let mut container = Container::run_with_plan(directory, &plan);
        assert_eq!(
            container.line(),
            format!("container-init: plan {}: {said}", plan.display())
        );
        assert_eq!(container.exit_code(), 125);
    }
    let directory = tempfile::tempdir().unwrap();
    let plan = directory.path().join("missing");
    let mut container = Container::run_with_plan(directory, &plan);
    assert_eq!(
        container.line(),
        format!(
            "container-init: plan {}: cannot be read: errno 2",
            plan.display()
        )
    );
    assert_eq!(container.exit_code(), 125);
}

/// Nobody wakes up for a while: how often each of them went to sleep (proc_pid_status(5)).
fn assert_asleep(container: &Container, pids: &[i32]) {
    let wakeups = || -> u64 {
        let of = |pid: &i32| -> u64 {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let line = status
                .lines()
                .find(|line| line.starts_with("voluntary_ctxt_switches"))
                .unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        pids.iter().map(of).sum()
    };
    // They may still be on their way to sleep.
    let mut before = 0;
    until("they sleep", || {
        std::mem::replace(&mut before, wakeups()) == before && before > 0
    });
    container.assert_silent(Duration::from_millis(1500));
    assert_eq!(wakeups() - before, 0);
}

#[test]
fn an_idle_container_never_wakes_up() {
    let (container, _listener, mut agent) =
        armed(&[agent("a").script(FOREVER), app().script(FOREVER)]);
    let init = agent.pid.as_raw_pid();
    assert_asleep(&container, &[init, waiting(&agent)]);
    agent.start(8);
    agent.wait_for("AppReady");
    assert_asleep(&container, &[init]);
}

/// The process that waits to become the app, outside: the child that has not executed.
fn waiting(agent: &Agent) -> i32 {
    let init = outer(agent);
    let read = |pid: u32, file: &str| {
        std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default()
    };
    let mut found = None;
    until("the app is prepared and sleeps in its read(2)", || {
        found = children(init)
            .into_iter()
            .find(|child| read(*child, "comm") == read(init, "comm"));
        found.is_some_and(|pid| read(pid, "syscall").starts_with("0 "))
    });
    found.unwrap().cast_signed()
}

fn signal(pid: i32, signal: Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
}

#[test]
fn an_app_from_the_gate_is_like_one_that_was_never_prepared() {
    // The numbers of the descriptor go over all that PID 1 uses itself.
    for fd in 3..16 {
        let mut logged = app().script(&format!(
            "exec >&2; busybox env | busybox sort; busybox id; ulimit -n; busybox pwd; umask; \
             busybox cat /proc/self/oom_score_adj /proc/self/cgroup; \
             busybox grep -E '^(Uid|Gid|Groups|NoNewPrivs|Seccomp|Cap|SigBlk|SigIgn|SigCgt|ShdPnd)' /proc/self/status; \
             set -- $(busybox cut -d' ' -f5-8,19 /proc/self/stat); test $1 = $2 && echo session $3 $4 $5; \
             for fd in /proc/self/fd/*; do busybox readlink $fd | busybox sed s/[0-9][0-9]*//; done; \
             busybox ls /proc/self/fd | busybox tr '\\n' ' '; echo; echo >&{fd}; echo $$ of $PPID; echo done; \
             exec busybox sleep 1000"
        ));
        logged.uid = 1234;
        logged.groups = vec![4321];
        logged.capabilities = 1 << 10;
        logged.rlimits = vec![Rlimit {
            resource: 7,
            soft: 77,
            hard: 88,
        }];
        logged.readiness = Readiness::NewlineFd {
            fd,
            timeout_ms: 20_000,
        };
        let run = |kill: bool| -> Vec<String> {
            let (container, _listener, mut agent) = armed(std::slice::from_ref(&logged));
            let prepared = waiting(&agent);
            if kill {
                signal(prepared, Signal::KILL);
            }
            agent.start_with(8, &[("EXTRA", "extra"), ("FROM_PLAN", "replaced")]);
            agent.wait_for("AppReady");
            let mut lines = vec![];
            while lines.last().is_none_or(|line| line != "done") {
                lines.push(container.line());
            }
            lines
        };
        let (prepared, made_at_the_start) = (run(false), run(true));
        let own = prepared.len() - 2;
        assert_eq!(prepared[own], "3 of 1", "fd {fd}");
        assert_eq!(made_at_the_start[own], "4 of 1", "fd {fd}");
        assert_eq!(prepared[..own], made_at_the_start[..own], "fd {fd}");
        assert!(prepared.contains(&"EXTRA=extra".to_owned()), "{prepared:?}");
    }
}

#[test]
fn what_happens_to_the_waiting_process_is_nobodys_business() {
    for harm in [Signal::KILL, Signal::TERM, Signal::SEGV, Signal::STOP] {
        let (container, _listener, mut agent) =
            armed(&[app().script("echo up; exec busybox sleep 1000")]);
        let prepared = waiting(&agent);
        agent.ask(Request::Status);
        let status = agent.said().unwrap();
        assert!(
            status.contains("started: false") && status.contains("app_pid: 0,"),
            "{status}"
        );
        // For the app, which is not there.
        agent.kill(Signal::USR1);
        agent.ask(Request::Signal { signal: 9 });
        assert_eq!(
            agent.said().unwrap(),
            "Refused { request: Some(Signal), code: NotStarted }"
        );
        signal(prepared, harm);
        if harm != Signal::STOP {
            until("it is reaped", || children(outer(&agent)).is_empty());
        }
        agent.start(8);
        assert_eq!(
            agent.said().unwrap(),
            "AppStarted { generation: 8, pid: 4 }"
        );
        assert_eq!(agent.said().unwrap(), "AppReady { generation: 8 }");
        assert_eq!(container.line(), "up");
        until("the app is alone", || children(outer(&agent)).len() == 1);
        container.assert_silent(Duration::from_millis(50));
    }
}

#[test]
fn the_waiting_process_is_hidden_and_holds_nothing_of_pid_1() {
    let mut user = app().script(FOREVER);
    user.uid = 1234;
    let (_container, _listener, agent) = armed(&[agent("a").script(FOREVER), user]);
    let prepared = waiting(&agent);
    // The streams and what it waits on.
    let held = std::fs::read_dir(format!("/proc/{prepared}/fd")).unwrap();
    assert_eq!(held.count(), 4);
    for file in ["environ", "maps", "mem", "fd"] {
        let looked = std::process::Command::new("setpriv")
            .args(["--reuid", "1234", "--regid", "1234", "--clear-groups"])
            .args(["--bounding-set", "-all", "--", "busybox", "ls", "-l"])
            .arg(format!("/proc/{prepared}/{file}/"))
            .output()
            .unwrap();
        assert!(!looked.status.success(), "{file}");
    }
}

#[test]
fn a_stop_at_the_gate_ends_the_waiting_process_and_waits_for_agents_only() {
    for harm in [None, Some(Signal::STOP)] {
        let polite = "trap 'echo ended; exit 0' TERM; echo set; busybox sleep 1000 & wait";
        let (mut container, _listener, mut agent) =
            armed(&[agent("a").script(polite), app().script(FOREVER)]);
        container.wait_for_line("set");
        let prepared = waiting(&agent);
        if let Some(harm) = harm {
            signal(prepared, harm);
        }
        agent.ask(Request::Stop { budget_ms: 60_000 });
        assert!(agent.wait_for("Exited").contains("name: \"a\""));
        container.wait_for_line("ended");
        assert_eq!(agent.said().unwrap(), "Stopped");
        assert_eq!(container.exit_code(), 0);
        assert!(!std::path::Path::new(&format!("/proc/{prepared}")).exists());
    }
}

#[test]
fn a_stop_of_a_held_app_is_over_at_once_and_no_failure() {
    let (mut container, _listener, mut agent) = armed(&[app().script(FOREVER)]);
    let asked = Instant::now();
    agent.ask(Request::Stop { budget_ms: 60_000 });
    assert_eq!(agent.said().unwrap(), "Stopped");
    assert_eq!(container.exit_code(), 0);
    assert!(asked.elapsed() < PATIENCE);
}

#[test]
fn a_closed_standard_error_is_not_the_apps_business() {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("gate.sock")).unwrap();
    let optional = Spec::agent("broken", &["/no/such/command"]).optional();
    let mut container = Container::run_in(
        directory,
        &[optional, app().script(FOREVER)],
        Settings::default(),
    );
    let mut agent = Agent::accept(&listener);
    agent.wait_for("Armed");
    agent.start(8);
    agent.wait_for("AppReady");
    container.close_output();
    // Each try says on standard error that the command is not there.
    for _ in 0..5 {
        assert!(agent.wait_for("Exited").contains("name: \"broken\""));
    }
    agent.ask(Request::Status);
    let status = agent.wait_for("Status");
    assert!(
        status.contains("app_pid: ") && !status.contains("app_pid: 0,"),
        "{status}"
    );
}

#[test]
fn a_stop_without_an_agent_to_hear_it_still_ends_in_time() {
    let directory = tempfile::tempdir().unwrap();
    let essential = agent("a").script("echo set; exec busybox sleep 1000");
    let mut container = Container::run_in(
        directory,
        &[essential, app().script(FOREVER)],
        Settings::default(),
    );
    container.wait_for_line("set");
    let listener = UnixListener::bind(&container.ctl).unwrap();
    let agent = Agent::accept(&listener);
    let pid = agent.pid;
    drop((agent, listener));
    let begun = Instant::now();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(container.exit_code(), 143);
    assert!(begun.elapsed() < PATIENCE);
}
