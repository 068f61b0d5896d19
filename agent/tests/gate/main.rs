//! The gate against processes in real pid namespaces and cgroups. Needs root.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod cgroup;
mod peer;
mod real;

use std::path::PathBuf;
use std::time::Duration;

use cgroup::Cgroups;
use container_init::protocol::{
    self, Agents, EventKind, ExitStatus, LookKind, LookOutcome, Looked, Refusal, Report,
    RequestKind,
};
use nodeagent::gate::{
    self, Exit, Gate, GateError, Notice, NoticeKind, Seen, Start, Status, recorded_exits,
};
use nodeagent::instance::ContainerId;
use peer::{Depth, PATIENCE, Peer};
use real::RealInit;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{Instant, timeout};

/// A gate with its own cgroup parent, and the news from it. What is made last is dropped first.
struct Host {
    gate: Gate,
    news: UnboundedReceiver<Notice>,
    cgroups: Cgroups,
    runtime: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test needs root");
        let runtime = tempfile::tempdir().unwrap();
        let cgroups = Cgroups::new();
        let (sender, news) = unbounded_channel();
        let socket = gate::bind(&runtime.path().join("ctl")).unwrap();
        let gate = Gate::open(socket, &[&cgroups.parent], sender).unwrap();
        Self {
            gate,
            news,
            cgroups,
            runtime,
        }
    }

    /// Another agent in the place of this one.
    fn restart(&mut self) {
        let (sender, news) = unbounded_channel();
        let socket = gate::bind(&self.runtime.path().join("ctl")).unwrap();
        self.gate = Gate::open(socket, &[&self.cgroups.parent], sender).unwrap();
        self.news = news;
    }

    fn socket(&self) -> PathBuf {
        self.runtime.path().join("ctl/gate.sock")
    }

    fn peer(&self, container: &str, depth: Depth) -> Peer {
        Peer::start(&self.socket(), &self.cgroups.join_files(container), depth)
    }

    async fn wait(&self, what: &'static str, until: impl Fn(&Status) -> bool) -> Status {
        let deadline = Instant::now() + PATIENCE;
        self.gate
            .wait(&id("web-0.g7"), what, deadline, until)
            .await
            .unwrap()
    }

    async fn news(&mut self) -> NoticeKind {
        let notice = timeout(PATIENCE, self.news.recv())
            .await
            .expect("no notice came")
            .unwrap();
        assert_eq!(notice.container, id("web-0.g7"));
        notice.kind
    }

    /// An init of `web-0.g7` that is connected.
    async fn connected(&mut self) -> Peer {
        self.gate.expect(&id("web-0.g7"));
        let mut init = self.peer("web-0.g7", Depth::Init);
        init.dial();
        init.hello("web-0.g7", 1);
        assert_eq!(init.heard(0), "Status");
        init.say(waiting());
        assert_eq!(self.news().await, NoticeKind::Connected);
        init
    }
}

fn id(text: &str) -> ContainerId {
    text.parse().unwrap()
}

fn waiting() -> Report<'static> {
    Report::Status(protocol::Status {
        generation: 7,
        started: false,
        app_ready: false,
        armed: false,
        stopping: false,
        app_pid: 0,
        agents: Agents::new(&[]),
    })
}

fn start(generation: u64) -> Start {
    Start {
        generation,
        task_id: "peak-7".into(),
        traceparent: String::new(),
        env: vec![("LANE".into(), "blue".into())],
    }
}

fn app_exited(pid: u32) -> EventKind<'static> {
    EventKind::Exited {
        name: "app",
        pid,
        status: ExitStatus::Code(3),
        oom: false,
        generation: 8,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_init_is_heard_from_hello_to_exit_and_every_event_is_acked() {
    let mut host = Host::new();
    let mut init = host.connected().await;
    init.event(1, EventKind::AgentReady { name: "proxy" });
    init.event(2, EventKind::Armed);
    assert_eq!(host.news().await, NoticeKind::Armed);
    let armed = host.wait("armed", |status| status.armed).await;
    assert_eq!(
        (armed.agents_ready, armed.ready),
        (vec!["proxy".to_owned()], false)
    );
    while init.heard(0) != "Ack { seq: 2 }" {}

    host.gate.start(&id("web-0.g7"), start(8)).await.unwrap();
    let heard = init.heard(0);
    assert!(
        heard.starts_with("Start(Start { generation: 8, task_id: \"peak-7\", traceparent: \"\""),
        "{heard}"
    );
    init.event(
        3,
        EventKind::AppStarted {
            generation: 8,
            pid: 12,
        },
    );
    init.event(4, EventKind::AppReady { generation: 8 });
    let ready = host
        .wait("ready", |status| status.ready && status.generation == 8)
        .await;
    assert_eq!((ready.app_pid, ready.started), (Some(12), true));
    assert_eq!(host.news().await, NoticeKind::AppStarted { generation: 8 });
    assert_eq!(host.news().await, NoticeKind::AppReady { generation: 8 });

    host.gate.signal(&id("web-0.g7"), 10).await.unwrap();
    host.gate
        .stop(&id("web-0.g7"), Duration::from_secs(30))
        .await
        .unwrap();
    let mut heard = init.heard(0);
    while heard.starts_with("Ack") {
        heard = init.heard(0);
    }
    assert_eq!(
        [heard, init.heard(0)],
        ["Signal { signal: 10 }", "Stop { budget_ms: 30000 }"]
    );

    init.event(5, app_exited(12));
    init.event(6, EventKind::Stopped);
    let stopped = host.wait("stopped", |status| status.stopped).await;
    let exit = Exit {
        name: "app".into(),
        pid: 12,
        status: ExitStatus::Code(3),
        oom: false,
        memory: None,
        generation: 8,
    };
    assert_eq!(stopped.app_exit, Some(exit.clone()));
    assert_eq!(host.news().await, NoticeKind::Exited(exit));
    assert_eq!(host.news().await, NoticeKind::Stopped);
    drop(init);
    assert_eq!(host.news().await, NoticeKind::Disconnected);
    assert!(
        !host
            .wait("disconnected", |status| !status.connected)
            .await
            .connected
    );
}

/// The gate has one thread here, which is kept busy until words, their end and an ack are all due.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_last_words_of_an_init_are_heard_whatever_is_owed_to_it() {
    // What comes first is chance.
    for _ in 0..8 {
        let mut host = Host::new();
        let mut init = host.connected().await;
        init.event(1, EventKind::Armed);
        assert_eq!(host.news().await, NoticeKind::Armed);
        let (goes_on, waits) = std::sync::mpsc::channel::<()>();
        let (holds_to, holds) = std::sync::mpsc::channel();
        tokio::spawn(async move {
            holds_to.send(()).unwrap();
            waits.recv().ok();
        });
        holds.recv().unwrap();
        init.event(2, app_exited(7));
        init.event(3, EventKind::Stopped);
        init.leave();
        // The ack of the first event is due after 50 ms.
        std::thread::sleep(Duration::from_millis(60));
        drop(goes_on);
        match host.news().await {
            NoticeKind::Exited(exit) => assert_eq!((exit.name.as_str(), exit.pid), ("app", 7)),
            other => panic!("{other:?}"),
        }
        assert_eq!(host.news().await, NoticeKind::Stopped);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_ends_the_wait_and_the_next_command_clears_it() {
    let mut host = Host::new();
    let mut init = host.connected().await;
    host.gate.start(&id("web-0.g7"), start(6)).await.unwrap();
    assert!(init.heard(0).starts_with("Start"));
    init.say(Report::Refused {
        request: Some(RequestKind::Start),
        code: Refusal::StaleGeneration,
    });
    let deadline = Instant::now() + PATIENCE;
    let refused = host
        .gate
        .wait(&id("web-0.g7"), "app started", deadline, |status| {
            status.started
        })
        .await
        .unwrap_err();
    match refused {
        GateError::Refused { request, code, .. } => {
            assert_eq!(
                (request, code),
                (Some(RequestKind::Start), Refusal::StaleGeneration)
            );
        }
        other => panic!("{other:?}"),
    }
    host.gate.start(&id("web-0.g7"), start(8)).await.unwrap();
    assert_eq!(host.gate.status(&id("web-0.g7")).unwrap().refused, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_is_answered_to_who_asked_and_ends_with_the_connection() {
    let mut host = Host::new();
    let mut init = host.connected().await;
    let look = |kind| {
        let gate = host.gate.clone();
        tokio::spawn(async move { gate.look(&id("web-0.g7"), kind, PATIENCE).await })
    };
    let ready = look(LookKind::Readiness);
    assert_eq!(
        init.heard(0),
        "Look(Look { id: 1, kind: Readiness, timeout_ms: 20000 })"
    );
    let alive = look(LookKind::Liveness);
    assert!(
        init.heard(0)
            .starts_with("Look(Look { id: 2, kind: Liveness")
    );
    let status = ExitStatus::Code(4);
    init.say(Report::Looked(Looked {
        id: 2,
        outcome: LookOutcome::Ended(status),
    }));
    match alive.await.unwrap() {
        Ok(Seen::Ended(seen)) => assert_eq!(seen, status),
        other => panic!("{other:?}"),
    }
    drop(init);
    match ready.await.unwrap() {
        Err(GateError::NotConnected { .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_init_that_knows_no_looks_is_asked_once_and_nobody_else_hears_its_refusal() {
    let mut host = Host::new();
    let mut init = host.connected().await;
    let gate = host.gate.clone();
    let look = tokio::spawn(async move {
        gate.look(&id("web-0.g7"), LookKind::Liveness, PATIENCE)
            .await
    });
    assert!(init.heard(0).starts_with("Look"));
    host.gate.start(&id("web-0.g7"), start(8)).await.unwrap();
    assert!(init.heard(0).starts_with("Start"));
    // As an init answers that cannot read the frame.
    init.say(Report::Refused {
        request: None,
        code: Refusal::Malformed,
    });
    let refused = look.await.unwrap().unwrap_err();
    assert!(
        matches!(refused, GateError::LooksUnknown { .. }),
        "{refused:?}"
    );
    assert!(refused.to_string().contains("older nodeagent"), "{refused}");
    let again = host
        .gate
        .look(&id("web-0.g7"), LookKind::Readiness, PATIENCE)
        .await;
    assert!(
        matches!(again, Err(GateError::LooksUnknown { .. })),
        "{again:?}"
    );
    let status = host.gate.status(&id("web-0.g7")).unwrap();
    assert_eq!(status.refused, None, "the start was not refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_not_the_init_of_an_instance_is_turned_away() {
    let host = Host::new();
    host.gate.expect(&id("web-0.g7"));
    for (who, cgroup, depth) in [
        (
            "a process of the container",
            Some("web-0.g7"),
            Depth::ChildOfInit,
        ),
        (
            "a process in the cgroup, outside the namespace",
            Some("web-0.g7"),
            Depth::Same,
        ),
        (
            "the init of a namespace in the container",
            Some("web-0.g7"),
            Depth::InitOfInit,
        ),
        ("the init of something else", None, Depth::Init),
        ("a process of the host", None, Depth::Same),
        (
            "the init of what is no container id",
            Some("web-0.g07"),
            Depth::Init,
        ),
    ] {
        let join = cgroup
            .map(|name| host.cgroups.join_files(name))
            .unwrap_or_default();
        let mut peer = Peer::start(&host.socket(), &join, depth);
        peer.dial();
        peer.hello("web-0.g7", 1);
        peer.is_turned_away(0);
        assert!(
            !host.gate.status(&id("web-0.g7")).unwrap().connected,
            "{who}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_init_that_calls_itself_another_or_says_no_hello_is_turned_away() {
    let host = Host::new();
    host.gate.expect(&id("web-0.g7"));
    host.gate.expect(&id("web-1.g7"));
    let mut init = host.peer("web-0.g7", Depth::Init);
    init.dial();
    init.hello("web-1.g7", 1);
    init.is_turned_away(0);
    init.dial();
    init.say(waiting());
    init.is_turned_away(1);
    init.dial();
    init.say_bytes(&[0xff; 64]);
    init.is_turned_away(2);
    init.dial();
    init.is_turned_away(3);
    for name in ["web-0.g7", "web-1.g7"] {
        assert!(!host.gate.status(&id(name)).unwrap().connected, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_init_that_nobody_expects_is_turned_away_and_one_that_is_early_is_not() {
    let mut host = Host::new();
    let mut init = host.peer("web-0.g7", Depth::Init);
    init.dial();
    init.hello("web-0.g7", 1);
    init.is_turned_away(0);
    init.dial();
    init.hello("web-0.g7", 1);
    host.gate.expect(&id("web-0.g7"));
    assert_eq!(init.heard(1), "Status");
    init.say(waiting());
    assert_eq!(host.news().await, NoticeKind::Connected);
    host.gate.forget(&id("web-0.g7"));
    init.is_turned_away(1);
    assert_eq!(host.gate.status(&id("web-0.g7")), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_init_replaces_its_connection_and_an_event_sent_again_is_no_news() {
    let mut host = Host::new();
    let mut init = host.connected().await;
    init.event(1, EventKind::Armed);
    assert_eq!(host.news().await, NoticeKind::Armed);
    init.dial();
    init.hello("web-0.g7", 1);
    init.is_turned_away(0);
    init.event(1, EventKind::Armed);
    init.event(2, app_exited(12));
    assert_eq!(init.heard(1), "Status");
    init.say(waiting());
    assert!(
        matches!(host.news().await, NoticeKind::Exited(_)),
        "armed is news once"
    );
    assert_eq!(host.news().await, NoticeKind::Connected);
    while init.heard(1) != "Ack { seq: 2 }" {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_init_is_turned_away_while_the_first_lives() {
    let mut host = Host::new();
    let mut first = host.connected().await;
    let mut second = host.peer("web-0.g7", Depth::Init);
    second.dial();
    second.hello("web-0.g7", 1);
    second.is_turned_away(0);
    first.event(1, EventKind::Armed);
    assert_eq!(
        host.news().await,
        NoticeKind::Armed,
        "the first is not disturbed"
    );
    drop(first);
    assert_eq!(host.news().await, NoticeKind::Disconnected);
    second.dial();
    second.hello("web-0.g7", 1);
    assert_eq!(second.heard(1), "Status");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_agent_takes_the_sockets_place_and_learns_the_state() {
    let mut host = Host::new();
    let mut init = host.connected().await;
    host.restart();
    init.is_turned_away(0);
    host.gate.expect(&id("web-0.g7"));
    init.dial();
    init.hello("web-0.g7", 5);
    assert_eq!(init.heard(1), "Status");
    init.say(Report::Status(protocol::Status {
        generation: 8,
        started: true,
        app_ready: true,
        armed: true,
        stopping: false,
        app_pid: 12,
        agents: Agents::new(&[]),
    }));
    let status = host.wait("connected", |status| status.connected).await;
    let expected = Status {
        connected: true,
        version: protocol::VERSION,
        reports: 1,
        generation: 8,
        started: true,
        armed: true,
        ready: true,
        app_pid: Some(12),
        ..Status::default()
    };
    assert_eq!(status, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_init_that_fell_back_is_asked_once_whether_it_knows_a_newer_version() {
    let host = Host::new();
    host.gate.expect(&id("web-0.g7"));
    let mut init = host.peer("web-0.g7", Depth::Init);
    // An agent that was killed before it answered made it believe that the agent is older.
    init.dial();
    init.hello_of(1, "web-0.g7", 1);
    init.is_turned_away(0);
    init.dial();
    init.hello("web-0.g7", 1);
    assert_eq!(init.heard(1), "Status");

    // One that knows no newer.
    host.gate.expect(&id("web-1.g7"));
    let mut old = host.peer("web-1.g7", Depth::Init);
    old.dial();
    old.hello_of(1, "web-1.g7", 1);
    old.is_turned_away(0);
    old.dial();
    old.hello_of(1, "web-1.g7", 1);
    assert_eq!(old.heard(1), "Status");
    assert_eq!(host.gate.status(&id("web-1.g7")).unwrap().version, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_babbling_init_waits_in_its_socket() {
    const FRAMES: u64 = 4000;
    let mut host = Host::new();
    let mut init = host.connected().await;
    let babbling = std::thread::spawn(move || {
        for seq in 1..=FRAMES {
            init.event(seq, app_exited(12));
        }
        init
    });
    let mut heard = 0;
    let until = Instant::now() + Duration::from_millis(700);
    while tokio::time::timeout_at(until, host.news()).await.is_ok() {
        heard += 1;
    }
    // A burst, the rest of the read that ended it, and what the pace allowed meanwhile.
    assert!(
        (256..1000).contains(&heard),
        "{heard} of {FRAMES} were taken in"
    );
    assert!(
        host.gate.status(&id("web-0.g7")).unwrap().connected,
        "it is slowed down, not cut off"
    );
    host.gate.forget(&id("web-0.g7"));
    drop(babbling.join().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_init_that_does_not_read_does_not_make_the_gate_grow() {
    let mut host = Host::new();
    host.gate.expect(&id("web-0.g7"));
    let mut init = host.peer("web-0.g7", Depth::Init);
    init.dial_deaf();
    init.hello("web-0.g7", 1);
    init.say(waiting());
    assert_eq!(host.news().await, NoticeKind::Connected);
    let mut large = start(8);
    large.env = vec![("A".into(), "x".repeat(60_000))];
    let mut refused = None;
    for _ in 0..100 {
        if let Err(e) = host.gate.start(&id("web-0.g7"), large.clone()).await {
            refused = Some(e);
            break;
        }
    }
    match refused {
        Some(GateError::Congested { unsent, .. }) => assert!(unsent <= 256 * 1024, "{unsent}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_and_commands_say_why_they_cannot() {
    let host = Host::new();
    let container = id("web-0.g7");
    let said = |result: Result<(), GateError>| result.unwrap_err().to_string();
    let unexpected = "container web-0.g7 is not expected";
    assert_eq!(
        said(host.gate.start(&container, start(8)).await),
        unexpected
    );
    host.gate.expect(&container);
    let unconnected = "the init of container web-0.g7 is not connected";
    assert_eq!(
        said(host.gate.start(&container, start(8)).await),
        unconnected
    );
    assert_eq!(
        said(host.gate.signal(&container, 65).await),
        "the Signal command cannot be said"
    );
    let mut odd = start(8);
    odd.env = vec![("A=B".into(), "x".into())];
    assert_eq!(
        said(host.gate.start(&container, odd).await),
        "the Start command cannot be said"
    );

    let late = host
        .gate
        .wait(&container, "armed", Instant::now(), |status| status.armed)
        .await;
    match late.unwrap_err() {
        GateError::Deadline { what: "armed", .. } => {}
        other => panic!("{other:?}"),
    }
    let waiting = {
        let (gate, container) = (host.gate.clone(), container.clone());
        let deadline = Instant::now() + PATIENCE;
        tokio::spawn(async move {
            gate.wait(&container, "armed", deadline, |status| status.armed)
                .await
        })
    };
    host.gate.forget(&container);
    let ended = waiting.await.unwrap().unwrap_err();
    assert!(
        matches!(
            ended,
            GateError::Forgotten { .. } | GateError::NotExpected { .. }
        ),
        "{ended:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_container_init_is_armed_started_survives_the_agent_and_stops() {
    let mut host = Host::new();
    let container = id("web-0.g7");
    host.gate.expect(&container);
    let directory = tempfile::tempdir().unwrap();
    let answer = directory.path().join("answer");
    let script = format!(
        "trap 'exit 3' TERM; echo \"$NODEAGENT_TASK_ID $LANE\" > {}; while :; do sleep 1000 & wait; done",
        answer.display()
    );
    let join = host.cgroups.join_files("web-0.g7");
    let app = ["/bin/sh", "-c", script.as_str()];
    let init = RealInit::start("web-0.g7", &host.socket(), directory.path(), &join, &app);

    let armed = host
        .wait("armed", |status| status.connected && status.armed)
        .await;
    assert_eq!(
        (armed.started, armed.agents_ready),
        (false, vec!["agent".to_owned()])
    );
    assert!(!answer.exists(), "the app is held at the gate");
    host.gate.start(&container, start(8)).await.unwrap();
    let ready = host
        .wait("ready", |status| status.ready && status.generation == 8)
        .await;
    assert!(ready.app_pid.is_some());

    let stale = start(7);
    host.gate.start(&container, stale).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    let refused = host
        .gate
        .wait(&container, "the refusal", deadline, |_| false)
        .await
        .unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the init of container web-0.g7 refused start: its generation is older than the one init works for"
    );

    host.restart();
    host.gate.expect(&container);
    let again = host.wait("connected", |status| status.connected).await;
    assert_eq!(
        (again.started, again.ready, again.generation),
        (true, true, 8)
    );
    assert_eq!(again.app_pid, ready.app_pid, "the app did not notice");
    host.gate
        .stop(&container, Duration::from_secs(10))
        .await
        .unwrap();
    let stopped = host.wait("stopped", |status| status.stopped).await;
    let exit = stopped.app_exit.unwrap();
    assert_eq!((exit.status, exit.generation), (ExitStatus::Code(3), 8));
    assert_eq!(init.ended(), Some(3));
    assert_eq!(std::fs::read_to_string(answer).unwrap(), "peak-7 blue\n");
    let recorded = recorded_exits(directory.path(), &container).unwrap();
    assert!(
        recorded.iter().any(|recorded| recorded.exit == exit),
        "{recorded:?}"
    );
}
