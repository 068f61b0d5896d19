//! What the first version said, byte for byte: frames never change. The bytes were written by that
//! version.

use super::*;
use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

const ENV: &[(&str, &str)] = &[("KEY", "value"), ("EMPTY", "")];
const AGENTS: &[AgentStatus<'_>] = &[AgentStatus {
    name: "log",
    state: AgentState::BackingOff,
    pid: 0,
}];

fn event(seq: u64, kind: EventKind<'static>) -> Report<'static> {
    Report::Event(Event { seq, kind })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    let pair = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(pair).collect()
}

#[test]
fn an_init_of_the_first_version_reads_what_we_ask_and_we_what_its_agent_asked() {
    let mut room = vec![0; MAX_FRAME];
    for (request, wire) in [
        (
            Request::Start(Start {
                generation: 9,
                task_id: "peak-7",
                traceparent: "00-ab-cd-01",
                env: EnvList::new(ENV),
            }),
            "3500000001090000000000000006007065616b2d370b0030302d61622d63642d3031020003004b4559050076616c75650500454d5054590000",
        ),
        (
            Request::Adopt(Adopt {
                generation: 10,
                task_id: "t",
                traceparent: "",
            }),
            "0e000000020a000000000000000100740000",
        ),
        (Request::Stop { budget_ms: 30_000 }, "050000000330750000"),
        (Request::Signal { signal: 64 }, "020000000540"),
        (Request::Status, "0100000006"),
        (Request::Ack { seq: 258 }, "09000000070201000000000000"),
        (
            Request::Look(Look {
                id: 7,
                kind: LookKind::Liveness,
                timeout_ms: 1500,
            }),
            "0a000000080700000002dc050000",
        ),
    ] {
        let length = request.encode(&mut room).unwrap();
        assert_eq!(hex(&room[..length]), wire);
        assert_eq!(Request::decode(&bytes(wire)[4..]), Ok(request));
    }
}

#[test]
fn an_agent_reads_what_an_init_of_the_first_version_says_and_the_other_way_round() {
    let mut room = vec![0; MAX_FRAME];
    for (report, wire) in [
        (
            Report::Hello(Hello {
                version: 1,
                container_id: "web-1.g7",
                create_generation: 7,
                generation: 8,
                started: true,
                first_unacked_seq: 3,
            }),
            "2600000081010008007765622d312e673707000000000000000800000000000000010300000000000000",
        ),
        (
            Report::Status(Status {
                generation: 8,
                started: true,
                app_ready: false,
                armed: true,
                stopping: false,
                app_pid: 12,
                agents: Agents::new(AGENTS),
            }),
            "1d000000820800000000000000010001000c000000010003006c6f670300000000",
        ),
        (
            Report::Refused {
                request: Some(RequestKind::Start),
                code: Refusal::NotArmed,
            },
            "03000000830102",
        ),
        (
            Report::Refused {
                request: None,
                code: Refusal::Malformed,
            },
            "03000000830005",
        ),
        (
            Report::Looked(Looked {
                id: 7,
                outcome: LookOutcome::Ended(ExitStatus::Code(1)),
            }),
            "080000008507000000010001",
        ),
        (
            event(1, EventKind::AgentReady { name: "log" }),
            "0f0000008401000000000000000103006c6f67",
        ),
        (event(2, EventKind::Armed), "0a00000084020000000000000002"),
        (
            event(
                3,
                EventKind::AppStarted {
                    generation: 8,
                    pid: 12,
                },
            ),
            "160000008403000000000000000308000000000000000c000000",
        ),
        (
            event(4, EventKind::AppReady { generation: 8 }),
            "12000000840400000000000000040800000000000000",
        ),
        (
            event(
                5,
                EventKind::Exited {
                    name: "app",
                    pid: 12,
                    status: ExitStatus::Signal(9),
                    oom: true,
                    generation: 8,
                },
            ),
            "1e0000008405000000000000000503006170700c0000000109010800000000000000",
        ),
        (event(6, EventKind::Stopped), "0a00000084060000000000000006"),
    ] {
        let length = report.encode(&mut room).unwrap();
        assert_eq!(hex(&room[..length]), wire);
        assert_eq!(Report::decode(&bytes(wire)[4..]), Ok(report));
    }
}

#[test]
fn what_the_first_version_does_not_know_is_marked() {
    let newer = [
        EventKind::Replaced {
            name: "app",
            pid: 1,
            status: ExitStatus::Code(0),
            generation: 1,
        },
        EventKind::OutOfMemory {
            name: "app",
            pid: 1,
            memory: Memory::default(),
        },
        EventKind::LeftBehind {
            name: "app",
            pid: 1,
        },
    ];
    assert!(newer.iter().all(|kind| kind.since() == 2));
    assert_eq!(EventKind::Stopped.since(), OLDEST_VERSION);
}
