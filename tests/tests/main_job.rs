//! The main job, end to end: warm, activate, found, served, traced, repeated, taken out, gone.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::host::address_of;
use nodeagent_tests::leaks::{self, endpoints};
use nodeagent_tests::{Image, Manifest, TestHost};

#[test]
fn two_instances_are_activated_found_served_and_taken_out_without_a_trace() -> Result<()> {
    let host = TestHost::start()?;
    host.warm_web(2)?;
    assert_eq!(host.discovered()?, Vec::<String>::new());

    let task = host.cli().activate("web", 2, "peak-7")?;
    assert_eq!(
        (task.state.as_str(), task.active, task.target),
        ("done", 2, 2)
    );
    assert!(!task.replayed);
    let mut wanted = Vec::new();
    for instance in &task.instances {
        assert_eq!(instance.state, "active", "{instance:?}");
        assert_eq!(instance.from, "armed", "{instance:?}");
        host.assert_serves(instance)?;
        wanted.push(address_of(instance)?.to_string());
    }
    wanted.sort();
    wanted.dedup();
    assert_eq!(wanted.len(), 2, "two instances have one address");
    assert_eq!(host.discovered()?, wanted);
    let envoy = std::fs::read_to_string(host.envoy_file("web"))?;
    assert_eq!(endpoints(&serde_json::from_str(&envoy)?), 2);

    let task = host.cli().deactivate("web", 0, "over-7")?;
    assert_eq!((task.state.as_str(), task.active), ("done", 0));
    assert_eq!(host.discovered()?, Vec::<String>::new());
    host.remove_app("web")
}

#[test]
fn the_trail_names_every_step_of_every_instance_within_the_answer() -> Result<()> {
    let host = TestHost::start()?;
    host.warm_web(2)?;
    host.cli().activate("web", 2, "peak-7")?;
    let trail = host.cli().trace("peak-7")?;
    let answer = trail.answer_ms.context("no answer time")?;
    for name in ["intent", "outcome"] {
        let found = trail.steps.iter().filter(|step| step.name == name).count();
        assert_eq!(found, 1, "{name} in {:?}", trail.steps);
    }
    for instance in ["web-0", "web-1"] {
        let mut steps = trail.steps.iter();
        ensure!(
            steps.any(|step| step.instance.as_deref() == Some(instance)),
            "no step of {instance} in {:?}",
            trail.steps
        );
    }
    for step in &trail.steps {
        assert_eq!(step.outcome, "ok", "{step:?}");
        // Three microsecond counts told in decimal milliseconds: their sum is off by a rounding.
        ensure!(
            step.start_ms + step.duration_ms <= answer + 0.0005,
            "{step:?} ends after {answer} ms"
        );
    }
    Ok(())
}

#[test]
fn the_app_knows_its_task_and_its_trace() -> Result<()> {
    let host = TestHost::start()?;
    host.push(&Image::web()?, "web:1")?;
    let script = "echo \"task=$NODEAGENT_TASK_ID trace=$TRACEPARENT\" >/www/index.html; exec httpd -f -p 8080 -h /www";
    host.apply(&Manifest::script("web", script).armed(1).ready_by_page(10))?;
    host.wait_for_armed("web", 1)?;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let task: nodeagent_tests::documents::Task = host
        .cli()
        .json(&[
            "activate",
            "web",
            "--to",
            "1",
            "--task-id",
            "t-1",
            "--traceparent",
            trace,
        ])?
        .document(0)?;
    let page = host.fetch(&task.instances[0])?.text();
    assert!(
        page.starts_with("task=t-1 trace=00-0af7651916cd43dd8448eb211c80319c-"),
        "{page}"
    );
    Ok(())
}

#[test]
fn an_armed_activation_never_asks_containerd() -> Result<()> {
    let mut host = TestHost::start()?;
    host.warm_web(2)?;
    host.containerd.kill()?;
    let task = host.cli().activate("web", 2, "peak-7")?;
    assert_eq!((task.state.as_str(), task.active), ("done", 2));
    for instance in &task.instances {
        host.assert_serves(instance)?;
    }
    host.containerd.start_again(&host.ground)?;
    host.remove_app("web")
}

#[test]
fn an_agent_that_ends_and_comes_back_disturbs_no_container_and_no_client() -> Result<()> {
    let mut host = TestHost::start()?;
    host.warm_web(2)?;
    let task = host.cli().activate("web", 2, "peak-7")?;
    host.wait_for_armed("web", 2)?;
    let namespace = host.agent.namespace().to_owned();
    let before = host.containerd.tasks(&namespace)?;
    let found = host.discovered()?;

    for end in [nodeagent_tests::Agent::stop, nodeagent_tests::Agent::kill] {
        end(&mut host.agent)?;
        assert_eq!(host.discovered()?, found, "without the agent");
        for instance in &task.instances {
            host.assert_serves(instance)?;
        }
        host.agent.start(&host.ground)?;
        let pool = host.wait_for_pool("web", "2 active, 2 armed", |pool| {
            pool.active == 2 && pool.armed == 2
        })?;
        assert_eq!(pool.alarm, None);
        assert_eq!(
            host.containerd.tasks(&namespace)?,
            before,
            "containers and their pids"
        );
        assert_eq!(host.discovered()?, found, "with the agent back");
        let again = host.cli().activate("web", 2, "peak-7")?;
        assert!(again.replayed);
        assert_eq!(again.instances, task.instances);
    }
    host.remove_app("web")
}

#[test]
fn a_warm_pool_is_refilled_behind_an_activation() -> Result<()> {
    let host = TestHost::start()?;
    host.warm_web(1)?;
    let first = host.cli().activate("web", 1, "one")?;
    assert_eq!(first.instances[0].from, "armed");
    host.wait_for_armed("web", 1)?;
    let second = host.cli().activate("web", 2, "two")?;
    assert_eq!(second.instances.len(), 1, "{second:?}");
    assert_eq!(second.instances[0].from, "armed");
    host.remove_app("web")
}

#[test]
fn a_pool_without_warm_instances_says_that_it_started_cold() -> Result<()> {
    let host = TestHost::start()?;
    host.push(&Image::web()?, "web:1")?;
    host.apply(&Manifest::web("web"))?;
    let task = host.cli().activate("web", 1, "cold")?;
    assert_eq!(task.state, "done");
    assert_ne!(task.instances[0].from, "armed");
    host.assert_serves(&task.instances[0])?;
    host.remove_app("web")
}

#[test]
fn a_changed_manifest_replaces_what_waits_and_leaves_what_serves() -> Result<()> {
    let host = TestHost::start()?;
    host.warm_web(1)?;
    let old = host.cli().activate("web", 1, "one")?;
    host.wait_for_armed("web", 1)?;
    let before = host.cli().pool("web")?;

    let env = serde_json::json!([{ "name": "COLOUR", "value": "green" }]);
    host.apply(&Manifest::web("web").armed(1).with("env", env))?;
    let after = host.wait_for_pool("web", "a warm instance of the new revision", |pool| {
        pool.revision != before.revision
            && pool.armed == 1
            && pool
                .instances
                .iter()
                .any(|i| i.state == "armed" && i.revision == pool.revision)
    })?;
    let serving = after
        .instances
        .iter()
        .find(|i| i.name == old.instances[0].name);
    let serving = serving.context("what served is gone")?;
    assert_eq!(
        (serving.state.as_str(), &serving.revision),
        ("active", &before.revision)
    );
    host.assert_serves(&old.instances[0])?;
    host.remove_app("web")
}

#[test]
fn a_deactivated_instance_serves_until_clients_can_know() -> Result<()> {
    let host = TestHost::start_with("[discovery.file]\npropagation_bound = \"2s\"\n")?;
    host.push(&Image::web()?, "web:1")?;
    host.apply(&Manifest::web("web").armed(1).with("drainSeconds", 4.into()))?;
    host.wait_for_armed("web", 1)?;
    let task = host.cli().activate("web", 1, "in")?;
    let instance = &task.instances[0];

    let cli = host.cli().clone();
    let out = std::thread::spawn(move || cli.deactivate("web", 0, "out"));
    nodeagent_tests::wait::until("the deregistration", Duration::from_secs(10), || {
        use nodeagent_tests::wait::Look;
        let found = host.discovered()?;
        Ok(if found.is_empty() {
            Look::Seen(())
        } else {
            Look::NotYet(format!("{found:?}"))
        })
    })?;
    // The bound begins now: a client that read the file just before still gets its page.
    host.assert_serves(instance)?;
    let out = out
        .join()
        .map_err(|_| anyhow::anyhow!("the deactivation panicked"))??;
    assert_eq!(out.state, "done");
    assert!(
        out.elapsed_ms >= 2000.0,
        "ended after {} ms",
        out.elapsed_ms
    );
    host.remove_app("web")
}

#[test]
fn an_app_in_the_hosts_network_is_reached_there_and_taken_out_again() -> Result<()> {
    let host = TestHost::start()?;
    host.push(&Image::web()?, "web:1")?;
    let manifest = Manifest::web("web").armed(1).with("network", "host".into());
    host.apply(&manifest)?;
    host.wait_for_armed("web", 1)?;
    let task = host.cli().activate("web", 1, "in")?;
    assert_eq!(task.state, "done");
    let told = std::net::SocketAddr::from((nodeagent_tests::netns::HOST, 8080));
    assert_eq!(address_of(&task.instances[0])?, told);
    assert_eq!(host.discovered()?, [told.to_string()]);
    host.assert_serves(&task.instances[0])?;
    let links = leaks::look(&host.ground, &host.containerd, &host.agent)?;
    assert_eq!(
        links.of("links"),
        Vec::<String>::new(),
        "host mode made a link"
    );
    host.remove_app("web")
}
