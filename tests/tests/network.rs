//! Clients on another host: what they reach, under which address, and what is left afterwards.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::host::address_of;
use nodeagent_tests::image::PAGE;
use nodeagent_tests::leaks::packet_filter;
use nodeagent_tests::neighbour::{Neighbour, WIRE_HOST};
use nodeagent_tests::{Image, Manifest, TestHost, http};
use serde_json::json;

/// An agent whose instances other hosts do not reach but by host ports.
const HIDDEN: &str = "reachable = false\nhost_address = \"198.51.100.1\"\nforwarding = \"enable\"\n[discovery.file]\npropagation_bound = \"100ms\"\n";

/// How instances are connected; two ports a bridge, so that there are several.
#[derive(Debug, Clone, Copy)]
enum Mode {
    Routed,
    Bridge,
}

/// Runs a scenario in each mode.
fn in_each_mode(scenario: impl Fn(Mode) -> Result<()>) -> Result<()> {
    for mode in [Mode::Routed, Mode::Bridge] {
        scenario(mode).with_context(|| format!("in the mode {mode:?}"))?;
    }
    Ok(())
}

fn hidden(mode: Mode) -> Result<(TestHost, Neighbour)> {
    let mode = match mode {
        Mode::Routed => "mode = \"routed\"",
        Mode::Bridge => "mode = \"bridge\"\nbridge_ports = 2",
    };
    let mut host = TestHost::without_agent(&format!("[network]\n{mode}\n{HIDDEN}"))?;
    let neighbour = Neighbour::connect(&host.ground)?;
    host.agent.start(&host.ground)?;
    host.push(&Image::web()?, "web:1")?;
    Ok((host, neighbour))
}

fn with_port(app: &str, port: serde_json::Value) -> Manifest {
    Manifest::web(app)
        .with("ports", json!([port]))
        .with("registration", json!({ "address": "instance" }))
}

#[test]
fn instances_registered_with_the_host_are_reached_from_another_host() -> Result<()> {
    in_each_mode(|mode| {
        let (mut host, neighbour) = hidden(mode)?;
        let manifest = Manifest::web("web").armed(2);
        host.apply(&manifest.with("registration", json!({ "address": "host" })))?;
        host.wait_for_armed("web", 2)?;
        let task = host.cli().activate("web", 2, "up")?;
        assert_eq!(task.state, "done");
        let mut told = Vec::new();
        for instance in &task.instances {
            let server = address_of(instance)?;
            assert_eq!(server.ip(), WIRE_HOST, "{instance:?}");
            let page = http::get(neighbour.netns(), server, "/")?;
            ensure!(page.status == 200 && page.text().contains(PAGE), "{page:?}");
            host.assert_serves(instance)
                .context("from the host itself")?;
            told.push(server.to_string());
        }
        told.sort();
        assert_eq!(host.discovered()?, told);

        // The agent's end and a new start disturb nobody.
        host.agent.kill()?;
        host.agent.start(&host.ground)?;
        host.wait_for_pool("web", "2 active", |pool| pool.active == 2)?;
        for server in &told {
            let page = http::get(neighbour.netns(), server.parse()?, "/")?;
            assert_eq!(page.status, 200);
        }
        host.remove_app("web")
    })
}

#[test]
fn a_fixed_host_port_is_one_apps_and_free_again_when_it_has_gone() -> Result<()> {
    in_each_mode(|mode| {
        let (host, neighbour) = hidden(mode)?;
        let port = json!({ "name": "http", "containerPort": 8080, "hostPort": 8081 });
        host.apply(&with_port("web", port.clone()).armed(1))?;
        host.wait_for_armed("web", 1)?;
        host.cli().activate("web", 1, "up")?;
        let server = SocketAddr::from((WIRE_HOST, 8081));
        assert_eq!(http::get(neighbour.netns(), server, "/")?.status, 200);

        let shop = host.file("shop.yaml", &with_port("shop", port).text())?;
        let apply = ["app", "apply", "-f", &shop.to_string_lossy()];
        let problem = host.cli().json(&apply)?.problem(3)?;
        let finding = &problem.findings[0];
        assert_eq!(finding.field, "spec.ports[0].hostPort");
        assert_eq!(finding.value.as_deref(), Some("8081"));
        assert_eq!(
            finding.allowed,
            "a host port that no other app has; app web has tcp 8081"
        );
        host.remove_app("web")?;
        host.cli().json(&apply)?.ok()?;
        host.remove_app("shop")
    })
}

#[test]
fn a_host_port_that_a_process_has_is_refused_at_apply_and_said_by_the_task() -> Result<()> {
    in_each_mode(|mode| {
        let (host, _neighbour) = hidden(mode)?;
        let port = json!({ "name": "http", "containerPort": 8080, "hostPort": 8081 });
        let manifest = with_port("web", port);
        let file = host.file("web.yaml", &manifest.text())?;
        let apply = ["app", "apply", "-f", &file.to_string_lossy()];
        let bind = || {
            host.ground
                .netns()
                .run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8081)).context("bind"))
        };
        let process = bind()?;
        let problem = host.cli().json(&apply)?.problem(3)?;
        assert_eq!(
            problem.findings[0].allowed,
            "a host port that no process of this host has; tcp 8081 is in use"
        );
        drop(process);
        host.cli().json(&apply)?.ok()?;

        let process = bind()?;
        let answer = host
            .cli()
            .json(&["activate", "web", "--to", "1", "--task-id", "up"])?;
        let task: nodeagent_tests::documents::Task = answer.document(1)?;
        let error = task.instances[0].error.clone().context("no error")?;
        assert_eq!(
            (error.code.as_str(), error.detail.as_str()),
            (
                "host_port_taken",
                "host port tcp 8081 is in use by a process of this host: Address already in use (os error 98)"
            )
        );
        drop(process);
        host.wait_for_pool("web", "1 active after all", |pool| pool.active == 1)?;
        host.remove_app("web")
    })
}

#[test]
fn a_manifest_says_which_address_is_registered_where_instances_are_hidden() -> Result<()> {
    in_each_mode(|mode| {
        let (host, _neighbour) = hidden(mode)?;
        let file = host.file("web.yaml", &Manifest::web("web").text())?;
        let problem = host
            .cli()
            .json(&["app", "apply", "-f", &file.to_string_lossy()])?
            .problem(3)?;
        let finding = &problem.findings[0];
        assert_eq!(finding.field, "spec.registration.address");
        for choice in ["instance", "host", "network.reachable"] {
            ensure!(finding.allowed.contains(choice), "{finding:?}");
        }
        assert_eq!(host.cli().status()?.pools, Vec::new());
        Ok(())
    })
}

#[test]
fn what_instances_send_to_another_host_comes_from_this_one() -> Result<()> {
    in_each_mode(|mode| {
        let (host, neighbour) = hidden(mode)?;
        let listener = neighbour
            .netns()
            .run(|| TcpListener::bind(("198.51.100.2", 7000)).context("bind"))?;
        listener.set_nonblocking(true)?;
        let script = "nc 198.51.100.2 7000 </dev/null & exec httpd -f -p 8080 -h /www";
        let manifest = Manifest::script("web", script).ready_by_page(20);
        host.apply(&manifest.with("registration", json!({ "address": "instance" })))?;
        let activated = host.cli().activate("web", 1, "up")?;
        assert_eq!(activated.state, "done");
        let within = Duration::from_secs(10);
        let from = nodeagent_tests::wait::until("the instance to dial", within, || {
            use nodeagent_tests::wait::Look;
            Ok(match listener.accept() {
                Ok((_, from)) => Look::Seen(from),
                Err(error) => Look::NotYet(error.to_string()),
            })
        })?;
        assert_eq!(from.ip(), WIRE_HOST);
        host.remove_app("web")?;
        let rules = packet_filter(&host.ground)?;
        ensure!(rules.contains("table inet nodeagent"), "{rules}");
        Ok(())
    })
}

#[test]
fn a_changed_mode_prevents_the_start_while_an_instance_exists_and_disturbs_none() -> Result<()> {
    let (mut host, neighbour) = hidden(Mode::Bridge)?;
    let port = json!({ "name": "http", "containerPort": 8080, "hostPort": 8081 });
    host.apply(&with_port("web", port))?;
    host.cli().activate("web", 1, "up")?;
    let server = SocketAddr::from((WIRE_HOST, 8081));
    host.agent.stop()?;
    let more = host.agent.config().join("30-mode.toml");
    std::fs::write(&more, "version = 1\n[network]\nmode = \"routed\"\n")?;
    host.agent.launch(&host.ground)?;
    let ended = host.agent.wait_ended(Duration::from_secs(20))?;
    assert_eq!(ended.code(), Some(3), "refused");
    let log = host.agent.tail(5);
    ensure!(
        log.contains(
            "network.mode is \"routed\", but 1 instances are connected otherwise (the first: web-0)"
        ),
        "{log}"
    );
    assert_eq!(http::get(neighbour.netns(), server, "/")?.status, 200);
    std::fs::remove_file(&more)?;
    host.agent.start(&host.ground)?;
    host.remove_app("web")
}
