use super::*;
use crate::protocol::LookKind;
use proptest::prelude::*;
use std::ffi::CString;
use std::string::String;
use std::vec;
use std::vec::Vec;

fn process(name: &str, kind: ProcessKind) -> Process<'_> {
    Process {
        env: Strings::new(&[c"PATH=/bin"]),
        restart: Restart {
            backoff_min_ms: 100,
            backoff_max_ms: 10_000,
            ..Restart::NEVER
        },
        ..Process::plain(name, kind, Strings::new(&[c"/bin/true"]))
    }
}

fn plan<'a>(processes: &'a [Process<'a>]) -> Plan<'a> {
    Plan {
        container_id: "web-1.g7",
        create_generation: 7,
        ctl_socket: crate::paths::CTL_SOCKET,
        run_dir: crate::paths::RUN_DIR,
        exits: crate::paths::EXITS,
        stop_grace_ms: 30_000,
        signals: Rewrites::none(),
        exit_codes: Rewrites::none(),
        processes: Processes::new(processes),
        looks: Looks::default(),
    }
}

fn encoded(plan: &Plan<'_>) -> Vec<u8> {
    let mut buf = vec![0; MAX_PLAN];
    let length = plan.encode(&mut buf).unwrap();
    buf.truncate(length);
    buf
}

fn assert_refused(processes: &[Process<'_>], object: &'static str) {
    assert_eq!(
        Plan::decode(&encoded(&plan(processes))),
        Err(Malformed::Invalid(object))
    );
}

proptest! {
    #[test]
    fn a_plan_survives_the_file(
        args in proptest::collection::vec("[^\0]{1,30}", 1..6),
        groups in proptest::collection::vec(any::<u32>(), 0..5),
        capabilities: u64, uid: u32, timeout_ms: u32, soft: u32, extra: u32,
        nice in proptest::option::of(-20i8..=19), oom_score_adj in proptest::option::of(-1000i16..=1000), exit_code: Option<u8>,
        max_bytes: u64, max_files in 1u8.., ports in proptest::collection::vec(any::<u16>(), 0..4),
        signals in proptest::collection::vec((1u8..=64, 0u8..=64), 0..4), delivery in 0u8..3,
    ) {
        let delivery = [Delivery::Process, Delivery::Group, Delivery::All][usize::from(delivery)];
        let policy = [RestartPolicy::Always, RestartPolicy::OnFailure, RestartPolicy::Never][usize::from(max_files % 3)];
        let signals: Vec<Rewrite> = signals.into_iter().map(|(from, to)| Rewrite { from, to }).collect();
        let owned: Vec<CString> = args.iter().map(|arg: &String| CString::new(arg.as_str()).unwrap()).collect();
        let argv: Vec<&CStr> = owned.iter().map(CString::as_c_str).collect();
        let rlimits = [Rlimit { resource: 7, soft: u64::from(soft), hard: u64::from(soft) + u64::from(extra) }];
        let readiness = [
            Readiness::None,
            Readiness::Notify { timeout_ms },
            Readiness::NewlineFd { fd: 3, timeout_ms },
            Readiness::TcpLoopback { port: 80, period_ms: 1, timeout_ms: 2, deadline_ms: timeout_ms },
            Readiness::Exec { argv: Strings::new(&argv), initial_delay_ms: 0, period_ms: 1, timeout_ms: 2, failure_threshold: 3 },
            Readiness::External,
        ];
        let names = ["a", "b", "c", "d", "e", "app"];
        let processes: Vec<Process<'_>> = names.iter().zip(readiness).map(|(name, readiness)| {
            let app = *name == "app";
            Process {
                argv: Strings::new(&argv), groups: Groups::new(&groups), capabilities, uid, gid: uid, readiness,
                rlimits: Rlimits::new(&rlimits),
                essential: if app { Essential::Yes } else { Essential::No },
                stdout: Output::File(c"/.nodeagent/log/out"),
                stderr: Output::Log,
                log: Some(Log { path: c"/.nodeagent/log/a", max_bytes, max_files, pass_through: app }),
                nice, oom_score_adj, exit_code, delivery, ports: Ports::new(&ports),
                limits: app.then_some(Limits { memory_bytes: max_bytes, cpu_quota_us: timeout_ms, pids: uid }),
                after: if *name == "c" { 0b11 } else { 0 },
                restart: Restart { policy, ..process("", ProcessKind::Agent).restart },
                clean: Strings::new(&[c"/tmp", c"/dev/shm"]),
                ..process(name, if app { ProcessKind::App } else { ProcessKind::Agent })
            }
        }).collect();
        let looks = Looks { readiness: Strings::new(&argv), ..Looks::default() };
        let plan = Plan { signals: Rewrites::new(&signals), exit_codes: Rewrites::new(&signals), looks: if extra % 2 == 0 { Looks::default() } else { looks }, ..plan(&processes) };
        let file = encoded(&plan);
        prop_assert_eq!(Plan::decode(&file), Ok(plan));
    }

    #[test]
    fn a_changed_byte_never_goes_unnoticed(at: prop::sample::Index, flip in 1u8..) {
        let processes = [process("app", ProcessKind::App)];
        let mut file = encoded(&plan(&processes));
        let at = at.index(file.len());
        file[at] ^= flip;
        // Bytes 10 and 11 are reserved and not read.
        prop_assert!(Plan::decode(&file).is_err() || at == 10 || at == 11);
    }

    #[test]
    fn a_sealed_body_of_any_bytes_does_not_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut file = Vec::new();
        file.extend_from_slice(MAGIC);
        file.extend_from_slice(&[VERSION as u8, 0, 0, 0]);
        file.extend_from_slice(&(body.len() as u32 + 4).to_le_bytes());
        file.extend_from_slice(&crc32(&body).to_le_bytes());
        file.extend_from_slice(&body);
        prop_assert_ne!(Plan::decode(&file), Err(Malformed::Invalid("plan checksum")));
    }
}

#[test]
fn a_damaged_plan_is_named() {
    let processes = [process("app", ProcessKind::App)];
    let good = encoded(&plan(&processes));
    assert_eq!(Plan::decode(&[]), Err(Malformed::Truncated("plan magic")));
    assert_eq!(
        Plan::decode(b"#!/bin/sh"),
        Err(Malformed::Invalid("plan magic"))
    );
    assert_eq!(
        Plan::decode(&good[..good.len() - 1]),
        Err(Malformed::Truncated("plan body"))
    );
    let mut newer = good.clone();
    newer[8] = 4;
    assert_eq!(
        Plan::decode(&newer),
        Err(Malformed::Invalid("plan version"))
    );
    let mut flipped = good;
    *flipped.last_mut().unwrap() ^= 1;
    assert_eq!(
        Plan::decode(&flipped),
        Err(Malformed::Invalid("plan checksum"))
    );
}

#[test]
fn a_plan_has_one_app_and_it_is_the_last() {
    let agent = process("log", ProcessKind::Agent);
    let app = process("app", ProcessKind::App);
    let place = "place of the app (one, and the last)";
    assert_refused(&[], "number of processes");
    assert_refused(&[agent], place);
    assert_refused(&[app, agent], place);
    assert_refused(&[process("other", ProcessKind::App), app], place);
    assert_refused(
        &[process("app", ProcessKind::Agent), app],
        "process name (used twice)",
    );
}

#[test]
fn a_process_that_cannot_work_is_refused_by_its_field() {
    let app = process("app", ProcessKind::App);
    let no_probe = Readiness::TcpLoopback {
        port: 0,
        period_ms: 1,
        timeout_ms: 1,
        deadline_ms: 1,
    };
    assert_refused(
        &[Process {
            name: "../x",
            ..app
        }],
        "process name",
    );
    assert_refused(
        &[Process {
            argv: Strings::new(&[]),
            ..app
        }],
        "argv",
    );
    assert_refused(&[Process { cwd: c"tmp", ..app }], "working directory");
    assert_refused(
        &[Process {
            stop_signal: 0,
            ..app
        }],
        "stop signal",
    );
    assert_refused(
        &[Process {
            readiness: no_probe,
            ..app
        }],
        "readiness",
    );
    assert_refused(
        &[Process {
            restart: Restart {
                backoff_min_ms: 2,
                backoff_max_ms: 1,
                ..app.restart
            },
            ..app
        }],
        "restart back-off",
    );
    assert_refused(
        &[Process {
            nice: Some(20),
            ..app
        }],
        "nice",
    );
    assert_refused(
        &[Process {
            oom_score_adj: Some(-1001),
            ..app
        }],
        "oom_score_adj",
    );
    let nowhere = Process {
        stdout: Output::Log,
        ..app
    };
    assert_refused(&[nowhere], "log");
    let relative = Process {
        clean: Strings::new(&[c"tmp"]),
        ..app
    };
    assert_refused(&[relative], "path to clean");
    assert_refused(
        &[Process {
            rlimits: Rlimits::new(&[Rlimit {
                resource: 7,
                soft: 2,
                hard: 1,
            }]),
            ..app
        }],
        "rlimit",
    );
}

#[test]
fn a_process_waits_for_earlier_ones_only() {
    let app = process("app", ProcessKind::App);
    let waiting = |after| Process {
        after,
        ..process("log", ProcessKind::Agent)
    };
    let what = "dependencies (not on an earlier process)";
    assert_refused(&[waiting(1), app], what);
    assert_refused(&[waiting(0b10), app], what);
    let first = process("mesh", ProcessKind::Agent);
    assert_refused(&[first, waiting(0b10), app], what);
    let fine = [first, waiting(1), app];
    assert!(Plan::decode(&encoded(&plan(&fine))).is_ok());
}

#[test]
fn a_look_is_found_by_its_kind() {
    let processes = [process("app", ProcessKind::App)];
    let looks = Looks {
        liveness: Strings::new(&[c"/bin/alive", c"-q"]),
        ..Looks::default()
    };
    let file = encoded(&Plan {
        looks,
        ..plan(&processes)
    });
    let read = Plan::decode(&file).unwrap();
    assert_eq!(read.looks.argv(LookKind::Readiness), None);
    assert_eq!(read.looks.argv(LookKind::Liveness), Some(looks.liveness));
}

#[test]
fn a_look_without_a_program_is_refused() {
    let processes = [process("app", ProcessKind::App)];
    let looks = Looks {
        readiness: Strings::new(&[c""]),
        ..Looks::default()
    };
    let file = encoded(&Plan {
        looks,
        ..plan(&processes)
    });
    assert_eq!(Plan::decode(&file), Err(Malformed::Invalid("looks")));
}
