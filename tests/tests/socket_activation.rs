//! Sockets that outlive the agent: passed by a service manager, or kept in its FD store.
//!
//! The manager is the harness, which speaks sd_listen_fds(3) and sd_notify(3).

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nodeagent_tests::manager::Named;
use nodeagent_tests::{TestHost, http};

const QUICK: &str = "[discovery.file]\npropagation_bound = \"100ms\"\n";
const ANSWERS: Duration = Duration::from_secs(20);

/// How often the agent is killed while clients connect.
const REPLACEMENTS: u32 = 6;

/// Where the agent of a host listens.
struct Places {
    api: PathBuf,
    gate: PathBuf,
}

impl Places {
    fn of(host: &TestHost) -> Self {
        Self {
            api: host.agent.socket().to_owned(),
            gate: host.agent.runtime().join("ctl/gate.sock"),
        }
    }

    /// The sockets, as socket units open them.
    fn opened(&self) -> Result<Vec<Named>> {
        Ok(vec![
            Named::listen("api", &self.api)?,
            Named::listen("gate", &self.gate)?,
        ])
    }

    /// Connects to both over and over while `work` goes on; returns how often. Fails when one
    /// connect is refused.
    fn connecting(&self, work: impl FnOnce() -> Result<()>) -> Result<u32> {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let client = scope.spawn(|| -> Result<u32> {
                let mut connects = 0;
                while !stop.load(Ordering::Relaxed) {
                    converse(&self.api, b"GET /healthz HTTP/1.0\r\n\r\n")?;
                    // The gate turns away who is no init.
                    converse(&self.gate, b"")?;
                    connects += 2;
                }
                Ok(connects)
            });
            let worked = work();
            stop.store(true, Ordering::Relaxed);
            let connects = client.join().map_err(|_| anyhow!("the client panicked"))?;
            worked?;
            connects
        })
    }
}

/// Connects, which must succeed, and reads until the agent closes, or is killed.
fn converse(socket: &Path, says: &[u8]) -> Result<()> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(ANSWERS))?;
    let mut answer = Vec::new();
    let heard = stream
        .write_all(says)
        .and_then(|()| stream.read_to_end(&mut answer));
    match heard {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            Err(error).with_context(|| format!("no answer from {}", socket.display()))
        }
        // Reset: the agent was killed with this connection open.
        _ => Ok(()),
    }
}

/// Kills the agent, asks while it is away, starts it again: the question waits and is answered.
fn replace(host: &mut TestHost) -> Result<()> {
    host.agent.kill()?;
    let mut early = UnixStream::connect(host.agent.socket()).context("connect meanwhile")?;
    early.set_read_timeout(Some(ANSWERS))?;
    early.write_all(b"GET /v1/status HTTP/1.0\r\n\r\n")?;
    host.agent.start(&host.ground)?;
    let mut answer = String::new();
    early
        .read_to_string(&mut answer)
        .context("the answer to a question asked while the agent was away")?;
    ensure!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    Ok(())
}

fn survives_kills(mut host: TestHost) -> Result<()> {
    host.warm_web(2)?;
    host.cli().activate("web", 1, "first")?;
    host.wait_for_armed("web", 2)?;
    let connects = Places::of(&host).connecting(|| {
        for _ in 0..REPLACEMENTS {
            replace(&mut host)?;
        }
        Ok(())
    })?;
    ensure!(
        connects > REPLACEMENTS,
        "only {connects} connects were tried"
    );
    // The inits at the gate dialled the same socket.
    host.wait_for_armed("web", 2)?;
    let task = host.cli().activate("web", 3, "second")?;
    assert_eq!((task.state.as_str(), task.active), ("done", 3));
    for instance in &task.instances {
        host.assert_serves(instance)?;
    }
    host.remove_app("web")
}

#[test]
fn passed_sockets_never_refuse_while_the_agent_is_killed_and_started() -> Result<()> {
    let mut host = TestHost::without_agent(QUICK)?;
    let places = Places::of(&host);
    host.agent.pass(places.opened()?);
    host.agent.start(&host.ground)?;
    survives_kills(host)
}

#[test]
fn stored_sockets_never_refuse_while_the_agent_is_killed_and_started() -> Result<()> {
    let mut host = TestHost::without_agent(QUICK)?;
    host.agent.keep_stored();
    host.agent.start(&host.ground)?;
    assert_eq!(host.agent.kept(), ["api", "gate"]);
    survives_kills(host)
}

#[test]
fn the_files_of_kept_sockets_stay_when_the_agent_is_stopped() -> Result<()> {
    let mut host = TestHost::without_agent(QUICK)?;
    let places = Places::of(&host);
    host.agent.keep_stored();
    host.agent.start(&host.ground)?;
    host.agent.stop()?;
    for socket in [&places.api, &places.gate] {
        UnixStream::connect(socket).with_context(|| format!("{}", socket.display()))?;
    }
    host.agent.start(&host.ground)?;
    host.cli().status().map(drop)
}

#[test]
fn a_passed_socket_that_listens_elsewhere_is_refused_and_names_both_places() -> Result<()> {
    let mut host = TestHost::without_agent(QUICK)?;
    let elsewhere = host.ground.path("elsewhere.sock");
    host.agent.pass(vec![Named::listen("api", &elsewhere)?]);
    host.agent.launch(&host.ground)?;
    let status = host.agent.wait_ended(ANSWERS)?;
    assert_eq!(status.code(), Some(3), "{}", host.agent.tail(20));
    let said = host.agent.tail(5);
    let wanted = format!(
        "the service manager passed a socket named \"api\" that listens at {}; wanted: a listening unix stream socket at {} (paths.api_socket)",
        elsewhere.display(),
        host.agent.socket().display()
    );
    ensure!(said.contains(&wanted), "{said}\nshould contain\n{wanted}");
    ensure!(!host.agent.socket().exists(), "a socket was opened");
    Ok(())
}

#[test]
fn a_passed_descriptor_that_is_no_listening_socket_is_refused() -> Result<()> {
    let mut host = TestHost::without_agent(QUICK)?;
    let (one, _other) = UnixStream::pair()?;
    host.agent.pass(vec![Named {
        name: "gate".to_owned(),
        socket: one.into(),
    }]);
    host.agent.launch(&host.ground)?;
    let status = host.agent.wait_ended(ANSWERS)?;
    assert_eq!(status.code(), Some(3), "{}", host.agent.tail(20));
    let said = host.agent.tail(5);
    ensure!(
        said.contains("a socket named \"gate\" that is none"),
        "{said}"
    );
    Ok(())
}

#[test]
fn a_passed_socket_whose_file_was_removed_is_replaced_by_a_reachable_one() -> Result<()> {
    let mut host = TestHost::without_agent(QUICK)?;
    let places = Places::of(&host);
    host.agent.pass(places.opened()?);
    std::fs::remove_file(&places.api)?;
    host.agent.start(&host.ground)?;
    let (answer, _) = http::request_unix(&places.api, "GET", "/healthz", b"", ANSWERS)?;
    assert_eq!(answer.status, 200);
    Ok(())
}
