//! Any bytes on the connection, in both directions, and what PID 1 does about them.
#![no_main]

use container_init::command_line;
use container_init::exits;
use container_init::plan::{Plan, Process, ProcessKind, Processes, Rewrites, Strings};
use container_init::procfs;
use container_init::protocol::{MAX_FRAME, Report, Request, first_frame};
use container_init::supervisor::{Action, Input, Supervisor, room};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let argv = [c"/bin/true"];
    let processes = [
        Process::plain("log", ProcessKind::Agent, Strings::new(&argv)),
        Process::plain("app", ProcessKind::App, Strings::new(&argv)),
    ];
    let plan = Plan {
        container_id: "web-1.g7",
        create_generation: 7,
        ctl_socket: c"/gate.sock",
        run_dir: c"/",
        exits: c"",
        stop_grace_ms: 1000,
        signals: Rewrites::none(),
        exit_codes: Rewrites::none(),
        processes: Processes::new(&processes),
        looks: Default::default(),
    };
    let mut supervisor = Supervisor::new(plan);
    let (mut now, mut pid) = (1, 10);
    let mut inputs = vec![Input::Begin];
    let mut rest = bytes;
    let mut written = vec![0; MAX_FRAME];
    loop {
        while let Some(input) = inputs.pop() {
            let mut next = Vec::new();
            for action in supervisor.step(input, now, &mut room()).iter() {
                match action {
                    Action::Spawn { process, .. } | Action::SpawnAgain { process } => {
                        pid += 1;
                        next.push(Input::Spawned { process, pid });
                    }
                    Action::Sweep { process, .. } => {
                        next.push(Input::Swept {
                            process,
                            found: false,
                        });
                    }
                    Action::Exit { .. } => return,
                    _ => {}
                }
            }
            inputs.extend(next);
        }
        let Ok(Some(frame)) = first_frame(rest) else {
            break;
        };
        rest = &rest[frame.length..];
        if let Ok(report) = Report::decode(frame.body)
            && let Ok(length) = report.encode(&mut written)
        {
            assert_eq!(Report::decode(&written[4..length]), Ok(report));
        }
        if let Ok(request) = Request::decode(frame.body) {
            if let Ok(length) = request.encode(&mut written) {
                assert_eq!(Request::decode(&written[4..length]), Ok(request));
            }
            inputs.push(Input::Asked(request));
        }
        now = supervisor.due().unwrap_or(now + 1);
        inputs.push(Input::Tick);
    }
    for record in exits::records(bytes) {
        assert!(record.name.as_str().len() <= exits::NAME_SIZE);
    }
    for line in bytes.split(|byte| *byte == b'\n') {
        let _ = procfs::Stat::parse(line);
        let _ = procfs::listening_port(line);
    }
    let words = bytes.split(|byte| *byte == 0).filter_map(|word| std::ffi::CString::new(word).ok());
    let words: Vec<_> = words.collect();
    let _ = command_line::parse(words.iter().map(std::ffi::CString::as_c_str));
});
