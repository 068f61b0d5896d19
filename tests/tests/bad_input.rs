//! Bad input changes nothing, and the answer names the field, the value and what is allowed.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::documents::Task;
use nodeagent_tests::{Image, Manifest, TestHost, http};
use serde_json::json;

#[test]
fn an_unknown_configuration_key_stops_the_start_and_is_named_with_its_place() -> Result<()> {
    let mut host = TestHost::without_agent("[containerd]\nsokcet = \"/nowhere\"\n")?;
    host.agent.launch(&host.ground)?;
    let status = host.agent.wait_ended(Duration::from_secs(10))?;
    ensure!(!status.success(), "the agent ran with an unknown key");
    let said = host.agent.tail(20);
    for part in ["20-test.toml", "sokcet", "socket"] {
        assert!(said.contains(part), "{part:?} is missing in: {said}");
    }
    // Line 3: after `version` and the table's head.
    assert!(said.contains(":3"), "the line is missing in: {said}");
    Ok(())
}

#[test]
fn an_unknown_field_of_a_manifest_is_refused_with_a_suggestion() -> Result<()> {
    let host = TestHost::start()?;
    let manifest = Manifest::web("web").with("imgae", "x".into());
    let file = host.file("web.yaml", &manifest.text())?;
    let problem = host
        .cli()
        .json(&["app", "apply", "-f", &file.to_string_lossy()])?
        .problem(3)?;
    assert_eq!(
        (problem.code.as_str(), problem.status),
        ("invalid_manifest", 422)
    );
    let finding = problem
        .findings
        .iter()
        .find(|finding| finding.field.contains("imgae"));
    let finding = finding.with_context(|| format!("no finding for the field: {problem:?}"))?;
    assert!(finding.allowed.contains("image"), "{finding:?}");
    let line = manifest
        .text()
        .lines()
        .position(|line| line.contains("imgae"));
    assert_eq!(finding.line, line.map(|before| before + 1));
    assert_eq!(host.cli().status()?.pools, Vec::new());
    Ok(())
}

#[test]
fn a_mistyped_value_names_field_value_and_what_is_allowed() -> Result<()> {
    let host = TestHost::start()?;
    let cases = [
        (json!(0), "containerPort", "0"),
        (json!(65_536), "containerPort", "65536"),
        (json!("eighty"), "containerPort", "eighty"),
    ];
    for (port, field, value) in cases {
        let ports = json!([{ "name": "http", "containerPort": port }]);
        let manifest = Manifest::web("web").with("ports", ports);
        let file = host.file("web.yaml", &manifest.text())?;
        let problem = host
            .cli()
            .json(&["app", "apply", "-f", &file.to_string_lossy()])?
            .problem(3)?;
        assert_eq!(problem.code, "invalid_manifest");
        let named = problem.findings.iter().any(|finding| {
            finding.field.ends_with(field)
                && finding.value.as_deref().unwrap_or_default().contains(value)
                && !finding.allowed.is_empty()
        });
        assert!(named, "{value}: {problem:?}");
    }
    Ok(())
}

#[test]
fn what_is_not_there_is_said_to_be_not_there() -> Result<()> {
    let host = TestHost::start()?;
    let problem = host
        .cli()
        .json(&["activate", "nope", "--to", "1"])?
        .problem(4)?;
    assert_eq!((problem.code.as_str(), problem.status), ("not_found", 404));
    assert!(problem.detail.contains("nope"), "{}", problem.detail);
    let problem = host.cli().json(&["trace", "nope-7"])?.problem(4)?;
    assert_eq!(problem.code, "not_found");
    let usage = host.cli().run(&["activate", "web"])?;
    assert_eq!(usage.code, 2, "{usage}");
    Ok(())
}

#[test]
fn without_an_agent_the_command_says_so() -> Result<()> {
    let host = TestHost::without_agent("")?;
    let answer = host.cli().run(&["status"])?;
    assert_eq!(answer.code, 7, "{answer}");
    assert!(answer.stderr.contains("api.sock"), "{answer}");
    Ok(())
}

#[test]
fn a_second_manifest_of_one_name_is_a_new_revision_of_one_app() -> Result<()> {
    let host = TestHost::start()?;
    host.push(&Image::web()?, "web:1")?;
    host.apply(&Manifest::web("web"))?;
    let first = host.cli().pool("web")?;
    host.apply(&Manifest::web("web"))?;
    assert_eq!(
        host.cli().pool("web")?.revision,
        first.revision,
        "the same manifest again"
    );
    let colour = json!([{ "name": "COLOUR", "value": "green" }]);
    host.apply(&Manifest::web("web").with("env", colour))?;
    let status = host.cli().status()?;
    assert_eq!(status.pools.len(), 1);
    assert_ne!(status.pools[0].revision, first.revision);

    let two = format!(
        "{}---\n{}",
        Manifest::web("web").text(),
        Manifest::web("web").text()
    );
    let file = host.file("two.yaml", &two)?;
    let problem = host
        .cli()
        .json(&["app", "apply", "-f", &file.to_string_lossy()])?
        .problem(3)?;
    assert_eq!(problem.code, "invalid_manifest");
    host.remove_app("web")
}

#[test]
fn ten_megabytes_of_json_are_refused_and_the_agent_goes_on() -> Result<()> {
    let host = TestHost::start()?;
    let mut body = b"{\"to\": 1, \"taskId\": \"".to_vec();
    body.resize(10 << 20, b'x');
    let within = Duration::from_secs(10);
    let socket = host.agent.socket();
    // The agent may close before it has read everything; then writing fails, which is as good.
    match http::request_unix(socket, "POST", "/v1/apps/web/activate", &body, within) {
        Ok((answer, _)) => {
            assert_eq!(answer.status, 413, "{}", answer.text());
            assert!(answer.text().contains("too_large"), "{}", answer.text());
        }
        Err(error) => assert!(
            format!("{error:#}").contains("send the request"),
            "{error:#}"
        ),
    }
    assert_eq!(host.cli().status()?.pools, Vec::new());
    Ok(())
}

#[test]
fn nonsense_in_a_request_is_named() -> Result<()> {
    let host = TestHost::start()?;
    host.push(&Image::web()?, "web:1")?;
    host.apply(&Manifest::web("web"))?;
    let cases = [
        ("{", "JSON"),
        ("[]", "object"),
        ("{}", "to"),
        ("{\"to\": -1}", "-1"),
        ("{\"to\": \"two\"}", "two"),
        ("{\"to\": 1, \"taskid\": \"x\"}", "taskId"),
        ("{\"to\": 1, \"taskId\": \"a b\"}", "a b"),
        ("{\"to\": 1, \"to\": 2}", "once"),
    ];
    let within = Duration::from_secs(10);
    for (body, said) in cases {
        let target = "/v1/apps/web/activate";
        let (answer, _) =
            http::request_unix(host.agent.socket(), "POST", target, body.as_bytes(), within)?;
        assert_eq!(answer.status, 400, "{body}: {}", answer.text());
        let text = answer.text();
        assert!(
            text.contains("invalid_request") && text.contains(said),
            "{body}: {text}"
        );
    }
    let pool = host.cli().pool("web")?;
    assert_eq!((pool.target, pool.instances), (0, Vec::new()));
    Ok(())
}

#[test]
fn a_request_that_is_cut_off_has_no_effect() -> Result<()> {
    let host = TestHost::start()?;
    host.push(&Image::web()?, "web:1")?;
    host.apply(&Manifest::web("web"))?;
    let before = host.cli().pool("web")?;
    let whole = "POST /v1/apps/web/activate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 24\r\n\r\n{\"to\":1,\"taskId\":\"cut\"} ";
    for cut in [1, 20, whole.len() - 30, whole.len() - 1] {
        let mut stream = UnixStream::connect(host.agent.socket())?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(&whole.as_bytes()[..cut])?;
        stream.shutdown(std::net::Shutdown::Write)?;
        // Until the agent has seen the end, whatever it says to it.
        let _ = stream.read_to_end(&mut Vec::new());
    }
    let problem = host.cli().json(&["trace", "cut"])?.problem(4)?;
    assert_eq!(problem.code, "not_found");
    assert_eq!(host.cli().pool("web")?.target_seq, before.target_seq);
    Ok(())
}

#[test]
fn a_caller_that_hangs_up_does_not_stop_what_it_began() -> Result<()> {
    let host = TestHost::start()?;
    host.push(&Image::web()?, "web:1")?;
    host.apply(&Manifest::web("web"))?;
    let body = "{\"to\":1,\"taskId\":\"gone\"}";
    let request = format!(
        "POST /v1/apps/web/activate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = UnixStream::connect(host.agent.socket())?;
    stream.write_all(request.as_bytes())?;
    host.wait_for_pool("web", "the intent", |pool| pool.target == 1)?;
    drop(stream);
    host.wait_for_pool("web", "one active", |pool| pool.active == 1)?;
    let task = host.cli().activate("web", 1, "gone")?;
    assert_eq!((task.replayed, task.state.as_str()), (true, "done"));
    host.remove_app("web")
}

#[test]
fn an_exhausted_address_pool_is_said_and_the_rest_goes_on() -> Result<()> {
    let config = "[network]\npools = [\"10.88.0.0/30\"]\n[discovery.file]\npropagation_bound = \"100ms\"\n[tasks]\nactivation_deadline = \"10s\"\n";
    let host = TestHost::start_with(config)?;
    host.push(&Image::web()?, "web:1")?;
    host.apply(&Manifest::web("web"))?;
    let answer = host
        .cli()
        .json(&["activate", "web", "--to", "20", "--task-id", "too-many"])?;
    match answer.code {
        3 => {
            let problem = answer.problem(3)?;
            assert_eq!(problem.code, "no_capacity");
            assert!(
                problem.detail.contains("10.88.0.0/30"),
                "{}",
                problem.detail
            );
        }
        _ => {
            let task: Task = answer.document(8)?;
            assert_eq!(task.state, "partial");
            ensure!(
                (1..=4).contains(&task.active),
                "{} active of a /30",
                task.active
            );
            let mut without = task
                .instances
                .iter()
                .filter(|instance| instance.state != "active");
            ensure!(without.all(|instance| instance.error.is_some()), "{task:?}");
        }
    }
    host.remove_app("web")
}

#[test]
fn a_full_disk_under_the_journal_refuses_tasks_and_loses_none() -> Result<()> {
    let mut host = TestHost::without_agent("[discovery.file]\npropagation_bound = \"100ms\"\n")?;
    let small = host.small_disk("small", 24 << 20)?;
    let state = format!("[paths]\nstate = \"{}\"\n", small.display());
    fs::write(
        host.agent.config().join("30-state.toml"),
        format!("version = 1\n{state}"),
    )?;
    host.agent.start(&host.ground)?;
    host.warm_web(1)?;
    host.cli().activate("web", 1, "before")?;
    host.wait_for_armed("web", 1)?;

    let ballast = small.join("ballast");
    let mut file = File::create(&ballast)?;
    while file.write_all(&[0; 4096]).is_ok() {}
    drop(file);
    // What the log has preallocated may take some tasks more; not this many.
    let mut refused = None;
    for n in 0..2000 {
        let target = if n % 2 == 0 { "2" } else { "1" };
        let verb = if n % 2 == 0 { "activate" } else { "deactivate" };
        let id = format!("full-{n}");
        let answer = host
            .cli()
            .json(&[verb, "web", "--to", target, "--task-id", &id])?;
        if answer.code != 0 {
            refused = Some((id, answer));
            break;
        }
    }
    let (id, answer) = refused.context("no task was ever refused")?;
    let problem = answer.problem(3)?;
    assert_eq!(
        (problem.code.as_str(), problem.status),
        ("journal_full", 507)
    );
    assert_eq!(
        host.cli().json(&["trace", &id])?.code,
        4,
        "the refused task left a trace"
    );

    fs::remove_file(&ballast)?;
    let before = host.cli().activate("web", 1, "before")?;
    assert_eq!((before.replayed, before.state.as_str()), (true, "done"));
    host.cli().deactivate("web", 0, "after")?;
    host.cli().json(&["app", "delete", "web"])?.ok()?;
    Ok(())
}
