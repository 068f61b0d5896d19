//! etcd fails in every way that it has: containers and registrations stay, what waits is made up for,
//! and who looks at `status` and the alarms knows. Real etcd 3.6.6: `make test-peers`.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::authority::Authority;
use nodeagent_tests::documents::{Pool, Task};
use nodeagent_tests::etcd::Key;
use nodeagent_tests::fleet::discovery;
use nodeagent_tests::wait::{Look, until};
use nodeagent_tests::{Etcd, Fleet, TestHost};
use rustix::process::{Pid, Signal, kill_process};

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
const UNREACHABLE: &str = "discovery_unreachable";
const REFUSED: &str = "discovery_refused";

/// A host with etcd, ready; `etcd` is added to the settings of the backend.
fn start(etcd: &str) -> Result<(TestHost, Etcd)> {
    let mut host = TestHost::without_agent(&discovery(&LOCALHOST, etcd))?;
    let etcd = Etcd::start(&host.ground)?;
    host.agent.start(&host.ground)?;
    Ok((host, etcd))
}

/// `count` of `web` in service, as many at the gate, and nothing on its way.
fn in_service(host: &TestHost, count: u32) -> Result<Task> {
    host.warm_web(count)?;
    let task = host.cli().activate("web", count, "peak")?;
    host.wait_for_armed("web", count)?;
    Ok(task)
}

/// What an outage may not change.
#[derive(Debug, PartialEq)]
struct Serving {
    /// Container id -> pid.
    tasks: BTreeMap<String, u32>,
    /// Name -> state, generation and address.
    instances: Vec<(String, String, u64, Option<String>)>,
    found: Vec<String>,
}

fn serving(host: &TestHost) -> Result<Serving> {
    let instances = host.cli().pool("web")?.instances.into_iter();
    Ok(Serving {
        tasks: host.containerd.tasks(host.agent.namespace())?,
        instances: instances
            .map(|i| (i.name, i.state, i.generation, i.address))
            .collect(),
        found: host.discovered()?,
    })
}

fn signal(host: &TestHost, signal: Signal) -> Result<()> {
    let pid = host.agent.pid().context("the agent runs")?;
    let pid = Pid::from_raw(pid.try_into()?).context("a pid")?;
    kill_process(pid, signal).context("signal the agent")
}

fn in_state<'a>(pool: &'a Pool, state: &str) -> Vec<&'a str> {
    let those = pool.instances.iter().filter(|i| i.state == state);
    those.map(|i| i.name.as_str()).collect()
}

#[test]
#[ignore = "needs a built peer: make test-peers"]
fn without_etcd_at_the_start_instances_wait_ready_and_are_registered_when_it_comes() -> Result<()> {
    let mut host = TestHost::without_agent(&discovery(&LOCALHOST, ""))?;
    let mut etcd = Etcd::prepare(&host.ground, LOCALHOST, 1, &[])?;
    host.agent.start(&host.ground)?;
    host.warm_web(1)?;
    host.cli().begin(
        &["activate", "web", "--to", "1", "--task-id", "peak"],
        "100ms",
    )?;
    let pool = host.wait_for_pool("web", "one ready with its error", |pool| {
        pool.instances.iter().any(|i| i.error.is_some())
    })?;
    assert_eq!((pool.active, in_state(&pool, "ready")), (0, vec!["web-0"]));
    let error = pool.instances[0].error.clone().context("an error")?;
    assert_eq!(error.code, "discovery");
    ensure!(
        error
            .detail
            .contains("etcd has not acknowledged generation 2 of web-0: cannot connect to etcd at"),
        "{}",
        error.detail
    );
    let alarms = host.wait_for_backend_alarms("etcd", &[UNREACHABLE])?;
    ensure!(
        alarms[0].detail.contains("etcd does not acknowledge"),
        "{alarms:?}"
    );

    etcd.start_again(&host.ground)?;
    host.wait_for_pool("web", "1 active", |pool| pool.active == 1)?;
    assert_eq!(etcd.instances()?.len(), 1);
    host.wait_for_backend_alarms("etcd", &[])?;
    let task = host.cli().activate("web", 1, "peak")?;
    assert_eq!((task.state.as_str(), task.active), ("done", 1));
    host.remove_app("web")
}

/// An outage of the kind `begin` to `end`, which goes on until a renewal is overdue and the alarm
/// stands.
fn outage(
    ttl: &str,
    begin: impl Fn(&mut Etcd) -> Result<()>,
    end: impl Fn(&mut Etcd, &TestHost) -> Result<()>,
) -> Result<()> {
    let (host, mut etcd) = start(ttl)?;
    in_service(&host, 2)?;
    let (before, keys) = (serving(&host)?, etcd.instances()?);
    let lease = host.wait_for_backend("etcd", "serving", |b| b.state == "serving")?;
    let lease = lease.lease.context("no lease")?;
    begin(&mut etcd)?;
    host.wait_for_backend_alarms("etcd", &[UNREACHABLE])?;
    assert_eq!(serving(&host)?, before, "in the outage");
    end(&mut etcd, &host)?;
    host.wait_for_backend_alarms("etcd", &[])?;
    let renewed = host.wait_for_backend("etcd", "renewed", |backend| {
        let renewals = backend.lease.as_ref().map(|lease| lease.renewals);
        backend.state == "serving" && renewals > Some(lease.renewals)
    })?;
    let renewed = renewed.lease.context("no lease")?;
    assert_eq!((renewed.id, renewed.lost), (lease.id, 0));
    assert_eq!(etcd.instances()?, keys);
    assert_eq!(serving(&host)?, before);
    host.remove_app("web")
}

#[test]
#[ignore = "needs a built peer: make test-peers"]
fn an_etcd_that_dies_for_longer_than_a_renewal_costs_no_container_and_no_key() -> Result<()> {
    // The alarm comes after 5 s; renewals are due each 3 s.
    outage("ttl = \"9s\"", Etcd::kill_all, |etcd, host| {
        etcd.start_again(&host.ground)
    })
}

#[test]
#[ignore = "needs a built peer: make test-peers"]
fn an_etcd_that_falls_silent_for_longer_than_a_renewal_costs_no_container_and_no_key() -> Result<()>
{
    outage(
        "ttl = \"30s\"",
        |etcd| etcd.pause(0),
        |etcd, _| etcd.resume(0),
    )
}

#[test]
#[ignore = "needs a built peer: make test-peers"]
fn a_revoked_lease_is_noticed_at_once_and_everything_is_registered_again() -> Result<()> {
    // The next renewal is 20 minutes away.
    let (host, etcd) = start("ttl = \"1h\"")?;
    in_service(&host, 2)?;
    let (before, keys) = (serving(&host)?, etcd.instances()?);
    etcd.revoke(keys[0].lease)?;
    let again = etcd.wait_for_instances(2)?;
    let what = |keys: &[Key]| -> Vec<_> {
        let pairs = keys.iter().map(|key| (key.key.clone(), key.value.clone()));
        pairs.collect()
    };
    assert_eq!(what(&again), what(&keys));
    ensure!(again[0].lease != keys[0].lease, "{again:?}");
    let backend = host.wait_for_backend("etcd", "serving", |b| b.state == "serving")?;
    assert_eq!(backend.lease.context("no lease")?.lost, 1);
    host.wait_for_backend_alarms("etcd", &[])?;
    assert_eq!(serving(&host)?, before);
    host.remove_app("web")
}

#[test]
#[ignore = "needs a built peer: make test-peers"]
fn an_etcd_that_is_compacted_costs_nothing() -> Result<()> {
    let (mut host, etcd) = start("ttl = \"1h\"")?;
    host.warm_web(1)?;
    host.cli().activate("web", 1, "first")?;
    let keys = etcd.instances()?;
    etcd.compact()?;
    host.cli().activate("web", 2, "second")?;
    assert_eq!(etcd.instances()?[..1], keys);
    // While nobody watches: what was seen last is no longer in etcd's history.
    host.agent.kill()?;
    for n in 0..20 {
        etcd.put("/elsewhere", &n.to_string())?;
    }
    etcd.compact()?;
    let keys = etcd.wait_for_instances(2)?;
    host.agent.start(&host.ground)?;
    host.wait_for_pool("web", "2 active", |pool| pool.active == 2)?;
    assert_eq!(etcd.instances()?, keys);
    host.cli().activate("web", 3, "third")?;
    assert_eq!(etcd.instances()?.len(), 3);
    host.remove_app("web")
}

#[test]
#[ignore = "needs a built peer: make test-peers"]
fn a_new_leader_and_a_dead_member_cost_no_key_and_no_activation() -> Result<()> {
    let mut host = TestHost::without_agent("")?;
    let mut etcd = Etcd::cluster(&host.ground)?;
    // One more that nobody is at.
    let all = [etcd.endpoints(), vec!["http://127.0.0.1:9".to_owned()]].concat();
    host.agent.configure(&format!(
        "[discovery.file]\npropagation_bound = \"100ms\"\n[discovery.etcd]\nenabled = true\nendpoints = {all:?}\nttl = \"15s\"\ndial_timeout = \"500ms\"\nrequest_timeout = \"1s\"\npropagation_bound = \"100ms\"\n"
    ))?;
    host.agent.start(&host.ground)?;
    in_service(&host, 1)?;
    let (before, keys) = (serving(&host)?, etcd.instances()?);

    let leader = etcd.leader()?;
    etcd.kill(leader)?;
    etcd.wait_until_serving()?;
    ensure!(etcd.leader()? != leader, "no new leader");
    host.cli().activate("web", 2, "with-two-of-three")?;
    etcd.start_again(&host.ground)?;

    // The member that the agent speaks to.
    let backend = host.wait_for_backend("etcd", "serving", |b| b.state == "serving")?;
    let used = backend.endpoint.context("no endpoint")?;
    let member = etcd.endpoints().iter().position(|e| *e == used);
    etcd.kill(member.context("an endpoint of ours")?)?;
    etcd.wait_until_serving()?;
    host.cli().activate("web", 3, "without-the-one-in-use")?;
    let other = host.wait_for_backend("etcd", "serving elsewhere", |backend| {
        backend.state == "serving" && backend.endpoint.as_ref() != Some(&used)
    })?;
    assert_eq!(other.lease.context("no lease")?.lost, 0);
    let now = etcd.instances()?;
    assert_eq!((now.len(), &now[..1]), (3, &keys[..]));
    let pool = host.cli().pool("web")?;
    let first = &pool.instances[0];
    assert_eq!(first.generation, before.instances[0].2);
    host.remove_app("web")
}

#[test]
#[ignore = "needs a built peer: make test-peers"]
fn wrong_credentials_are_told_and_the_right_ones_need_no_restart() -> Result<()> {
    let mut host = TestHost::without_agent("")?;
    let mut etcd = Etcd::start(&host.ground)?;
    etcd.require_users("agent", "right", "/nodeagent/default/")?;
    let password = host.file("password", "wrong\n")?;
    let user = format!("username = \"agent\"\npassword_file = {password:?}");
    host.agent.configure(&discovery(&LOCALHOST, &user))?;
    host.agent.start(&host.ground)?;
    let told = |host: &TestHost, words: &str| {
        host.wait_for_backend("etcd", words, |backend| {
            let error = backend.error.as_deref().unwrap_or_default();
            backend.state == "refused" && error.contains(words)
        })
    };
    told(&host, "readable by its owner alone: chmod 600")?;
    let alarms = host.wait_for_backend_alarms("etcd", &[REFUSED])?;
    ensure!(
        alarms[0]
            .detail
            .starts_with("etcd is closed to this agent:"),
        "{alarms:?}"
    );
    fs::set_permissions(&password, Permissions::from_mode(0o600))?;
    told(&host, "invalid user ID or password")?;
    let status = host.cli().run(&["status"])?.ok()?.stdout;
    ensure!(status.contains("discovery etcd: REFUSED since"), "{status}");
    ensure!(status.contains("ALARM discovery_refused"), "{status}");

    fs::write(&password, "right\n")?;
    host.wait_for_backend("etcd", "serving", |backend| backend.state == "serving")?;
    host.wait_for_backend_alarms("etcd", &[])?;
    host.warm_web(1)?;
    host.cli().activate("web", 1, "peak")?;
    assert_eq!(etcd.instances()?.len(), 1);
    host.remove_app("web")
}

#[test]
#[ignore = "needs a built peer: make test-peers"]
fn a_user_without_rights_is_told_so() -> Result<()> {
    let mut host = TestHost::without_agent("")?;
    let mut etcd = Etcd::start(&host.ground)?;
    etcd.require_users("agent", "right", "/elsewhere/")?;
    let password = host.file("password", "right")?;
    fs::set_permissions(&password, Permissions::from_mode(0o600))?;
    let user = format!("username = \"agent\"\npassword_file = {password:?}");
    host.agent.configure(&discovery(&LOCALHOST, &user))?;
    host.agent.start(&host.ground)?;
    let backend = host.wait_for_backend("etcd", "refused", |b| b.state == "refused")?;
    let error = backend.error.context("no error")?;
    ensure!(error.contains("permission denied"), "{error}");
    Ok(())
}

#[test]
#[ignore = "needs a built peer: make test-peers"]
fn tls_needs_the_right_authority_and_a_certificate_of_the_agents_own() -> Result<()> {
    let mut host = TestHost::without_agent("")?;
    let directory = host.ground.path("tls");
    let authority = Authority::create(&directory)?;
    authority.sign("etcd", "subjectAltName=IP:127.0.0.1")?;
    authority.sign("agent", "extendedKeyUsage=clientAuth")?;
    let file = |name: &str| directory.join(name).display().to_string();
    // Plain HTTP is for the test's own eyes.
    let urls = "http://127.0.0.1:2379,https://127.0.0.1:2479";
    let (cert, key, ca) = (file("etcd.pem"), file("etcd.key"), file("ca.pem"));
    let flags = [
        "--listen-client-urls",
        urls,
        "--cert-file",
        &cert,
        "--key-file",
        &key,
        "--client-cert-auth",
        "--trusted-ca-file",
        &ca,
    ];
    let etcd = Etcd::start_on(&host.ground, LOCALHOST, 1, &flags)?;
    let settings = |ca: &str, more: &str| {
        let tls = format!("ca_file = {ca:?}\n{more}");
        discovery(&LOCALHOST, &tls).replace("http://127.0.0.1:2379", "https://127.0.0.1:2479")
    };
    let own = format!(
        "cert_file = {:?}\nkey_file = {:?}",
        file("agent.pem"),
        file("agent.key")
    );
    for (case, config, says) in [
        (
            "another authority",
            settings(&file("agent.pem"), &own),
            "certificate",
        ),
        ("no certificate", settings(&ca, ""), "etcd"),
    ] {
        host.agent.configure(&config)?;
        host.agent.start(&host.ground)?;
        let backend = host.wait_for_backend("etcd", "away", |backend| backend.failures > 1)?;
        let error = backend.error.unwrap_or_default();
        ensure!(error.contains(says), "{case}: {error}");
        assert_eq!(backend.state, "away", "{case}: {error}");
        host.agent.stop()?;
    }
    host.agent.configure(&settings(&ca, &own))?;
    host.agent.start(&host.ground)?;
    host.warm_web(1)?;
    host.cli().activate("web", 1, "peak")?;
    assert_eq!(etcd.instances()?.len(), 1);
    host.remove_app("web")
}

#[test]
#[ignore = "needs a built peer: make test-peers"]
fn an_agent_that_stops_for_longer_than_its_lease_registers_all_again_and_starts_nothing()
-> Result<()> {
    let (host, etcd) = start("ttl = \"3s\"")?;
    in_service(&host, 2)?;
    let (before, keys) = (serving(&host)?, etcd.instances()?);
    signal(&host, Signal::STOP)?;
    etcd.wait_for_instances(0)?;
    signal(&host, Signal::CONT)?;
    let again = etcd.wait_for_instances(2)?;
    ensure!(again[0].lease != keys[0].lease, "{again:?}");
    assert_eq!(again[0].value, keys[0].value);
    assert_eq!(serving(&host)?, before);
    host.remove_app("web")
}

#[test]
#[ignore = "needs a built peer: make test-peers"]
fn an_optional_etcd_keeps_nobody_waiting_and_is_brought_up_to_date() -> Result<()> {
    let mut host = TestHost::without_agent(&discovery(&LOCALHOST, "required = false"))?;
    let mut etcd = Etcd::prepare(&host.ground, LOCALHOST, 1, &[])?;
    host.agent.start(&host.ground)?;
    host.warm_web(2)?;
    let task = host.cli().activate("web", 2, "peak")?;
    assert_eq!((task.state.as_str(), task.active), ("done", 2));
    let backend = host.wait_for_backend("etcd", "away", |b| b.failures > 1)?;
    assert_eq!((backend.state.as_str(), backend.required), ("away", false));
    host.wait_for_backend_alarms("etcd", &[])?;
    etcd.start_again(&host.ground)?;
    let keys = etcd.wait_for_instances(2)?;

    etcd.kill_all()?;
    host.cli().deactivate("web", 1, "less")?;
    etcd.start_again(&host.ground)?;
    let left = etcd.wait_for_instances(1)?;
    ensure!(keys.contains(&left[0]), "{left:?} of {keys:?}");
    host.remove_app("web")?;
    etcd.wait_for_instances(0).map(drop)
}

#[test]
#[ignore = "needs a built peer: make test-peers"]
fn a_deactivation_without_etcd_serves_on_until_the_lease_is_surely_over() -> Result<()> {
    let (host, mut etcd) = start("ttl = \"6s\"")?;
    host.warm_web(1)?;
    let task = host.cli().activate("web", 1, "peak")?;
    etcd.kill_all()?;
    host.cli().begin(
        &["deactivate", "web", "--to", "0", "--task-id", "off"],
        "100ms",
    )?;
    let pool = host.wait_for_pool("web", "draining with an error", |pool| {
        pool.instances
            .iter()
            .any(|i| i.state == "draining" && i.error.is_some())
    })?;
    assert_eq!(
        pool.instances[0].error.clone().context("none")?.code,
        "discovery"
    );
    host.assert_serves(&task.instances[0])?;
    let task = host.cli().deactivate("web", 0, "off")?;
    assert_eq!((task.state.as_str(), task.active), ("done", 0));
    host.remove_app("web")?;
    // etcd counts the lease anew; the agent deletes the key before that is over.
    etcd.start_again(&host.ground)?;
    etcd.wait_for_instances(0).map(drop)
}

#[test]
#[ignore = "needs a built peer: make test-peers"]
fn a_forced_deactivation_does_not_wait_for_etcd_and_says_so() -> Result<()> {
    let (host, mut etcd) = start("ttl = \"1h\"")?;
    host.warm_web(1)?;
    host.cli().activate("web", 1, "peak")?;
    etcd.kill_all()?;
    let words = [
        "deactivate",
        "web",
        "--to",
        "0",
        "--task-id",
        "off",
        "--force",
    ];
    let task: Task = host.cli().json(&words)?.document(0)?;
    let error = task.instances[0]
        .error
        .clone()
        .context("it does not say so")?;
    assert_eq!(error.code, "unacknowledged");
    ensure!(error.detail.contains("etcd"), "{}", error.detail);
    host.remove_app("web")?;
    etcd.start_again(&host.ground)?;
    etcd.wait_for_instances(0).map(drop)
}

#[test]
#[ignore = "needs a built peer: make test-peers"]
fn two_agents_of_a_fleet_register_beside_each_other_and_live_alone() -> Result<()> {
    let mut fleet = Fleet::new(2, "ttl = \"6s\"")?;
    for n in 0..2 {
        fleet.start(n)?;
        in_service(&fleet.hosts[n], 1)?;
    }
    let mut keys = fleet.etcd.wait_for_instances(2)?;
    let of = |n: usize, fleet: &Fleet| format!("/web/test-{}/0", fleet.hosts[n].ground.id());
    let (first, second) = (of(0, &fleet), of(1, &fleet));
    let before = serving(&fleet.hosts[1])?;
    fleet.hosts[0].agent.kill()?;
    let left = fleet.etcd.wait_for_instances(1)?;
    keys.retain(|key| key.key.ends_with(&second));
    assert_eq!(left, keys);
    assert_eq!(serving(&fleet.hosts[1])?, before);

    fleet.start(0)?;
    let both = fleet.etcd.wait_for_instances(2)?;
    ensure!(both.iter().any(|key| key.key.ends_with(&first)), "{both:?}");
    for host in &fleet.hosts {
        host.wait_for_pool("web", "1 active", |pool| pool.active == 1)?;
        host.remove_app("web")?;
    }
    Ok(())
}

#[test]
#[ignore = "needs a built peer: make test-peers"]
fn an_agent_with_the_host_id_of_another_is_refused_until_that_ones_lease_is_over() -> Result<()> {
    let mut fleet = Fleet::new(2, "ttl = \"6s\"")?;
    for host in &fleet.hosts {
        let file = host.agent.config().join("30-id.toml");
        fs::write(file, "version = 1\n[host]\nid = \"copied\"\n")?;
    }
    fleet.start(0)?;
    in_service(&fleet.hosts[0], 1)?;
    let (keys, before) = (fleet.etcd.instances()?, serving(&fleet.hosts[0])?);

    fleet.start(1)?;
    let second = &fleet.hosts[1];
    let fenced = second.wait_for_backend("etcd", "fenced", |b| b.state == "fenced")?;
    let error = fenced.error.context("no error")?;
    ensure!(
        error.starts_with("host id \"copied\" of fleet \"default\" belongs to another agent"),
        "{error}"
    );
    second.wait_for_backend_alarms("etcd", &[REFUSED])?;
    second.warm_web(1)?;
    second.cli().begin(
        &["activate", "web", "--to", "1", "--task-id", "mine"],
        "100ms",
    )?;
    second.wait_for_pool("web", "one ready, unregistered", |pool| {
        pool.active == 0 && pool.instances.iter().any(|i| i.error.is_some())
    })?;
    assert_eq!(fleet.etcd.instances()?, keys);
    assert_eq!(serving(&fleet.hosts[0])?, before);

    // The first one goes; it is the second one's turn.
    fleet.hosts[0].agent.kill()?;
    let second = &fleet.hosts[1];
    second.wait_for_pool("web", "1 active", |pool| pool.active == 1)?;
    second.wait_for_backend_alarms("etcd", &[])?;
    let taken = fleet.etcd.wait_for_instances(1)?;
    ensure!(taken[0].lease != keys[0].lease, "{taken:?}");
    fleet.start(0)?;
    let first = &fleet.hosts[0];
    first.wait_for_backend_alarms("etcd", &[REFUSED])?;
    assert_eq!(fleet.etcd.instances()?, taken);
    fleet.hosts[1].remove_app("web")
}

#[test]
#[ignore = "needs a built peer: make test-peers"]
fn renewals_are_counted() -> Result<()> {
    let (host, mut etcd) = start("ttl = \"3s\"")?;
    let patience = Duration::from_secs(10);
    let count = |outcome: &str| -> Result<f64> {
        let page = host.agent.metrics()?;
        let labels = [("backend", "etcd"), ("call", "renew"), ("outcome", outcome)];
        page.value("nodeagent_discovery_call_duration_seconds_count", &labels)
            .context("no such sample")
    };
    let wait = |outcome: &str, least: f64| {
        until(&format!("renewals {outcome}"), patience, || {
            let now = count(outcome)?;
            Ok(if now >= least {
                Look::Seen(())
            } else {
                Look::NotYet(now.to_string())
            })
        })
    };
    wait("ok", 2.0)?;
    etcd.pause(0)?;
    wait("failed", 1.0)?;
    etcd.resume(0)
}
